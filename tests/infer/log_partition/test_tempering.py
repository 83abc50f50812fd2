# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Estimates of log Z from tempering runs against exact values."""

import dataclasses
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import LogPartitionEstimate, LogPartitionWarning, exact_log_partition
from pyro_ebm.infer.log_partition.tempering import (
    TEMPERING_METHODS,
    read_tempering,
    tempering_estimates,
    tempering_log_partition,
)
from pyro_ebm.infer.log_partition.tempering_run import TemperingRun, run_tempering
from pyro_ebm.infer.mcmc.ladder_tuning import tune_ladder
from pyro_ebm.infer.paths import GeometricPath, base_unit
from tests.distributions.families import ALL_PAIRS, UNBOUNDED, random_rbm, to_machine
from tests.infer.log_partition.machines50 import Case, machines
from tests.infer.reference import Z_LIMIT, binomial_tail, exact_features, features, z_scores

FINITE = [pair for pair in ALL_PAIRS if not set(pair) <= set(UNBOUNDED)]
FINITE_IDS = ["-".join(pair) for pair in FINITE]
#: A jackknife over 20 chains is Student's with 19 degrees of freedom, which is beyond this once in 10^7.
T_LIMIT = 8.0
METHOD = pytest.mark.parametrize("method", TEMPERING_METHODS)

NUM_RUNS, NUM_CHAINS = 20, 10


def quick(rbm: RBM, method: str = "bar", **options: Any) -> LogPartitionEstimate:
    """A short run with an even ladder, which need not be tuned."""
    num_levels = options.pop("num_levels", 4)
    options = {"num_samples": 50, "warmup_steps": 20, "seed": 1, **options}
    options.setdefault("betas", torch.linspace(0.0, 1.0, num_levels).tolist())
    return tempering_log_partition(rbm, method, **options)


def error_z(estimate: LogPartitionEstimate, log_z: Tensor | float) -> Tensor:
    return (estimate.value - log_z) / estimate.std_error


def split(run: TemperingRun) -> TemperingRun:
    """One run of many chains as several runs of few chains, a batch axis."""

    def grouped(x: Tensor | None, axis: int = 0) -> Tensor | None:
        return (
            None if x is None else x.unflatten(axis, (NUM_CHAINS, NUM_RUNS)).movedim(axis + 1, -1)
        )

    return dataclasses.replace(
        run,
        log_partition_base=run.log_partition_base.expand(NUM_RUNS),
        up=grouped(run.up),
        down=grouped(run.down),
        slopes=grouped(run.slopes),
        table=grouped(run.table, 1),
        round_trips=run.round_trips.expand(NUM_RUNS),
    )


@lru_cache
def long_run(name: str) -> TemperingRun:
    case = next(case for case in machines() if case.name == name)
    path = GeometricPath(case.rbm, base_unit(case.rbm, None), torch.Generator().manual_seed(5))
    tuning = tune_ladder(path, num_rounds=4, target_rejection=0.4)
    betas = tuning.ladder(max(12, len(tuning.betas)))
    return run_tempering(
        path,
        betas,
        num_chains=NUM_CHAINS * NUM_RUNS,
        num_samples=50,
        warmup_steps=60,
        thin=2,
        table=True,
    )


