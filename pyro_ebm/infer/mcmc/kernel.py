# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What the kernels of the package share: chains in one tensor, a machine as the target."""

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Generator, Size, Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer.mcmc.even_layers import EvenLayers, as_rbm
from pyro_ebm.infer.mcmc.posterior import MachinePosterior

__all__ = ["MachineKernel", "VectorizedKernel", "run_kernel"]


class VectorizedKernel(MCMCKernel):
    """A Pyro kernel whose state may have leading chain axes.

    Beside Pyro's interface it has a :attr:`site`, the name of its state in the parameters that
    ``sample`` maps to new ones, and a :attr:`chain_shape`, which the driver sets before ``setup``.
    States are drawn in their own space, so there are no transforms; ``model`` is read by Pyro and
    ArviZ and is None.

    A kernel whose state is more than the site's value (the replicas of tempering) keeps the rest in
    the same dictionary under other names and sets :attr:`save_params` to what drivers should store.
    """

    site: str

    def __init__(self) -> None:
        self.model: Any = None
        self.transforms: dict[str, Any] = {}
        #: Leading axes of the state: empty under :class:`pyro.infer.MCMC`.
        self.chain_shape = Size()
        #: The start that was set, None for the kernel's own.
        self._initial_params: dict[str, Tensor] | None = None

    def refresh(self) -> None:
        """Read the model anew: the values that it is conditioned on have changed.

        Called by :class:`~pyro_ebm.infer.Gibbs` before every transition. A kernel that keeps nothing
        of the model from one transition to the next has nothing to do.
        """


