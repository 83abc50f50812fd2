# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The weight between the even and the odd layers of a deep machine."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from pyro_ebm.ops.shapes import broadcast_shapes

__all__ = ["block_weight"]


def block_weight(weights: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """The weights of neighbouring layers as one, with zeros between layers that are no neighbours.

    :param weights: those between layers l - 1 and l, shapes ``(..., size of l - 1, size of l)``.
    :param Tensor out: what receives it, zero outside of the blocks; without a gradient, and for weights
        without a batch shape. A loop saves the allocation of megabytes at every step.
    :returns: shape ``(..., sum of the even sizes, sum of the odd ones)``.
    """
    sizes = [weights[0].shape[-2], *(weight.shape[-1] for weight in weights)]
    if out is not None:
        return _copied(weights, sizes, out)
    batch = broadcast_shapes([weight.shape[:-2] for weight in weights])

    def block(row: int, column: int) -> Tensor:
        if column == row + 1:
            return weights[row].expand(*batch, sizes[row], sizes[column])
        if column == row - 1:
            # Turned by itself: torch.cat takes twice as long for it.
            turned = weights[column].mT.contiguous()
            return turned.expand(*batch, sizes[row], sizes[column])
        return weights[0].new_zeros(()).expand(*batch, sizes[row], sizes[column])

    odd = range(1, len(sizes), 2)
    rows = [
        torch.cat([block(row, column) for column in odd], -1) for row in range(0, len(sizes), 2)
    ]
    return torch.cat(rows, -2) if len(rows) > 1 else rows[0]


@torch.no_grad()
def _copied(weights: Sequence[Tensor], sizes: Sequence[int], out: Tensor) -> Tensor:
    """The blocks written into their places."""
    # Where a layer begins on its side.
    even, odd = ([0, *accumulate(sizes[side::2])] for side in (0, 1))
    for number, weight in enumerate(weights):
        place = weight if number % 2 == 0 else weight.mT
        row, column = (even[(number + 1) // 2], odd[number // 2])
        out[row : row + place.shape[0], column : column + place.shape[1]].copy_(place)
    return out
