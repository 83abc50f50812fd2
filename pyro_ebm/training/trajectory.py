# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Replicas of a training run's negative phase at earlier machines of the run."""

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.infer.mcmc.replica_exchange import ReplicaExchange
from pyro_ebm.infer.paths.canonical import canonical
from pyro_ebm.infer.paths.machines import MachineLadder

__all__ = ["MIN_ACCEPTANCE", "Trajectory"]

#: Exchanges between the last snapshot and the machine are accepted at least as often as this, or there is a
#: new snapshot. Levels at which half of them are make the most round trips for their time (Syed et
#: al., 2022).
MIN_ACCEPTANCE = 0.5

_SNAPSHOTS, _REPLICAS, _PARITY = "snapshots.", "replicas", "parity"


class Trajectory:
    r"""Tempering along a training run: the levels are the machine and snapshots of what it was.

    Level 0 is a machine without weights, whose sweeps are independent draws: for a centred module with
    the visible offset (the means of the data) as its mean, otherwise the visible layer of the first
    machine. Snapshots follow in the order of training, the present machine is the last level. After
    every sweep of all levels, neighbours offer each other their states, with even and odd pairs in
    turn. Early machines mix fast, and neighbours are alike, as training made one of the other: a
    ladder without the phase transitions of temperatures [1]. Every level keeps its own distribution
    exactly.

    After an epoch, the mean acceptance of exchanges between the last snapshot and the machine is
    taken from the free energies of their replicas (all pairs of chains). Below :data:`MIN_ACCEPTANCE`
    the machine becomes a snapshot; its replicas are copies of the machine's, which are draws of the same
    distribution. Of more than ``num_levels`` levels the one between the ends is dropped whose
    removal leaves the highest acceptance between its neighbours.

    An update costs a sweep, and one more product of the hidden layer for the exchange, of every
    level: with L levels 1.5 L times the sweeps of block Gibbs, and the memory of L machines.

    **References**

    [1] *Fast training and sampling of Restricted Boltzmann Machines*, Nicolas Béreux,
    Aurélien Decelle, Cyril Furtlehner, Lorenzo Rosset, Beatriz Seoane (2025)

    :param int num_levels: levels at most, the first and the machine included.
    :param torch.Generator generator: the source of random bits; the global one if None.
    """

    def __init__(self, num_levels: int, generator: Generator | None = None) -> None:
        self.num_levels = num_levels
        self.generator = generator
        # Parameters of all levels but the last, by name, offsets absorbed: shape (snapshots, ...).
        self._snapshots: dict[str, Tensor] = {}
        # Visible states by level, shape (chains, levels, V).
        self._replicas: Tensor | None = None
        self._parity = 0

    @property
    def num_snapshots(self) -> int:
        """Levels below the machine."""
        return len(self._snapshots["weight"]) if self._snapshots else 0

    @torch.no_grad()
    def move(self, dist: RBM, chains: Tensor, num_steps: int) -> Tensor:
        """Sweeps and exchanges of all levels.

        :param RBM dist: the present machine.
        :param Tensor chains: its states, shape ``(num_chains, V)``: those of the last level.
        :param int num_steps: sweeps, each with an exchange after it.
        :returns: the new states of the machine.
        """
        ladder = self._ladder(dist)
        exchange = ReplicaExchange(ladder)
        replicas = exchange.start(self._states(ladder, chains), parity=self._parity)
        for _ in range(num_steps):
            replicas, _ = exchange.step(replicas)
        self._replicas, self._parity = replicas.v, replicas.parity
        return replicas.v[:, -1].contiguous()

    @torch.no_grad()
    def follow(self, dist: RBM) -> None:
        """Make the machine a snapshot if exchanges with the last one have become rare.

        :param RBM dist: the present machine.
        """
        if self._replicas is None:
            return
        ladder = self._ladder(dist)
        v = self._replicas
        table = ladder.log_density_table(v, ladder.fields(v))
        if _acceptance(table, -2, -1) >= MIN_ACCEPTANCE:
            return
        # The snapshot is the machine itself: every row and column that concerns it is there twice.
        index = [*range(ladder.num_levels), ladder.num_levels - 1]
        while len(index) > self.num_levels:
            inner = range(1, len(index) - 1)
            kept = {i: _acceptance(table, index[i - 1], index[i + 1]) for i in inner}
            del index[max(kept, key=lambda i: kept[i])]
        chosen = torch.tensor(index, device=v.device)
        self._replicas = v.index_select(1, chosen)
        parameters = _parameters(ladder.machines)
        self._snapshots = {n: p.index_select(0, chosen[:-1]) for n, p in parameters.items()}

    def _ladder(self, dist: RBM) -> MachineLadder:
        """The snapshots and the present machine."""
        present = canonical(dist)
        if not self._snapshots:
            first = _without_weights(dist, present)
            self._snapshots = {n: p.unsqueeze(0).clone() for n, p in _parameters(first).items()}
        snapshots = [self._snapshot(number, present) for number in range(self.num_snapshots)]
        return MachineLadder([*snapshots, present], self.generator)

    def _snapshot(self, number: int, like: RBM) -> RBM:
        own = {name: values[number] for name, values in self._snapshots.items()}
        visible, hidden = (
            unit.replace(**{name: own[f"{side}.{name}"] for name in unit.parameters})
            for side, unit in (("visible", like.visible), ("hidden", like.hidden))
        )
        return RBM(visible, hidden, own["weight"], validate_args=False)

    def _states(self, ladder: MachineLadder, chains: Tensor) -> Tensor:
        """The replicas, of which the last level is given; drawn without weights where there are none."""
        v = self._replicas
        if v is None or v.shape != (len(chains), ladder.num_levels, chains.shape[-1]):
            v = ladder.initial(chains.shape[:1])
        v = v.to(chains, copy=True)
        v[:, -1] = chains
        return v

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        tensors = {f"{_SNAPSHOTS}{name}": value for name, value in self._snapshots.items()}
        if self._replicas is not None:
            tensors |= {_REPLICAS: self._replicas, _PARITY: torch.tensor(self._parity)}
        return tensors

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        self._snapshots = {
            name.removeprefix(_SNAPSHOTS): value
            for name, value in state.items()
            if name.startswith(_SNAPSHOTS)
        }
        self._replicas = state.get(_REPLICAS)
        self._parity = int(state[_PARITY]) if _PARITY in state else 0


def _parameters(machine: RBM) -> dict[str, Tensor]:
    """All parameters of a machine without offsets, by name."""
    tensors = {"weight": machine.weight}
    for side, unit in (("visible", machine.visible), ("hidden", machine.hidden)):
        tensors |= {f"{side}.{name}": value for name, value in unit.parameters.items()}
    return tensors


def _without_weights(dist: RBM, form: RBM) -> RBM:
    """The first level of a run.

    :param RBM dist: the first machine.
    :param RBM form: the same without offsets.
    """
    visible = form.visible
    if dist._visible_offset is not None:
        visible = visible.from_mean(dist._visible_offset)
    return RBM(visible, form.hidden.neutral(), torch.zeros_like(form.weight), validate_args=False)


def _acceptance(table: Tensor, low: int, high: int) -> float:
    """Mean acceptance of exchanges between two levels, over all pairs of their states.

    :param Tensor table: log-density of every state at every level, shape ``(levels, chains, levels)``,
        the first axis for the level of the density.
    """
    gain = table[high, :, low] - table[low, :, low]
    loss = table[high, :, high] - table[low, :, high]
    return float((gain.unsqueeze(-1) - loss).clamp_(max=0.0).exp_().mean())
