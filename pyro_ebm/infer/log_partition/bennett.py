# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Ratios of normalisers from samples of both ends: Bennett's acceptance ratio."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["LogRatio", "bennett_acceptance_ratio", "jackknife_error"]

_MAX_ITERATIONS = 200
#: A single chain never carries more than this share of a sum, so that the others are never empty.
_LARGEST_SHARE = 1.0 - 1e-15


@dataclass(frozen=True)
class LogRatio:
    """Logarithms of ratios of normalisers.

    :param Tensor value: the estimates, float64.
    :param Tensor std_error: their jackknife standard errors.
    :param Tensor replicates: the estimates without one chain each, that chain's number along axis 0;
        where the two sides are not paired, forward chains come first.
    """

    value: Tensor
    std_error: Tensor
    replicates: Tensor


def jackknife_error(replicates: Tensor) -> Tensor:
    r"""Jackknife standard error :math:`\sqrt{(n - 1) / n \sum_c (\theta_{-c} - \bar\theta)^2}`.

    Chains are independent of each other, draws of one chain are not. The jackknife therefore leaves
    out one **chain** at a time: what is correlated within a chain (in time, or between the replicas
    that exchange their states) leaves together, and nothing needs to be known about it.

    :param Tensor replicates: estimates without chain c, c along axis 0.
    :returns: infinite where fewer than two chains are given.
    """
    n = len(replicates)
    if n < 2:
        return torch.full_like(replicates[0], math.inf)
    return ((n - 1) * replicates.var(0, unbiased=False)).sqrt()


@torch.no_grad()
def bennett_acceptance_ratio(
    log_ratio_forward: Tensor, log_ratio_reverse: Tensor, *, paired: bool = False
) -> LogRatio:
    r"""Estimate :math:`\Delta = \log Z_1 / Z_0` from samples of both densities.

    Solves

    .. math:: \sum_{x \sim p_0} \sigma\Bigl(\log \frac{p^*_1(x)}{p^*_0(x)} - \Delta - M\Bigr)
              = \sum_{x \sim p_1} \sigma\Bigl(\log \frac{p^*_0(x)}{p^*_1(x)} + \Delta + M\Bigr),
              \qquad M = \log \frac{n_0}{n_1},

    which has the smallest variance of all that is made of these ratios [1]. It takes works of
    annealing in both directions just as well [2]: the logarithms of forward importance weights, and of
    those of the reverse runs.

    Both sums are compared by their logarithms, so that Newton's method (kept inside of a shrinking
    bracket) also converges where the two densities hardly overlap and every term is tiny. The
    replicates are one step of Newton's method away from the estimate, an error of second order.

    **References**

    [1] *Efficient estimation of free energy differences from Monte Carlo data*, Charles Bennett (1976)

    [2] *Path-ensemble averages in systems driven far from equilibrium*, Gavin Crooks (2000)

    :param Tensor log_ratio_forward: :math:`\log p^*_1 - \log p^*_0` at samples of :math:`p_0`, shape
        ``(num_chains, num_draws) + batch_shape``; independent samples are chains of one draw.
    :param Tensor log_ratio_reverse: :math:`\log p^*_0 - \log p^*_1` at samples of :math:`p_1`; it may
        have other numbers of chains and draws.
    :param bool paired: whether chain i is one and the same on both sides (a tempering run), so that the
        jackknife leaves out both halves together.
    :returns: of shape ``batch_shape``.
    :raises ValueError: if shapes do not fit or values are not finite.

    >>> import torch
    >>> x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)).double()
    >>> ratio = bennett_acceptance_ratio(x - 0.5 + 3.0, x - 0.5 - 3.0)  # works of dissipation 1/2
    >>> bool((ratio.value - 3.0).abs() < 4.0 * ratio.std_error)
    True
    """
    forward, reverse = log_ratio_forward.double(), log_ratio_reverse.double()
    _check(forward, reverse, paired)
    offset = math.log(forward.shape[:2].numel() / reverse.shape[:2].numel())
    center = _solve(forward.flatten(0, 1), reverse.flatten(0, 1))
    up, up_slope = _leave_one_out(forward - center)
    down, down_slope = _leave_one_out(reverse + center)
    if paired:
        replicates = center + (up - down) / (up_slope + down_slope) - offset
        return LogRatio(center - offset, jackknife_error(replicates), replicates)
    whole_up, whole_down = (_slope(x.flatten(0, 1)) for x in (forward - center, reverse + center))
    # Without one of n chains the ratio of the counts differs too.
    without_up = center + up / (up_slope + whole_down) - offset - _shrinkage(len(forward))
    without_down = center - down / (whole_up + down_slope) - offset + _shrinkage(len(reverse))
    error = torch.hypot(jackknife_error(without_up), jackknife_error(without_down))
    return LogRatio(center - offset, error, torch.cat([without_up, without_down]))


