# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Options of annealed importance sampling: seeds, ladders, bases, settings and errors."""

import itertools
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM, units
from pyro_ebm.infer import (
    LogPartitionWarning,
    bracket_log_partition,
    estimate_log_partition,
    exact_log_partition,
)
from pyro_ebm.infer.paths import SCHEDULES, GeometricPath, inverse_temperatures
from tests.distributions.families import random_rbm

METHODS = ["ais", "reverse-ais"]


def small() -> RBM:
    return random_rbm(("bernoulli", "bernoulli"))


def run(dist: RBM, method: str = "ais", **options: Any) -> Any:
    return estimate_log_partition(
        dist, method, **{"num_chains": 20, "num_temperatures": 10, **options}
    )


class TestSeeds:
    OPTIONS = pytest.mark.parametrize(
        "options",
        [{}, {"schedule": "adaptive"}, {"method": "reverse-ais"}],
        ids=["forward", "adaptive", "reverse"],
    )

    @staticmethod
    def machines() -> list[RBM]:
        """One that is enumerated for the start, and one whose start is a forward run."""
        large = random_rbm(("gaussian", "relu"))
        large.num_gibbs_steps = 5
        return [small(), large]

    @OPTIONS
    def test_same_seed_same_weights(self, options: dict[str, Any]) -> None:
        for rbm in self.machines():
            first = run(rbm, seed=5, **options).log_weights
            torch.manual_seed(123)
            second = run(rbm, seed=5, **options).log_weights
            assert torch.equal(first, second)
            assert not torch.equal(first, run(rbm, seed=6, **options).log_weights)

    @OPTIONS
    def test_global_generator_is_left_alone(self, options: dict[str, Any]) -> None:
        for rbm in self.machines():
            before = torch.get_rng_state()
            run(rbm, seed=5, **options)
            assert torch.equal(before, torch.get_rng_state())

    @OPTIONS
    def test_global_generator_without_a_seed(self, options: dict[str, Any]) -> None:
        rbm = small()
        results = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            results.append(run(rbm, **options).log_weights)
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_the_sides_of_a_bracket_differ_in_seed(self) -> None:
        bracket = bracket_log_partition(small(), num_chains=20, num_temperatures=10, seed=3)
        assert (bracket.forward.settings["seed"], bracket.reverse.settings["seed"]) == (3, 4)


class TestLadders:
    @staticmethod
    def path() -> GeometricPath:
        rbm = small()
        return GeometricPath(rbm, rbm.visible)

    @pytest.mark.parametrize("number", [1, 2, 7, 100, 2900])
    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_increases_from_zero_to_one(self, schedule: str, number: int) -> None:
        betas = inverse_temperatures(schedule, number, self.path(), 50)
        assert len(betas) == number + 1
        assert betas[0] == 0.0 and betas[-1] == 1.0
        assert all(after > before for before, after in itertools.pairwise(betas))

    def test_linear(self) -> None:
        assert inverse_temperatures("linear", 4, self.path(), 50) == [0.0, 0.25, 0.5, 0.75, 1.0]

    def test_shares_of_salakhutdinov_and_murray(self) -> None:
        """500, 4,000 and 10,000 temperatures up to 0.5, 0.9 and 1."""
        betas = inverse_temperatures("salakhutdinov-murray", 14_500, self.path(), 50)
        assert betas[500] == pytest.approx(0.5)
        assert betas[4500] == pytest.approx(0.9)
        assert betas[250] == pytest.approx(0.25)
        assert betas[9500] == pytest.approx(0.95)

    def test_given(self) -> None:
        given = torch.tensor([0.0, 0.5, 0.75, 1.0])
        assert inverse_temperatures(given, 10_000, self.path(), 50) == given.tolist()
        assert run(small(), schedule=given).settings["num_temperatures"] == 3

    def test_adaptive_goes_where_the_variance_is(self) -> None:
        """Strong biases freeze the units early: most steps of a linear ladder are wasted."""
        torch.manual_seed(0)
        weight = 2.0 * torch.randn(6, 4, dtype=torch.float64)
        bias = torch.full((6,), -25.0, dtype=torch.float64)
        rbm = BernoulliRBM(weight, bias, torch.zeros(4, dtype=torch.float64))
        options = {"num_chains": 2000, "num_temperatures": 60, "base": "uniform", "seed": 0}
        linear = estimate_log_partition(rbm, schedule="linear", **options)
        adaptive = estimate_log_partition(rbm, schedule="adaptive", **options)
        assert adaptive.log_weights.var() < 0.7 * linear.log_weights.var()
        assert abs(adaptive.value - exact_log_partition(rbm)) < 6.0 * adaptive.std_error


