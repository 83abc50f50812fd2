# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The ArviZ 1.x side of the diagnostics, tested by ``make test-arviz1`` without torch."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def diagnostics() -> ModuleType:
    """``pyro_ebm.diagnostics`` loaded by its path, as ``import pyro_ebm`` needs torch."""
    path = ROOT / "pyro_ebm" / "diagnostics.py"
    spec = importlib.util.spec_from_file_location("diagnostics", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
