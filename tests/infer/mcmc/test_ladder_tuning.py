# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Ladders at equal steps of a barrier: against exact rejections, and against what may go wrong."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Size, Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import LadderTuning, tune_ladder
from pyro_ebm.infer.mcmc.ladder_placement import (
    barrier_of,
    check_betas,
    even_ladder,
    initial_ladder,
)
from pyro_ebm.infer.mcmc.ladder_tuning import LadderTuner, RejectionMeter, warmup_rounds
from pyro_ebm.infer.paths import GeometricPath, MachinePath, Path, base_unit
from tests.distributions.families import random_rbm


def spins(coupling: float, num_visible: int = 8) -> RBM:
    """All spins pull each other along: two modes beyond some inverse temperature."""
    weight = coupling * torch.ones(num_visible, 4, dtype=torch.float64)
    visible = units.Ising(0.1 * torch.ones(num_visible, dtype=torch.float64))
    return RBM(visible, units.Ising(torch.zeros(4, dtype=torch.float64)), weight)


def uniform_path(rbm: RBM) -> GeometricPath:
    return GeometricPath(rbm, base_unit(rbm, "uniform"))


def exact_rejections(path: Path, betas: list[float]) -> Tensor:
    """Mean rejection between neighbours, a sum over all pairs of visible states."""
    unit = path.target.visible
    assert unit.num_states is not None
    states = unit.states(0, unit.num_states)
    logs = [path.machine(beta).log_prob(states) for beta in betas]
    result = []
    for low, high in itertools.pairwise(logs):
        change = high - low
        log_ratio = change[:, None] - change[None, :]  # low's state moves up, high's moves down
        joint = torch.softmax(low, 0)[:, None] * torch.softmax(high, 0)[None, :]
        result.append(1.0 - (joint * log_ratio.exp().clamp(max=1.0)).sum())
    return torch.stack(result)


class TestPlacement:
    def test_barrier_of_normal_ratios(self) -> None:
        """A log-ratio N(-s^2/2, s^2) is accepted with probability 2 Phi(-s/2); the barrier is linear in s."""
        s = torch.tensor([1e-3, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
        rejection = 1.0 - 2.0 * torch.special.ndtr(-s / 2.0)
        torch.testing.assert_close(barrier_of(rejection), s / math.sqrt(2.0 * math.pi))
        small = torch.tensor([0.0, 1e-6], dtype=torch.float64)
        torch.testing.assert_close(barrier_of(small), small)
        assert torch.isfinite(barrier_of(torch.tensor([1.0, 2.0, -1.0])).double()).all()

    @pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.0])
    def test_known_barrier(self, power: float) -> None:
        """The barrier beta^p has levels (k / K)^(1/p); known at 40 points, they are found to 2 %."""
        betas = initial_ladder(40)
        barrier = 3.0 * torch.tensor(betas, dtype=torch.float64) ** power
        ladder = torch.tensor(even_ladder(betas, barrier, 11))
        expected = torch.linspace(0, 1, 11, dtype=torch.float64) ** (1.0 / power)
        assert (ladder - expected).abs().max() < (1e-5 if power == 1.0 else 0.02)

    def test_flat_barrier(self) -> None:
        ladder = even_ladder([0.0, 0.2, 1.0], torch.zeros(3), 5)
        assert ladder == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0], abs=1e-6)

    def test_any_barrier_gives_a_ladder(self) -> None:
        """Zeros, ones and cliffs: exact ends, strictly increasing, also in one step of 1e-9."""
        for trial in range(120):
            count = 2 + trial % 9
            inner = torch.rand(count - 2, dtype=torch.float64).sort().values
            if trial % 3 == 0 and count > 3:
                inner = 0.5 + 1e-9 * torch.arange(count - 2, dtype=torch.float64)
            betas = [0.0, *inner.tolist(), 1.0]
            rejection = torch.rand(count - 1, dtype=torch.float64)
            rejection = torch.where(torch.rand(count - 1) < 0.3, 0.0, rejection)
            rejection = torch.where(torch.rand(count - 1) < 0.3, 1.0, rejection)
            barrier = torch.cat([torch.zeros(1).double(), barrier_of(rejection).cumsum(0)])
            ladder = even_ladder(betas, barrier, 2 + trial % 40)
            assert len(ladder) == 2 + trial % 40
            assert ladder == check_betas(ladder) and ladder[0] == 0.0

    def test_number_of_levels(self) -> None:
        def levels(total: float, *arguments: Any) -> int:
            barrier = torch.tensor([0.0, total], dtype=torch.float64)
            return LadderTuning([0.0, 1.0], torch.zeros(1), barrier).num_levels(*arguments)

        assert levels(0.0) == 2 and levels(0.5) == 2
        assert levels(10.0) == pytest.approx(2 * 10.0 + 1, abs=2)
        assert levels(10.0, 0.2) == pytest.approx(10.0 / 0.2 + 1, abs=2)
        assert levels(1e6, 0.5, 30) == 30

    @pytest.mark.parametrize(
        "betas",
        [[1.0], [0.0, 0.5], [0.0, 0.5, 0.5, 1.0], [0.5, 0.2, 1.0], [-0.1, 1.0], [[0.0, 1.0]]],
    )
    def test_no_ladders(self, betas: Any) -> None:
        with pytest.raises(ValueError, match="betas must be at least 2 numbers that increase"):
            check_betas(betas)

    def test_ladders(self) -> None:
        assert check_betas(torch.tensor([0.0, 0.25, 1.0])) == [0.0, 0.25, 1.0]
        assert check_betas((0.5, 1)) == [0.5, 1.0]
        with pytest.raises(ValueError, match="num_levels must be at least 2, got 1"):
            even_ladder([0.0, 1.0], torch.zeros(2), 1)


