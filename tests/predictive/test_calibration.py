# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Scores of class probabilities against toy tables, loops and simulated calibration."""

import json
import math

import pytest
import torch
from torch import Tensor

from pyro_ebm.predictive import classification_report, reliability_table
from pyro_ebm.predictive.estimates import mean_estimate, proportion_estimate
from tests.infer.reference import Z_LIMIT, z_score


def double(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_toy_table() -> None:
    probs = double([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.5, 0.4, 0.1], [0.25, 0.25, 0.5]])
    labels = torch.tensor([0, 2, 1, 2])
    report = classification_report(probs.log(), labels, num_bins=2)
    nll = [-math.log(p) for p in (0.7, 0.6, 0.4, 0.5)]
    brier = [0.09 + 0.04 + 0.01, 0.01 + 0.09 + 0.16, 0.25 + 0.36 + 0.01, 0.0625 * 2 + 0.25]
    assert report.accuracy.value == 0.75
    assert report.negative_log_likelihood.value == pytest.approx(sum(nll) / 4, abs=1e-12)
    assert report.brier_score.value == pytest.approx(sum(brier) / 4, abs=1e-12)
    spread = torch.tensor(brier, dtype=torch.float64).std().item() / 2.0
    assert report.brier_score.std_error == pytest.approx(spread, abs=1e-12)
    assert (report.num_rows, report.num_classes) == (4, 3)
    # Bins (0, 0.5] and (0.5, 1]: confidence 0.5, 0.5 with one right, and 0.7, 0.6 with both right.
    table = report.equal_width
    assert table.count == (2, 2)
    assert [a.value for a in table.accuracy] == [0.5, 1.0]
    assert table.confidence == pytest.approx((0.5, 0.65), abs=1e-12)
    assert report.calibration_error.value == pytest.approx(0.5 * 0.0 + 0.5 * 0.35, abs=1e-12)


@pytest.mark.parametrize("binning", ["equal-width", "equal-mass"])
def test_calibration_error_against_loops(binning: str) -> None:
    confidence = torch.rand(200, dtype=torch.float64).mul(20).round().div(20)
    correct = torch.rand(200) < 0.5
    table = reliability_table(confidence, correct, num_bins=7, binning=binning)
    expected, rows = 0.0, 0
    for i, (low, high) in enumerate(zip(table.lower, table.upper, strict=True)):
        inside = [
            k for k, c in enumerate(confidence.tolist()) if low < c <= high or (low == c == 0.0)
        ]
        right = sum(bool(correct[k]) for k in inside) / len(inside)
        mean = sum(confidence[k].item() for k in inside) / len(inside)
        assert table.count[i] == len(inside)
        assert table.accuracy[i].value == pytest.approx(right, abs=1e-12)
        assert table.confidence[i] == pytest.approx(mean, abs=1e-12)
        expected += len(inside) / 200 * abs(right - mean)
        rows += len(inside)
    assert rows == 200
    assert table.error.value == pytest.approx(expected, abs=1e-12)


def test_bins_of_equal_mass() -> None:
    confidence = torch.arange(1, 101, dtype=torch.float64).sqrt() / 10
    table = reliability_table(confidence, confidence > 0.5, num_bins=5, binning="equal-mass")
    assert table.count == (20, 20, 20, 20, 20)
    tied = torch.full((30,), 0.8, dtype=torch.float64)
    table = reliability_table(tied, tied > 0.5, num_bins=5, binning="equal-mass")
    assert table.count == (30,)
    assert table.error.value == pytest.approx(0.2)


def test_noise_of_a_calibrated_classifier() -> None:
    """The error of perfect calibration is the stated noise, and that of a wrong one the gap."""
    torch.manual_seed(3)
    confidence = 0.5 + 0.5 * torch.rand(4000, dtype=torch.float64)
    errors = [
        reliability_table(confidence, torch.rand(4000, dtype=torch.float64) < confidence)
        for _ in range(600)
    ]
    found = torch.tensor([table.error.value for table in errors])
    assert abs(z_score(found, errors[0].noise)) < Z_LIMIT
    assert found.mean().item() == pytest.approx(errors[0].noise, rel=0.05)
    biased = reliability_table(confidence, torch.rand(4000) < (confidence - 0.2))
    assert abs(biased.error.value - 0.2) < Z_LIMIT * biased.error.std_error
    assert biased.error.std_error == pytest.approx(math.sqrt(0.23 / 4000), rel=0.1)


