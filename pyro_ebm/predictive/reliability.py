# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Reliability of a classifier: how often it is right where it is so sure."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.diagnostics.tables import decimals, text_table
from pyro_ebm.predictive.estimates import Estimate, mean_estimate, proportion_estimate

__all__ = ["ReliabilityTable", "reliability_table"]

_BINNINGS = ("equal-width", "equal-mass")


@dataclass(frozen=True)
class ReliabilityTable:
    """Rows in bins of confidence, empty bins left out.

    :param lower: confidences above this, one number a bin.
    :param upper: and up to this.
    :param count: number of rows.
    :param confidence: mean confidence.
    :param accuracy: share of the rows that are right, an :class:`Estimate`.
    :param Estimate error: the expected calibration error. Its standard error takes the sign of the gap
        of every bin as known, so that it is too small where a gap is within its own noise.
    :param float noise: the calibration error that a perfectly calibrated classifier shows on so many
        rows of these confidences, on average. The estimate is biased upwards by about this much where
        there is nothing to find.
    :param str binning: "equal-width" or "equal-mass".
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    count: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[Estimate, ...]
    error: Estimate
    noise: float
    binning: str

    def to_dict(self) -> dict[str, Any]:
        """All numbers for a report; JSON types only."""
        names = ("lower", "upper", "count", "confidence")
        return {
            **{name: list(getattr(self, name)) for name in names},
            "accuracy": [share.value for share in self.accuracy],
            "accuracy_std_error": [share.std_error for share in self.accuracy],
            "error": self.error.to_dict(),
            "noise": self.noise,
            "binning": self.binning,
        }

    def __str__(self) -> str:
        header = ["confidence", "rows", "mean", "right", "SE", "gap"]
        rows = []
        for i, share in enumerate(self.accuracy):
            numbers = (self.confidence[i], *vars(share).values(), share.value - self.confidence[i])
            label = f"({self.lower[i]:.3f}, {self.upper[i]:.3f}]"
            rows.append([label, str(self.count[i]), *(decimals(x, 3) for x in numbers)])
        return text_table(header, rows)


def reliability_table(
    confidence: Tensor, correct: Tensor, *, num_bins: int = 15, binning: str = "equal-width"
) -> ReliabilityTable:
    r"""Reliability table and expected calibration error (ECE) of the top label,

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} \, | \mathrm{accuracy}_b - \mathrm{confidence}_b | .

    Bins of equal width divide [0, 1]; those of equal mass hold nearly equal numbers of rows, so that
    none is nearly empty (rows of equal confidence stay together). Bins contain their upper end.

    The noise is :math:`\sum_b \sqrt{2 / \pi}\, s_b / n` with :math:`s_b^2` the sum of
    confidence (1 - confidence) over the bin: the mean of the absolute value of a normal variable.

    **References**

    [1] *On Calibration of Modern Neural Networks*, Chuan Guo, Geoff Pleiss, Yu Sun, Kilian Weinberger
    (2017)

    [2] *Obtaining Well Calibrated Probabilities Using Bayesian Binning*, Mahdi Pakdaman Naeini, Gregory
    Cooper, Milos Hauskrecht (2015)

    [3] *Verified Uncertainty Calibration*, Ananya Kumar, Percy Liang, Tengyu Ma (2019)

    :param Tensor confidence: probabilities of the top label, shape ``(rows,)``.
    :param Tensor correct: whether the top label is right, boolean, shape ``(rows,)``.
    :param int num_bins: number of bins.
    :param str binning: "equal-width" or "equal-mass".
    :raises ValueError: for wrong shapes, confidences outside of [0, 1], or impossible options.

    >>> import torch
    >>> confidence = torch.tensor([0.6, 0.6, 0.9, 0.9])
    >>> correct = torch.tensor([True, False, True, True])
    >>> table = reliability_table(confidence, correct, num_bins=5)
    >>> round(table.error.value, 6)  # half of the rows 0.1 too sure, half of them 0.1 too unsure
    0.1
    """
    _check(confidence, correct, num_bins, binning)
    sure, right = confidence.detach().double(), correct.double()
    edges = torch.linspace(0.0, 1.0, num_bins + 1, dtype=sure.dtype, device=sure.device)
    if binning == "equal-mass":
        # The largest confidence of each share of the rows; equal ones share an edge.
        shares = torch.arange(1, num_bins, device=sure.device) * len(sure)
        last = (shares + num_bins - 1) // num_bins - 1
        edges[1:-1] = sure.sort().values[last]
    index = torch.bucketize(sure, edges[1:-1].contiguous())

    def by_bin(x: Tensor) -> Tensor:
        return torch.zeros_like(edges[1:]).index_add_(0, index, x)

    count, hits, total = by_bin(torch.ones_like(sure)), by_bin(right), by_bin(sure)
    # ECE is the mean over rows of the gap, with the sign of the gap of the row's bin.
    error = mean_estimate((hits - total).sign()[index] * (right - sure))
    spread = by_bin(sure * (1.0 - sure)).sqrt().sum() * math.sqrt(2.0 / math.pi) / len(sure)
    kept = count > 0
    columns = torch.stack([edges[:-1], edges[1:], count, hits, total / count])[:, kept].tolist()
    lower, upper, counts, right_counts, means = columns
    pairs = zip(right_counts, counts, strict=True)
    return ReliabilityTable(
        tuple(lower),
        tuple(upper),
        tuple(int(n) for n in counts),
        tuple(means),
        tuple(proportion_estimate(int(k), int(n)) for k, n in pairs),
        error,
        spread.item(),
        binning,
    )


def _check(confidence: Tensor, correct: Tensor, num_bins: int, binning: str) -> None:
    if confidence.dim() != 1 or len(confidence) < 1:
        raise ValueError(f"confidence must have shape (rows >= 1,), got {tuple(confidence.shape)}")
    if correct.shape != confidence.shape or correct.dtype != torch.bool:
        raise ValueError(
            f"correct must be boolean of shape {tuple(confidence.shape)}, "
            f"got {correct.dtype} {tuple(correct.shape)}"
        )
    if not bool(((confidence >= 0.0) & (confidence <= 1.0)).all()):
        raise ValueError("confidence must be in [0, 1], got other values or NaN")
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    if binning not in _BINNINGS:
        raise ValueError(f"binning must be one of {_BINNINGS}, got {binning!r}")
