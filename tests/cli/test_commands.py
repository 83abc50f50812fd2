# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""evaluate, sample, plot, info, and what all commands have in common."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result
from matplotlib.image import imread

import pyro_ebm
from pyro_ebm import datasets
from pyro_ebm.cli.app import app
from pyro_ebm.cli.data import DataOptions
from pyro_ebm.cli.evaluation import AISOptions, evaluate
from pyro_ebm.cli.sampling import ChainOptions, read_chains, run_chains
from pyro_ebm.infer import exact_log_partition, log_likelihood

Invoke = Callable[..., Result]
Fails = Callable[..., str]
QUICK_AIS = ("--ais-chains", 50, "--ais-temperatures", 200, "--quiet")
QUICK_CHAINS = ("--chains", 4, "--draws", 12, "--warmup", 5, "--thin", 2, "--quiet")
COMMANDS = sorted(app.commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_complete(name: str) -> None:
    command = app.commands[name]
    assert command.help
    text = CliRunner().invoke(app, [name, "--help"], terminal_width=200).output
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name}: {parameter.name} has no help"
            assert all(option in text for option in parameter.opts)
        else:
            assert parameter.make_metavar(click.Context(command)) in text


def test_version_and_overview() -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["--version"]).output == f"pyro-ebm {pyro_ebm.__version__}\n"
    text = runner.invoke(app, ["-h"]).output
    assert all(name in text for name in COMMANDS)
    assert COMMANDS == ["demo", "evaluate", "info", "plot", "sample", "train"]


def test_without_click() -> None:
    code = "import sys; sys.modules['click'] = None; from pyro_ebm.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "the command line needs click: pip install 'pyro-ebm[cli]'"


def test_evaluate(invoke: Invoke, run: Path) -> None:
    output = invoke("evaluate", run, *QUICK_AIS).output
    result = json.loads((run / "evaluation.json").read_text())
    module = pyro_ebm.load(run)
    with torch.no_grad():
        log_z = exact_log_partition(module()).item()
    assert result["log_partition"]["exact"]["value"] == pytest.approx(log_z, abs=1e-9)
    assert f"{log_z:.3f}" in output
    for side in ("forward", "reverse"):
        estimate = result["log_partition"]["bracket"][side]
        assert abs(estimate["value"] - log_z) < max(0.02, 5 * estimate["std_error"])
    data = datasets.load("digits", validation=100)
    for split in ("train", "validation", "test"):
        rows = log_likelihood(module(), data.binarized(split, seed=0), log_z)
        got = result["log_likelihood"][split]
        assert got["value"] == pytest.approx(rows.mean().item(), abs=1e-6)
        error = rows.std().item() / math.sqrt(len(rows))
        assert got["std_error_of_rows"] == pytest.approx(error)
        assert got["rows"] == len(rows) and got["log_partition"] == "exact"
        assert got["upper"] - got["lower"] == pytest.approx(2 * 1.959964 * error)
    assert result["settings"]["num_chains"] == 50 and result["settings"]["seed"] == 0
    assert result["hardware"]["cpu"] and result["hardware"]["threads"] >= 1
    assert result["seconds"] > 0


