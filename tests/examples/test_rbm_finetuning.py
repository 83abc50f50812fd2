# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The example of fine-tuning in seconds, on the digits."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyro_ebm
from pyro_ebm import datasets, nn
from pyro_ebm.training import TrainerConfig, pretrain
from pyro_ebm.training.finetuning import FeedForwardClassifier

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def runs(monkeypatch):
    """The functions behind the program; they are found as when it runs."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("label_runs")


def make(**options):
    return FeedForwardClassifier.random((3, 8), 3, **options)


def some_rows(num_rows: int):
    x = torch.rand(num_rows, 3, generator=torch.Generator().manual_seed(0))
    return x, x.argmax(1)


@pytest.mark.parametrize("num_folds, refit", [(1, False), (1, True), (3, True)])
def test_the_better_setting_is_chosen(runs, num_folds, refit) -> None:
    x, y = some_rows(120)
    found = runs.product(
        runs.Setting(epochs=20, head_epochs=2, batch_size=20), learning_rate=(1e-6, 0.05)
    )
    classifier, report = runs.choose_and_fit(
        make, found, x, y, num_folds=num_folds, num_validation=30, refit=refit, seed=0
    )
    assert report["setting"]["learning_rate"] == 0.05
    assert report["validation_scores"][1] > report["validation_scores"][0]
    assert classifier.accuracy(*some_rows(400)) > 0.85
    # One setting that needs no validation gets none.
    classifier, report = runs.choose_and_fit(
        make, found[1:], x, y, num_folds=1, num_validation=30, refit=True, seed=0
    )
    assert report["validation_scores"] == [] and classifier.accuracy(x, y) > 0.85


def test_self_training_takes_the_most_certain_rows(runs, monkeypatch) -> None:
    x, y = some_rows(10)
    unlabelled, _ = some_rows(300)
    classifier = make(seed=0)
    with torch.no_grad():
        classifier.layers[0].weight.mul_(20.0)
    log_p = classifier.predict_log_proba(unlabelled)
    calls = []

    def fit(make, setting, seed, train):
        calls.append(train)
        return classifier, []

    monkeypatch.setattr(runs, "fit", fit)
    runs.self_train(make, classifier, x, y, unlabelled, rounds=2, seed=0)
    assert len(calls) == 2
    for number, (rows, classes) in enumerate(calls, start=1):
        expected = []
        for k in range(3):
            said = (log_p.argmax(1) == k).nonzero()[:, 0].tolist()
            said.sort(key=lambda i: -float(log_p[i].max()))
            expected += said[: -(-len(said) * number // 3)]
        times = max(1, len(expected) // 90)
        assert torch.equal(rows[: 10 * times], x.repeat(times, 1))
        assert torch.equal(classes[: 10 * times], y.repeat(times))
        got = {tuple(row) for row in rows[10 * times :].tolist()}
        assert got == {tuple(row) for row in unlabelled[expected].tolist()}
        assert torch.equal(classes[10 * times :], classifier.predict(rows[10 * times :]))


def test_smoke(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples" / "rbm_finetuning.py", "--smoke"]
    done = subprocess.run(
        [*command, "--output", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "100 labels, start rbm" in done.stdout
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    for num_labels, least in (("500", 0.88), ("100", 0.75)):
        for start in ("rbm", "random"):
            result = results[num_labels][start]
            assert least < result["mean"] < 1.0, (num_labels, start)
            # Two label sets of 360 test digits each, every digit in its own row.
            confusion = result["confusion"]
            assert sum(map(sum, confusion)) == 720
            right = sum(confusion[k][k] for k in range(10))
            assert abs(right / 720 - result["mean"]) < 1e-9
            assert len(result["chosen"]) == 2 and "dropout" in result["chosen"][0]["setting"]
    # What unlabelled digits teach shows where labels are few.
    few = results["100"]
    assert few["rbm"]["mean"] > few["random"]["mean"]
    assert pyro_ebm.load(tmp_path / "rbm_1.safetensors").weight.shape == (64, 64)
    assert (tmp_path / "confusion_100_rbm.png").stat().st_size > 10_000


def test_network_of_a_deep_machine(tmp_path: Path, monkeypatch) -> None:
    """A DBM that is read from a file; what is set by flags is no choice."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    program = importlib.import_module("rbm_finetuning")
    digits = datasets.load("digits").train()
    module = nn.DBM(64, [40, 30], seed=0).init_from_data(digits)
    config = TrainerConfig(
        num_epochs=10, batch_size=20, learning_rate=0.05, binarize=True, seed=0, progress=False
    )
    pretrain(module, digits, config)
    pyro_ebm.save(module, tmp_path / "dbm.safetensors")
    flags = (
        "--data digits --labels 200 --label-seeds 1 --folds 2 --settings 1 --finetune-epochs 20 "
        "--finetune-learning-rate 0.01 --dropout-of-hidden 0.1 --dropout-of-inputs 0.2"
    )
    files = ["--model", str(tmp_path / "dbm.safetensors"), "--output", str(tmp_path)]
    results = program.main(program.make_parser().parse_args([*flags.split(), *files]))["200"]
    assert set(results) == {"dbm", "random"}
    for result in results.values():
        setting = result["chosen"][0]["setting"]
        assert (setting["dropout"], setting["input_dropout"]) == (0.1, 0.2)
    # In as many epochs the random start has not begun to learn: two layers of sigmoids.
    assert 0.75 < results["dbm"]["mean"] < 1.0
    assert results["dbm"]["mean"] > results["random"]["mean"] + 0.05


def test_deep_machines_that_make_no_network(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    program = importlib.import_module("rbm_finetuning")
    arguments = program.make_parser().parse_args([])
    with pytest.raises(ValueError, match="one DBM or a stack"):
        program.makers([nn.DBM(3, [2, 2]), nn.RBM(2, 2)], 3, arguments)
    with pytest.raises(ValueError, match="all of one family"):
        program.makers([nn.DBM(3, [2, 2], hidden=["bernoulli", "ising"])], 3, arguments)