class TestSettings:
    def test_forward(self) -> None:
        estimate = run(small(), seed=7)
        expected = {
            "method": "ais",
            "num_chains": 20,
            "num_temperatures": 10,
            "schedule": "linear",
            "base": "visible biases",
            "seed": 7,
            "dtype": "float64",
            "device": "cpu",
        }
        seconds = estimate.settings.pop("seconds")
        assert estimate.settings == expected and seconds >= 0.0

    @pytest.mark.parametrize(
        ("base", "word"),
        [(None, "visible biases"), ("uniform", "uniform"), (torch.full((3,), 0.4), "data means")],
        ids=["none", "uniform", "means"],
    )
    def test_base(self, base: Any, word: str) -> None:
        assert run(small(), base=base).settings["base"] == word

    def test_start_of_reverse_runs(self) -> None:
        rbm = small()
        assert run(rbm, "reverse-ais").settings["start"] == "exact"
        given = run(rbm, "reverse-ais", initial=rbm.sample((20,)))
        assert given.settings["start"] == "given"
        large = random_rbm(("gaussian", "relu"))
        large.num_gibbs_steps = 5
        words = run(large, "reverse-ais").settings["start"]
        assert words == "forward run, resampled, 5 sweeps"

    def test_schedule_and_dtype(self) -> None:
        settings = run(small().to(torch.float32), schedule=torch.tensor([0.0, 1.0])).settings
        assert settings["schedule"] == "given" and settings["dtype"] == "float32"

    @pytest.mark.parametrize("method", METHODS)
    def test_all_of_it_is_json(self, method: str) -> None:
        estimate = run(random_rbm(("ising", "ising"), batched=True), method, seed=0)
        assert json.loads(json.dumps(estimate.to_dict())) == estimate.to_dict()


class TestMachinesLeftAlone:
    @pytest.mark.parametrize("method", METHODS)
    def test_parameters_that_want_gradients(self, method: str) -> None:
        rbm = small()
        for parameter in rbm.parameters():
            parameter.requires_grad_()
        estimate = run(rbm, method)
        assert not estimate.value.requires_grad and not estimate.log_weights.requires_grad

    def test_attached_log_z_is_ignored(self) -> None:
        rbm = small()
        plain, attached = run(rbm, seed=0), run(rbm.normalize(100.0), seed=0)
        assert torch.equal(plain.log_weights, attached.log_weights)

    @pytest.mark.parametrize("method", METHODS)
    def test_progress_bar(self, method: str, capfd: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("tqdm")
        rbm = small()
        shown = run(rbm, method, seed=1, progress=True).log_weights
        assert f"{method}: " in capfd.readouterr().err
        assert torch.equal(shown, run(rbm, method, seed=1).log_weights)
        assert capfd.readouterr().err == ""


class TestStartOfReverseRuns:
    def test_given_for_an_expanded_machine(self) -> None:
        """Elements of an expanded batch share their parameters, hence their chains."""
        rbm = random_rbm(("bernoulli", "bernoulli"), batched=True)
        start = rbm.sample((20,))
        estimate = run(rbm.expand((4, 2, 3)), "reverse-ais", initial=start)
        assert estimate.value.shape == (4, 2, 3)

    @pytest.mark.parametrize("shape", [(3,), (19, 3), (20, 4), (20, 5, 3), ()], ids=str)
    def test_wrong_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"initial must have shape \(20, 3\), got"):
            run(small(), "reverse-ais", initial=torch.zeros(shape))

    def test_a_single_state_is_no_set_of_chains(self) -> None:
        """As many chains as units: a vector would pass for one state a chain."""
        with pytest.raises(ValueError, match=r"initial must have shape \(3, 3\), got \(3,\)"):
            run(small(), "reverse-ais", num_chains=3, initial=torch.zeros(3))

    def test_outside_of_the_support(self) -> None:
        with pytest.raises(ValueError, match="initial has values outside of"):
            run(small(), "reverse-ais", initial=torch.full((20, 3), 0.5))


def unnormalisable() -> RBM:
    one = torch.ones(2)
    return RBM(units.Gaussian(one, one), units.Gaussian(one, one), 2.0 * torch.eye(2))