class TestTuning:
    def test_rejections_become_equal(self) -> None:
        path = uniform_path(spins(0.6))
        before = exact_rejections(path, initial_ladder(6))
        tuning = tune_ladder(path, num_levels=6, num_chains=60)
        after = exact_rejections(path, tuning.betas)
        assert before.max() - before.min() > 0.4
        assert after.max() - after.min() < 0.08
        torch.testing.assert_close(tuning.rejection, after, rtol=0.0, atol=0.05)
        assert tuning.barrier[0] == 0.0 and (tuning.barrier.diff() > 0).all()

    @pytest.mark.parametrize("target", [0.2, 0.5])
    def test_number_of_levels_is_found(self, target: float) -> None:
        path = uniform_path(spins(0.7, 10))
        tuning = tune_ladder(path, target_rejection=target, num_chains=60)
        rejection = exact_rejections(path, tuning.betas)
        # The number is a whole one, so that the rejections are at most the target.
        assert rejection.max() < target + 0.07
        assert rejection.mean() > 0.5 * target

    def test_denser_ladder_of_the_same_run(self) -> None:
        path = uniform_path(spins(0.6))
        tuning = tune_ladder(path, num_chains=60)
        ladder = tuning.ladder(20)
        rejection = exact_rejections(path, ladder)
        assert len(ladder) == 20 and rejection.max() < 3.0 * rejection.mean()

    def test_batch_is_led_by_its_worst_element(self) -> None:
        weak, strong = spins(0.05), spins(0.6)
        weight = torch.stack([weak.weight, strong.weight])
        both = RBM(weak.visible, weak.hidden, weight)
        tuning = tune_ladder(uniform_path(both), num_levels=6, num_chains=60)
        rejection = exact_rejections(uniform_path(strong), tuning.betas)
        torch.testing.assert_close(tuning.rejection, rejection, rtol=0.0, atol=0.05)
        assert rejection.max() - rejection.min() < 0.08

    def test_nothing_to_do(self) -> None:
        """A machine without weights or biases: every exchange is accepted, two levels do."""
        zero = torch.zeros(4)
        rbm = RBM(units.Bernoulli(zero), units.Bernoulli(zero), torch.zeros(4, 4))
        tuning = tune_ladder(uniform_path(rbm))
        assert tuning.betas == [0.0, 1.0] and tuning.total_barrier == 0.0
        assert tune_ladder(uniform_path(rbm), num_levels=3).betas == pytest.approx([0.0, 0.5, 1.0])

    def test_nothing_can_be_done(self) -> None:
        """Weights a thousand times too strong: as many levels as allowed, and a ladder all the same."""
        rbm = spins(1000.0)
        tuning = tune_ladder(uniform_path(rbm), max_levels=12, num_rounds=3, num_chains=2)
        assert 2 <= len(tuning.betas) <= 12
        assert check_betas(tuning.betas) and torch.isfinite(tuning.barrier).all()

    def test_of_checkpoints(self) -> None:
        path = MachinePath([spins(0.01), spins(0.3), spins(0.7)])
        tuning = tune_ladder(path, num_levels=5, num_chains=60)
        rejection = exact_rejections(path, tuning.betas)
        assert rejection.max() - rejection.min() < 0.15

    def test_float32_and_own_generator(self) -> None:
        rbm, before, ladders = spins(0.5).to(torch.float32), torch.get_rng_state(), []
        for seed in (1, 1, 2):
            generator = torch.Generator().manual_seed(seed)
            path = GeometricPath(rbm, base_unit(rbm, "uniform"), generator)
            ladders.append(tune_ladder(path, num_levels=4, num_rounds=3).betas)
        assert torch.equal(before, torch.get_rng_state())
        assert ladders[0] == ladders[1] != ladders[2]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_levels": 1}, "num_levels must be at least 2, got 1"),
            ({"num_chains": 0}, "num_chains must be at least 1, got 0"),
            ({"num_rounds": 0}, "num_rounds must be at least 1, got 0"),
            ({"num_steps": 3}, "num_steps must be at least 4, got 3"),
            ({"max_levels": 1}, "max_levels must be at least 2, got 1"),
            ({"target_rejection": 0.0}, "target_rejection must be between 0 and 1, got 0.0"),
            ({"target_rejection": 1.0}, "target_rejection must be between 0 and 1, got 1.0"),
        ],
    )
    def test_impossible_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            tune_ladder(uniform_path(spins(0.1)), **options)


