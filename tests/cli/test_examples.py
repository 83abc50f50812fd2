# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

import subprocess
import sys
from pathlib import Path

from pyro_ebm.infer import LogPartitionComparison

ROOT = Path(__file__).resolve().parent.parent.parent


def test_mnist_rbm_smoke(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    command = [sys.executable, ROOT / "examples" / "mnist_rbm.py", "--smoke", "--output", model]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "test log-likelihood by AIS: -2" in done.stdout
    assert "reverse AIS" in done.stdout
    assert model.is_file()


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
