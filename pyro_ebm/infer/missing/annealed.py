# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log-densities of observed entries, up to log Z, by annealed importance sampling."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.observed_rows import ObservedRows
from pyro_ebm.distributions.reduction import reduced_machine
from pyro_ebm.distributions.row_clamp import clamp_rows
from pyro_ebm.distributions.units import Gaussian
from pyro_ebm.infer.log_partition.ais import estimate_log_partition
from pyro_ebm.infer.log_partition.estimate import LogPartitionEstimate, LogPartitionWarning
from pyro_ebm.infer.missing.row_chunks import split_rows

__all__ = ["Annealed", "annealed_log_density", "annealed_log_partition"]

#: Entries of the weights that the clamped rows of one chunk have: 128 MiB in float32.
_CHUNK_ENTRIES = 2**25


class Annealed(NamedTuple):
    """What annealing gives for every row."""

    value: Tensor
    std_error: Tensor
    settings: dict[str, Any]
    flags: tuple[str, ...]


def annealed_log_density(dist: RBM, rows: ObservedRows, options: dict[str, Any]) -> Annealed:
    r"""``log sum exp(-E)`` over hidden and missing units, of every row, too low in expectation.

    Every row has chains of its own, of the hidden units of the machine clamped to it, with the missing
    entries summed out. They start from what the observed entries say about the hidden layer: measured
    on machines of 100 x 14 bits and spins, the standard error is half of that of visible chains where
    30 % are observed, and an eighth where 95 % are.

    :param RBM dist: the machine.
    :param ObservedRows rows: the rows, of the machine's dtype.
    :param dict options: of :func:`~pyro_ebm.infer.estimate_log_partition`; chunk i of the rows has the
        seed ``seed + i``.
    """
    machine = dist.compact().detach()
    shape = torch.broadcast_shapes(rows.value.shape[:-1], machine.batch_shape)
    max_rows = _CHUNK_ENTRIES // machine.weight.shape[-2:].numel()
    options = dict(options)
    seed = options.pop("seed", None)
    estimates = [
        _estimate(
            _hidden_side(clamp_rows(machine, chunk)),
            options,
            None if seed is None else seed + number,
        )
        for number, chunk in enumerate(split_rows(machine, rows, shape, max_rows))
    ]
    value, error = (
        torch.cat([getattr(e, name) for e in estimates]).reshape(shape)
        for name in ("value", "std_error")
    )
    # A row that misses nothing needs no chains.
    whole = rows.units.all(-1)
    exact = -machine.to(dtype=torch.float64).free_energy(rows.value)
    return Annealed(
        torch.where(whole, exact, value).expand(rows.batch_shape),
        torch.where(whole, 0.0, error).expand(rows.batch_shape),
        {**estimates[0].settings, "seed": seed},
        _flags(estimates),
    )


def annealed_log_partition(dist: RBM, options: dict[str, Any]) -> LogPartitionEstimate:
    """log Z of the machine by the same method, too low in expectation."""
    options = dict(options)
    machine = dist.detach()
    side = _hidden_side(machine) if isinstance(machine.visible, Gaussian) else machine
    return _estimate(side, options, options.pop("seed", None))


def _hidden_side(machine: RBM) -> RBM:
    if isinstance(machine.visible, Gaussian):
        return reduced_machine(machine)
    return machine.transpose()


def _estimate(machine: RBM, options: dict[str, Any], seed: int | None) -> LogPartitionEstimate:
    with warnings.catch_warnings():  # one warning for all chunks, by the caller
        warnings.simplefilter("ignore", LogPartitionWarning)
        return estimate_log_partition(machine, "ais", seed=seed, **options)


def _flags(estimates: Sequence[LogPartitionEstimate]) -> tuple[str, ...]:
    """What the chunks find suspicious, every text once."""
    return tuple(dict.fromkeys(flag for estimate in estimates for flag in estimate.flags))
