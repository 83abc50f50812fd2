# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Gibbs with gradients and discrete Langevin proposals as Pyro MCMC kernels."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer.mcmc.informed_kernel import InformedKernel
from pyro_ebm.infer.mcmc.informed_target import Point

__all__ = ["DiscreteLangevin", "GibbsWithGradients"]


class GibbsWithGradients(InformedKernel):
    r"""Gibbs with gradients: one informed change of one unit a step, corrected by Metropolis-Hastings.

    From a state x with log-density :math:`\ell`, the kernel proposes unit i in the new state s with
    probability proportional to :math:`\exp(d_{is} / 2)`, where :math:`d_{is} = \nabla_i \ell(x)^\top
    (s - x_i)` is the change of :math:`\ell` to first order. The proposal is accepted with probability

    .. math:: \min\Bigl(1, \frac{p(x') \, q(x \mid x')}{p(x) \, q(x' \mid x)}\Bigr)

    for every chain and every element of the batch by itself, so that the draws are those of the target
    whatever the gradient is. To stay is one of the proposals, with weight :math:`e^0`; without it
    a chain that is never refused would visit even and odd states in turn.

    **When to use it.** For targets whose conditional cannot be drawn as a block. On a restricted
    Boltzmann machine :class:`BlockGibbs` is the better choice by far: a step costs as much as a sweep and
    moves one unit (100 x 50 Bernoulli machine: a hundred times fewer effective draws a second). In a
    model, :class:`MetropolisBlockGibbs` is better as long as the rest is not far from linear.

    :param target: a machine with Bernoulli, Ising or Categorical visible units, any hidden units and any
        batch shape (clamped and tilted machines are such), or a DBM all of whose even layers are of one of
        these families; or a Pyro model with one latent site, which has
        one event dimension and consists of bits, spins or one-hot groups. The rest of the model may be
        any function of the site that accepts its states as floating-point numbers and treats the
        elements of its batch shape as independent; the gradient is taken by autograd.
        With chains in one tensor (:class:`VectorizedMCMC`) the model is run within a further plate on
        the left, as Pyro's ``vectorize_particles`` does; a model that cannot be (indices from the
        left, say, ``v[0]`` for ``v[..., 0]``) is run once for every chain.
        See :class:`~pyro_ebm.infer.mcmc.site_density.SiteDensity`.
    :param int num_steps: steps per draw, at least 1.
    :param torch.Generator generator: the source of random bits; the global one if None. Parallel
        processes need the global one, which Pyro seeds for every chain.
    :raises ValueError: if ``num_steps`` is below 1, the machine is not normalisable, or its units are of
        another family; for a model in :meth:`setup`.

    **References**

    [1] *Oops I Took A Gradient: Scalable Sampling for Discrete Distributions*,
    Will Grathwohl, Kevin Swersky, Milad Hashemi, David Duvenaud, Chris Maddison (2021)

    [2] *Informed proposals for local MCMC in discrete spaces*, Giacomo Zanella (2020)

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import GibbsWithGradients, VectorizedMCMC
    >>> rbm = BernoulliRBM(torch.ones(4, 2), torch.zeros(4), torch.zeros(2))
    >>> def model():
    ...     v = pyro.sample("v", rbm)
    ...     rate = 0.5 + v[..., 0] * v[..., 1] + v[..., 2] * v[..., 3]
    ...     pyro.sample("count", dist.Poisson(rate), obs=torch.tensor(1.0))
    >>> mcmc = VectorizedMCMC(GibbsWithGradients(model), 10, 50, num_chains=20, disable_progbar=True)
    >>> mcmc.run()
    >>> mcmc.get_samples(group_by_chain=True)["v"].shape
    torch.Size([20, 10, 4])
    """

    def _propose(self, here: Point) -> Tensor:
        return self._moves.sample_single(here.value, here.gradient, self.generator)

    def _log_proposal(self, here: Point, value: Tensor) -> Tensor:
        return self._moves.single_log_prob(here.value, here.gradient, value)


