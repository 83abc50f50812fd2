# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Shapes of tensors."""

from collections.abc import Sequence

import torch
from torch import Size

__all__ = ["broadcast_shapes"]


def broadcast_shapes(shapes: Sequence[Size]) -> Size:
    """As :func:`torch.broadcast_shapes`, which takes a hundred times as long where all are the same.

    Machines are made anew at every training step.

    :param shapes: at least one shape.
    :raises RuntimeError: if they do not broadcast.
    """
    first = shapes[0]
    if all(shape == first for shape in shapes):
        return Size(first)
    return torch.broadcast_shapes(*shapes)
