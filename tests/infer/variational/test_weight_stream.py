# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Importance weights in chunks, against the formulas of all of them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm.infer import ModelLogLikelihood
from pyro_ebm.infer.variational import weight_stream
from pyro_ebm.infer.variational.weight_stream import RowWeights, WeightStream
from pyro_ebm.ops.numerics import effective_sample_size, log_mean_exp, log_mean_exp_error
from pyro_ebm.ops.pareto import pareto_k
from tests.infer.variational.noisy_bits import (
    CLOSE,
)


class TestWeightStream:
    @pytest.mark.parametrize("number", [2, 7, 101])
    def test_chunks_are_the_whole(self, number: int) -> None:
        weights = 3.0 + 0.5 * torch.randn(number, 4, dtype=torch.float64)
        stream = WeightStream(number)
        for chunk in weights.split(3):
            stream.add(chunk)
        rows = stream.rows()
        torch.testing.assert_close(rows.value, log_mean_exp(weights), **CLOSE)
        torch.testing.assert_close(rows.ess, effective_sample_size(weights), **CLOSE)
        torch.testing.assert_close(rows.pareto_k, pareto_k(weights), equal_nan=True, **CLOSE)
        error = weights.exp().std(0) / math.sqrt(number) / weights.exp().mean(0)
        torch.testing.assert_close(rows.std_error, error, **CLOSE)
        halves = weights[0::2], weights[1::2]
        bias = log_mean_exp(weights) - sum(log_mean_exp(h) * (len(h) / number) for h in halves)
        torch.testing.assert_close(rows.bias, bias, **CLOSE)

    def test_error_is_the_jackknife_of_many(self) -> None:
        weights = torch.randn(2000, 3, dtype=torch.float64)
        stream = WeightStream(2000)
        stream.add(weights)
        torch.testing.assert_close(
            stream.rows().std_error, log_mean_exp_error(weights), rtol=0.01, atol=0
        )

    def test_memory_does_not_grow(self) -> None:
        stream = WeightStream(100_000)
        for _ in range(10):
            stream.add(torch.randn(10_000, 2, dtype=torch.float64))
        assert stream._top is not None and len(stream._top) == math.ceil(3 * math.sqrt(100_000)) + 1
        assert stream.rows().value.isfinite().all()

    def test_tail_is_fitted_to_what_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The fit sees the largest weights alone, not a column of all of them for every row."""
        seen: list[int] = []

        def fit(log_weights: Tensor, **options: Any) -> Tensor:
            seen.append(len(log_weights))
            return pareto_k(log_weights, **options)

        monkeypatch.setattr(weight_stream, "pareto_k", fit)
        stream, weights = WeightStream(10_000), torch.randn(10_000, 2, dtype=torch.float64)
        for chunk in weights.split(1000):
            stream.add(chunk)
        torch.testing.assert_close(stream.rows().pareto_k, pareto_k(weights), **CLOSE)
        assert seen == [301]

    def test_halves_without_weight(self) -> None:
        """One half all zero, or all weights: the estimate may be too low by any amount, and says so."""
        weights = torch.zeros(100, 3, dtype=torch.float64)
        weights[1::2, 0] = -math.inf
        weights[:, 1] = -math.inf
        stream = WeightStream(100)
        for chunk in weights.split(7):
            stream.add(chunk)
        rows = stream.rows()
        assert rows.bias.tolist() == [math.inf, math.inf, pytest.approx(0.0, abs=1e-9)]
        assert rows.value.tolist() == [
            pytest.approx(-math.log(2.0)),
            -math.inf,
            pytest.approx(0.0, abs=1e-9),
        ]
        assert rows.std_error[1] == math.inf and rows.ess.tolist()[1] == 0.0
        result = ModelLogLikelihood.from_weights(
            rows, [], {"num_particles": 100, "log_partition": {}}, exact=False
        )
        assert result.lower == -math.inf and result.upper == math.inf
        assert any("half of the weights are all zero in 2 of 3 rows" in f for f in result.flags)
        assert not any("inf nats" in flag for flag in result.flags)

    def test_one_weight_has_no_error(self) -> None:
        stream = WeightStream(1)
        stream.add(torch.ones(1, 2, dtype=torch.float64))
        rows = stream.rows()
        assert torch.equal(rows.value, torch.ones(2, dtype=torch.float64))
        assert bool(rows.std_error.isinf().all()) and bool((rows.bias == 0.0).all())


class TestFlags:
    def test_few_of_few_particles(self) -> None:
        """The limit is half of the particles where these are few."""
        one = torch.ones(2, dtype=torch.float64)
        weights = RowWeights(one, one, 0.0 * one, 1.2 * one, torch.nan * one)
        result = ModelLogLikelihood.from_weights(
            weights, [], {"num_particles": 5, "log_partition": {}}, exact=False
        )
        assert result.flags == (
            "fewer than 2.5 of 5 particles carry the weight in 2 of 2 rows: use a better guide",
        )

    def test_bias_and_rows_without_an_estimate(self) -> None:
        one = torch.ones(3, dtype=torch.float64)
        weights = RowWeights(
            torch.tensor([1.0, -math.inf, 0.0]).double(), one, one, 100.0 * one, 0.1 * one
        )
        result = ModelLogLikelihood.from_weights(
            weights, [], {"num_particles": 200, "log_partition": {}}, exact=False
        )
        assert "1 of 3 rows have no finite estimate" in result.flags[0]
        assert "too low by about 1.0 nats" in result.flags[1]