def test_interval_without_the_exact_value(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    target = tmp_path / "other.json"
    options = ("--exact", "never", "--base", "biases", "--schedule", "adaptive", "--seed", 3)
    output = invoke("evaluate", run, *QUICK_AIS, *options, "--output", target).output
    assert "optimistic" in output
    result = json.loads(target.read_text())
    assert result["log_partition"]["exact"] is None
    bracket, test = result["log_partition"]["bracket"], result["log_likelihood"]["test"]
    assert test["log_partition"] == "midpoint"
    unnormalized = test["value"] + bracket["value"]
    assert test["lower_from_log_partition"] == pytest.approx(unnormalized - bracket["upper"])
    assert test["upper_from_log_partition"] == pytest.approx(unnormalized - bracket["lower"])
    margin = 1.959964 * test["std_error_of_rows"]
    assert test["lower"] == pytest.approx(test["lower_from_log_partition"] - margin)
    assert test["upper"] == pytest.approx(test["upper_from_log_partition"] + margin)
    assert bracket["forward"]["settings"]["schedule"] == "adaptive"
    assert bracket["forward"]["settings"]["base"] == "visible biases"


def test_evaluate_a_model_file(invoke: Invoke, fails: Fails, run: Path, tmp_path: Path) -> None:
    file = shutil.copy(run / "model.safetensors", tmp_path / "model.safetensors")
    assert "--data" in fails("evaluate", file, *QUICK_AIS)
    invoke("evaluate", file, "--data", "digits", *QUICK_AIS)
    result = json.loads((tmp_path / "model.evaluation.json").read_text())
    assert set(result["log_likelihood"]) == {"train", "test"}


def test_data_of_another_size(fails: Fails, run: Path, data_dir: Path) -> None:
    message = fails("evaluate", run, "--data", "mnist", "--root", data_dir, *QUICK_AIS)
    assert "784" in message


def test_warnings_are_lines_of_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    module = pyro_ebm.nn.RBM(64, 10, seed=0, weight_scale=2.0)
    options = DataOptions(name="digits")
    ais = AISOptions(num_temperatures=3, num_chains=50)
    result = evaluate(module, options, options.load(), ais, progress=False)
    assert any("effective sample size" in message for message in result["warnings"])
    assert "warning: the effective sample size" in capsys.readouterr().err


def test_sample(invoke: Invoke, run: Path) -> None:
    output = invoke("sample", run, *QUICK_CHAINS).output
    assert "R-hat" in output and "ESS" in output and "free energy" in output
    chains = read_chains(run / "chains.nc")
    assert chains.v.shape == (4, 12, 64) and chains.energy.shape == (4, 12)
    assert chains.options == ChainOptions(num_chains=4, num_draws=12, warmup=5, thin=2, seed=0)
    with torch.no_grad():
        energy = pyro_ebm.load(run)().free_energy(chains.v)
    torch.testing.assert_close(chains.energy, energy)
    again = run_chains(pyro_ebm.load(run), chains.options, progress=False)
    assert torch.equal(again.v, chains.v)
    for name in ("samples.png", "energy.png"):
        assert imread(run / name).std() > 0.05


def test_sample_elsewhere(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    invoke("sample", run, *QUICK_CHAINS, "--output", tmp_path / "deep" / "mine.nc")
    names = {path.name for path in (tmp_path / "deep").iterdir()}
    assert names == {"mine.nc", "mine-samples.png", "mine-energy.png"}


def test_single_chain_has_no_diagnostics(invoke: Invoke, run: Path) -> None:
    output = invoke("sample", run, "--chains", 1, "--draws", 3, "--warmup", 0, "-q").output
    assert "need at least 2 chains" in output


@pytest.mark.parametrize("family", ["ising", "gaussian"])
def test_other_families(invoke: Invoke, tmp_path: Path, family: str) -> None:
    run = tmp_path / family
    options = ("--visible-units", family, "--learning-rate", "1e-3", "--quiet")
    invoke("train", "digits", "-o", run, "--hidden", 6, "--epochs", 1, *options)
    invoke("evaluate", run, *QUICK_AIS)
    result = json.loads((run / "evaluation.json").read_text())
    assert (result["pseudo_log_likelihood"] is None) == (family == "gaussian")
    invoke("sample", run, *QUICK_CHAINS)
    invoke("plot", run, "--quiet")
    assert family in invoke("info", run).output


def test_plot(invoke: Invoke, run: Path) -> None:
    pictures = ("filters.png", "history.png", "samples.png", "energy.png")
    output = invoke("plot", run, "--quiet").output
    for name in pictures:
        assert str(run / name) in output
        assert imread(run / name).shape[0] > 100
    assert not (run / "chains.nc").exists()
    invoke("sample", run, *QUICK_CHAINS)
    sampled = (run / "samples.png").read_bytes()
    (run / "samples.png").unlink()
    invoke("plot", run, "--quiet")
    assert (run / "samples.png").read_bytes() == sampled


def test_info(invoke: Invoke, run: Path) -> None:
    output = invoke("info", run).output
    for words in ("64 bernoulli", "10 bernoulli", "714 learnable", "PCD-1", "2 of 2", "digits"):
        assert words in output
    assert "not evaluated yet" in output
    invoke("evaluate", run, *QUICK_AIS)
    assert "log Z exact" in invoke("info", run).output
    model = invoke("info", run / "model.safetensors").output
    assert "64 bernoulli" in model and "PCD" not in model


def test_unfinished_run(invoke: Invoke, run: Path) -> None:
    (run / "model.safetensors").unlink()
    assert "64 bernoulli" in invoke("info", run).output


@pytest.mark.parametrize("command", ["evaluate", "sample", "plot", "info"])
def test_no_such_model(fails: Fails, tmp_path: Path, command: str) -> None:
    assert "no run folder or model" in fails(command, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "no model and no checkpoint" in fails(command, tmp_path / "empty")


@pytest.mark.parametrize("command", ["evaluate", "sample", "plot", "info"])
def test_damaged_model(fails: Fails, run: Path, command: str) -> None:
    (run / "model.safetensors").write_bytes(b"\0" * 100)
    assert "model.safetensors" in fails(command, run)


@pytest.mark.parametrize("command", ["evaluate", "sample", "info"])
def test_conditional_model(fails: Fails, tmp_path: Path, command: str) -> None:
    path = tmp_path / "model.safetensors"
    pyro_ebm.save(pyro_ebm.nn.NeuralBoltzmannMachine(10, 64, 4, "bernoulli"), path)
    message = fails(command, path)
    assert f"{path} holds a NeuralBoltzmannMachine" in message
    assert "the commands take RBMs" in message and "condition()" in message


def test_damaged_chains(fails: Fails, run: Path) -> None:
    (run / "chains.nc").write_bytes(b"nonsense")
    assert "chains.nc" in fails("plot", run, "--quiet")