def runs(method: str, cases: list[Case]) -> tuple[LogPartitionEstimate, Tensor]:
    """Estimates of shape (machines, runs) and exact values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogPartitionWarning)
        estimates = [
            read_tempering(
                case.rbm.expand((NUM_RUNS,)), split(long_run(case.name)), method, {}, 0.0
            )
            for case in cases
        ]
    names = ("value", "std_error", "lower", "upper", "ess")
    numbers = {name: torch.stack([getattr(e, name) for e in estimates]) for name in names}
    brackets = torch.tensor([e.settings["bracket"] for e in estimates]).double()
    whole = dataclasses.replace(estimates[0], **numbers, settings={"bracket": brackets})
    return whole, torch.tensor([case.log_z for case in cases]).double().unsqueeze(1)


def is_accepted(covered: Tensor, most: float = 1.0) -> bool:
    """Not too few for 95 % and not too many for ``most``, with a false alarm in 10^6."""
    n, k = covered.numel(), int(covered.sum())
    return min(binomial_tail(k, n, 0.95), 1.0 - binomial_tail(k - 1, n, most)) > 1e-6


class TestCoverage:
    """Machines of all couplings, 20 runs of 10 chains each."""

    CASES = machines()[:48:8]

    @pytest.mark.parametrize("method", ["bar", "mbar"])
    def test_intervals_cover(self, method: str) -> None:
        estimate, log_z = runs(method, self.CASES)
        covered = (estimate.lower < log_z) & (log_z < estimate.upper)
        assert is_accepted(covered, 0.95), f"{int(covered.sum())} of {covered.numel()}"
        half = (estimate.upper - estimate.lower) / 2.0
        assert not is_accepted((estimate.value - log_z).abs() < 0.5 * half, 0.95)
        assert half.median() < 0.15 and (estimate.ess > 0).all()
        # Squares of Student's with 9 degrees of freedom have the mean 9 / 7, here with an error of 0.2;
        # error bars that are off by a factor of two would give 5.1 or 0.3.
        assert 0.4 < error_z(estimate, log_z).square().mean() < 2.6

    def test_integral_covers(self) -> None:
        """Its discretisation error is cautious, so that more than 95 % may be covered."""
        estimate, log_z = runs("ti", self.CASES)
        covered = (estimate.lower < log_z) & (log_z < estimate.upper)
        assert is_accepted(covered), f"{int(covered.sum())} of {covered.numel()}"
        assert not is_accepted(
            (estimate.value - log_z).abs() < 0.5 * (estimate.upper - estimate.value)
        )

    @pytest.mark.filterwarnings("ignore::pyro_ebm.infer.LogPartitionWarning")
    def test_error_of_few_levels(self) -> None:
        """Where levels are few it is the integral's own error that counts, not that of its noise."""
        case = next(case for case in machines() if case.name == "ising-relu-frustrated")
        options: dict[str, Any] = {"num_levels": 5, "num_samples": 100, "warmup_steps": 50}
        estimate = quick(case.rbm, "ti", **options)
        noise = quick(case.rbm, "bar", **options).std_error
        assert (estimate.value - case.log_z).abs() > 10.0 * noise
        assert estimate.lower < case.log_z < estimate.upper

    @METHOD
    def test_bracket(self, method: str) -> None:
        """Never inverted, and it contains log Z: its ends are two standard errors beyond bounds that
        are some way off themselves."""
        estimate, log_z = runs(method, self.CASES)
        low, high = estimate.settings["bracket"].unbind(1)
        assert (low < high).all()
        inside = (low < log_z) & (log_z < high)
        assert is_accepted(inside)
        assert ((high - low) > (estimate.upper - estimate.lower)).double().mean() > 0.8

    def test_jensen_is_tighter_than_riemann(self) -> None:
        """Log-ratios of visible densities bound better than slopes, hidden states being summed out."""
        jensen = runs("bar", self.CASES)[0].settings["bracket"].mean(2)
        riemann = runs("ti", self.CASES)[0].settings["bracket"].mean(2)
        assert (jensen[:, 0] > riemann[:, 0] - 0.05).all()
        assert (jensen[:, 1] < riemann[:, 1] + 0.05).all()


@pytest.mark.slow
@METHOD
def test_intervals_cover_all_fifty(method: str) -> None:
    estimate, log_z = runs(method, machines())
    covered = (estimate.lower < log_z) & (log_z < estimate.upper)
    assert is_accepted(covered, 1.0 if method == "ti" else 0.96)
    low, high = estimate.settings["bracket"].unbind(1)
    assert (low < high).all()
    assert is_accepted((low < log_z) & (log_z < high))


@pytest.mark.parametrize("pair", FINITE, ids=FINITE_IDS)
def test_every_pair(pair: tuple[str, str]) -> None:
    rbm = random_rbm(pair, offsets=True)
    options: dict[str, Any] = {"num_samples": 30, "warmup_steps": 20, "betas": [0.0, 0.5, 1.0]}
    for estimate in tempering_estimates(rbm, ("bar", "mbar"), seed=0, **options).values():
        assert abs(error_z(estimate, exact_log_partition(rbm))) < T_LIMIT
        assert estimate.std_error < 0.1


