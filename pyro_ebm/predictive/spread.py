# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Expected distances of normal mixtures, the two terms of the continuous ranked probability score."""

import math

import torch
from torch import Tensor

__all__ = ["expected_distance", "half_spread"]

#: Entries that are computed at once: 8 MiB in float64.
_CHUNK_ENTRIES = 2**20
#: Beyond so many standard deviations a normal tail is below the rounding of float64.
_TAIL = 8.5
#: Steps of the trapezoidal rule within the smallest standard deviation.
_STEPS = 2.0


def expected_distance(mean: Tensor, std: Tensor) -> Tensor:
    r"""Mean of the absolute value of a normal variable,

    .. math:: \mathrm{E}|X| = m\, \mathrm{erf}\frac{m}{s \sqrt 2}
              + s \sqrt{\frac{2}{\pi}}\, e^{-m^2 / 2 s^2}.
    """
    z = mean / std
    density = torch.exp(-0.5 * z.square())
    return mean * torch.erf(z / math.sqrt(2.0)) + math.sqrt(2.0 / math.pi) * std * density


def half_spread(means: Tensor, stds: Tensor, weights: Tensor) -> Tensor:
    r"""Half of the mean distance between two independent draws of normal mixtures,

    .. math:: \tfrac{1}{2} \mathrm{E}|X - X'|
              = \tfrac{1}{2} \sum_{kl} w_k w_l \, \mathrm{E}|N(m_k - m_l, s_k^2 + s_l^2)|
              = \int F(t) \bigl(1 - F(t)\bigr)\, dt .

    The sum over pairs costs :math:`K^2`. The integrand on the right is analytic, with a Fourier transform
    that falls as :math:`e^{-s^2 k^2 / 4}` (s the smallest standard deviation), so that the trapezoidal
    rule with steps of s / 2 is wrong by :math:`e^{-4 \pi^2} = 10^{-17}` [1]. It is taken where it needs
    fewer points than the sum has pairs.

    **References**

    [1] *The Exponentially Convergent Trapezoidal Rule*, Lloyd Trefethen, André Weideman (2014)

    :param Tensor means: shape ``(K, n)``.
    :param Tensor stds: shape ``(K, n)`` or ``(1, n)``.
    :param Tensor weights: shape ``(K, n)`` or ``(1, n)``.
    :returns: shape ``(n,)``.
    """
    stds, weights = stds.expand(means.shape), weights.expand(means.shape)
    low = (means - _TAIL * stds).amin(0).detach()
    high = (means + _TAIL * stds).amax(0).detach()
    step = stds.amin(0).detach() / _STEPS
    num_points = ((high - low) / step).amax().item() + 2.0
    # Pairs cost two transcendental functions each, points one.
    if num_points < len(means):
        return _by_integral(means, stds, weights, low, high, int(num_points))
    return _by_pairs(means, stds, weights)


def _by_pairs(means: Tensor, stds: Tensor, weights: Tensor) -> Tensor:
    size = max(1, _CHUNK_ENTRIES // max(1, means.numel()))
    variances = stds.square()
    total = means.new_zeros(means.shape[1:])
    for start in range(0, len(means), size):
        rows = slice(start, start + size)
        std = (variances[rows].unsqueeze(1) + variances).sqrt()
        distance = expected_distance(means[rows].unsqueeze(1) - means, std)
        total = total + (weights[rows] * (weights * distance).sum(1)).sum(0)
    return 0.5 * total


def _by_integral(
    means: Tensor, stds: Tensor, weights: Tensor, low: Tensor, high: Tensor, num_points: int
) -> Tensor:
    size = max(1, _CHUNK_ENTRIES // means.numel())
    # One grid for each mixture, all of the same number of points.
    step = (high - low) / (num_points - 1)
    total = means.new_zeros(means.shape[1:])
    for start in range(0, num_points, size):
        index = torch.arange(start, min(start + size, num_points), device=means.device)
        points = low + index.to(means.dtype).unsqueeze(-1) * step
        z = (points.unsqueeze(1) - means) / stds
        # The upper tail by itself, as 1 - F cancels.
        below = (weights * torch.special.ndtr(z)).sum(1)
        above = (weights * torch.special.ndtr(-z)).sum(1)
        total = total + (below * above).sum(0)
    return total * step
