# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Kernels that move Gaussian visible units from where they are: Langevin and over-relaxed."""

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions import DBM, RBM, GibbsSweep
from pyro_ebm.distributions.units import Gaussian
from pyro_ebm.infer.mcmc.kernel import MachineKernel
from pyro_ebm.infer.mcmc.step_size import StepSize

__all__ = ["MALA", "GibbsLangevin"]


def _tensor(value: float | Tensor) -> Tensor:
    """A number or a tensor as a tensor that has all of its digits."""
    if isinstance(value, Tensor):
        return value.detach()
    return torch.tensor(value, dtype=torch.float64)


def _check_broadcast(name: str, value: Tensor, shape: Size) -> None:
    try:
        fits = torch.broadcast_shapes(value.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"{name} must broadcast to shape {tuple(shape)}, got {tuple(value.shape)}")


class _GaussianKernel(MachineKernel):
    """A kernel for machines with Gaussian visible units, by themselves and not inside a model."""

    def __init__(
        self, target: RBM | DBM, num_steps: int = 1, *, generator: Generator | None = None
    ) -> None:
        if not isinstance(target, RBM | DBM):
            raise TypeError(
                f"target must be an RBM or DBM distribution, got {type(target).__name__}; a machine with "
                "Gaussian visible units inside a model is sampled by MetropolisBlockGibbs, HMC or NUTS"
            )
        super().__init__(target, num_steps, generator=generator)

    def _gaussian_units(self, target: RBM) -> Gaussian:
        """The units that are moved from where they are."""
        if not isinstance(target.visible, Gaussian):
            raise ValueError(
                f"{type(self).__name__} needs Gaussian visible units, got "
                f"{type(target.visible).__name__}"
            )
        return target.visible

    def _check_target(self, target: RBM) -> None:
        self._gaussian_units(target)

    def _prepare(self) -> None:
        self._sweep = GibbsSweep(self.target, self.generator)
        precision = self._gaussian_units(self.target).parameters["precision"].detach()
        self._precision = precision.expand(torch.broadcast_shapes(precision.shape, (1,)))

    def _start(self) -> Tensor:
        return self._sweep.initial_visible(self.state_shape)

    def _normal(self, v: Tensor) -> Tensor:
        noise = torch.empty_like(v, memory_format=torch.contiguous_format)
        return noise.normal_(generator=self.generator)


