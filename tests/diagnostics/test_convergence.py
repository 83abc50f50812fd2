# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""R-hat, effective sample sizes and Monte Carlo errors against formulas and closed forms."""

import json
import math
from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from pyro_ebm.diagnostics import Convergence, convergence_of
from tests.diagnostics.reference_chains import EXPECTED, chains


def rank_normalised(x: np.ndarray) -> np.ndarray:
    ranks = stats.rankdata(x).reshape(x.shape)
    return stats.norm.ppf((ranks - 3 / 8) / (x.size + 1 / 4))


def r_hat_by_the_paper(x: np.ndarray) -> float:
    """The larger one of the bulk and the folded rank-normalised split R-hat (Vehtari et al., 2021)."""

    def plain(z: np.ndarray) -> float:
        within = z.var(1, ddof=1).mean()
        between = z.mean(1).var(ddof=1)
        n = z.shape[1]
        return math.sqrt(((n - 1) / n * within + between) / within)

    half = x.shape[1] // 2
    split = np.concatenate([x[:, :half], x[:, -half:]])
    folded = np.abs(split - np.median(split))
    return max(plain(rank_normalised(split)), plain(rank_normalised(folded)))


@pytest.mark.parametrize("name", ["real", "bits", "apart"])
def test_r_hat(name: str) -> None:
    x = chains()[name]
    assert convergence_of(x).r_hat == pytest.approx(r_hat_by_the_paper(x), abs=1e-9)


def test_single_chain_is_two_halves() -> None:
    x = chains()["single"]
    halves = np.stack([x[0, :150], x[0, 150:]])
    assert convergence_of(x).r_hat == pytest.approx(r_hat_by_the_paper(halves), abs=1e-9)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_numbers(name: str) -> None:
    assert astuple(convergence_of(chains()[name])) == pytest.approx(EXPECTED[name], rel=2e-5)


def test_effective_sample_size_of_autoregressive_chains() -> None:
    """It is N (1 - rho) / (1 + rho)."""
    rho, n = 0.6, 20_000
    generator = np.random.default_rng(1)
    x = np.empty((4, n))
    x[:, 0] = generator.normal(size=4)
    for t in range(1, n):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * generator.normal(size=4)
    ours = convergence_of(x)
    expected = 4 * n * (1 - rho) / (1 + rho)
    assert ours.ess_bulk == pytest.approx(expected, rel=0.1)
    assert ours.mcse == pytest.approx(1.0 / math.sqrt(expected), rel=0.1)
    assert ours.r_hat < 1.01


def test_modes() -> None:
    """Chains that are fine one by one, and chains that drift."""
    noise = np.random.default_rng(2).normal(size=(8, 400))
    modes, drift = noise.copy(), noise.cumsum(1)
    modes[:4] += 10.0
    assert convergence_of(modes).sits_in_modes
    assert not convergence_of(noise).sits_in_modes
    assert convergence_of(drift).r_hat > 1.1 and not convergence_of(drift).sits_in_modes
    # One chain of 64 elsewhere is lost in R-hat, half of them are not.
    many = np.random.default_rng(3).normal(size=(64, 100))
    many[:32] += 10.0
    assert convergence_of(many).sits_in_modes


class TestDegenerate:
    def test_constant(self) -> None:
        ours = convergence_of(np.ones((3, 10)))
        assert ours.is_constant and ours.mean == 1.0 and ours.mcse == 0.0
        assert math.isnan(ours.r_hat) and math.isnan(ours.ess_bulk)
        assert not ours.sits_in_modes

    def test_constant_within_every_chain(self) -> None:
        x = np.repeat([[0.0], [0.0], [1.0]], 10, 1)
        ours = convergence_of(x)
        assert ours.r_hat == math.inf and ours.sits_in_modes

    def test_not_finite(self) -> None:
        x = np.zeros((2, 10))
        x[0, 3] = math.nan
        assert math.isnan(convergence_of(x).r_hat)

    def test_some_chains_constant(self) -> None:
        x = np.random.default_rng(0).normal(size=(4, 50))
        x[0] = 0.0
        assert math.isfinite(convergence_of(x).r_hat)

    @pytest.mark.parametrize("shape", [(), (10,), (2, 7), (2, 10, 1), (0, 10)], ids=str)
    def test_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"shape \(chains, draws >= 8\), got"):
            convergence_of(np.zeros(shape))

    def test_json(self) -> None:
        text = json.dumps(convergence_of(np.ones((3, 10))).to_dict(), allow_nan=False)
        assert json.loads(text)["r_hat"] is None
        row = Convergence(1.0, 1.0, 0.1, math.inf, 2.0, 3.0, 1.0)
        assert row.to_dict()["r_hat"] is None and row.to_dict()["ess_tail"] == 3.0
