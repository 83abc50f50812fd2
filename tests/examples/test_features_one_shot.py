# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The example of features in seconds, on the digits; its own classifiers against others."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def example(monkeypatch):
    """The program as a module; its neighbours are found as when it runs."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("features_one_shot")


def test_smoke(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples" / "features_one_shot.py", "--smoke"]
    done = subprocess.run(
        [*command, "--output", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "1-shot euclidean" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["features"]) == {"knn", "logistic", "svm"}
    for name, spaces in report["features"].items():
        for space, result in spaces.items():
            assert 0.0 < result["error"] < 0.12, (name, space)
    for shots in ("1-shot", "5-shot"):
        for metric in ("euclidean", "cosine"):
            scores = report["one-shot"][f"{shots} {metric}"]
            # Three classes: chance is one third.
            assert 0.5 < scores["features"]["mean"] < 1.0
            difference = scores["features"]["mean"] - scores["pixels"]["mean"]
            assert abs(difference - scores["features - pixels"]["mean"]) < 1e-9
    few, one = (report["one-shot"][f"{n}-shot euclidean"]["features"]["mean"] for n in (5, 1))
    assert few > one


def test_nearest_neighbours_are_sklearns(example):
    from sklearn.neighbors import KNeighborsClassifier

    torch.manual_seed(0)
    x, x_test = torch.rand(200, 5), torch.rand(80, 5)
    y = (5 * x[:, 0]).long()
    expected = KNeighborsClassifier(3, weights="distance").fit(x.numpy(), y.numpy())
    arguments = argparse.Namespace(neighbours=3)
    got = example.nearest_neighbours((x, y), (x_test, None), arguments)
    assert got.tolist() == expected.predict(x_test.numpy()).tolist()


def test_episode_by_hand(example):
    # Class 4 about 0 and class 7 about 1 in the direction of the first axis; of 9 nothing is wrong.
    x = torch.tensor([[0.0, 1.0], [0.1, 1.0], [0.2, 1.0], [1.0, 1.0], [1.1, 1.0], [0.05, 1.0]])
    y = torch.tensor([4, 4, 4, 7, 7, 7])
    rng = np.random.default_rng(0)
    values = [example.episode(x, y, 1, "euclidean", rng) for _ in range(300)]
    # Exactly, over the 9 pairs of known images, of which every one leaves four others.
    expected = []
    for i in range(3):
        for k in range(3, 6):
            others = [n for n in range(6) if n not in (i, k)]
            near = [4 if abs(x[n, 0] - x[i, 0]) <= abs(x[n, 0] - x[k, 0]) else 7 for n in others]
            expected.append(np.mean([a == int(y[n]) for a, n in zip(near, others, strict=True)]))
    error = np.std(expected) / 300**0.5
    assert abs(np.mean(values) - np.mean(expected)) < 6 * error
    # Angles see no lengths.
    scaled = x * torch.arange(1.0, 7.0).unsqueeze(1)
    first, second = (
        example.episode(z, y, 2, "cosine", np.random.default_rng(1)) for z in (x, scaled)
    )
    assert first == second
