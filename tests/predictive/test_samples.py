# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Samples by class: good ones, copies, collapsed ones and those of a wrong class."""

import json
import math

import pytest
import torch
from torch import Tensor

from pyro_ebm.distances import energy_distance, maximum_mean_discrepancy
from pyro_ebm.predictive import rows_by_class, sample_report
from pyro_ebm.predictive.class_quality import copy_share, nearest_distances
from tests.infer.reference import Z_LIMIT

CLASSES = (0, 1)


def real(rows: int) -> dict[int, Tensor]:
    """Two classes that are 3 apart along the first of 4 axes."""
    shift = torch.tensor([3.0, 0.0, 0.0, 0.0])
    return {k: torch.randn(rows, 4) + k * shift for k in CLASSES}


def classify(rows: Tensor) -> Tensor:
    return (rows[:, 0] > 1.5).long()


@pytest.mark.parametrize("entries", [1, 50, 2**22])
def test_nearest_distances_against_loops(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_ebm.predictive.class_quality._CHUNK_ENTRIES", entries)
    x, y = torch.randn(9, 3).double(), torch.randn(7, 3).double()
    own, other = nearest_distances(x, y)
    for i in range(9):
        near = min((x[i] - x[j]).norm().item() for j in range(9) if j != i)
        assert own[i].item() == pytest.approx(near, abs=1e-9)
        assert other[i].item() == pytest.approx(min((x[i] - r).norm().item() for r in y), abs=1e-9)


def test_good_samples() -> None:
    samples, train, test = real(400), real(600), real(400)
    report = sample_report(samples, train, test, classifier=classify, num_permutations=19)
    assert report.accuracy is not None and report.accuracy_real is not None
    # P(N(0, 1) < 1.5), binomial errors.
    right = 0.5 + 0.5 * math.erf(1.5 / math.sqrt(2.0))
    for share in (report.accuracy, report.accuracy_real):
        assert abs(share.value - right) < Z_LIMIT * math.sqrt(right * (1 - right) / 800)
        assert share.std_error == pytest.approx(math.sqrt(right * (1 - right) / 800), rel=0.3)
    for name in CLASSES:
        quality = report.classes[name]
        assert quality.mmd.p_value is not None and quality.mmd.p_value > 0.01
        assert quality.variance_ratio == pytest.approx(1.0, abs=0.3)
        assert quality.nearest_ratio == pytest.approx(1.0, abs=0.2)
        assert quality.train_ratio == pytest.approx(1.0, abs=0.2)
        assert abs(quality.copies.value - 0.05) < Z_LIMIT * math.sqrt(2 * 0.05 * 0.95 / 400)
        assert abs(quality.privacy_loss) < 0.15


def test_distances_are_those_of_the_package() -> None:
    samples, train, test = real(30), real(40), real(50)
    quality = sample_report(samples, train, test).classes[1]
    assert quality.mmd.value == maximum_mean_discrepancy(samples[1], test[1]).value
    assert quality.energy.value == energy_distance(samples[1], test[1]).value
    ratio = samples[1].double().var(0).sum() / test[1].double().var(0).sum()
    assert quality.variance_ratio == pytest.approx(ratio.item())
    near = torch.cdist(samples[1].double(), train[1].double()).amin(1).mean().item()
    assert quality.train_distance == pytest.approx(near)
    assert quality.accuracy is None
    assert (quality.num_samples, quality.num_real) == (30, 50)


def test_copies_are_found() -> None:
    train, test = real(300), real(300)
    copies = {k: rows[:200] + 0.01 * torch.randn(200, 4) for k, rows in train.items()}
    for quality in sample_report(copies, train, test).classes.values():
        assert quality.train_ratio < 0.1
        assert quality.copies.value > 0.95
        assert quality.privacy_loss > 0.3
        assert quality.mmd.value < 0.05


@pytest.mark.parametrize("kinds", [1, 3, 1000])
@pytest.mark.parametrize("rows", [4, 45])
def test_share_of_copies_of_exchangeable_rows(kinds: int, rows: int) -> None:
    """Whichever row is the sample: 0.05 on average exactly, also where all or many distances are equal."""
    distances = torch.randint(kinds, (rows,)).double() / 7.0
    shares = [
        copy_share(distances[i : i + 1], torch.cat([distances[:i], distances[i + 1 :]])).value
        for i in range(rows)
    ]
    assert sum(shares) / rows == pytest.approx(0.05, abs=1e-12)


@pytest.mark.parametrize("levels", [(0.0, 1.0), (-0.3, 0.1)])
def test_copies_of_binary_rows(levels: tuple[float, float]) -> None:
    """Few distances, of which a third is zero; with other levels than whole numbers they are rounded."""
    low, high = levels

    def rows(count: int) -> dict[int, Tensor]:
        return {0: low + (high - low) * (torch.rand(count, 12) < 0.5).double()}

    train, test = rows(2000), rows(1000)
    null = sample_report(rows(1000), train, test).classes[0].copies
    assert abs(null.value - 0.05) < Z_LIMIT * math.sqrt(2 * 0.05 * 0.95 / 1000)
    equal = nearest_distances(test[0], train[0])[1] < 1e-6
    replay = sample_report({0: train[0][:1000]}, train, test).classes[0].copies
    assert replay.value == pytest.approx(0.05 * 1001 / (equal.sum().item() + 1))
    assert replay.value > null.value + Z_LIMIT * replay.std_error


def test_collapse_and_wrong_class_are_found() -> None:
    train, test = real(300), real(300)
    collapsed = {k: rows.mean(0) + 0.1 * torch.randn(200, 4) for k, rows in test.items()}
    swapped = {k: real(200)[1 - k] for k in CLASSES}
    for quality in sample_report(collapsed, train, test, classifier=classify).classes.values():
        assert quality.accuracy is not None and quality.accuracy.value == 1.0
        assert quality.variance_ratio < 0.05 and quality.nearest_ratio < 0.3
        assert quality.adversarial_real.value > 0.7
    good = sample_report(real(200), train, test, classifier=classify)
    wrong = sample_report(swapped, train, test, classifier=classify)
    assert wrong.accuracy is not None and wrong.accuracy.value < 0.2
    for k in CLASSES:
        assert wrong.classes[k].energy.value > 10 * abs(good.classes[k].energy.value)


def test_scores_will_do_and_rows_are_limited() -> None:
    samples, train, test = real(60), real(50), real(40)
    generator = torch.Generator().manual_seed(0)

    def scores(rows: Tensor) -> Tensor:
        return torch.stack([1.5 - rows[:, 0], rows[:, 0] - 1.5], -1)

    report = sample_report(
        samples, train, test, classifier=scores, max_rows=20, generator=generator
    )
    labels = sample_report(
        samples, train, test, classifier=classify, max_rows=20, generator=generator.manual_seed(0)
    )
    assert report.to_dict() == labels.to_dict()
    assert report.classes[0].num_samples == report.classes[0].num_real == 20
    assert report.settings["max_rows"] == 20


def test_report() -> None:
    report = sample_report(real(30), real(30), real(30), classifier=classify)
    numbers = json.loads(json.dumps(report.to_dict()))
    assert set(numbers["classes"]) == {"0", "1"}
    assert numbers["classes"]["1"]["accuracy"]["value"] == report.classes[1].accuracy.value  # type: ignore[union-attr]
    expected = sum(q.variance_ratio for q in report.classes.values()) / 2
    assert report.means()["variance_ratio"] == pytest.approx(expected)
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines] == ["class", "0", "1", "all"]
    assert report.to_markdown().count("\n") == 4
    assert report.means()["accuracy"] == report.accuracy.value  # type: ignore[union-attr]
    bare = sample_report(real(30), real(30), real(30))
    assert bare.means()["accuracy"] is None and bare.accuracy is None


