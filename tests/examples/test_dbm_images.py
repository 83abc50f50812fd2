# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The programs of deep machines of images: numbers of the report by other ways, resume, evaluation alone."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_ebm
from pyro_ebm import datasets, nn
from pyro_ebm.infer import exact_log_partition

ROOT = Path(__file__).resolve().parent.parent.parent
PICTURES = ("filters", "filters_1", "filters_2", "particles", "samples", "completions", "history")
QUIET = ["--no-progress", "--no-pictures"]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The shared part as a module: it finds its neighbours in its own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("examples.dbm_training")


def run(program: Any, *flags: object, **recipe: Any) -> dict[str, Any]:
    small = {"num_chains": 20, "averaging": 0.9, "learning_rate": 0.1, **recipe}
    rbm = {"num_epochs": 2, "num_chains": 20, "learning_rate": 0.1}
    report: dict[str, Any] = program.run(
        program.parse("words", "digits", rbm, [str(flag) for flag in (*QUIET, *flags)], **small)
    )
    return report


@pytest.mark.parametrize(
    "name", ["dbm_mnist.py", pytest.param("dbm_fashion_mnist.py", marks=pytest.mark.slow)]
)
def test_smoke(name: str, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples" / name, "--smoke", "--no-progress"]
    done = subprocess.run(
        [*command, "--output", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    # The report is about the machine that was written.
    module = pyro_ebm.load(tmp_path / "model.safetensors")
    assert isinstance(module, nn.DBM)
    machine = module().detach().to(dtype=torch.float64)
    test = datasets.load("digits").binarized("test", seed=0).double()
    log_z = exact_log_partition(machine.bipartite())
    found = report["evaluation"]
    bound = (machine.mean_field(test).bound - log_z).mean().item()
    exact = (exact_log_partition(machine.posterior(test).bipartite()) - log_z).mean().item()
    assert abs(found["bound"]["binarised"]["exact"] - bound) < 1e-4
    assert abs(found["log_likelihood"]["value"] - exact) < 1e-4
    # All bits share one q where grey levels stand for them.
    grey = found["bound"]["grey levels"]["exact"]
    assert grey < bound <= exact < -20.0
    assert f"test log-likelihood, exact: {exact:.3f}" in done.stdout
    assert report["training"]["rbm"]["options"]["learning_rate_schedule"] == "cosine"
    for picture in PICTURES:
        assert (tmp_path / f"{picture}.png").stat().st_size > 5000
    assert (tmp_path / "particles.gif").stat().st_size > 50_000


def test_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    recipes = [importlib.import_module(f"examples.dbm_{x}mnist") for x in ("", "fashion_")]
    options = [m.parse("words", "digits", m.RBM_RECIPE, [], **m.RECIPE) for m in recipes]
    assert [o.learning_rate for o in options] == [0.1, 0.02]
    assert [o.rbm_options["learning_rate"] for o in options] == [0.4, 0.05]
    assert all(o.hidden == [500, 1000] and o.mean_field_updates == 30 for o in options)
    module = recipes[0]
    tied = module.parse("", "digits", module.RBM_RECIPE, ["--start", "pretrained"])
    assert tied.rbm_options["learning_rate"] == 0.2


def test_resume(program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is resumed ends as one that was not; the file alone gives the same numbers again."""
    small = ["--hidden", 24, 21, "--ais-temperatures", 300]
    constant = {"learning_rate_schedule": "constant"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    report = run(program, *small, "--num-epochs", 3, "--output", whole, **constant)
    checkpoint = ["--checkpoint", tmp_path / "run.safetensors", "--output", parts]
    run(program, *small, *checkpoint, "--num-epochs", 1, **constant)
    run(program, *small, *checkpoint, "--num-epochs", 3, "--resume", **constant)
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    values = report["evaluation"]["bound"]["binarised"]
    low, high = values["interval"]
    assert low < values["AIS"] < high and low < values["reverse AIS"] < high
    assert -30.0 < low and high < -20.0
    again = run(program, *small, "--skip-training", "--output", whole)
    assert again["evaluation"]["bound"] == report["evaluation"]["bound"]
    assert again["training"]["joint"]["options"]["num_epochs"] == 3
    tight = ["--rows", 50, "--tight", 20]
    few = run(program, *small, "--model", whole / "model.safetensors", *tight)
    assert few["evaluation"]["rows"] == 50 and "training" not in few
    found = few["evaluation"]["tight"]
    assert found["rows"] == 20 and found["lower"] < found["value"] < found["upper"]
    assert -6.0 * found["density_error"] <= found["above_bound"] < 1.0
    capsys.readouterr()


def test_starts(program: Any) -> None:
    """Every start trains; greedy training gives a better machine than a few epochs from small weights."""
    rbm = {"num_epochs": 15, "batch_size": 30, "learning_rate": 0.2}
    small = ["--hidden", 12, 8, "--num-epochs", 2]
    bounds = {}
    for start, own in {"random": [], "pretrained": ["--rbm-options", json.dumps(rbm)]}.items():
        report = run(program, *small, "--start", start, *own)
        assert report["training"]["start"] == start
        bounds[start] = report["evaluation"]["log_likelihood"]["value"]
        assert report["sizes"] == [64, 12, 8]
    histories = report["training"]["greedy"]["histories"]
    assert [len(history) for history in histories] == [15, 15]
    assert bounds["random"] + 0.5 < bounds["pretrained"] < -20.0


@pytest.mark.parametrize(
    "flags",
    [
        ("--start", "random", "--upper-scale", 0.1),
        ("--start", "random", "--rbm-options", '{"num_epochs": 1}'),
        ("--start", "pretrained", "--rbm", "x.safetensors"),
        ("--method", "hinton-salakhutdinov-2012"),
    ],
)
def test_options_without_effect_are_refused(
    program: Any, flags: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(program, *flags)
    assert "has no effect with --start" in capsys.readouterr().err


def test_a_run_goes_on_with_the_options_that_are_given(program: Any, tmp_path: Path) -> None:
    own = ["--hidden", 5, 4, "--start", "random", "--checkpoint", tmp_path / "run.safetensors"]
    run(program, *own, "--num-epochs", 1)
    report = run(program, *own, "--num-epochs", 2, "--resume", "--learning-rate", 0.025)
    joint = report["training"]["joint"]
    assert joint["options"]["learning_rate"] == 0.025 and len(joint["history"]) == 2
    own[2] = 3
    with pytest.raises(SystemExit, match="num_hidden"):
        run(program, *own, "--num-epochs", 3, "--resume")


def test_validation_images_are_held_out(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not trained on, and the test set is not looked at."""
    seen: dict[str, Any] = {}

    def evaluate(machine: Any, test: Any, train: Any, options: Any) -> dict[str, Any]:
        seen.update(test, train=train)
        return {}

    monkeypatch.setattr(program, "evaluate", evaluate)
    run(program, "--hidden", 3, 2, "--start", "random", "--num-epochs", 1, "--validation", 100)
    whole = datasets.load("digits").train()
    assert torch.equal(seen["train"], whole[:-100])
    assert torch.equal(seen["grey levels"], whole[-100:])
    assert seen["binarised"].shape == (100, 64)


def test_missing_files(program: Any) -> None:
    with pytest.raises(SystemExit, match="--skip-training needs"):
        run(program, "--skip-training")
    with pytest.raises(SystemExit, match="--resume needs"):
        run(program, "--resume")
