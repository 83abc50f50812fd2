# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Distances between the distributions of two samples: maximum mean discrepancy, energy distance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm.distances.pooled import PooledSamples, p_value, permuted_labels

__all__ = ["TwoSampleDistance", "energy_distance", "maximum_mean_discrepancy"]

_KERNELS = ("rbf", "hamming")


@dataclass(frozen=True)
class TwoSampleDistance:
    """A distance between two samples; ``float(distance)`` is its value.

    :param float value: the distance.
    :param p_value: share of random relabellings whose distance is at least as large, None if none
        were drawn.
    :param dict settings: how it was computed.
    """

    value: float
    p_value: float | None
    settings: dict[str, Any]

    def __float__(self) -> float:
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """Numbers and settings for a report; JSON types only."""
        return {"value": self.value, "p_value": self.p_value, "settings": dict(self.settings)}

    def __str__(self) -> str:
        name = self.settings["distance"]
        test = "" if self.p_value is None else f", p = {self.p_value:.3g}"
        n, m = self.settings["num_samples"]
        return f"{name} = {self.value:.4g}{test} ({n} and {m} samples)"


def maximum_mean_discrepancy(
    x: Tensor,
    y: Tensor,
    *,
    kernel: str = "rbf",
    bandwidth: float | Sequence[float] | None = None,
    unbiased: bool = True,
    num_permutations: int = 0,
    generator: Generator | None = None,
) -> TwoSampleDistance:
    r"""Squared maximum mean discrepancy between two samples,

    .. math:: \mathrm{MMD}^2 = \mathrm{E}\, k(X, X') + \mathrm{E}\, k(Y, Y') - 2\, \mathrm{E}\, k(X, Y).

    The default is the unbiased U-statistic, which is zero on average where the distributions are equal
    and can be negative. The kernels are

    .. math:: k(x, y) = e^{-|x - y|^2 / 2 \sigma^2} \ (\text{"rbf"}), \qquad
              k(x, y) = e^{-d_H(x, y) / \sigma} \ (\text{"hamming"}),

    :math:`d_H` the number of entries that differ (for bits both are the same family).

    The p-value of the permutation test assumes **independent rows**. Draws of one chain are none: thin
    them to their effective sample size, or take the last draw of many chains.

    Memory is bounded; the time grows with :math:`(n + m)^2`.

    **References**

    [1] *A Kernel Two-Sample Test*, Arthur Gretton, Karsten Borgwardt, Malte Rasch, Bernhard Schölkopf,
    Alexander Smola (2012)

    :param Tensor x: shape ``(n, V)``, of any dtype.
    :param Tensor y: shape ``(m, V)``.
    :param str kernel: "rbf" or "hamming".
    :param bandwidth: :math:`\sigma`, or several, whose kernels are averaged; None for the median
        distance between rows of both samples together.
    :param bool unbiased: the U-statistic; False for the V-statistic, which is never negative.
    :param int num_permutations: random relabellings for the p-value; 0 for none.
    :param torch.Generator generator: the source of relabellings; the global one if None.
    :raises ValueError: for wrong shapes, values that are not finite, or impossible options.

    >>> import torch
    >>> x, y = torch.randn(200, 5), torch.randn(200, 5) + 0.5
    >>> distance = maximum_mean_discrepancy(x, y, num_permutations=99)
    >>> distance.p_value
    0.01
    """
    if kernel not in _KERNELS:
        raise ValueError(f"kernel must be one of {_KERNELS}, got {kernel!r}")
    pooled = PooledSamples(x, y)
    scales = _bandwidths(pooled, kernel, bandwidth)

    def values(start: int, stop: int) -> Tensor:
        if kernel == "hamming":
            distances = pooled.hamming(start, stop)
            exponents = [distances / -s for s in scales]
        else:
            distances = pooled.squared(start, stop)
            exponents = [distances / (-2.0 * s * s) for s in scales]
        return torch.stack([e.exp() for e in exponents]).mean(0)

    statistics = _statistics(pooled, values, 1.0, unbiased, num_permutations, generator)
    settings = {
        "distance": "squared MMD",
        "num_samples": list(pooled.sizes),
        "kernel": kernel,
        "bandwidth": scales,
        "unbiased": unbiased,
        "num_permutations": num_permutations,
    }
    return TwoSampleDistance(statistics[0].item(), p_value(statistics), settings)


