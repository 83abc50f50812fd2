# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The exchange algorithm: parameters of machines whose log Z is never computed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.infer.bayesian.auxiliary import bridge_log_weights, draw_auxiliary
from pyro_ebm.infer.bayesian.parameter_kernel import ParameterKernel
from pyro_ebm.infer.bayesian.program_density import Point

__all__ = ["Exchange"]


class Exchange(ParameterKernel):
    r"""Metropolis-Hastings over the parameters of machines by the exchange algorithm.

    The posterior of parameters :math:`\theta` of a machine,

    .. math:: p(\theta \mid v_{1:N}) \propto p(\theta) \prod_n \frac{e^{-F(v_n; \theta)}}{Z(\theta)},

    is doubly intractable: a Metropolis test would need :math:`Z(\theta) / Z(\theta')`. The exchange
    algorithm [1] draws as many auxiliary rows as there are data, :math:`x_n \sim p(x \mid \theta')` at the
    *proposed* parameters, and accepts with

    .. math:: \min\Bigl(1,\; \frac{p(\theta')\, q(\theta \mid \theta')}{p(\theta)\, q(\theta' \mid \theta)}
        \prod_n \frac{e^{-F(v_n; \theta')}}{e^{-F(v_n; \theta)}}\,
        \frac{e^{-F(x_n; \theta)}}{e^{-F(x_n; \theta')}}\Bigr),

    in which the last factor is an unbiased estimate of :math:`(Z(\theta) / Z(\theta'))^N` and no log Z is
    left. The posterior is invariant **exactly**, not on average over estimates, if the auxiliary rows are
    exact draws. With ``num_bridges`` = K > 0 every auxiliary row is carried from :math:`\theta'` to
    :math:`\theta` through K machines between both, with a sweep of block Gibbs at each (annealed
    importance sampling); still exact ([1], bridging), with less noise in the test, at K sweeps more.

    **The model** is any Pyro program whose latent sites are continuous. Every machine in it without log Z
    counts, in plates or masked, one machine for all rows or one a row (conditional machines), also several
    of them. All other factors (priors, other likelihoods, machines with an attached exact log Z)
    count as they are. Rows that are masked out get no auxiliary rows' weight.

    **Exact draws** take a machine with a layer of at most :math:`2^{16}` states. For others auxiliary rows
    start from the data and run ``num_sweeps`` sweeps (double Metropolis-Hastings [2]), which is an
    approximation: there is a warning, and ``diagnostics()["exact auxiliary"]`` is False.

    **Proposals** are Gaussian in unconstrained space. The warm-up tunes the scale to
    ``target_accept_prob`` and learns the covariance. Where log Z can be enumerated and there are more than
    some ten parameters, NUTS with ``.normalize(exact_log_partition(machine))`` is far better.

    It runs under :class:`pyro.infer.MCMC`, :class:`~pyro_ebm.infer.VectorizedMCMC` (the model is run once
    for all chains, with one more plate on its left, so that parameters which are arrays need
    ``.to_event()``) and within :class:`~pyro_ebm.infer.Gibbs`. Draws and ``initial_params`` are in the
    sites' own space, as for all kernels of this package and other than HMC's.

    **References**

    [1] *MCMC for doubly-intractable distributions*, Iain Murray, Zoubin Ghahramani, David MacKay (2006)

    [2] *A double Metropolis-Hastings sampler for spatial models with intractable normalizing constants*,
    Faming Liang (2010)

    :param model: a Pyro model.
    :param int num_bridges: machines between the proposed and the present parameters, K.
    :param int num_steps: transitions a draw, at least 1.
    :param int num_sweeps: sweeps of auxiliary rows that cannot be drawn exactly.
    :param float target_accept_prob: acceptance probability that the warm-up tunes to.
    :param float init_scale: scale of the proposals at the start.
    :param bool adapt_covariance: whether the warm-up learns the covariance of the proposals.
    :param init_strategy: where a chain starts, as for :class:`pyro.infer.NUTS`; a draw from the prior if
        None.
    :raises TypeError: if the model is not callable; in :meth:`setup`, if a machine is not an RBM.
    :raises ValueError: for impossible numbers; in :meth:`setup`, if a latent site is discrete or its support
        depends on others, the model subsamples or scales a machine, a log Z is attached that does not
        follow the parameters, chains are not independent in the model, or the start is impossible.
    :raises UnnormalizedGradientError: in :meth:`setup`, if a machine is inside of a mixture or a factor.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro.infer import MCMC
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import Exchange
    >>> def model(data):
    ...     weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([3, 1]).to_event(2))
    ...     machine = BernoulliRBM(weight, torch.zeros(3), torch.zeros(1))
    ...     with pyro.plate("rows", len(data)):
    ...         pyro.sample("v", machine, obs=data)
    >>> mcmc = MCMC(Exchange(model), num_samples=20, warmup_steps=20, disable_progbar=True)
    >>> mcmc.run(torch.ones(5, 3))
    >>> mcmc.get_samples()["weight"].shape
    torch.Size([20, 3, 1])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        num_bridges: int = 0,
        num_steps: int = 1,
        num_sweeps: int = 100,
        target_accept_prob: float = 0.3,
        init_scale: float = 0.1,
        adapt_covariance: bool = True,
        init_strategy: Callable[[Any], Tensor] | None = None,
    ) -> None:
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

    def _log_ratio(self, proposal: Point, point: Point) -> Tensor:
        return proposal.log_density - point.log_density + self._exchanged(proposal, point)

    def _exchanged(self, proposal: Point, point: Point) -> Tensor:
        """What auxiliary rows of the proposal say about Z of the present parameters over its own."""
        total = torch.zeros_like(point.log_density)
        for name, new in proposal.factors.items():
            present = point.factors[name]
            new.check_rows_of(present)
            if new.has_parameters_of(present):
                continue
            x = draw_auxiliary(new, self.num_sweeps)
            weights = bridge_log_weights(new.machine, present.machine, x, self.num_bridges)
            total = total + self.density.layout.total(new.counted(weights))
        return total