def _check(forward: Tensor, reverse: Tensor, paired: bool) -> None:
    for name, x in (("log_ratio_forward", forward), ("log_ratio_reverse", reverse)):
        if x.dim() < 2 or x.shape[:2].numel() == 0:
            raise ValueError(
                f"{name} must have shape (num_chains, num_draws, ...), got {tuple(x.shape)}"
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name} must be finite")
    if forward.shape[2:] != reverse.shape[2:] or (paired and len(forward) != len(reverse)):
        raise ValueError(
            "log_ratio_forward and log_ratio_reverse must have the same batch shape"
            f"{' and number of chains' * paired}, got {tuple(forward.shape)} and "
            f"{tuple(reverse.shape)}"
        )


def _solve(forward: Tensor, reverse: Tensor) -> Tensor:
    """The zero of ``log sum sigmoid(forward - t) - log sum sigmoid(reverse + t)``, which falls in t."""
    spread = abs(math.log(len(forward) / len(reverse))) + 1e-9
    low = torch.minimum(forward.amin(0), -reverse.amax(0)) - spread
    high = torch.maximum(forward.amax(0), -reverse.amin(0)) + spread
    t = (0.5 * (forward.mean(0) - reverse.mean(0))).clamp(low, high)
    for _ in range(_MAX_ITERATIONS):
        up, down = logsigmoid(forward - t), logsigmoid(reverse + t)
        excess = up.logsumexp(0) - down.logsumexp(0)
        low, high = torch.where(excess > 0, t, low), torch.where(excess < 0, t, high)
        newton = t + excess / (_slope(forward - t) + _slope(reverse + t))
        inside = (newton > low) & (newton < high)
        previous, t = t, torch.where(inside, newton, 0.5 * (low + high))
        t = torch.where(excess == 0, previous, t)
        if bool(((t - previous).abs() <= 1e-13 * (1.0 + t.abs())).all()):
            break
    return t


def _slope(x: Tensor) -> Tensor:
    """Derivative of ``log sum sigmoid(x)`` along axis 0."""
    weights = torch.softmax(logsigmoid(x), 0)
    return (weights * torch.sigmoid(-x)).sum(0)


def _leave_one_out(x: Tensor) -> tuple[Tensor, Tensor]:
    """Change of ``log sum sigmoid(x)`` over chains and draws where one chain is left out, and the
    derivative of what is left; chains along axis 0."""
    log_terms = logsigmoid(x)
    share = torch.softmax(log_terms.flatten(0, 1), 0).view_as(x)
    slope = (share * torch.sigmoid(-x)).sum(1)
    left = 1.0 - share.sum(1).clamp(max=_LARGEST_SHARE)
    return left.log(), (slope.sum(0) - slope).clamp(min=0.0) / left


def _shrinkage(num_chains: int) -> float:
    """Change of the logarithm of a count where one chain of several is left out."""
    return math.log1p(-1.0 / num_chains) if num_chains > 1 else 0.0
