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
#: Rows are thrown out when at most this part of them still moves.
_COMPACT_BELOW = 0.75
#: Largest step of the acceleration, in units of the plain one.
_MAX_EXTRAPOLATION = 20.0


@dataclass(frozen=True)
class MeanFieldSolution:
    r"""A factorised distribution q of both sides of a machine and its bound of log Z, row by row.

    :param Tensor visible_theta: natural parameters of q of the visible side, shape ``(rows, V)``.
    :param Tensor hidden_theta: those of the hidden side, shape ``(rows, H)``: the field of the visible means,
        so that q of this side is optimal.
    :param Tensor bound: :math:`E_q[-E] + H(q) \le \log Z`, shape ``(rows,)``.
    :param Tensor residual: by how much the next update would change a natural parameter at most, shape
        ``(rows,)``.
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

    **Acceleration.** After two updates a row extrapolates by the secant of its last two steps (Anderson's
    method of depth one). A row whose bound would fall takes the plain step instead, so that the
    bound of accepted states never decreases.

    **Cost.** Rows that have converged are taken out of the products.

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
        :param float tolerance: a row is done when an update changes no natural parameter by more.
        :param float damping: the part of the way that an update does not go, in [0, 1).
        :param bool accelerate: whether to extrapolate.
        """
        rows = len(theta)
        active = torch.arange(rows, device=theta.device)
        done = _Store(rows, theta)
        state = _State(theta, self._terms)
        for update in range(max_updates):
            self._update(state, damping, accelerate and update > 0)
            last = update == max_updates - 1
            if not last and (update + 1) % _CHECK_EVERY and update > 0:
                continue
            moving = state.residual > tolerance
            number = int(moving.sum())
            if number == 0 or last:
                break
            if number <= _COMPACT_BELOW * len(active):
                done.put(active[~moving], state, ~moving)
                active = active[moving]
                state = state.take(moving)
        done.put(active, state, None)
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
        bound, hidden_theta = self._evaluate(state.trial, state.terms)
        hidden_mean = self._hidden.natural_mean(hidden_theta)
        image = _affine(hidden_mean, self._weight.mT, state.terms.bias)
        if damping:
            image = torch.lerp(image, state.trial, damping)
        step = image - state.trial
        state.accept(bound, image, step)
        state.propose(accelerate)


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
    """Where rows stand: the last state that was accepted, its image, and what is tried next."""

    def __init__(self, trial: Tensor, terms: _Terms) -> None:
        self.trial = trial
        self.terms = terms
        self.theta = trial
        self.image = trial
        self.step = torch.zeros_like(trial)
        self.change: Tensor | None = None
        self.image_change: Tensor | None = None
        self.bound = trial.new_full((len(trial),), -torch.inf)
        self.residual = trial.new_full((len(trial),), torch.inf)
        self.num_updates = torch.zeros(len(trial), dtype=torch.long, device=trial.device)
        self.accepted: Tensor | None = None

    def accept(self, bound: Tensor, image: Tensor, step: Tensor) -> None:
        """Go to the states that were tried, except where the bound has fallen."""
        self.num_updates += 1
        if self.accepted is None:
            self.accepted = torch.ones_like(bound, dtype=torch.bool)
        else:
            slack = 8 * torch.finfo(bound.dtype).eps * bound.abs()
            self.accepted = bound >= self.bound - slack
        take = self.accepted.unsqueeze(-1)
        self.change = torch.where(take, step - self.step, 0.0)
        self.image_change = torch.where(take, image - self.image, 0.0)
        self.theta = torch.where(take, self.trial, self.theta)
        self.image = torch.where(take, image, self.image)
        self.step = torch.where(take, step, self.step)
        self.bound = torch.where(self.accepted, bound, self.bound)
        self.residual = self.step.abs().amax(-1)

    def propose(self, accelerate: bool) -> None:
        """The next states: the images, or beyond them where the last steps say so."""
        self.trial = self.image
        if not accelerate or self.change is None or self.image_change is None:
            return
        length = self.change.square().sum(-1, keepdim=True)
        share = (self.step * self.change).sum(-1, keepdim=True) / length
        share = torch.where(length > 0, share, 0.0).clamp(-_MAX_EXTRAPOLATION, 1.0)
        self.trial = self.image - share * self.image_change

    def take(self, rows: Tensor) -> "_State":
        """Some of the rows."""
        new = _State(self.trial[rows], self.terms.take(rows))
        for name in ("theta", "image", "step", "bound", "residual", "num_updates"):
            setattr(new, name, getattr(self, name)[rows])
        for name in ("change", "image_change", "accepted"):
            value = getattr(self, name)
            setattr(new, name, None if value is None else value[rows])
        return new


class _Store:
    """Rows that are done, in their places."""

    def __init__(self, rows: int, like: Tensor) -> None:
        self.theta = torch.empty_like(like)
        self.residual = like.new_empty(rows)
        self.num_updates = torch.zeros(rows, dtype=torch.long, device=like.device)

    def put(self, places: Tensor, state: _State, which: Tensor | None) -> None:
        # The image is one update further, at no cost.
        for own, name in (("theta", "image"), ("residual",) * 2, ("num_updates",) * 2):
            value = getattr(state, name)
            getattr(self, own)[places] = value if which is None else value[which]
