# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""A latent machine with real data, and its ELBO by a sum over states."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer import (
    ContrastiveDivergence,
    exact_log_partition,
)

ROWS, SCALE = 3, 0.8
CLOSE: Any = {"rtol": 1e-9, "atol": 1e-9}


def data(size: int = 2) -> Tensor:
    return torch.randn(ROWS, size, dtype=torch.float64)


def loading(machine: RBM | DBM, size: int = 2) -> Tensor:
    return torch.randn(machine.event_shape[0], size, dtype=torch.float64)


def model_of(machine: RBM | DBM, x: Tensor, weights: Tensor) -> Callable[[], None]:
    """A latent machine in a plate and real data that depend on its states."""

    def model() -> None:
        with pyro.plate("rows", ROWS):
            v = pyro.sample("v", machine)
            pyro.sample("x", dist.Normal(v @ weights, SCALE).to_event(1), obs=x)

    return model


def states_of(machine: RBM | DBM) -> Tensor:
    unit = machine.units[0] if isinstance(machine, DBM) else machine.visible
    assert unit.num_states is not None
    return unit.states(0, unit.num_states)


def log_joint(machine: RBM | DBM, x: Tensor, weights: Tensor) -> Tensor:
    """Log-density of every state with every row, shape ``(states, rows)``; log Z by enumeration."""
    states = states_of(machine)
    likelihood = dist.Normal((states @ weights).unsqueeze(1), SCALE).to_event(1).log_prob(x)
    log_p = machine.normalize(exact_log_partition(machine)).log_prob(states)
    return log_p.unsqueeze(1) + likelihood


def exact_elbo(joint: Tensor, log_q: Tensor) -> Tensor:
    """Of every row, from tables of shape ``(states, rows)``."""
    return (log_q.exp() * (joint - log_q)).sum(0)


def enumerating_loss(machine: RBM | DBM) -> ContrastiveDivergence:
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    return ContrastiveDivergence(elbo=elbo, log_partition=exact_log_partition)
