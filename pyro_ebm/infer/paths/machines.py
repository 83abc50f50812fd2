# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Paths through a sequence of machines: checkpoints of a training run, or knots that were fitted."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.distributions.units import Unit
from pyro_ebm.infer.paths.base import Ladder, Path
from pyro_ebm.infer.paths.canonical import canonical, check_alike, exact_constant
from pyro_ebm.infer.paths.segments import Level, Segment

__all__ = ["MachineLadder", "MachinePath"]


class MachinePath(Path):
    r"""A path that goes straight, in the natural parameters, from one machine to the next.

    Knot k of K stands at :math:`\beta_k`, by default k / K. Between two knots every natural parameter
    (biases, precisions and the weight, offsets absorbed) is :math:`(1 - s)\, \eta_k + s\, \eta_{k+1}`, and so
    is the constant. It is the path of trajectory annealing (knots are checkpoints of one training run)
    and, piecewise, of moment averaging (:func:`moment_averaged_path`).

    Annealing needs a start of known log Z: the first knot must have zero weights
    (:meth:`from_checkpoints` puts one there). Tempering does without.

    **References**

    [1] *Annealing between distributions by averaging moments*, Roger Grosse, Chris Maddison,
    Ruslan Salakhutdinov (2013)

    [2] *Fast training and sampling of Restricted Boltzmann Machines*, Nicolas Béreux,
    Aurélien Decelle, Cyril Furtlehner, Lorenzo Rosset, Beatriz Seoane (2025)

    :param machines: at least two machines of the same families, sizes, dtype and batch shape.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :param positions: :math:`\beta` of every knot, strictly increasing from 0 to 1; evenly spaced if None.
    :raises ValueError: if the machines do not fit together, or the positions do not fit them.
    """

    def __init__(
        self,
        machines: Sequence[RBM],
        generator: Generator | None = None,
        *,
        positions: Sequence[float] | None = None,
    ) -> None:
        check_alike(machines)
        self._knots = [canonical(machine) for machine in machines]
        self._constants = [exact_constant(machine) for machine in machines]
        self._positions = _check_positions(positions, len(machines))
        super().__init__(self._knots[-1], generator)
        self._segment: tuple[int, Segment] | None = None
        self._level: tuple[float, Level] | None = None

    @classmethod
    def from_checkpoints(
        cls,
        checkpoints: Sequence[RBM],
        base: Unit | None = None,
        generator: Generator | None = None,
        *,
        positions: Sequence[float] | None = None,
    ) -> "MachinePath":
        """A path that starts at a machine without weights and passes through all checkpoints.

        :param checkpoints: machines in the order of training, the machine of interest last.
        :param Unit base: the visible layer of the start; that of the first checkpoint (with its
            offsets absorbed) if None.
        :param torch.Generator generator: the source of random bits; the global one if None.
        :param positions: as for the class, the first being that of the start.
        """
        if not checkpoints:
            raise ValueError("checkpoints must hold at least one machine")
        first = canonical(checkpoints[0])
        visible = first.visible if base is None else base
        start = RBM(visible, first.hidden.neutral(), torch.zeros_like(first.weight))
        return cls([start, *checkpoints], generator, positions=positions)

    @property
    def knots(self) -> list[RBM]:
        """The machines, offsets absorbed."""
        return list(self._knots)

    @property
    def positions(self) -> list[float]:
        """Where on the path the knots stand, from 0 to 1."""
        return list(self._positions)

    @property
    def batch_shape(self) -> Size:
        return self._knots[-1].batch_shape

    @property
    def log_partition_base(self) -> Tensor:
        start = self._start()
        visible = start.visible.natural_log_partition(start.visible.natural_bias.double())
        hidden = start.hidden.natural_log_partition(start.hidden.natural_bias.double())
        return (visible + hidden + self._constants[0]).expand(self.batch_shape)

    @torch.no_grad()
    def sample_base(self, num_chains: int) -> Tensor:
        start = self._start()
        theta = start.visible.natural_bias
        shape = Size((num_chains, *self.batch_shape, self.num_visible))
        return start.visible.natural_sample(theta.expand(shape), self.generator)

    def _start(self) -> RBM:
        start = self._knots[0]
        if bool((start.weight != 0).any()):
            raise ValueError(
                "the first machine of the path has weights, so that its log Z is unknown; use "
                "MachinePath.from_checkpoints, which puts a machine without weights in front"
            )
        return start

    def _index(self, beta: float) -> int:
        """The segment in which ``beta`` lies, the upper one of two."""
        return min(bisect_right(self._positions, beta), len(self._knots) - 1) - 1

    def _share(self, index: int, beta: float) -> float:
        low, high = self._positions[index], self._positions[index + 1]
        return (beta - low) / (high - low)

    @torch.no_grad()
    def machine(self, beta: float) -> RBM:
        index = self._index(beta)
        share = self._share(index, beta)
        low, high = self._knots[index], self._knots[index + 1]
        if share in (0.0, 1.0):
            return high if share else low
        visible = high.visible.interpolate(low.visible, share)
        hidden = high.hidden.interpolate(low.hidden, share)
        weight = torch.lerp(low.weight, high.weight, share)
        machine = RBM(visible, hidden, weight, validate_args=False)
        machine.num_gibbs_steps = self.target.num_gibbs_steps
        constant = -self.constant(beta).to(weight.dtype)
        machine._constant = constant - visible.energy_constant - hidden.energy_constant
        return machine

    def ladder(self, betas: Sequence[float]) -> "MachineLadder":
        return MachineLadder([self.machine(beta) for beta in betas], self.generator)

    def _at_segment(self, index: int) -> Segment:
        """A segment of the path; the latest one is kept."""
        if self._segment is None or self._segment[0] != index:
            self._segment = index, Segment(self._knots[index], self._knots[index + 1])
        return self._segment[1]

    def _at_level(self, beta: float) -> Level:
        """The machine at ``beta`` ready to be swept; the latest one is kept."""
        if self._level is None or self._level[0] != beta:
            index = self._index(beta)
            if self._segment is not None and self._positions[self._segment[0] + 1] == beta:
                index = self._segment[0]  # at a knot, the segment that is at hand
            self._level = beta, self._at_segment(index).level(self._share(index, beta))
        return self._level[1]

    @torch.no_grad()
    def fields(self, v: Tensor, beta: float) -> Tensor:
        """Natural parameters of the hidden layer at ``beta``."""
        return self._at_level(beta).hidden_theta(v)

    @torch.no_grad()
    def log_ratio(
        self, v: Tensor, fields: Tensor, beta: float, beta_next: float
    ) -> tuple[Tensor, Tensor]:
        index = self._index(min(beta, beta_next))
        if max(beta, beta_next) <= self._positions[index + 1]:
            shares = self._share(index, beta), self._share(index, beta_next)
            return self._at_segment(index).log_ratio(v, fields, *shares)
        # The step leads over a knot.
        before = self._at_level(beta).log_density(v, fields)
        level = self._at_level(beta_next)
        fields_next = level.hidden_theta(v)
        return level.log_density(v, fields_next) - before, fields_next

    @torch.no_grad()
    def move(self, fields: Tensor, beta: float) -> Tensor:
        return self._at_level(beta).move(fields, self.generator)

    def constant(self, beta: float) -> Tensor:
        """The constant of the canonical form, straight between the knots."""
        index = self._index(beta)
        low, high = self._constants[index], self._constants[index + 1]
        return torch.lerp(low, high, self._share(index, beta))


