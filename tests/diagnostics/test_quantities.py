# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Functions of draws: directions, projections, chunks."""

import math

import pytest
import torch

from pyro_ebm.diagnostics import (
    leading_direction,
    machine_functions,
    magnetisation,
    principal_component,
)
from pyro_ebm.diagnostics.quantities import evaluate
from pyro_ebm.distributions import BernoulliRBM, IsingRBM


def test_principal_component_finds_the_axis_between_modes() -> None:
    """Two patterns of the same magnetisation."""
    one, two = torch.tensor([1.0, 1, -1, -1]), torch.tensor([-1.0, -1, 1, 1])
    rows = torch.where(torch.rand(1000, 1) < 0.5, one, two) + 0.1 * torch.randn(1000, 4)
    direction = principal_component(rows.view(10, 100, 4))
    assert direction is not None
    assert abs(float(direction(one) - direction(two))) == pytest.approx(4.0, abs=0.01)
    torch.testing.assert_close(magnetisation(one), torch.tensor(0.0))


@pytest.mark.parametrize("shape", [(50, 3), (3, 50)], ids=str)
def test_principal_component_against_svd(shape: tuple[int, int]) -> None:
    rows = torch.randn(shape, dtype=torch.float64) * torch.linspace(1, 3, shape[1])
    direction = principal_component(rows)
    assert direction is not None
    expected = torch.linalg.svd(rows - rows.mean(0)).Vh[0]
    torch.testing.assert_close(direction(rows).abs(), (rows @ expected).abs())


def test_nothing_varies() -> None:
    assert principal_component(torch.ones(4, 10, 3)) is None


@pytest.mark.parametrize("num_hidden", [2, 9])
def test_leading_direction(num_hidden: int) -> None:
    weight = torch.randn(6, num_hidden, dtype=torch.float64)
    rbm = BernoulliRBM(weight, torch.zeros(6).double(), torch.zeros(num_hidden).double())
    got = leading_direction(rbm)(torch.eye(6, dtype=torch.float64))
    expected = torch.linalg.svd(weight).U[:, 0]
    torch.testing.assert_close(got, expected * expected.sum().sign())


def test_machine_functions() -> None:
    rbm = IsingRBM(torch.randn(6, 3), torch.randn(6), torch.randn(3))
    functions, v = machine_functions(rbm), rbm.sample((5,))
    assert list(functions) == ["energy", "projection", "leading direction"]
    torch.testing.assert_close(functions["energy"](v), rbm.free_energy(v))
    projection = functions["projection"]
    torch.testing.assert_close(projection(v), machine_functions(rbm)["projection"](v))
    assert not torch.allclose(projection(v), machine_functions(rbm, seed=1)["projection"](v))
    unit = projection(torch.eye(6)).square().sum().item()
    assert math.isclose(unit, 1.0, rel_tol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
def test_states_of_any_type(dtype: torch.dtype) -> None:
    rbm = BernoulliRBM(torch.randn(6, 3), torch.randn(6), torch.randn(3))
    v = rbm.sample((5,))
    for function in (*machine_functions(rbm).values(), magnetisation):
        torch.testing.assert_close(function(v.to(dtype)).float(), function(v))


def test_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    v = torch.randn(3, 10, 2, 4)
    whole = evaluate(magnetisation, v)
    assert whole.shape == (3, 10, 2) and whole.dtype == torch.float64
    for entries in (1, 50):
        monkeypatch.setattr("pyro_ebm.diagnostics.quantities._CHUNK_ENTRIES", entries)
        assert torch.equal(evaluate(magnetisation, v), whole)
