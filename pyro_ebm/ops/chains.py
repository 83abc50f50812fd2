# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Convergence diagnostics of many chains in bounded memory."""

import torch
from pyro.ops.stats import autocovariance
from torch import Tensor

__all__ = ["effective_sample_size"]

#: Entries (chains times draws times units) that are transformed at once: 32 MiB in float32.
_CHUNK_ENTRIES = 2**23


def effective_sample_size(samples: Tensor) -> Tensor:
    r"""Effective sample size of correlated chains, by Geyer's initial monotone sequence.

    The same estimate as :func:`pyro.ops.stats.effective_sample_size`, whose memory grows with the square
    of the number of draws; here it is linear, and units are processed in chunks.

    **References**

    [1] *Introduction to Markov Chain Monte Carlo*, Charles Geyer (2011)

    :param Tensor samples: shape ``(chains, draws, *event)``, with at least 4 draws.
    :returns: shape ``event``.
    :raises ValueError: if there are fewer than 4 draws.
    """
    if samples.dim() < 2 or samples.shape[1] < 4:
        raise ValueError(
            f"samples must have shape (chains, draws >= 4, ...), got {tuple(samples.shape)}"
        )
    num_chains, num_draws = samples.shape[:2]
    units = samples.reshape(num_chains, num_draws, -1)
    width = max(1, _CHUNK_ENTRIES // (num_chains * num_draws))
    parts = [_chunk_size(chunk) for chunk in units.split(width, dim=-1)]
    return torch.cat(parts).reshape(samples.shape[2:])


def _chunk_size(samples: Tensor) -> Tensor:
    num_chains, num_draws = samples.shape[:2]
    covariance = autocovariance(samples, dim=1).mean(0)
    within = samples.var(dim=1).mean(0)
    total = (num_draws - 1) / num_draws * within
    if num_chains > 1:
        total = total + samples.mean(dim=1).var(dim=0)
    else:
        within = total
    correlation = (total - within + covariance) / total
    correlation[0] = 1.0
    # Sums of neighbouring lags are positive and decreasing; noise is cut to such a sequence.
    pairs = correlation[: num_draws - num_draws % 2].unflatten(0, (-1, 2)).sum(1)
    monotone = pairs[1:].clamp(min=0.0).cummin(0).values
    tau = 2.0 * pairs[0] + 2.0 * monotone.sum(0) - 1.0
    return num_chains * num_draws / tau
