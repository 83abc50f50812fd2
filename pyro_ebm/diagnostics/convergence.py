# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Convergence of one number along several chains, by ArviZ of either major version.

This file imports nothing but numpy at the top, and ArviZ where it is used, so that it can be loaded by
its path where there is no torch.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MIN_DRAWS", "Convergence", "convergence_of"]

Array = npt.NDArray[np.float64]

#: Split chains of fewer draws have no R-hat and no effective sample size.
MIN_DRAWS = 8


@dataclass(frozen=True)
class Convergence:
    """What is known of one number along chains; NaN where it cannot be said.

    :param float mean: mean of all draws.
    :param float std: standard deviation of all draws.
    :param float mcse: Monte Carlo standard error of the mean.
    :param float r_hat: rank-normalised split R-hat of all chains; of the halves of a single one.
    :param float ess_bulk: bulk effective sample size.
    :param float ess_tail: tail effective sample size, of the 5 % and 95 % quantiles.
    :param float r_hat_single: median over chains of the R-hat of each by itself.
    """

    mean: float
    std: float
    mcse: float
    r_hat: float
    ess_bulk: float
    ess_tail: float
    r_hat_single: float

    @property
    def is_constant(self) -> bool:
        """Whether the number never changed."""
        return self.std == 0.0

    @property
    def sits_in_modes(self) -> bool:
        """Whether every chain looks converged by itself, and they contradict each other."""
        return self.r_hat > 1.1 and self.r_hat_single < 1.05

    def to_dict(self) -> dict[str, float | None]:
        """The numbers, None where there is none; JSON types only."""
        return {name: x if np.isfinite(x) else None for name, x in asdict(self).items()}


def convergence_of(draws: Any) -> Convergence:
    r"""Rank-normalised split :math:`\hat R`, effective sample sizes and Monte Carlo error.

    **References**

    [1] *Rank-Normalization, Folding, and Localization: An Improved R-hat for Assessing Convergence of
    MCMC*, Aki Vehtari, Andrew Gelman, Daniel Simpson, Bob Carpenter, Paul-Christian Bürkner (2021)

    :param draws: shape ``(chains, draws)``, at least 8 draws.
    :raises ValueError: for another shape.

    >>> import numpy as np
    >>> result = convergence_of(np.random.default_rng(0).normal(size=(4, 100)))
    >>> result.r_hat < 1.05, result.ess_bulk > 200
    (True, True)
    """
    x: Array = np.asarray(draws, dtype=np.float64)
    if x.ndim != 2 or x.shape[0] < 1 or x.shape[1] < MIN_DRAWS:
        raise ValueError(f"draws must have shape (chains, draws >= {MIN_DRAWS}), got {x.shape}")
    unknown = float("nan")
    if not np.isfinite(x).all():
        return Convergence(unknown, unknown, unknown, unknown, unknown, unknown, unknown)
    mean, std = float(x.mean()), float(x.std())
    if (x == x[0, 0]).all():
        return Convergence(mean, 0.0, 0.0, unknown, unknown, unknown, unknown)
    return _varying(x, mean, std)


def _varying(x: Array, mean: float, std: float) -> Convergence:
    import arviz as az

    # Chains that never move have no variance within, which is no reason for a warning here.
    with np.errstate(divide="ignore", invalid="ignore"):
        singles = [_split_r_hat(chain) for chain in _some(x) if np.ptp(chain) > 0.0]
        return Convergence(
            mean,
            std,
            float(az.mcse(x)),
            _r_hat(x) if len(x) > 1 else _split_r_hat(x[0]),
            float(az.ess(x, method="bulk")),
            # ArviZ 1.x has no default for the quantiles of an array.
            float(az.ess(x, method="tail", prob=(0.05, 0.95))),
            float(np.median(singles)) if singles else 1.0,
        )


def _some(x: Array) -> Array:
    """At most 64 of the chains: the median over them needs no more."""
    return x[np.linspace(0, len(x) - 1, min(len(x), 64)).astype(int)]


def _split_r_hat(chain: Array) -> float:
    """R-hat of a single chain: its halves are chains."""
    half = len(chain) // 2
    return _r_hat(np.stack([chain[:half], chain[-half:]]))


def _r_hat(x: Array) -> float:
    import arviz as az

    value = float(az.rhat(x))
    within = x.reshape(len(x), -1).std(1)
    if not (within > 0.0).any():
        # No variance within any chain, but between them.
        return float("inf")
    return value
