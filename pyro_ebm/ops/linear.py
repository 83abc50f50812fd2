# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Products of many rows with a weight that may carry a batch shape of its own."""

import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor

__all__ = ["RowLayout", "affine", "apply_weight", "chain_axes"]


def chain_axes(full: Sequence[int], batch: Sequence[int]) -> tuple[list[int], list[int]]:
    """Split the axes of a shape into those along which parameters vary and the rest (chains).

    :param full: a shape that ``batch`` broadcasts to.
    :param batch: the batch shape of the parameters.
    :returns: ``(parameter_axes, chain_axes)``, indices into ``full``.
    """
    aligned = (1,) * (len(full) - len(batch)) + tuple(batch)
    parameter = [i for i, size in enumerate(aligned) if size != 1]
    chain = [i for i, size in enumerate(aligned) if size == 1]
    return parameter, chain


class RowLayout:
    """Rows ordered by the batch element of the parameters that they belong to.

    :param full: shape of the rows, which ``batch`` broadcasts to.
    :param batch: the batch shape of the parameters.
    """

    def __init__(self, full: Sequence[int], batch: Sequence[int]) -> None:
        parameter, chain = chain_axes(full, batch)
        order = parameter + chain
        self._full = Size(full)
        self._order = order
        self._inverse = sorted(range(len(order)), key=order.__getitem__)
        #: Number of batch elements along which the parameters vary.
        self.num_batch = math.prod(full[i] for i in parameter)
        #: Number of rows that share parameters.
        self.num_chain = math.prod(full[i] for i in chain)

    def pack(self, x: Tensor, event_dim: int = 1) -> Tensor:
        """Rows as ``(num_batch, num_chain) + event``.

        :param Tensor x: shape ``(..., *event)``, which broadcasts with the full shape.
        :param int event_dim: number of trailing axes that belong to a row.
        """
        event = x.shape[x.dim() - event_dim :]
        dims = len(self._full)
        axes = (*self._order, *range(dims, dims + event_dim))
        rows = x.expand(*self._full, *event).permute(axes)
        return rows.reshape(self.num_batch, self.num_chain, *event)

    def unpack(self, rows: Tensor) -> Tensor:
        """The inverse of :meth:`pack` for events of one axis."""
        ordered = rows.reshape(*(self._full[i] for i in self._order), rows.shape[-1])
        return ordered.permute(*self._inverse, len(self._full))


def apply_weight(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply every row of ``x`` with the weight of its batch element.

    All rows that share a weight are gathered into one matrix product, so that a thousand chains
    of a batched model cost one ``bmm`` and not a thousand matrix-vector products.

    :param Tensor x: shape ``(..., n)``.
    :param Tensor weight: shape ``batch_shape + (n, m)``.
    :returns: shape ``broadcast(x.shape[:-1], batch_shape) + (m,)``.
    """
    if weight.dim() == 2:
        return x @ weight
    batch = weight.shape[:-2]
    layout = RowLayout(torch.broadcast_shapes(x.shape[:-1], batch), batch)
    weights = weight.reshape(layout.num_batch, *weight.shape[-2:])
    return layout.unpack(torch.bmm(layout.pack(x), weights))


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x W + b`` for every row of ``x``, in one fused product where parameters have no batch shape.

    :param Tensor x: shape ``(..., n)``.
    :param Tensor weight: shape ``batch_shape + (n, m)``.
    :param Tensor bias: shape ``batch_shape + (m,)``.
    """
    if weight.dim() == 2 and bias.dim() == 1:
        rows = torch.addmm(bias, x.reshape(-1, weight.shape[0]), weight)
        return rows.reshape(*x.shape[:-1], weight.shape[1])
    return apply_weight(x, weight) + bias
