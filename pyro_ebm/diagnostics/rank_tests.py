# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Are ranks uniform? A chi-square test of their histogram and an exact test of their empirical CDF."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["RankTest", "ecdf_band", "ecdf_counts", "ecdf_p_value", "holm", "rank_test"]

Array = npt.NDArray[np.float64]
Ranks = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RankTest:
    """What two tests say about the ranks of one quantity.

    :param float chi_square: statistic of the histogram.
    :param float chi_square_p: its p-value.
    :param float ecdf_p: p-value of the largest deviation of the empirical CDF.
    """

    chi_square: float
    chi_square_p: float
    ecdf_p: float


def rank_test(ranks: Ranks, num_draws: int, num_bins: int) -> RankTest:
    """Test ranks for uniformity.

    :param ranks: shape ``(simulations,)``, from 0 to ``num_draws``.
    :param int num_draws: draws that every rank is among.
    :param int num_bins: bins of the histogram, a divisor of ``num_draws + 1``.
    """
    counts = np.bincount(ranks * num_bins // (num_draws + 1), minlength=num_bins)
    expected = len(ranks) / num_bins
    statistic = float(((counts - expected) ** 2 / expected).sum())
    half = torch.tensor([0.5 * (num_bins - 1), 0.5 * statistic], dtype=torch.float64)
    p_value = float(torch.special.gammaincc(half[0], half[1]))
    return RankTest(statistic, p_value, ecdf_p_value(ranks, num_draws))


def holm(p_values: list[float]) -> list[float]:
    """P-values adjusted for their number by Holm's step-down method, in the given order.

    >>> holm([0.04, 0.01, 0.5])
    [0.08, 0.03, 0.5]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def ecdf_counts(ranks: Ranks, num_draws: int) -> Ranks:
    """How many ranks are below k, for k from 1 to ``num_draws``."""
    counts = np.bincount(ranks, minlength=num_draws + 1)
    return counts.cumsum()[:-1].astype(np.int64)


def ecdf_p_value(ranks: Ranks, num_draws: int) -> float:
    r"""Probability that uniform ranks leave a band as improbable as the narrowest that these are in.

    The number of ranks below k is binomial. The statistic is the smallest two-sided tail probability over
    k [1]; its distribution is computed exactly, by a recursion over k.

    **References**

    [1] *Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation and
    multiple sample comparison*, Teemu Säilynoja, Paul-Christian Bürkner, Aki Vehtari (2022)
    """
    tails = _two_sided_tails(len(ranks), num_draws)
    observed = tails[np.arange(num_draws), ecdf_counts(ranks, num_draws)].min()
    inside = _probability_inside(tails > observed * (1.0 + 1e-9))
    return float(min(1.0, max(0.0, 1.0 - inside)))


def ecdf_band(num_simulations: int, num_draws: int, level: float) -> tuple[Ranks, Ranks]:
    """Smallest and largest numbers of ranks below k = 1, ..., ``num_draws`` of the simultaneous band that
    uniform ranks leave with a probability of at most ``level``."""
    tails = _two_sided_tails(num_simulations, num_draws)
    low, high = math.log(level / (4.0 * num_draws)), math.log(level)
    for _ in range(30):
        middle = 0.5 * (low + high)
        if 1.0 - _probability_inside(tails > math.exp(middle)) <= level:
            low = middle
        else:
            high = middle
    inside = tails > math.exp(low)
    return inside.argmax(1), num_simulations - inside[:, ::-1].argmax(1)


def _two_sided_tails(num_simulations: int, num_draws: int) -> Array:
    """Twice the smaller tail of every number of ranks below k, at most 1, shape ``(k, number)``."""
    share = torch.arange(1, num_draws + 1, dtype=torch.float64).unsqueeze(-1) / (num_draws + 1)
    law = torch.distributions.Binomial(num_simulations, share, validate_args=False)
    pmf = law.log_prob(torch.arange(num_simulations + 1, dtype=torch.float64)).exp().numpy()
    lower = pmf.cumsum(1)
    upper = pmf[:, ::-1].cumsum(1)[:, ::-1]
    tails: Array = np.minimum(1.0, 2.0 * np.minimum(lower, upper))
    return tails


def _probability_inside(inside: npt.NDArray[np.bool_]) -> float:
    """Probability that the numbers of ranks below k are all in the sets, shape ``(k, number)``.

    Numbers of ranks in the bins between are independent Poisson numbers, given that they add up to the
    number of simulations.
    """
    num_draws, width = inside.shape
    number = width - 1
    rate = number / (num_draws + 1)
    k = np.arange(width)
    log_factorial = np.array([math.lgamma(i + 1.0) for i in range(width)])
    step = np.exp(k * math.log(rate) - rate - log_factorial)
    difference = k[None, :] - k[:, None]
    transition = np.where(difference >= 0, step[np.abs(difference)], 0.0)
    state = step * inside[0]
    for row in inside[1:]:
        state = (state @ transition) * row
    total = math.exp(number * math.log(number) - number - log_factorial[-1])
    return float((state @ transition)[-1] / total)
