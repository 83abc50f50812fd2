# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The program of images with labels: one given the other by enumeration, and a run."""

import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm import datasets, nn
from pyro_ebm.distributions import DBM

ROOT = Path(__file__).resolve().parent.parent.parent
PIXELS = 4


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module: it finds its neighbours in its own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("examples.dbm_multimodal")


def machine(hidden: list[int]) -> DBM:
    """A centred machine of random parameters over four pixels and ten label bits."""
    torch.manual_seed(0)
    module = nn.DBM(PIXELS + 10, hidden, centered=True, dtype=torch.float64)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data.normal_(0.0, 0.7)
    return module().detach()


def states(size: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)), dtype=torch.float64)


def class_law(dbm: DBM, images: Tensor) -> Tensor:
    """log p(y | x) by all states of the hidden layers, from the energy as it is written."""
    biases = [unit.bias for unit in dbm.units]
    total = torch.empty(len(images), 10, dtype=torch.float64)
    for n, k in itertools.product(range(len(images)), range(10)):
        layers = [torch.cat([images[n], torch.eye(10, dtype=torch.float64)[k]])]
        values = []
        for hidden in itertools.product(*(states(size) for size in dbm.sizes[1:])):
            x = [*layers, *hidden]
            value = sum((b * s).sum() for b, s in zip(biases, x, strict=True))
            centred = [s - o for s, o in zip(x, dbm.offsets, strict=True)]
            for weight, below, above in zip(dbm.weights, centred[:-1], centred[1:], strict=True):
                value = value + below @ weight @ above
            values.append(value)
        total[n, k] = torch.stack(values).logsumexp(0)
    return total.log_softmax(-1)


def test_validation_images_are_held_out(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Trained:
        averaged = nn.DBM(74, [3, 2], centered=True, seed=0)

    def train_dbm(rows: Tensor, options: Any) -> tuple[Any, dict[str, Any]]:
        seen["train"] = rows
        return Trained, {}

    def evaluate(machine: DBM, images: Tensor, labels: Tensor, options: Any) -> dict[str, Any]:
        seen.update(images=images, labels=labels)
        return {}

    monkeypatch.setattr(program, "train_dbm", train_dbm)
    monkeypatch.setattr(program, "evaluate", evaluate)
    program.main(["--data", "digits", "--validation", "100", "--no-pictures"])
    data = datasets.load("digits")
    assert torch.equal(seen["train"][:, :64], data.train()[:-100])
    assert torch.equal(seen["labels"], data.labels("train")[-100:]) and len(seen["images"]) == 100


@pytest.mark.parametrize("flag", ["--ais-temperatures", "--tight", "--frames"])
def test_options_of_likelihoods_are_unknown(program: Any, flag: str) -> None:
    with pytest.raises(SystemExit):
        program.main([flag, "5"])


def test_class_bounds(program: Any) -> None:
    """One hidden layer: the bound is exact. Two: it is not, but near."""
    images = states(PIXELS)[::3]
    for hidden, tolerance in (([3], 1e-9), ([3, 2], 0.3)):
        dbm = machine(hidden)
        got = program.class_bounds(program.with_one_hot_labels(dbm), images)
        torch.testing.assert_close(got, class_law(dbm, images), rtol=0.0, atol=tolerance)


def test_class_rates(program: Any) -> None:
    """Independent chains of the clamped machine agree with enumeration within 6 standard errors."""
    dbm, images = machine([3, 2]), states(PIXELS)[5:7]
    copies = 300
    rates = program.class_rates(
        program.with_one_hot_labels(dbm), images.repeat_interleave(copies, 0), 60
    )
    rates = rates.double().reshape(2, copies, 10)
    error = rates.std(1) / copies**0.5
    expected = class_law(dbm, images).exp()
    assert bool(((rates.mean(1) - expected).abs() < 6.0 * error).all())
    assert bool((error < 0.02).all())


def test_scores(program: Any) -> None:
    log_probs = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]]).log()
    got = program.scores(log_probs, torch.tensor([0, 1, 1, 1]))
    assert got["accuracy"] == 0.75 and abs(got["accuracy_error"] - 0.25) < 1e-12
    expected = torch.tensor([0.7, 0.6, 0.1, 0.8]).double().log().mean().item()
    assert abs(got["log_score"] - expected) < 1e-6


def test_smoke(program: Any, tmp_path: Path) -> None:
    report = program.main(["--smoke", "--no-progress", "--output", str(tmp_path)])
    found = report["evaluation"]
    assert found["mean field"]["accuracy"] > 0.75 and found["Gibbs"]["accuracy"] > 0.7
    # Chance has -log 10.
    assert found["mean field"]["log_score"] > -1.0
    assert json.loads((tmp_path / "report.json").read_text())["evaluation"] == found
    for picture in ("samples", "filters_1", "filters_2"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 10_000
    again = program.main(["--skip-training", "--output", str(tmp_path), "--smoke", "--no-pictures"])
    assert again["evaluation"]["mean field"] == found["mean field"]
