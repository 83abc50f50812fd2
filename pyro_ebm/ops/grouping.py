# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Rows gathered by the group that they belong to, padded to a rectangle."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GroupBlock", "RowGroups", "group_blocks"]


#: A rectangle of groups by rows has at most this many places for every row,
_MAX_PADDING = 4
#: unless it is no larger than this.
_SMALL_RECTANGLE = 4096


@dataclass(frozen=True)
class GroupBlock:
    """Some groups and all rows that belong to them.

    :param Tensor groups: numbers of the groups, shape ``(G,)``.
    :param Tensor rows: numbers of the rows, shape ``(n,)``.
    :param Tensor position: for every row the place of its group in ``groups``, shape ``(n,)``.
    """

    groups: Tensor
    rows: Tensor
    position: Tensor


def group_blocks(
    index: Tensor,
    max_groups: int | None = None,
    *,
    max_padding: float = _MAX_PADDING,
    small: int | None = None,
) -> Iterator[GroupBlock]:
    """Divide rows into blocks that fit well into a rectangle of groups by rows.

    Groups with about as many rows each are put together, so that padding the rows of every group to the
    same number costs little.

    :param Tensor index: the number of every row's group, shape ``(rows,)``.
    :param int max_groups: groups of a block at most; any number if None.
    :param float max_padding: places for every row at most,
    :param int small: unless the rectangle has no more places than this; 4096 if None.
    """
    small = _SMALL_RECTANGLE if small is None else small
    counts = torch.bincount(index)
    order = torch.argsort(counts, descending=True, stable=True)
    order = order[counts[order] > 0]
    rank = torch.empty_like(counts)
    rank[order] = torch.arange(len(order), device=index.device)
    row_rank = rank[index]
    rows = torch.argsort(row_rank, stable=True)
    sizes = counts[order].tolist()
    start = first_row = 0
    while start < len(sizes):
        stop, num_rows = start, 0
        while stop < len(sizes) and (max_groups is None or stop - start < max_groups):
            rectangle = sizes[start] * (stop + 1 - start)
            if rectangle > max(max_padding * (num_rows + sizes[stop]), small):
                break
            num_rows += sizes[stop]
            stop += 1
        part = rows[first_row : first_row + num_rows]
        yield GroupBlock(order[start:stop], part, row_rank[part] - start)
        start, first_row = stop, first_row + num_rows


class RowGroups:
    """The plan of a padded rectangle ``(depth, groups)`` that holds the rows of every group.

    Rows of one context share the parameters of one machine; gathered, they cost one matrix product
    a context instead of a matrix-vector product a row. Everything is planned on the device of
    ``index``: with an index on the CPU and rows on another device, :meth:`to` sends the plan there and
    nothing waits for that device.

    :param Tensor index: group of every row, whole numbers >= 0, shape ``(rows,)``, at least one row.
    :param int num_groups: keep a place for all groups ``0 .. num_groups - 1``, also for those without
        rows; only for those with rows if None.
    :raises ValueError: if the index is no such vector.

    >>> import torch
    >>> groups = RowGroups(torch.tensor([2, 0, 2]))
    >>> groups.present, groups.counts
    (tensor([0, 2]), tensor([1, 2]))
    >>> groups.pack(torch.tensor([[1.0], [2.0], [3.0]])).squeeze(-1)
    tensor([[2., 1.],
            [0., 3.]])
    """

    def __init__(self, index: Tensor, num_groups: int | None = None) -> None:
        if index.dim() != 1 or len(index) == 0 or index.dtype.is_floating_point:
            raise ValueError(
                "index must be a vector of at least one whole number, got "
                f"{index.dtype} of shape {tuple(index.shape)}"
            )
        if bool((index < 0).any()) or (num_groups is not None and int(index.max()) >= num_groups):
            limit = "" if num_groups is None else f" and below num_groups={num_groups}"
            raise ValueError(f"index must be >= 0{limit}")
        if num_groups is None:
            present, position = torch.unique(index, return_inverse=True)
        else:
            present, position = torch.arange(num_groups, device=index.device), index
        #: The groups that have a place, increasing, and the place of every row's group.
        self.present, self.position = present, position
        #: Rows of every group that has a place.
        self.counts = torch.bincount(self.position, minlength=len(self.present))
        self.depth = int(self.counts.max())
        order = torch.argsort(self.position, stable=True)
        first = self.counts.cumsum(0) - self.counts
        rank = torch.arange(len(index), device=index.device) - first[self.position[order]]
        #: Place of every row in the flattened rectangle.
        self.slot = torch.empty_like(order)
        self.slot[order] = rank * len(self.present) + self.position[order]

    def to(self, device: torch.device) -> "RowGroups":
        """The same plan on another device; the host does not wait for the transfer."""
        new = copy.copy(self)
        for name in ("present", "position", "counts", "slot"):
            setattr(new, name, getattr(self, name).to(device, non_blocking=True))
        return new

    @property
    def num_groups(self) -> int:
        """Number of groups that have a place."""
        return len(self.present)

    def pack(self, rows: Tensor) -> Tensor:
        """Rows as ``(depth, groups, ...)``, zeros where a group has no more rows.

        :param Tensor rows: shape ``(rows, ...)``.
        """
        flat = rows.new_zeros(self.depth * self.num_groups, *rows.shape[1:])
        flat[self.slot.to(rows.device)] = rows
        return flat.unflatten(0, (self.depth, self.num_groups))

    def unpack(self, rectangle: Tensor) -> Tensor:
        """The inverse of :meth:`pack`.

        :param Tensor rectangle: shape ``(depth, groups, ...)``.
        """
        return rectangle.flatten(0, 1)[self.slot.to(rectangle.device)]

    def mask(self) -> Tensor:
        """Which places of the rectangle hold a row, boolean of shape ``(depth, groups)``."""
        depth = torch.arange(self.depth, device=self.counts.device)
        return depth.unsqueeze(-1) < self.counts
