# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Levels at equal steps of a communication barrier: the arithmetic of ladders, without any run."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["barrier_of", "check_betas", "check_target_rejection", "even_ladder", "initial_ladder"]

#: A pair that never exchanged is taken for one this hard: where it is hopeless, more is not known.
_MAX_REJECTION = 0.999
#: Share of an even ladder in every tuned one. It keeps levels apart in double precision.
_EVEN_SHARE = 1e-6


def initial_ladder(num_levels: int) -> list[float]:
    """Levels at equal steps of beta, to start from."""
    betas: list[float] = torch.linspace(0.0, 1.0, num_levels, dtype=torch.float64).tolist()
    return betas


def check_betas(betas: Sequence[float] | Tensor) -> list[float]:
    """The levels of a ladder as numbers.

    :raises ValueError: if there are fewer than two, they do not increase strictly, the first is
        negative or the last is not 1.
    """
    levels = torch.as_tensor(betas, dtype=torch.float64)
    valid = levels.dim() == 1 and len(levels) >= 2 and bool((levels.diff() > 0).all())
    if not valid or levels[0] < 0.0 or levels[-1] != 1.0:
        raise ValueError(
            f"betas must be at least 2 numbers that increase strictly to 1, none below 0, got {betas}"
        )
    result: list[float] = levels.tolist()
    return result


def even_ladder(betas: Sequence[float], barrier: Tensor, num_levels: int) -> list[float]:
    """Levels at equal steps of a barrier that is known at other levels.

    Between those it is interpolated by a monotone cubic; a barrier of zero gives equal steps of beta.

    :param betas: where the barrier is known, increasing from 0 to 1.
    :param Tensor barrier: its values, shape ``(len(betas),)``, not decreasing.
    :param int num_levels: levels, at least 2.
    """
    if num_levels < 2:
        raise ValueError(f"num_levels must be at least 2, got {num_levels}")
    x = torch.as_tensor(betas, dtype=torch.float64)
    even = torch.linspace(0.0, 1.0, num_levels, dtype=torch.float64)
    # A slope everywhere, so that the map can be inverted where nothing was ever rejected.
    y = barrier.double().cpu() + (1e-3 * float(barrier[-1]) + 1e-9) * x
    new = _invert(x, y / y[-1], even)
    result: list[float] = torch.lerp(new, even, _EVEN_SHARE).tolist()
    result[0], result[-1] = 0.0, 1.0
    return result


def barrier_of(rejection: Tensor) -> Tensor:
    r"""The barrier between two levels that reject so often.

    To first order it is the rejection itself. If the log-ratio of an exchange is normal, as it is for
    many units, :math:`r = \mathrm{erf}(\sqrt{\pi} \lambda / 2)` for any distance; that is inverted, so that
    a ladder with too few levels does not look shorter than it is.
    """
    return torch.erfinv(rejection.clamp(0.0, _MAX_REJECTION)) * (2.0 / math.sqrt(math.pi))


def _invert(x: Tensor, y: Tensor, values: Tensor) -> Tensor:
    """Where the monotone cubic through increasing points (x, y) takes values, by bisection."""
    slopes = _monotone_slopes(x, y)
    low, high = torch.zeros_like(values), torch.ones_like(values)
    for _ in range(60):
        middle = (low + high) / 2
        below = _cubic(x, y, slopes, middle) < values
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _monotone_slopes(x: Tensor, y: Tensor) -> Tensor:
    """Slopes at the points of a cubic that increases where they do (Fritsch and Butland, 1984)."""
    width, rise = x.diff(), y.diff() / x.diff()
    a, b = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    inner = (a + b) / (a / rise[:-1] + b / rise[1:])
    return torch.cat([rise[:1], inner, rise[-1:]])


def _cubic(x: Tensor, y: Tensor, slopes: Tensor, at: Tensor) -> Tensor:
    """The cubic Hermite spline through points with given slopes."""
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    left = right - 1
    width = x[right] - x[left]
    t = (at - x[left]) / width
    start = y[left] * (1 + 2 * t) + slopes[left] * width * t
    end = y[right] * (3 - 2 * t) - slopes[right] * width * (1 - t)
    return start * (1 - t).square() + end * t.square()


def check_target_rejection(target_rejection: float) -> None:
    if not 0.0 < target_rejection < 1.0:
        raise ValueError(f"target_rejection must be between 0 and 1, got {target_rejection}")
