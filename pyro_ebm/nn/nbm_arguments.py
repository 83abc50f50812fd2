# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Checks of the arguments of neural Boltzmann machines."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.nn.unit_parameters import is_whole
from pyro_ebm.nn.weight_maps import WEIGHT_MAPS

__all__ = ["check_rows", "check_sizes", "check_weight"]


def check_sizes(
    sizes: Mapping[str, Any],
    hidden_sizes: Any,
    trunk_sizes: Any,
    trunk: Any,
    num_features: Any,
) -> None:
    """Check the numbers of entries and the layers of the networks.

    :raises ValueError: if one is impossible.
    """
    for name, size in sizes.items():
        if not is_whole(size):
            raise ValueError(f"{name} must be a whole number >= 1, got {size!r}")
    for name, layers in (("hidden_sizes", hidden_sizes), ("trunk_sizes", trunk_sizes)):
        if not isinstance(layers, Sequence) or not all(map(is_whole, layers)):
            raise ValueError(f"{name} must be a list of whole numbers >= 1, got {layers!r}")
    if trunk is None:
        if num_features is not None:
            raise ValueError("num_features is an option of a given trunk")
    elif trunk_sizes:
        raise ValueError("give trunk or trunk_sizes, not both")
    elif not is_whole(num_features):
        raise ValueError(f"trunk needs num_features, a whole number >= 1, got {num_features!r}")


def check_weight(weight: Any, options: Mapping[str, Any]) -> None:
    """Check the way in which the weight depends on the context.

    :raises ValueError: if there is no such way, or it has no such options.
    """
    if weight not in WEIGHT_MAPS:
        raise ValueError(f"weight must be one of {sorted(WEIGHT_MAPS)}, got {weight!r}")
    known = WEIGHT_MAPS[weight][1]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"unknown options {unknown} of weight={weight!r}; known: {sorted(known)}")
    for name, value in options.items():
        if not is_whole(value):
            raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")


def check_rows(name: str, rows: Any, size: int) -> None:
    """Refuse what is no table of finite rows.

    :raises TypeError: if it is no tensor.
    :raises ValueError: if the shape is not ``(rows, size)`` with at least one row, or a number is not
        finite.
    """
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(rows).__name__}")
    if rows.dim() != 2 or rows.shape[1] != size or len(rows) == 0:
        raise ValueError(f"{name} must have shape (rows >= 1, {size}), got {tuple(rows.shape)}")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{name} holds NaN or infinite values")
