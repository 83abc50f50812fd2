# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A number with its standard error."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ebm.diagnostics.tables import significant

__all__ = ["Estimate", "finite_or_none", "mean_estimate", "proportion_estimate"]


@dataclass(frozen=True)
class Estimate:
    """A number that was estimated from independent rows.

    :param float value: the estimate.
    :param float std_error: its standard error; NaN where it is not known.
    """

    value: float
    std_error: float

    def __float__(self) -> float:
        return self.value

    def to_dict(self) -> dict[str, float | None]:
        """Both numbers, None where one is not finite; JSON types only."""
        return {
            "value": finite_or_none(self.value),
            "std_error": finite_or_none(self.std_error),
        }

    def __str__(self) -> str:
        return f"{significant(self.value, 4)} +- {significant(self.std_error, 2)}"


def finite_or_none(x: float) -> float | None:
    """The number, None for NaN and infinities, which JSON does not know."""
    return x if math.isfinite(x) else None


def mean_estimate(values: Tensor) -> Estimate:
    """Mean of independent values of any shape; the standard error is NaN for a single one."""
    rows = values.detach().double().flatten()
    # The standard deviation of infinite values is NaN, as it should be.
    error = rows.std() / math.sqrt(len(rows)) if len(rows) > 1 else rows.new_tensor(math.nan)
    value, std_error = torch.stack([rows.mean(), error]).tolist()
    return Estimate(value, std_error)


def proportion_estimate(successes: float, trials: int) -> Estimate:
    r"""Share of successes in independent trials.

    The standard error is half of the width of Wilson's interval at one standard deviation [1],

    .. math:: \frac{n}{n + 1} \sqrt{\frac{p (1 - p)}{n} + \frac{1}{4 n^2}},

    which is the binomial :math:`\sqrt{p (1 - p) / n}` but for shares near 0 and 1, where that claims
    certainty.

    **References**

    [1] *Probable Inference, the Law of Succession, and Statistical Inference*, Edwin Wilson (1927)

    :param float successes: number of successes; where trials are successes in part the standard error
        is an upper bound.
    :param int trials: number n of trials, at least 1.
    :raises ValueError: if the numbers are impossible.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"successes must be between 0 and trials >= 1, got {successes} and {trials}"
        )
    share = successes / trials
    spread = math.sqrt(share * (1.0 - share) / trials + 0.25 / trials**2)
    return Estimate(share, spread * trials / (trials + 1.0))
