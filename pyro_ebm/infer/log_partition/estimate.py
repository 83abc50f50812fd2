# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Estimates of log Z with their errors, and the warnings that keep them honest."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.ops.numerics import effective_sample_size, log_mean_exp, log_mean_exp_error

__all__ = ["LogPartitionBracket", "LogPartitionEstimate", "LogPartitionWarning"]

#: Below this share of the number of chains the effective sample size is called low.
_LOW_ESS = 0.1


class LogPartitionWarning(UserWarning):
    """An estimate of log Z that should not be trusted as it stands."""


@dataclass(frozen=True)
class LogPartitionEstimate:
    r"""An estimate of :math:`\log Z` from one side.

    With annealed importance sampling E[w] = Z, so that ``value`` is in expectation a **lower** bound
    of log Z (and the log-likelihood that it gives optimistic); with reverse AIS E[1/w] = 1/Z and
    ``value`` is an **upper** bound, if its chains start in equilibrium. The interval covers the
    randomness of the weights that were seen, not weights that were never met: judge it by ``ess``
    and by the estimate from the other side.

    :param Tensor value: the estimate, shape ``batch_shape``, float64.
    :param Tensor std_error: its jackknife standard error.
    :param Tensor lower: lower end of the 95 % interval.
    :param Tensor upper: upper end of the 95 % interval.
    :param Tensor ess: Kish's effective number of chains.
    :param Tensor log_weights: single-chain estimates of log Z, shape ``(num_chains,) + batch_shape``.
    :param dict settings: how the estimate was obtained.
    """

    value: Tensor
    std_error: Tensor
    lower: Tensor
    upper: Tensor
    ess: Tensor
    log_weights: Tensor = field(repr=False)
    settings: dict[str, Any]

    @classmethod
    def from_log_weights(
        cls, log_weights: Tensor, settings: dict[str, Any], *, reverse: bool = False
    ) -> "LogPartitionEstimate":
        """Combine single-chain estimates of log Z and warn if few of them carry the result.

        :param Tensor log_weights: shape ``(num_chains,) + batch_shape``.
        :param dict settings: how they were obtained.
        :param bool reverse: whether they come from reverse AIS (a harmonic mean).
        """
        sign = -1.0 if reverse else 1.0
        value = sign * log_mean_exp(sign * log_weights)
        std_error = log_mean_exp_error(sign * log_weights)
        ess = effective_sample_size(sign * log_weights)
        margin = _student_quantile(len(log_weights) - 1) * std_error
        estimate = cls(value, std_error, value - margin, value + margin, ess, log_weights, settings)
        low = _LOW_ESS * len(log_weights)
        if bool((ess < low).any()):
            warnings.warn(
                f"the effective sample size is {ess.min().item():.1f} of {len(log_weights)} chains: "
                "a few chains carry the estimate and its error bar is too small; use more "
                "temperatures",
                LogPartitionWarning,
                stacklevel=3,
            )
        return estimate

    def to_dict(self) -> dict[str, Any]:
        """Numbers and settings for a report, without the weights; JSON types only."""
        names = ("value", "std_error", "lower", "upper", "ess")
        return {n: getattr(self, n).tolist() for n in names} | {"settings": dict(self.settings)}

    def __str__(self) -> str:
        s = self.settings
        head = f"{s['method']}, {s['num_chains']} chains x {s['num_temperatures']} temperatures"
        if self.value.dim():
            return f"log Z of batch shape {tuple(self.value.shape)} by {head}"
        return (
            f"log Z = {self.value.item():.3f} +- {self.std_error.item():.3f} "
            f"(95 %: {self.lower.item():.3f} to {self.upper.item():.3f}; "
            f"ESS {self.ess.item():.1f}) by {head}"
        )


@dataclass(frozen=True)
class LogPartitionBracket:
    """Estimates of the same log Z from both sides.

    :param LogPartitionEstimate forward: from below, by AIS.
    :param LogPartitionEstimate reverse: from above, by reverse AIS.
    """

    forward: LogPartitionEstimate
    reverse: LogPartitionEstimate

    def __post_init__(self) -> None:
        if bool((self.forward.lower > self.reverse.upper).any()):
            excess = (self.forward.lower - self.reverse.upper).max().item()
            warnings.warn(
                f"the lower bound of log Z lies {excess:.3g} nats above the upper bound: at least "
                "one of the two runs is wrong about its error",
                LogPartitionWarning,
                stacklevel=3,
            )

    @property
    def value(self) -> Tensor:
        """Midpoint of the two estimates."""
        return 0.5 * (self.forward.value + self.reverse.value)

    @property
    def lower(self) -> Tensor:
        """Lower end: that of the forward interval (or of the reverse one, if that is lower)."""
        return torch.minimum(self.forward.lower, self.reverse.lower)

    @property
    def upper(self) -> Tensor:
        """Upper end: that of the reverse interval (or of the forward one, if that is higher)."""
        return torch.maximum(self.reverse.upper, self.forward.upper)

    @property
    def gap(self) -> Tensor:
        """Reverse minus forward estimate, the number to quote with either."""
        return self.reverse.value - self.forward.value

    def to_dict(self) -> dict[str, Any]:
        """Numbers and settings of both sides for a report; JSON types only."""
        names = ("value", "lower", "upper", "gap")
        sides = {"forward": self.forward.to_dict(), "reverse": self.reverse.to_dict()}
        return {n: getattr(self, n).tolist() for n in names} | sides

    def __str__(self) -> str:
        lines = [f"from below: {self.forward}", f"from above: {self.reverse}"]
        if not self.value.dim():
            lines.append(
                f"log Z in [{self.lower.item():.3f}, {self.upper.item():.3f}], "
                f"gap {self.gap.item():.3f}"
            )
        return "\n".join(lines)


def _student_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t (Cornish-Fisher series; 1 % off at 3 degrees)."""
    if degrees < 1:
        return float("inf")
    z, n = 1.959963984540054, float(degrees)
    first = (z**3 + z) / 4.0
    second = (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0
    third = (3.0 * z**7 + 19.0 * z**5 + 17.0 * z**3 - 15.0 * z) / 384.0
    return z + first / n + second / n**2 + third / n**3
