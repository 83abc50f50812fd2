# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The hidden layers of a deep machine given rows of data, and their mean field, some rows at a time."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM, MeanFieldWarning

__all__ = ["RowPosteriors", "mean_field_bounds", "rows_of_chunk"]

#: Entries of all layers that the mean fields of one chunk of rows have: 32 MiB in float64, of which the
#: solver keeps about ten copies.
_CHUNK_ENTRIES = 2**22


@dataclass(frozen=True)
class RowPosteriors:
    r"""Posteriors of some rows as one machine, and the mean field q of each.

    :param RBM machine: :math:`p(x_1, \dots, x_L | v)` of batch shape ``(rows,)``: the odd layers are its
        visible one, the even ones from 2 its hidden one, and log Z is :math:`\log p^*(v)`.
    :param Tensor bound: the mean-field bound of that log Z, shape ``(rows,)``.
    :param Tensor theta: natural parameters of q of the odd layers, shape ``(rows, size)``.
    :param Tensor hidden_theta: those of the even hidden layers.
    """

    machine: RBM
    bound: Tensor
    theta: Tensor
    hidden_theta: Tensor

    @classmethod
    def chunks(cls, dbm: DBM, rows: Tensor, max_rows: int) -> Iterator["RowPosteriors"]:
        """Some rows after the other, and in the end one warning for all whose mean field still moves.

        :param DBM dbm: a machine of at least two hidden layers without a batch shape.
        :param Tensor rows: shape ``(rows, V)``, of the machine's dtype.
        :param int max_rows: rows of a chunk.
        """
        moving, residual = 0, 0.0
        for chunk in rows.split(max_rows):
            found = dbm.mean_field(chunk, max_updates=dbm.max_mean_field_updates)
            if not bool(found.converged.all()):
                moving += int((~found.converged).sum())
                residual = max(residual, found.residual.max().item())
            machine = dbm.posterior(chunk).bipartite()
            yield cls(
                machine,
                found.bound,
                torch.cat(found.thetas[0::2], -1),
                torch.cat(found.thetas[1::2], -1),
            )
        if moving:
            warnings.warn(
                f"mean field: {moving} of {len(rows)} rows still move by up to {residual:.2g} after "
                f"{dbm.max_mean_field_updates} updates; their bound holds, but is not the best",
                MeanFieldWarning,
                stacklevel=4,
            )


def rows_of_chunk(dbm: DBM, copies: int = 1) -> int:
    """Rows whose states of all layers, ``copies`` of each, are of bounded size."""
    return max(1, _CHUNK_ENTRIES // (copies * sum(dbm.sizes)))


def mean_field_bounds(dbm: DBM, rows: Tensor) -> Tensor:
    """The mean-field bound of the unnormalised log-probability of rows, shape ``(rows,)``.

    :param DBM dbm: the machine, of any depth, in float64.
    :param Tensor rows: shape ``(rows, V)``.
    """
    if dbm.depth == 1:
        return -dbm.free_energy(rows)
    chunks = RowPosteriors.chunks(dbm, rows, rows_of_chunk(dbm))
    bounds = [chunk.bound for chunk in chunks]
    return torch.cat(bounds) if bounds else rows.new_zeros(0)