class TestMistakesAreCaught:
    """The comparison with the exact value rejects what it is there to reject."""

    CASE = machines()[2]

    @classmethod
    def z(cls, method: str, run: TemperingRun) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LogPartitionWarning)
            estimate = read_tempering(cls.CASE.rbm, run, method, {}, 0.0)
        return error_z(estimate, cls.CASE.log_z).item()

    @METHOD
    def test_nothing_wrong(self, method: str) -> None:
        assert abs(self.z(method, long_run(self.CASE.name))) < T_LIMIT

    BREAKS: dict[str, Callable[[TemperingRun], dict[str, Any]]] = {
        "directions exchanged": lambda r: {"up": r.down, "down": r.up},
        "wrong sign": lambda r: {
            "up": -r.up,
            "down": -r.down,
            "slopes": -r.slopes,
            "table": -r.table,
        },
        "log Z of the base missing": lambda r: {
            "log_partition_base": torch.zeros_like(r.log_partition_base)
        },
        "last level dropped": lambda r: {
            "up": r.up[:, :, :-1],
            "down": r.down[:, :, :-1],
            "slopes": r.slopes[:, :, :-1],
            "betas": r.betas[:-1],
            "table": r.table[:-1, :, :, :-1],
        },
        "density and sample exchanged": lambda r: {"table": r.table.transpose(0, 3)},
    }

    @pytest.mark.parametrize(
        "method, mistake",
        [
            ("bar", "directions exchanged"),
            ("bar", "wrong sign"),
            ("bar", "log Z of the base missing"),
            ("bar", "last level dropped"),
            ("mbar", "wrong sign"),
            ("mbar", "density and sample exchanged"),
            ("mbar", "log Z of the base missing"),
            ("mbar", "last level dropped"),
            ("ti", "wrong sign"),
            ("ti", "log Z of the base missing"),
            ("ti", "last level dropped"),
        ],
    )
    def test_mistakes(self, method: str, mistake: str) -> None:
        run = long_run(self.CASE.name)
        broken = dataclasses.replace(run, **self.BREAKS[mistake](run))
        assert abs(self.z(method, broken)) > 10.0


class TestRun:
    def test_states_are_draws_of_the_machine(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, scale=2.0)
        path = GeometricPath(rbm, base_unit(rbm, "uniform"), torch.Generator().manual_seed(0))
        run = run_tempering(
            path, [0.0, 0.5, 1.0], num_chains=20_000, num_samples=6, warmup_steps=20, num_states=2
        )
        assert run.states is not None and run.states.shape == (20_000, 2, 3)
        expected = exact_features(to_machine(rbm))
        assert z_scores(features(run.states[:, 1]), expected).abs().max() < Z_LIMIT
        assert not torch.equal(run.states[:, 0], run.states[:, 1])

    @pytest.mark.parametrize("num_samples", [4, 7, 8, 9])
    def test_number_of_states(self, num_samples: int) -> None:
        rbm = random_rbm(("bernoulli", "ising"), batched=True)
        path = GeometricPath(rbm, base_unit(rbm, None))
        options: dict[str, Any] = {"num_samples": num_samples, "num_states": 4}
        run = run_tempering(path, [0.0, 1.0], num_chains=3, warmup_steps=0, **options)
        assert run.states is not None and run.states.shape == (3, 4, 2, 3, 3)

    def test_swap_rate(self) -> None:
        """Ratios on both sides of a pair give the acceptance of the exchange."""
        rbm = random_rbm(("bernoulli", "bernoulli"), scale=4.0)
        path = GeometricPath(rbm, base_unit(rbm, "uniform"), torch.Generator().manual_seed(0))
        betas = [0.0, 0.4, 1.0]
        run = run_tempering(path, betas, num_chains=1000, num_samples=200, warmup_steps=20)
        v = rbm.enumerate_support()
        log_p = torch.stack([torch.log_softmax(path.machine(b).log_prob(v), 0) for b in betas])
        for low in (0, 1):
            # E min(p_l(x) p_m(y), p_l(y) p_m(x)) over both states.
            straight = log_p[low].unsqueeze(1) + log_p[low + 1]
            exact = torch.minimum(straight, straight.T).exp().sum().item()
            assert run.swap_rate[low].item() == pytest.approx(exact, abs=0.01)

    def test_table_is_thinned_to_bounded_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pyro_ebm.infer.log_partition.tempering_run._TABLE_ENTRIES", 4 * 5 * 7)
        rbm = random_rbm(("bernoulli", "bernoulli"))
        path = GeometricPath(rbm, base_unit(rbm, None))
        run = run_tempering(
            path, [0.0, 1.0], num_chains=5, num_samples=20, warmup_steps=0, table=True
        )
        assert run.table is not None and run.table.shape == (2, 5, 7, 2)
        assert run.up.shape == run.down.shape == (5, 20, 1)
        assert run.slopes is not None and run.slopes.shape == (5, 20, 2)

    def test_short_runs_have_no_diagnostics(self) -> None:
        estimate = quick(
            random_rbm(("bernoulli", "bernoulli")), num_samples=3, betas=[0.0, 1.0], thin=10
        )
        assert estimate.ess.isnan() and estimate.settings["mixing"]["r_hat"] is None


