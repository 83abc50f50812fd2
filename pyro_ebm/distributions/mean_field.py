# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The naive mean field of a machine of two sides, row by row until it stands still."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ebm.distributions.rbm import RBM

__all__ = ["MeanFieldSolution", "MeanFieldSolver"]

#: Updates between two looks at which rows are done, each of which waits for the device.
_CHECK_EVERY = 5
#: Updates before the acceleration, which makes one a third dearer: most rows need no more than these.
_PLAIN_UPDATES = 10
#: Largest step of the acceleration, in units of the plain one.
_MAX_EXTRAPOLATION = 20.0


@dataclass(frozen=True)
class MeanFieldSolution:
    r"""A factorised distribution q of both sides of a machine and its bound of log Z, row by row.

    :param Tensor visible_theta: natural parameters of q of the visible side, shape ``(rows, V)``.
    :param Tensor hidden_theta: those of the hidden side, shape ``(rows, H)``: the field of the visible means,
        so that q of this side is optimal.
    :param Tensor bound: :math:`E_q[-E] + H(q) \le \log Z`, shape ``(rows,)``.
    :param Tensor residual: by how much the last update, without damping, changed a natural parameter of
        the visible side at most, shape ``(rows,)``.
    :param Tensor converged: whether that is at most the tolerance, shape ``(rows,)``.
    :param Tensor num_updates: updates of both sides that a row took, shape ``(rows,)``.
    """

    visible_theta: Tensor
    hidden_theta: Tensor
    bound: Tensor
    residual: Tensor
    converged: Tensor
    num_updates: Tensor


class MeanFieldSolver:
    r"""Coordinate ascent of the mean-field bound of :math:`\log Z`, one side after the other.

    With the hidden side at its optimum for the visible means :math:`\mu`, the bound is a function of
    the natural parameters :math:`\theta` of the visible side alone,

    .. math::
        L(\theta) = A_v(\theta) - (\theta - b)^\top \mu + A_h(c + W^\top \mu) + K, \qquad
        \mu = \nabla A_v(\theta),

    where offsets are absorbed into b, c and K. An update is
    :math:`\theta' = b + W\, \nabla A_h(c + W^\top \mu)`; it never lowers L. A part ``1 - damping`` of the way
    does not either: L falls by a Kullback-Leibler divergence to the optimum of its side, which decreases
    along straight lines of natural parameters.

    **Acceleration.** After ten updates a row extrapolates by the secant of its last two steps (Anderson's
    method of depth one). A row whose bound would fall goes back and takes the plain step instead, so that
    the bound of accepted states never decreases. A plain step is always taken: no rounding of the bound
    can hold a row up.

    **Cost.** An update is two products, one with the weight and one with its transpose. Rows that have
    converged are taken out of them, every few updates; what a row comes to does not depend on the others.

    :param RBM machine: the machine; its layers may have one batch axis, the rows, its weight has none.
    :raises ValueError: if the weight has a batch shape.
    """

    def __init__(self, machine: RBM) -> None:
        if machine.weight.dim() > 2:
            raise ValueError("mean field takes a machine whose weight has no batch shape")
        form = machine.canonical()
        self._visible, self._hidden = machine.visible, machine.hidden
        self._weight = form.weight
        self._terms = _Terms(form.visible_bias, form.hidden_bias, form.constant)

    def start(self, hidden_mean: Tensor) -> Tensor:
        """The visible natural parameters that means of the hidden side give, shape ``(rows, V)``."""
        return _affine(hidden_mean, self._weight.mT, self._terms.bias)

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The bound at visible natural parameters, and those of the hidden side.

        Differentiable in the machine's parameters where theta is held: at a fixed point that is the
        whole gradient, as the bound is stationary in theta.

        :param Tensor theta: shape ``(rows, V)``.
        :returns: shapes ``(rows,)`` and ``(rows, H)``.
        """
        return self._evaluate(theta, self._terms)

    def _evaluate(self, theta: Tensor, terms: "_Terms") -> tuple[Tensor, Tensor]:
        mean = self._visible.natural_mean(theta)
        hidden_theta = _affine(mean, self._weight, terms.hidden_bias)
        own = self._visible.natural_log_partition(theta) - ((theta - terms.bias) * mean).sum(-1)
        bound = own + self._hidden.natural_log_partition(hidden_theta) + terms.constant
        return bound, hidden_theta

    @torch.no_grad()
    def solve(
        self,
        theta: Tensor,
        *,
        max_updates: int,
        tolerance: float,
        damping: float = 0.0,
        accelerate: bool = True,
    ) -> MeanFieldSolution:
        """Update rows until they stand still.

        :param Tensor theta: where the visible side starts, shape ``(rows, V)``.
        :param int max_updates: largest number of updates of a row.
        :param float tolerance: a row is done when an update (without damping) changes no natural parameter
            of the visible side by more.
        :param float damping: the part of the way that an update does not go, in [0, 1).
        :param bool accelerate: whether to extrapolate.
        """
        active = torch.arange(len(theta), device=theta.device)
        done = _Store(theta)
        state = _State(theta, self._terms)
        for update in range(max_updates):
            self._update(state, damping, accelerate and update >= _PLAIN_UPDATES)
            last = update + 1 == max_updates
            if update > 0 and (update + 1) % _CHECK_EVERY and not last:
                continue
            state.residual = state.step.abs().amax(-1) / (1.0 - damping)
            if last:
                break
            # A row of NaN does not move: it is done, and has not converged.
            moving = (state.residual > tolerance).nonzero().squeeze(-1)
            if len(moving) < len(active):
                # The others are written again later.
                done.put(active, state)
                active, state = active[moving], state.take(moving)
            if not len(moving):
                break
        done.put(active, state)
        bound, hidden_theta = self.evaluate(done.theta)
        return MeanFieldSolution(
            done.theta,
            hidden_theta,
            bound,
            done.residual,
            done.residual <= tolerance,
            done.num_updates,
        )

    def _update(self, state: "_State", damping: float, accelerate: bool) -> None:
        """One update of all rows of a state."""
        bound = None
        if accelerate:
            bound, hidden_theta = self._evaluate(state.trial, state.terms)
        else:
            mean = self._visible.natural_mean(state.trial)
            hidden_theta = _affine(mean, self._weight, state.terms.hidden_bias)
        hidden_mean = self._hidden.natural_mean(hidden_theta)
        image = _affine(hidden_mean, self._weight.mT, state.terms.bias)
        step = image - state.trial
        if damping:
            step = step * (1.0 - damping)
            image = state.trial + step
        state.num_updates += 1
        if bound is None:
            state.image = state.trial = image
            state.step = step
        else:
            state.accept(bound, image, step)
            state.propose()


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Rows times a weight, with a bias of all rows or one of each."""
    return torch.addmm(bias, x, weight)