def energy_distance(
    x: Tensor,
    y: Tensor,
    *,
    unbiased: bool = True,
    num_permutations: int = 0,
    generator: Generator | None = None,
) -> TwoSampleDistance:
    r"""Energy distance between two samples,

    .. math:: D^2 = 2\, \mathrm{E}|X - Y| - \mathrm{E}|X - X'| - \mathrm{E}|Y - Y'|,

    zero only where the distributions are equal; no bandwidth to choose. In one dimension it is twice
    the integrated squared difference of the distribution functions. Some authors (and SciPy) quote the
    square root; the unbiased estimate can be negative. See :func:`maximum_mean_discrepancy` for the
    p-value and the cost.

    **References**

    [1] *Energy statistics: A class of statistics based on distances*, Gábor Székely, Maria Rizzo (2013)

    :param Tensor x: shape ``(n, V)``, of any dtype.
    :param Tensor y: shape ``(m, V)``.
    :param bool unbiased: the U-statistic; False for the V-statistic, which is never negative.
    :param int num_permutations: random relabellings for the p-value; 0 for none.
    :param torch.Generator generator: the source of relabellings; the global one if None.
    :raises ValueError: for wrong shapes, values that are not finite, or impossible options.

    >>> import torch
    >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]])
    >>> float(energy_distance(x, y, unbiased=False))
    0.0
    """
    pooled = PooledSamples(x, y)

    def values(start: int, stop: int) -> Tensor:
        return pooled.squared(start, stop).sqrt_().neg_()

    statistics = _statistics(pooled, values, 0.0, unbiased, num_permutations, generator)
    settings = {
        "distance": "energy distance",
        "num_samples": list(pooled.sizes),
        "unbiased": unbiased,
        "num_permutations": num_permutations,
    }
    return TwoSampleDistance(statistics[0].item(), p_value(statistics), settings)


def _bandwidths(
    pooled: PooledSamples, kernel: str, bandwidth: float | Sequence[float] | None
) -> list[float]:
    if bandwidth is None:
        return [pooled.median(kernel)]
    scales = [float(s) for s in (bandwidth if isinstance(bandwidth, Sequence) else [bandwidth])]
    if not scales or not all(0.0 < s < float("inf") for s in scales):
        raise ValueError(f"bandwidth must be positive and finite, got {bandwidth!r}")
    return scales


def _statistics(
    pooled: PooledSamples,
    values: Callable[[int, int], Tensor],
    diagonal: float,
    unbiased: bool,
    num_permutations: int,
    generator: Generator | None,
) -> Tensor:
    """``E k(X, X') + E k(Y, Y') - 2 E k(X, Y)`` for the given labels and for permuted ones.

    One pass over the table of k serves all labels: with s the indicator of x, the sum within x is
    s'Ks, and those of the other blocks follow from it and from the sums of rows.
    """
    labels = permuted_labels(pooled, num_permutations, generator)
    within = labels.new_zeros(labels.shape[1])
    rows_x, total = torch.zeros_like(within), labels.new_zeros(())
    for start, stop in pooled.chunks():
        table = values(start, stop).double()
        own, sums = labels[start:stop], table.sum(1)
        within += (own * (table @ labels)).sum(0)
        rows_x += sums @ own
        total += sums.sum()
    between = rows_x - within
    within_y = total - rows_x - between
    n, m = pooled.sizes
    if unbiased:
        first = (within - n * diagonal) / (n * (n - 1))
        second = (within_y - m * diagonal) / (m * (m - 1))
    else:
        first, second = within / n**2, within_y / m**2
    return first + second - 2.0 * between / (n * m)
