# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import pyro_ebm
from pyro_ebm.cli.app import app
from pyro_ebm.training import Trainer

Invoke = Callable[..., Result]
Fails = Callable[..., str]
SMALL = ("--hidden", 8, "--quiet", "--checkpoint-every", 1)


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return pyro_ebm.load(folder).state_dict()


def assert_same_parameters(a: Path, b: Path) -> None:
    first, second = parameters(a), parameters(b)
    assert set(first) == set(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_files(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("config.json", "checkpoint.safetensors", "model.safetensors"),
        *("history.json", "history.csv"),
    }
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["name"] == "digits" and config["data"]["validation"] == 100
    assert config["model"]["num_hidden"] == 10
    assert config["training"]["persistent"] and config["training"]["binarize"]
    assert config["training"]["seed"] == 0
    assert config["versions"]["pyro-ebm"] and config["versions"]["torch"]
    history = json.loads((run / "history.json").read_text())
    assert [record["epoch"] for record in history] == [1, 2]
    assert "free_energy_gap" in history[0]
    with open(run / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["weight_norm"]) for row in rows] == [r["weight_norm"] for r in history]


def test_files_are_readable_by_others(run: Path) -> None:
    plain = run / "plain"
    plain.touch()
    for name in ("config.json", "history.csv"):
        assert (run / name).stat().st_mode == plain.stat().st_mode


