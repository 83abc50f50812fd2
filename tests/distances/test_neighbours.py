# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Nearest-neighbour adversarial accuracy against loops, copies and equal distributions."""

import json

import pytest
import torch
from torch import Tensor

from pyro_ebm.distances import adversarial_accuracy
from tests.infer.reference import Z_LIMIT, z_score


def by_loops(samples: Tensor, data: Tensor) -> tuple[float, float]:
    """The two terms, one row after the other; equal distances count one half."""

    def term(own: Tensor, other: Tensor) -> float:
        score = 0.0
        for i in range(len(own)):
            near_own = min((own[i] - own[j]).norm().item() for j in range(len(own)) if j != i)
            near_other = min((own[i] - row).norm().item() for row in other)
            score += 1.0 if near_other > near_own else 0.5 if near_other == near_own else 0.0
        return score / len(own)

    return term(data, samples), term(samples, data)


@pytest.mark.parametrize("kind", ["bits", "real"])
@pytest.mark.parametrize("entries", [1, 70, 10**6])
def test_against_loops(kind: str, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_ebm.distances.pooled._CHUNK_ENTRIES", entries)
    samples, data = torch.randn(12, 4).double(), torch.randn(12, 4).double()
    if kind == "bits":
        samples, data = (samples > 0).double(), (data > 0.3).double()
    ours = adversarial_accuracy(samples, data)
    assert (ours.truth, ours.synthetic) == pytest.approx(by_loops(samples, data))
    assert ours.value == pytest.approx((ours.truth + ours.synthetic) / 2)


@pytest.mark.parametrize("kind", ["bits", "real"])
def test_equal_distributions(kind: str) -> None:
    """Of 2 n - 1 other rows, n - 1 have the same label."""
    n, values = 20, []
    for _ in range(400):
        rows = torch.randn(2 * n, 5)
        # With 32 states, most nearest neighbours are at equal distances.
        rows = (rows > 0).float() if kind == "bits" else rows
        values.append(adversarial_accuracy(rows[:n], rows[n:]).value)
    expected = (n - 1) / (2 * n - 1)
    if kind == "real":
        assert abs(z_score(torch.tensor(values), expected)) < Z_LIMIT
    assert torch.tensor(values).mean().item() == pytest.approx(0.5, abs=0.05)


def test_copies_and_strangers() -> None:
    data = torch.randn(50, 6)
    copies = adversarial_accuracy(data[torch.randperm(50)], data, num_permutations=19)
    assert (copies.truth, copies.synthetic) == (0.0, 0.0)
    near = adversarial_accuracy(data + 1e-3 * torch.randn(50, 6), data)
    assert near.value == 0.0
    far = adversarial_accuracy(data + 100.0, data, num_permutations=19)
    assert (far.truth, far.synthetic) == (1.0, 1.0)
    assert copies.p_value == far.p_value == 1 / 20


def test_few_modes_are_seen_by_the_terms() -> None:
    """Samples of one mode only: they look like data, but most data have no sample near."""
    data = torch.cat([torch.randn(50, 3), torch.randn(50, 3) + 20.0])
    ours = adversarial_accuracy(torch.randn(100, 3), data)
    assert ours.truth >= 0.5 and ours.synthetic < 0.95


def test_p_values_are_uniform() -> None:
    trials, counts = 400, torch.zeros(5)
    for _ in range(trials):
        p = adversarial_accuracy(torch.randn(41, 8), torch.randn(41, 8), num_permutations=19)
        assert p.p_value is not None
        counts[min(4, int(p.p_value * 5 - 1e-9))] += 1
    # The statistic takes few values, so that p is only stochastically larger than uniform.
    shares = counts.cumsum(0) / trials
    level = torch.arange(1, 6) / 5
    margin = Z_LIMIT * (level * (1 - level) / trials).sqrt()
    assert (shares <= level + margin + 1e-6).all()
    assert counts[0] > 0


def test_larger_set_is_cut() -> None:
    g = torch.Generator().manual_seed(0)
    ours = adversarial_accuracy(torch.randn(30, 3), torch.randn(500, 3), generator=g)
    assert ours.settings["num_samples"] == 30
    assert 0.1 < ours.value < 0.9


def test_report() -> None:
    ours = adversarial_accuracy(torch.randn(30, 3), torch.randn(30, 3))
    assert json.loads(json.dumps(ours.to_dict()))["value"] == float(ours)
    assert "ideal 0.5" in str(ours) and "30 rows" in str(ours)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"data must have shape .*got \(1, 3\)"):
        adversarial_accuracy(torch.zeros(3, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"samples must have shape .*got \(3,\)"):
        adversarial_accuracy(torch.zeros(3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="same units"):
        adversarial_accuracy(torch.zeros(3, 2), torch.zeros(3, 3))