def test_constant_rows() -> None:
    """Classes without any variety, such as a blank image, have no ratio."""
    blank = {0: torch.zeros(10, 3)}
    report = sample_report(blank, blank, blank)
    assert math.isnan(report.classes[0].variance_ratio)
    assert json.loads(json.dumps(report.to_dict()))["classes"]["0"]["variance_ratio"] is None
    assert "-" in str(report)


def test_rows_by_class() -> None:
    rows = torch.arange(8.0).reshape(4, 2)
    split = rows_by_class(rows, torch.tensor([3, 0, 3, 1]))
    assert list(split) == [0, 1, 3]
    assert torch.equal(split[3], rows[[0, 2]])
    with pytest.raises(ValueError, match="shapes"):
        rows_by_class(rows, torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="whole numbers"):
        rows_by_class(rows, torch.rand(4))


def test_bad_input() -> None:
    good = real(10)
    for samples, train, options, message in (
        ({}, good, {}, "at least one class"),
        (good, {0: good[0]}, {}, "train must hold rows of class 1"),
        ({0: good[0][:1]}, good, {}, r"samples\[0\] must have shape"),
        ({0: good[0][:, :2]}, good, {}, "must have 2 units"),
        ({0: good[0] * math.nan}, good, {}, "must be finite"),
        (good, good, {"max_rows": 1}, "max_rows"),
        (good, good, {"classifier": lambda x: x.sum()}, "classifier must give labels"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_report(samples, train, good, **options)
