# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The surroundings of the examples in docstrings (``pytest --doctest-modules pyro_ebm``).

They are those of ``docs/source/conf.py``: torch and pyro are imported, and the random number
generators seeded. Imports wait for the first example, as ``tests_arviz1`` runs without torch.
"""

import pytest


@pytest.fixture(autouse=True)
def _doctest_surroundings(request: pytest.FixtureRequest) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        import pyro
        import torch

        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        request.getfixturevalue("doctest_namespace").update(pyro=pyro, torch=torch)
