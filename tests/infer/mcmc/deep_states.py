# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Moments of layers of deep machines by brute force over all of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_ebm.distributions import DBM
from tests import deep_machines
from tests.deep_machines import Fixed


def layer_moments(dbm: DBM, layers: Sequence[int], fixed: Fixed | None = None) -> Tensor:
    """Expectations of ``tests.infer.reference.features`` of some layers, one after the other."""
    states, p = deep_machines.joint(deep_machines.to_deep(dbm), fixed)
    p = p.sum(tuple(number for number in range(len(states)) if number not in layers))
    index = np.indices(p.shape).reshape(len(layers), -1)
    x = np.concatenate([states[n][i] for n, i in zip(layers, index, strict=True)], 1)
    i, j = np.triu_indices(x.shape[1])
    weighted = x * p.reshape(-1, 1)
    return torch.as_tensor(np.concatenate([weighted.sum(0), (weighted.T @ x)[i, j]]))


def even_moments(dbm: DBM) -> Tensor:
    """Those of all even layers, which the state of a kernel consists of."""
    return layer_moments(dbm, range(0, dbm.depth + 1, 2))


def visible_law(dbm: DBM) -> tuple[Tensor, Tensor]:
    """All visible states of a discrete layer and their unnormalised log-probabilities log p*(v)."""
    v = dbm.units[0].states(0, dbm.units[0].num_states or 0)
    log_p = deep_machines.log_p_star(deep_machines.to_deep(dbm), v.numpy()).real
    return v, torch.as_tensor(log_p)
