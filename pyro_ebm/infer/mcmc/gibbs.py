# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Block Gibbs sampling as a Pyro MCMC kernel."""

from collections.abc import Callable
from typing import Any

from torch import Generator, Tensor

from pyro_ebm.distributions import DBM, RBM, GibbsSweep
from pyro_ebm.infer.mcmc.kernel import MachineKernel

__all__ = ["BlockGibbs"]


class BlockGibbs(MachineKernel):
    r"""Block Gibbs sampling of a Boltzmann machine with two sides.

    A draw is ``num_steps`` sweeps: all hidden units given the visible ones, then all visible units
    given the hidden ones. Both conditionals are exact, so that every sweep leaves the machine's
    distribution invariant and nothing is ever rejected. The state is the visible layer, under the
    name ``"v"``.

    A deep machine has its even layers on one side and the odd ones on the other. The state is then all of
    the even layers, ``"v"``, ``"h2"``, ``"h4"`` and so on.

    Runs under :class:`pyro.infer.MCMC` (one chain a process), :class:`pyro.infer.mcmc.StreamingMCMC`,
    and :class:`~pyro_ebm.infer.VectorizedMCMC` (thousands of chains in one tensor). The free energy of
    every draw is recorded and returned by :meth:`diagnostics` as ``"energy"``.

    :param target: the machine, an RBM or a DBM with any batch shape, or a Pyro model in which one is the
        only site that is not observed and the rest adds a linear function of its visible states, see
        :func:`~pyro_ebm.infer.mcmc.posterior.rbm_posterior`; the state then has the site's name, and the
        further layers of a DBM are ``"<site>.h2"`` and so on. Parameters are read in :meth:`setup`.
    :param int num_steps: sweeps per draw, at least 1.
    :param collapse: whether to integrate a Gaussian layer out between the draws (collapsed Gibbs, see
        :class:`~pyro_ebm.distributions.CollapsedSweep`): the same law, cheaper where ``num_steps`` is above
        1 and the other layer is smaller. None (the default) does it where it is cheaper.
    :param torch.Generator generator: the source of random bits; the global one if None. Parallel
        processes need the global one, which Pyro seeds for every chain.
    :raises ValueError: if ``num_steps`` is below 1, the machine is not normalisable, or ``collapse`` is
        True and no layer is Gaussian; in :meth:`setup`, if the model is not of that kind.

    >>> import torch
    >>> from pyro.infer import MCMC
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import BlockGibbs
    >>> rbm = BernoulliRBM(torch.ones(3, 2), torch.zeros(3), torch.zeros(2))
    >>> mcmc = MCMC(BlockGibbs(rbm), num_samples=50, warmup_steps=10, disable_progbar=True)
    >>> mcmc.run()
    >>> mcmc.get_samples()["v"].shape
    torch.Size([50, 3])
    """

    def __init__(
        self,
        target: RBM | DBM | Callable[..., Any],
        num_steps: int = 1,
        *,
        collapse: bool | None = None,
        generator: Generator | None = None,
    ) -> None:
        self.collapse = collapse
        super().__init__(target, num_steps, generator=generator)

    def _check_target(self, target: RBM) -> None:
        layers = target.visible, target.hidden
        if self.collapse and not any(layer.is_gaussian for layer in layers):
            names = " and ".join(type(layer).__name__ for layer in layers)
            raise ValueError(f"collapse=True needs a Gaussian layer, the layers are {names}")

    def _prepare(self) -> None:
        self._sweep = GibbsSweep(self.target, self.generator)
        # The latest draw and its hidden field, which the next sweep starts with.
        self._last: tuple[Tensor, Tensor] | None = None

    def _start(self) -> Tensor:
        return self._sweep.initial_visible(self.state_shape)

    def _transition(self, v: Tensor) -> tuple[Tensor, Tensor]:
        sweep = self._sweep
        if self._last is not None and self._last[0] is v:
            theta = self._last[1]
        else:
            theta = sweep.hidden_theta(v)
        v, theta = sweep.run_from_theta(theta, self.num_steps, collapse=self.collapse)
        self._last = (v, theta)
        return v, sweep.free_energy(v, theta)
