# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Inverse temperatures for annealing."""

import torch
from torch import Tensor

from pyro_ebm.infer.paths.base import Path

__all__ = ["SCHEDULES", "inverse_temperatures"]

SCHEDULES = ("linear", "salakhutdinov-murray", "adaptive")

#: Ends and shares of the three linear pieces of Salakhutdinov & Murray (2008): 500 temperatures up
#: to 0.5, 4,000 up to 0.9 and 10,000 up to 1.
_SM_KNOTS = (0.0, 0.5, 0.9, 1.0)
_SM_SHARES = (500.0, 4000.0, 10000.0)

#: Chains of the pilot run of the adaptive schedule, at least: fewer have no deviation.
_PILOT_CHAINS = 2


def inverse_temperatures(
    schedule: str | Tensor, num_temperatures: int, path: Path, num_chains: int
) -> list[float]:
    """The ladder ``0 = beta_0 < ... < beta_K = 1`` with ``K = num_temperatures``.

    :param schedule: a name of :data:`SCHEDULES`, or the ladder itself.
    :param int num_temperatures: K; ignored where the ladder itself is given.
    :param Path path: the path, for the adaptive schedule's pilot run.
    :param int num_chains: chains of the pilot run, which takes 2 at least.
    :raises ValueError: for an unknown name or a ladder that does not increase from 0 to 1.
    """
    if isinstance(schedule, Tensor):
        return _check_ladder(schedule)
    if num_temperatures < 1:
        raise ValueError(f"num_temperatures must be at least 1, got {num_temperatures}")
    if schedule == "linear":
        return _ladder(torch.linspace(0.0, 1.0, num_temperatures + 1, dtype=torch.float64))
    if schedule == "salakhutdinov-murray":
        cumulative = torch.tensor((0.0, *_SM_SHARES), dtype=torch.float64).cumsum(0)
        knots = torch.tensor(_SM_KNOTS, dtype=torch.float64)
        return _ladder(_interpolate(cumulative / cumulative[-1], knots, num_temperatures))
    if schedule == "adaptive":
        return _ladder(_adaptive(path, num_temperatures, num_chains))
    raise ValueError(f"schedule must be one of {SCHEDULES} or a tensor, got {schedule!r}")


def _check_ladder(ladder: Tensor) -> list[float]:
    betas = ladder.double()
    increasing = betas.dim() == 1 and len(betas) > 1 and bool((betas.diff() > 0).all())
    if not increasing or betas[0] != 0.0 or betas[-1] != 1.0:
        raise ValueError("a schedule given as a tensor must increase strictly from 0 to 1")
    return _ladder(betas)


def _ladder(betas: Tensor) -> list[float]:
    values: list[float] = betas.tolist()
    values[0], values[-1] = 0.0, 1.0
    return values


def _interpolate(position: Tensor, betas: Tensor, num_temperatures: int) -> Tensor:
    """Invert the increasing piecewise linear map betas -> position on an even grid."""
    grid = torch.linspace(0.0, 1.0, num_temperatures + 1, dtype=torch.float64)
    right = torch.searchsorted(position, grid).clamp(1, len(position) - 1)
    low, high = position[right - 1], position[right]
    share = ((grid - low) / (high - low)).clamp(0.0, 1.0)
    return torch.lerp(betas[right - 1], betas[right], share)


def _adaptive(path: Path, num_temperatures: int, num_chains: int) -> Tensor:
    r"""Equal loss of effective sample size per step.

    A short step :math:`\delta` costs :math:`\delta^2 \mathrm{Var}(\partial_\beta \log p^*_\beta)` of the
    effective sample size, so that temperatures are spread with a density proportional to the standard
    deviation, which a pilot run of a tenth of the length estimates.
    """
    num_pilot = max(20, num_temperatures // 10)
    pilot = torch.linspace(0.0, 1.0, num_pilot + 1, dtype=torch.float64)
    deviations: list[Tensor] = []
    path.anneal(
        path.sample_base(max(_PILOT_CHAINS, num_chains)),
        _ladder(pilot),
        lambda _, step: deviations.append(step.double().std(0).mean()),
    )
    density = torch.stack(deviations).cpu()
    # A window smooths the noise of few chains; the floor keeps every step finite.
    window = max(1, num_pilot // 50)
    padded = torch.nn.functional.pad(density[None, None], (window, window), mode="replicate")
    density = torch.nn.functional.avg_pool1d(padded, 2 * window + 1, stride=1)[0, 0]
    density = density + 1e-2 * density.mean() + 1e-12
    position = torch.cat([density.new_zeros(1), density.cumsum(0)])
    return _interpolate(position / position[-1], pilot, num_temperatures)
