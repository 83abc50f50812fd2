# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Scores of predictive distributions that are known by samples only."""

import torch
from torch import Size, Tensor

__all__ = ["crps_from_samples", "energy_score"]

#: Entries of the tables of distances that are computed at once: 32 MiB in float64.
_CHUNK_ENTRIES = 2**22


def crps_from_samples(samples: Tensor, y: Tensor, *, fair: bool = True) -> Tensor:
    r"""Continuous ranked probability score from draws of the predictive distribution,

    .. math:: \frac{1}{S} \sum_i |x_i - y| - \frac{1}{2 S (S - 1)} \sum_{i \ne j} |x_i - x_j| .

    It is unbiased for the score of the distribution itself, so that models with different numbers of
    draws can be compared ("fair" [1]); single values may be negative. With ``fair=False`` it is the
    score of the empirical distribution, with :math:`S^2` in place of :math:`S (S - 1)`, larger by
    :math:`\mathrm{E}|X - X'| / 2 S` on average. Time :math:`S \log S`.

    **References**

    [1] *Fair scores for ensemble forecasts*, Christopher Ferro (2014)

    [2] *Decomposition of the Continuous Ranked Probability Score for Ensemble Prediction Systems*, Hans
    Hersbach (2000)

    :param Tensor samples: S independent draws, shape ``(S, *batch)``; at least 2 if ``fair``.
    :param Tensor y: observations, shape ``batch``.
    :param bool fair: the unbiased estimate.
    :returns: shape ``batch``, float64.
    :raises ValueError: for shapes that do not fit or values that are not finite.

    >>> import torch
    >>> crps_from_samples(torch.tensor([-1.0, 1.0]), torch.tensor(0.0))
    tensor(0., dtype=torch.float64)
    """
    size = _check(samples, y, y.shape, fair)
    # Draws may be shifted, and are smaller about y; the multiples of the sorted ones sum to zero.
    x = (samples.detach().double() - y.detach().double()).sort(0).values
    rank = torch.arange(1 - size, size, 2, dtype=x.dtype, device=x.device)
    pairs = torch.tensordot(rank, x, 1)
    return x.abs().mean(0) - pairs / _num_pairs(size, fair)


def energy_score(samples: Tensor, y: Tensor, *, fair: bool = True) -> Tensor:
    r"""Energy score of vectors from draws of the predictive distribution,

    .. math:: \frac{1}{S} \sum_i \|x_i - y\| - \frac{1}{2 S (S - 1)} \sum_{i \ne j} \|x_i - x_j\| ,

    the :func:`crps_from_samples` of several dimensions. It is proper for the joint distribution [1], but
    notices wrong correlations much less than wrong means. Time and distances :math:`S^2 V`.

    **References**

    [1] *Strictly Proper Scoring Rules, Prediction, and Estimation*, Tilmann Gneiting, Adrian Raftery
    (2007)

    :param Tensor samples: S independent draws, shape ``(S, *batch, V)``; at least 2 if ``fair``.
    :param Tensor y: observations, shape ``(*batch, V)``.
    :param bool fair: the unbiased estimate; False for the score of the empirical distribution.
    :returns: shape ``batch``, float64.
    :raises ValueError: for shapes that do not fit or values that are not finite.

    >>> import torch
    >>> energy_score(torch.tensor([[3.0, 4.0], [-3.0, -4.0]]), torch.zeros(2), fair=False)
    tensor(2.5000, dtype=torch.float64)
    """
    if y.dim() < 1:
        raise ValueError("y must have shape (*batch, V), got a number")
    size = _check(samples, y, y.shape, fair)
    x = (samples.detach().double() - y.detach().double()).reshape(size, -1, y.shape[-1])
    x = x.transpose(0, 1)
    spread = x.new_zeros(len(x))
    batch = max(1, _CHUNK_ENTRIES // size**2)
    draws = max(1, _CHUNK_ENTRIES // size)
    for start in range(0, len(x), batch):
        some = x[start : start + batch]
        for part in some.split(draws, 1):
            # The fast way by products loses the distance between draws that are near each other.
            distances = torch.cdist(part, some, compute_mode="donot_use_mm_for_euclid_dist")
            spread[start : start + batch] += distances.sum((1, 2))
    score = x.norm(dim=-1).mean(1) - 0.5 * spread / _num_pairs(size, fair)
    return score.reshape(y.shape[:-1])


def _num_pairs(size: int, fair: bool) -> int:
    return size * (size - 1) if fair else size**2


def _check(samples: Tensor, y: Tensor, batch: Size, fair: bool) -> int:
    least = 2 if fair else 1
    if samples.dim() != len(batch) + 1 or samples.shape[1:] != batch or len(samples) < least:
        raise ValueError(
            f"samples must have shape (draws >= {least}, *{tuple(batch)}) for y of shape "
            f"{tuple(y.shape)}, got {tuple(samples.shape)}"
        )
    for name, x in (("samples", samples), ("y", y)):
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinite values")
    return len(samples)
