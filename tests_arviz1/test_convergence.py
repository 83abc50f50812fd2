# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""R-hat, effective sample sizes and errors by ArviZ 1.x: the same numbers as by 0.x."""

import math
from dataclasses import astuple
from types import ModuleType

import numpy as np
import pytest


@pytest.mark.parametrize("name", ["real", "bits", "apart", "single"])
def test_numbers(convergence: ModuleType, reference_chains: ModuleType, name: str) -> None:
    row = convergence.convergence_of(reference_chains.chains()[name])
    assert astuple(row) == pytest.approx(reference_chains.EXPECTED[name], rel=2e-5)


def test_modes(convergence: ModuleType) -> None:
    x = np.random.default_rng(2).normal(size=(8, 400))
    assert not convergence.convergence_of(x).sits_in_modes
    x[:4] += 10.0
    assert convergence.convergence_of(x).sits_in_modes


@pytest.mark.filterwarnings("error")
def test_degenerate_chains_do_not_warn(convergence: ModuleType) -> None:
    constant = convergence.convergence_of(np.ones((3, 10)))
    assert constant.is_constant and math.isnan(constant.r_hat)
    stuck = convergence.convergence_of(np.repeat([[0.0], [0.0], [1.0]], 10, 1))
    assert stuck.r_hat == math.inf
    some = np.random.default_rng(0).normal(size=(4, 50))
    some[0] = 0.0
    assert math.isfinite(convergence.convergence_of(some).r_hat)
