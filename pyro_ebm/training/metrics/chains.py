# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Metrics of persistent chains: do they mix, and do they look like data?"""

from typing import Any

import torch

from pyro_ebm.diagnostics import convergence_of
from pyro_ebm.diagnostics.convergence import MIN_DRAWS
from pyro_ebm.distances import maximum_mean_discrepancy
from pyro_ebm.training.metrics.snapshot import Snapshot

__all__ = ["chain_mixing", "mmd"]

#: Rows whose distances make the bandwidth.
_MEDIAN_ROWS = 1000


def chain_mixing(s: Snapshot, window: int) -> dict[str, Any]:
    r"""Rank-normalised split :math:`\hat R` and bulk effective sample size of the free energies of the
    persistent chains after the last ``window`` updates of the epoch; of a deep machine those of all even
    layers together, which are exact.

    The parameters move between updates, which shifts the free energies of all chains alike: their mean over
    the chains is subtracted at every update. :math:`\hat R` far above 1 says that chains stay at levels of
    their own for as long as the window. The effective size is that of all chains together; with long mixing
    it is near the number of chains. NaN where the epoch has fewer than 8 updates. A product of the
    chains with the weights at every update of the window.
    """
    energies = None if s.watch is None else s.watch.chain_energies
    if energies is None or energies.shape[1] < MIN_DRAWS:
        return {"chain_r_hat": float("nan"), "chain_ess": float("nan")}
    draws = energies.double()
    draws = draws - draws.mean(0)
    found = convergence_of(draws.cpu().numpy())
    return {"chain_r_hat": found.r_hat, "chain_ess": found.ess_bulk}


def mmd(s: Snapshot, kernel: str, bandwidth: float | None) -> dict[str, Any]:
    r"""Squared maximum mean discrepancy between persistent chains and training rows, unbiased: zero on
    average where chains are distributed as the data, and possibly below.

    See :func:`pyro_ebm.distances.maximum_mean_discrepancy`. ``bandwidth`` None is the median distance
    between training rows, the same at every epoch. NaN where the objective has no chains. Its time grows with
    the square of the number of chains and rows.
    """
    chains = s.visible_chains
    if chains is None:
        return {"mmd": float("nan")}
    rows = s.rows["train"]
    if bandwidth is None:
        norm = 0.0 if kernel == "hamming" else 2.0
        distances = torch.nn.functional.pdist(rows[:_MEDIAN_ROWS].double(), norm)
        bandwidth = distances.median().item() or distances.mean().item() or 1.0
    distance = maximum_mean_discrepancy(chains, rows, kernel=kernel, bandwidth=bandwidth)
    return {"mmd": distance.value}
