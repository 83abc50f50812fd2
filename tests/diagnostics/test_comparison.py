# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""What a comparison of samplers says, from runs whose numbers are known."""

import json
import math

import pytest

from pyro_ebm.diagnostics import Convergence, SamplerComparison, SamplerRun, Spread


def row(ess: float, mean: float = 0.0, r_hat: float = 1.0, mcse: float = 0.1) -> Convergence:
    return Convergence(mean, 1.0, mcse, r_hat, ess, ess, 1.0)


def run(
    sampler: str,
    seed: int,
    functions: dict[str, Convergence],
    seconds: float = 2.0,
    sweeps: int | None = 3,
) -> SamplerRun:
    return SamplerRun(sampler, seed, seconds, 1.0, 50, 4, sweeps, functions)


def comparison(runs: list[SamplerRun]) -> SamplerComparison:
    settings = {
        "budget": "2 s",
        "num_chains": 4,
        "seeds": [0, 1],
        "device": "cpu",
        "num_threads": 1,
    }
    return SamplerComparison(tuple(runs), settings)


@pytest.fixture
def two() -> SamplerComparison:
    return comparison(
        [
            run("a", 0, {"energy": row(400.0), "projection": row(200.0)}),
            run("b", 0, {"energy": row(900.0), "projection": row(900.0)}, sweeps=None),
            run("a", 1, {"energy": row(600.0), "projection": row(700.0)}, seconds=1.0),
            run("b", 1, {"energy": row(500.0), "projection": row(800.0)}, sweeps=None),
        ]
    )


class TestNumbers:
    def test_rates(self, two: SamplerComparison) -> None:
        assert two.samplers == ["a", "b"] and two.functions == ["energy", "projection"]
        spread = two.ess_per_second("a", "energy")
        assert (spread.low, spread.high, spread.mean) == (200.0, 600.0, 400.0)
        assert spread.std == pytest.approx(math.sqrt(2) * 200.0)
        # Of each run its slowest function: 200 / 2 and 600 / 1; 900 / 2 and 500 / 2.
        assert two.ess_per_second("a").mean == 350.0
        assert two.ess_per_second("b").mean == 350.0

    def test_sweeps(self, two: SamplerComparison) -> None:
        per_sweep = two.ess_per_sweep("a")
        assert per_sweep is not None
        assert per_sweep.mean == pytest.approx((200 + 600) / 2 / (50 * 4 * 3))
        assert two.ess_per_sweep("b") is None

    def test_best(self) -> None:
        ours = comparison(
            [run("a", 0, {"f": row(200.0)}), run("b", 0, {"f": row(300.0)}, seconds=4.0)]
        )
        assert ours.best == "a"

    def test_nothing_moved(self) -> None:
        stuck = run("a", 0, {"f": row(math.nan, r_hat=math.nan)})
        assert stuck.ess() == 0.0 and stuck.r_hat() == math.inf
        ours = comparison([stuck, run("b", 0, {"f": row(300.0)})])
        assert ours.best == "b"
        json.dumps(ours.to_dict(), allow_nan=False)
        assert "-" in str(ours)

    def test_spread(self) -> None:
        one = Spread.of([3.0])
        assert math.isnan(one.std) and str(one) == "3.00" and one.to_dict()["std"] is None
        assert str(Spread.of([1.0, 3.0])) == "2.00 ± 1.4"

    def test_unknown_name(self, two: SamplerComparison) -> None:
        with pytest.raises(KeyError, match="no sampler 'c'; there are"):
            two.of("c")


class TestFlags:
    def test_nothing(self, two: SamplerComparison) -> None:
        assert two.flags == () and two.reliable

    def test_not_mixed(self) -> None:
        ours = comparison(
            [run("a", 0, {"f": row(500.0, r_hat=1.5)}), run("b", 0, {"f": row(500.0)})]
        )
        (flag,) = ours.flags
        assert flag.startswith("a: R-hat is up to 1.50; the chains have not mixed")

    def test_hardly_mixed(self) -> None:
        (flag,) = comparison([run("a", 0, {"f": row(500.0, r_hat=1.03)})]).flags
        assert flag == "a: R-hat is up to 1.030; the chains have hardly forgotten their starts"

    def test_few_draws(self) -> None:
        (flag,) = comparison([run("a", 0, {"f": row(50.0)})]).flags
        assert flag == "a: only 50 effective draws in a run; take a larger budget"

    def test_contradiction(self) -> None:
        """One of two samplers has another mean than its error allows."""
        runs = [run("a", s, {"f": row(500.0, 0.0)}) for s in (0, 1)]
        # Two runs of 0.1 each: 0.07 for each sampler, 0.1 for the difference.
        near = comparison([*runs, *(run("b", s, {"f": row(500.0, 0.49)}) for s in (0, 1))])
        far = comparison([*runs, *(run("b", s, {"f": row(500.0, 0.51)}) for s in (0, 1))])
        assert near.reliable
        (flag,) = far.flags
        assert flag.startswith("a and b contradict each other: the mean of f is 0 ± 0.071 and 0.51")

    def test_spread_of_runs_counts(self) -> None:
        """A sampler whose runs differ more than they admit."""
        a = [run("a", s, {"f": row(500.0, m)}) for s, m in ((0, -1.0), (1, 1.0))]
        b = [run("b", s, {"f": row(500.0, 1.0)}) for s in (0, 1)]
        assert comparison([*a, *b]).reliable


def test_report(two: SamplerComparison) -> None:
    numbers = json.loads(json.dumps(two.to_dict(), allow_nan=False))
    assert numbers["samplers"]["a"]["ess_per_second"]["energy"]["mean"] == 400.0
    assert numbers["samplers"]["b"]["ess_per_sweep_slowest"] is None
    assert len(numbers["runs"]) == 4 and numbers["runs"][2]["seconds"] == 1.0
    table = two.to_markdown().splitlines()
    assert table[0].startswith(
        "| sampler | ESS/s energy | ESS/s projection | ESS/s slowest | ratio |"
    )
    assert table[3].startswith("| b |") and len(table) == 4
    assert (
        str(two).splitlines()[0].startswith("bulk ESS by second (mean ± sd of 2 seeds): 4 chains")
    )
