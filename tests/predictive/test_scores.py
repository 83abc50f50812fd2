# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Scores from samples against loops."""

import math

import pytest
import torch

from pyro_ebm.predictive import crps_from_samples, energy_score


@pytest.mark.parametrize("fair", [True, False])
def test_crps_against_loops(fair: bool) -> None:
    samples, y = torch.randn(7, 4).double() + 1e6, torch.randn(4).double() + 1e6
    for i, ours in enumerate(crps_from_samples(samples, y, fair=fair).tolist()):
        x = samples[:, i].tolist()
        pairs = sum(abs(a - b) for a in x for b in x) / (7 * 6 if fair else 49)
        expected = sum(abs(a - y[i].item()) for a in x) / 7 - pairs / 2
        assert ours == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("fair", [True, False])
@pytest.mark.parametrize("entries", [1, 20, 2**22])
def test_energy_score_against_loops(
    fair: bool, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_ebm.predictive.scores._CHUNK_ENTRIES", entries)
    samples, y = torch.randn(6, 2, 5, 3).double(), torch.randn(2, 5, 3).double()
    ours = energy_score(samples, y, fair=fair)
    assert ours.shape == (2, 5)
    for i in range(2):
        for j in range(5):
            x = samples[:, i, j]
            pairs = sum((a - b).norm().item() for a in x for b in x) / (6 * 5 if fair else 36)
            expected = sum((a - y[i, j]).norm().item() for a in x) / 6 - pairs / 2
            assert ours[i, j].item() == pytest.approx(expected, abs=1e-12)


def test_one_dimension_is_crps() -> None:
    samples, y = torch.randn(50, 8), torch.randn(8)
    vectors = energy_score(samples.unsqueeze(-1), y.unsqueeze(-1))
    torch.testing.assert_close(vectors, crps_from_samples(samples, y), rtol=1e-10, atol=1e-10)


def test_near_draws_keep_their_distance() -> None:
    """Draws that are near each other far from the origin: products would lose all digits."""
    samples = 1e4 + 1e-5 * torch.randn(40, 3, dtype=torch.float64)
    shift = torch.full((3,), 1e4, dtype=torch.float64)
    ours = energy_score(samples, shift)
    assert ours.item() == pytest.approx(energy_score(samples - shift, 0 * shift).item(), rel=1e-6)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"samples must have shape \(draws >= 2"):
        crps_from_samples(torch.zeros(1, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="samples must have shape"):
        energy_score(torch.zeros(4, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="y must be finite"):
        crps_from_samples(torch.zeros(4, 3), torch.full((3,), math.nan))
    with pytest.raises(ValueError, match="samples must be finite"):
        energy_score(torch.full((4, 3), math.inf), torch.zeros(3))
    assert crps_from_samples(torch.zeros(1, 3), torch.ones(3), fair=False).tolist() == [1.0] * 3