class GibbsLangevin(_GaussianKernel):
    r"""Gibbs sampling whose Gaussian half-step remembers where it was.

    A step draws h from :math:`p(h \mid v)` and moves every visible unit around its conditional mean
    :math:`m = P^{-1}(b + W h)` by

    .. math:: v' = m + \alpha (v - m) + \sqrt{(1 - \alpha^2) / P}\; \epsilon, \qquad
              \epsilon \sim N(0, I), \qquad |\alpha| < 1,

    which leaves :math:`p(v \mid h)` invariant, exactly and without a Metropolis test. With
    :math:`\alpha = 0` it is block Gibbs. With :math:`\alpha = e^{-\eta P} > 0` it is the exact solution of
    Langevin dynamics (an Ornstein-Uhlenbeck process) over a time :math:`\eta` with h held; Euler's steps,
    which the literature on these machines takes, have the wrong variance :math:`P^{-1} / (1 - \eta P / 2)`
    and diverge for :math:`\eta P \ge 2`. With
    :math:`\alpha < 0` it is over-relaxed [1] [2]: the unit goes to the other side of the mean.

    **What to expect.** If a linear function of v has the autocorrelation :math:`\rho` after a sweep of
    block Gibbs, it has :math:`\rho + \alpha (1 - \rho)` after a step, whatever the hidden family: more for a
    positive :math:`\alpha`, less for a negative one. With Gaussian hidden units, along a direction in which
    block Gibbs has autocorrelations :math:`\rho^t`, the variance of a long average is

    .. math:: \frac{2}{(1 - \alpha)(1 - \rho)} - 1

    times that of independent draws. That is at best half of block Gibbs' where :math:`\rho` is near 1,
    since h is drawn afresh (the odd layers of a deep machine; its further even layers are drawn from their
    conditional distribution, as in block Gibbs). Squares gain less: around the conditional mean
    :math:`\alpha^2` takes the place of :math:`\alpha`, so that an :math:`\alpha` near -1 is bad for
    variances.

    :param target: the machine, an RBM or a DBM with Gaussian visible units, any hidden units and any batch
        shape.
    :param alpha: :math:`\alpha`, a number, or a tensor that broadcasts with the visible states, such as one
        number per unit (shape ``(V,)``); between -1 and 1, both excluded.
    :param int num_steps: steps per draw, at least 1.
    :param torch.Generator generator: the source of random bits; the global one if None. Parallel
        processes need the global one, which Pyro seeds for every chain.
    :raises ValueError: if ``alpha`` is out of range or has a wrong shape, ``num_steps`` is below 1, the
        visible units are not Gaussian, or the machine is not normalisable.

    **References**

    [1] *Over-relaxation method for the Monte Carlo evaluation of the partition function for multiquadratic
    actions*, Stephen Adler (1981)

    [2] *Suppressing Random Walks in Markov Chain Monte Carlo Using Ordered Overrelaxation*,
    Radford Neal (1995)

    [3] *Gaussian-Bernoulli RBMs Without Tears*, Renjie Liao, Simon Kornblith, Mengye Ren, David Fleet,
    Geoffrey Hinton (2022)

    >>> import torch
    >>> from pyro_ebm.distributions import GaussianBernoulliRBM
    >>> from pyro_ebm.infer import GibbsLangevin, VectorizedMCMC
    >>> rbm = GaussianBernoulliRBM(torch.ones(3, 2), torch.zeros(3), torch.ones(3), torch.zeros(2))
    >>> mcmc = VectorizedMCMC(GibbsLangevin(rbm, -0.5), 10, 20, num_chains=50, disable_progbar=True)
    >>> mcmc.run()
    >>> mcmc.get_samples(group_by_chain=True)["v"].shape
    torch.Size([50, 10, 3])
    """

    def __init__(
        self,
        target: RBM | DBM,
        alpha: float | Tensor = -0.5,
        num_steps: int = 1,
        *,
        generator: Generator | None = None,
    ) -> None:
        self.alpha = _tensor(alpha)
        # Written so that NaN is refused.
        if not bool((self.alpha.abs() < 1.0).all()):
            raise ValueError(f"alpha must be between -1 and 1, both excluded, got {alpha}")
        super().__init__(target, num_steps, generator=generator)

    def _gaussian_units(self, target: RBM) -> Gaussian:
        # The other blocks are those of a deep machine's further even layers.
        first = target.visible.parts()[0][1]
        return first if isinstance(first, Gaussian) else super()._gaussian_units(target)

    def _check_target(self, target: RBM) -> None:
        size = self._gaussian_units(target).size
        _check_broadcast("alpha", self.alpha, Size((*target.batch_shape, size)))

    def _prepare(self) -> None:
        super()._prepare()
        self._others = [
            (part, unit.map(Tensor.detach)) for part, unit in self.target.visible.parts()[1:]
        ]
        alpha = self.alpha.to(self._precision)
        self._alpha = alpha
        self._mean_scale = (1.0 - alpha) / self._precision
        self._noise_scale = ((1.0 - alpha) * (1.0 + alpha) / self._precision).sqrt()
        # The latest draw and its hidden field, which the next step starts with.
        self._last: tuple[Tensor, Tensor] | None = None

    def _transition(self, v: Tensor) -> tuple[Tensor, Tensor]:
        sweep = self._sweep
        if self._last is not None and self._last[0] is v:
            theta = self._last[1]
        else:
            theta = sweep.hidden_theta(v)
        for _ in range(self.num_steps):
            v = self._draw_visible(v, sweep.visible_theta(sweep.draw_hidden(theta)))
            theta = sweep.hidden_theta(v)
        self._last = (v, theta)
        return v, sweep.free_energy(v, theta)

    def _draw_visible(self, v: Tensor, field: Tensor) -> Tensor:
        """Visible states from those before and the natural parameter given the hidden ones."""
        others = [
            unit.natural_sample(field[..., part], self.generator) for part, unit in self._others
        ]
        if others:
            size = self._others[0][0].start
            v, field = v[..., :size], field[..., :size]
        v = torch.addcmul(self._alpha * v, field, self._mean_scale)
        v.addcmul_(self._normal(v), self._noise_scale)
        return torch.cat([v, *others], -1) if others else v


