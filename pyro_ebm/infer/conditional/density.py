# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Free energies of rows, each under the machine of its own context."""

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.infer.conditional.contexts import (
    ConditionalModel,
    condition,
    evaluating,
)
from pyro_ebm.ops.grouping import RowGroups, group_blocks

__all__ = ["check_data", "contexts_per_chunk", "grouped_free_energy", "log_densities"]

#: Entries of the weights of one chunk of contexts: 128 MiB in float64.
_WEIGHT_ENTRIES = 2**24
#: Entries of the states and fields of one chunk of rows: 4 MiB in float64.
_ROW_ENTRIES = 2**19


def contexts_per_chunk(dist: RBM, chunk_contexts: int | None, rows: int = 0) -> int:
    """Contexts whose machines are in memory at the same time.

    :param RBM dist: the machine of one of them, or of some.
    :param int chunk_contexts: what the user wants; what fits into bounded memory if None.
    :param int rows: states that each context has beside its machine, such as chains.
    :raises ValueError: if the user wants less than one.
    """
    if chunk_contexts is not None:
        if chunk_contexts < 1:
            raise ValueError(f"chunk_contexts must be at least 1, got {chunk_contexts}")
        return chunk_contexts
    num_visible, num_hidden = dist.weight.shape[-2:]
    entries = num_visible * num_hidden + rows * (num_visible + num_hidden)
    return max(1, _WEIGHT_ENTRIES // entries)


def check_data(dist: RBM, data: Tensor, num_rows: int | None = None) -> None:
    """Refuse what is no table of visible states.

    :raises TypeError: if it is no tensor.
    :raises ValueError: if the shape is not ``(rows, V)``, or a value is not finite or outside of the
        support.
    """
    if not isinstance(data, Tensor):
        raise TypeError(f"data must be a tensor, got {type(data).__name__}")
    rows = "rows" if num_rows is None else num_rows
    num_visible = dist.event_shape[0]
    wrong = data.dim() != 2 or data.shape[-1] != num_visible
    if wrong or (num_rows is not None and len(data) != num_rows):
        raise ValueError(
            f"data must have shape ({rows}, {num_visible}), got {tuple(data.shape)}"
            + ("" if num_rows is None else ": as many rows as context")
        )
    valid = dist.support.check(data) & torch.isfinite(data).all(-1)
    if not bool(valid.all()):
        bad = int((~valid).sum())
        raise ValueError(f"data has {bad} of {len(data)} rows that are not finite {dist.support}")


def grouped_free_energy(dist: RBM, data: Tensor, position: Tensor) -> Tensor:
    """Free energy of every row under its own machine of a batch, one product a machine.

    :param RBM dist: machines, batch shape ``(C,)``; each must have a row.
    :param Tensor data: shape ``(rows, V)``.
    :param Tensor position: the number of every row's machine, shape ``(rows,)``.
    """
    groups = RowGroups(position)
    packed = groups.pack(data.to(dist.weight))
    width = groups.num_groups * sum(dist.weight.shape[-2:])
    slabs = packed.split(max(1, _ROW_ENTRIES // width))
    return groups.unpack(torch.cat([dist.free_energy(slab) for slab in slabs]))


def log_densities(
    model: ConditionalModel,
    data: Tensor,
    contexts: Tensor,
    index: Tensor,
    chunk_contexts: int | None = None,
) -> Tensor:
    """Unnormalised log-probability :math:`-F(y | x)` of every row, float64, without gradients.

    :param model: anything with a method ``condition``.
    :param Tensor data: shape ``(rows, V)``.
    :param Tensor contexts: shape ``(U, n_x)``.
    :param Tensor index: the number of every row's context, shape ``(rows,)``.
    :param int chunk_contexts: contexts whose machines are in memory at the same time.
    """
    result = torch.empty(len(index), dtype=torch.float64, device=index.device)
    with evaluating(model):
        first = condition(model, contexts[:1])
        check_data(first, data, len(index))
        for block in group_blocks(index, contexts_per_chunk(first, chunk_contexts)):
            dist = condition(model, contexts[block.groups]).to(torch.float64)
            rows = data[block.rows.to(data.device)]
            energy = grouped_free_energy(dist, rows, block.position)
            result[block.rows] = -energy.to(result.device)
    return result
