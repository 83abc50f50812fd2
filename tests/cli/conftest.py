# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""One small run that the tests of the other commands share; they copy what they change."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyro_ebm.cli.app import app

Invoke = Callable[..., Result]


def run_command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def invoke() -> Invoke:
    """Run a command that must succeed."""

    def call(*arguments: object) -> Result:
        result = run_command(*arguments)
        assert result.exit_code == 0, result.output
        return result

    return call


@pytest.fixture
def fails() -> Callable[..., str]:
    """Run a command that must fail with one line for people; gives that line."""

    def call(*arguments: object, code: int = 1) -> str:
        result = run_command(*arguments)
        assert result.exit_code == code, result.output
        assert isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.output
        lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, result.output
        return lines[0]

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    result = run_command(
        *("train", "digits", "--output", folder, "--hidden", 10, "--epochs", 2),
        *("--validation", 100, "--quiet"),
    )
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a small finished run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
