# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Errors of the means and pair moments of samples, unit by unit and pair by pair."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.infer import MachineMoments, exact_moments

__all__ = ["MomentErrors", "moment_errors"]


@dataclass(frozen=True)
class MomentErrors:
    """Deviations of the moments of samples from a reference, float64.

    :param Tensor mean: error of E[v_i], shape ``(V,)``.
    :param Tensor mean_z: the same in standard errors.
    :param Tensor pair: error of E[v_i v_j], shape ``(V, V)``, symmetric.
    :param Tensor pair_z: the same in standard errors.
    :param Tensor pairs: the pairs that count: ``i < j``, and ``i = j`` where squares are not functions of
        the means; boolean, shape ``(V, V)``.
    :param dict settings: what was compared.
    """

    mean: Tensor = field(repr=False)
    mean_z: Tensor = field(repr=False)
    pair: Tensor = field(repr=False)
    pair_z: Tensor = field(repr=False)
    pairs: Tensor = field(repr=False)
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For means and pairs: ``max`` and ``rms`` error; the same in standard errors, ``max_z`` and
        ``rms_z``; their number; and ``chance_z``, which ``max_z`` exceeds with probability 5 % at
        most where nothing is wrong. It is large for few chains: their errors are known badly."""
        degrees = self.settings["degrees_of_freedom"]
        return {
            "mean": _summary(self.mean, self.mean_z, degrees),
            "pair": _summary(self.pair[self.pairs], self.pair_z[self.pairs], degrees),
            "settings": dict(self.settings),
        }

    def worst_units(self, count: int = 5) -> list[int]:
        """Units with the largest errors of the mean, in standard errors."""
        return self.mean_z.abs().argsort(descending=True)[:count].tolist()

    def __str__(self) -> str:
        numbers = self.to_dict()
        lines = [f"{'':14}{'max':>10}{'rms':>10}{'max/SE':>9}{'rms/SE':>9}{'chance':>9}"]
        for name, label in (("mean", "means"), ("pair", "pairs")):
            row = numbers[name]
            label = f"{row['count']} {label}"
            lines.append(
                f"{label:14}{row['max']:10.2g}{row['rms']:10.2g}{row['max_z']:9.1f}"
                f"{row['rms_z']:9.2f}{row['chance_z']:9.1f}"
            )
        return "\n".join(lines)


def moment_errors(samples: Tensor, reference: RBM | MachineMoments | Tensor) -> MomentErrors:
    r"""Errors of the means :math:`\mathrm{E}[v_i]` and pair moments :math:`\mathrm{E}[v_i v_j]` of samples.

    Standard errors come from the spread between independent rows or, for draws of chains, between
    chains, whatever the correlation within them; they are not below those of independent rows with the
    variance of the reference. They are to be judged together: of a thousand right
    moments a few are 3 standard errors off, and the largest may reach ``chance_z`` of
    :meth:`MomentErrors.to_dict`; the root mean square should be near 1.

    :param Tensor samples: independent rows, shape ``(n, V)``, or draws of independent chains,
        ``(chains, draws, V)``.
    :param reference: a machine small enough for :func:`~pyro_ebm.infer.exact_moments`, the result of
        that function, or held-out samples, of either shape.
    :raises ValueError: for wrong shapes, values that are not finite, or a machine that has a batch shape
        or cannot be enumerated.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> rbm = BernoulliRBM(0.3 * torch.randn(6, 4), torch.zeros(6), torch.zeros(4))
    >>> errors = moment_errors(rbm.sample((1000,)), rbm).to_dict()
    >>> errors["mean"]["max_z"] < 6.0, errors["pair"]["count"]
    (True, 15)
    """
    ours = _SampleMoments.of("samples", samples)
    if isinstance(reference, RBM):
        reference = exact_moments(reference)
    if isinstance(reference, MachineMoments):
        theirs = _exact(reference, ours)
        kind = "exact"
    else:
        theirs = _SampleMoments.of("reference", reference)
        kind = f"samples of shape {tuple(reference.size())}"
    if ours.mean.shape != theirs.mean.shape:
        raise ValueError(
            f"samples have {len(ours.mean)} units, the reference has {len(theirs.mean)}"
        )
    errors = []
    for name in ("mean", "pair"):
        difference = getattr(ours, name) - getattr(theirs, name).to(ours.mean.device)
        errors += [difference, _z_scores(difference, ours, theirs, name)]
    diagonal = 1 if ours.levels is not None else 0
    size = len(ours.mean)
    pairs = torch.ones(size, size, dtype=torch.bool, device=ours.mean.device).triu(diagonal)
    degrees = min(ours.degrees, theirs.degrees)
    settings = {"samples": list(samples.shape), "reference": kind, "degrees_of_freedom": degrees}
    return MomentErrors(errors[0], errors[1], errors[2], errors[3], pairs, settings)


@dataclass(frozen=True)
class _SampleMoments:
    """Moments with the variances of single draws and of the moments themselves (float64).

    ``levels`` are the two values of bits or spins, None for other samples; ``count`` is the number of
    draws, infinite for exact moments; ``degrees`` are those of freedom of the errors, which come from
    independent rows or chains.
    """

    mean: Tensor
    pair: Tensor
    mean_draw: Tensor
    pair_draw: Tensor
    mean_error: Tensor
    pair_error: Tensor
    levels: tuple[float, float] | None
    count: float
    degrees: float

    @classmethod
    def of(cls, name: str, samples: Tensor) -> "_SampleMoments":
        if samples.dim() not in (2, 3) or samples.shape[0] < 2 or 0 in samples.shape:
            raise ValueError(
                f"{name} must have shape (n >= 2, units) or (chains >= 2, draws, units), "
                f"got {tuple(samples.shape)}"
            )
        if not bool(torch.isfinite(samples).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinite values")
        rows = samples.detach().reshape(-1, samples.shape[-1]).double()
        count = len(rows)
        squares = rows.square()
        mean, pair = rows.mean(0), rows.T @ rows / count
        mean_draw = _variance(squares.mean(0), mean, count)
        pair_draw = _variance(squares.T @ squares / count, pair, count)
        if samples.dim() == 3:
            mean_error, pair_error = _between_chains(samples, mean, pair)
        else:
            mean_error, pair_error = mean_draw / count, pair_draw / count
        low, high = rows.min().item(), rows.max().item()
        two = bool(((rows == low) | (rows == high)).all())
        levels = (low, high) if two else None
        degrees = samples.shape[0] - 1.0
        return cls(mean, pair, mean_draw, pair_draw, mean_error, pair_error, levels, count, degrees)


def _variance(second: Tensor, mean: Tensor, count: int) -> Tensor:
    return (second - mean.square()).clamp_(min=0.0) * (count / (count - 1))


def _between_chains(samples: Tensor, mean: Tensor, pair: Tensor) -> tuple[Tensor, Tensor]:
    """Variances of moments from those of single chains, one chain at a time."""
    num_chains, num_draws = samples.shape[:2]
    mean_square, pair_square = torch.zeros_like(mean), torch.zeros_like(pair)
    for chain in samples.detach():
        draws = chain.double()
        mean_square += (draws.mean(0) - mean).square()
        pair_square += (draws.T @ draws / num_draws - pair).square()
    scale = num_chains * (num_chains - 1)
    return mean_square / scale, pair_square / scale


def _exact(moments: MachineMoments, samples: _SampleMoments) -> _SampleMoments:
    if moments.visible.dim() != 1:
        raise ValueError(
            f"the reference must have no batch shape, got {tuple(moments.visible.shape[:-1])}"
        )
    mean, pair = moments.visible.detach(), moments.visible_visible.detach()
    mean_draw = moments.covariance.diagonal().detach()
    if samples.levels is not None and set(samples.levels) <= {0.0, 1.0}:
        pair_draw = pair - pair.square()
    elif samples.levels is not None and set(samples.levels) <= {-1.0, 1.0}:
        pair_draw = 1.0 - pair.square()
    else:
        pair_draw = torch.zeros_like(pair)
    zero, zeros = torch.zeros_like(mean), torch.zeros_like(pair)
    return _SampleMoments(
        mean, pair, mean_draw, pair_draw, zero, zeros, samples.levels, math.inf, math.inf
    )


def _z_scores(
    difference: Tensor, ours: _SampleMoments, theirs: _SampleMoments, name: str
) -> Tensor:
    """Deviations in standard errors.

    Of rare events (a pixel that is on in one row of a thousand) either set may have seen none, or too
    many: the larger of the two variances is taken.
    """
    own, other = getattr(ours, f"{name}_draw"), getattr(theirs, f"{name}_draw").to(difference)
    errors = torch.zeros_like(difference)
    for side, draw in ((ours, other), (theirs, own)):
        errors += torch.maximum(getattr(side, f"{name}_error").to(difference), draw / side.count)
    # Moments that are equal to rounding are right, also where nothing varies.
    rounding = 1e-12 * difference.abs().max().clamp(min=1.0)
    z = difference / errors.sqrt()
    return torch.where(difference.abs() <= rounding, torch.zeros_like(z), z)


def _chance(count: int, degrees: float) -> float:
    """What the largest of so many deviations exceeds with probability 5 % at most: a quantile of
    Student's t by Wallace's approximation, which is within 10 % from 3 degrees on."""
    z = -torch.special.ndtri(torch.tensor(0.025 / count, dtype=torch.float64)).item()
    if math.isinf(degrees):
        return z
    scaled = z * (8.0 * degrees + 3.0) / (8.0 * degrees + 1.0)
    return math.sqrt(degrees * math.expm1(min(scaled**2 / degrees, 700.0)))


def _summary(error: Tensor, z: Tensor, degrees: float) -> dict[str, Any]:
    count = error.numel()
    if count == 0:
        return {"count": 0} | dict.fromkeys(("max", "rms", "max_z", "rms_z", "chance_z"), 0.0)
    return {
        "count": count,
        "max": error.abs().max().item(),
        "rms": error.square().mean().sqrt().item(),
        "max_z": z.abs().max().item(),
        "rms_z": z.square().mean().sqrt().item(),
        "chance_z": _chance(count, degrees),
    }
