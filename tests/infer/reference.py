# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""References and statistical tests that the tests of inference share."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests import brute_force
from tests.brute_force import Machine

#: Two-sided 1e-6 of a standard normal is 4.9; one test makes up to some hundred comparisons.
Z_LIMIT = 6.0


def log_partition(machine: Machine, keep_complex: bool = False) -> Any:
    """log Z from the definition: a sum or quadrature over both layers."""
    v, v_weights = brute_force.points(machine.visible)
    total = brute_force.log_sum(-brute_force.free_energy(machine, v), v_weights)
    return complex(total) if keep_complex else float(total.real)


def z_score(draws: Tensor, expected: float) -> float:
    """Standard errors between the mean of independent draws and its expected value."""
    error = draws.double().std() / math.sqrt(draws.numel())
    return float((draws.double().mean() - expected) / error)


def z_scores(draws: Tensor, expected: Tensor) -> Tensor:
    """The same for every column of ``draws`` (shape ``(n, features)``)."""
    draws = draws.double()
    error = draws.std(0) / math.sqrt(len(draws))
    # A feature that does not vary (a sum of counts) must be right to rounding.
    return (draws.mean(0) - expected) / error.clamp(min=1e-9)


def features(v: Tensor) -> Tensor:
    """All first and second powers of the units, shape ``(n, V + V (V + 1) / 2)``."""
    i, j = torch.triu_indices(v.shape[-1], v.shape[-1])
    return torch.cat([v, v[..., i] * v[..., j]], -1)


def exact_features(machine: Machine) -> Tensor:
    """Expectations of :func:`features` under the machine, from the definition."""
    v, weights = brute_force.points(machine.visible)
    exponent = -brute_force.free_energy(machine, v).real
    p = weights * np.exp(exponent - exponent.max())
    return torch.as_tensor(p / p.sum()) @ features(torch.as_tensor(v))


def binomial_tail(successes: int, trials: int, rate: float) -> float:
    """P(X <= successes), small where there are too few."""
    terms = (
        math.comb(trials, k) * rate**k * (1.0 - rate) ** (trials - k) for k in range(successes + 1)
    )
    return math.fsum(terms)
