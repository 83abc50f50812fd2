# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log-likelihoods of a whole model, put together from importance weights and log Z."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_ebm.infer.log_partition.likelihood_report import LikelihoodReport
from pyro_ebm.infer.variational.site_log_partition import (
    SiteLogPartition,
    join_sites,
    midpoint_error,
    side_error,
)
from pyro_ebm.infer.variational.weight_stream import RowWeights
from pyro_ebm.ops.numerics import student_quantile
from pyro_ebm.ops.pareto import pareto_k_error

__all__ = ["ModelLogLikelihood"]

#: What is said of rows is flagged where it holds for more than this share of them.
_SHARE = 0.05
_HEAVY_TAIL, _FEW_PARTICLES, _LARGE_BIAS = 0.7, 10.0, 0.5
#: Weights whose relative standard deviation is smaller have no tail that could matter.
_SMALL_SPREAD = 0.5


@dataclass(frozen=True)
class ModelLogLikelihood(LikelihoodReport):
    r"""The mean log-likelihood of rows under a model with machines in it, and its three kinds of doubt.

    *Which rows.* ``std_error`` says how far the mean over other rows of the same source would be from
    this one. *Latent variables.* Importance weights give :math:`\log \frac1K \sum_k w_k`, in expectation a
    **lower** bound [1] that rises to the truth with K; ``density_error`` is its standard error in the mean,
    and ``bias`` how much too low it is, as far as halving K shows it. *Log Z.* ``log_partition_error``; an
    error of log Z moves all rows in the same way, by as much as the machine occurs in them. The interval
    from ``lower`` to ``upper`` is that of the mean **of these rows**, from the last two (and the bias,
    above); with brackets its ends come from the two sides of log Z.

    With a bracket ``pessimistic`` takes log Z from above: it is then a lower bound in expectation, and the
    number to publish. With a single estimate of log Z it is ``value``; mind that AIS is a lower bound of
    log Z in expectation, which makes the rows too high, whatever the error bar says (``side``).

    **References**

    [1] *Importance Weighted Autoencoders*, Yuri Burda, Roger Grosse, Ruslan Salakhutdinov (2016)

    :param Tensor value: mean log-likelihood, a scalar, float64; at the midpoints of brackets.
    :param Tensor std_error: its standard error for the choice of rows.
    :param Tensor density_error: its standard error from the importance weights.
    :param Tensor log_partition_error: its standard error from log Z.
    :param Tensor lower: lower end of the 95 % interval.
    :param Tensor upper: upper end.
    :param Tensor optimistic: the mean with log Z from below; with that of the only estimate if there is one.
    :param Tensor pessimistic: the mean with log Z from above; the same.
    :param Tensor bias: mean of the rows' biases; infinite (and ``upper`` with it) where half of some row's
        weights are all zero.
    :param RowWeights weights: what the weights of every row come to.
    :param sites: log Z by site.
    :param bool exact: whether there is no latent variable and no bound by mean field in the rows.
    :param dict settings: how rows were estimated, and under ``"log_partition"`` how log Z was, by site.
    :param flags: what is suspicious, short texts; empty if nothing is.
    :param str side: "below" where the value bounds the likelihood from below in expectation, "above" where
        from above, None where it is exact or the errors of its parts go against each other.
    """

    _reported: ClassVar[tuple[str, ...]] = (
        *("value", "std_error", "density_error", "log_partition_error", "lower", "upper"),
        *("optimistic", "pessimistic", "bias", "exact", "side", "flags", "settings"),
    )

    value: Tensor
    std_error: Tensor
    density_error: Tensor
    log_partition_error: Tensor
    lower: Tensor
    upper: Tensor
    optimistic: Tensor
    pessimistic: Tensor
    bias: Tensor
    weights: RowWeights = field(repr=False)
    sites: tuple[SiteLogPartition, ...] = field(repr=False)
    exact: bool
    settings: dict[str, Any]
    flags: tuple[str, ...] = ()
    side: str | None = None

    @classmethod
    def from_weights(
        cls,
        weights: RowWeights,
        sites: Sequence[SiteLogPartition],
        settings: dict[str, Any],
        *,
        exact: bool,
    ) -> "ModelLogLikelihood":
        """Put rows and log Z together.

        :param RowWeights weights: the rows, with log Z at its midpoints.
        :param sites: log Z by site.
        :param dict settings: how the rows were obtained.
        :param bool exact: see the class.
        """
        rows, number = weights.value, len(weights.value)
        zero = rows.new_zeros(())
        mean, bias = rows.mean(), weights.bias.mean()
        density_error = weights.std_error.square().sum().sqrt() / number
        margin = student_quantile(math.inf) * density_error

        def together(name: str, side: int) -> Tensor:
            return side_error(sites, side, name) / number if sites else zero

        ends = [mean + sum((site.shift(i) for site in sites), start=zero) / number for i in (0, -1)]
        lower = [
            end - torch.hypot(together("upper", i), margin)
            for end, i in zip(ends, (0, -1), strict=True)
        ]
        upper = [
            end + torch.hypot(together("lower", i), margin)
            for end, i in zip(ends, (0, -1), strict=True)
        ]
        return cls(
            mean,
            rows.std() / math.sqrt(number) if number > 1 else rows.new_tensor(math.inf),
            density_error,
            midpoint_error(sites) / number if sites else zero,
            torch.stack(lower).min(),
            # An infinite bias may stand beside a value of minus infinity.
            torch.where(bias.isinf(), bias, torch.stack(upper).max() + bias.clamp(min=0.0)),
            ends[0],
            ends[1],
            bias,
            weights,
            tuple(sites),
            exact,
            {**settings, "num_rows": number},
            (*_suspicions(weights, settings), *_flags(sites)),
            _side(exact, sites),
        )

    @classmethod
    def join(cls, parts: "Sequence[ModelLogLikelihood]") -> "ModelLogLikelihood":
        """The likelihood of the rows of several calls, which had other rows and the same log Z.

        :param parts: at least one, with the same sites and settings.
        :raises ValueError: if there is none, sites or settings differ, or parts drew with the same seed.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("there is nothing to join: parts is empty")
        first = parts[0].settings
        own = [_joinable(part.settings) for part in parts]
        names = [[site.name for site in part.sites] for part in parts]
        if any(s != own[0] for s in own) or any(n != names[0] for n in names):
            raise ValueError(
                "parts must have the same sites and settings, but for seed, chunk_size and rows"
            )
        seeds = [seed for part in parts for seed in _seeds(part.settings["seed"])]
        given = [seed for seed in seeds if seed is not None]
        if first["num_particles"] and len(set(given)) < len(given):
            raise ValueError(
                f"parts have the seeds {seeds}: those of the same seed share their random numbers, so that "
                "their errors do not average out; give every call a seed of its own"
            )
        weights = RowWeights.cat([part.weights for part in parts])
        sites = join_sites([part.sites for part in parts])
        exact = all(part.exact for part in parts)
        return cls.from_weights(weights, sites, {**first, "seed": seeds}, exact=exact)

    @property
    def rows(self) -> Tensor:
        """Log-likelihoods of the rows, shape ``(rows,)``; log Z at the midpoint of a bracket."""
        return self.weights.value

    def __str__(self) -> str:
        s = self.settings
        bound = {"above": ", an upper bound", "below": ", a lower bound", None: ""}[self.side]
        methods = ", ".join(
            f"{name} by {own['method']}" if "method" in own else name
            for name, own in s["log_partition"].items()
        )
        particles = f" by {s['num_particles']} particles" if s["num_particles"] else ""
        tail = f"; SUSPICIOUS: {'; '.join(self.flags)}" if self.flags else ""
        return (
            f"log-likelihood = {self.value.item():.3f} +- {self.std_error.item():.3f} (rows) +- "
            f"{self.density_error.item():.3f} (latent variables) +- "
            f"{self.log_partition_error.item():.3f} (log Z; 95 %: {self.lower.item():.3f} to "
            f"{self.upper.item():.3f}){bound} of {s['num_rows']} rows{particles}"
            f"{', log Z of ' + methods if methods else ''}{tail}"
        )


def _suspicions(weights: RowWeights, settings: dict[str, Any]) -> tuple[str, ...]:
    number, particles = len(weights.value), settings["num_particles"]
    limit = _HEAVY_TAIL + pareto_k_error(particles, _HEAVY_TAIL)
    wide = (particles / weights.ess - 1.0) > _SMALL_SPREAD**2
    heavy = (weights.pareto_k > limit) & wide
    enough = min(_FEW_PARTICLES, 0.5 * particles)
    few = weights.ess < enough
    bias = weights.bias.mean().item()
    flags = []
    if not bool(torch.isfinite(weights.value).all()):
        count = int((~torch.isfinite(weights.value)).sum())
        flags.append(f"{count} of {number} rows have no finite estimate")
    if math.isinf(bias):
        count = int(weights.bias.isinf().sum())
        flags.append(
            f"half of the weights are all zero in {count} of {number} rows, whose estimates may be too low "
            "by any amount: use a guide that covers the posterior"
        )
    elif bias > _LARGE_BIAS:
        flags.append(
            f"the estimate is too low by about {bias:.1f} nats or more: use more particles"
        )
    for mask, text in (
        (heavy, f"the tail of the weights is heavy (Pareto k above {limit:.2f})"),
        (few, f"fewer than {enough:g} of {particles} particles carry the weight"),
    ):
        if int(mask.sum()) > _SHARE * number:
            flags.append(f"{text} in {int(mask.sum())} of {number} rows: use a better guide")
    return tuple(flags)


def _flags(sites: Sequence[SiteLogPartition]) -> tuple[str, ...]:
    return tuple(
        f"log Z of {site.name}{f' from {side.side}' if len(site.sides) > 1 else ''}: {text}"
        for site in sites
        for side in site.sides
        for text in side.flags
    )


def _side(exact: bool, sites: Sequence[SiteLogPartition]) -> str | None:
    """What the value bounds, by what its parts do; the midpoint of a bracket bounds nothing."""
    if any(len(site.sides) > 1 for site in sites):
        return None
    opposite = {"below": "above", "above": "below"}
    own = {opposite[s.sides[0].side] for s in sites if s.sides[0].side is not None}
    if not exact:
        own.add("below")
    return own.pop() if len(own) == 1 else None


def _joinable(settings: dict[str, Any]) -> dict[str, Any]:
    other = ("seed", "chunk_size", "num_rows")
    return {name: value for name, value in settings.items() if name not in other}


def _seeds(seed: Any) -> list[Any]:
    """The seeds of a part, which may have been joined itself."""
    return seed if isinstance(seed, list) else [seed]
