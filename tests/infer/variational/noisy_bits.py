# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""A model of noisy bits with a machine as their prior, with exact answers, and estimates of log Z that are
made up."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.infer import LogPartitionEstimate, exact_log_partition
from tests.distributions.families import random_rbm

SCALE = 0.8
CLOSE: Any = {"rtol": 1e-9, "atol": 1e-9}
Program = Callable[..., Any]


def bits(scale: float = 1.0) -> RBM:
    return random_rbm(("bernoulli", "bernoulli"), offsets=True, scale=scale)


def field(x: Tensor) -> Tensor:
    """What the likelihood of :func:`program` adds to the field of bits."""
    return (2.0 * x - 1.0) / (2.0 * SCALE**2)


def program(machine: RBM, x: Tensor) -> tuple[Program, Program]:
    """Noisy bits of a machine, and the guide that is their posterior, by enumeration."""
    posterior = machine.tilt(field(x))
    posterior = posterior.normalize(exact_log_partition(posterior))

    def model() -> None:
        with pyro.plate("rows", len(x)):
            v = pyro.sample("v", machine)
            pyro.sample("x", dist.Normal(v, SCALE).to_event(1), obs=x)

    def guide() -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("v", posterior)

    return model, guide


def fair(x: Tensor) -> Program:
    """A guide that knows nothing."""

    def guide() -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("v", dist.Bernoulli(torch.full_like(x, 0.5)).to_event(1))

    return guide


def evidence(machine: RBM, x: Tensor) -> Tensor:
    """log p(x) of every row, by a sum over all states."""
    states = machine.visible.states(0, 8).unsqueeze(1)
    log_p = machine.log_prob(states) - exact_log_partition(machine)
    return (log_p + dist.Normal(states, SCALE).to_event(1).log_prob(x)).logsumexp(0)


def some_rows(number: int = 4) -> Tensor:
    return torch.randn(number, 3, dtype=torch.float64)


def estimate(
    value: Any, error: Any, side: str | None = None, **options: Any
) -> LogPartitionEstimate:
    settings = {"method": "made up"}
    return LogPartitionEstimate.from_error(
        value, error, settings, ess=None, side=side, warn=False, **options
    )


def observing(machine: Any, x: Tensor) -> Program:
    def model() -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("v", machine, obs=x)

    return model
