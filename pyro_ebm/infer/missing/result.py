# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The log-likelihood of the observed entries of rows."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["ObservedLogLikelihood"]


@dataclass(frozen=True)
class ObservedLogLikelihood:
    r"""Log-likelihoods :math:`\log p(v_{\mathrm{observed}})` of rows, missing entries summed out.

    :param Tensor value: one number a row, float64; differentiable in the parameters where ``exact``.
    :param Tensor std_error: its standard error, zero where nothing was estimated. Rows share the error of
        a log Z that they share.
    :param bool exact: whether neither the sum over the missing entries nor log Z was estimated.
    :param str side: "above" or "below" where the estimate errs, in expectation, to that side of the true
        value: an annealed log Z makes it too high (optimistic), an annealed sum over the missing
        entries too low (pessimistic). None if it is exact, or both are estimated from one side, so
        that their errors go against each other.
    :param dict settings: ``method`` of the sum over the missing entries ("enumeration of the hidden layer",
        "enumeration", "enumeration by mask" or "ais", then with its options), and those of
        ``log_partition`` ("given", "exact" or "ais").
    :param flags: what makes an estimate suspicious, short texts; empty if nothing does.
    """

    value: Tensor
    std_error: Tensor
    exact: bool
    side: str | None
    settings: dict[str, Any]
    flags: tuple[str, ...] = ()

    @property
    def reliable(self) -> bool:
        """Whether the estimate finds nothing suspicious about itself, in any row."""
        return not self.flags
