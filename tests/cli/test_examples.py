# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_mnist_rbm_smoke(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    command = [sys.executable, ROOT / "examples" / "mnist_rbm.py", "--smoke", "--output", model]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "test log-likelihood by AIS: -2" in done.stdout
    assert "reverse AIS" in done.stdout
    assert model.is_file()
