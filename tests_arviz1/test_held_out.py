# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Comparison of held-out log-likelihoods by ArviZ 1.x: against sums, and a grid of weights."""

import math
from types import ModuleType

import numpy as np
import pytest


def test_table(held_out: ModuleType) -> None:
    rng = np.random.default_rng(0)
    a, b = -900.0 + rng.normal(size=300), -899.8 + 1.5 * rng.normal(size=300)
    table = held_out.arviz_compare({"a": a, "b": b})
    best, other = (a, b) if a.sum() > b.sum() else (b, a)
    assert list(table["elpd"]) == pytest.approx([best.sum(), other.sum()])
    assert list(table["elpd_diff"]) == pytest.approx([0.0, (other - best).sum()])
    assert table["dse"].iloc[1] == pytest.approx(math.sqrt(300 * (other - best).var()))
    grid = np.linspace(0.0, 1.0, 2001)[:, None]
    score = np.log(grid * np.exp(a + 900.0) + (1 - grid) * np.exp(b + 900.0)).sum(1)
    assert table.loc["a", "weight"] == pytest.approx(float(grid[score.argmax(), 0]), abs=2e-3)


@pytest.mark.parametrize("method", ["stacking", "bb-pseudo-bma", "pseudo-bma"])
def test_methods(held_out: ModuleType, method: str) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=100)
    table = held_out.arviz_compare({"good": rows, "bad": rows - 0.1}, method)
    assert table.index[0] == "good" and table["weight"].sum() == pytest.approx(1.0)
    assert table.loc["good", "weight"] > 0.9
