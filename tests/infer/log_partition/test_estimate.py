# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Estimates of log Z: the arithmetic of their errors, their warnings and their words."""

import json
import math
import warnings
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_ebm.infer import (
    LogPartitionBracket,
    LogPartitionEstimate,
    LogPartitionWarning,
    bracket_log_partition,
    exact_log_partition,
)
from pyro_ebm.ops.numerics import student_quantile
from tests.distributions.families import random_rbm

SETTINGS = {"method": "ais", "num_chains": 4, "num_temperatures": 10, "seed": None}


def estimate(log_weights: Tensor, reverse: bool = False) -> LogPartitionEstimate:
    return LogPartitionEstimate.from_log_weights(log_weights, dict(SETTINGS), reverse=reverse)


def around(value: float, spread: float = 0.1, reverse: bool = False) -> LogPartitionEstimate:
    offsets = torch.linspace(-1.0, 1.0, 20, dtype=torch.float64)
    return estimate(value + spread * offsets, reverse)


def flags_of(log_weights: Tensor, reverse: bool = False) -> tuple[str, ...]:
    settings = dict(SETTINGS)
    return LogPartitionEstimate.from_log_weights(
        log_weights, settings, reverse=reverse, warn=False
    ).flags


class TestArithmetic:
    WEIGHTS = torch.tensor([1.0, 2.0, 4.0, 1.0], dtype=torch.float64)

    def test_forward_is_the_mean_weight(self) -> None:
        result = estimate(self.WEIGHTS.log())
        assert result.value.item() == pytest.approx(math.log(2.0))

    def test_reverse_is_the_harmonic_mean(self) -> None:
        result = estimate(self.WEIGHTS.log(), reverse=True)
        assert result.value.item() == pytest.approx(math.log(4 / (1 + 0.5 + 0.25 + 1)))

    @pytest.mark.parametrize("reverse", [False, True])
    def test_error_is_the_jackknife(self, reverse: bool) -> None:
        sign = -1.0 if reverse else 1.0
        result = estimate(self.WEIGHTS.log(), reverse)
        left_out = []
        for i in range(4):
            rest = [w**sign for k, w in enumerate(self.WEIGHTS.tolist()) if k != i]
            left_out.append(sign * math.log(math.fsum(rest) / 3))
        mean = math.fsum(left_out) / 4
        expected = math.sqrt(3 / 4 * math.fsum((x - mean) ** 2 for x in left_out))
        assert result.std_error.item() == pytest.approx(expected)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_effective_sample_size(self, reverse: bool) -> None:
        weights = (1.0 / self.WEIGHTS if reverse else self.WEIGHTS).tolist()
        expected = math.fsum(weights) ** 2 / math.fsum(w * w for w in weights)
        assert estimate(self.WEIGHTS.log(), reverse).ess.item() == pytest.approx(expected)

    def test_interval_is_students(self) -> None:
        result = estimate(torch.randn(30, dtype=torch.float64))
        quantile = stats.t.ppf(0.975, 29)
        for end, sign in ((result.lower, -1.0), (result.upper, 1.0)):
            expected = result.value + sign * quantile * result.std_error
            assert end.item() == pytest.approx(expected.item(), rel=1e-4)

    def test_quantiles(self) -> None:
        for degrees, tolerance in ((3, 0.02), (5, 0.005), (10, 1e-3), (99, 1e-5), (10_000, 1e-7)):
            expected = stats.t.ppf(0.975, degrees)
            assert student_quantile(degrees) == pytest.approx(expected, rel=tolerance)
        assert student_quantile(0) == math.inf

    def test_batches(self) -> None:
        log_weights = torch.randn(50, 2, 3, dtype=torch.float64)
        whole = estimate(log_weights)
        for i in range(2):
            for k in range(3):
                part = estimate(log_weights[:, i, k])
                for name in ("value", "std_error", "lower", "upper", "ess"):
                    torch.testing.assert_close(getattr(whole, name)[i, k], getattr(part, name))

    def test_huge_and_tiny_weights(self) -> None:
        base = torch.randn(50, dtype=torch.float64)
        for shift in (1e4, -1e4):
            result = estimate(base + shift)
            assert result.value.item() == pytest.approx(estimate(base).value.item() + shift)
            assert result.std_error.item() == pytest.approx(estimate(base).std_error.item())


