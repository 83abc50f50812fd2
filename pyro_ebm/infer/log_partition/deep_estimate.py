# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log-likelihoods of a deep machine's rows, put together from log p*(v) and log Z."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_ebm.infer.log_partition.bracket import sides_of
from pyro_ebm.infer.log_partition.estimate import LogPartitionEstimate
from pyro_ebm.infer.log_partition.likelihood_report import LikelihoodReport

__all__ = ["DeepLogLikelihood", "RowDensities", "as_sides"]

_NORMAL_QUANTILE = 1.959963984540054


@dataclass(frozen=True)
class RowDensities:
    """Unnormalised log-probabilities of rows, exact or estimated from below.

    :param Tensor value: shape ``(rows,)``, float64.
    :param Tensor std_error: their standard errors, independent from row to row; zero where nothing is random.
    :param Tensor ess: effective number of draws or chains of every row; NaN where there are none.
    :param bool exact: whether they are exact, and not a lower bound.
    :param dict settings: how they were obtained.
    :param flags: what is suspicious about them.
    """

    value: Tensor
    std_error: Tensor
    ess: Tensor
    exact: bool
    settings: dict[str, Any]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class DeepLogLikelihood(LikelihoodReport):
    r"""The mean log-likelihood of rows under a deep machine, what it bounds, and its three kinds of doubt.

    *Which rows.* ``std_error`` says how far the mean over other rows of the same source would be from this
    one. *The hidden layers.* :math:`\log p^*(v)` is exact or a lower bound (in expectation, where it is
    estimated), with the sampling error ``density_error`` of the mean. *Log Z.* ``log_partition_error``. The
    interval from ``lower`` to ``upper`` is that of the mean **of these rows**, from the last two; with a
    bracket its ends come from the two sides of log Z.

    ``pessimistic`` takes log Z from above: with a lower bound of :math:`\log p^*(v)` it is a lower bound of
    the likelihood, in expectation, and the number to publish. Nothing here bounds the likelihood from above,
    unless ``method="exact"``: ``upper`` does not know how far the bounds of the rows are from the truth.

    :param Tensor value: mean log-likelihood, a scalar, float64; at the midpoint of a bracket.
    :param Tensor std_error: its standard error for the choice of rows.
    :param Tensor density_error: its standard error from the estimates of :math:`\log p^*(v)`.
    :param Tensor log_partition_error: its standard error from log Z.
    :param Tensor lower: lower end of the 95 % interval.
    :param Tensor upper: upper end.
    :param Tensor optimistic: the mean with log Z from below; that of the only estimate if there is one.
    :param Tensor pessimistic: the mean with log Z from above; the same.
    :param Tensor rows: log-likelihoods of the rows, shape ``(rows,)``.
    :param Tensor row_errors: their standard errors without that of log Z, which they share.
    :param Tensor row_ess: effective number of draws or chains of every row; NaN where there are none.
    :param dict settings: how rows were estimated, and under ``"log_partition"`` how log Z was.
    :param flags: what is suspicious about either, short texts; empty if nothing is.
    :param str side: "below" where the value bounds the likelihood from below in expectation, "above" where
        from above, None where it is exact or the errors of its two parts go against each other.
    """

    _reported: ClassVar[tuple[str, ...]] = (
        *("value", "std_error", "density_error", "log_partition_error", "lower", "upper"),
        *("optimistic", "pessimistic", "side", "flags", "settings"),
    )

    value: Tensor
    std_error: Tensor
    density_error: Tensor
    log_partition_error: Tensor
    lower: Tensor
    upper: Tensor
    optimistic: Tensor
    pessimistic: Tensor
    rows: Tensor = field(repr=False)
    row_errors: Tensor = field(repr=False)
    row_ess: Tensor = field(repr=False)
    settings: dict[str, Any]
    flags: tuple[str, ...] = ()
    side: str | None = None

    @classmethod
    def from_densities(
        cls, densities: RowDensities, estimates: Sequence[LogPartitionEstimate]
    ) -> "DeepLogLikelihood":
        """Put rows and log Z together.

        :param RowDensities densities: the rows.
        :param estimates: log Z: one estimate, or that from below and that from above.
        """
        value, number = densities.value, len(densities.value)
        log_z = [e.value.to(value.device) for e in estimates]
        density_error = densities.std_error.square().sum().sqrt() / number
        margin = _NORMAL_QUANTILE * density_error
        centre = value.mean()
        lower, upper = [], []
        for e, z in zip(estimates, log_z, strict=True):
            lower.append(centre - z - torch.hypot(e.upper.to(z) - z, margin))
            upper.append(centre - z + torch.hypot(z - e.lower.to(z), margin))
        errors = torch.stack([e.std_error.to(value.device) for e in estimates])
        rows = value - torch.stack(log_z).mean()
        return cls(
            rows.mean(),
            rows.std() / math.sqrt(number) if number > 1 else rows.new_tensor(math.inf),
            density_error,
            errors.square().sum().sqrt() / len(estimates),
            torch.stack(lower).min(),
            torch.stack(upper).max(),
            centre - log_z[0],
            centre - log_z[-1],
            rows,
            densities.std_error,
            densities.ess,
            {**densities.settings, "log_partition": dict(estimates[-1].settings)},
            (*densities.flags, *_flags(estimates)),
            _side(densities.exact, estimates),
        )

    def __str__(self) -> str:
        s = self.settings
        bound = {"above": ", an upper bound", "below": ", a lower bound", None: ""}[self.side]
        tail = f"; SUSPICIOUS: {'; '.join(self.flags)}" if self.flags else ""
        return (
            f"log-likelihood = {self.value.item():.3f} +- {self.std_error.item():.3f} (rows) +- "
            f"{self.density_error.item():.3f} (hidden layers) +- {self.log_partition_error.item():.3f} "
            f"(log Z; 95 %: {self.lower.item():.3f} to {self.upper.item():.3f}){bound} of "
            f"{len(self.rows)} rows by {s['method']}, log Z by {s['log_partition']['method']}{tail}"
        )


def as_sides(log_partition: Any) -> list[LogPartitionEstimate]:
    """Log Z of one machine as estimates: one, or for a bracket that from below and that from above.

    :param log_partition: an estimate, a bracket or a number.
    :raises ValueError: if it is no scalar, or not finite.
    """
    estimates = sides_of(log_partition)
    for estimate in estimates:
        if estimate.value.dim():
            raise ValueError(
                f"log_partition must be that of one machine, got shape {tuple(estimate.value.shape)}"
            )
        if not bool(torch.isfinite(estimate.value)):
            raise ValueError(f"log_partition must be finite, got {estimate.value.item()}")
    return estimates


def _side(exact: bool, estimates: Sequence[LogPartitionEstimate]) -> str | None:
    """What a difference bounds, by what its two parts do."""
    if len(estimates) > 1:
        return None
    estimate = estimates[0]
    opposite = {"below": "above", "above": "below", None: None}[estimate.side]
    if exact:
        return opposite
    # Log Z that errs to no side in particular leaves the bound of the rows as it is.
    return "below" if opposite in ("below", None) else None


def _flags(estimates: Sequence[LogPartitionEstimate]) -> tuple[str, ...]:
    names = [""] if len(estimates) == 1 else [f" from {e.side}" for e in estimates]
    return tuple(
        f"log Z{name}: {text}" for name, e in zip(names, estimates, strict=True) for text in e.flags
    )
