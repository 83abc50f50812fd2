# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Annealing both ways, and several methods side by side."""

import dataclasses
import json
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm import plotting
from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import (
    LogPartitionComparison,
    LogPartitionEstimate,
    LogPartitionWarning,
    bennett_acceptance_ratio,
    bidirectional_log_partition,
    compare_log_partition,
    estimate_log_partition,
    exact_log_partition,
)
from pyro_ebm.infer.log_partition import bidirectional
from pyro_ebm.infer.log_partition.compared_methods import METHODS
from pyro_ebm.infer.log_partition.tempered_start import TemperedStart, tempered_start
from pyro_ebm.infer.paths import GeometricPath, base_unit
from tests.distributions.families import random_rbm, to_machine
from tests.infer.log_partition.machines50 import machines
from tests.infer.reference import Z_LIMIT, binomial_tail, exact_features, features, z_scores

NUM_RUNS, NUM_CHAINS = 10, 100
#: Beyond this Student's distribution with 19 degrees of freedom is once in 10^7.
T_LIMIT = 8.0


def is_accepted(covered: Tensor) -> bool:
    """Neither too few nor too many for 95 %, with a false alarm in 10^6."""
    n, k = covered.numel(), int(covered.sum())
    return min(binomial_tail(k, n, 0.95), 1.0 - binomial_tail(k - 1, n, 0.95)) > 1e-6


@lru_cache
def works() -> tuple[Tensor, Tensor, Tensor]:
    """Forward and reverse log-weights of shape ``(chains, runs, machines)`` and exact values: few
    temperatures, at which either side alone is off."""
    sides: dict[str, list[Tensor]] = {"ais": [], "reverse-ais": []}
    cases = [case for case in machines()[::2] if case.coupling != "weak"]
    for seed, case in enumerate(cases):
        for method, weights in sides.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LogPartitionWarning)
                estimate = estimate_log_partition(
                    case.rbm,
                    method,
                    num_chains=NUM_CHAINS * NUM_RUNS,
                    num_temperatures=40,
                    seed=2 * seed + (method == "ais"),
                )
            assert estimate.log_weights is not None
            weights.append(estimate.log_weights.reshape(NUM_CHAINS, NUM_RUNS))
    log_z = torch.tensor([case.log_z for case in cases]).double()
    return torch.stack(sides["ais"], -1), torch.stack(sides["reverse-ais"], -1), log_z


def side_error(weights: Tensor, log_z: Tensor, sign: float) -> Tensor:
    return (
        sign * (sign * weights).logsumexp(0) - sign * torch.tensor(NUM_CHAINS).log() - log_z
    ).abs()


class TestWorks:
    """Bennett's ratio of forward and reverse works: 10 runs of 100 chains on each of 20 machines."""

    def test_covers(self) -> None:
        forward, reverse, log_z = works()
        ratio = bennett_acceptance_ratio(forward.unsqueeze(1), -reverse.unsqueeze(1))
        error = (ratio.value - log_z).abs()
        assert is_accepted(error < 1.984 * ratio.std_error)
        assert not is_accepted(error < 0.5 * 1.984 * ratio.std_error)
        # The mean of 200 squares of a normal number; error bars that are off by a factor of two would
        # give 4 or 0.25.
        assert 0.5 < (error / ratio.std_error).square().mean() < 1.8

    def test_is_tighter_than_the_sides(self) -> None:
        forward, reverse, log_z = works()
        ratio = bennett_acceptance_ratio(forward.unsqueeze(1), -reverse.unsqueeze(1))
        error = (ratio.value - log_z).abs().mean()
        assert error < 0.7 * side_error(forward, log_z, 1.0).mean()
        assert error < 0.7 * side_error(reverse, log_z, -1.0).mean()

    @pytest.mark.parametrize("mistake", ["sign of the reverse works", "one side twice"])
    def test_mistakes_are_caught(self, mistake: str) -> None:
        forward, reverse, log_z = (x.unsqueeze(1) for x in works())
        broken = {
            "sign of the reverse works": (forward, reverse),
            "one side twice": (forward, -forward),
        }[mistake]
        value = bennett_acceptance_ratio(*broken).value - log_z.squeeze(1)
        bias = value.mean(0) / (value.std(0) / NUM_RUNS**0.5)
        assert bias.abs().max() > 10.0


