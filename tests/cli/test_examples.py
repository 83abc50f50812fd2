# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

import json
import subprocess
import sys
from pathlib import Path

from pyro_ebm.infer import LogPartitionComparison

ROOT = Path(__file__).resolve().parent.parent.parent


def test_log_partition_methods_smoke(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples" / "log_partition_methods.py", "--smoke"]
    command += ["--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    comparison = LogPartitionComparison.load_json(tmp_path / "comparison.json")
    exact = float(done.stdout.split("exact log Z: ")[1].split()[0])
    # RAISE is an upper side that depends on the data; the others estimate log Z itself.
    for name, estimate in comparison.estimates.items():
        assert abs(estimate.value.item() - exact) < 0.1, name
    assert "trajectory-ais" in comparison.estimates
    for name in ("comparison.md", "comparison.tex", "comparison.png"):
        assert (tmp_path / name).stat().st_size > 100


def _smoke(name: str, output: Path) -> str:
    command = [sys.executable, ROOT / "examples" / name, "--smoke", "--output", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nbm_regression_smoke(tmp_path: Path) -> None:
    assert "symmetric minus nbm" in _smoke("nbm_regression.py", tmp_path)
    scores = json.loads((tmp_path / "regression.json").read_text())["results"]["skewed"]
    # The machine without a hidden bias cannot be skewed; no model beats the law that made the data.
    best = scores["truth"][0]["log_likelihood"]
    likelihoods = {name: rows[0]["log_likelihood"] for name, rows in scores.items()}
    assert likelihoods["symmetric"] < likelihoods["nbm"] < best + 0.1
    assert (tmp_path / "skewed.png").stat().st_size > 10_000


def test_nbm_missing_smoke(tmp_path: Path) -> None:
    assert "half seen, machine" in _smoke("nbm_missing.py", tmp_path)
    results = json.loads((tmp_path / "missing.json").read_text())
    # Draws by enumeration are those of the exact conditional law: their error is one standard error.
    assert abs(results["rows"]["draws"][0]["exact"] - 1.0) < 0.5
    assert results["rows"]["scores"]["truth"][0]["rmse_to_exact"] == 0.0
    assert (tmp_path / "digits_left.png").stat().st_size > 10_000


def test_nbm_in_pyro_smoke(tmp_path: Path) -> None:
    assert "NUTS and block Gibbs: largest error" in _smoke("nbm_in_pyro.py", tmp_path)
    results = json.loads((tmp_path / "gaussian.json").read_text())
    # The evidence bounds the ELBO, up to the noise of the latter.
    assert results["svi"]["gap"] > -0.5
    assert results["compound"]["num_draws"] == 15
    assert (tmp_path / "gaussian.png").stat().st_size > 10_000


def test_nbm_mnist_smoke(tmp_path: Path) -> None:
    assert "conditional log-likelihood" in _smoke("nbm_mnist.py", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    ends = (report["likelihood"][name] for name in ("lower", "value", "upper"))
    assert sorted(values := list(ends)) == values and -30.0 < values[0] and values[2] < -15.0
    assert report["classification"]["accuracy"]["value"] > 0.7
    assert set(report["samples"]["classes"]) == {str(k) for k in range(10)}
    for name in ("samples.png", "parameters.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_nbm_fashion_mnist_smoke_of_the_paper(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples" / "nbm_fashion_mnist.py", "--smoke"]
    command += ["--preset", "paper", "--visible", "gaussian", "--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "report.json").read_text())["options"]["steps"] == 32
