# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyro_ebm
from pyro_ebm import datasets
from pyro_ebm.infer import exact_log_partition, log_likelihood

ROOT = Path(__file__).resolve().parent.parent.parent


def _run(*arguments: object, fails: bool = False) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["rbm_mnist.py", "rbm_fashion_mnist.py"])
def test_smoke(name: str, tmp_path: Path) -> None:
    assert "test log-likelihood, exact: -2" in _run(
        ROOT / "examples" / name, "--smoke", "--output", tmp_path
    )
    report = json.loads((tmp_path / "report.json").read_text())
    # The report is about the model that was written.
    with torch.no_grad():
        machine = pyro_ebm.load(tmp_path / "model.safetensors")()
    test = datasets.load("digits").binarized("test", seed=0)
    rows = log_likelihood(machine, test, exact_log_partition(machine))
    assert abs(rows.mean().item() - report["log_likelihood"]) < 1e-4
    assert report["training"]["learning_rate_schedule"] == "cosine"
    for picture in ("filters", "chains", "samples", "history"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 5000


def test_both_sides_and_resume(tmp_path: Path) -> None:
    """More than 20 hidden units: log Z from both sides; a run that is resumed ends as one that was not."""
    program = ROOT / "examples" / "rbm_mnist.py"
    small = ["--data", "digits", "--hidden", 24, "--num-chains", 20, "--ais-temperatures", 300]
    small += ["--validation", 300, "--samples", 4, "--learning-rate-schedule", "constant"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _run(program, *small, "--num-epochs", 4, "--output", whole)
    checkpoint = ["--checkpoint", tmp_path / "run.safetensors", "--output", parts]
    _run(program, *small, *checkpoint, "--num-epochs", 2)
    _run(program, *small, *checkpoint, "--num-epochs", 4, "--resume")
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    report = json.loads((whole / "report.json").read_text())
    low, high = report["log_likelihood_interval"]
    assert low < report["AIS"]["log_likelihood"] < high and -30 < low and high < -20
    # The file alone gives the same likelihoods again.
    again = tmp_path / "again"
    _run(program, *small, "--model", whole / "model.safetensors", "--output", again)
    repeated = json.loads((again / "report.json").read_text())
    assert repeated["log_likelihood_interval"] == report["log_likelihood_interval"]
    message = _run(program, *small, "--resume", fails=True)
    assert "--resume needs the --checkpoint" in message
