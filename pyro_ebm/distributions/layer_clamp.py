# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A deep machine with some of its units fixed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_ebm.distributions.units import Unit
from pyro_ebm.ops.linear import apply_weight

if TYPE_CHECKING:
    from pyro_ebm.distributions.dbm import DBM

__all__ = ["clamp_layers"]


@dataclass
class _Layer:
    """One layer while units are being fixed: what is left of it, and which entries that is."""

    unit: Unit | None
    free: Tensor
    offset: Tensor | None
    fixed: Tensor | None = None


def clamp_layers(
    dbm: "DBM", mask: Tensor | Mapping[int, Tensor], value: Tensor | Mapping[int, Tensor]
) -> "DBM":
    """See :meth:`pyro_ebm.distributions.DBM.clamp`."""
    masks = {0: mask} if isinstance(mask, Tensor) else dict(mask)
    values = {0: value} if isinstance(value, Tensor) else dict(value)
    if set(masks) != set(values):
        raise ValueError(
            f"mask and value must be of the same layers, got {sorted(masks)} and {sorted(values)}"
        )
    layers = [_layer(dbm, number, masks.get(number), values) for number in range(dbm.depth + 1)]
    for number in range(1, dbm.depth):
        if layers[number].unit is None:
            raise ValueError(
                f"mask clamps all units of layer {number}: what is left is two machines, of the layers "
                "below and above it"
            )
    constant = dbm._constant
    for number, layer in enumerate(layers):
        if layer.fixed is not None:
            constant = _absorb(dbm, layers, number, layer.fixed, constant)
    kept = [number for number, layer in enumerate(layers) if layer.unit is not None]
    if len(kept) < 2:
        raise ValueError(
            "mask leaves less than two layers; of one layer given its neighbour, see layer_given()"
        )
    units = [layers[number].unit for number in kept]
    weights = [
        dbm.weights[lower][..., layers[lower].free, :][..., :, layers[lower + 1].free]
        for lower in kept[:-1]
    ]
    offsets = None if dbm._offsets is None else [layers[n].offset for n in kept]
    return dbm._like(units, weights, offsets, constant)  # type: ignore[arg-type]


def _layer(
    dbm: "DBM", number: int, mask: Tensor | None, values: Mapping[int, Tensor]
) -> _Layer:
    """A layer, and its fixed entries' values."""
    unit = dbm.units[number]
    offset = None if dbm._offsets is None else dbm._offsets[number]
    device = dbm.weights[0].device
    if mask is None:
        return _Layer(unit, torch.ones(unit.size, dtype=torch.bool, device=device), offset)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (unit.size,):
        got = (mask.dtype, tuple(mask.shape)) if isinstance(mask, Tensor) else mask
        raise ValueError(f"mask of layer {number} must be boolean of shape ({unit.size},), got {got}")
    mask = mask.to(device)
    if not bool(mask.any()):
        return _Layer(unit, ~mask, offset)
    value = values[number]
    if value.shape[-1:] != (unit.size,):
        raise ValueError(
            f"value of layer {number} must have shape (..., {unit.size}), got {tuple(value.shape)}"
        )
    fixed = value.to(dbm.weights[0])[..., mask]
    if bool(torch.isnan(fixed).any()):
        raise ValueError(f"value of layer {number} is NaN at a clamped unit")
    chosen = unit.select(mask)
    if dbm._validate_args and not bool(chosen.support.check(fixed).all()):
        raise ValueError(
            f"value of layer {number} is outside of {chosen.support} at a clamped unit"
        )
    rest = None if bool(mask.all()) else unit.select(~mask)
    free_offset = None if offset is None else offset[..., ~mask]
    return _Layer(rest, ~mask, free_offset, fixed)


def _absorb(
    dbm: "DBM", layers: list[_Layer], number: int, fixed: Tensor, constant: Tensor | None
) -> Tensor:
    """Put the fields of a layer's fixed units into the layers beside it; gives the new constant.

    The coupling of two fixed units belongs to the lower one.
    """
    mask = ~layers[number].free
    centred = fixed
    if dbm._offsets is not None:
        centred = fixed - dbm._offsets[number][..., mask]
    total = dbm.units[number].select(mask).energy(fixed)
    for other in (number - 1, number + 1):
        if not 0 <= other <= dbm.depth:
            continue
        weight = dbm.weights[number] if other > number else dbm.weights[other].mT
        field = apply_weight(centred, weight[..., mask, :])
        beside = layers[other]
        if dbm._offsets is not None:
            # (x - o) of the free units; of the fixed ones below.
            part = field[..., beside.free] * dbm._offsets[other][..., beside.free]
            total = total + part.sum(-1)
        if beside.fixed is not None and other > number:
            centred_other = beside.fixed
            if dbm._offsets is not None:
                centred_other = centred_other - dbm._offsets[other][..., ~beside.free]
            total = total - (field[..., ~beside.free] * centred_other).sum(-1)
        if beside.unit is not None:
            beside.unit, tilt_constant = beside.unit.tilt(field[..., beside.free])
            total = total + tilt_constant
    return total if constant is None else constant + total
