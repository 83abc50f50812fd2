# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Layers with units of several families."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Size, Tensor
from torch.distributions import constraints

from pyro_ebm.distributions.conditionals import Concatenated
from pyro_ebm.distributions.constraints import concatenation
from pyro_ebm.distributions.units.base import Unit

__all__ = ["Mixed"]


class Mixed(Unit):
    r"""A layer whose entries are those of several layers, one after the other: tables of numbers and
    labels, say.

    Energies, log-partitions and constants are sums over the blocks; means and states are put one after
    the other. Parameters are named by block: ``"0_loc"`` is the ``loc`` of the first one.

    :param blocks: layers of any families, of one dtype and device, whose batch shapes broadcast; a mixed
        one is replaced by its own blocks.
    :raises TypeError: if a block is no :class:`Unit`.
    :raises ValueError: if there is none, or shapes, dtypes or devices do not fit.

    >>> import torch
    >>> from pyro_ebm.distributions import units
    >>> unit = units.Mixed([units.Gaussian(torch.zeros(2), torch.ones(2)), units.Ising(torch.zeros(3))])
    >>> unit.size, unit.is_discrete, list(unit.parameters)
    (5, False, ['0_loc', '0_precision', '1_bias'])
    """

    #: None: the blocks have checked their own.
    parameter_constraints: ClassVar[dict[str, Any]] = {}
    #: The layers, in the order of their entries.
    blocks: tuple[Unit, ...]

    def __init__(self, blocks: Sequence[Unit]) -> None:
        flat: list[Unit] = []
        for number, block in enumerate(blocks):
            if not isinstance(block, Unit):
                raise TypeError(f"block {number} must be a Unit, got {type(block).__name__}")
            flat += block.blocks if isinstance(block, Mixed) else [block]
        if not flat:
            raise ValueError("blocks must hold at least one layer, got none")
        for what in ("dtype", "device"):
            got = [str(getattr(block, what)) for block in flat]
            if len(set(got)) > 1:
                raise ValueError(f"blocks must have one {what}, got {got}")
        self.blocks = tuple(flat)
        self._lengths = [block.size for block in flat]
        self._names = tuple(
            f"{number}_{name}" for number, block in enumerate(flat) for name in block.parameters
        )
        self._shape = Size((*_broadcast_batch(flat), sum(self._lengths)))
        self.is_discrete = all(block.is_discrete for block in flat)
        self.is_gaussian = all(block.is_gaussian for block in flat)

    # --- what it is made of -------------------------------------------------------------------

    def parts(self) -> list[tuple[slice, Unit]]:
        found, start = [], 0
        for block, length in zip(self.blocks, self._lengths, strict=True):
            found.append((slice(start, start + length), block))
            start += length
        return found

    @property
    def parameters(self) -> dict[str, Tensor]:
        values = [p for block in self.blocks for p in block.parameters.values()]
        return dict(zip(self._names, values, strict=True))

    def parameter_event_dim(self, name: str) -> int:
        number, own = name.split("_", 1)
        return self.blocks[int(number)].parameter_event_dim(own)

    @property
    def num_units(self) -> int:
        return sum(block.num_units for block in self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].dtype

    @property
    def device(self) -> torch.device:
        return self.blocks[0].device

    def options(self) -> dict[str, Any]:
        """Families, sizes and options of the blocks."""
        return {"blocks": tuple(block.signature() for block in self.blocks)}

    def replace(self, **parameters: Tensor) -> Self:
        unknown = sorted(set(parameters) - set(self._names))
        if unknown:
            raise TypeError(f"Mixed has the parameters {list(self._names)}, got {unknown}")
        blocks = []
        for number, block in enumerate(self.blocks):
            full = {name: f"{number}_{name}" for name in block.parameters}
            own = {name: parameters[key] for name, key in full.items() if key in parameters}
            blocks.append(block.replace(**own) if own else block)
        return type(self)(blocks)

    def map(self, function: Any) -> Self:
        return self._each(lambda block: block.map(function))

    def map_whole(self, function: Callable[[Tensor, int], Tensor]) -> Self:
        return self._each(lambda block: block.map_whole(function))

    def signature(self) -> tuple[Any, ...]:
        return type(self).__name__, *(block.signature() for block in self.blocks)

    # --- block by block -----------------------------------------------------------------------

    def _each(self, function: Callable[[Unit], Unit]) -> Self:
        return type(self)([function(block) for block in self.blocks])

    def _split(self, x: Tensor) -> list[tuple[Unit, Tensor]]:
        return list(zip(self.blocks, x.split(self._lengths, -1), strict=True))

    def _expanded(self, theta: Tensor) -> Tensor:
        """The natural parameter with the batch axes of all blocks: no draw serves two of them."""
        batch = torch.broadcast_shapes(theta.shape[:-1], self.batch_shape)
        return theta if batch == theta.shape[:-1] else theta.expand(*batch, theta.shape[-1])

    def _base(self, base: Unit) -> "Mixed":
        same = isinstance(base, Mixed) and [(type(b), b.size) for b in base.blocks] == [
            (type(b), b.size) for b in self.blocks
        ]
        if not same:
            raise ValueError(f"base must have the blocks {self.blocks}, got {base!r}")
        assert isinstance(base, Mixed)
        return base

    # --- the family ---------------------------------------------------------------------------

    @property
    def natural_bias(self) -> Tensor:
        return _join([block.natural_bias for block in self.blocks])

    @property
    def energy_constant(self) -> Tensor:
        return _total([block.energy_constant for block in self.blocks])

    @property
    def support(self) -> constraints.Constraint:
        return concatenation([block.support for block in self.blocks], self._lengths)

    def energy(self, x: Tensor) -> Tensor:
        return _total([block.energy(part) for block, part in self._split(x)])

    def natural_log_partition(self, theta: Tensor) -> Tensor:
        return _total([b.natural_log_partition(part) for b, part in self._split(theta)])

    def natural_log_partition_step(
        self, a: Tensor, beta: float | Tensor, beta_next: float | Tensor
    ) -> Tensor:
        steps = [b.natural_log_partition_step(p, beta, beta_next) for b, p in self._split(a)]
        return _total(steps)

    def log_partition(self, field: Tensor | None = None) -> Tensor:
        if field is None:
            return _total([block.log_partition() for block in self.blocks])
        return _total([block.log_partition(part) for block, part in self._split(field)])

    def natural_mean(self, theta: Tensor) -> Tensor:
        return _join([block.natural_mean(part) for block, part in self._split(theta)])

    def natural_sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        parts = self._split(self._expanded(theta))
        return torch.cat([block.natural_sample(part, generator) for block, part in parts], -1)

    def natural_conditional(self, theta: Tensor) -> TorchDistribution:
        return Concatenated([b.natural_conditional(part) for b, part in self._split(theta)])

    def from_mean(self, mean: Tensor) -> Self:
        return type(self)([block.from_mean(part) for block, part in self._split(mean)])

    def neutral(self) -> Self:
        return self._each(lambda block: block.neutral())

    def interpolate(self, base: Self, beta: float) -> Self:
        pairs = zip(self.blocks, self._base(base).blocks, strict=True)
        return type(self)([own.interpolate(other, beta) for own, other in pairs])

    def tilt(self, field: Tensor) -> tuple[Self, Tensor]:
        tilted = [block.tilt(part) for block, part in self._split(field)]
        return type(self)([unit for unit, _ in tilted]), _total([c for _, c in tilted])

    def select(self, mask: Tensor) -> Self:
        kept = [block.select(part) for block, part in self._split(mask) if bool(part.any())]
        if not kept:
            raise ValueError("mask must take at least one entry of a Mixed layer")
        return type(self)(kept)

    def covariance_root(self, weight: Tensor) -> Tensor | None:
        found = []
        for block, part in zip(self.blocks, weight.split(self._lengths, -2), strict=True):
            root = block.covariance_root(part)
            if root is None:
                return None
            found.append(root)
        batch = torch.broadcast_shapes(*(root.shape[:-2] for root in found))
        return torch.cat([root.expand(*batch, *root.shape[-2:]) for root in found], -2)

    # --- gradients ----------------------------------------------------------------------------

    def _named(self, gradients: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {f"{i}_{name}": g for i, own in enumerate(gradients) for name, g in own.items()}

    def mean_parameters_gradient(self, x: Tensor) -> dict[str, Tensor]:
        return self._named([b.mean_parameters_gradient(part) for b, part in self._split(x)])

    def natural_log_partition_gradient(self, theta: Tensor, mean: Tensor) -> dict[str, Tensor]:
        parts = zip(self._split(theta), mean.split(self._lengths, -1), strict=True)
        return self._named([b.natural_log_partition_gradient(t, m) for (b, t), m in parts])

    def log_partition_gradient(self, field: Tensor) -> dict[str, Tensor]:
        return self._named([b.log_partition_gradient(part) for b, part in self._split(field)])

    # --- draws in a loop ----------------------------------------------------------------------

    def natural_noise(self, shape: Size, generator: Generator | None = None) -> Tensor | None:
        pairs = list(zip(self.blocks, self._lengths, strict=True))
        # No numbers are drawn in vain where only some of the blocks take them.
        if any(block.natural_noise(Size((0, length))) is None for block, length in pairs):
            return None
        parts = [b.natural_noise(Size((*shape[:-1], n)), generator) for b, n in pairs]
        return torch.cat([part for part in parts if part is not None], -1)

    def natural_sample_from(self, theta: Tensor, noise: Tensor) -> Tensor:
        parts = zip(self._split(theta), noise.split(self._lengths, -1), strict=True)
        return torch.cat([block.natural_sample_from(t, n) for (block, t), n in parts], -1)

    # --- enumeration --------------------------------------------------------------------------

    @property
    def num_states(self) -> int | None:
        numbers = [block.num_states for block in self.blocks]
        return None if None in numbers else math.prod(n for n in numbers if n is not None)

    def states(self, start: int, stop: int) -> Tensor:
        if self.num_states is None:
            raise ValueError("Mixed units with an infinite block cannot be enumerated")
        stride, parts = 1, []
        for block in reversed(self.blocks):
            number = block.num_states or 1
            parts.append(_digit_states(block, number, stride, start, stop))
            stride *= number
        return torch.cat(parts[::-1], -1)

    def unit_states(self) -> Tensor:
        raise ValueError(
            "Mixed units have no finite set of states per unit that all share; ask the blocks"
        )

    def __repr__(self) -> str:
        return f"Mixed(num_units={self.num_units}, blocks={list(self.blocks)})"


def _broadcast_batch(blocks: list[Unit]) -> Size:
    shapes = [block.batch_shape for block in blocks]
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError as error:
        raise ValueError(
            f"batch shapes of the blocks do not broadcast: {[tuple(s) for s in shapes]}"
        ) from error


def _join(parts: list[Tensor]) -> Tensor:
    """Vectors one after the other, repeated along the batch axes that only others have."""
    shapes = {part.shape[:-1] for part in parts}
    if len(shapes) > 1:
        batch = torch.broadcast_shapes(*shapes)
        parts = [part.expand(*batch, part.shape[-1]) for part in parts]
    return torch.cat(parts, -1)


def _total(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _digit_states(block: Unit, number: int, stride: int, start: int, stop: int) -> Tensor:
    """States of one block in states number ``start`` to ``stop - 1`` of the layer.

    The block goes on by one state every ``stride`` states of the layer. Only the states that occur in
    the range are made, which are few where it is one of many chunks.
    """
    first, last = start // stride, (stop - 1) // stride
    if last - first + 1 >= number:
        table, offset = block.states(0, number), 0
    else:
        offset = first % number
        end = offset + last - first + 1
        table = block.states(offset, min(end, number))
        if end > number:
            table = torch.cat([table, block.states(0, end - number)])
    if first == last:
        return table[(first - offset) % number].expand(stop - start, -1)
    index = torch.arange(start, stop, device=table.device) // stride
    return table[(index - offset) % number]