class MachineLadder(Ladder):
    """Levels that are machines of their own, stacked along a batch axis.

    :param machines: machines of the same families, sizes and batch shape, level 0 first.
    :param torch.Generator generator: the source of random bits; the global one if None.
    """

    def __init__(self, machines: Sequence[RBM], generator: Generator | None = None) -> None:
        check_alike(machines)
        super().__init__(len(machines), machines[0].parameter_batch_shape, generator)
        self.machines = _stack([canonical(machine) for machine in machines])
        self._sweep = GibbsSweep(self.machines, generator)

    @torch.no_grad()
    def initial(self, chain_shape: Size) -> Tensor:
        shape = chain_shape + self.machines.batch_shape + self.machines.event_shape
        return self._sweep.initial_visible(shape)

    @torch.no_grad()
    def fields(self, v: Tensor) -> Tensor:
        return self._sweep.hidden_theta(v)

    @torch.no_grad()
    def sweep(self, fields: Tensor) -> tuple[Tensor, Tensor]:
        return self._sweep.step_from_theta(fields)

    @torch.no_grad()
    def log_density(self, v: Tensor, fields: Tensor) -> Tensor:
        return -self._sweep.free_energy(v, fields).double()

    @torch.no_grad()
    def log_density_table(self, v: Tensor, fields: Tensor) -> Tensor:
        exact = self.machines.to(dtype=torch.float64)
        axis = v.dim() - 2 - len(self.batch_shape)
        # Level of the state in front of the chains, and a new axis for the level of the density.
        states = v.double().movedim(axis, 0).unsqueeze(axis + 1)
        table = -exact.free_energy(states)
        return table.movedim((axis + 1, 0), (0, axis + 1))

    @torch.no_grad()
    def level_log_ratio(self, v: Tensor, fields: Tensor, level: Tensor) -> Tensor:
        origin = level.argsort()
        moved = v.index_select(self.level_axis - 1, origin)
        there = self.log_density(moved, self.fields(moved))
        return there.index_select(self.level_axis, level) - self.log_density(v, fields)

    @torch.no_grad()
    def swap_log_ratio(
        self, v: Tensor, fields: Tensor, partner: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        exchanged = v.index_select(self.level_axis - 1, partner)
        exchanged_fields = self.fields(exchanged)
        change = self.log_density(exchanged, exchanged_fields) - self.log_density(v, fields)
        return change + change.index_select(self.level_axis, partner), exchanged_fields


def _constant(machine: RBM) -> Tensor:
    return machine.weight.new_zeros(()) if machine._constant is None else machine._constant


def _stack(machines: Sequence[RBM]) -> RBM:
    def stack_units(layers: list[Unit]) -> Unit:
        names = layers[0].parameters
        return layers[0].replace(
            **{n: torch.stack([u.parameters[n] for u in layers]) for n in names}
        )

    stacked = RBM(
        stack_units([m.visible for m in machines]),
        stack_units([m.hidden for m in machines]),
        torch.stack([m.weight for m in machines]),
        num_gibbs_steps=machines[-1].num_gibbs_steps,
        validate_args=False,
    )
    stacked._constant = torch.stack([_constant(m) for m in machines])
    return stacked


def _check_positions(positions: Sequence[float] | None, number: int) -> list[float]:
    if positions is None:
        return [k / (number - 1) for k in range(number)]
    values = [float(p) for p in positions]
    increasing = all(after > before for before, after in pairwise(values))
    if len(values) != number or values[0] != 0.0 or values[-1] != 1.0 or not increasing:
        raise ValueError(
            f"positions must be {number} numbers that increase strictly from 0 to 1, got {values}"
        )
    return values