class TestWarnings:
    def test_few_chains_carry_the_estimate(self) -> None:
        log_weights = torch.zeros(100, dtype=torch.float64)
        log_weights[0] = 20.0
        with pytest.warns(
            LogPartitionWarning, match=r"effective sample size is 1\.0 of 100 chains"
        ):
            estimate(log_weights)
        # Backwards it is the smallest weight that counts, and here all others are that.
        estimate(log_weights, reverse=True)
        with pytest.warns(LogPartitionWarning, match=r"is 1\.0 of 100 chains"):
            estimate(-log_weights, reverse=True)

    def test_limit_is_a_tenth(self) -> None:
        """k equal weights among zeros have the effective sample size k."""
        log_weights = torch.full((100,), -1e3, dtype=torch.float64)
        log_weights[:9] = 0.0
        assert flags_of(log_weights)[0] == "the effective sample size is 9.0 of 100 chains"
        log_weights[:11] = 0.0
        assert not any("sample size" in flag for flag in flags_of(log_weights))

    def test_one_element_of_a_batch_is_enough(self) -> None:
        log_weights = torch.zeros(100, 3, dtype=torch.float64)
        log_weights[0, 1] = 20.0
        with pytest.warns(LogPartitionWarning, match=r"is 1\.0 of 100"):
            estimate(log_weights)

    def test_disjoint_sides(self) -> None:
        forward, reverse = around(12.0), around(10.0, reverse=True)
        gap = (forward.lower - reverse.upper).item()
        message = rf"lower bound of log Z lies {gap:.3g} nats above the upper bound"
        with pytest.warns(LogPartitionWarning, match=message):
            LogPartitionBracket(forward, reverse)

    def test_sides_that_meet(self) -> None:
        LogPartitionBracket(around(10.0), around(12.0, reverse=True))
        LogPartitionBracket(around(10.01), around(10.0, reverse=True))


