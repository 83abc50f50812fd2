# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Are predictive distributions calibrated? Probability integral transforms and coverage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.diagnostics.tables import decimals, significant, text_table
from pyro_ebm.predictive.estimates import Estimate, mean_estimate, proportion_estimate
from pyro_ebm.predictive.mixture import GaussianMixture

__all__ = ["CoverageReport", "PitReport", "coverage", "kolmogorov_p_value", "pit_report"]


@dataclass(frozen=True)
class PitReport:
    """Are probability integral transforms uniform?

    :param Estimate mean: their mean, 1/2 if uniform; above, the model predicts too small values.
    :param float variance: their variance, 1/12 if uniform; more if predictions are too narrow, less if
        they are too wide.
    :param float ks_statistic: largest distance of their distribution function from the uniform one.
    :param float p_value: probability of a distance at least as large if they are independent and uniform.
    :param counts: histogram of bins of equal width over [0, 1].
    :param int num_values: number of values.
    """

    mean: Estimate
    variance: float
    ks_statistic: float
    p_value: float
    counts: tuple[int, ...]
    num_values: int

    def to_dict(self) -> dict[str, Any]:
        """All numbers for a report; JSON types only."""
        names = ("variance", "ks_statistic", "p_value", "num_values")
        numbers = {name: getattr(self, name) for name in names}
        return {"mean": self.mean.to_dict(), **numbers, "counts": list(self.counts)}

    def __str__(self) -> str:
        expected = self.num_values / len(self.counts)
        bars = " ".join(f"{count / expected:.2f}" for count in self.counts)
        return (
            f"PIT of {self.num_values} values: mean {self.mean} (0.5), variance "
            f"{self.variance:.4f} (0.0833), KS {self.ks_statistic:.4f}, p = {self.p_value:.3g}\n"
            f"histogram (1 if uniform): {bars}"
        )


@dataclass(frozen=True)
class CoverageReport:
    """How often central prediction intervals contain the observation, and how wide they are.

    :param levels: nominal probabilities.
    :param coverage: share of the observations inside, one :class:`Estimate` a level. Standard errors
        assume independent values.
    :param width: mean width of the intervals; of two calibrated models the one with narrower intervals is
        better.
    :param int num_values: number of values.
    """

    levels: tuple[float, ...]
    coverage: tuple[Estimate, ...]
    width: tuple[float, ...]
    num_values: int

    def to_dict(self) -> dict[str, Any]:
        """All numbers for a report; JSON types only."""
        return {
            "levels": list(self.levels),
            "coverage": [share.to_dict() for share in self.coverage],
            "width": list(self.width),
            "num_values": self.num_values,
        }

    def __str__(self) -> str:
        rows = []
        for level, share, width in zip(self.levels, self.coverage, self.width, strict=True):
            numbers = [decimals(x, 4) for x in (share.value, share.std_error)]
            rows.append([f"{level:.3g}", *numbers, significant(width, 4)])
        return text_table([f"level ({self.num_values} values)", "inside", "SE", "width"], rows)


