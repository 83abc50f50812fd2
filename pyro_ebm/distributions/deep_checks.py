# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Checks of the layers, weights and offsets of a deep machine."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pyro_ebm.distributions.units import Unit

__all__ = ["check_layers", "check_numbers"]


def check_layers(
    units: Sequence[Unit], weights: Sequence[Tensor], offsets: Sequence[Tensor] | None
) -> None:
    """Refuse what does not make a machine.

    :raises TypeError: if a layer is no unit or a weight no tensor.
    :raises ValueError: if numbers, shapes or dtypes do not fit.
    """
    for number, unit in enumerate(units):
        if not isinstance(unit, Unit):
            raise TypeError(
                f"units[{number}] must be a pyro_ebm.distributions.units.Unit, got "
                f"{type(unit).__name__}"
            )
    if len(units) < 2:
        raise ValueError(f"units must be a visible and at least one hidden layer, got {len(units)}")
    if len(weights) != len(units) - 1:
        raise ValueError(f"{len(units)} layers need {len(units) - 1} weights, got {len(weights)}")
    sizes = [unit.size for unit in units]
    for number, (weight, expected) in enumerate(zip(weights, pairwise(sizes), strict=True)):
        if not isinstance(weight, Tensor):
            raise TypeError(f"weights[{number}] must be a tensor, got {type(weight).__name__}")
        if tuple(weight.shape[-2:]) != expected:
            raise ValueError(
                f"weights[{number}] must have shape (..., {expected[0]}, {expected[1]}), got "
                f"{tuple(weight.shape)}"
            )
    if offsets is not None:
        _check_offsets(offsets, sizes)
    dtypes = [unit.dtype for unit in units] + [weight.dtype for weight in weights]
    dtypes += [offset.dtype for offset in offsets or ()]
    if any(dtype != dtypes[0] for dtype in dtypes):
        names = sorted({str(dtype) for dtype in dtypes})
        raise ValueError(f"units, weights and offsets must have one dtype, got {names}")


def _check_offsets(offsets: Sequence[Tensor], sizes: Sequence[int]) -> None:
    if len(offsets) != len(sizes):
        raise ValueError(f"offsets must be {len(sizes)} vectors, got {len(offsets)}")
    for number, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        if not isinstance(offset, Tensor) or offset.shape[-1:] != (size,):
            got = tuple(offset.shape) if isinstance(offset, Tensor) else offset
            raise ValueError(f"offsets[{number}] must have shape (..., {size}), got {got}")


def check_numbers(weights: Sequence[Tensor], offsets: Sequence[Tensor] | None) -> None:
    """Refuse NaN in weights and offsets; units have checked their own parameters.

    :raises ValueError: if there is one.
    """
    for name, tensors in {"weights": weights, "offsets": offsets or ()}.items():
        for number, tensor in enumerate(tensors):
            if bool(torch.isnan(tensor).any()):
                raise ValueError(f"{name}[{number}] must be real, got NaN")