class TestFromError:
    @staticmethod
    def make(**options: Any) -> LogPartitionEstimate:
        defaults: dict[str, Any] = {"value": 3.0, "std_error": 0.5, "ess": 12.0}
        defaults["settings"] = {"method": "bar", "num_chains": 4, "seed": 1}
        return LogPartitionEstimate.from_error(**(defaults | options))

    @pytest.mark.parametrize("degrees", [None, 3, 9, 99])
    def test_interval(self, degrees: int | None) -> None:
        estimate = self.make(degrees_of_freedom=degrees)
        expected = stats.norm.ppf(0.975) if degrees is None else stats.t.ppf(0.975, degrees)
        assert (estimate.upper - 3.0).item() == pytest.approx(0.5 * expected, rel=0.02)
        assert (3.0 - estimate.lower).item() == pytest.approx(0.5 * expected, rel=0.02)
        assert estimate.log_weights is None and estimate.reliable and estimate.side is None

    def test_no_degrees_of_freedom(self) -> None:
        estimate = self.make(degrees_of_freedom=0)
        assert estimate.lower == -math.inf and estimate.upper == math.inf

    def test_given_ends(self) -> None:
        estimate = self.make(lower=2.0, degrees_of_freedom=9)
        assert estimate.lower == 2.0 and estimate.upper > 4.0
        assert self.make(upper=torch.tensor(7.0)).upper == 7.0

    def test_batches_broadcast_and_are_float64(self) -> None:
        value = torch.zeros(2, 3, requires_grad=True)
        estimate = self.make(value=value, std_error=torch.ones(3), ess=None, lower=-1.0)
        for name in ("value", "std_error", "lower", "upper", "ess"):
            tensor = getattr(estimate, name)
            assert tensor.shape == (2, 3) and tensor.dtype == torch.float64
            assert not tensor.requires_grad
        assert estimate.ess.isnan().all()
        assert estimate[0, 1].value.shape == () and estimate[1].std_error.shape == (3,)

    def test_flags_warn_once(self) -> None:
        with pytest.warns(LogPartitionWarning, match="few round trips; low swap rate: ") as caught:
            estimate = self.make(flags=["few round trips", "low swap rate"])
        assert len(caught) == 1 and caught[0].filename == __file__
        assert estimate.flags == ("few round trips", "low swap rate") and not estimate.reliable
        assert not self.make(flags=["few round trips"], warn=False).reliable

    def test_infinite_values_are_flagged(self) -> None:
        assert self.make(value=math.nan, warn=False).flags == ("the estimate is not finite",)

    def test_words(self) -> None:
        assert str(self.make()) == (
            "log Z = 3.000 +- 0.500 (95 %: 2.020 to 3.980; ESS 12.0) by bar, 4 chains"
        )
        assert str(self.make(ess=None, flags=["a", "b"], warn=False)) == (
            "log Z = 3.000 +- 0.500 (95 %: 2.020 to 3.980) by bar, 4 chains; SUSPICIOUS: a; b"
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"settings": {"seed": 1}}, r"settings must name the method, got \['seed'\]"),
            ({"std_error": -0.1}, "std_error must not be negative, got -0.1"),
            ({"side": "left"}, 'side must be "below", "above" or None, got \'left\''),
        ],
    )
    def test_wrong(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.make(**options)


class TestBracket:
    def test_ends(self) -> None:
        forward, reverse = around(10.0), around(12.0, reverse=True)
        bracket = LogPartitionBracket(forward, reverse)
        assert bracket.lower == forward.lower and bracket.upper == reverse.upper
        assert bracket.value == (forward.value + reverse.value) / 2
        assert bracket.gap == reverse.value - forward.value

    def test_ends_of_crossed_sides(self) -> None:
        """Where noise has put the forward estimate above, the ends still hold both intervals."""
        forward, reverse = around(10.02), around(10.0, reverse=True)
        bracket = LogPartitionBracket(forward, reverse)
        assert bracket.lower == reverse.lower and bracket.upper == forward.upper

    def test_flags_of_both_sides_and_of_the_pair(self) -> None:
        heavy = torch.zeros(100, dtype=torch.float64)
        heavy[0] = 20.0
        low = LogPartitionEstimate.from_log_weights(heavy, dict(SETTINGS), warn=False)
        bracket = LogPartitionBracket(low, around(15.5, reverse=True))
        assert bracket.flags[0].startswith("from below: the effective sample size is 1.0")
        assert not bracket.reliable and not bracket.crossed
        assert bracket.width == bracket.upper - bracket.lower
        with pytest.warns(LogPartitionWarning):
            crossed = LogPartitionBracket(around(12.0), around(10.0, reverse=True))
        assert crossed.crossed and "above the upper bound" in crossed.flags[-1]
        assert LogPartitionBracket(around(10.0), around(12.0, reverse=True)).reliable

    def test_elements(self) -> None:
        batch = estimate(torch.zeros(20, 2))
        bracket = LogPartitionBracket(batch, batch)[1]
        assert bracket.value.shape == () and len(str(bracket).splitlines()) == 3

    @pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
    def test_of_a_machine(self, batched: bool) -> None:
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, batched=batched)
        bracket = bracket_log_partition(rbm, num_chains=500, num_temperatures=50, seed=0)
        log_z = exact_log_partition(rbm)
        assert bracket.value.shape == rbm.batch_shape
        spread = torch.stack([bracket.forward.std_error, bracket.reverse.std_error]).amax(0)
        assert ((bracket.value - log_z).abs() < 6.0 * spread).all()
        assert (bracket.lower < bracket.upper).all()
        assert bracket.forward.settings["method"] == "ais"
        assert bracket.reverse.settings["method"] == "reverse-ais"
        assert json.loads(json.dumps(bracket.to_dict())) == bracket.to_dict()

    def test_initial_goes_to_the_reverse_run(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"))
        start = rbm.sample((50,))
        bracket = bracket_log_partition(
            rbm, num_chains=50, num_temperatures=20, seed=0, initial=start
        )
        assert bracket.reverse.settings["start"] == "given"
        assert "start" not in bracket.forward.settings


class TestWords:
    def test_estimate(self) -> None:
        text = str(around(10.0, spread=0.0))
        assert text == (
            "log Z = 10.000 +- 0.000 (95 %: 10.000 to 10.000; ESS 20.0) "
            "by ais, 4 chains x 10 temperatures"
        )

    def test_batch(self) -> None:
        text = str(estimate(torch.zeros(20, 2, 3)))
        assert text == "log Z of batch shape (2, 3) by ais, 4 chains x 10 temperatures"

    def test_bracket(self) -> None:
        lines = str(LogPartitionBracket(around(10.0, 0.0), around(12.0, 0.0))).splitlines()
        assert lines[0].startswith("from below: log Z = 10.000")
        assert lines[1].startswith("from above: log Z = 12.000")
        assert lines[2] == "log Z in [10.000, 12.000], gap 2.000"

    def test_bracket_of_a_batch(self) -> None:
        batch = estimate(torch.zeros(20, 2))
        assert len(str(LogPartitionBracket(batch, batch)).splitlines()) == 2

    def test_dictionary(self) -> None:
        result = around(10.0)
        report: dict[str, Any] = json.loads(json.dumps(result.to_dict()))
        numbers = {"value", "std_error", "lower", "upper", "ess"}
        assert set(report) == numbers | {"side", "flags", "settings"}
        assert report["side"] == "below" and report["flags"] == []
        assert report["value"] == result.value.item()
        assert report["settings"] == SETTINGS

    def test_dictionary_is_a_copy(self) -> None:
        result = around(10.0)
        result.to_dict()["settings"]["seed"] = 5
        assert result.settings["seed"] is None


def test_estimates_normalise_machines() -> None:
    rbm = random_rbm(("bernoulli", "ising"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = around(3.0)
    v = torch.ones(3, dtype=torch.float64)
    expected = rbm.log_prob(v) - result.value
    torch.testing.assert_close(rbm.normalize(result).log_prob(v), expected)
