# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The shape of a tail: against known generalised Pareto distributions and against ArviZ."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_ebm.ops.pareto import (
    MIN_PARETO_WEIGHTS,
    generalized_pareto_shape,
    pareto_k,
    pareto_k_error,
)
from tests.infer.reference import Z_LIMIT

SHAPES = [-0.5, -0.1, 0.0, 0.3, 0.7, 1.0, 1.5]


def draws(shape: float, size: tuple[int, ...], scale: float = 1.0) -> Tensor:
    return torch.as_tensor(stats.genpareto.rvs(shape, scale=scale, size=size, random_state=0))


@pytest.mark.parametrize("shape", SHAPES)
def test_known_shapes(shape: float) -> None:
    """The fit's error is the asymptotic one, (1 + k) / sqrt(n), and its bias is smaller."""
    k = generalized_pareto_shape(draws(shape, (2000, 40)))
    error = (1.0 + max(shape, 0.0)) / math.sqrt(2000)
    assert abs(k.mean().item() - shape) < 0.3 * error + Z_LIMIT * error / math.sqrt(40)
    assert (0.3 if shape < 0 else 0.5) * error < k.std().item() < 1.5 * error


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_drops_out(scale: float) -> None:
    x = draws(0.4, (500,))
    assert generalized_pareto_shape(scale * x).item() == pytest.approx(
        generalized_pareto_shape(x).item(), rel=1e-6
    )


@pytest.mark.parametrize("number", [25, 30, 100, 1000, 5000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 12.0])
def test_is_arvizs(number: int, spread: float) -> None:
    az = pytest.importorskip("arviz")
    log_weights = spread * torch.randn(number, dtype=torch.float64)
    expected = float(az.psislw(log_weights.numpy().copy())[1])
    assert pareto_k(log_weights).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9, 1.3])
def test_weights_of_known_tail(shape: float) -> None:
    """Powers of uniform numbers, u^-k, have a tail of shape k; the prior pulls towards 1/2."""
    u = torch.rand(20_000, 30, dtype=torch.float64)
    k = pareto_k(-shape * u.log())
    tail = math.ceil(3.0 * math.sqrt(20_000))
    expected = (tail * shape + 10.0 * 0.5) / (tail + 10.0)
    error = pareto_k_error(20_000, shape)
    assert abs(k.mean().item() - expected) < 0.3 * error + Z_LIMIT * error / math.sqrt(30)
    assert 0.5 * error < k.std().item() < 1.6 * error


class TestShapes:
    def test_batches(self) -> None:
        log_weights = torch.randn(200, 2, 3, dtype=torch.float64)
        whole = pareto_k(log_weights)
        assert whole.shape == (2, 3)
        for i, k in np.ndindex(2, 3):
            torch.testing.assert_close(whole[i, k], pareto_k(log_weights[:, i, k]))
        torch.testing.assert_close(pareto_k(log_weights.movedim(0, -1), dim=-1), whole)

    def test_float32_and_shifts(self) -> None:
        log_weights = torch.randn(200)
        k = pareto_k(log_weights)
        assert k.dtype == torch.float64
        for shift in (1e5, -1e5):
            torch.testing.assert_close(pareto_k(log_weights.double() + shift), k, rtol=1e-4, atol=0)

    def test_largest_alone(self) -> None:
        """The rest counts by its number."""
        x = draws(0.4, (1000, 3)).log()
        top = x.sort(0, descending=True).values
        for number in (96, 200, 1000):
            assert torch.equal(pareto_k(top[:number], num_weights=1000), pareto_k(x))
        for number, given in ((95, 1000), (1000, 999)):
            with pytest.raises(ValueError, match=f"num_weights={given} weights, got {number}"):
                pareto_k(top[:number], num_weights=given)

    def test_too_few(self) -> None:
        assert pareto_k(torch.randn(MIN_PARETO_WEIGHTS - 1, 4)).isnan().all()
        assert pareto_k(torch.randn(MIN_PARETO_WEIGHTS, 4)).isfinite().all()
        assert pareto_k_error(MIN_PARETO_WEIGHTS - 1, 0.5) == math.inf

    def test_weights_that_are_all_the_same(self) -> None:
        assert (pareto_k(torch.zeros(100, 2)) == -math.inf).all()

    def test_one_weight_is_all(self) -> None:
        log_weights = torch.full((100,), -1e3)
        log_weights[7] = 0.0
        assert pareto_k(log_weights) > 1.0

    def test_weights_that_underflow(self) -> None:
        assert not pareto_k(100.0 * torch.randn(100, 500, dtype=torch.float64)).isnan().any()
