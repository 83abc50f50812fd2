# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Paths through a sequence of machines: checkpoints of a training run, or knots that were fitted."""

from collections.abc import Sequence

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.distributions.units import Unit
from pyro_ebm.infer.paths.base import Ladder, Path

__all__ = ["MachineLadder", "MachinePath"]


class MachinePath(Path):
    r"""A path that goes straight, in the parameters, from one machine to the next.

    Knot k of K stands at :math:`\beta_k = k / K`. Between two knots the layers are
    ``next.interpolate(previous, s)`` and the weight is :math:`(1 - s) W_k + s W_{k+1}`, offsets
    absorbed. It is the path of trajectory annealing (knots are checkpoints of one training run) and,
    piecewise, of moment averaging.

    Annealing needs a start of known log Z: the first knot must have zero weights
    (:meth:`from_checkpoints` puts one there). Tempering does without.

    **References**

    [1] *Annealing between distributions by averaging moments*, Roger Grosse, Chris Maddison,
    Ruslan Salakhutdinov (2013)

    [2] *Fast training and sampling of Restricted Boltzmann Machines*, Nicolas Béreux,
    Aurélien Decelle, Cyril Furtlehner, Lorenzo Rosset, Beatriz Seoane (2025)

    :param machines: at least two machines of the same families, sizes, dtype and batch shape.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :raises ValueError: if the machines do not fit together.
    """

    def __init__(self, machines: Sequence[RBM], generator: Generator | None = None) -> None:
        _check_alike(machines)
        self._knots = [_canonical(machine) for machine in machines]
        super().__init__(self._knots[-1], generator)
        self._at: tuple[float, GibbsSweep] | None = None

    @classmethod
    def from_checkpoints(
        cls,
        checkpoints: Sequence[RBM],
        base: Unit | None = None,
        generator: Generator | None = None,
    ) -> "MachinePath":
        """A path that starts at a machine without weights and passes through all checkpoints.

        :param checkpoints: machines in the order of training, the machine of interest last.
        :param Unit base: the visible layer of the start; that of the first checkpoint (with its
            offsets absorbed) if None.
        :param torch.Generator generator: the source of random bits; the global one if None.
        """
        if not checkpoints:
            raise ValueError("checkpoints must hold at least one machine")
        first = _canonical(checkpoints[0])
        visible = first.visible if base is None else base
        start = RBM(visible, first.hidden.neutral(), torch.zeros_like(first.weight))
        return cls([start, *checkpoints], generator)

    @property
    def knots(self) -> list[RBM]:
        """The machines, offsets absorbed."""
        return list(self._knots)

    @property
    def batch_shape(self) -> Size:
        return self._knots[-1].batch_shape

    @property
    def log_partition_base(self) -> Tensor:
        start = self._start()
        visible = start.visible.natural_log_partition(start.visible.natural_bias.double())
        hidden = start.hidden.natural_log_partition(start.hidden.natural_bias.double())
        constant = visible + hidden + start.canonical().constant.double()
        return constant.expand(self.batch_shape)

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

    @torch.no_grad()
    def machine(self, beta: float) -> RBM:
        position = beta * (len(self._knots) - 1)
        index = min(int(position), len(self._knots) - 2)
        share = position - index
        low, high = self._knots[index], self._knots[index + 1]
        if share in (0.0, 1.0):
            return high if share else low
        machine = RBM(
            high.visible.interpolate(low.visible, share),
            high.hidden.interpolate(low.hidden, share),
            torch.lerp(low.weight, high.weight, share),
            num_gibbs_steps=self.target.num_gibbs_steps,
            validate_args=False,
        )
        machine._constant = torch.lerp(_constant(low), _constant(high), share)
        return machine

    def ladder(self, betas: Sequence[float]) -> "MachineLadder":
        return MachineLadder([self.machine(beta) for beta in betas], self.generator)

    def _sweep(self, beta: float) -> GibbsSweep:
        """The machine at ``beta`` ready to be swept; the latest one is kept."""
        if self._at is None or self._at[0] != beta:
            self._at = beta, GibbsSweep(self.machine(beta), self.generator)
        return self._at[1]

    @torch.no_grad()
    def fields(self, v: Tensor, beta: float) -> Tensor:
        """Natural parameters of the hidden layer at ``beta``."""
        return self._sweep(beta).hidden_theta(v)

    @torch.no_grad()
    def log_ratio(
        self, v: Tensor, fields: Tensor, beta: float, beta_next: float
    ) -> tuple[Tensor, Tensor]:
        before = self._sweep(beta)
        after = self._sweep(beta_next)
        fields_next = after.hidden_theta(v)
        change = after.log_density_change(before, v, fields, fields_next)
        return change, fields_next

    @torch.no_grad()
    def move(self, fields: Tensor, beta: float) -> Tensor:
        return self._sweep(beta).step_visible(fields)

    def constant(self, beta: float) -> Tensor:
        """Zero: constants are part of the ratios."""
        return torch.zeros((), dtype=torch.float64, device=self.target.weight.device)


