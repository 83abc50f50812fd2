# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""That these tests test what they are there for: ArviZ 1.x, and no torch."""

import importlib.metadata
import importlib.util
from types import ModuleType


def test_arviz_is_1x() -> None:
    assert int(importlib.metadata.version("arviz").split(".")[0]) >= 1


def test_torch_is_absent() -> None:
    assert importlib.util.find_spec("torch") is None


def test_diagnostics_load_without_torch(diagnostics: ModuleType, convergence: ModuleType) -> None:
    assert callable(diagnostics.to_inference_data)
    assert callable(convergence.convergence_of)