def test_standard_errors_cover() -> None:
    """Means over many data sets spread as the standard errors say."""
    torch.manual_seed(0)
    log_probs = torch.randn(500, 4, dtype=torch.float64).log_softmax(-1)
    reports = []
    for _ in range(200):
        labels = torch.multinomial(log_probs.exp(), 1).squeeze(-1)
        reports.append(classification_report(log_probs, labels))
    for name in ("accuracy", "negative_log_likelihood", "brier_score"):
        values = torch.tensor([getattr(r, name).value for r in reports])
        # The rows are the same every time, so that the spread is smaller.
        assert values.std() < 1.15 * getattr(reports[0], name).std_error
        assert values.std() > 0.4 * getattr(reports[0], name).std_error


def test_stable_and_normalised() -> None:
    logits = double([[1000.0, 0.0], [-1000.0, 5000.0], [-math.inf, 0.0]])
    report = classification_report(logits, torch.tensor([1, 1, 1]))
    assert report.negative_log_likelihood.value == pytest.approx(1000.0 / 3.0)
    shifted = classification_report(logits - 1e4, torch.tensor([1, 1, 1]))
    assert shifted.brier_score.value == report.brier_score.value
    impossible = classification_report(logits, torch.tensor([0, 1, 0]))
    assert impossible.negative_log_likelihood.value == math.inf
    assert json.loads(json.dumps(impossible.to_dict()))["negative_log_likelihood"]["value"] is None


def test_errors_of_shares() -> None:
    ours = proportion_estimate(37, 100)
    assert ours.std_error == pytest.approx(math.sqrt(0.37 * 0.63 / 100), rel=0.01)
    assert 0.0 < proportion_estimate(0, 50).std_error < 0.02
    assert proportion_estimate(50, 50).value == 1.0
    with pytest.raises(ValueError, match="successes"):
        proportion_estimate(3, 2)
    assert math.isnan(mean_estimate(torch.ones(1)).std_error)


def test_report() -> None:
    report = classification_report(torch.randn(100, 10), torch.randint(10, (100,)))
    numbers = json.loads(json.dumps(report.to_dict()))
    assert numbers["accuracy"]["value"] == float(report.accuracy)
    assert numbers["equal_width"]["error"]["value"] == report.calibration_error.value
    assert "Brier score" in str(report) and "100 rows" in str(report)
    assert len(str(report.equal_width).splitlines()) == 1 + len(report.equal_width.count)


@pytest.mark.parametrize(
    "log_probs, labels, message",
    [
        (torch.zeros(3), torch.zeros(3).long(), "log_probs must have shape"),
        (torch.zeros(3, 1), torch.zeros(3).long(), "log_probs must have shape"),
        (torch.zeros(3, 2).long(), torch.zeros(3).long(), "floating-point"),
        (torch.full((3, 2), math.nan), torch.zeros(3).long(), "NaN"),
        (torch.full((3, 2), -math.inf), torch.zeros(3).long(), "finite entry"),
        (torch.zeros(3, 2), torch.zeros(2).long(), "labels must have shape"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), "from 0 to 1, got 0 to 2"),
        (torch.zeros(3, 2), torch.tensor([0.0, 0.5, 1.0]), "whole numbers"),
    ],
)
def test_bad_input(log_probs: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_report(log_probs, labels)


def test_bad_tables() -> None:
    good = torch.rand(5)
    for arguments, options, message in (
        ((good + 1.0, good > 0.5), {}, r"confidence must be in \[0, 1\]"),
        ((good, good), {}, "correct must be boolean"),
        ((good, good > 0.5), {"num_bins": 0}, "num_bins"),
        ((good, good > 0.5), {"binning": "best"}, "binning must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            reliability_table(*arguments, **options)
