# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""How good are class probabilities? Accuracy, proper scores and calibration."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.diagnostics.tables import significant, text_table
from pyro_ebm.predictive.estimates import Estimate, mean_estimate, proportion_estimate
from pyro_ebm.predictive.reliability import ReliabilityTable, reliability_table

__all__ = ["ClassificationReport", "classification_report"]


@dataclass(frozen=True)
class ClassificationReport:
    """Scores of class probabilities, each with a standard error; ``print`` it.

    :param Estimate accuracy: share of the rows whose most probable class is right.
    :param Estimate negative_log_likelihood: mean of -log p(label), in nats; infinite where a label had
        probability 0.
    :param Estimate brier_score: mean of the squared distance to the one-hot label, from 0 to 2.
    :param ReliabilityTable equal_width: reliability in bins of equal width, with the expected
        calibration error.
    :param ReliabilityTable equal_mass: the same in bins of nearly equal numbers of rows.
    :param int num_rows: number of rows.
    :param int num_classes: number of classes.
    """

    accuracy: Estimate
    negative_log_likelihood: Estimate
    brier_score: Estimate
    equal_width: ReliabilityTable
    equal_mass: ReliabilityTable
    num_rows: int
    num_classes: int

    @property
    def calibration_error(self) -> Estimate:
        """Expected calibration error of the top label, in bins of equal width."""
        return self.equal_width.error

    def to_dict(self) -> dict[str, Any]:
        """All numbers for a report; JSON types only."""
        scores = ("accuracy", "negative_log_likelihood", "brier_score")
        tables = ("equal_width", "equal_mass")
        return {
            **{name: getattr(self, name).to_dict() for name in scores + tables},
            "num_rows": self.num_rows,
            "num_classes": self.num_classes,
        }

    def __str__(self) -> str:
        scores = {
            "accuracy": self.accuracy,
            "negative log-likelihood": self.negative_log_likelihood,
            "Brier score": self.brier_score,
            "ECE, equal width": self.equal_width.error,
            "ECE, equal mass": self.equal_mass.error,
        }
        rows = [
            [name, significant(score.value, 4), significant(score.std_error, 2)]
            for name, score in scores.items()
        ]
        floor = f"ECE of perfect calibration, by chance: {significant(self.equal_width.noise, 2)}"
        head = f"{self.num_rows} rows, {self.num_classes} classes; {floor} (equal width)"
        return "\n".join([head, text_table(["", "value", "SE"], rows)])


def classification_report(
    log_probs: Tensor, labels: Tensor, *, num_bins: int = 15
) -> ClassificationReport:
    r"""Scores of class probabilities against labels.

    Log-probabilities are normalised here, in float64, so that logits and the unnormalised
    :math:`\log p(x) + \log p(y | x)` of a conditional model will do; give ``p.log()`` for probabilities.
    The negative log-likelihood and the Brier score [1] are strictly proper scores [2]: the true
    probabilities minimise their mean. Accuracy and calibration error are not proper, each alone.

    Standard errors assume independent rows. Of equal log-probabilities the first class counts as the
    most probable one.

    **References**

    [1] *Verification of Forecasts Expressed in Terms of Probability*, Glenn Brier (1950)

    [2] *Strictly Proper Scoring Rules, Prediction, and Estimation*, Tilmann Gneiting, Adrian Raftery
    (2007)

    [3] *On Calibration of Modern Neural Networks*, Chuan Guo, Geoff Pleiss, Yu Sun, Kilian Weinberger
    (2017)

    :param Tensor log_probs: shape ``(rows, classes)``; minus infinity for a probability of 0.
    :param Tensor labels: whole numbers from 0 to classes - 1, shape ``(rows,)``.
    :param int num_bins: bins of the reliability tables.
    :raises ValueError: for wrong shapes, NaN, rows of zero probability, or labels out of range.

    >>> import torch
    >>> log_probs = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]]).log()
    >>> report = classification_report(log_probs, torch.tensor([0, 0, 0]))
    >>> round(report.accuracy.value, 3), round(report.brier_score.value, 3)
    (0.667, 0.433)
    """
    _check(log_probs, labels)
    log_p = torch.log_softmax(log_probs.detach().double(), -1)
    labels = labels.to(device=log_p.device, dtype=torch.long)
    top, predicted = log_p.max(-1)
    correct = predicted == labels
    residual = log_p.exp()
    residual[torch.arange(len(labels), device=labels.device), labels] -= 1.0
    # Rounding may lift a certain class above 1.
    confidence = top.exp().clamp(max=1.0)
    return ClassificationReport(
        proportion_estimate(int(correct.sum()), len(labels)),
        mean_estimate(-log_p.gather(-1, labels.unsqueeze(-1))),
        mean_estimate(residual.square().sum(-1)),
        reliability_table(confidence, correct, num_bins=num_bins, binning="equal-width"),
        reliability_table(confidence, correct, num_bins=num_bins, binning="equal-mass"),
        len(labels),
        log_p.shape[1],
    )


def _check(log_probs: Tensor, labels: Tensor) -> None:
    if log_probs.dim() != 2 or len(log_probs) < 1 or log_probs.shape[1] < 2:
        raise ValueError(
            f"log_probs must have shape (rows >= 1, classes >= 2), got {tuple(log_probs.shape)}"
        )
    if not log_probs.is_floating_point():
        raise ValueError(f"log_probs must be floating-point numbers, got {log_probs.dtype}")
    if not bool((log_probs < float("inf")).all()):
        raise ValueError("log_probs must be below infinity, got NaN or infinity")
    if not bool((log_probs.amax(-1) > -float("inf")).all()):
        raise ValueError("log_probs must have a finite entry in every row")
    if labels.shape != log_probs.shape[:1]:
        raise ValueError(
            f"labels must have shape {tuple(log_probs.shape[:1])}, got {tuple(labels.shape)}"
        )
    whole = labels.dtype != torch.bool and not labels.is_complex()
    if not whole or not bool((labels == labels.long()).all()):
        raise ValueError(f"labels must be whole numbers, got {labels.dtype}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= log_probs.shape[1]:
        raise ValueError(f"labels must be from 0 to {log_probs.shape[1] - 1}, got {low} to {high}")