class MachineLadder(Ladder):
    """Levels that are machines of their own, stacked along a batch axis.

    :param machines: machines of the same families, sizes and batch shape, level 0 first.
    :param torch.Generator generator: the source of random bits; the global one if None.
    """

    def __init__(self, machines: Sequence[RBM], generator: Generator | None = None) -> None:
        _check_alike(machines)
        super().__init__(len(machines), machines[0].parameter_batch_shape, generator)
        self.machines = _stack([_canonical(machine) for machine in machines])
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
    def swap_log_ratio(
        self, v: Tensor, fields: Tensor, partner: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        exchanged = v.index_select(self.level_axis - 1, partner)
        exchanged_fields = self.fields(exchanged)
        change = self.log_density(exchanged, exchanged_fields) - self.log_density(v, fields)
        return change + change.index_select(self.level_axis, partner), exchanged_fields


def _constant(machine: RBM) -> Tensor:
    return machine.weight.new_zeros(()) if machine._constant is None else machine._constant


@torch.no_grad()
def _canonical(machine: RBM) -> RBM:
    """The same machine without offsets, detached, its own batch shape in every parameter."""
    form, batch = machine.canonical(), machine.parameter_batch_shape
    visible = _with_bias(machine.visible, form.visible_bias, batch)
    hidden = _with_bias(machine.hidden, form.hidden_bias, batch)
    new = RBM(
        visible,
        hidden,
        form.weight.detach().expand(*batch, *form.weight.shape[-2:]),
        num_gibbs_steps=machine.num_gibbs_steps,
        validate_args=False,
    )
    constant = -form.constant - visible.energy_constant - hidden.energy_constant
    new._constant = constant.detach().expand(batch)
    return new


def _with_bias(unit: Unit, bias: Tensor, batch: Size) -> Unit:
    """A layer of another natural bias, its parameters expanded to a batch shape."""
    moved, _ = unit.tilt(bias - unit.natural_bias)
    own = moved.parameter_dim
    full = torch.broadcast_shapes(*(p.shape for p in moved.parameters.values()))
    event = full[len(full) - own :]
    return moved.map(lambda p: p.detach().expand(*batch, *event))


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


def _check_alike(machines: Sequence[RBM]) -> None:
    if len(machines) < 2:
        raise ValueError(f"a path needs at least 2 machines, got {len(machines)}")

    def kind(machine: RBM) -> tuple[object, ...]:
        layers = (machine.visible, machine.hidden)
        families = tuple((type(u).__name__, u.size, str(u.options())) for u in layers)
        return (*families, tuple(machine.parameter_batch_shape), machine.weight.dtype)

    for number, machine in enumerate(machines):
        if not isinstance(machine, RBM):
            raise TypeError(f"machines must be RBM distributions, got {type(machine).__name__}")
        machine.check_normalizable()
        if kind(machine) != kind(machines[0]):
            raise ValueError(
                f"machine {number} of the path differs from the first in family, size, batch shape "
                f"or dtype: {kind(machine)} and {kind(machines[0])}"
            )
