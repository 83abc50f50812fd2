# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Annealed importance sampling: unbiased weights from both sides, and intervals that cover.

Few temperatures on purpose: the mean weight is exactly Z however short the run is, so that short
runs with many chains show errors which long runs hide.
"""

import itertools
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import (
    LogPartitionEstimate,
    LogPartitionWarning,
    estimate_log_partition,
    exact_log_partition,
)
from pyro_ebm.infer.log_partition import annealing
from pyro_ebm.infer.paths import GeometricPath
from pyro_ebm.ops.linear import affine
from tests.distributions.families import ALL_PAIRS, UNBOUNDED, random_rbm, to_machine
from tests.infer.reference import Z_LIMIT, binomial_tail, log_partition, z_score, z_scores

METHODS = ["ais", "reverse-ais"]
ALL_PAIR_IDS = ["-".join(p) for p in ALL_PAIRS]
FINITE_PAIRS = [p for p in ALL_PAIRS if not set(p) <= set(UNBOUNDED)]


def ratio_z(dist: RBM, log_z: float, method: str = "ais", **options: Any) -> float:
    """Standard errors between the mean weight and Z (between mean of 1/w and 1/Z, reversed)."""
    options = {"num_chains": 50_000, "num_temperatures": 3, "seed": 1, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogPartitionWarning)
        estimate = estimate_log_partition(dist, method, **options)
    sign = -1.0 if method == "reverse-ais" else 1.0
    return z_score((sign * (estimate.log_weights - log_z)).exp(), 1.0)


def strong_unit(family: str, size: int) -> units.Unit:
    bias = torch.randn(size, dtype=torch.float64)
    if family == "categorical":
        return units.Categorical(bias.new_tensor(torch.randn(size // 2, 3).tolist()))
    if family == "multinomial":
        return units.Multinomial(bias[: size // 2 + 1], 4)
    if family == "gaussian":
        return units.Gaussian(bias, 0.5 + torch.rand(size, dtype=torch.float64))
    if family == "relu":
        return units.ReLU(bias, 1.0 + torch.rand(size, dtype=torch.float64))
    return {"bernoulli": units.Bernoulli, "ising": units.Ising}[family](bias)


def strong_rbm(pair: tuple[str, str], seed: int, scale: float = 1.0) -> RBM:
    """A machine of 4 to 18 states a side on which annealing matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        visible, hidden = strong_unit(pair[0], 6), strong_unit(pair[1], 4)
        weight = torch.randn(visible.size, hidden.size, dtype=torch.float64)
    if "relu" in pair:
        weight = weight * 0.5
    return RBM(visible, hidden, scale * weight)


