# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A layer seen unit by unit: the terms of the sums that a family gives."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ebm.distributions.units import Unit

__all__ = ["UnitTerms"]


@dataclass(frozen=True)
class _Block:
    """Neighbouring entries of one family."""

    #: The units as layers of one unit each, along a new last batch axis; the layer itself if ``whole``.
    unit: Unit
    #: Number of units and of entries of each.
    count: int
    width: int
    #: Whether the block is one unit.
    whole: bool

    @property
    def size(self) -> int:
        return self.count * self.width

    def terms(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A function that sums over units, of every unit alone; shape ``(..., count)``."""
        if self.whole:
            return function(x).unsqueeze(-1)
        return function(x.unflatten(-1, (self.count, self.width)))


class UnitTerms:
    """Energies and log-partitions of the single units of a layer.

    A :class:`~pyro_ebm.distributions.units.Unit` sums over its units. Where rows have different units
    missing, the terms are wanted. A layer of n independent units is n layers of one unit, so that an
    axis put into its parameters gives them, whatever the family. A layer that cannot give a part of
    itself (counts that share a total, correlated normals) is one unit.

    :param Unit unit: the layer, of n units.
    """

    def __init__(self, unit: Unit) -> None:
        self._blocks = [_split(part) for _, part in unit.parts()]
        self._sizes = [block.size for block in self._blocks]

    def units(self, mask: Tensor) -> Tensor:
        """Which units a mask of entries takes, boolean, shape ``(..., n)``; divided ones it does not."""
        return self._concatenate(lambda block, x: _by_unit(block, x).all(-1), mask)

    def check_whole(self, mask: Tensor, *, only_layers: bool = False) -> None:
        """Refuse a mask that divides a unit.

        :param Tensor mask: boolean, shape ``(..., V)``.
        :param bool only_layers: look only at layers that are one unit (and wait for the device only
            where there is one).
        :raises ValueError: if it takes some entries of a unit and leaves others.
        """
        for block, part in zip(self._blocks, mask.split(self._sizes, -1), strict=True):
            if block.width == 1 or (only_layers and not block.whole):
                continue
            by_unit = _by_unit(block, part)
            if bool((by_unit.all(-1) != by_unit.any(-1)).any()):
                family = type(block.unit).__name__
                what = "layer" if block.whole else "one-hot group"
                hint = " (laws of a part of such a layer are not done)" if block.whole else ""
                raise ValueError(
                    f"observed must take all {block.width} entries of a {family} {what} or none; "
                    f"some row divides one{hint}"
                )

    def check_support(self, x: Tensor) -> Tensor:
        """Which units are in a state that they can be in, boolean, shape ``(..., n)``."""
        return self._concatenate(lambda block, part: block.terms(_support(block.unit), part), x)

    def energy(self, x: Tensor) -> Tensor:
        """Energy of every unit, shape ``(..., n)``.

        :param Tensor x: shape ``(..., V)``.
        """
        return self._concatenate(lambda block, part: block.terms(block.unit.energy, part), x)

    def log_partition(self, field: Tensor) -> Tensor:
        r"""Log-partition :math:`\Gamma(t)` of every unit, shape ``(..., n)``.

        :param Tensor field: t, shape ``(..., V)``.
        """
        return self._concatenate(lambda block, t: block.terms(block.unit.log_partition, t), field)

    def _concatenate(self, function: Callable[[_Block, Tensor], Tensor], x: Tensor) -> Tensor:
        parts = [
            function(block, part)
            for block, part in zip(self._blocks, x.split(self._sizes, -1), strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*batch, -1) for part in parts], -1)


def _by_unit(block: _Block, mask: Tensor) -> Tensor:
    return mask.unflatten(-1, (block.count, block.width))


def _support(unit: Unit) -> Callable[[Tensor], Tensor]:
    return unit.support.check


def _split(unit: Unit) -> _Block:
    if _is_one_unit(unit):
        return _Block(unit, 1, unit.size, True)
    single = unit.map_whole(lambda parameter, event_dim: parameter.unsqueeze(-event_dim))
    return _Block(single, unit.num_units, unit.size // unit.num_units, False)


def _is_one_unit(unit: Unit) -> bool:
    """Whether the layer refuses to give its first unit alone."""
    if unit.num_units == 1:
        return True
    # On the host, so that choosing entries waits for no device.
    first = torch.zeros(unit.size, dtype=torch.bool)
    first[: unit.size // unit.num_units] = True
    try:
        unit.select(first)
    except ValueError:
        return True
    return False
