# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The rows of a site gathered by the machine that they belong to."""

import math
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.ops.grouping import RowGroups
from pyro_ebm.ops.linear import chain_axes

__all__ = ["SiteRows", "check_key", "rows_by_key", "rows_by_parameters", "select_machines"]


@dataclass(frozen=True)
class SiteRows:
    """The values of a site, gathered by machine.

    :param RBM machine: the machines, of any batch shape.
    :param Tensor values: their rows, visible states, shape ``(count,) + machine.batch_shape + (V,)``.
    :param mask: which of them count (not masked out, no padding), boolean of shape
        ``(count,) + machine.batch_shape``; all if None.
    :param keys: the key of every machine where rows have keys; the batch shape is then ``(len(keys),)``.
    :param position: the machine of every row, shape of the site's batch; None if the machines' batch
        shape broadcasts with it already.
    :param deep: the deep machine that the site is; ``machine`` is then the one between its even and odd
        layers, while the rows are visible states.
    """

    machine: RBM
    values: Tensor
    mask: Tensor | None = None
    keys: tuple[int, ...] | None = None
    position: Tensor | None = None
    deep: DBM | None = None

    def spread(self, per_machine: Tensor) -> Tensor:
        """Numbers of the machines as numbers of the rows that belong to them.

        :param Tensor per_machine: shape ``machine.batch_shape``.
        :returns: a shape that broadcasts with the site's batch shape.
        """
        if self.position is None:
            return per_machine
        flat = per_machine.index_select(0, self.position.flatten().to(per_machine.device))
        return flat.view(self.position.shape)


def rows_by_parameters(dist: RBM, value: Tensor, mask: Tensor | None = None) -> SiteRows:
    """Axes along which the parameters do not vary (rows of a plate, say) become rows of one machine;
    the others keep their place.

    :param RBM dist: the compact machine.
    :param Tensor value: the site's value, shape ``(..., V)``.
    :param Tensor mask: which rows count, broadcastable to the site's batch shape; all if None.
    """
    batch = dist.batch_shape
    full = torch.broadcast_shapes(value.shape[:-1], batch)
    parameter, chain = chain_axes(full, batch)
    count = math.prod(full[i] for i in chain)
    rows = value.detach().expand(*full, value.shape[-1]).permute(*chain, *parameter, len(full))
    rows = rows.reshape(count, *batch, value.shape[-1]).to(dist.weight.dtype)
    if mask is not None:
        mask = _fitting(mask, full)
    if mask is not None:
        mask = mask.permute(*chain, *parameter).reshape(count, *batch).to(rows.device)
    return SiteRows(dist, rows, mask)


def rows_by_key(
    dist: RBM, value: Tensor, key: Tensor, batch_shape: Size, mask: Tensor | None = None
) -> SiteRows:
    """Rows of one key belong to one machine, that of the key's first row.

    :param RBM dist: the compact machine.
    :param Tensor value: the site's value, shape ``(..., V)``.
    :param Tensor key: whole numbers >= 0, broadcastable to the site's batch shape.
    :param batch_shape: the site's batch shape as far as it is known.
    :param Tensor mask: which rows count, broadcastable to the site's batch shape; all if None.
    :raises ValueError: if the shape of the key does not fit.
    """
    full = torch.broadcast_shapes(value.shape[:-1], dist.batch_shape, batch_shape)
    _check_key_shape(key, dist, full)
    groups = RowGroups(key.expand(full).flatten())
    number = torch.arange(full.numel(), device=key.device)
    machine = select_machines(dist, full, groups.pack(number)[0])
    rows = value.detach().expand(*full, value.shape[-1]).flatten(0, -2)
    rows = groups.pack(rows.to(dist.weight.dtype))
    counts = groups.mask().to(rows.device)
    if mask is not None:
        mask = _fitting(mask, full)
    if mask is not None:
        counts = counts & groups.pack(mask.flatten().to(rows.device))
    keys = tuple(groups.present.tolist())
    return SiteRows(machine, rows, counts, keys, groups.position.view(full))


def select_machines(dist: RBM, shape: Size, index: Tensor) -> RBM:
    """Some machines of a batch, as a machine of batch shape ``(len(index),)``.

    Parameters that all share stay without a batch shape.

    :param RBM dist: the machine.
    :param shape: a shape that its batch shape broadcasts to.
    :param Tensor index: numbers of elements in row-major order of ``shape``, shape ``(n,)``.
    """
    coordinates = torch.unravel_index(index, shape)

    def select(tensor: Tensor, event_dim: int) -> Tensor:
        axes = max(0, tensor.dim() - event_dim)
        batch, event = tensor.shape[:axes], tensor.shape[axes:]
        if math.prod(batch) == 1:
            return tensor.reshape(event)
        number = torch.zeros_like(index)
        for size, coordinate in zip(batch, coordinates[len(shape) - axes :], strict=True):
            number = number * size + (coordinate if size != 1 else 0)
        # Not of the expanded tensor, whose gradient would have all of its rows.
        return tensor.reshape(-1, *event).index_select(0, number.to(tensor.device))

    def optional(tensor: Tensor | None, event_dim: int) -> Tensor | None:
        return None if tensor is None else select(tensor, event_dim)

    new = RBM(
        dist.visible.map_whole(select),
        dist.hidden.map_whole(select),
        select(dist.weight, 2),
        visible_offset=optional(dist._visible_offset, 1),
        hidden_offset=optional(dist._hidden_offset, 1),
        num_gibbs_steps=dist.num_gibbs_steps,
        validate_args=False,
    )
    new._constant = optional(dist._constant, 0)
    new._batch_shape = Size((len(index),))
    return new


def check_key(site: str, key: object) -> Tensor:
    """The key of a site's chains.

    :raises ValueError: if it is no tensor of whole numbers >= 0.
    """
    if not isinstance(key, Tensor):
        raise ValueError(
            f"site {site!r}: chain_key must be a tensor of whole numbers, got {type(key).__name__}"
        )
    if key.is_floating_point() or key.is_complex() or key.dtype == torch.bool:
        raise ValueError(
            f"site {site!r}: chain_key must be a tensor of whole numbers, got {key.dtype}"
        )
    if key.numel() == 0 or bool((key < 0).any()):
        got = f"{int(key.min())}" if key.numel() else f"an empty one of shape {tuple(key.shape)}"
        raise ValueError(f"site {site!r}: chain_key must hold numbers >= 0, got {got}")
    return key.detach().long()


def _check_key_shape(key: Tensor, dist: RBM, full: Size) -> None:
    try:
        fits = torch.broadcast_shapes(key.shape, full) == full
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"chain_key of shape {tuple(key.shape)} does not broadcast to the batch shape "
            f"{tuple(full)} of its site"
        )
    if torch.broadcast_shapes(key.shape, dist.batch_shape).numel() != key.numel():
        raise ValueError(
            f"chain_key of shape {tuple(key.shape)} gives one key to several machines: the "
            f"parameters have batch shape {tuple(dist.batch_shape)}"
        )


def _fitting(mask: Tensor, full: Size) -> Tensor | None:
    """A mask of the rows; None for one of an enumeration, which has more axes than they."""
    try:
        return mask.expand(full)
    except RuntimeError:
        return None
