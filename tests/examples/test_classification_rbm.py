# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The classification program: its parts, and both ways in seconds."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_ebm
from pyro_ebm import datasets, nn

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module: it finds its neighbours in its own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("examples.classification_rbm")


def test_shifted_images(program: Any) -> None:
    """Every image is one of the nine that a step of at most a pixel makes of it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 12)
    moved = program.shifted(x, (3, 4), 1, generator)
    padded = torch.nn.functional.pad(x.reshape(40, 3, 4), (1, 1, 1, 1))
    every = torch.stack([padded[:, i : i + 3, k : k + 4] for i in range(3) for k in range(3)], 1)
    hits = (every.flatten(2) == moved.unsqueeze(1)).all(-1)
    assert bool((hits.sum(1) == 1).all()) and bool(hits.any(0).all())
    assert program.shifted(x, (3, 4), 0, generator) is x


def test_labels_that_are_forgotten(program: Any) -> None:
    labels = torch.arange(100) % 10
    kept = program.forget_labels(labels, 30, 0)
    known = kept >= 0
    assert torch.equal(kept[known], labels[known])
    assert torch.bincount(kept[known]).tolist() == [3] * 10
    assert torch.equal(program.forget_labels(labels, None, 0), labels)
    # Every seed has its own.
    assert not torch.equal(program.forget_labels(labels, 30, 1), kept)


def test_defaults_of_both_ways(program: Any) -> None:
    with_labels, by_class = program.parse([]), program.parse(["--per-class", "--dropout", "0.1"])
    assert (with_labels.objective, with_labels.optimizer) == ("hybrid", "adam")
    assert (by_class.objective, by_class.persistent, by_class.dropout) == ("generative", True, 0.1)


def _run(output: Path, *flags: str) -> dict[str, Any]:
    command = [sys.executable, ROOT / "examples" / "classification_rbm.py", "--smoke", *flags]
    done = subprocess.run([*command, "--output", output], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((output / "report.json").read_text())
    error = report["test_error"]
    assert f"test error {error['value']:.2f} %" in done.stdout
    rate = error["value"] / 100
    num_test = len(datasets.load("digits").test())
    assert math.isclose(error["std_error"], 100 * math.sqrt(rate * (1 - rate) / num_test))
    assert math.isclose(report["scores"]["accuracy"]["value"], 1 - rate)
    assert (output / "confusion.png").stat().st_size > 10_000
    return report


def test_smoke_with_labels(tmp_path: Path) -> None:
    report = _run(tmp_path)
    assert report["test_error"]["value"] < 15.0
    errors = [record["validation_error"] for record in report["history"]]
    assert min(errors) < 10.0 and errors[0] > 20.0
    # The file has the parameters of the best epoch, of which the report tells the test error.
    module = pyro_ebm.load(tmp_path / "model.safetensors")
    assert isinstance(module, nn.ClassificationRBM)
    data = datasets.load("digits")
    x, labels = data.train()[-200:], data.labels("train")[-200:]
    wrong = (module.predict(x) != labels).double().mean().item()
    assert math.isclose(100 * wrong, min(errors))
    wrong = (module.predict(data.test()) != data.labels("test")).double().mean().item()
    assert math.isclose(100 * wrong, report["test_error"]["value"])
    for name in ("samples.png", "filters.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_smoke_by_class(tmp_path: Path) -> None:
    report = _run(tmp_path, "--per-class")
    assert report["test_error"]["value"] < 20.0
    assert report["num_changed"] <= report["num_uncertain"] + 5
    forward = report["log_partition"]["forward"]["value"]
    reverse = report["log_partition"]["reverse"]["value"]
    assert all(abs(a - b) < 2.0 for a, b in zip(forward, reverse, strict=True))
    assert report["log_evidence"] < -10.0
