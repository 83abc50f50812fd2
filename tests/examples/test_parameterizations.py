# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_smoke(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples" / "parameterizations.py", "--smoke"]
    command += ["--output", tmp_path, "--variants", "centred", "natural"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "parameterizations.json").read_text())
    assert list(report) == ["centred", "natural"]
    for name, result in report.items():
        trials = {float(rate): value for rate, value in result["trials"].items()}
        assert result["rate"] == max(trials, key=trials.__getitem__) and len(trials) > 1
        assert result["training"]["learning_rate"] == result["rate"]
        times = [record["cpu_seconds"] for record in result["history"]]
        assert times == sorted(times) and times[-1] >= 1.0
        last = result["history"][-1]
        # Exact with ten hidden units; independent pixels have -27.1.
        assert last["low"] == last["high"] == last["log_likelihood_test"] > -26.8, name
    natural = report["natural"]["training"]
    assert natural["preconditioner"] == "natural" and natural["damping"] == 0.1
    assert (tmp_path / "parameterizations.png").stat().st_size > 10_000
