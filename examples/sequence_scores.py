# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Scores of ``sequence_machines.py``: do regimes agree with activities, and are sequences that a model makes
like those that were measured?"""

import torch
from torch import Tensor

__all__ = [
    "adjusted_rand",
    "best_naming",
    "confusion",
    "matched_accuracy",
    "statistic_errors",
    "statistics",
]

#: Lags of the autocorrelations that are compared.
LAGS = (1, 2, 4, 8)


def confusion(labels: Tensor, found: Tensor) -> Tensor:
    """How often each activity (lines) meets each regime (columns); square."""
    size = int(max(labels.max(), found.max())) + 1
    index = labels.flatten() * size + found.flatten()
    return torch.bincount(index, minlength=size * size).reshape(size, size)


def best_naming(labels: Tensor, found: Tensor) -> list[int]:
    """The regime of every activity, by which most frames agree."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(confusion(labels, found).numpy(), maximize=True)
    return [int(column) for column in columns]


def matched_accuracy(labels: Tensor, found: Tensor) -> float:
    """Share of frames whose regime is the activity's, under the best naming of the regimes."""
    table = confusion(labels, found)
    rows = torch.arange(len(table))
    return float(table[rows, best_naming(labels, found)].sum() / table.sum())


def adjusted_rand(labels: Tensor, found: Tensor) -> float:
    """Adjusted Rand index: 1 for equal partitions, 0 on average for unrelated ones."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(labels.flatten().numpy(), found.flatten().numpy()))


def statistics(frames: Tensor) -> dict[str, Tensor]:
    """What is compared of sets of sequences: shapes ``(channels,)`` or ``(lags, channels)``.

    Medians and quantiles over sequences, as a few sequences of large motion would decide a mean.
    """
    centred = frames - frames.mean(1, keepdim=True)
    scale = centred.square().mean(1).clamp_min(1e-12)
    lagged = torch.stack([(centred[:, lag:] * centred[:, :-lag]).mean(1) / scale for lag in LAGS])
    jumps = (frames[:, 1:] - frames[:, :-1]).abs().flatten(0, 1)
    usual, large = (jumps.quantile(q, 0) for q in (0.5, 0.98))
    return {
        "log_scale": 0.5 * scale.log().quantile(torch.tensor([0.25, 0.5, 0.75]), 0),
        "autocorrelation": lagged.median(1).values,
        # How much larger the largest jumps are than the usual ones.
        "log_tail": (large / usual.clamp_min(1e-12)).log(),
    }


def statistic_errors(frames: Tensor, reference: Tensor) -> dict[str, float]:
    """Mean absolute differences of :func:`statistics`."""
    a, b = statistics(frames), statistics(reference)
    return {name: (a[name] - b[name]).abs().mean().item() for name in a}