class MachineKernel(VectorizedKernel):
    """A kernel whose state is the visible layer of a machine, under the name ``"v"``.

    That of a deep machine is all of its even layers, ``"v"``, ``"h2"``, ``"h4"`` and so on: given them the
    odd layers are independent, so that the kernel runs on :meth:`~pyro_ebm.distributions.DBM.bipartite`.

    It runs under :class:`pyro.infer.MCMC` (one chain a process),
    :class:`pyro.infer.mcmc.StreamingMCMC`, and :class:`~pyro_ebm.infer.VectorizedMCMC` (thousands of
    chains in one tensor). A subclass defines :meth:`_prepare` and :meth:`_transition`; the free energy of
    every draw is recorded as ``"energy"``, and what :meth:`_record` is given under its own name (a number
    of each chain and draw is kept until :meth:`cleanup`, under ``StreamingMCMC`` too).

    :param target: an RBM or DBM with any batch shape, or a Pyro model in which one is the only site that
        is not observed and the rest adds a linear function of its visible states, see
        :func:`~pyro_ebm.infer.mcmc.posterior.rbm_posterior`; the state then has the site's name, and the
        further layers of a DBM are ``"<site>.h2"`` and so on. Parameters are read in :meth:`setup`.
    :param int num_steps: transitions per draw, at least 1.
    :param torch.Generator generator: the source of random bits; the global one if None. Parallel
        processes need the global one, which Pyro seeds for every chain. Running a model, to start it
        or to check it, uses the global one in any case.
    :raises TypeError: if the target is neither.
    :raises ValueError: if ``num_steps`` is below 1 or the machine is not normalisable; in
        :meth:`setup`, if the model is not of that kind.
    """

    site = "v"

    def __init__(
        self,
        target: RBM | DBM | Callable[..., Any],
        num_steps: int = 1,
        *,
        generator: Generator | None = None,
    ) -> None:
        if not isinstance(target, RBM | DBM) and not callable(target):
            raise TypeError(
                f"target must be an RBM or DBM distribution or a Pyro model, got {type(target).__name__}"
            )
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        self.num_steps = num_steps
        self.generator = generator
        super().__init__()
        self._target: RBM | None = None
        self._posterior: MachinePosterior | None = None
        # Whether the posterior is that of other values of the model than it was checked at.
        self._refreshed = False
        self._layers = EvenLayers(self.site, target if isinstance(target, DBM) else None)
        if isinstance(target, RBM | DBM):
            machine = as_rbm(target)
            machine.check_normalizable()
            self._check_target(machine)
            self._target = machine
        else:
            self.model = target
        self._reset()

    # --- what a subclass defines --------------------------------------------------------------

    def _check_target(self, target: RBM) -> None:
        """Refuse machines that the kernel cannot sample."""

    @abstractmethod
    def _prepare(self) -> None:
        """Read the parameters of :attr:`target`; called by :meth:`setup`."""

    @abstractmethod
    def _transition(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """States of the target's visible layer after ``num_steps`` transitions, and their free energies."""

    @abstractmethod
    def _start(self) -> Tensor:
        """The kernel's own start, of shape :attr:`state_shape`."""

    def _start_params(self) -> dict[str, Tensor]:
        """The kernel's own start with whatever else belongs to its state."""
        return self._layers.split(self._start())

    # --- Pyro's interface ---------------------------------------------------------------------

    def _reset(self) -> None:
        self._prepared = False
        self._num_calls = 0
        self._warmup_steps = 0
        self._records: dict[str, list[Tensor]] = {}

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        self._reset()
        self._warmup_steps = warmup_steps
        if self.model is not None:
            self._read_model(args, kwargs)
            if self._initial_params is not None:
                self._check_initial_params(self._initial_params)
        self._ensure_prepared()

    def _read_model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the site of the model and what is sampled there."""
        self._posterior = MachinePosterior(self.model, args, kwargs)
        self._name_site(self._posterior.layers)
        self._refreshed = False
        self._target = self._posterior.machine
        self._check_target(self._target)

    def _name_site(self, layers: EvenLayers) -> None:
        """Name the parts of the state by the site of a model."""
        self.site = layers.site
        self._layers = layers

    def refresh(self) -> None:
        if self._posterior is not None:
            self._posterior.refresh()
            self._target = self._posterior.machine
            self._refreshed = True
            self._prepare()

    def _ensure_prepared(self) -> None:
        if not self._prepared:
            self._prepare()
            self._prepared = True

    def cleanup(self) -> None:
        self._reset()

    @property
    def in_warmup(self) -> bool:
        """Whether the present transition is one of the warm-up, whose draws are thrown away."""
        return self._num_calls < self._warmup_steps

    @property
    def target(self) -> RBM:
        """The machine that is sampled, of a DBM the one between its even and odd layers; for a model, its
        posterior, known after :meth:`setup`."""
        if self._target is None:
            raise RuntimeError("the target of a model is known only after setup()")
        return self._target

    @property
    def state_shape(self) -> Size:
        """Shape of the state, ``chain_shape + batch_shape + event_shape``; that of all even layers of a DBM
        together."""
        return self.chain_shape + self._law.batch_shape + self._law.event_shape

    @property
    def _law(self) -> TorchDistribution:
        """The distribution whose shapes and support the state has."""
        return self.target

    @property
    def _reference(self) -> Tensor:
        """A tensor of the state's type and device."""
        return self.target.weight

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """The start: what was set, otherwise draws of the visible layer without its weights."""
        if self._initial_params is not None:
            return self._initial_params
        self._ensure_prepared()
        return self._start_params()

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self._initial_params = {name: value.detach() for name, value in params.items()}
        # Pyro sets the start before setup(), where the target of a model is not known yet.
        if self._target is not None:
            self._check_initial_params(self._initial_params)

    def _check_initial_params(self, params: dict[str, Tensor]) -> None:
        rows = self.chain_shape + self._law.batch_shape
        for name, event_shape, support in self._parts():
            value = params.get(name)
            if value is None or value.shape != rows + event_shape:
                got = {name: tuple(p.shape) for name, p in params.items()}
                raise ValueError(
                    f"initial_params must hold {name!r} of shape {tuple(rows + event_shape)}, got {got}"
                )
            if not bool(support.check(value).all()):
                raise ValueError(f"initial_params[{name!r}] is outside of {support}")
            params[name] = value.to(self._reference.dtype)

    def _parts(self) -> list[tuple[str, Size, Any]]:
        """Name, event shape and support of every part of the state."""
        units = self._layers.units
        if units is None:
            return [(self.site, self._law.event_shape, self._law.support)]
        return [
            (name, Size((unit.size,)), unit.support)
            for name, unit in zip(self._layers.names, units, strict=True)
        ]

    @torch.no_grad()
    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        self._ensure_prepared()
        v, energy = self._transition(self._layers.join(params))
        if self._refreshed and self._posterior is not None:
            self._posterior.check(v)
        self._record("energy", energy)
        self._num_calls += 1
        return self._layers.split(v)

    def _record(self, name: str, value: Tensor) -> None:
        """Keep a number of the present draw, shape ``chain_shape + batch_shape``, after warm-up."""
        if not self.in_warmup:
            self._records.setdefault(name, []).append(value)

    def logging(self) -> OrderedDict[str, str]:
        return OrderedDict(
            (name, f"{values[-1].mean().item():.4g}") for name, values in self._records.items()
        )

    def diagnostics(self) -> dict[str, Any]:
        """Numbers of the draws after warm-up, among them the free energies as ``"energy"``, each of
        shape ``(draws,) + chain_shape + batch_shape``."""
        records = {name: torch.stack(values) for name, values in self._records.items()}
        return {"divergences": [], "energy": torch.empty(0)} | records


def run_kernel(
    kernel: VectorizedKernel, params: Mapping[str, Tensor], num_steps: int
) -> dict[str, Tensor]:
    """The state after some transitions of a kernel, outside of any driver.

    :param VectorizedKernel kernel: the kernel.
    :param params: its state; the site's value has shape ``(num_chains,) + batch_shape + event_shape``.
    :param int num_steps: transitions.
    """
    kernel.chain_shape = Size(params[kernel.site].shape[:1])
    kernel.setup(warmup_steps=0)
    state = dict(params)
    for _ in range(num_steps):
        state = kernel.sample(state)
    kernel.cleanup()
    return state
