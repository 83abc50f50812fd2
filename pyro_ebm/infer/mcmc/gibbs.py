# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Block Gibbs sampling as a Pyro MCMC kernel."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.infer.mcmc.kernel import VectorizedKernel
from pyro_ebm.infer.mcmc.posterior import rbm_posterior

__all__ = ["BlockGibbs"]


class BlockGibbs(VectorizedKernel):
    r"""Block Gibbs sampling of a restricted Boltzmann machine.

    A draw is ``num_steps`` sweeps: all hidden units given the visible ones, then all visible units
    given the hidden ones. Both conditionals are exact, so that every sweep leaves the machine's
    distribution invariant and nothing is ever rejected. The state is the visible layer, under the
    name ``"v"``.

    Runs under :class:`pyro.infer.MCMC` (one chain a process), :class:`pyro.infer.mcmc.StreamingMCMC`,
    and :class:`~pyro_ebm.infer.VectorizedMCMC` (thousands of chains in one tensor). The free energy of
    every draw is recorded and returned by :meth:`diagnostics` as ``"energy"``.

    :param target: the machine, with any batch shape, or a Pyro model in which an RBM is the only site
        that is not observed and the rest adds a linear function of its states, see
        :func:`~pyro_ebm.infer.mcmc.posterior.rbm_posterior`; the state then has the site's name.
        Parameters are read in :meth:`setup`.
    :param int num_steps: sweeps per draw, at least 1.
    :param torch.Generator generator: the source of random bits; the global one if None. Parallel
        processes need the global one, which Pyro seeds for every chain.
    :raises ValueError: if ``num_steps`` is below 1 or the machine is not normalisable; in
        :meth:`setup`, if the model is not of that kind.

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

    site = "v"

    def __init__(
        self,
        target: RBM | Callable[..., Any],
        num_steps: int = 1,
        *,
        generator: Generator | None = None,
    ) -> None:
        if not isinstance(target, RBM) and not callable(target):
            raise TypeError(
                f"target must be an RBM distribution or a Pyro model, got {type(target).__name__}"
            )
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        self.num_steps = num_steps
        self.generator = generator
        super().__init__()
        self._target: RBM | None = None
        if isinstance(target, RBM):
            target.check_normalizable()
            self._target = target
        else:
            self.model = target
        self._initial_params: dict[str, Tensor] | None = None
        self._reset()

    def _reset(self) -> None:
        self._sweep: GibbsSweep | None = None
        self._last: tuple[Tensor, Tensor] | None = None
        self._num_calls = 0
        self._warmup_steps = 0
        self._energies: list[Tensor] = []

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        self._reset()
        self._warmup_steps = warmup_steps
        if self.model is not None:
            self.site, self._target = rbm_posterior(self.model, *args, **kwargs)
            if self._initial_params is not None:
                self._check_initial_params(self._initial_params)
        self._sweep = GibbsSweep(self.target, self.generator)

    def cleanup(self) -> None:
        self._reset()

    @property
    def target(self) -> RBM:
        """The machine that is sampled; for a model, its posterior, known after :meth:`setup`."""
        if self._target is None:
            raise RuntimeError("the target of a model is known only after setup()")
        return self._target

    @property
    def state_shape(self) -> Size:
        """Shape of the state, ``chain_shape + batch_shape + event_shape``."""
        return self.chain_shape + self.target.batch_shape + self.target.event_shape

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """The start: what was set, otherwise draws of the visible layer without its weights."""
        if self._initial_params is not None:
            return self._initial_params
        return {self.site: self._running_sweep().initial_visible(self.state_shape)}

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self._initial_params = {name: value.detach() for name, value in params.items()}
        # Pyro sets the start before setup(), where the target of a model is not known yet.
        if self._target is not None:
            self._check_initial_params(self._initial_params)

    def _check_initial_params(self, params: dict[str, Tensor]) -> None:
        value = params.get(self.site)
        if value is None or value.shape != self.state_shape:
            got = {name: tuple(p.shape) for name, p in params.items()}
            raise ValueError(
                f"initial_params must hold {self.site!r} of shape {tuple(self.state_shape)}, "
                f"got {got}"
            )
        if not bool(self.target.support.check(value).all()):
            raise ValueError(f"initial_params[{self.site!r}] is outside of {self.target.support}")
        params[self.site] = value.to(self.target.weight.dtype)

    def _running_sweep(self) -> GibbsSweep:
        if self._sweep is None:
            self._sweep = GibbsSweep(self.target, self.generator)
        return self._sweep

    @torch.no_grad()
    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        sweep = self._running_sweep()
        v = params[self.site]
        if self._last is not None and self._last[0] is v:
            theta = self._last[1]
        else:
            theta = sweep.hidden_theta(v)
        for _ in range(self.num_steps):
            v, theta = sweep.step_from_theta(theta)
        self._last = (v, theta)
        self._num_calls += 1
        if self._num_calls > self._warmup_steps:
            self._energies.append(sweep.free_energy(v, theta))
        return {self.site: v}

    def logging(self) -> OrderedDict[str, str]:
        if not self._energies:
            return OrderedDict()
        return OrderedDict([("energy", f"{self._energies[-1].mean().item():.4g}")])

    def diagnostics(self) -> dict[str, Any]:
        """Free energies of the draws after warm-up, shape ``(draws,) + chain_shape + batch_shape``."""
        energy = torch.stack(self._energies) if self._energies else torch.empty(0)
        return {"divergences": [], "energy": energy}
