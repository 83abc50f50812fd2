# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What the commands ask of a model, shallow or deep."""

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer.mcmc.even_layers import as_rbm
from pyro_ebm.training.weights import weights_of

__all__ = [
    "MAX_UPDATES",
    "TOLERANCE",
    "Machine",
    "even_means",
    "free_energies",
    "lowest_weight",
    "two_sided",
]

#: Models that the commands take.
Machine = nn.RBM | nn.DBM

#: Of the mean field of rows.
MAX_UPDATES, TOLERANCE = 500, 1e-4
#: Rows whose mean field is found together.
_ROWS = 2000


def lowest_weight(module: Machine) -> Tensor:
    """The weights between the visible layer and the lowest hidden one, shape ``(V, H)``."""
    return weights_of(module)[0]


@torch.no_grad()
def two_sided(module: Machine) -> RBM:
    """The machine of a module; of a deep one that between its even and its odd layers: of the same log Z."""
    return as_rbm(module())


@torch.no_grad()
def free_energies(module: Machine, rows: Tensor) -> Tensor:
    """Free energies of visible states, of a deep machine their upper bounds by mean field.

    :param Tensor rows: shape ``(..., V)``.
    """
    dist: RBM | DBM = module()
    rows = rows.to(lowest_weight(module))
    if isinstance(dist, RBM):
        return dist.free_energy(rows)
    flat = rows.reshape(-1, rows.shape[-1])
    return torch.cat([-_field(dist, part)[1] for part in flat.split(_ROWS)]).reshape(
        rows.shape[:-1]
    )


@torch.no_grad()
def even_means(module: Machine, rows: Tensor) -> Tensor:
    """Means of the even layers over rows, one layer after the other: of an RBM those of the visible layer."""
    dist: RBM | DBM = module()
    if isinstance(dist, RBM):
        return rows.mean(0)
    means = [rows.mean(0)]
    parts = [_field(dist, part)[0] for part in rows.split(_ROWS)]
    for layer in range(2, dist.depth + 1, 2):
        means.append(torch.cat([part[layer - 1] for part in parts]).mean(0))
    return torch.cat(means)


def _field(dist: DBM, rows: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Means of the hidden layers by mean field, and the bound."""
    found = dist.mean_field(rows, max_updates=MAX_UPDATES, tolerance=TOLERANCE)
    return found.means, found.bound