@dataclass(frozen=True)
class _Terms:
    """What the rows of a machine do not share, or share: without an axis of rows."""

    bias: Tensor
    hidden_bias: Tensor
    constant: Tensor

    def take(self, rows: Tensor) -> "_Terms":
        """Those of some of the rows."""
        bias = self.bias if self.bias.dim() == 1 else self.bias[rows]
        hidden_bias = self.hidden_bias if self.hidden_bias.dim() == 1 else self.hidden_bias[rows]
        constant = self.constant if self.constant.dim() == 0 else self.constant[rows]
        return _Terms(bias, hidden_bias, constant)


class _State:
    """Where rows stand: the image of the last state that was accepted, the step to it, and what is tried
    next."""

    def __init__(self, trial: Tensor, terms: _Terms) -> None:
        self.trial = trial
        self.terms = terms
        # Of the last accepted state; none before the first update.
        self.image: Tensor | None = None
        self.step: Tensor = trial
        # From the accepted state before it; zero where the last trial was refused.
        self.change: Tensor | None = None
        self.image_change: Tensor | None = None
        #: Whether the trial is the plain step.
        self.plain = trial.new_ones(len(trial), dtype=torch.bool)
        self.bound = trial.new_full((len(trial),), -torch.inf)
        self.residual = trial.new_full((len(trial),), torch.inf)
        self.num_updates = 0

    def accept(self, bound: Tensor, image: Tensor, step: Tensor) -> None:
        """Go to the states that were tried, except where an extrapolation has lowered the bound."""
        if self.image is not None:
            slack = 8 * torch.finfo(bound.dtype).eps * bound.abs()
            accepted = (self.plain | (bound >= self.bound - slack)).unsqueeze(-1)
            step = torch.where(accepted, step, self.step)
            image = torch.where(accepted, image, self.image)
            self.change = step - self.step
            self.image_change = image - self.image
        self.image, self.step = image, step
        # The best one, so that no sum of slacks adds up; fmax passes over NaN of a wild extrapolation.
        self.bound = torch.fmax(self.bound, bound)

    def propose(self) -> None:
        """The next states: the images, or beyond them where the last steps say so."""
        assert self.image is not None
        self.trial = self.image
        if self.change is None or self.image_change is None:
            return
        length = self.change.square().sum(-1)
        share = (self.step * self.change).sum(-1) / length
        share = torch.where(length > 0, share, 0.0).clamp(-_MAX_EXTRAPOLATION, 1.0)
        self.plain = share == 0
        self.trial = torch.addcmul(self.image, share.unsqueeze(-1), self.image_change, value=-1.0)

    def take(self, rows: Tensor) -> "_State":
        """Some of the rows."""
        new = _State(self.trial[rows], self.terms.take(rows))
        for name in ("image", "step", "change", "image_change", "plain", "bound", "residual"):
            value = getattr(self, name)
            setattr(new, name, None if value is None else value[rows])
        new.num_updates = self.num_updates
        return new


class _Store:
    """What rows have come to, in their places."""

    def __init__(self, like: Tensor) -> None:
        self.theta = torch.empty_like(like)
        self.residual = like.new_empty(len(like))
        self.num_updates = torch.zeros(len(like), dtype=torch.long, device=like.device)

    def put(self, places: Tensor, state: _State) -> None:
        # The image is one update further than what was accepted, at no cost.
        assert state.image is not None
        self.theta[places] = state.image
        self.residual[places] = state.residual
        self.num_updates[places] = state.num_updates
