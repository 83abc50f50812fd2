# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Calibration of continuous predictions: uniform for the truth, and not for wrong models."""

import json
import math

import pytest
import torch

from pyro_ebm.predictive import GaussianMixture, coverage, pit_report
from pyro_ebm.predictive.pit import kolmogorov_p_value
from tests.infer.reference import Z_LIMIT, z_score

LEVELS = (0.3, 0.5, 0.9, 0.99)


def truth(rows: int = 4000) -> GaussianMixture:
    means = torch.randn(3, rows, dtype=torch.float64) * 2.0
    return GaussianMixture(means, torch.tensor(0.4).double(), torch.tensor([[0.2], [0.5], [0.3]]))


def test_uniform_for_the_truth() -> None:
    model = truth()
    y = model.sample()
    pit = model.cdf(y)
    assert abs(z_score(pit, 0.5)) < Z_LIMIT
    assert abs(z_score((pit - 0.5).square(), 1 / 12)) < Z_LIMIT
    report = pit_report(pit)
    assert report.p_value > 1e-6
    for count in report.counts:
        assert abs(count - 400) < Z_LIMIT * math.sqrt(4000 * 0.1 * 0.9)
    covered = coverage(model, y, LEVELS)
    for level, share in zip(LEVELS, covered.coverage, strict=True):
        assert abs(share.value - level) < Z_LIMIT * math.sqrt(level * (1 - level) / 4000)


def test_wrong_models_are_found() -> None:
    model = truth()
    y = model.sample()
    wide = GaussianMixture.normal(model.mean, 2.0 * model.variance.sqrt())
    narrow = GaussianMixture.normal(model.mean, 0.5 * model.variance.sqrt())
    shifted = GaussianMixture(model.means + 0.5, model.stds, model.weights)
    reports = [pit_report(wrong.cdf(y)) for wrong in (wide, narrow, shifted)]
    assert all(report.p_value < 1e-6 for report in reports)
    assert reports[0].variance < 1 / 12 < reports[1].variance
    assert reports[0].counts[0] < 400 < reports[1].counts[0]
    # The model is too large, so that observations fall into its lower part.
    assert reports[2].mean.value < 0.5 - Z_LIMIT * reports[2].mean.std_error
    assert coverage(narrow, y).coverage[2].value < 0.9 - 0.1
    assert coverage(wide, y).coverage[1].value > 0.8 + 0.1
    assert model.crps(y).mean() < min(m.crps(y).mean() for m in (wide, narrow, shifted))


def test_widths_and_counts() -> None:
    normal = GaussianMixture.normal(torch.zeros(4).double(), torch.tensor(2.0).double())
    y = torch.tensor([0.0, 1.0, -3.0, 30.0])
    report = coverage(normal, y, [0.5, 0.95])
    assert report.width == pytest.approx((2 * 2 * 0.674489750196, 2 * 2 * 1.959963984540), abs=1e-9)
    assert [share.value for share in report.coverage] == [0.5, 0.75]
    assert json.loads(json.dumps(report.to_dict()))["num_values"] == 4
    assert "0.95" in str(report) and "4 values" in str(report)


def test_kolmogorov_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    u = torch.rand(500, dtype=torch.float64)
    report = pit_report(u)
    reference = stats.kstest(u.numpy(), "uniform")
    assert report.ks_statistic == pytest.approx(reference.statistic, abs=1e-12)
    assert report.p_value == pytest.approx(reference.pvalue, abs=0.011)
    for n in (5, 20, 1000):
        for x in (0.3, 0.6, 1.0, 1.5, 2.5):
            d = x / math.sqrt(n)
            if d < 1.0:
                exact = stats.kstwo.sf(d, n)
                assert kolmogorov_p_value(d, n) == pytest.approx(exact, abs=0.02)
                assert exact > 0.05 or kolmogorov_p_value(d, n) == pytest.approx(exact, abs=0.003)


def test_report() -> None:
    report = pit_report(torch.tensor([0.0, 1.0, 0.5, 0.25]), num_bins=4)
    assert report.counts == (1, 1, 1, 1)
    assert json.loads(json.dumps(report.to_dict()))["ks_statistic"] == report.ks_statistic == 0.25
    assert "4 values" in str(report)


def test_bad_input() -> None:
    for bad in (torch.tensor([0.5]), torch.tensor([0.5, 1.5]), torch.tensor([0.5, math.nan])):
        with pytest.raises(ValueError, match="pit must be at least two values"):
            pit_report(bad)
    with pytest.raises(ValueError, match="num_bins"):
        pit_report(torch.rand(5), num_bins=0)
    normal = GaussianMixture.normal(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="levels must be between 0 and 1"):
        coverage(normal, torch.zeros(3), [1.0])
    with pytest.raises(ValueError, match="y must have values other than NaN"):
        coverage(normal, torch.full((3,), math.nan))
