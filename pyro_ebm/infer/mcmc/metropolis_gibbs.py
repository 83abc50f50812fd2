# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Block Gibbs with a Metropolis correction, for a machine in any Pyro model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import DBM, RBM, GibbsSweep
from pyro_ebm.distributions.units import Unit
from pyro_ebm.infer.mcmc.kernel import MachineKernel
from pyro_ebm.infer.mcmc.posterior import machine_density
from pyro_ebm.infer.mcmc.site_field import Field, LocalField, choose_field, with_curvature

__all__ = ["MetropolisBlockGibbs"]


@dataclass(frozen=True)
class _Point:
    """A visible state with its hidden natural parameter and what the rest of the model is there."""

    v: Tensor
    theta: Tensor
    local: LocalField

    def replace_where(self, accept: Tensor, other: "_Point") -> "_Point":
        rows = accept.unsqueeze(-1)
        return _Point(
            torch.where(rows, other.v, self.v),
            torch.where(rows, other.theta, self.theta),
            self.local.replace_where(accept, other.local),
        )


class MetropolisBlockGibbs(MachineKernel):
    r"""Metropolis-Hastings with block Gibbs proposals, for the machine in a model of any other parts.

    Let :math:`\ell(v)` be the log-density of the rest of the model. A step draws all hidden units given
    the visible ones, which the rest does not touch, and proposes all visible units from the layer
    at its natural parameter plus the field of the rest, to first order at the present state:

    .. math:: h \sim p(h \mid v), \qquad v' \sim q_v(v') \propto
        \exp\Bigl(-u_v(v') + (W h + t(v))^\top v' - \tfrac12 \textstyle\sum_i d_i(v) v_i'^2\Bigr).

    The proposal is accepted with the Metropolis-Hastings probability for :math:`p(v \mid h, \text{rest})`,
    the reverse proposal with the field at :math:`v'`, by every row and chain for itself. Draws therefore
    are those of the model whatever the rest is. Where it is linear in v, or quadratic in every
    unit by itself with real units (Gaussian noise, say), nothing is ever rejected: the kernel *is* block
    Gibbs. The further from it, the lower the acceptance; see ``"accept_prob"`` in
    :meth:`diagnostics`.

    The field t of discrete units is the gradient of the rest where that equals the differences between
    their states (checked at random states in :meth:`setup`), otherwise the differences themselves, found
    in one run of the model with all states as chains, and the gradient again if the model can't be run so.
    Real units take the gradient and the second derivatives d. A step costs one run of the model.

    It runs under :class:`pyro.infer.MCMC`, :class:`~pyro_ebm.infer.VectorizedMCMC` and within
    :class:`~pyro_ebm.infer.Gibbs`.

    :param model: a Pyro model in which an RBM or DBM of any families, in plates or not, is the only site
        that is not observed. The state of a DBM is all of its even layers, see
        :class:`~pyro_ebm.infer.BlockGibbs`, of which the rest touches the visible one. See
        :class:`~pyro_ebm.infer.mcmc.site_density.SiteDensity` for what the rest may be.
    :param int num_steps: steps per draw, at least 1.
    :param torch.Generator generator: the source of random bits; the global one if None. Parallel
        processes need the global one, which Pyro seeds for every chain.
    :raises TypeError: if the target is not a model.
    :raises ValueError: if ``num_steps`` is below 1; in :meth:`setup`, if the model is not of that kind.

    **References**

    [1] *Monte Carlo sampling methods using Markov chains and their applications*, W. K. Hastings (1970)

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import MetropolisBlockGibbs, VectorizedMCMC
    >>> rbm = BernoulliRBM(torch.ones(4, 2), torch.zeros(4), torch.zeros(2))
    >>> def model():
    ...     v = pyro.sample("v", rbm)
    ...     pyro.sample("count", dist.Poisson(0.5 + v.sum(-1)), obs=torch.tensor(1.0))
    >>> mcmc = VectorizedMCMC(MetropolisBlockGibbs(model), 10, 50, num_chains=20, disable_progbar=True)
    >>> mcmc.run()
    >>> mcmc.get_samples(group_by_chain=True)["v"].shape
    torch.Size([20, 10, 4])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_steps: int = 1,
        *,
        generator: Generator | None = None,
    ) -> None:
        if isinstance(model, RBM | DBM):
            raise TypeError("model must be a Pyro model; BlockGibbs samples a machine by itself")
        super().__init__(model, num_steps, generator=generator)

    # --- the model ----------------------------------------------------------------------------

    def _read_model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        density = machine_density(type(self).__name__, self.model, args, kwargs)
        self._density = density
        self._stale = False
        self._name_site(density.layers)
        self._target = self._prior()
        self._target.check_normalizable()
        self._field: Field = choose_field(density)

    def _prior(self) -> RBM:
        fn = self._density.fn
        assert isinstance(fn, RBM)
        return fn

    def _prepare(self) -> None:
        self._sweep = GibbsSweep(self.target, self.generator)
        self._visible = self.target.visible.map(Tensor.detach)
        # The latest draw, which the next step starts from.
        self._last: _Point | None = None

    def refresh(self) -> None:
        self._field.refresh()
        # The next run of the model tells the prior, too, which may depend on other sites.
        self._last = None
        self._stale = True

    def _start(self) -> Tensor:
        return self._sweep.initial_visible(self.state_shape)

    # --- Metropolis-Hastings ------------------------------------------------------------------

    def _transition(self, v: Tensor) -> tuple[Tensor, Tensor]:
        here = self._last if self._last is not None and self._last.v is v else self._first(v)
        total = here.local.log_density.new_zeros(v.shape[:-1])
        for _ in range(self.num_steps):
            here, accept_prob = self._step(here)
            total += accept_prob
        self._last = here
        self._record("accept_prob", total / self.num_steps)
        return here.v, self._sweep.free_energy(here.v, here.theta) - here.local.log_density

    def _first(self, v: Tensor) -> _Point:
        local = self._field(v)
        if self._stale:
            self._target = self._prior()
            self._prepare()
            self._stale = False
        return _Point(v, self._sweep.hidden_theta(v), local)

    def _step(self, here: _Point) -> tuple[_Point, Tensor]:
        h = self.target.hidden.natural_sample(here.theta, self.generator)
        theta = self._sweep.visible_theta(h)
        unit = self._proposal(here.local)
        v = unit.natural_sample(theta + here.local.field, self.generator)
        there = _Point(v, self._sweep.hidden_theta(v), self._field(v))
        probability = self._log_ratio(here, there, theta).clamp(max=0.0).exp()
        noise = torch.empty_like(probability).uniform_(generator=self.generator)
        return here.replace_where(noise < probability, there), probability

    def _proposal(self, local: LocalField) -> Unit:
        """The visible layer with the curvature of the rest in its precision."""
        if local.curvature is None:
            return self._visible
        return with_curvature(self._visible, local.curvature)

    def _log_ratio(self, here: _Point, there: _Point, theta: Tensor) -> Tensor:
        """Logarithm of the ratio; the machine's own part cancels but for the normalisers."""
        forward, backward = here.local, there.local
        gain = backward.log_density - forward.log_density
        log_ratio = gain + backward.linear(here.v) - forward.linear(there.v)
        log_ratio = log_ratio + self._normaliser(forward, theta) - self._normaliser(backward, theta)
        # A state of no probability, where a chain may start, may always be left.
        log_ratio = log_ratio.masked_fill(forward.log_density == -torch.inf, 0.0)
        return log_ratio.masked_fill(log_ratio.isnan(), -torch.inf)

    def _normaliser(self, local: LocalField, theta: Tensor) -> Tensor:
        """Log-partition of the proposal from a state, float64."""
        total = theta.double() + local.field.double()
        return self._proposal(local).natural_log_partition(total)