class TestBidirectional:
    CASE = machines()[3]

    def run(self, rbm: RBM | None = None, **options: Any) -> LogPartitionEstimate:
        options = {"num_temperatures": 100, "seed": 1, **options}
        return bidirectional_log_partition(self.CASE.rbm if rbm is None else rbm, **options)

    @pytest.mark.parametrize("initial", [None, "exact", "tempering"])
    def test_starts(self, initial: str | None) -> None:
        estimate = self.run(initial=initial, tempering_sweeps=200)
        assert abs((estimate.value - self.CASE.log_z) / estimate.std_error) < T_LIMIT
        word = "tempering of 20 chains x" if initial == "tempering" else "exact"
        assert estimate.settings["start"].startswith(word)
        assert estimate.reliable and estimate.side is None
        low, high = estimate.settings["bracket"]
        assert low < self.CASE.log_z < high
        forward, reverse = estimate.settings["forward"], estimate.settings["reverse"]
        assert low == forward["lower"] and high == reverse["upper"]
        assert estimate.std_error < min(forward["std_error"], reverse["std_error"])
        assert estimate.upper - estimate.lower < high - low

    def test_given_samples(self) -> None:
        start = self.CASE.rbm.sample((100,))
        estimate = self.run(initial=start)
        assert estimate.settings["start"] == "given"
        assert abs((estimate.value - self.CASE.log_z) / estimate.std_error) < T_LIMIT
        # Out of equilibrium the bounds cross, and it says so.
        far = torch.zeros_like(start)
        with pytest.warns(LogPartitionWarning, match="lower bound of log Z lies above"):
            self.run(initial=far, num_temperatures=400)

    def test_same_temperatures_both_ways(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Crooks' theorem asks for them, also where they are found by a pilot run."""
        seen = []
        original = bidirectional.estimate_log_partition

        def record(*arguments: Any, **options: Any) -> LogPartitionEstimate:
            seen.append(options["schedule"])
            return original(*arguments, **options)

        monkeypatch.setattr(bidirectional, "estimate_log_partition", record)
        estimate = self.run(schedule="adaptive")
        assert torch.equal(seen[0], seen[1]) and seen[0].diff().std() > 1e-4
        assert estimate.settings["schedule"] == "adaptive"

    def test_few_temperatures_are_flagged(self) -> None:
        case = machines()[-1]
        with pytest.warns(LogPartitionWarning, match="directions hardly overlap"):
            estimate = self.run(case.rbm, num_temperatures=5)
        assert estimate.ess < 10.0

    def test_batches_and_seeds(self) -> None:
        torch.manual_seed(0)
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, batched=True)
        estimate = self.run(rbm, initial="tempering", tempering_sweeps=100)
        assert estimate.value.shape == estimate.ess.shape == (2, 3)
        error = (estimate.value - exact_log_partition(rbm)) / estimate.std_error
        assert error.abs().max() < T_LIMIT
        again = self.run(rbm, initial="tempering", tempering_sweeps=100)
        assert torch.equal(estimate.value, again.value)
        exact, expanded = self.run(rbm), self.run(rbm.expand((4, 2, 3)))
        torch.testing.assert_close(expanded.value, exact.value.expand(4, 2, 3))

    def test_chains_of_one_group_are_left_out_together(self) -> None:
        """With copies of one state in each group the error bar must not shrink."""
        weights = torch.randn(20, 1).double().expand(20, 5).reshape(100)
        reverse = LogPartitionEstimate.from_log_weights(
            weights, {"method": "reverse-ais"}, reverse=True, warn=False
        )
        start = TemperedStart(torch.zeros(100, 3), 20, "tempering", ("a flag",), 0)
        wide = bidirectional.grouped(reverse, start)
        alone = LogPartitionEstimate.from_log_weights(
            weights[::5], {"method": "reverse-ais"}, reverse=True, warn=False
        )
        torch.testing.assert_close(wide.std_error, alone.std_error)
        assert wide.std_error > 2.0 * reverse.std_error
        assert wide.upper > reverse.upper and wide.flags[-1] == "a flag"

    @pytest.mark.parametrize(
        "options, words",
        [
            ({"initial": "abc"}, "initial must be one of"),
            ({"num_chains": 1}, "num_chains must be at least 2"),
            ({"schedule": "abc"}, "schedule must be one of"),
            ({"initial": "tempering", "tempering_sweeps": 5}, "need at least 10 sweeps"),
        ],
    )
    def test_refusals(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            self.run(**options)

    def test_refuses_exact_samples_of_large_machines(self) -> None:
        large = BernoulliRBM(torch.zeros(40, 40), torch.zeros(40), torch.zeros(40))
        with pytest.raises(ValueError, match="can be enumerated"):
            self.run(large, initial="exact")
        with pytest.raises(TypeError, match="dist must be an RBM"):
            bidirectional_log_partition(torch.zeros(2))  # type: ignore[arg-type]


def test_tempered_start() -> None:
    """Draws of the machine, about as many sweeps as were asked for."""
    rbm = random_rbm(("bernoulli", "ising"), offsets=True, scale=2.0)
    path = GeometricPath(rbm, base_unit(rbm, "uniform"), torch.Generator().manual_seed(0))
    start = tempered_start(path, 40_000, num_groups=10_000, num_sweeps=40)
    assert start.v.shape == (40_000, 3) and start.num_groups == 10_000 and not start.flags
    # The states of a group are correlated: one of each.
    z = z_scores(features(start.v[3::4]), exact_features(to_machine(rbm)))
    assert z.abs().max() < Z_LIMIT
    bounded = tempered_start(path, 10, num_groups=10, row_sweeps=20_000)
    assert 10_000 < bounded.row_sweeps <= 20_000


#: Fitting the path of moments takes longer than everything else.
QUICK = [name for name in METHODS if name != "moment-ais"]


@pytest.fixture(scope="module")
def comparison() -> LogPartitionComparison:
    case = machines()[3]
    checkpoints = [RBM(case.rbm.visible, case.rbm.hidden, s * case.rbm.weight) for s in (0.3, 0.6)]
    data = case.rbm.sample((200,), generator=torch.Generator().manual_seed(0))
    return compare_log_partition(
        case.rbm, QUICK, budget=30_000, checkpoints=checkpoints, data=data, seed=1
    )


class TestCompare:
    CASE = machines()[3]

    def test_all_methods_agree(self, comparison: LogPartitionComparison) -> None:
        assert list(comparison.estimates) == QUICK
        for name, estimate in comparison.estimates.items():
            assert estimate.settings["method"] == name
            sweeps = estimate.settings["row_sweeps"]
            assert 0.5 * comparison.budget < sweeps <= 1.05 * comparison.budget, name
            # Estimates from one side are off to this side, by little here.
            assert abs(estimate.value - self.CASE.log_z) < T_LIMIT * estimate.std_error + 0.1, name
            assert estimate.settings["seconds"] > 0.0
        both_ways = comparison.estimates["bidirectional"].settings
        assert 2 * both_ways["num_chains"] * both_ways["num_temperatures"] <= comparison.budget
        assert comparison.lower < self.CASE.log_z < comparison.upper
        assert comparison.upper - comparison.lower < 1.0

    def test_one_method_does_not_depend_on_the_others(
        self, comparison: LogPartitionComparison
    ) -> None:
        alone = compare_log_partition(
            self.CASE.rbm, ["ais", "bidirectional"], budget=30_000, seed=1
        )
        for name, estimate in alone.estimates.items():
            assert torch.equal(estimate.value, comparison.estimates[name].value)
        other = compare_log_partition(self.CASE.rbm, ["ais"], budget=30_000, seed=2)
        assert not torch.equal(other.estimates["ais"].value, alone.estimates["ais"].value)

    def test_tables(self, comparison: LogPartitionComparison) -> None:
        lines = comparison.to_markdown().splitlines()
        assert len(lines) == 2 + len(QUICK) and lines[2].startswith("| ais | 100 chains x 300 temp")
        assert comparison.to_latex().count(r"\\") == 1 + len(QUICK)
        text = str(comparison)
        assert all(f"\n{name} " in f"\n{text}" for name in QUICK)
        assert "log Z in [" in text

    def test_json(self, comparison: LogPartitionComparison, tmp_path: Path) -> None:
        comparison.save_json(tmp_path / "a.json")
        json.loads((tmp_path / "a.json").read_text())
        again = LogPartitionComparison.load_json(tmp_path / "a.json")
        assert again.to_dict() == comparison.to_dict()
        assert str(again) == str(comparison)
        with pytest.raises(ValueError, match="needs budget and estimates"):
            LogPartitionComparison.from_dict({"budget": 1})

    def test_large_machines_start_from_tempering(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bidirectional, "exact_side", lambda machine: None)
        found = compare_log_partition(
            self.CASE.rbm, ["reverse-ais", "bidirectional"], budget=60_000, num_chains=20, seed=0
        )
        for estimate in found.estimates.values():
            assert estimate.settings["start"].startswith("tempering of 20 chains")
            assert 0.5 * 60_000 < estimate.settings["row_sweeps"] <= 1.1 * 60_000
            assert abs(estimate.value - self.CASE.log_z) < T_LIMIT * estimate.std_error + 0.1

    @pytest.mark.parametrize("small", [True, False])
    def test_moments(self, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        rbm = random_rbm(("bernoulli", "ising"))
        if not small:
            monkeypatch.setattr(bidirectional, "exact_side", lambda machine: None)
        found = compare_log_partition(rbm, ["moment-ais"], budget=10_000, num_chains=20, seed=0)
        estimate = found.estimates["moment-ais"]
        assert abs(estimate.value - exact_log_partition(rbm)) < T_LIMIT * estimate.std_error
        assert estimate.settings["row_sweeps"] <= 11_000

    def test_batches(self) -> None:
        torch.manual_seed(0)
        rbm = random_rbm(("bernoulli", "ising"), batched=True)
        found = compare_log_partition(rbm, ["ais", "bar"], budget=30_000, seed=0)
        assert found.lower.shape == found.upper.shape == (2, 3)
        exact = exact_log_partition(rbm)
        assert (found.lower < exact + 0.02).all() and (found.upper > exact - 0.02).all()
        assert len(found.to_markdown().splitlines()) == 2 + 2 * 6
        assert sum(line.startswith(("ais [", "bar [")) for line in str(found).splitlines()) == 2 * 6
        with pytest.raises(ValueError, match="one machine"):
            plotting.log_partition_comparison(found)

    @pytest.mark.parametrize(
        "methods, options, words",
        [
            (
                ["ais", "abc"],
                {},
                r"methods must be some of \('ais', 'reverse-ais', 'bidirectional'",
            ),
            ([], {}, "methods must be some of"),
            (["ais"], {"budget": 10}, "budget must be at least"),
            (["bar"], {"budget": 2000, "num_tempering_chains": 100}, "budget must allow"),
            (["ais"], {"num_chains": 1}, "num_chains must be at least 2"),
            (["bar"], {"num_tempering_chains": 1}, "num_tempering_chains must be at least 2"),
            (["trajectory-ais"], {}, "needs checkpoints"),
            (["raise"], {}, "needs data"),
            (["ais"], {"base": "abc"}, "base must be"),
        ],
    )
    def test_refusals(self, methods: list[str], options: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            compare_log_partition(self.CASE.rbm, methods, **options)

    def test_refuses_other_things(self) -> None:
        with pytest.raises(TypeError, match="dist must be an RBM"):
            compare_log_partition(torch.zeros(3))  # type: ignore[arg-type]


def made_up(
    method: str,
    value: float,
    error: float,
    *,
    side: str | None = None,
    flags: tuple[str, ...] = (),
    bracket: list[float] | None = None,
) -> LogPartitionEstimate:
    settings: dict[str, Any] = {"method": method}
    if bracket is not None:
        settings["bracket"] = bracket
    return LogPartitionEstimate.from_error(
        value, error, settings, ess=None, side=side, flags=flags, warn=False
    )


class TestVerdict:
    """Bounds and contradictions of made-up estimates; intervals are 1.96 errors to either side."""

    ESTIMATES = {
        "low": made_up("low", 10.0, 0.5, side="below"),
        "high": made_up("high", 13.0, 0.5, side="above"),
        "middle": made_up("middle", 11.0, 0.5, bracket=[9.5, 11.9]),
        "wrong": made_up("wrong", 20.0, 0.1, flags=("few chains",)),
    }

    def test_bracket(self) -> None:
        found = LogPartitionComparison(self.ESTIMATES, 1)
        # From above: 11.0 + 0.98 and its bracket of 11.9. From below: 11.0 - 0.98.
        assert found.upper.item() == pytest.approx(11.9)
        assert found.lower.item() == pytest.approx(11.0 - 0.98, abs=1e-3)
        sides = LogPartitionComparison({n: self.ESTIMATES[n] for n in ("low", "high")}, 1)
        assert sides.lower.item() == pytest.approx(10.0 - 0.98, abs=1e-3)
        assert sides.upper.item() == pytest.approx(13.0 + 0.98, abs=1e-3)

    def test_flagged_methods_bound_nothing(self) -> None:
        found = LogPartitionComparison({"wrong": self.ESTIMATES["wrong"]}, 1)
        assert found.lower == -torch.inf and found.upper == torch.inf
        assert found.flagged == ("wrong",)
        assert json.loads(json.dumps(found.to_dict()))["lower"] == "-Infinity"

    def test_disagreements(self) -> None:
        """A lower bound that is low and an upper bound that is high contradict nobody."""
        found = LogPartitionComparison(self.ESTIMATES, 1)
        gaps = found.disagreements
        assert set(gaps) == {("wrong", "high"), ("wrong", "middle")}
        assert gaps["wrong", "high"] == pytest.approx(7.0 - 1.2 * 0.98, abs=1e-2)
        text = str(found)
        assert "wrong and high contradict each other: 5.8 nats apart" in text
        assert "SUSPICIOUS: few chains" in text
        swapped = {"low": made_up("low", 13.0, 0.5, side="below"), "high": self.ESTIMATES["middle"]}
        assert set(LogPartitionComparison(swapped, 1).disagreements) == {("low", "high")}

    def test_picture(self, tmp_path: Path) -> None:
        found = LogPartitionComparison(self.ESTIMATES, 1)
        figure = plotting.log_partition_comparison(found, truth=11.2)
        (ax,) = figure.axes
        assert [label.get_text() for label in ax.get_yticklabels()] == list(self.ESTIMATES)
        points = [container.lines[0] for container in ax.containers]
        assert [p.get_xdata()[0] for p in points] == [10.0, 13.0, 11.0, 20.0]
        assert [p.get_marker() for p in points] == [">", "<", "o", "o"]
        hollow = [p.get_markerfacecolor() == "white" for p in points]
        assert hollow == [False, False, False, True]
        assert "orange" in figure.get_supxlabel()
        plotting.save(figure, tmp_path / "a.png")
        nothing = dataclasses.replace(found, estimates={"wrong": self.ESTIMATES["wrong"]})
        plotting.save(plotting.log_partition_comparison(nothing, title=None), tmp_path / "b.png")