LADDER = "a schedule given as a tensor must increase strictly from 0 to 1"
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"method": "raise"}, "method must be one of .*'ais', 'reverse-ais'.*got 'raise'"),
    ({"num_chains": 1}, "num_chains must be at least 2 for a standard error, got 1"),
    ({"num_temperatures": 0}, "num_temperatures must be at least 1, got 0"),
    ({"schedule": "cosine"}, "schedule must be one of .*'adaptive'.* or a tensor, got 'cosine'"),
    ({"schedule": torch.tensor([0.0, 0.5, 0.5, 1.0])}, LADDER),
    ({"schedule": torch.tensor([1.0, 0.0])}, LADDER),
    ({"schedule": torch.tensor([0.1, 1.0])}, LADDER),
    ({"schedule": torch.tensor([0.0, 0.9])}, LADDER),
    ({"schedule": torch.tensor([0.0])}, LADDER),
    ({"schedule": torch.tensor([0.0, float("nan"), 1.0])}, LADDER),
    ({"schedule": torch.zeros(2, 2)}, LADDER),
    ({"base": "flat"}, "base must be None, \"uniform\" or a tensor of means, got 'flat'"),
    ({"base": torch.zeros(4)}, r"base must have shape \(\.\.\., 3\), got \(4,\)"),
    (
        {"base": torch.zeros(5, 3)},
        r"base of shape \(5, 3\) does not broadcast to the batch shape \(\)",
    ),
    ({"base": torch.tensor(0.5)}, r"base must have shape \(\.\.\., 3\), got \(\)"),
    ({"base": torch.tensor([0.1, 0.2, float("nan")])}, "base contains NaN"),
]


@pytest.mark.parametrize(
    ("options", "message"), WRONG, ids=[f"{next(iter(o))}-{i}" for i, (o, _) in enumerate(WRONG)]
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(small(), **options)


@pytest.mark.parametrize("family", ["gaussian", "relu"])
def test_uniform_base_of_unbounded_units(family: str) -> None:
    with pytest.raises(ValueError, match='base="uniform" is impossible for unbounded'):
        run(random_rbm((family, "bernoulli")), base="uniform")


@pytest.mark.parametrize("method", METHODS)
def test_machines_without_a_normaliser(method: str) -> None:
    with pytest.raises(ValueError, match="not normalisable"):
        run(unnormalisable(), method)


@pytest.mark.parametrize("wrong", [None, torch.zeros(3), units.Bernoulli(torch.zeros(2))])
def test_no_machine(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"dist must be an RBM, got {type(wrong).__name__}"):
        run(wrong)


@pytest.mark.parametrize("method", METHODS)
def test_too_short_a_run_warns(method: str) -> None:
    weight = 4.0 * torch.randn(12, 12)
    rbm = BernoulliRBM(weight, torch.zeros(12), torch.zeros(12))
    with pytest.warns(LogPartitionWarning, match=r"effective sample size is [\d.]+ of 200 chains"):
        run(rbm, method, num_chains=200, num_temperatures=1, seed=0)


def test_base_may_carry_the_batch_of_the_machine() -> None:
    rbm = random_rbm(("bernoulli", "bernoulli"), batched=True)
    base: Tensor = 0.2 + 0.6 * torch.rand(2, 3, 3, dtype=torch.float64)
    estimate = run(rbm, base=base, num_chains=5000, seed=0)
    error = (estimate.value - exact_log_partition(rbm)) / estimate.std_error
    assert estimate.value.shape == (2, 3) and error.abs().max() < 6.0


@pytest.mark.parametrize("method", ["ais", "reverse-ais"])
def test_clamped_to_several_values(method: str) -> None:
    """Only the hidden layer carries the batch shape then: its biases absorb the clamped values."""
    torch.manual_seed(0)
    rbm = BernoulliRBM(*(torch.randn(s, dtype=torch.float64) for s in ((6, 4), (6,), (4,))))
    mask = torch.tensor([True, True, False, False, False, False])
    clamped = rbm.clamp(mask, torch.bernoulli(torch.full((3, 6), 0.5, dtype=torch.float64)))
    estimate = run(clamped, method, num_chains=200, num_temperatures=50, seed=0)
    error = (estimate.value - exact_log_partition(clamped)).abs()
    assert estimate.value.shape == (3,) and bool((error < 6.0 * estimate.std_error).all())


def test_adaptive_ladder_of_single_chains() -> None:
    """The pilot run has chains enough for a deviation, whatever the size of a chunk is."""
    options: dict[str, Any] = {"num_chains": 10, "num_temperatures": 20, "schedule": "adaptive"}
    assert bool(run(small(), chunk_size=1, seed=0, **options).value.isfinite())