class TestMeter:
    @pytest.mark.parametrize("num_steps", [1, 2, 63, 130, 301])
    def test_means(self, num_steps: int) -> None:
        rbm = random_rbm(("bernoulli", "ising"), batched=True)
        ladder = uniform_path(rbm).ladder([0.0, 0.3, 0.6, 1.0])
        meter = RejectionMeter(ladder)
        probability = torch.rand(num_steps, 5, 4, 2, 3)
        for step in range(num_steps):
            meter.observe(step % 2, probability[step])
            if step == 70:
                _ = meter.rejection  # reading changes nothing
        assert meter.is_complete == (num_steps > 1)
        rejection = meter.rejection
        assert rejection.shape == (3, 2, 3) and rejection.dtype == torch.float64
        for pair in range(3):
            offered = probability[pair % 2 :: 2, :, pair].double()
            expected = 1.0 - offered.mean((0, 1)) if len(offered) else torch.full((2, 3), math.nan)
            torch.testing.assert_close(rejection[pair], expected.double(), equal_nan=True)

    def test_before_the_first_step(self) -> None:
        meter = RejectionMeter(uniform_path(spins(0.1)).ladder([0.0, 1.0]))
        assert not meter.is_complete and meter.rejection.isnan().all()
        meter.observe(0, torch.full((2,), 0.25))
        assert meter.is_complete and meter.rejection.tolist() == [0.75]

    def test_largest_of_a_batch(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), batched=True)
        meter = RejectionMeter(uniform_path(rbm).ladder([0.0, 1.0]))
        probability = torch.rand(1, 2, 2, 3)
        meter.observe(0, probability)
        largest = 1.0 - probability[0, 0].min().item()
        assert meter.tuning([0.0, 1.0]).rejection.item() == pytest.approx(largest)


class TestTuner:
    def test_levels_keep_what_is_nearest(self) -> None:
        path = uniform_path(spins(0.6))
        tuner = LadderTuner(path, num_levels=9)
        replicas = tuner.exchange.start(tuner.exchange.ladder.initial(Size((20,))))
        for _ in range(20):
            replicas, _ = tuner.step(replicas)
        old = tuner.betas
        new = tuner.retune(replicas)
        assert tuner.betas != old and len(tuner.betas) == 9
        for level, beta in enumerate(tuner.betas):
            nearest = min(range(9), key=lambda i, beta=beta: abs(old[i] - beta))
            assert torch.equal(new.v[:, level], replicas.v[:, nearest])
        assert (new.identity == torch.arange(9)).all()
        torch.testing.assert_close(new.fields, tuner.exchange.ladder.fields(new.v))
        assert not tuner.meter.is_complete

    def test_too_early(self) -> None:
        tuner = LadderTuner(uniform_path(spins(0.6)), num_levels=4)
        replicas = tuner.exchange.start(tuner.exchange.ladder.initial(Size((2,))))
        replicas, _ = tuner.step(replicas)
        assert tuner.retune(replicas) is replicas and tuner.betas == initial_ladder(4)

    @pytest.mark.parametrize("warmup", [0, 1, 10, 11, 100, 1000, 12345])
    def test_rounds_of_a_warmup(self, warmup: int) -> None:
        rounds = warmup_rounds(warmup)
        assert bool(rounds) == (warmup >= 11)
        last = 0
        for begin, end in rounds:
            assert last < begin < end and end - begin >= 5
            last = end
        if rounds:
            assert last == warmup * 3 // 4
            lengths = [b[1] - a[1] for a, b in itertools.pairwise([(0, 0), *rounds])]
            assert all(b >= a - 1 for a, b in itertools.pairwise(lengths))
