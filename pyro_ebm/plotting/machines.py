# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What pictures of a machine are given, checked once."""

from typing import Any

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM

__all__ = ["as_machine", "check_rows"]


def as_machine(machine: Any) -> RBM:
    """The distribution: the argument, or what it makes if it is a module.

    :raises TypeError: for anything else.
    :raises ValueError: for a batch of machines.
    """
    dist = machine() if isinstance(machine, torch.nn.Module) else machine
    if not isinstance(dist, RBM):
        raise TypeError(
            f"machine must be a pyro_ebm.distributions.RBM or a pyro_ebm.nn.RBM, got "
            f"{type(machine).__name__}"
        )
    if dist.batch_shape:
        raise ValueError(
            f"machine must be one machine, got a batch of shape {tuple(dist.batch_shape)}"
        )
    return dist


def check_rows(dist: RBM, name: str, rows: Any) -> Tensor:
    """Rows in the dtype and on the device of the machine; leading axes are flattened.

    :raises TypeError: if they are no tensor.
    :raises ValueError: for a wrong shape, or NaN.
    """
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(rows).__name__}")
    size = dist.event_shape[0]
    if rows.dim() < 2 or rows.shape[-1] != size or rows.numel() == 0:
        raise ValueError(f"{name} must have shape (rows >= 1, {size}), got {tuple(rows.shape)}")
    rows = rows.detach().to(dist.weight).flatten(0, -2)
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{name} holds NaN or infinite values")
    return rows
