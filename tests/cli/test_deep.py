# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The commands on deep machines."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

import pyro_ebm
from pyro_ebm import datasets, nn
from pyro_ebm.infer import exact_log_partition
from tests.cli.conftest import run_command

Invoke = Callable[..., Result]
Fails = Callable[..., str]
QUICK_AIS = ("--ais-chains", 50, "--ais-temperatures", 500, "--quiet")
QUICK_CHAINS = ("--chains", 4, "--draws", 12, "--warmup", 5, "--thin", 2, "--quiet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli-deep") / "run"
    layers = '[{"sparsity_cost": 0.01, "sparsity_target": 0.2}, {}]'
    result = run_command(
        *("train", "digits", "--output", folder, "--hidden", "10,6", "--epochs", 2, "--quiet"),
        *("--hidden-units", "bernoulli,ising", "--option", f"layers={layers}"),
        *("--option", 'metrics=["elbo", "hidden_units"]', "--option", "persistent_start=data"),
    )
    assert result.exit_code == 0, result.output
    assert "DBM 64 x 10 x 6: 2 epochs" in result.output
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_files(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["num_hidden"] == [10, 6]
    assert config["model"]["hidden"] == ["bernoulli", "ising"]
    history = json.loads((run / "history.json").read_text())
    assert {"elbo_train", "dead_units_h1", "dead_units_h2"} < history[-1].keys()
    module = pyro_ebm.load(run)
    assert isinstance(module, nn.DBM) and module.sizes == (64, 10, 6) and module.centered


def test_resume(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    output = invoke("train", "--resume", "-o", run, "--epochs", 3, "--quiet").output
    assert "going on after epoch 2" in output
    assert len(json.loads((run / "history.json").read_text())) == 3


def test_evaluate(invoke: Invoke, run: Path) -> None:
    output = invoke("evaluate", run, *QUICK_AIS).output
    assert "mean-field bounds" in output
    result = json.loads((run / "evaluation.json").read_text())
    with torch.no_grad():
        dist = pyro_ebm.load(run)()
        log_z = exact_log_partition(dist.bipartite()).item()
    assert result["log_partition"]["exact"]["value"] == pytest.approx(log_z, abs=1e-9)
    for side in ("forward", "reverse"):
        estimate = result["log_partition"]["bracket"][side]
        assert abs(estimate["value"] - log_z) < max(0.02, 6 * estimate["std_error"])
    rows = datasets.load("digits").binarized("test", seed=0)
    with torch.no_grad():
        bound = dist.mean_field(rows, max_updates=1000, tolerance=1e-5).bound
        exact = torch.cat(
            [exact_log_partition(dist.posterior(r).bipartite()) for r in rows.split(50)]
        )
    value = result["log_likelihood"]["test"]["value"]
    assert value == pytest.approx(bound.mean().item() - log_z, abs=1e-3)
    assert value <= exact.mean().item() - log_z
    assert result["bound"] == "mean-field" and result["pseudo_log_likelihood"] is None


def test_sample_and_plot(invoke: Invoke, run: Path) -> None:
    output = invoke("sample", run, *QUICK_CHAINS).output
    assert "R-hat" in output
    samples = (run / "samples.png").read_bytes()
    invoke("plot", run, "--quiet")
    assert (run / "samples.png").read_bytes() == samples
    for name in ("filters.png", "filters-h2.png", "history.png", "energy.png"):
        assert (run / name).is_file()


def test_info(invoke: Invoke, run: Path) -> None:
    output = invoke("info", run).output
    for words in ("DBM, centred", "64 bernoulli", "10 bernoulli, 6 ising units", "780 learnable"):
        assert words in output


def test_refusals(fails: Fails, tmp_path: Path) -> None:
    start = ("train", "digits", "-o", tmp_path / "x", "--quiet", "--hidden")
    assert "--hidden-units: one family, or as many" in fails(
        *start, "10,6,4", "--hidden-units", "bernoulli,ising", code=2
    )
    assert "'x' is not a valid integer" in fails(*start, "10,x", code=2)
    assert "0 is not in the range" in fails(*start, "10,0", code=2)
    assert "'cat' is not one of" in fails(*start, "4,3", "--hidden-units", "cat", code=2)
    message = fails(*start, "10,6", "--option", "dropout=0.5")
    assert "dropout is an option of a nn.RBM" in message
