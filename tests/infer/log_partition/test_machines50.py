# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""AIS from both sides on fifty machines: intervals that cover, and runs that know when they are too short.

Every run of 600 chains is cut into six of 100. Limits are binomial, with a false alarm in 10^6 or less if
the rates are those that are documented, or a little worse.
"""

import math
import warnings
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from pyro_ebm.infer import LogPartitionEstimate, LogPartitionWarning, estimate_log_partition
from tests.infer.log_partition.machines50 import COUPLINGS, Case, machines
from tests.infer.reference import Z_LIMIT, binomial_tail

METHODS = ["ais", "reverse-ais"]
NUM_RUNS, NUM_CHAINS = 6, 100


@lru_cache
def run(case_number: int, method: str, divisor: int) -> Tensor:
    """Log-weights less the exact log Z, shape (chains, runs), at a fraction of adequate temperatures."""
    case = machines()[case_number]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogPartitionWarning)
        estimate = estimate_log_partition(
            case.rbm,
            method,
            num_chains=NUM_CHAINS * NUM_RUNS,
            num_temperatures=case.num_temperatures[method] // divisor,
            seed=case_number,
        )
    assert estimate.log_weights is not None
    return estimate.log_weights.view(NUM_CHAINS, NUM_RUNS) - case.log_z


@lru_cache
def estimates(method: str, divisor: int = 1) -> list[LogPartitionEstimate]:
    """All runs of all machines that need at least ``divisor`` temperatures; the truth is zero."""
    numbers = [i for i, c in enumerate(machines()) if c.num_temperatures[method] >= divisor]
    return [
        LogPartitionEstimate.from_log_weights(
            weights, {"method": method}, reverse=method == "reverse-ais", warn=False
        )
        for i in numbers
        for weights in run(i, method, divisor).unbind(1)
    ]


def is_likely(successes: int, trials: int, rate: float) -> bool:
    """Whether that few successes occur at that rate, with a false alarm in 10^6."""
    return binomial_tail(successes, trials, rate) > 1e-6


def covered(runs: list[LogPartitionEstimate], scale: float = 1.0) -> int:
    """Intervals around the truth, their halves scaled."""
    hits = 0
    for e in runs:
        hits += bool(
            e.value - scale * (e.value - e.lower) < 0 < e.value + scale * (e.upper - e.value)
        )
    return hits


def test_the_machines() -> None:
    cases = machines()
    assert len(cases) == 50 and len({case.name for case in cases}) == 50
    assert machines() is cases
    assert all(math.isfinite(case.log_z) for case in cases)
    assert {case.coupling for case in cases} == set(COUPLINGS)


@pytest.mark.parametrize("method", METHODS)
def test_log_weights_are_bounds_on_the_promised_side(method: str) -> None:
    sign = 1.0 if method == "ais" else -1.0
    for number in range(50):
        weights = sign * run(number, method, 1).flatten()
        error = weights.std() / len(weights) ** 0.5
        assert weights.mean() < Z_LIMIT * error, machines()[number].name


@pytest.mark.parametrize("method", METHODS)
def test_intervals_cover(method: str) -> None:
    """Intervals of 95 % that 100 log-normal weights of a standard deviation of 1 carry cover at 93 %."""
    runs = estimates(method)
    assert len(runs) == 300
    assert is_likely(covered(runs), 300, 0.9 if method == "ais" else 0.88)
    # The test has teeth: intervals of half the width are refused.
    assert not is_likely(covered(runs, 0.5), 300, 0.88)
    # And it is not vacuous.
    assert torch.stack([e.upper - e.lower for e in runs]).median() < 0.6


def test_brackets_are_never_inverted_beyond_their_error() -> None:
    below, above = estimates("ais"), estimates("reverse-ais")
    crossed = sum(bool(f.lower > r.upper) for f, r in zip(below, above, strict=True))
    assert is_likely(300 - crossed, 300, 0.995)
    for number in range(50):
        forward, reverse = (run(number, m, 1).flatten() for m in METHODS)
        low = LogPartitionEstimate.from_log_weights(forward, {"method": "ais"}, warn=False)
        high = LogPartitionEstimate.from_log_weights(
            reverse, {"method": "reverse-ais"}, reverse=True, warn=False
        )
        error = torch.hypot(low.std_error, high.std_error)
        assert low.value - high.value < Z_LIMIT * error + 0.1, machines()[number].name


class TestSelfDiagnosis:
    @pytest.mark.parametrize("method", METHODS)
    def test_adequate_runs_are_rarely_flagged(self, method: str) -> None:
        quiet = sum(e.reliable for e in estimates(method))
        assert is_likely(quiet, 300, 0.98 if method == "ais" else 0.95)

    @pytest.mark.parametrize("method", METHODS)
    def test_a_tenth_of_the_temperatures_is_flagged(self, method: str) -> None:
        runs = estimates(method, 10)
        assert len(runs) >= 170
        flagged = sum(not e.reliable for e in runs)
        assert is_likely(flagged, len(runs), 0.995 if method == "ais" else 0.97)

    @pytest.mark.parametrize("method", METHODS)
    def test_there_is_something_to_flag(self, method: str) -> None:
        """Naive intervals of such runs cover too rarely; the widened ones help but do not cure."""
        runs = estimates(method, 10)
        naive = 0
        for e in runs:
            naive += bool((e.value.abs() < 1.98 * e.std_error).all())
        assert not is_likely(naive, len(runs), 0.93)
        assert covered(runs) > naive + 0.1 * len(runs)

    def test_a_weaker_diagnosis_would_not_pass(self) -> None:
        """The effective sample size alone misses a fifth of the runs that are too short."""
        runs = estimates("ais", 10)
        flagged = sum(bool((e.ess < 10.0).all()) for e in runs)
        assert not is_likely(flagged, len(runs), 0.97)


def find(name: str) -> Case:
    return next(case for case in machines() if case.name == name)


def test_other_seeds_and_a_truly_short_run() -> None:
    """One estimate as a user makes it: reliable if adequate, warned of at a tenth of that."""
    case = find("bernoulli-bernoulli-frustrated")
    needed = case.num_temperatures["ais"]
    good = estimate_log_partition(case.rbm, num_temperatures=4 * needed, seed=0)
    assert good.reliable and good.flags == ()
    with pytest.warns(LogPartitionWarning, match="standard deviation of the log-weights"):
        bad = estimate_log_partition(case.rbm, num_temperatures=needed // 10, seed=0)
    assert not bad.reliable and "SUSPICIOUS" in str(bad)
