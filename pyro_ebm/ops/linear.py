# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Products of many rows with a weight that may carry a batch shape of its own."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["affine", "apply_weight", "chain_axes"]


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
    full = torch.broadcast_shapes(x.shape[:-1], batch)
    parameter, chain = chain_axes(full, batch)
    order = parameter + chain
    num_batch = math.prod(full[i] for i in parameter)
    num_chain = math.prod(full[i] for i in chain)
    n, m = weight.shape[-2:]
    rows = x.expand(*full, n).permute(*order, len(full)).reshape(num_batch, num_chain, n)
    out = torch.bmm(rows, weight.reshape(num_batch, n, m))
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return out.reshape(*(full[i] for i in order), m).permute(*inverse, len(full))


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
