# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The log-likelihood of data as estimated by chains that start at some of its rows."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyro_ebm.infer.log_partition.estimate import LogPartitionEstimate
from pyro_ebm.ops.numerics import (
    effective_sample_size,
    log_mean_exp,
    log_mean_exp_error,
    student_quantile,
)

__all__ = ["LogLikelihoodEstimate"]

#: Estimated bias, in nats, above which the number of chains or temperatures is called too small.
_LARGE_BIAS = 0.5


@dataclass(frozen=True)
class LogLikelihoodEstimate:
    r"""A conservative estimate of the mean log-likelihood of data, and what it is made of.

    Every row that was used has its own estimate :math:`\log \hat p(v)`, too low in expectation. The
    mean over *all* rows takes the unnormalised log-probabilities of all of them, which are exact, and
    from the rows that were used only the difference :math:`-F(v) - \log \hat p(v)`, which estimates
    log Z and varies little from row to row (a control variate).

    :param Tensor value: mean log-likelihood of all rows of the data, shape ``batch_shape``, float64.
    :param Tensor std_error: its standard error, for the choice of rows and the chains.
    :param Tensor lower: lower end of the 95 % interval, Student's.
    :param Tensor upper: upper end, which also allows for ``bias``.
    :param Tensor bias: how much too low ``value`` is since the logarithm of an average over few chains
        is, as far as halving the number of chains shows it. What the annealing lacks to equilibrium is
        not in it.
    :param Tensor rows: indices of the rows that were used, shape ``(rows,)``.
    :param Tensor row_values: their log-likelihoods, shape ``(rows,) + batch_shape``.
    :param Tensor row_errors: jackknife standard errors of these.
    :param Tensor row_ess: effective number of chains of every row, shape as ``row_values``.
    :param LogPartitionEstimate log_partition: log Z from the same rows, biased upwards.
    :param dict settings: how the estimate was obtained.
    :param flags: what makes the estimate suspicious, short texts; empty if nothing does.
    """

    value: Tensor
    std_error: Tensor
    lower: Tensor
    upper: Tensor
    bias: Tensor
    rows: Tensor = field(repr=False)
    row_values: Tensor = field(repr=False)
    row_errors: Tensor = field(repr=False)
    row_ess: Tensor = field(repr=False)
    log_partition: LogPartitionEstimate = field(repr=False)
    settings: dict[str, Any]
    flags: tuple[str, ...] = ()

    @classmethod
    def from_log_weights(
        cls, log_weights: Tensor, log_density: Tensor, rows: Tensor, settings: dict[str, Any]
    ) -> "LogLikelihoodEstimate":
        """Combine single-chain estimates of the log-likelihood of some rows.

        :param Tensor log_weights: shape ``(chains, rows) + batch_shape``, float64.
        :param Tensor log_density: :math:`-F(v)` of all rows of the data, shape
            ``(all rows,) + batch_shape``, float64.
        :param Tensor rows: which of them the chains started from.
        :param dict settings: how they were obtained.
        """
        num_chains, num_rows = log_weights.shape[:2]
        row_values, row_errors = log_mean_exp(log_weights), log_mean_exp_error(log_weights)
        row_ess = effective_sample_size(log_weights)
        bias = _bias_of_few_chains(log_weights).mean(0)
        log_z = log_density[rows] - row_values
        spread = log_z.var(0) / num_rows
        # The other rows are known but for their log Z: a finite population, partly drawn.
        share = num_rows / len(log_density)
        own = row_errors.square().mean(0) / num_rows
        error = ((1.0 - share) * spread + share * own).sqrt()
        quantile = student_quantile(num_rows - 1)
        margin = quantile * error
        value = log_density.mean(0) - log_z.mean(0)
        flags = _suspicions(bias, row_ess, num_chains)
        mean_z, margin_z = log_z.mean(0), quantile * spread.sqrt()
        log_partition = LogPartitionEstimate.from_error(
            mean_z,
            spread.sqrt(),
            settings,
            ess=float(num_rows),
            lower=mean_z - margin_z - bias,
            upper=mean_z + margin_z,
            flags=flags,
            side="above",
            warn=False,
        )
        return cls(
            value,
            error,
            value - margin,
            value + margin + bias,
            bias,
            rows,
            row_values,
            row_errors,
            row_ess,
            log_partition,
            settings,
            flags,
        )

    @property
    def reliable(self) -> bool:
        """Whether the estimate finds nothing suspicious about itself."""
        return not self.flags

    def to_dict(self) -> dict[str, Any]:
        """Numbers and settings for a report, without those of single rows; JSON types only."""
        names = ("value", "std_error", "lower", "upper", "bias")
        numbers = {name: getattr(self, name).tolist() for name in names}
        return numbers | {
            "log_partition": self.log_partition.to_dict(),
            "flags": list(self.flags),
            "settings": dict(self.settings),
        }

    def __str__(self) -> str:
        s = self.settings
        head = (
            f"{s['method']}, {s['num_rows']} of {s['num_data']} rows x {s['num_chains']} chains x "
            f"{s['num_temperatures']} temperatures"
        )
        tail = f"; SUSPICIOUS: {'; '.join(self.flags)}" if self.flags else ""
        if self.value.dim():
            return f"log-likelihood of batch shape {tuple(self.value.shape)} by {head}{tail}"
        return (
            f"log-likelihood = {self.value.item():.3f} +- {self.std_error.item():.3f} "
            f"(95 %: {self.lower.item():.3f} to {self.upper.item():.3f}) by {head}{tail}"
        )


def _bias_of_few_chains(log_weights: Tensor) -> Tensor:
    """What the log-mean-exp over the first axis gains over that of half the chains.

    Where the bias goes with the inverse number of chains this is what is left of it. Unlike the
    jackknife's estimate it is bounded where one chain carries all the weight.
    """
    halves = log_weights.tensor_split(2)
    return log_mean_exp(log_weights) - sum(
        log_mean_exp(half) * (len(half) / len(log_weights)) for half in halves
    )


def _suspicions(bias: Tensor, row_ess: Tensor, num_chains: int) -> tuple[str, ...]:
    if bool((bias > _LARGE_BIAS).any()):
        return (
            f"rows have {row_ess.mean().item():.1f} effective chains of {num_chains}: the estimate is "
            f"too low by about {bias.max().item():.1f} nats or more; use more temperatures or chains",
        )
    return ()
