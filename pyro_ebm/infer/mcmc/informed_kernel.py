# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Metropolis-Hastings with proposals that know the gradient of a discrete target."""

from abc import abstractmethod
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.infer.mcmc.informed_target import MachineDensity, ModelDensity, Point
from pyro_ebm.infer.mcmc.kernel import MachineKernel
from pyro_ebm.infer.mcmc.site_density import SiteDensity
from pyro_ebm.infer.mcmc.unit_moves import UnitMoves, moves_of

__all__ = ["InformedKernel"]

#: Random starts that are tried where the density of a model is zero.
_NUM_TRIES = 100


class InformedKernel(MachineKernel):
    """A Metropolis-Hastings kernel for bits, spins and one-hot groups, informed by a gradient.

    Every row, that is every chain and every element of a batch, is accepted or rejected by itself. The
    mean acceptance probability of every draw is recorded as ``"accept_prob"``, beside the ``"energy"``:
    the free energy of a machine, minus the log joint density of a model without the sites above its
    latent one. A subclass defines the proposal.

    :param target: a machine, or a Pyro model with one latent site, see
        :class:`~pyro_ebm.infer.GibbsWithGradients`.
    """

    _moves: UnitMoves

    # --- what a subclass defines --------------------------------------------------------------

    @abstractmethod
    def _propose(self, here: Point) -> Tensor:
        """States drawn from the proposal."""

    @abstractmethod
    def _log_proposal(self, here: Point, value: Tensor) -> Tensor:
        """Log-probability of every row that :meth:`_propose` gives ``value`` from ``here``."""

    def _adapt(self, accept_prob: Tensor) -> None:
        """Tune the proposal after one draw of the warm-up."""

    # --- the target ---------------------------------------------------------------------------

    def _read_model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._site_density = SiteDensity(self.model, None, args, kwargs)
        self._name_site(self._site_density.layers)
        self._moves = self._require_moves(self._law)

    def _check_target(self, target: RBM) -> None:
        self._moves = self._require_moves(target)

    def _require_moves(self, law: TorchDistribution) -> UnitMoves:
        support: Any = law.support
        moves = moves_of(support, law.event_shape.numel())
        if moves is None:
            raise ValueError(
                f"{type(self).__name__} needs bits, spins or one-hot groups in one event dimension, got "
                f"a {type(law).__name__} with the support {support}; use {_alternative(law)}"
            )
        return moves

    def _prepare(self) -> None:
        # The latest draw with its density and gradient, which the next transition starts with.
        self._last: Point | None = None
        self._density: MachineDensity | ModelDensity
        if self.model is None:
            self._density = MachineDensity(self.target)
        else:
            self._density = ModelDensity(self._require_site())

    def _require_site(self) -> SiteDensity:
        site: SiteDensity | None = getattr(self, "_site_density", None)
        if site is None:
            raise RuntimeError("the site of a model is known only after setup()")
        return site

    @property
    def _law(self) -> TorchDistribution:
        return self.target if self.model is None else self._require_site().fn

    @property
    def _reference(self) -> Tensor:
        return self.target.weight if self.model is None else self._require_site().value

    @property
    def target(self) -> RBM:
        """The machine that is sampled.

        :raises TypeError: for a model, whose site has no machine as its posterior.
        """
        if self.model is not None:
            raise TypeError("the target of this kernel is a model, not a machine")
        return super().target

    def _start(self) -> Tensor:
        if self.model is None:
            return GibbsSweep(self.target, self.generator).initial_visible(self.state_shape)
        value = self._random_states()
        for _ in range(_NUM_TRIES):
            possible = self._density(value).log_density.isfinite()
            if bool(possible.all()):
                return value
            value = torch.where(possible.unsqueeze(-1), value, self._random_states())
        raise ValueError(
            f"no state of site {self.site!r} with a finite log-density was found in {_NUM_TRIES} tries; "
            "set initial_params"
        )

    def _random_states(self) -> Tensor:
        """States of the site of a model without what acts on it: uniform, or a machine's biases."""
        like = self._reference.new_zeros(self.state_shape)
        fn = self._law
        if isinstance(fn, RBM):
            theta = fn.visible.natural_bias.detach().expand(like.shape)
            return fn.visible.natural_sample(theta, self.generator)
        return self._moves.random_states(like, self.generator)

    # --- Metropolis-Hastings ------------------------------------------------------------------

    def _point(self, v: Tensor) -> Point:
        """Density and gradient at states, known already if they are a machine's latest draw.

        Those of a model are never kept: its other sites may have changed in between.
        """
        if self.model is None and self._last is not None and self._last.value is v:
            return self._last
        return self._density(v)

    def _transition(self, v: Tensor) -> tuple[Tensor, Tensor]:
        here = self._point(v)
        total = torch.zeros_like(here.log_density)
        for _ in range(self.num_steps):
            here, accept_prob = self._step(here)
            total += accept_prob
        self._last = here
        accept_prob = total / self.num_steps
        self._record("accept_prob", accept_prob)
        if self.in_warmup:
            self._adapt(accept_prob)
        return here.value, -here.log_density

    def _step(self, here: Point) -> tuple[Point, Tensor]:
        there = self._density(self._propose(here))
        log_ratio = self._log_ratio(here, there)
        u = torch.rand(
            log_ratio.shape,
            dtype=log_ratio.dtype,
            device=log_ratio.device,
            generator=self.generator,
        )
        return here.replace_where(u.log() < log_ratio, there), log_ratio.clamp(max=0.0).exp()

    def _log_ratio(self, here: Point, there: Point) -> Tensor:
        """Logarithm of the Metropolis-Hastings ratio, minus infinity where it is not a number."""
        forward = self._log_proposal(here, there.value)
        backward = self._log_proposal(there, here.value)
        log_ratio = there.log_density - here.log_density + backward - forward
        return log_ratio.masked_fill(log_ratio.isnan(), -torch.inf)


def _alternative(law: TorchDistribution) -> str:
    """What samples a site that informed proposals do not fit."""
    support: Any = law.support
    if isinstance(law, RBM):
        return "BlockGibbs, or MetropolisBlockGibbs for a machine in a model"
    if not support.is_discrete:
        return "HMC or NUTS"
    return ".to_event(1) if its units are bits" if support.event_dim == 0 else "another kernel"
