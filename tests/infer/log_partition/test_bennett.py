# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Bennett's ratio and MBAR on densities whose normalisers are known in closed form.

A normal density of mean m and standard deviation s, times exp(c), has log Z = c + log(s sqrt(2 pi)).
The runs of a test are batch elements: 400 of them, of 20 chains each.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_ebm.infer.log_partition import multistate
from pyro_ebm.infer.log_partition.bennett import (
    LogRatio,
    bennett_acceptance_ratio,
    jackknife_error,
)
from pyro_ebm.infer.log_partition.multistate import mbar
from tests.infer.reference import Z_LIMIT, binomial_tail

NUM_RUNS, NUM_CHAINS, NUM_DRAWS = 400, 20, 30
#: Mean, standard deviation and exponent of the levels.
LEVELS = torch.tensor(
    [(0.0, 1.0, 0.0), (1.0, 0.8, 2.0), (1.5, 1.3, -3.0), (3.0, 1.0, 1.0)]
).double()
LOG_Z = (LEVELS[:, 2] + LEVELS[:, 1].log()) - (LEVELS[0, 2] + LEVELS[0, 1].log())
#: 97.5 % quantile of Student's t with 19 degrees of freedom.
T_QUANTILE = 2.093

Ratio = Callable[[Tensor, Tensor], LogRatio]


def log_density(x: Tensor, level: int) -> Tensor:
    mean, deviation, exponent = LEVELS[level]
    return exponent - (x - mean).square() / (2.0 * deviation.square())


def autoregressive(shape: tuple[int, ...], memory: float) -> Tensor:
    """Standard normal draws along axis 1 with correlations ``memory ** lag``."""
    x = [torch.randn(shape[0], *shape[2:], dtype=torch.float64)]
    for _ in range(shape[1] - 1):
        noise = torch.randn_like(x[0])
        x.append(memory * x[-1] + math.sqrt(1.0 - memory**2) * noise)
    return torch.stack(x, 1)


def samples(level: int, num_draws: int = NUM_DRAWS, memory: float = 0.0) -> Tensor:
    mean, deviation, _ = LEVELS[level]
    shape = (NUM_CHAINS, num_draws, NUM_RUNS)
    return mean + deviation * autoregressive(shape, memory)


def ratios(
    low: int, high: int, num_draws: tuple[int, int], memory: float = 0.0
) -> tuple[Tensor, Tensor]:
    below, above = samples(low, num_draws[0], memory), samples(high, num_draws[1], memory)
    return (
        log_density(below, high) - log_density(below, low),
        log_density(above, low) - log_density(above, high),
    )


def table(memory: float = 0.0) -> Tensor:
    """Shape ``(levels, chains, draws, levels, runs)``."""
    x = torch.stack([samples(level, memory=memory) for level in range(4)], 2)
    return torch.stack([log_density(x, level) for level in range(4)])


def neighbours(densities: Tensor, low: int) -> tuple[Tensor, Tensor]:
    return (
        densities[low + 1, :, :, low] - densities[low, :, :, low],
        densities[low, :, :, low + 1] - densities[low + 1, :, :, low + 1],
    )


def bias_z(values: Tensor, expected: float) -> float:
    """Standard errors between the mean over runs and the truth."""
    return float((values.mean() - expected) / (values.std() / math.sqrt(len(values))))


def is_accepted(covered: Tensor, rate: float = 0.95) -> bool:
    """Neither too few nor too many for 95 %, with a false alarm in 10^6."""
    n, k = covered.numel(), int(covered.sum())
    return min(binomial_tail(k, n, rate), 1.0 - binomial_tail(k - 1, n, rate)) > 1e-6