class _Point(NamedTuple):
    """A state, the gradient of its free energy in units of :math:`P^{-1/2}`, and the free energy."""

    v: Tensor
    gradient: Tensor
    energy: Tensor


class MALA(_GaussianKernel):
    r"""The Metropolis-adjusted Langevin algorithm on the free energy of Gaussian visible units.

    The hidden units are summed out. A step proposes, preconditioned by the precision P,

    .. math:: v' = v - \frac{\epsilon^2}{2} P^{-1} \nabla F(v) + \epsilon P^{-1/2} \xi, \qquad
              \nabla F(v) = P v - b - W \, E[h \mid v],

    and accepts it with probability :math:`\min(1, p(v') q(v \mid v') / (p(v) q(v' \mid v)))`, for every
    chain and every element of the batch by itself. The gradient is the closed form above; a step costs
    the two products of a block Gibbs sweep. The acceptance probability of every draw is recorded as
    ``"accept_prob"``.

    The step size :math:`\epsilon` is tuned in the warm-up by dual averaging [3] of the acceptance
    probability, averaged over chains, and then frozen. All chains share it; every element of the batch
    has its own.

    **When to use it.** Block Gibbs is never rejected and goes further in a step unless visible and hidden
    units are so strongly coupled that neither can move alone. It is the yardstick for what gradients
    alone achieve. Neither of them crosses between distant modes.

    :param target: the machine, with Gaussian visible units, any hidden units and any batch shape, or a DBM
        all of whose even layers are Gaussian.
    :param step_size: :math:`\epsilon`, or its start, in units of a visible unit's conditional standard
        deviation: a number, or a tensor that broadcasts to the batch shape. None for
        :math:`1.65\, V^{-1/6}` [2].
    :param int num_steps: steps per draw, at least 1.
    :param bool adapt: whether to tune the step size.
    :param float target_accept_prob: acceptance probability to tune for, between 0 and 1; 0.574 is the
        optimum for many independent units [2].
    :param torch.Generator generator: the source of random bits; the global one if None. Parallel
        processes need the global one, which Pyro seeds for every chain.
    :raises ValueError: if a number is out of range, the visible units are not Gaussian, or the machine is
        not normalisable.

    **References**

    [1] *Exponential convergence of Langevin distributions and their discrete approximations*,
    Gareth Roberts, Richard Tweedie (1996)

    [2] *Optimal scaling of discrete approximations to Langevin diffusions*,
    Gareth Roberts, Jeffrey Rosenthal (1998)

    [3] *The No-U-Turn Sampler: Adaptively Setting Path Lengths in Hamiltonian Monte Carlo*,
    Matthew Hoffman, Andrew Gelman (2014)

    >>> import torch
    >>> from pyro_ebm.distributions import GaussianBernoulliRBM
    >>> from pyro_ebm.infer import MALA, VectorizedMCMC
    >>> rbm = GaussianBernoulliRBM(torch.ones(3, 2), torch.zeros(3), torch.ones(3), torch.zeros(2))
    >>> mcmc = VectorizedMCMC(MALA(rbm), 10, 100, num_chains=500, disable_progbar=True)
    >>> mcmc.run()
    >>> round(mcmc.sample_stats["accept_prob"].mean().item(), 1)
    0.6
    """

    def __init__(
        self,
        target: RBM | DBM,
        step_size: float | Tensor | None = None,
        num_steps: int = 1,
        *,
        adapt: bool = True,
        target_accept_prob: float = 0.574,
        generator: Generator | None = None,
    ) -> None:
        self._initial_step_size = None if step_size is None else _tensor(step_size)
        if self._initial_step_size is not None:
            start = self._initial_step_size
            if not bool(((start > 0.0) & (start < math.inf)).all()):
                raise ValueError(f"step_size must be positive and finite, got {step_size}")
        if not 0.0 < target_accept_prob < 1.0:
            raise ValueError(
                f"target_accept_prob must be between 0 and 1, got {target_accept_prob}"
            )
        self.adapt = adapt
        self.target_accept_prob = target_accept_prob
        self._step_size: StepSize | None = None
        super().__init__(target, num_steps, generator=generator)

    def _check_target(self, target: RBM) -> None:
        super()._check_target(target)
        if self._initial_step_size is not None:
            _check_broadcast("step_size", self._initial_step_size, target.batch_shape)

    @property
    def step_size(self) -> Tensor:
        """The present step size of every element of the batch, known after :meth:`setup`; it stays
        after the run."""
        if self._step_size is None:
            raise RuntimeError("the step size is known only after setup()")
        return self._step_size.value

    def _prepare(self) -> None:
        super()._prepare()
        self._scale = self._precision.rsqrt()
        start = self._initial_step_size
        if start is None:
            start = torch.tensor(1.65 * self.target.event_shape[0] ** (-1.0 / 6.0))
        start = start.to(self._scale).expand(self.target.batch_shape)
        self._step_size = StepSize(start, self.target_accept_prob)
        self._last: _Point | None = None

    def _point(self, v: Tensor) -> _Point:
        sweep = self._sweep
        theta = sweep.hidden_theta(v)
        pull = sweep.visible_theta(sweep.hidden_mean(theta))
        return _Point(v, self._scale * (self._precision * v - pull), sweep.free_energy(v, theta))

    def _transition(self, v: Tensor) -> tuple[Tensor, Tensor]:
        assert self._step_size is not None
        point = self._last
        if point is None or point.v is not v:
            point = self._point(v)
        if not self.in_warmup:
            self._step_size.freeze()
        total = torch.zeros_like(point.energy)
        for _ in range(self.num_steps):
            point, accept_prob = self._step(point, self._step_size.value)
            total += accept_prob
            if self.adapt and self.in_warmup:
                self._step_size.update(accept_prob)
        self._last = point
        self._record("accept_prob", total / self.num_steps)
        return point.v, point.energy

    def _step(self, old: _Point, step_size: Tensor) -> tuple[_Point, Tensor]:
        """The next state and the probability that the proposal was accepted with."""
        epsilon = step_size.unsqueeze(-1)
        noise = self._normal(old.v)
        drift = 0.5 * epsilon.square() * old.gradient
        new = self._point(old.v + self._scale * (epsilon * noise - drift))
        # log q(old | new) - log q(new | old), without the two squares that nearly cancel.
        both = old.gradient + new.gradient
        correction = (epsilon * both * (0.5 * noise - 0.125 * epsilon * both)).sum(-1)
        log_ratio = old.energy - new.energy + correction
        # A proposal that overflows is refused.
        accept_prob = log_ratio.clamp(max=0.0).exp().nan_to_num(0.0)
        dice = torch.empty_like(accept_prob).uniform_(generator=self.generator)
        accepted = dice < accept_prob
        pairs = zip(new, old, strict=True)
        shapes = (accepted.unsqueeze(-1), accepted.unsqueeze(-1), accepted)
        return _Point(
            *(torch.where(a, *p) for a, p in zip(shapes, pairs, strict=True))
        ), accept_prob

    def logging(self) -> OrderedDict[str, str]:
        log = super().logging()
        log["step size"] = f"{self.step_size.mean().item():.3g}"
        return log