class TestUnbiased:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("pair", ALL_PAIRS, ids=ALL_PAIR_IDS)
    def test_every_pair(self, pair: tuple[str, str], method: str) -> None:
        rbm = random_rbm(pair, offsets=True, num_hidden=1)
        start = None
        if set(pair) <= set(UNBOUNDED) and method == "reverse-ais":
            # No layer can be enumerated; so weak a machine forgets its start in a few sweeps.
            rbm.num_gibbs_steps = 20
            start = rbm.sample((50_000,))
        log_z = log_partition(to_machine(rbm))
        assert abs(ratio_z(rbm, log_z, method, initial=start)) < Z_LIMIT

    @pytest.mark.parametrize("method", METHODS)
    def test_although_the_logarithm_is_far_off(self, method: str) -> None:
        """A chain is nats away in expectation, on the side that is promised."""
        rbm = strong_rbm(("bernoulli", "ising"), seed=3)
        log_z = exact_log_partition(rbm).item()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LogPartitionWarning)
            estimate = estimate_log_partition(
                rbm, method, num_chains=100_000, num_temperatures=2, seed=1
            )
        error = estimate.log_weights.mean().item() - log_z
        assert (error < -0.3) if method == "ais" else (error > 0.3)
        assert abs(ratio_z(rbm, log_z, method, num_chains=100_000, num_temperatures=2)) < Z_LIMIT

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("schedule", ["linear", "salakhutdinov-murray", "adaptive", "given"])
    def test_every_schedule(self, schedule: str, method: str) -> None:
        rbm = strong_rbm(("ising", "bernoulli"), seed=5, scale=0.7)
        given = torch.tensor([0.0, 0.1, 0.5, 0.6, 1.0])
        chosen: Any = given if schedule == "given" else schedule
        log_z = exact_log_partition(rbm).item()
        z = ratio_z(rbm, log_z, method, schedule=chosen, num_temperatures=5)
        assert abs(z) < Z_LIMIT

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("base", ["none", "uniform", "means"])
    @pytest.mark.parametrize("family", ["bernoulli", "ising", "categorical", "multinomial"])
    def test_every_base(self, family: str, base: str, method: str) -> None:
        rbm = random_rbm((family, "bernoulli"), offsets=True)
        mean = rbm.sample((1000,)).mean(0)
        chosen: Any = {"none": None, "uniform": "uniform", "means": mean}[base]
        log_z = exact_log_partition(rbm).item()
        assert abs(ratio_z(rbm, log_z, method, base=chosen)) < Z_LIMIT

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("family", ["gaussian", "relu", "low_rank"])
    def test_base_of_means_for_unbounded_units(self, family: str, method: str) -> None:
        rbm = random_rbm((family, "ising"), offsets=True)
        mean = torch.tensor([0.7, 0.9], dtype=torch.float64)
        log_z = exact_log_partition(rbm).item()
        assert abs(ratio_z(rbm, log_z, method, base=mean)) < Z_LIMIT

    @pytest.mark.parametrize("method", METHODS)
    def test_clamped_machines_keep_their_constant(self, method: str) -> None:
        rbm = random_rbm(("bernoulli", "ising"), offsets=True)
        mask = torch.tensor([True, False, False])
        clamped = rbm.clamp(mask, torch.ones(3, dtype=torch.float64))
        log_z = exact_log_partition(clamped).item()
        assert abs(ratio_z(clamped, log_z, method)) < Z_LIMIT

    @pytest.mark.parametrize("method", METHODS)
    def test_float32(self, method: str) -> None:
        rbm = strong_rbm(("bernoulli", "bernoulli"), seed=2, scale=0.7)
        log_z = exact_log_partition(rbm).item()
        single = rbm.to(torch.float32)
        assert abs(ratio_z(single, log_z, method, num_temperatures=20)) < Z_LIMIT
        estimate = estimate_log_partition(single, method, num_temperatures=20, seed=0)
        assert estimate.log_weights.dtype == estimate.value.dtype == torch.float64

    @pytest.mark.parametrize("method", METHODS)
    def test_batches(self, method: str) -> None:
        """Elements of a batch by themselves, and no work for an expanded one."""
        rbm = random_rbm(("bernoulli", "categorical"), offsets=True, batched=True)
        log_z = exact_log_partition(rbm)
        expanded = rbm.expand((4, 2, 3))
        estimate = estimate_log_partition(
            expanded, method, num_chains=20_000, num_temperatures=3, seed=0
        )
        assert estimate.log_weights.shape == (20_000, 4, 2, 3)
        assert estimate.value.shape == estimate.std_error.shape == estimate.ess.shape == (4, 2, 3)
        assert (estimate.value == estimate.value[0]).all()
        sign = -1.0 if method == "reverse-ais" else 1.0
        weights = (sign * (estimate.log_weights[:, 0] - log_z)).exp()
        for element in weights.flatten(1).unbind(1):
            assert abs(z_score(element, 1.0)) < Z_LIMIT
        assert log_z.std() > 0.1, "elements are too alike to be told apart"


def move_then_ratio(
    self: GeometricPath, v: Tensor, betas: Sequence[float], *_: Any, **__: Any
) -> tuple[Tensor, Tensor]:
    total = torch.zeros(v.shape[:-1], dtype=torch.float64)
    for beta, after in itertools.pairwise(betas):
        v = self.move(affine(v, self._weight, self._hidden_bias), after)
        a = affine(v, self._weight, self._hidden_bias)
        total += self._hidden.natural_log_partition_step(a, beta, after)
        total += (after - beta) * (v * self._bias_change).sum(-1)
    return v, total + (betas[-1] - betas[0]) * self._constant


def hidden_bias_unscaled(self: GeometricPath, a: Tensor, beta: float) -> Tensor:
    """Moves with the hidden bias in the base, while ratios anneal it too."""
    theta = beta * (a - self._hidden_bias) + self._hidden_bias
    h = self._hidden.natural_sample(theta, self.generator)
    bias = torch.lerp(self._base_bias, self._visible_bias, beta)
    return self._visible.natural_sample(bias + beta * (h @ self._weight_t), self.generator)


def without_last(ladder: Any) -> Any:
    return lambda *arguments: ladder(*arguments)[:-1]