class TestBennett:
    @pytest.mark.parametrize("paired", [False, True], ids=["independent", "paired"])
    @pytest.mark.parametrize("num_draws", [(30, 30), (40, 10)], ids=["equal", "unequal"])
    def test_known_ratio(self, num_draws: tuple[int, int], paired: bool) -> None:
        ratio = bennett_acceptance_ratio(*ratios(0, 1, num_draws), paired=paired)
        expected = LOG_Z[1].item()
        assert ratio.value.shape == ratio.std_error.shape == (NUM_RUNS,)
        assert abs(bias_z(ratio.value, expected)) < Z_LIMIT
        assert is_accepted((ratio.value - expected).abs() < T_QUANTILE * ratio.std_error)
        assert ratio.std_error.max() < 0.2

    @pytest.mark.parametrize("num_draws", [(30, 30), (40, 10)], ids=["equal", "unequal"])
    def test_error_against_the_asymptotic_variance(self, num_draws: tuple[int, int]) -> None:
        """For independent draws, 1 / sum s (1 - s) - 1 / n_0 - 1 / n_1 (Bennett 1976)."""
        forward, reverse = ratios(0, 1, num_draws)
        ratio = bennett_acceptance_ratio(forward, reverse)
        counts = [NUM_CHAINS * n for n in num_draws]
        shift = ratio.value + math.log(counts[0] / counts[1])
        share = torch.sigmoid(torch.cat([forward, -reverse], 1) - shift)
        information = (share * (1.0 - share)).sum((0, 1))
        variance = 1.0 / information - 1.0 / counts[0] - 1.0 / counts[1]
        assert ratio.std_error.square().mean() == pytest.approx(variance.mean().item(), rel=0.06)
        assert ratio.value.var().item() == pytest.approx(variance.mean().item(), rel=0.35)

    def test_two_states(self) -> None:
        """Draws in the exact proportions of both densities give the exact ratio."""
        weights = torch.tensor([[1.0, 3.0], [7.0, 1.0]]).double()  # states in columns
        draws = [torch.tensor([0] * 5 + [1] * 15), torch.tensor([0] * 35 + [1] * 5)]
        change = (weights[1] / weights[0]).log()
        ratio = bennett_acceptance_ratio(
            change[draws[0]].unsqueeze(1), -change[draws[1]].unsqueeze(1)
        )
        assert ratio.value.item() == pytest.approx(math.log(2.0), abs=1e-12)

    def test_replicates_are_the_jackknife(self) -> None:
        """One step from the solution is as good as solving again."""
        forward, reverse = (x[:, :, :3] for x in ratios(0, 1, (6, 4)))
        paired = bennett_acceptance_ratio(forward, reverse, paired=True)
        apart = bennett_acceptance_ratio(forward, reverse)

        def without(x: Tensor, chain: int) -> Tensor:
            return torch.cat([x[:chain], x[chain + 1 :]])

        for chain in range(NUM_CHAINS):
            less, back = without(forward, chain), without(reverse, chain)
            for got, both in (
                (paired.replicates[chain], (less, back)),
                (apart.replicates[chain], (less, reverse)),
                (apart.replicates[NUM_CHAINS + chain], (forward, back)),
            ):
                torch.testing.assert_close(
                    got, bennett_acceptance_ratio(*both).value, rtol=0.0, atol=2e-3
                )
        assert (paired.replicates - paired.value).abs().max() > 0.02

    @pytest.mark.parametrize("paired", [False, True], ids=["independent", "paired"])
    def test_correlated_draws(self, paired: bool) -> None:
        """Errors from chains hold; errors that take draws for independent are far too small."""
        forward, reverse = ratios(0, 1, (30, 30), memory=0.9)
        ratio = bennett_acceptance_ratio(forward, reverse, paired=paired)
        covered = (ratio.value - LOG_Z[1]).abs() < T_QUANTILE * ratio.std_error
        assert is_accepted(covered)
        naive = bennett_acceptance_ratio(
            forward.flatten(0, 1).unsqueeze(1), reverse.flatten(0, 1).unsqueeze(1)
        )
        assert not is_accepted((naive.value - LOG_Z[1]).abs() < 1.96 * naive.std_error)

    def test_no_overlap(self) -> None:
        """Far apart, where every term is below 1e-300, it is finite, and the error bar is wide."""
        forward, reverse = (x - 1000.0 for x in ratios(0, 3, (5, 5)))
        ratio = bennett_acceptance_ratio(forward, reverse)
        limit = (forward.flatten(0, 1).logsumexp(0) - reverse.flatten(0, 1).logsumexp(0)) / 2.0
        torch.testing.assert_close(ratio.value, limit)
        assert torch.isfinite(ratio.std_error).all() and ratio.std_error.median() > 0.3
        # One chain that carries a side tells itself by an error of nats.
        forward[0, 0] += 200.0
        assert (bennett_acceptance_ratio(forward, reverse).std_error > 5.0).all()

    def test_order_and_offset(self) -> None:
        forward, reverse = ratios(0, 2, (6, 4))
        ratio = bennett_acceptance_ratio(forward, reverse)
        back = bennett_acceptance_ratio(reverse, forward)
        torch.testing.assert_close(back.value, -ratio.value)
        torch.testing.assert_close(back.std_error, ratio.std_error)
        moved = bennett_acceptance_ratio(forward + 123.0, reverse - 123.0)
        torch.testing.assert_close(moved.value, ratio.value + 123.0)

    def test_one_chain_has_no_error(self) -> None:
        forward, reverse = (x[:1] for x in ratios(0, 1, (30, 30)))
        assert bennett_acceptance_ratio(forward, reverse).std_error.isinf().all()
        assert bennett_acceptance_ratio(forward, reverse, paired=True).std_error.isinf().all()

    def test_single_precision_is_accumulated_in_double(self) -> None:
        forward, reverse = ratios(0, 1, (30, 30))
        single = bennett_acceptance_ratio(forward.float(), reverse.float())
        assert single.value.dtype == torch.float64
        torch.testing.assert_close(
            single.value, bennett_acceptance_ratio(forward, reverse).value, rtol=0.0, atol=1e-6
        )

    @pytest.mark.parametrize(
        "forward, reverse, paired, words",
        [
            (torch.zeros(3), torch.zeros(3, 1), False, "num_chains, num_draws"),
            (torch.zeros(0, 1), torch.zeros(3, 1), False, "num_chains, num_draws"),
            (torch.zeros(3, 1, 2), torch.zeros(3, 1), False, "same batch shape"),
            (torch.zeros(3, 1), torch.zeros(4, 1), True, "number of chains"),
            (torch.full((3, 1), math.nan), torch.zeros(3, 1), False, "finite"),
        ],
    )
    def test_refusals(self, forward: Tensor, reverse: Tensor, paired: bool, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            bennett_acceptance_ratio(forward, reverse, paired=paired)


class TestMistakesAreCaught:
    """The comparison with the known ratio rejects what it is there to reject."""

    @pytest.mark.parametrize(
        "broken",
        [
            lambda f, r: bennett_acceptance_ratio(r, f),
            lambda f, r: bennett_acceptance_ratio(-f, -r),
            lambda f, r: bennett_acceptance_ratio(f, -r),
            lambda f, r: bennett_acceptance_ratio(f, f),
        ],
        ids=["sides exchanged", "wrong sign", "sign of one side", "one side twice"],
    )
    def test_wrong_works(self, broken: Ratio) -> None:
        value = broken(*ratios(0, 1, (40, 10))).value
        assert abs(bias_z(value, LOG_Z[1].item())) > 20.0

    def test_counts_ignored(self) -> None:
        """Without M the ratio of two unequal sample sizes would be off by its logarithm."""
        forward, reverse = ratios(0, 1, (40, 10))
        value = bennett_acceptance_ratio(forward, reverse).value + math.log(4.0)
        assert abs(bias_z(value, LOG_Z[1].item())) > 20.0

    def test_error_bars(self) -> None:
        ratio = bennett_acceptance_ratio(*ratios(0, 1, (30, 30)))
        for factor in (0.5, 2.0):
            margin = factor * T_QUANTILE * ratio.std_error
            assert not is_accepted((ratio.value - LOG_Z[1]).abs() < margin)


class TestMBAR:
    def test_known_ratios(self) -> None:
        ratio = mbar(table()[:, :, :20])
        assert ratio.value.shape == ratio.std_error.shape == (4, NUM_RUNS)
        assert (ratio.value[0] == 0.0).all() and (ratio.std_error[0] == 0.0).all()
        for level in range(1, 4):
            assert abs(bias_z(ratio.value[level], LOG_Z[level].item())) < Z_LIMIT
            error = (ratio.value[level] - LOG_Z[level]).abs()
            assert is_accepted(error < T_QUANTILE * ratio.std_error[level])
        # Dropping a level, or mixing two up, would be seen.
        assert abs(bias_z(ratio.value[2], LOG_Z[3].item())) > 20.0

    def test_correlated_draws(self) -> None:
        ratio = mbar(table(memory=0.9)[:, :, :20])
        error = (ratio.value[3] - LOG_Z[3]).abs()
        assert is_accepted(error < T_QUANTILE * ratio.std_error[3])

    def test_two_levels_are_bennetts_ratio(self) -> None:
        densities = table()[..., :20]
        for low in range(3):
            pair = slice(low, low + 2)
            many = mbar(densities[pair, :, :, pair])
            two = bennett_acceptance_ratio(*neighbours(densities, low), paired=True)
            torch.testing.assert_close(many.value[1], two.value)
            torch.testing.assert_close(many.std_error[1], two.std_error, rtol=1e-3, atol=0.0)

    def test_two_states(self) -> None:
        """Draws in the exact proportions of three densities give exact ratios."""
        weights = torch.tensor([[1.0, 3.0], [7.0, 1.0], [10.0, 30.0]]).double()
        draws = torch.tensor([[0] * 10 + [1] * 30, [0] * 35 + [1] * 5, [0] * 10 + [1] * 30])
        densities = weights.log()[:, draws.T].unsqueeze(2)
        value = mbar(densities).value
        expected = (weights.sum(1) / weights.sum(1)[0]).log()
        torch.testing.assert_close(value, expected, rtol=0.0, atol=1e-10)

    def test_satisfies_its_equations(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a few iterations: Newton's method converges."""
        monkeypatch.setattr(multistate, "_MAX_ITERATIONS", 6)
        densities = table()[..., :5]
        log_z = mbar(densities).value.view(4, 1, 1, 1, 5)
        log_mixture = (densities - log_z).logsumexp(0)
        again = (densities - log_mixture).flatten(1, 3).logsumexp(1)
        again = again - math.log(NUM_CHAINS * NUM_DRAWS)
        torch.testing.assert_close(again, log_z.view(4, 5), rtol=0.0, atol=1e-8)

    def test_replicates_are_the_jackknife(self) -> None:
        densities = table()[..., :2]
        ratio = mbar(densities)
        again = [
            mbar(torch.cat([densities[:, :c], densities[:, c + 1 :]], 1)).value
            for c in range(NUM_CHAINS)
        ]
        torch.testing.assert_close(ratio.replicates, torch.stack(again), rtol=0.0, atol=1e-3)
        torch.testing.assert_close(
            ratio.std_error, jackknife_error(torch.stack(again)), rtol=0.02, atol=0.0
        )

    def test_no_overlap(self) -> None:
        """Two groups of levels far apart: each is right within itself, and everything is finite."""
        x = torch.stack([samples(level) + 100.0 * (level > 1) for level in range(4)], 2)
        x = x[..., :20]
        shift = torch.tensor([0.0, 0.0, 100.0, 100.0])
        densities = torch.stack([log_density(x - shift[k], k) for k in range(4)])
        ratio = mbar(densities)
        assert torch.isfinite(ratio.value).all() and torch.isfinite(ratio.std_error).all()
        for low in (0, 2):
            step = ratio.value[low + 1] - ratio.value[low]
            alone = bennett_acceptance_ratio(*neighbours(densities, low)).value
            torch.testing.assert_close(step, alone, rtol=0.0, atol=1e-6)

    def test_batch_shapes(self) -> None:
        densities = table()[..., :6]
        flat, shaped = mbar(densities), mbar(densities.unflatten(-1, (2, 3)))
        torch.testing.assert_close(shaped.value.flatten(1), flat.value)
        torch.testing.assert_close(shaped.std_error.flatten(1), flat.std_error)
        assert shaped.replicates.shape == (NUM_CHAINS, 4, 2, 3)
        alone = mbar(densities[..., 0])
        torch.testing.assert_close(alone.value, flat.value[:, 0])

    @pytest.mark.parametrize(
        "shape, words",
        [((3, 2, 2, 4), "L, num_chains"), ((1, 2, 2, 1), "L >= 2"), ((3, 3), "L, num")],
    )
    def test_refusals(self, shape: tuple[int, ...], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            mbar(torch.zeros(shape))
        with pytest.raises(ValueError, match="finite"):
            mbar(torch.full((2, 1, 1, 2), math.nan))
