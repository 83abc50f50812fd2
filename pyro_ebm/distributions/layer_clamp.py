# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A deep machine with some of its units fixed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Size, Tensor

from pyro_ebm.distributions.units import Unit
from pyro_ebm.ops.linear import apply_weight

if TYPE_CHECKING:
    from pyro_ebm.distributions.dbm import DBM

__all__ = ["clamp_layers"]


@dataclass
class _Layer:
    """One layer while units are being fixed.

    :param Unit free: what is left of it; None if nothing is.
    :param Unit chosen: the units that are fixed; None if none is.
    :param Tensor fixed: their values.
    :param Tensor mask: which entries are fixed; None if all of them or none are.
    """

    free: Unit | None
    chosen: Unit | None = None
    fixed: Tensor | None = None
    mask: Tensor | None = None

    def free_part(self, x: Tensor, dim: int = -1) -> Tensor:
        """The entries of a tensor that belong to free units."""
        if self.mask is None:
            return x if self.chosen is None else x.narrow(dim, 0, 0)
        return _entries(x, ~self.mask, dim)

    def fixed_part(self, x: Tensor, dim: int = -1) -> Tensor:
        """The entries of a tensor that belong to fixed units."""
        if self.mask is None:
            return x.narrow(dim, 0, 0) if self.chosen is None else x
        return _entries(x, self.mask, dim)


def _entries(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    return x[..., mask] if dim == -1 else x[..., mask, :]


def clamp_layers(
    dbm: "DBM",
    mask: Tensor | Mapping[int, Tensor | None],
    value: Tensor | Mapping[int, Tensor],
) -> "DBM":
    """See :meth:`pyro_ebm.distributions.DBM.clamp`; the mask None is that of all units of a layer."""
    masks, values = _by_layer("mask", mask), _by_layer("value", value)
    if set(masks) != set(values):
        raise ValueError(
            f"mask and value must be of the same layers, got {list(masks)} and {list(values)}"
        )
    unknown = [number for number in masks if number not in range(dbm.depth + 1)]
    if unknown:
        raise ValueError(f"the layers are 0 to {dbm.depth}, got masks of {unknown}")
    layers = [_Layer(unit) for unit in dbm.units]
    for number in sorted(masks):
        layers[number] = _layer(dbm, number, masks[number], values[number])
    batch = _broadcast(dbm.batch_shape, *(x.shape[:-1] for x in values.values()))
    for number in range(1, dbm.depth):
        if layers[number].free is None:
            raise ValueError(
                f"mask clamps all units of layer {number}: what is left is two machines, of the layers "
                "below and above it"
            )
    constant = dbm._constant
    for number in sorted(masks):
        if layers[number].chosen is not None:
            own = _absorb(dbm, layers, number)
            constant = own if constant is None else constant + own
    kept = [(number, layer) for number, layer in enumerate(layers) if layer.free is not None]
    if len(kept) < 2:
        raise ValueError(
            "mask leaves less than two layers; of one layer given its neighbour, see layer_given()"
        )
    units = [layer.free for _, layer in kept if layer.free is not None]
    weights = [
        layer.free_part(layers[number + 1].free_part(dbm.weights[number]), -2)
        for number, layer in kept[:-1]
    ]
    offsets = None
    if dbm._offsets is not None:
        offsets = [layer.free_part(dbm._offsets[number]) for number, layer in kept]
    new = dbm._like(units, weights, offsets, constant)
    # As with one layer, also where the machine was expanded or nothing is fixed.
    new._batch_shape = batch
    return new


def _broadcast(*shapes: Size) -> Size:
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError as error:
        raise ValueError(
            f"batch shapes of the machine and of values do not broadcast: {list(map(tuple, shapes))}"
        ) from error


def _by_layer(name: str, given: Any) -> dict[int, Any]:
    """A tensor of the visible layer, or one for each of several layers."""
    if isinstance(given, Tensor):
        return {0: given}
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{name} must be a tensor or a dictionary of tensors by layer, got {type(given).__name__}"
        )
    return dict(given)


def _layer(dbm: "DBM", number: int, mask: Tensor | None, value: Tensor) -> _Layer:
    """A layer of which units are fixed."""
    unit, like = dbm.units[number], dbm.weights[0]
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (unit.size,):
            raise ValueError(
                f"mask of layer {number} must be boolean of shape ({unit.size},), got {_shown(mask)}"
            )
        mask = mask.to(like.device)
    if not isinstance(value, Tensor) or value.shape[-1:] != (unit.size,):
        raise ValueError(
            f"value of layer {number} must have shape (..., {unit.size}), got {_shown(value)}"
        )
    if mask is not None and not bool(mask.any()):
        return _Layer(unit)
    whole = mask is None or bool(mask.all())
    if whole:
        layer = _Layer(None, unit, value.to(like))
    else:
        assert mask is not None
        layer = _Layer(unit.select(~mask), unit.select(mask), value.to(like)[..., mask], mask)
    _check_values(dbm, number, layer)
    return layer


def _shown(x: Any) -> str:
    """What was given, for a message."""
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)


def _check_values(dbm: "DBM", number: int, layer: _Layer) -> None:
    if not dbm._validate_args or layer.chosen is None or layer.fixed is None:
        return
    if bool(torch.isnan(layer.fixed).any()):
        raise ValueError(f"value of layer {number} is NaN at a clamped unit")
    support = layer.chosen.support
    if not bool(support.check(layer.fixed).all()):
        raise ValueError(f"value of layer {number} is outside of {support} at a clamped unit")


def _absorb(dbm: "DBM", layers: list[_Layer], number: int) -> Tensor:
    """Put the fields of a layer's fixed units into the layers beside it; gives the energy that does not
    depend on free units. The coupling of two fixed units belongs to the lower one."""
    own = layers[number]
    assert own.chosen is not None and own.fixed is not None
    total = own.chosen.energy(own.fixed)
    centred = own.fixed
    if dbm._offsets is not None:
        centred = centred - own.fixed_part(dbm._offsets[number])
    for other in (number - 1, number + 1):
        if not 0 <= other <= dbm.depth:
            continue
        beside = layers[other]
        weight = dbm.weights[number] if other > number else dbm.weights[other].mT
        field = apply_weight(centred, own.fixed_part(weight, -2))
        if beside.free is not None:
            part = beside.free_part(field)
            beside.free, tilt_constant = beside.free.tilt(part)
            total = total + tilt_constant
            if dbm._offsets is not None:
                total = total + (part * beside.free_part(dbm._offsets[other])).sum(-1)
        if beside.fixed is not None and other > number:
            value = beside.fixed
            if dbm._offsets is not None:
                value = value - beside.fixed_part(dbm._offsets[other])
            total = total - (beside.fixed_part(field) * value).sum(-1)
    return total