def test_same_seed_same_model(invoke: Invoke, tmp_path: Path) -> None:
    for name in "ab":
        invoke("train", "digits", "-o", tmp_path / name, "--epochs", 1, *SMALL, "--seed", 3)
    invoke("train", "digits", "-o", tmp_path / "c", "--epochs", 1, *SMALL, "--seed", 4)
    assert_same_parameters(tmp_path / "a", tmp_path / "b")
    weights = [parameters(tmp_path / name)["weight"] for name in "ac"]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_interrupted_run_ends_in_the_same_parameters(
    invoke: Invoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
    momentum: float,
) -> None:
    options = ("--epochs", 3, *SMALL, "--momentum", momentum, "--learning-rate", 0.05)
    invoke("train", "digits", "-o", tmp_path / "whole", *options)

    run_epoch = Trainer._run_epoch

    def interrupted(self: Trainer, data: torch.Tensor, bar: object) -> None:
        if self.epoch == stop:
            run_epoch(self, data[: len(data) // 2], bar)  # in the middle of an epoch
            raise KeyboardInterrupt
        run_epoch(self, data, bar)

    folder = tmp_path / "broken"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_run_epoch", interrupted)
        result = CliRunner().invoke(
            app, [str(x) for x in ("train", "digits", "-o", folder, *options)]
        )
    assert result.exit_code == 130
    assert f"pyro-ebm train --resume --output {folder}" in result.output
    assert not (folder / "model.safetensors").exists()

    invoke("train", "--resume", "--output", folder, "--quiet")
    assert_same_parameters(tmp_path / "whole", folder)
    histories = [json.loads((f / "history.json").read_text()) for f in (tmp_path / "whole", folder)]
    for whole, resumed in zip(*histories, strict=True):
        assert {**whole, "seconds": 0} == {**resumed, "seconds": 0}


def test_resume_extends(invoke: Invoke, tmp_path: Path) -> None:
    options = (*SMALL, "--schedule", "constant")
    invoke("train", "digits", "-o", tmp_path / "whole", "--epochs", 3, *options)
    invoke("train", "digits", "-o", tmp_path / "part", "--epochs", 1, *options)
    result = invoke("train", "digits", "-o", tmp_path / "part", "--resume", "--epochs", 3, "-q")
    assert "going on after epoch 1" in result.output
    assert_same_parameters(tmp_path / "whole", tmp_path / "part")
    config = json.loads((tmp_path / "part" / "config.json").read_text())
    assert config["training"]["num_epochs"] == 3


def test_resume_a_moved_folder(invoke: Invoke, run: Path) -> None:
    moved = run.rename(run.with_name("moved"))
    invoke("train", "--resume", "-o", moved, "--epochs", 3, "-q")
    assert not run.exists()
    assert Trainer.from_checkpoint(moved / "checkpoint.safetensors").epoch == 3


@pytest.mark.parametrize(
    "options",
    [
        ("--visible-units", "ising", "--hidden-units", "ising"),
        ("--visible-units", "gaussian", "--learning-rate", "1e-3"),
        ("--hidden-units", "relu", "--learning-rate", "1e-3"),
        ("--binarize", "static", "--no-persistent", "--steps", 2),
        ("--binarize", "threshold", "--threshold", "0.3", "--no-centered"),
        ("--optimizer", "adam", "--learning-rate", "1e-3", "--chains", 30),
    ],
    ids=lambda options: " ".join(str(x) for x in options),
)
def test_options(invoke: Invoke, tmp_path: Path, options: tuple[object, ...]) -> None:
    result = invoke("train", "digits", "-o", tmp_path / "run", "--epochs", 1, *SMALL, *options)
    assert "1 epochs done" in result.output
    pyro_ebm.load(tmp_path / "run")


def test_refuses_a_folder_in_use(fails: Fails, run: Path, tmp_path: Path) -> None:
    assert "go on with --resume" in fails("train", "digits", "-o", run)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    assert "no run folder" in fails("train", "digits", "-o", tmp_path / "other")


def test_resume_refusals(fails: Fails, run: Path, tmp_path: Path) -> None:
    assert "no run" in fails("train", "--resume", "-o", tmp_path / "nothing")
    assert "already done 2 epochs" in fails("train", "--resume", "-o", run, "--epochs", 1)
    message = fails("train", "--resume", "-o", run, "--hidden", 9, "--seed", 1, code=2)
    assert "--hidden, --seed cannot be changed" in message
    assert "trained on digits" in fails("train", "mnist", "--resume", "-o", run, code=2)


def test_data_is_needed(fails: Fails, tmp_path: Path) -> None:
    assert "name the DATA" in fails("train", "-o", tmp_path / "run", code=2)
    assert "imagenet" in fails("train", "imagenet", "-o", tmp_path / "run", code=2)


def test_missing_data_leaves_nothing(fails: Fails, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    message = fails("train", "mnist", "-o", tmp_path / "run", "--root", missing)
    assert str(missing) in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", None], ids=["empty", "foreign", "truncated"])
def test_corrupt_checkpoint(fails: Fails, run: Path, content: bytes | None) -> None:
    checkpoint = run / "checkpoint.safetensors"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2] if content is None else content)
    message = fails("train", "--resume", "-o", run, "--epochs", 4)
    assert "checkpoint.safetensors" in message


def test_corrupt_configuration(fails: Fails, run: Path) -> None:
    (run / "config.json").write_text("{")
    assert "config.json is damaged" in fails("train", "--resume", "-o", run)
    (run / "config.json").write_text("[]")
    assert "no configuration" in fails("train", "--resume", "-o", run)


def test_divergence(fails: Fails, tmp_path: Path) -> None:
    message = fails(
        *("train", "digits", "-o", tmp_path / "run", "--epochs", 2, *SMALL),
        *("--visible-units", "gaussian", "--hidden-units", "gaussian", "--learning-rate", 1e6),
    )
    assert "lower learning_rate" in message


@pytest.mark.parametrize(
    "options, words",
    [
        (("--visible-units", "ising", "--binarize", "dynamic"), "Ising units need"),
        (("--binarize", "none"), "Bernoulli units need"),
        (("--visible-units", "gaussian", "--binarize", "dynamic"), "gaussian units take no"),
        (("--optimizer", "adam", "--momentum", 0.5), "momentum is an option of "),
        (("--validation", 5000), "validation: expected 0 to"),
        (("--device", "abacus"), "device 'abacus' cannot be used"),
    ],
)
def test_impossible_options(
    fails: Fails, tmp_path: Path, options: tuple[object, ...], words: str
) -> None:
    assert words in fails("train", "digits", "-o", tmp_path / "run", *SMALL, *options)
    assert not (tmp_path / "run").exists()


def test_any_option_of_the_trainer(invoke: Invoke, fails: Fails, tmp_path: Path) -> None:
    more = ("l1=0.001", "num_replicas=3", "negative_phase=tempering", "fast_decay=0.5")
    flags = [part for text in more for part in ("--option", text)]
    flags += [
        "--optimizer",
        "rmsprop",
        "--schedule",
        "StepLR",
        "--option",
        'schedule_options={"step_size": 1}',
    ]
    invoke("train", "digits", "-o", tmp_path / "run", "--epochs", 1, *SMALL, *flags)
    training = json.loads((tmp_path / "run" / "config.json").read_text())["training"]
    assert training["l1"] == 0.001 and training["negative_phase"] == "tempering"
    assert training["optimizer"] == "rmsprop" and training["schedule_options"] == {"step_size": 1}
    new = ("train", "digits", "-o", tmp_path / "new")
    for text, message, code in (
        ("l2", "--option must be NAME=VALUE, got 'l2'", 2),
        ("l2=1", "unknown training options ['l2']", 1),
        ("l1=-1", "l1 must be a finite number >= 0", 1),
        ("momentum=0.5", "--option momentum: this command has an option of its own", 2),
    ):
        assert message in fails(*new, "--option", text, code=code)
    assert not (tmp_path / "new").exists()