class TestOptions:
    RBM = random_rbm(("bernoulli", "ising"))

    @METHOD
    def test_batches(self, method: str) -> None:
        torch.manual_seed(3)
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, batched=True)
        estimate = quick(rbm, method, num_levels=12)
        assert estimate.value.shape == estimate.lower.shape == estimate.ess.shape == (2, 3)
        assert error_z(estimate, exact_log_partition(rbm)).abs().max() < T_LIMIT
        assert torch.tensor(estimate.settings["bracket"]).shape == (2, 2, 3)
        expanded = quick(rbm.expand((4, 2, 3)), method, num_levels=12)
        torch.testing.assert_close(expanded.value, estimate.value.expand(4, 2, 3))

    def test_seed(self) -> None:
        state = torch.get_rng_state()
        first, again = quick(self.RBM, "mbar", seed=7), quick(self.RBM, "mbar", seed=7)
        assert torch.equal(first.value, again.value)
        assert not torch.equal(first.value, quick(self.RBM, "mbar", seed=8).value)
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(quick(self.RBM, seed=None).value, quick(self.RBM, seed=None).value)

    def test_one_run_serves_all_methods(self) -> None:
        options: dict[str, Any] = {
            "num_samples": 50,
            "warmup_steps": 20,
            "num_replicas": 6,
        }
        together = tempering_estimates(self.RBM, seed=1, **options)
        assert list(together) == ["bar", "mbar", "ti"]
        for method, estimate in together.items():
            alone = tempering_log_partition(self.RBM, method, seed=1, **options)
            torch.testing.assert_close(alone.value, estimate.value)
            assert estimate.settings["method"] == method

    def test_settings(self) -> None:
        estimate = quick(self.RBM, "bar", thin=3, base="uniform")
        settings = estimate.settings
        assert settings["num_chains"] == 20 and settings["num_replicas"] == 4
        assert settings["thin"] == 3 and settings["warmup_steps"] == 20 and settings["seed"] == 1
        assert settings["base"] == "uniform" and settings["seconds"] > 0
        mixing = settings["mixing"]
        assert len(mixing["betas"]) == 4 and len(mixing["swap_rate"]) == 3
        assert mixing["round_trips"] > 0 and 0.9 < mixing["r_hat"] < 1.2
        assert estimate.reliable and estimate.side is None and estimate.log_weights is None
        assert "bar, 20 chains x 4 replicas" in str(estimate)

    @pytest.mark.parametrize("base", ["uniform", torch.tensor([0.2, 0.5, 0.9]).double()])
    def test_base(self, base: str | Tensor) -> None:
        for method in TEMPERING_METHODS:
            estimate = quick(self.RBM, method, base=base, num_levels=12)
            assert abs(error_z(estimate, exact_log_partition(self.RBM))) < T_LIMIT

    def test_given_ladder(self) -> None:
        estimate = quick(self.RBM, betas=[0.0, 0.3, 1.0])
        assert estimate.settings["mixing"]["betas"] == [0.0, 0.3, 1.0]
        assert abs(error_z(estimate, exact_log_partition(self.RBM))) < T_LIMIT

    @pytest.mark.parametrize("method", ["bar", "mbar"])
    def test_checkpoints(self, method: str) -> None:
        """Through other machines; the result is that of the last."""
        torch.manual_seed(1)
        training = [random_rbm(("bernoulli", "ising"), scale=scale) for scale in (0.5, 1.0)]
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, scale=2.0)
        estimate = quick(rbm, method, checkpoints=training)
        assert abs(error_z(estimate, exact_log_partition(rbm))) < T_LIMIT
        assert estimate.settings["checkpoints"] == 2

    def test_single_precision(self) -> None:
        estimate = quick(self.RBM.to(dtype=torch.float32), "mbar")
        assert estimate.value.dtype == torch.float64 and estimate.settings["dtype"] == "float32"
        assert abs(error_z(estimate, exact_log_partition(self.RBM))) < T_LIMIT

    def test_levels_of_an_integral(self) -> None:
        options: dict[str, Any] = {"num_samples": 10, "warmup_steps": 0, "seed": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LogPartitionWarning)
            few = tempering_log_partition(self.RBM, "bar", **options)
            many = tempering_log_partition(self.RBM, "ti", **options)
        assert few.settings["num_replicas"] < 8 and many.settings["num_replicas"] == 16

    @pytest.mark.parametrize(
        "options, words",
        [
            ({"method": "abc"}, "method must be one of"),
            ({"num_chains": 1}, "num_chains must be at least 2"),
            ({"num_samples": 0}, "num_samples must be at least 1"),
            ({"thin": 0}, "thin must be at least 1"),
            ({"warmup_steps": -1}, "warmup_steps"),
            ({"betas": [0.1, 1.0]}, "betas must start at 0"),
            ({"betas": [0.0, 1.0], "num_replicas": 3}, "betas has 2 levels"),
            ({"method": "ti", "checkpoints": [RBM]}, "linear in the inverse temperature"),
        ],
    )
    def test_refusals(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            quick(self.RBM, **options)

    def test_refuses_other_things(self) -> None:
        with pytest.raises(TypeError, match="dist must be an RBM"):
            tempering_log_partition(torch.zeros(3))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="normali"):
            bad = random_rbm(("gaussian", "gaussian"))
            quick(RBM(bad.visible, bad.hidden, 100.0 * bad.weight, validate_args=False))