class TestMistakesAreCaught:
    """The check above rejects what it is there to reject."""

    METHOD = pytest.mark.parametrize("method", METHODS)

    @staticmethod
    def z(method: str) -> float:
        rbm = strong_rbm(("bernoulli", "ising"), seed=3, scale=0.5)
        log_z = exact_log_partition(rbm).item()
        return ratio_z(rbm, log_z, method, num_temperatures=4)

    @METHOD
    def test_nothing_wrong(self, method: str) -> None:
        assert abs(self.z(method)) < Z_LIMIT

    @METHOD
    def test_move_before_ratio(self, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(GeometricPath, "anneal", move_then_ratio)
        assert self.z(method) > 10.0

    @METHOD
    def test_hidden_bias_kept_in_the_moves(
        self, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(GeometricPath, "move", hidden_bias_unscaled)
        assert abs(self.z(method)) > 10.0

    @METHOD
    def test_last_temperature_dropped(self, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        ladder = without_last(annealing.inverse_temperatures)
        monkeypatch.setattr(annealing, "inverse_temperatures", ladder)
        assert abs(self.z(method)) > 10.0

    @METHOD
    def test_moves_one_temperature_behind(
        self, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The sweep leaves the wrong one of two neighbouring distributions invariant."""
        original = GeometricPath.move

        def behind(self: GeometricPath, a: Tensor, beta: float) -> Tensor:
            step = 0.25 if method == "ais" else -0.25
            return original(self, a, beta - step)

        monkeypatch.setattr(GeometricPath, "move", behind)
        assert abs(self.z(method)) > 10.0

    def test_reverse_chains_out_of_equilibrium(self) -> None:
        rbm = strong_rbm(("bernoulli", "ising"), seed=3, scale=0.5)
        log_z = exact_log_partition(rbm).item()
        start = rbm.visible.sample(torch.zeros(50_000, rbm.visible.size, dtype=torch.float64))
        assert abs(ratio_z(rbm, log_z, "reverse-ais", initial=start)) > 10.0


class TestCoverage:
    """30 machines of 30 pairs of families, 10 runs of 100 chains each."""

    NUM_RUNS = 10

    @classmethod
    @lru_cache
    def runs(cls, method: str) -> tuple[LogPartitionEstimate, Tensor]:
        """Estimates of batch shape (runs, machines), and the exact values."""
        log_weights, log_z = [], []
        for seed, pair in enumerate(FINITE_PAIRS[:30]):
            rbm = strong_rbm(pair, seed, scale=0.7)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LogPartitionWarning)
                estimate = estimate_log_partition(
                    rbm, method, num_chains=100 * cls.NUM_RUNS, num_temperatures=40, seed=seed
                )
            assert estimate.log_weights is not None
            log_weights.append(estimate.log_weights.reshape(100, cls.NUM_RUNS))
            log_z.append(exact_log_partition(rbm))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LogPartitionWarning)
            runs = LogPartitionEstimate.from_log_weights(
                torch.stack(log_weights, -1), estimate.settings, reverse=method == "reverse-ais"
            )
        return runs, torch.stack(log_z)

    @staticmethod
    def is_accepted(covered: Tensor) -> bool:
        """Neither too few nor too many for 95 %, with a false alarm in 10^6."""
        n, k = covered.numel(), int(covered.sum())
        too_few = binomial_tail(k, n, 0.95)
        too_many = 1.0 - binomial_tail(k - 1, n, 0.95)
        return min(too_few, too_many) > 1e-6

    @pytest.mark.parametrize("method", METHODS)
    def test_intervals_cover(self, method: str) -> None:
        runs, log_z = self.runs(method)
        covered = (runs.lower < log_z) & (log_z < runs.upper)
        assert self.is_accepted(covered), f"{int(covered.sum())} of {covered.numel()}"
        # Not vacuous: narrow intervals, on machines where a single chain would be far off.
        width = runs.upper - runs.lower
        assert width.median() < 0.6 and width.max() < 6.0  # those that are flagged are widened
        assert runs.log_weights.std(0).median() > 0.3
        # The error bar against the spread that it speaks of.
        spread = runs.value.std(0).square().mean().sqrt()
        claimed = runs.std_error.square().mean().sqrt()
        assert 0.8 < claimed / spread < 1.25
        # And the test has teeth: intervals of half or of twice the width are refused.
        for factor in (0.5, 2.0):
            half = factor * width / 2.0
            assert not self.is_accepted((runs.value - log_z).abs() < half)

    def test_the_two_sides_bound_log_z(self) -> None:
        """The expected log-weight of a chain lies below log Z, and above it in reverse."""
        for method, sign in (("ais", 1.0), ("reverse-ais", -1.0)):
            runs, log_z = self.runs(method)
            chains = runs.log_weights.flatten(0, 1)
            assert (sign * z_scores(chains, log_z) < Z_LIMIT).all()
            assert (sign * (log_z - chains.mean(0))).mean() > 0.1