class DiscreteLangevin(InformedKernel):
    r"""The discrete Langevin proposal for all units at once, corrected by Metropolis-Hastings (DMALA).

    From a state x with log-density :math:`\ell`, every unit is proposed by itself from

    .. math:: q_i(s) \propto \exp\Bigl(\tfrac{1}{2} \nabla_i \ell(x)^\top (s - x_i)
              - \frac{|s - x_i|^2}{2 \alpha}\Bigr),

    and the new state is accepted or refused as a whole, for every chain and every element of the batch
    by itself. The step size :math:`\alpha` is tuned in the warm-up, for every element of the batch, by
    stochastic approximation [2] of a mean acceptance probability (over chains) of ``target_accept_prob``,
    and then frozen. Without a warm-up it stays what it is.

    The proposal without correction, which is biased, is not offered.

    **When to use it.** For targets whose conditional cannot be drawn as a block; where units are not too
    strongly coupled, many of them move at a time. On a restricted Boltzmann machine :class:`BlockGibbs` is
    the better choice (100 x 50 Bernoulli machine: some 15 times more effective draws a second). In a
    model, it depends on how far the rest is from linear: with all pairs of 40 units coupled by it,
    :class:`MetropolisBlockGibbs` gave between 6 times more (weak) and 40 times fewer (strong).

    :param target: a machine or a Pyro model, see :class:`GibbsWithGradients`.
    :param float step_size: :math:`\alpha`, or its start, in units of squared Euclidean distance; a third of
        that between two states of a unit (1 for bits, 4 for spins, 2 for one-hot groups) if None.
    :param int num_steps: steps per draw, at least 1.
    :param bool adapt: whether to tune the step size.
    :param float target_accept_prob: acceptance probability to tune for, between 0 and 1.
    :param torch.Generator generator: the source of random bits; the global one if None. Parallel
        processes need the global one, which Pyro seeds for every chain.
    :raises ValueError: if a number is out of range, the machine is not normalisable, or its units are of
        another family; for a model in :meth:`setup`.

    **References**

    [1] *A Langevin-like Sampler for Discrete Distributions*, Ruqi Zhang, Xingchao Liu, Qiang Liu (2022)

    [2] *A Stochastic Approximation Method*, Herbert Robbins, Sutton Monro (1951)

    >>> import torch
    >>> from pyro.infer import MCMC
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import DiscreteLangevin
    >>> rbm = BernoulliRBM(torch.ones(3, 2), torch.zeros(3), torch.zeros(2))
    >>> mcmc = MCMC(DiscreteLangevin(rbm), num_samples=50, warmup_steps=50, disable_progbar=True)
    >>> mcmc.run()
    >>> mcmc.get_samples()["v"].shape
    torch.Size([50, 3])
    """

    def __init__(
        self,
        target: RBM | DBM | Callable[..., Any],
        step_size: float | None = None,
        num_steps: int = 1,
        *,
        adapt: bool = True,
        target_accept_prob: float = 0.57,
        generator: Generator | None = None,
    ) -> None:
        if step_size is not None and not 0.0 < step_size < math.inf:
            raise ValueError(f"step_size must be a positive number, got {step_size}")
        if not 0.0 < target_accept_prob < 1.0:
            raise ValueError(
                f"target_accept_prob must be between 0 and 1, got {target_accept_prob}"
            )
        self.adapt = adapt
        self.target_accept_prob = target_accept_prob
        self._initial_step_size = step_size
        self._step_size: Tensor | None = None
        super().__init__(target, num_steps, generator=generator)

    @property
    def step_size(self) -> Tensor:
        """The present step size of every element of the batch, known after :meth:`setup`; it stays
        after the run."""
        if self._step_size is None:
            raise RuntimeError("the step size is known only after setup()")
        return self._step_size

    def _prepare(self) -> None:
        super()._prepare()
        start = self._initial_step_size or self._moves.squared_distance / 3.0
        self._step_size = self._reference.new_full(self._law.batch_shape, start)

    def _propose(self, here: Point) -> Tensor:
        return self._moves.sample_joint(here.value, here.gradient, self.step_size, self.generator)

    def _log_proposal(self, here: Point, value: Tensor) -> Tensor:
        return self._moves.joint_log_prob(here.value, here.gradient, self.step_size, value)

    def _adapt(self, accept_prob: Tensor) -> None:
        if not self.adapt:
            return
        step_size = self.step_size
        mean = accept_prob.reshape(-1, *step_size.shape).mean(0).to(step_size.dtype)
        gain = _GAIN * (self._num_calls + 1) ** -_DECAY
        step_size = step_size * torch.exp(gain * (mean - self.target_accept_prob))
        low, high = (bound * self._moves.squared_distance for bound in _BOUNDS)
        self._step_size = step_size.clamp(low, high)

    def logging(self) -> OrderedDict[str, str]:
        log = super().logging()
        log["step size"] = f"{self.step_size.mean().item():.3g}"
        return log


#: Gain of the stochastic approximation in the logarithm of the step size, and its power of time.
_GAIN, _DECAY = 3.0, 0.6
#: Step sizes, in squared distances of two states: below the lower one a unit without a field
#: moves once in e^50 steps, above the upper one the penalty is nil.
_BOUNDS = 0.01, 500.0