class TestFlags:
    """All units on or all off, equally likely but for a tilt."""

    @staticmethod
    def two_modes(strength: float, tilt: float = 0.0) -> BernoulliRBM:
        weight = torch.full((12, 8), strength, dtype=torch.float64)
        return BernoulliRBM(weight, tilt - weight.sum(1) / 2.0, -weight.sum(0) / 2.0)

    def test_levels_that_hardly_overlap(self) -> None:
        with pytest.warns(LogPartitionWarning, match="levels 0 and 1 hardly overlap"):
            estimate = quick(self.two_modes(2.0), base="uniform", betas=[0.0, 1.0])
        assert not estimate.reliable

    def test_chains_that_disagree(self) -> None:
        """Levels in between are missing, so that each chain stays in the mode that it fell into."""
        rbm = self.two_modes(2.0, tilt=0.5)
        with pytest.warns(LogPartitionWarning, match="chains disagree"):
            quick(rbm, base="uniform", betas=[0.0, 0.9, 0.95, 1.0])

    def test_base_that_hides_a_mode(self) -> None:
        """From the machine's own visible biases all units are off until the very end, and exchanges are
        as good as can be. The mode that they never reach is found from random hidden states, and the
        chains disagree."""
        rbm = self.two_modes(1.0)
        with pytest.warns(LogPartitionWarning, match="chains disagree"):
            quick(rbm, betas=[0.0, 1.0])
        estimate = quick(rbm, base="uniform", num_levels=8, num_samples=200)
        assert estimate.reliable
        assert abs(error_z(estimate, exact_log_partition(rbm))) < T_LIMIT

    def test_no_round_trip(self) -> None:
        options: dict[str, Any] = {"num_levels": 20, "num_samples": 5, "thin": 1}
        with pytest.warns(LogPartitionWarning, match="no replica made a round trip"):
            quick(self.two_modes(0.1), base="uniform", **options)


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    quick(random_rbm(("bernoulli", "bernoulli")), progress=True)
    assert "tempering" in capsys.readouterr().err
    quick(random_rbm(("bernoulli", "bernoulli")))
    assert capsys.readouterr().err == ""
