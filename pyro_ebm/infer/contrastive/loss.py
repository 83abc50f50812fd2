# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Contrastive divergence as a Pyro loss."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceTMC_ELBO,
)
from pyro.infer.trace_mean_field_elbo import JitTraceMeanField_ELBO
from torch import Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.infer.contrastive.keyed import KeyedChains
from pyro_ebm.infer.contrastive.messenger import MachineSite, NormalizeMessenger
from pyro_ebm.infer.contrastive.negative import mean_score, move_chains, start_chains
from pyro_ebm.infer.contrastive.rows import SiteRows, select_machines
from pyro_ebm.infer.contrastive.sides import (
    SIDES,
    Side,
    choose_side,
    machine_of_side,
    states_of_side,
)
from pyro_ebm.infer.log_partition import exact_log_partition
from pyro_ebm.infer.log_partition.exact import MAX_STATES
from pyro_ebm.infer.mcmc import VectorizedKernel

__all__ = ["ContrastiveDivergence"]

#: Persistent chains of a key where the user has not said how many.
_CHAINS_OF_A_KEY = 10
_JIT = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)


class ContrastiveDivergence(ELBO):
    r"""Contrastive divergence for :class:`pyro.infer.SVI`, also persistent (PCD).

    Every unnormalised energy-based site of the model, observed or latent, is normalised by

    .. math:: \log Z \approx \ell + s - \mathrm{stop}(s), \qquad
              s = \frac{1}{N} \sum_i -F(\tilde v_i),

    where :math:`\tilde v_i` are states of chains of the model. Its gradient is that of log Z whenever the
    chains are in equilibrium, :math:`\partial \log Z = -E[\partial F]`, whatever value :math:`\ell` has; the
    given ``elbo`` then runs unchanged, so that scale, mask, plates, subsampling and enumeration need
    nothing special. A latent site that is enumerated gets its exact log Z; one that is the few free units of
    a machine too large for it (:func:`~pyro_ebm.infer.clamped`) gets the surrogate.

    The reported loss is off by :math:`\ell - \log Z` per row; pass ``log_partition`` to correct it. The value
    matters for the gradient too where the site depends on another latent variable that is enumerated
    or has a score-function gradient, as in a mixture of machines. Second derivatives are wrong.

    **Deep machines.** For a :class:`~pyro_ebm.distributions.DBM` the two terms are those of [3]: its
    ``log_prob`` is the mean-field bound, and :math:`s` is the mean of :math:`-F` of states of all even
    layers, so that the gradient is that of the bound less log Z, without approximation of the latter.
    Chains, ``kernel``, ``log_partition`` and ``side`` are those of
    :meth:`~pyro_ebm.distributions.DBM.bipartite`. A chain that starts at a row has its further even layers
    drawn from the mean field given the row.

    Where the visible units are Gaussian and the hidden ones finite, the chains are of the hidden layer:
    :math:`s` is the mean of :math:`-F(\tilde h)`, the free energy of hidden states with the visible
    layer integrated out. The expected gradient is the same, its variance is lower, and where it is
    cheaper the chain needs no visible states, :math:`H^2` instead of :math:`V H` a step. Chains of the
    hidden layer start from one draw given the site's value.

    Rows of a plate may have machines of their own, as a conditional model has. Name them by
    ``infer={"chain_key": key}`` of the sample statement, whole numbers >= 0 that broadcast to the shape
    of the plates (on the CPU, nothing then waits for another device). Rows of one key must have the same
    parameters in a run of the model, and share chains and one log Z: the negative phase costs one
    machine a distinct key. Persistent chains are kept by key, and a step moves those of the keys that it
    meets.

    **References**

    [1] *Training Products of Experts by Minimizing Contrastive Divergence*, Geoffrey Hinton (2002)

    [2] *Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient*,
    Tijmen Tieleman (2008)

    [3] *Deep Boltzmann machines*, Ruslan Salakhutdinov, Geoffrey Hinton (2009)

    :param int num_steps: transitions of every chain per gradient.
    :param bool persistent: whether chains go on from step to step; else they start at the site's value.
    :param int num_chains: chains of a site for every setting of its parameters, or for every key; as many
        as rows if None, 10 for persistent chains of a key.
    :param kernel: makes the transition from the distribution, as parameters change at every step:
        ``lambda dist: ParallelTempering(dist, betas=betas)``; block Gibbs if None. The whole state of
        persistent kernels, all replicas say, goes on from step to step. Chains by key need kernels
        whose state is the chains alone.
    :param log_partition: gives the value of log Z from the distribution, such as
        :func:`~pyro_ebm.infer.exact_log_partition`; zero if None.
    :param elbo: the ELBO that runs the model; :class:`pyro.infer.Trace_ELBO` if None.
    :param str side: the layer that the chains are of: ``"visible"``, ``"hidden"`` (the distribution that
        ``kernel`` is given is then the transposed one), or ``"auto"``, which is hidden for block Gibbs
        on Gaussian visible and finite hidden units, and visible otherwise.
    :raises ValueError: for impossible options: a JIT-compiled ``elbo`` (chains would be frozen into the
        compiled code), or unvectorised particles with persistent chains; when the model runs, for keys
        that are not whole, negative, do not fit the plates or give one key to several machines.

    >>> import pyro, torch
    >>> from pyro.infer import SVI
    >>> from pyro_ebm.infer import ContrastiveDivergence
    >>> from pyro_ebm.nn import RBM
    >>> rbm, data = RBM(6, 4), torch.ones(20, 6)
    >>> def model(data):
    ...     machine = rbm()
    ...     with pyro.plate("rows", len(data)):
    ...         pyro.sample("v", machine, obs=data)
    >>> loss = ContrastiveDivergence(num_steps=5, persistent=True, num_chains=30)
    >>> svi = SVI(model, lambda data: None, pyro.optim.Adam({"lr": 0.01}), loss=loss)
    >>> losses = [svi.step(data) for _ in range(3)]
    >>> loss.chains["v"].shape
    torch.Size([30, 6])
    """

    def __init__(
        self,
        num_steps: int = 1,
        persistent: bool = False,
        num_chains: int | None = None,
        kernel: Callable[[RBM], VectorizedKernel] | None = None,
        log_partition: Callable[[RBM], Any] | None = None,
        elbo: ELBO | None = None,
        *,
        side: str = "auto",
    ) -> None:
        elbo = Trace_ELBO() if elbo is None else elbo
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        if num_chains is not None and num_chains < 1:
            raise ValueError(f"num_chains must be at least 1, got {num_chains}")
        if side not in ("auto", *SIDES):
            raise ValueError(f"side must be 'auto', 'visible' or 'hidden', got {side!r}")
        if not isinstance(elbo, ELBO):
            raise TypeError(f"elbo must be a pyro.infer.ELBO, got {type(elbo).__name__}")
        if isinstance(elbo, _JIT):
            raise ValueError(
                f"{type(elbo).__name__} would freeze the chains into compiled code; use the ELBO "
                "without Jit"
            )
        if persistent and elbo.num_particles > 1 and not elbo.vectorize_particles:
            raise ValueError(
                "persistent chains need vectorize_particles=True with several particles: "
                "otherwise the model runs once a particle, each time at the same chains"
            )
        super().__init__(
            num_particles=elbo.num_particles, vectorize_particles=elbo.vectorize_particles
        )
        self.num_steps = num_steps
        self.persistent = persistent
        self.num_chains = num_chains
        self.kernel = kernel
        self.side = side
        self.log_partition = log_partition
        self.elbo: Any = elbo
        #: Persistent chains by site, shape ``(num_chains,) + parameter batch shape + (size,)``: states
        #: of the layer that :attr:`sides` tells; of a deep machine all even (or odd) layers.
        self.chains: dict[str, Tensor] = {}
        #: What else the state of a persistent kernel consists of, by site: the replicas of tempering.
        self.kernel_states: dict[str, dict[str, Tensor]] = {}
        #: Persistent chains of sites with keys.
        self.keyed_chains: dict[str, KeyedChains] = {}
        #: The layer that the persistent chains of a site are of, ``"visible"`` or ``"hidden"``; chains
        #: without an entry are taken to be of the layer that the loss moves.
        self.sides: dict[str, Side] = {}
        # Sites, or their keys, whose chains have moved in this gradient: once, however often the model
        # runs.
        self._moved: set[str | tuple[str, int]] = set()

    # --- Pyro's interface ---------------------------------------------------------------------

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        """The value of the loss. Moves no chain."""
        with torch.no_grad():
            return self.elbo.loss(self._normalizing(model), guide, *args, **kwargs)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        """The value of the loss; adds the gradients to ``.grad``. Moves every chain once."""
        self._moved.clear()
        return self.elbo.loss_and_grads(self._normalizing(model), guide, *args, **kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss as a tensor to differentiate. Moves every chain once."""
        self._moved.clear()
        return self.elbo.differentiable_loss(self._normalizing(model), guide, *args, **kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.elbo._get_trace(self._normalizing(model), guide, args, kwargs)

    def state_dict(self) -> dict[str, Any]:
        """The persistent chains and the rest of their kernels' states, for :func:`torch.save`."""
        return {
            "chains": _copies(self.chains),
            "kernel_states": {site: _copies(state) for site, state in self.kernel_states.items()},
            "keyed_chains": {site: c.state_dict() for site, c in self.keyed_chains.items()},
            "sides": dict(self.sides),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave. Chains of a state without sides are visible states.

        :raises ValueError: if the state holds no chains, or something else than tensors.
        """
        chains: Any = state.get("chains")
        states: Any = state.get("kernel_states", {})
        keyed: Any = state.get("keyed_chains", {})
        if not _are_tensors(chains):
            raise ValueError("state must hold 'chains', a dict of tensors by site")
        if not isinstance(states, dict) or not all(_are_tensors(s) for s in states.values()):
            raise ValueError("'kernel_states' of state must be a dict of dicts of tensors by site")
        if not isinstance(keyed, dict):
            raise ValueError("'keyed_chains' of state must be a dict by site")
        sides: Any = state.get("sides", dict.fromkeys([*chains, *keyed], "visible"))
        if not isinstance(sides, dict) or not set(sides.values()) <= set(SIDES):
            raise ValueError("'sides' of state must be a dict of 'visible' or 'hidden' by site")
        self.keyed_chains = {site: KeyedChains.from_state(c) for site, c in keyed.items()}
        self.chains = _copies(chains)
        self.kernel_states = {site: _copies(rest) for site, rest in states.items()}
        self.sides = dict(sides)

    # --- the negative phase -------------------------------------------------------------------

    def _normalizing(self, model: Callable[..., Any]) -> Callable[..., Any]:
        def normalized(*args: Any, **kwargs: Any) -> Any:
            messenger = NormalizeMessenger(
                self._log_partition_of,
                self.persistent,
                draws=isinstance(self.elbo, ReweightedWakeSleep | Trace_MMD),
                enumerates=isinstance(self.elbo, TraceEnum_ELBO | TraceTMC_ELBO),
            )
            with messenger:
                return model(*args, **kwargs)

        return normalized

    def _log_partition_of(self, site: MachineSite, value: Tensor) -> Tensor:
        """log Z of the rows of a site, whose gradient is that of the negative phase."""
        if site.enumerated and not (site.is_part and _is_too_large(site.dist)):
            return exact_log_partition(site.dist).to(site.dist.weight.dtype)
        rows = site.rows(value)
        machine = rows.machine
        log_z = machine.weight.new_zeros(machine.batch_shape)
        if self.log_partition is not None:
            with torch.no_grad():
                given = self.log_partition(machine)
            given = torch.as_tensor(getattr(given, "value", given))
            log_z = given.detach().to(log_z).expand(machine.batch_shape)
        if torch.is_grad_enabled() and any(p.requires_grad for p in machine.parameters()):
            side = choose_side(machine, self.side, self.kernel is None)
            states, mask = self._negatives(site.name, rows, side)
            score = mean_score(machine_of_side(machine, side), states, mask)
            log_z = log_z + score - score.detach()
        return rows.spread(log_z)

    def _negatives(self, site: str, rows: SiteRows, side: Side) -> tuple[Tensor, Tensor | None]:
        """Chains of a side, shape ``(num_chains,) + machine.batch_shape + (size,)``, and which count."""
        if not self.persistent:
            start, mask = start_chains(rows, self.num_chains)
            start = states_of_side(rows.machine, start, side)
            machine = machine_of_side(rows.machine, side)
            return move_chains(machine, start, self.num_steps, self.kernel)[0], mask
        known = self.sides.setdefault(site, side)
        if known != side:
            raise ValueError(
                f"the chains of site {site!r} are {known} states, but this loss moves {side} ones; "
                f"use side={known!r}"
            )
        if rows.keys is not None:
            return self._chains_of_keys(site, rows, rows.keys, side), None
        return self._chains_of_site(site, rows, side), None

    def _chains_of_site(self, site: str, rows: SiteRows, side: Side) -> Tensor:
        machine = machine_of_side(rows.machine, side)
        chains = self.chains.get(site)
        if chains is None:
            chains, _ = start_chains(rows, self.num_chains or len(rows.values))
            chains = states_of_side(rows.machine, chains, side)
        elif chains.shape[1:] != machine.batch_shape + machine.event_shape:
            raise ValueError(
                f"the chains of site {site!r} have shape {tuple(chains.shape)}, but its parameters "
                f"now have batch shape {tuple(machine.batch_shape)} and {machine.event_shape[0]} "
                f"{side} units"
            )
        if site not in self._moved:
            rest = self.kernel_states.get(site, {})
            self.chains[site], self.kernel_states[site] = move_chains(
                machine,
                _like(machine.weight, chains),
                self.num_steps,
                self.kernel,
                {name: _like(machine.weight, tensor) for name, tensor in rest.items()},
            )
            self._moved.add(site)
        return self.chains[site]

    def _chains_of_keys(
        self, site: str, rows: SiteRows, keys: tuple[int, ...], side: Side
    ) -> Tensor:
        chains = self.keyed_chains.setdefault(site, KeyedChains())
        chains.to(rows.machine.weight)
        machine = machine_of_side(rows.machine, side)
        if chains.size not in (None, machine.event_shape[0]):
            raise ValueError(
                f"the chains of site {site!r} have {chains.size} units, but its machines now have "
                f"{machine.event_shape[0]} {side} ones"
            )
        new = chains.unknown(keys)
        if new:
            number = chains.num_chains or self.num_chains or _CHAINS_OF_A_KEY
            start = states_of_side(rows.machine, start_chains(rows, number)[0], side)
            chains.add([keys[place] for place in new], start[:, new])
        places = [place for place, key in enumerate(keys) if (site, key) not in self._moved]
        if places:
            index = torch.tensor(places, device=machine.weight.device)
            chosen = select_machines(machine, machine.batch_shape, index)
            moving = [keys[place] for place in places]
            moved, rest = move_chains(chosen, chains.get(moving), self.num_steps, self.kernel)
            if rest:
                raise ValueError(
                    f"site {site!r}: chains by key need a kernel whose state is the chains alone, "
                    f"this one keeps {sorted(rest)} too"
                )
            chains.set(moving, moved)
            self._moved |= {(site, key) for key in moving}
        return chains.get(keys)


def _is_too_large(machine: RBM) -> bool:
    """Whether the exact log Z is refused, from the sizes alone."""
    if machine.visible.is_gaussian and machine.hidden.is_gaussian:
        return False
    sizes = [n for n in (machine.visible.num_states, machine.hidden.num_states) if n is not None]
    return not sizes or min(sizes) > MAX_STATES


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _are_tensors(tensors: Any) -> bool:
    return isinstance(tensors, dict) and all(isinstance(t, Tensor) for t in tensors.values())


def _like(reference: Tensor, state: Tensor) -> Tensor:
    """A tensor on the device of another and, unless it holds integers, of its dtype."""
    dtype = reference.dtype if state.is_floating_point() else state.dtype
    return state.to(device=reference.device, dtype=dtype)
