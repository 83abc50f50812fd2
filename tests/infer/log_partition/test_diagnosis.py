# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""What weights say about themselves: false alarms and detections on weights that are known."""

import math

import pytest
import torch
from torch import Tensor

from pyro_ebm.infer import LogPartitionEstimate
from pyro_ebm.infer.log_partition.diagnosis import lognormal_error, suspicions
from tests.infer.reference import binomial_tail

NUM_RUNS = 1000


def normal(spread: float, num_chains: int = 100) -> Tensor:
    """Log-weights of mean weight 1."""
    noise = torch.randn(num_chains, NUM_RUNS, dtype=torch.float64)
    return spread * noise - 0.5 * spread**2


def flagged(log_weights: Tensor) -> int:
    return int(suspicions(log_weights).elements.sum())


def estimate(log_weights: Tensor, reverse: bool = False) -> LogPartitionEstimate:
    return LogPartitionEstimate.from_log_weights(
        log_weights, {"method": "ais"}, reverse=reverse, warn=False
    )


class TestRates:
    @pytest.mark.parametrize(
        ("num_chains", "spread", "rate"),
        [(100, 0.5, 0.005), (100, 1.0, 0.01), (50, 1.0, 0.02), (1000, 1.0, 0.001)],
    )
    def test_false_alarms(self, num_chains: int, spread: float, rate: float) -> None:
        found = flagged(normal(spread, num_chains))
        assert binomial_tail(NUM_RUNS - found, NUM_RUNS, 1.0 - rate) > 1e-6

    @pytest.mark.parametrize(
        ("num_chains", "spread", "rate"), [(100, 2.0, 0.99), (100, 2.5, 0.999), (1000, 2.5, 0.99)]
    )
    def test_detections(self, num_chains: int, spread: float, rate: float) -> None:
        found = flagged(normal(spread, num_chains))
        assert binomial_tail(found, NUM_RUNS, rate) > 1e-6

    def test_a_tail_without_a_mean(self) -> None:
        """Weights u^-1.2: most look harmless but for their tail. The effective sample size of half of
        them is fine, and the tail gives them away."""
        u = torch.rand(2000, 200, dtype=torch.float64)
        flags = [suspicions(w).flags for w in (-1.2 * u.log()).unbind(1)]
        assert sum(any("Pareto" in text for text in f) for f in flags) > 160

    def test_chains_with_tiny_weights_do_no_harm(self) -> None:
        """A few stray chains far below the others: their weights are nothing, and nothing is lost."""
        log_weights = 0.2 * torch.randn(100, dtype=torch.float64)
        log_weights[:10] -= 30.0
        assert suspicions(log_weights).flags == ()
        assert suspicions(-log_weights).flags != ()


class TestTexts:
    def test_one_estimate(self) -> None:
        log_weights = torch.zeros(100, dtype=torch.float64)
        log_weights[:5] = 20.0
        flags = suspicions(log_weights).flags
        assert flags[0] == "the effective sample size is 5.0 of 100 chains"
        assert flags[1].startswith("the standard deviation of the log-weights is 5.69")
        assert flags[1].endswith("more than 1.52")
        assert flags[2].startswith("the tail of the weights is heavy (Pareto k ")

    def test_batches_quote_the_worst_and_count(self) -> None:
        log_weights = torch.zeros(100, 2, 3, dtype=torch.float64)
        log_weights[:5, 0, 1] = 20.0
        log_weights[:4, 1, 2] = 20.0
        found = suspicions(log_weights)
        assert found.flags[0] == (
            "the effective sample size is 4.0 of 100 chains (in 2 of 6 elements)"
        )
        assert found.elements.nonzero().tolist() == [[0, 1], [1, 2]]

    @pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
    def test_weights_that_are_not_finite(self, bad: float) -> None:
        log_weights = torch.zeros(100, dtype=torch.float64)
        log_weights[3] = bad
        assert "some weights are not finite" in suspicions(log_weights).flags

    @pytest.mark.parametrize("number", [1, 2, 3, 24])
    def test_few_chains(self, number: int) -> None:
        assert suspicions(torch.zeros(number, dtype=torch.float64)).flags == ()
        assert estimate(torch.zeros(number, dtype=torch.float64)).value == 0.0


class TestIntervals:
    def test_quiet_ones_are_students(self) -> None:
        log_weights = normal(1.0)
        found = suspicions(log_weights).elements
        e = estimate(log_weights)
        half = e.upper - e.value
        torch.testing.assert_close(half[~found], 1.984217 * e.std_error[~found], rtol=1e-4, atol=0)
        assert (half >= 1.984 * e.std_error).all()

    @pytest.mark.parametrize("reverse", [False, True])
    def test_wider_where_suspicious(self, reverse: bool) -> None:
        """Weights of a spread of 2.5, whose naive intervals cover at 72 %, cover at 95 %."""
        log_weights = -normal(2.5) if reverse else normal(2.5)
        e = estimate(log_weights, reverse)
        naive = (e.value.abs() < 1.984 * e.std_error).sum().item()
        covered = ((e.lower < 0) & (e.upper > 0)).sum().item()
        assert binomial_tail(naive, NUM_RUNS, 0.85) < 1e-6 < binomial_tail(covered, NUM_RUNS, 0.94)

    def test_error_of_lognormal_weights(self) -> None:
        log_weights = normal(0.8, 10_000)[:, :50]
        expected = math.sqrt(math.expm1(0.64) / 10_000)
        assert lognormal_error(log_weights).mean().item() == pytest.approx(expected, rel=0.05)
        # Bounded: what weights of a huge spread say is that they know nothing.
        assert lognormal_error(torch.tensor([0.0, 1e6] * 50)).item() == pytest.approx(
            0.995, rel=0.01
        )


def test_elements_of_a_batch_are_examined_by_themselves() -> None:
    log_weights = torch.zeros(100, 2, 3, dtype=torch.float64)
    log_weights[:5, 0, 1] = 20.0
    e = estimate(log_weights)
    assert not e.reliable and e[0, 0].reliable and not e[0, 1].reliable
    assert e[0, 1].flags[0] == "the effective sample size is 5.0 of 100 chains"
    assert e[1].value.shape == (3,) and e[1].reliable
    assert e[:, 1:].log_weights is not None and e[:, 1:].value.shape == (2, 2)
    for name in ("value", "std_error", "lower", "upper", "ess"):
        torch.testing.assert_close(getattr(e[0, 1], name), getattr(e, name)[0, 1])
