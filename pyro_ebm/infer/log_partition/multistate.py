# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Ratios of many normalisers at once from samples of all of them: MBAR."""

import torch
from torch import Size, Tensor

from pyro_ebm.infer.log_partition.bennett import (
    LogRatio,
    bennett_acceptance_ratio,
    jackknife_error,
)

__all__ = ["mbar"]

_MAX_ITERATIONS = 100
#: Largest change of log Z downwards in one self-consistent iteration.
_LONGEST_STEP = 50.0


@torch.no_grad()
def mbar(log_density_table: Tensor) -> LogRatio:
    r"""Estimate :math:`\log Z_k / Z_0` of L densities by the multistate Bennett acceptance ratio.

    Every sample of every level tells something about every normaliser:

    .. math:: Z_k = \sum_n \frac{p^*_k(x_n)}{\sum_l N_l\, p^*_l(x_n) / Z_l},

    with as many samples :math:`N_l = N` of each level. The solution minimises a convex function; it is
    found by Newton's method and, where that does not help, self-consistent iteration, from Bennett's
    ratios of neighbouring levels. With two levels it is Bennett's ratio. Standard errors are those of
    a jackknife over chains (one Newton step per chain), which holds for correlated draws; the published
    asymptotic variance does not.

    **References**

    [1] *Statistically optimal analysis of samples from multiple equilibrium states*, Michael Shirts,
    John Chodera (2008)

    :param Tensor log_density_table: unnormalised log-densities, shape
        ``(L, num_chains, num_draws, L) + batch_shape``: the first axis is the level of the density, the
        fourth the one that the sample was drawn from.
    :returns: of shape ``(L,) + batch_shape``, zero at level 0.
    :raises ValueError: if the shape is another or values are not finite.
    """
    table = log_density_table.double()
    _check(table)
    num_levels, num_chains, num_draws = table.shape[:3]
    batch = table.shape[4:]
    # Axes (batch, level of the density, chain, draw and level of the sample).
    flat = table.reshape(num_levels, num_chains, num_draws * num_levels, -1).permute(3, 0, 1, 2)
    start = _neighbours(table).reshape(num_levels, -1).T
    log_z = _solve(flat.flatten(2), start, num_chains * num_draws)
    replicates = _leave_one_out(flat, log_z, num_draws)
    value = (log_z - log_z[:, :1]).T.reshape(num_levels, *batch)
    replicates = (replicates - replicates[..., :1]).permute(0, 2, 1)
    replicates = replicates.reshape(num_chains, num_levels, *batch)
    return LogRatio(value, jackknife_error(replicates), replicates)


def _check(table: Tensor) -> None:
    shape: Size = table.shape
    if table.dim() < 4 or shape[0] != shape[3] or shape[0] < 2 or table.numel() == 0:
        raise ValueError(
            "log_density_table must have shape (L, num_chains, num_draws, L, ...) with L >= 2, got "
            f"{tuple(shape)}"
        )
    if not bool(torch.isfinite(table).all()):
        raise ValueError("log_density_table must be finite")


def _neighbours(table: Tensor) -> Tensor:
    """Bennett's ratios of neighbouring levels, summed up from level 0."""
    level = torch.arange(len(table), device=table.device)
    own = table[level, :, :, level]
    up = table[level[1:], :, :, level[:-1]] - own[:-1]
    down = table[level[:-1], :, :, level[1:]] - own[1:]
    steps = bennett_acceptance_ratio(up.movedim(0, 2), down.movedim(0, 2)).value
    return torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)])


def _solve(table: Tensor, start: Tensor, count: int) -> Tensor:
    """Log Z up to a constant, shape ``(batch, L)``; ``count`` samples are of each level."""
    log_z, tolerance = start, 1e-12 * table.shape[-1]
    weights, gradient = _gradient(table, log_z, count)
    for _ in range(_MAX_ITERATIONS):
        if bool((gradient.abs().amax(1) <= tolerance).all()):
            break
        before = log_z, weights, gradient
        log_z = log_z + _newton_step(_curvature(weights), gradient)
        weights, gradient = _gradient(table, log_z, count)
        worse = gradient.norm(dim=1) > before[2].norm(dim=1)
        if bool(worse.any()):
            # Self-consistent iteration goes downhill from anywhere, in small steps.
            safe = before[0] + (before[1].sum(-1) / count).log().clamp(min=-_LONGEST_STEP)
            log_z = torch.where(worse.unsqueeze(-1), safe, log_z)
            weights, gradient = _gradient(table, log_z, count)
    return log_z


def _gradient(table: Tensor, log_z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Posterior weights of the levels for each sample, and their sums less the counts."""
    weights = torch.softmax(table - log_z.unsqueeze(-1), 1)
    return weights, weights.sum(-1) - count


def _curvature(weights: Tensor) -> Tensor:
    """``diag(sum W) - W W'`` over the last axis."""
    return torch.diag_embed(weights.sum(-1)) - weights @ weights.mT


def _newton_step(curvature: Tensor, gradient: Tensor) -> Tensor:
    """Change of log Z; a constant is free, and so is what lies between levels without overlap."""
    inverse = torch.linalg.pinv(curvature, hermitian=True)
    return (inverse @ gradient.unsqueeze(-1)).squeeze(-1)


def _leave_one_out(table: Tensor, log_z: Tensor, num_draws: int) -> Tensor:
    """Log Z without one chain each, shape ``(num_chains, batch, L)``: one step from the solution."""
    weights = torch.softmax(table - log_z[:, :, None, None], 1).movedim(2, 0)
    own = _curvature(weights)
    gradient = -(weights.sum(-1) - num_draws)
    return log_z + _newton_step(own.sum(0) - own, gradient)
