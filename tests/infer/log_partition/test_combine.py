# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Several runs as one: pooled weights, averaged estimates, and what does not go together."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm.infer import (
    LogPartitionEstimate,
    LogPartitionWarning,
    combine_estimates,
    estimate_log_partition,
)
from tests.distributions.families import random_rbm

SETTINGS = {"method": "ais", "num_temperatures": 10, "num_chains": 50}


def weighted(
    log_weights: Tensor, seed: Any, reverse: bool = False, **settings: Any
) -> LogPartitionEstimate:
    own = SETTINGS | {"seed": seed, "seconds": 1.5} | settings
    return LogPartitionEstimate.from_log_weights(log_weights, own, reverse=reverse, warn=False)


def plain(value: float, std_error: float, seed: int, **options: Any) -> LogPartitionEstimate:
    settings = {"method": "tempering", "seed": seed, "num_chains": 10}
    return LogPartitionEstimate.from_error(
        value, std_error, settings, **{"ess": 40.0, "warn": False, **options}
    )


class TestWeights:
    @pytest.mark.parametrize("reverse", [False, True])
    def test_pooled(self, reverse: bool) -> None:
        parts = 0.5 * torch.randn(3, 50, 2, dtype=torch.float64)
        estimates = [weighted(w, seed, reverse) for seed, w in enumerate(parts)]
        combined = combine_estimates(estimates)
        whole = weighted(parts.flatten(0, 1), None, reverse)
        for name in ("value", "std_error", "lower", "upper", "ess", "log_weights"):
            assert torch.equal(getattr(combined, name), getattr(whole, name)), name
        assert combined.side == ("above" if reverse else "below")
        assert combined.settings == SETTINGS | {
            "seed": [0, 1, 2],
            "num_chains": 150,
            "seconds": 4.5,
        }

    def test_weights_are_averaged_and_not_logarithms(self) -> None:
        """Runs of one huge weight each: the mean of the estimates is biased, that of the weights not."""
        low, high = torch.zeros(50).double(), torch.full((50,), 10.0).double()
        with pytest.warns(LogPartitionWarning):
            combined = combine_estimates([weighted(low, 0), weighted(high, 1)])
        assert combined.value.item() == pytest.approx(10.0 + math.log(0.5 + 0.5 * math.exp(-10.0)))

    def test_runs_of_different_length(self) -> None:
        first, second = torch.zeros(50).double(), torch.ones(150).double()
        combined = combine_estimates([weighted(first, 0), weighted(second, 1)])
        assert combined.value.item() == pytest.approx(math.log(0.25 + 0.75 * math.e))
        assert combined.settings["num_chains"] == 200

    def test_one_warning_for_the_whole(self) -> None:
        bad = torch.zeros(50).double()
        bad[0] = 20.0
        with pytest.warns(LogPartitionWarning) as caught:
            combine_estimates([weighted(bad, 0), weighted(bad, 1)])
        assert len(caught) == 1 and caught[0].filename == __file__
        assert not combine_estimates([weighted(bad, 0), weighted(bad, 1)], warn=False).reliable

    def test_combinations_of_combinations(self) -> None:
        parts = torch.randn(3, 50, dtype=torch.float64)
        two = combine_estimates([weighted(parts[0], 0), weighted(parts[1], 1)])
        three = combine_estimates([two, weighted(parts[2], 2)])
        assert three.settings["seed"] == [0, 1, 2] and len(three.log_weights) == 150

    def test_one_alone(self) -> None:
        single = weighted(torch.randn(50).double(), 3)
        combined = combine_estimates([single])
        assert combined.settings == single.settings and torch.equal(combined.value, single.value)

    def test_of_a_machine(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"))
        options: dict[str, Any] = {"num_chains": 20, "num_temperatures": 10}
        runs = [estimate_log_partition(rbm, seed=seed, **options) for seed in (4, 7)]
        both = estimate_log_partition(rbm, seed=[4, 7], **options)
        assert torch.equal(combine_estimates(runs).value, both.value)


class TestWithoutWeights:
    def test_mean_and_error(self) -> None:
        combined = combine_estimates([plain(10.0, 0.3, 0), plain(10.4, 0.4, 1)])
        assert combined.value.item() == pytest.approx(10.2)
        assert combined.std_error.item() == pytest.approx(0.25)
        for end, sign in ((combined.lower, -1.0), (combined.upper, 1.0)):
            assert end.item() == pytest.approx(10.2 + sign * 1.959964 * 0.25)
        assert combined.ess == 80.0 and combined.log_weights is None
        assert combined.settings["seed"] == [0, 1] and combined.settings["num_chains"] == 20

    def test_intervals_that_are_no_normal_ones(self) -> None:
        runs = [plain(1.0, 0.1, s, lower=0.7, upper=1.8) for s in range(4)]
        combined = combine_estimates(runs)
        assert combined.lower.item() == pytest.approx(0.85)
        assert combined.upper.item() == pytest.approx(1.4)

    def test_errors_that_are_too_small_are_found(self) -> None:
        runs = [plain(float(seed), 0.01, seed) for seed in range(5)]
        with pytest.warns(LogPartitionWarning, match="differ by more than their standard errors"):
            combined = combine_estimates(runs)
        assert combined.std_error.item() == pytest.approx(math.sqrt(2.5 / 5))
        assert combined.value.item() == pytest.approx(2.0)

    def test_errors_that_are_right_are_believed(self) -> None:
        """Of 2,000 combinations of normal runs few are called contradictory, and intervals cover."""
        value = 0.3 * torch.randn(5, 2000, dtype=torch.float64)
        runs = [
            LogPartitionEstimate.from_error(
                v, torch.tensor(0.3), {"method": "x", "seed": i}, ess=None
            )
            for i, v in enumerate(value)
        ]
        combined = combine_estimates(runs, warn=False)
        covered = (combined.lower < 0) & (combined.upper > 0)
        assert 0.92 < covered.double().mean() < 0.98
        assert combined.std_error.median().item() == pytest.approx(0.3 / math.sqrt(5))
        assert (combined.std_error > 0.3 / math.sqrt(5) + 1e-6).double().mean() < 0.02

    def test_flags_are_kept_once(self) -> None:
        runs = [plain(1.0, 0.1, seed, flags=["few round trips"]) for seed in range(2)]
        assert combine_estimates(runs, warn=False).flags == ("few round trips",)

    def test_exact_ones(self) -> None:
        combined = combine_estimates([plain(1.0, 0.0, 0), plain(1.0, 0.0, 1)])
        assert combined.value == 1.0 and combined.std_error == 0.0 and combined.reliable


GOOD = torch.zeros(50, dtype=torch.float64)
WRONG: list[tuple[list[Any], type[Exception], str]] = [
    ([], ValueError, "estimates is empty"),
    ([weighted(GOOD, 0), 3.0], TypeError, "must hold LogPartitionEstimate, got float"),
    (
        [weighted(GOOD, 0), weighted(GOOD, 1, reverse=True)],
        ValueError,
        "from below and from above .* use LogPartitionBracket",
    ),
    (
        [weighted(GOOD, 0), weighted(GOOD, 1, num_temperatures=20)],
        ValueError,
        "estimate 1 .* num_temperatures is 10 and 20",
    ),
    (
        [weighted(GOOD, 0), weighted(GOOD, 1, base="uniform")],
        ValueError,
        "base is None and 'uniform'",
    ),
    ([weighted(GOOD, 0), weighted(GOOD, 0)], ValueError, r"seeds occur twice: \[0\]"),
    ([weighted(GOOD, [0, 1]), weighted(GOOD, 1)], ValueError, r"seeds occur twice: \[1\]"),
    (
        [weighted(GOOD, 0), weighted(GOOD.expand(2, 50).T, 1)],
        ValueError,
        r"different batch shapes: \(\) and \(2,\)",
    ),
]


@pytest.mark.parametrize(("estimates", "error", "message"), WRONG, ids=range(len(WRONG)))
def test_what_does_not_go_together(
    estimates: list[Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        combine_estimates(estimates)


def test_runs_without_seeds_may_be_combined() -> None:
    combined = combine_estimates([weighted(GOOD, None), weighted(GOOD, None)])
    assert combined.settings["seed"] == [None, None]
