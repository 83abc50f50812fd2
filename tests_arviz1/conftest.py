# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The ArviZ 1.x side of the diagnostics, tested by ``make test-arviz1`` without torch."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(path: Path) -> ModuleType:
    """A file loaded by its path, as ``import pyro_ebm`` needs torch."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def diagnostics() -> ModuleType:
    """The file of ``to_inference_data``."""
    return load(ROOT / "pyro_ebm" / "diagnostics" / "inference_data.py")


@pytest.fixture(scope="session")
def convergence() -> ModuleType:
    """The file of ``convergence_of``."""
    return load(ROOT / "pyro_ebm" / "diagnostics" / "convergence.py")


@pytest.fixture(scope="session")
def reference_chains() -> ModuleType:
    """Chains and what ArviZ 0.x says of them."""
    return load(ROOT / "tests" / "diagnostics" / "reference_chains.py")


@pytest.fixture(scope="session")
def held_out() -> ModuleType:
    """The file of ``arviz_compare``."""
    return load(ROOT / "pyro_ebm" / "diagnostics" / "held_out.py")
