# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Exact log-densities of observed entries, up to log Z, where they can be had."""

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.observed_rows import ObservedRows
from pyro_ebm.distributions.row_clamp import clamp_rows
from pyro_ebm.infer.log_partition.exact import exact_log_partition
from pyro_ebm.infer.missing.hidden_posterior import HiddenPosterior
from pyro_ebm.infer.missing.row_chunks import split_rows

__all__ = ["enumerable", "exact_log_density"]

#: Entries of the joint precision matrices of two Gaussian layers of one chunk: 128 MiB in float64.
_CHUNK_ENTRIES = 2**24


def exact_log_density(
    dist: RBM, rows: ObservedRows, max_states: int
) -> tuple[Tensor, str] | tuple[None, str]:
    r"""``log sum exp(-E)`` over hidden and missing units, of every row, differentiable.

    In this order: the hidden layer is enumerated for all rows at once; the clamped machine is summed
    (a small visible layer, or two Gaussian ones); the missing units of one mask after the other are
    enumerated.

    :param RBM dist: the machine, in float64.
    :param ObservedRows rows: the rows, in float64.
    :param int max_states: enumerate no more states than this.
    :returns: the sums, shape ``rows.batch_shape``, and the method; None and the reason if there is no way.
    """
    hidden = dist.hidden.num_states
    if hidden is not None and hidden <= max_states:
        total = HiddenPosterior(dist, rows).log_partition()
        return total.expand(rows.batch_shape), "enumeration of the hidden layer"
    if enumerable(dist, max_states):
        return _clamped(dist.compact(), rows, max_states).expand(rows.batch_shape), "enumeration"
    if dist.parameter_batch_shape.numel() != 1:
        return None, "the hidden layer is too large, and rows with parameters of their own"
    return _by_mask(dist, rows, max_states)


def enumerable(dist: RBM, max_states: int) -> bool:
    """Whether log Z is a sum of at most that many terms, or a Gaussian integral."""
    if dist.visible.is_gaussian and dist.hidden.is_gaussian:
        return True
    numbers = [n for n in (dist.visible.num_states, dist.hidden.num_states) if n is not None]
    return bool(numbers) and min(numbers) <= max_states


def _clamped(machine: RBM, rows: ObservedRows, max_states: int) -> Tensor:
    """Every row by the machine clamped to it, some rows at a time."""
    shape = torch.broadcast_shapes(rows.value.shape[:-1], machine.batch_shape)
    max_rows = _CHUNK_ENTRIES // sum(machine.weight.shape[-2:]) ** 2
    parts = [
        exact_log_partition(clamp_rows(machine, chunk), max_states=max_states)
        for chunk in split_rows(machine, rows, shape, max_rows)
    ]
    return torch.cat(parts).reshape(shape)


def _by_mask(
    dist: RBM, rows: ObservedRows, max_states: int
) -> tuple[Tensor, str] | tuple[None, str]:
    """Rows gathered by their masks: every mask leaves a smaller machine, that of the missing units."""
    size = dist.visible.size
    shape = torch.broadcast_shapes(rows.value.shape[:-1], dist.parameter_batch_shape)
    value = rows.value.expand(*shape, size).reshape(-1, size)
    observed = rows.observed.expand(*shape, size).reshape(-1, size)
    masks, group = torch.unique(observed, dim=0, return_inverse=True)
    most = 0
    for mask in masks[~masks.all(-1)]:
        states = dist.visible.select(~mask).num_states
        if states is None or states > max_states:
            return (
                None,
                f"both layers and the missing units of some row have over {max_states} states",
            )
        most = max(most, states)
    machine = dist.compact()
    machine._validate_args = False
    parts, order = [], []
    for number, mask in enumerate(masks):
        index = (group == number).nonzero().squeeze(-1)
        order.append(index)
        if bool(mask.all()):
            parts.append(-machine.free_energy(value[index]).reshape(-1))
        else:
            lifted = value[index].reshape(-1, *(1,) * len(machine.batch_shape), size)
            clamped = machine.clamp(mask, lifted)
            parts.append(exact_log_partition(clamped, max_states=max_states).reshape(-1))
    total = torch.cat(parts)[torch.argsort(torch.cat(order))]
    return total.reshape(shape).expand(rows.batch_shape), "enumeration by mask"