def pit_report(pit: Tensor, *, num_bins: int = 10) -> PitReport:
    r"""Test whether probability integral transforms :math:`u = F(y)` are uniform on [0, 1].

    They are if the y were drawn from the predictive distributions F [1]; the histogram says what is wrong
    otherwise: a hump in the middle if F is too wide, a U if it is too narrow, a slope if it is shifted [2].
    Uniformity does not make a model good: the unconditional distribution of y is calibrated too. Compare
    scores as well.

    The p-value takes the values for independent. Where the units of a row depend on each other, give one
    unit at a time.

    **References**

    [1] *Statistical Theory: The Prequential Approach*, Philip Dawid (1984)

    [2] *Probabilistic forecasts, calibration and sharpness*, Tilmann Gneiting, Fadoua Balabdaoui, Adrian
    Raftery (2007)

    :param Tensor pit: values in [0, 1] of any shape, see :meth:`GaussianMixture.cdf`.
    :param int num_bins: bins of the histogram.
    :raises ValueError: if there are fewer than two values or some are outside of [0, 1].

    >>> import torch
    >>> report = pit_report(torch.linspace(0.005, 0.995, 100))
    >>> report.counts, report.p_value > 0.99
    ((10, 10, 10, 10, 10, 10, 10, 10, 10, 10), True)
    """
    u = pit.detach().flatten().double()
    if len(u) < 2 or not bool(((u >= 0.0) & (u <= 1.0)).all()):
        raise ValueError(
            "pit must be at least two values, all in [0, 1], got shape "
            f"{tuple(pit.shape)} and values {u[:3].tolist()} ..."
        )
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    ordered, n = u.sort().values, len(u)
    steps = torch.arange(n + 1, dtype=u.dtype, device=u.device) / n
    distance = torch.maximum((steps[1:] - ordered).amax(), (ordered - steps[:-1]).amax()).item()
    index = (u * num_bins).long().clamp(max=num_bins - 1)
    counts = torch.bincount(index, minlength=num_bins).tolist()
    p_value = kolmogorov_p_value(distance, n)
    return PitReport(mean_estimate(u), u.var().item(), distance, p_value, tuple(counts), n)


def kolmogorov_p_value(statistic: float, num_values: int) -> float:
    r"""Probability that the Kolmogorov-Smirnov statistic of n independent values is at least as large,

    .. math:: 2 \sum_{k \ge 1} (-1)^{k-1} e^{-2 k^2 x^2}, \qquad
              x = \Bigl(\sqrt{n} + 0.12 + \frac{0.11}{\sqrt{n}}\Bigr) D ,

    the limit law with the correction of [1]: within 0.02 from n = 5 on, and much nearer where the probability
    is small.

    **References**

    [1] *Use of the Kolmogorov-Smirnov, Cramér-von Mises and Related Statistics Without Extensive Tables*,
    Michael Stephens (1970)

    :param float statistic: the statistic D.
    :param int num_values: the number n of values.
    """
    root = math.sqrt(num_values)
    x = (root + 0.12 + 0.11 / root) * statistic
    if x < 0.2:
        # The alternating series needs many terms there; the probability differs from 1 by 1e-12.
        return 1.0
    terms = ((-1.0) ** (k - 1) * math.exp(-2.0 * (k * x) ** 2) for k in range(1, 40))
    return min(1.0, max(0.0, 2.0 * math.fsum(terms)))


def coverage(
    mixture: GaussianMixture, y: Tensor, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)
) -> CoverageReport:
    r"""Coverage of central prediction intervals, from the quantile (1 - level) / 2 to (1 + level) / 2.

    :param GaussianMixture mixture: predictive distributions.
    :param Tensor y: observations, of a shape that broadcasts with the batch shape.
    :param levels: probabilities between 0 and 1.
    :raises ValueError: for impossible levels, shapes that do not fit or NaN.

    >>> import torch
    >>> normal = GaussianMixture.normal(torch.zeros(3), torch.ones(3))
    >>> report = coverage(normal, torch.tensor([0.0, 1.0, 3.0]), [0.9])
    >>> round(report.coverage[0].value, 3), round(report.width[0], 3)
    (0.667, 3.29)
    """
    levels = tuple(float(level) for level in levels)
    if not levels or not all(0.0 < level < 1.0 for level in levels):
        raise ValueError(f"levels must be between 0 and 1, got {levels}")
    if y.numel() < 1 or bool(torch.isnan(y).any()):
        raise ValueError(f"y must have values other than NaN, got shape {tuple(y.shape)}")
    # Inside or not shows in the transform, without quantiles.
    off_centre = (2.0 * mixture.cdf(y) - 1.0).abs()
    shares, widths = [], []
    for level in levels:
        inside = int((off_centre <= level).sum())
        shares.append(proportion_estimate(inside, off_centre.numel()))
        lower, upper = mixture.interval(level)
        widths.append((upper - lower).mean().item())
    return CoverageReport(levels, tuple(shares), tuple(widths), off_centre.numel())
