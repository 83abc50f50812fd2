# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pseudo-marginal Metropolis-Hastings: parameters of machines with an estimate of their Z."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.infer.bayesian.auxiliary import bridge_log_weights, draw_auxiliary
from pyro_ebm.infer.bayesian.machine_factor import MachineFactor
from pyro_ebm.infer.bayesian.parameter_kernel import ParameterKernel
from pyro_ebm.infer.bayesian.program_density import Point

__all__ = ["PseudoMarginal"]

#: Estimates at one point from which their standard deviation is computed after the warm-up.
_NUM_REPEATS = 20


class PseudoMarginal(ParameterKernel):
    r"""Metropolis-Hastings over the parameters of machines with an unbiased estimate of 1 / Z.

    With a fixed reference :math:`\hat\theta` the posterior is

    .. math:: p(\theta \mid v_{1:N}) \propto p(\theta) \prod_n e^{-F(v_n; \theta)}\,
        \frac{Z(\hat\theta)}{Z(\theta)}.

    Every factor :math:`Z(\hat\theta) / Z(\theta)` is estimated without bias by the mean weight of
    ``num_particles`` runs of annealed importance sampling from exact draws of :math:`p(x \mid \theta)` to
    the machine at the reference, through ``num_bridges`` machines. A Metropolis test with the
    estimate, **kept with the state** until the next acceptance, has the posterior as its exact
    marginal [1]. With one particle it is the auxiliary-variable method of [2], with the bridging of [3].

    Beside :class:`Exchange`, whose estimate compares the proposal with the present parameters: here it
    compares with the reference, so that it is good if the posterior is narrow around that, and its noise does
    not vanish for small steps. The chain sticks where an estimate was too lucky: keep the standard
    deviation of the logarithm of the estimate (``diagnostics()["estimate std"]``) near 1 [4] by more
    bridges and particles. Other unbiased estimates of :math:`Z^{-N}` (random truncation of a series) have
    weights of either sign; these are positive.

    The model, exact draws, proposals and drivers are as for :class:`Exchange`. Within
    :class:`~pyro_ebm.infer.Gibbs`, other blocks must not change the parameters of the machines, nor which
    rows count (a mask that is computed from latent sites): the estimate belongs to both.

    **References**

    [1] *The pseudo-marginal approach for efficient Monte Carlo computations*, Christophe Andrieu,
    Gareth Roberts (2009)

    [2] *An efficient Markov chain Monte Carlo method for distributions with intractable normalising
    constants*, Jesper Møller, Anthony Pettitt, Robert Reeves, Kasper Berthelsen (2006)

    [3] *MCMC for doubly-intractable distributions*, Iain Murray, Zoubin Ghahramani, David MacKay (2006)

    [4] *Efficient implementation of Markov chain Monte Carlo when using an unbiased likelihood
    estimator*, Arnaud Doucet, Michael Pitt, George Deligiannidis, Robert Kohn (2015)

    :param model: a Pyro model.
    :param reference: :math:`\hat\theta`, values of all latent sites in their own space; if None it starts
        where the chain does, moves to the mean of the draws after every window of the warm-up (70
        transitions or more have one), and is fixed with the last.
    :param int num_bridges: machines between the parameters and the reference.
    :param int num_particles: annealing runs for every row of the data.
    :param int num_steps: transitions a draw, at least 1.
    :param int num_sweeps: sweeps of auxiliary rows that cannot be drawn exactly.
    :param float target_accept_prob: acceptance probability that the warm-up tunes to; lower than for
        exact tests, since the estimate causes rejections that no small step avoids.
    :param float init_scale: scale of the proposals at the start.
    :param bool adapt_covariance: whether the warm-up learns the covariance of the proposals.
    :param init_strategy: where a chain starts, as for :class:`pyro.infer.NUTS`; a draw from the prior if
        None.
    :raises TypeError: as :class:`Exchange`.
    :raises ValueError: as :class:`Exchange`, and if the reference does not fit the latent sites.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro.infer import MCMC
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import PseudoMarginal
    >>> def model(data):
    ...     weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([3, 1]).to_event(2))
    ...     machine = BernoulliRBM(weight, torch.zeros(3), torch.zeros(1))
    ...     with pyro.plate("rows", len(data)):
    ...         pyro.sample("v", machine, obs=data)
    >>> mcmc = MCMC(PseudoMarginal(model), num_samples=20, warmup_steps=20, disable_progbar=True)
    >>> mcmc.run(torch.ones(5, 3))
    >>> mcmc.get_samples()["weight"].shape
    torch.Size([20, 3, 1])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        reference: Mapping[str, Tensor] | None = None,
        num_bridges: int = 10,
        num_particles: int = 1,
        num_steps: int = 1,
        num_sweeps: int = 100,
        target_accept_prob: float = 0.2,
        init_scale: float = 0.1,
        adapt_covariance: bool = True,
        init_strategy: Callable[[Any], Tensor] | None = None,
    ) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, got {num_particles}")
        self.reference = None if reference is None else dict(reference)
        self.num_particles = num_particles
        super().__init__(
            model,
            num_bridges=num_bridges,
            num_steps=num_steps,
            num_sweeps=num_sweeps,
            target_accept_prob=target_accept_prob,
            init_scale=init_scale,
            adapt_covariance=adapt_covariance,
            init_strategy=init_strategy,
        )

    def _reset(self) -> None:
        super()._reset()
        self._anchor: dict[str, MachineFactor] = {}
        self._estimate: Tensor | None = None
        self._proposed: Tensor | None = None
        self._deviation: Tensor | None = None

    def _start_run(self, point: Point) -> None:
        anchor = point
        if self.reference is not None:
            anchor = self.density.evaluate(
                self.density.unconstrain(self._of_chains(self.reference))
            )
            if not bool(anchor.log_density.isfinite().all()):
                raise ValueError("the log-density of the model is not finite at the reference")
        self._anchor_at(anchor, point)

    def _of_chains(self, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        expected = {s.name: tuple(s.shape) for s in self.density.sites}
        got = {name: tuple(value.shape) for name, value in reference.items()}
        if got != expected:
            raise ValueError(f"reference must hold values of the shapes {expected}, got {got}")
        chains = self.chain_shape
        return {name: value.expand(chains + value.shape) for name, value in reference.items()}

    def _anchor_at(self, anchor: Point, point: Point) -> None:
        """Take the machines of a point as the reference, and estimate anew."""
        self._anchor = anchor.factors
        self._estimate = self._log_estimate(point)

    def _window_ended(self, mean: Tensor, point: Point) -> None:
        if self.reference is not None:
            return
        anchor = self.density.evaluate(mean)
        # Between good machines there may be one without a finite Z; then the reference stays.
        if bool(anchor.log_density.isfinite().all()):
            self._anchor_at(anchor, point)

    def _warmup_ended(self, point: Point) -> None:
        repeats = torch.stack([self._log_estimate(point) for _ in range(_NUM_REPEATS)])
        self._deviation = repeats.std(0)

    def diagnostics(self) -> dict[str, Any]:
        """As for :class:`Exchange`, and ``"estimate std"``, the standard deviation of the logarithm of the
        estimate where every chain was at the end of its warm-up."""
        numbers = super().diagnostics()
        return numbers if self._deviation is None else numbers | {"estimate std": self._deviation}

    def _moved(self, point: Point) -> None:
        """What is conditioned on, or the state, is another one, and the estimate is that of before."""
        before = self._point
        assert before is not None
        for name, factor in point.factors.items():
            other = before.factors[name]
            if not (factor.has_parameters_of(other) and factor.counts_rows_of(other)):
                raise ValueError(
                    f"parameters, rows or the mask of the machine at site {name!r} were changed by something "
                    "other than PseudoMarginal, to which its estimate of Z does not belong; use Exchange in "
                    "a compound kernel"
                )

    def _log_ratio(self, proposal: Point, point: Point) -> Tensor:
        assert self._estimate is not None
        self._proposed = self._log_estimate(proposal)
        return proposal.log_density + self._proposed - point.log_density - self._estimate

    def _accepted(self, accepted: Tensor) -> None:
        assert self._estimate is not None and self._proposed is not None
        self._estimate = torch.where(accepted, self._proposed, self._estimate)

    def _log_estimate(self, point: Point) -> Tensor:
        """Logarithm of an unbiased, positive estimate of the ratio of Z at the reference to Z at a point, to
        the power of the number of rows; shape ``chain_shape``."""
        total = torch.zeros_like(point.log_density)
        for name, factor in point.factors.items():
            anchor = self._anchor[name]
            factor.check_rows_of(anchor)
            if factor.has_parameters_of(anchor):
                continue
            x = draw_auxiliary(factor, self.num_sweeps, self.num_particles)
            weights = bridge_log_weights(factor.machine, anchor.machine, x, self.num_bridges)
            mean = weights.logsumexp(0) - math.log(self.num_particles)
            total = total + self.density.layout.total(factor.counted(mean))
        return total
