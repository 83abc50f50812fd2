# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""What every test starts from, and where the files are that the repository does not hold."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def _clean_state() -> Iterator[None]:
    """The same seed, an empty parameter store and validation for every test."""
    dtype = torch.get_default_dtype()
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    pyro.enable_validation(True)
    yield
    torch.set_default_dtype(dtype)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """The folder of published models that are compared with (``cd25_500.npz``)."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("needs the published models in ../shared/golden, beside the checkout")
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of data sets: ``PYRO_EBM_DATA``, or ``../shared/data`` beside the checkout."""
    named = os.environ.get("PYRO_EBM_DATA")
    folder = Path(named) if named else SHARED / "data"
    if not folder.is_dir():
        where = f"PYRO_EBM_DATA={named}" if named else "../shared/data, beside the checkout"
        pytest.skip(f"needs the data sets: no folder {where} (set PYRO_EBM_DATA)")
    return folder
