# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What importance weights say about their own estimate."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ebm.ops.numerics import effective_sample_size
from pyro_ebm.ops.pareto import pareto_k, pareto_k_error

__all__ = ["Suspicions", "lognormal_error", "suspicions"]

#: Below this share of the number of chains the effective sample size is called low.
_LOW_ESS = 0.1
#: Fewer effective chains than this, by the spread of the log-weights, are too few (a tenth of fewer
#: than a hundred chains).
_FEW_CHAINS = 10.0
#: Above this shape of their tail, weights are too heavy for their mean to be trusted.
_HEAVY_TAIL = 0.7
#: Logarithms that spread over less have no tail that could matter.
_SMALL_SPREAD = 0.3


@dataclass(frozen=True)
class Suspicions:
    """What is suspicious about weights.

    :param flags: short texts, none if nothing is.
    :param Tensor elements: whether an element of the batch is suspicious, boolean, ``batch_shape``.
    """

    flags: tuple[str, ...]
    elements: Tensor


def suspicions(log_weights: Tensor) -> Suspicions:
    r"""Signs that the mean of weights hangs on few of them, or on some that were not seen.

    * Kish's effective sample size is below 10 % of the chains.
    * The logarithms spread too far. Annealing that stays near equilibrium makes them normal, and
      weights of a standard deviation s have an effective sample size of :math:`N e^{-s^2}`. With N = 100
      chains it is below 10 for s above 1.52, with 10,000 for s above 2.63. The observed effective sample
      size is a poor witness where few chains carry it; s is known to a tenth with 100 chains. It is
      measured by the middle two thirds, which a stray chain with a tiny weight does not change, and
      again by the half above the median, which the mean hangs on, with one standard error of tolerance.
    * The Pareto shape of the tail exceeds 0.7 by more than its standard error (0.25 with 100 chains).

    Each was measured with 100 chains on 50 enumerable machines (``tests/infer/log_partition``). Where
    the number of temperatures puts s at 1, 0.7 % of AIS runs and 3 % of reverse runs are flagged; with a
    tenth of the temperatures 100 % and 99 % are. On the published machine CD25(500), all runs of 100
    temperatures are flagged and 4 % of those of 10,000; of those of 1,000, a nat too low on average,
    two thirds are. Chains that all miss the same mode cannot know of it: no flag is no proof, and the
    other side (:func:`~pyro_ebm.infer.bracket_log_partition`) is needed.

    :param Tensor log_weights: logarithms of independent weights along axis 0.
    """
    num_chains = len(log_weights)
    ess, shape = effective_sample_size(log_weights), pareto_k(log_weights)
    spread, upper = _spreads(log_weights)
    large = math.sqrt(math.log(max(1.0 / _LOW_ESS, num_chains / _FEW_CHAINS)))
    # One number to compare with one limit.
    widest = torch.maximum(spread, upper / (1.0 + math.sqrt(1.25 / num_chains)))
    heavy = _HEAVY_TAIL + pareto_k_error(num_chains, _HEAVY_TAIL)
    finite = log_weights.isfinite().all(0)
    checks = [
        (~finite, None, "some weights are not finite"),
        (
            ess < _LOW_ESS * num_chains,
            -ess,
            f"the effective sample size is {{:.1f}} of {num_chains} chains",
        ),
        (
            widest > large,
            widest,
            f"the standard deviation of the log-weights is {{:.2f}}, more than {large:.2f}",
        ),
        (
            (shape > heavy) & (torch.maximum(spread, upper) > _SMALL_SPREAD),
            shape,
            f"the tail of the weights is heavy (Pareto k {{:.2f}}, more than {heavy:.2f})",
        ),
    ]
    flags = [_describe(mask, worst, text) for mask, worst, text in checks if bool(mask.any())]
    return Suspicions(tuple(flags), torch.stack([mask for mask, _, _ in checks]).any(0))


def lognormal_error(log_weights: Tensor) -> Tensor:
    r"""Standard error of the logarithm of the mean of n log-normal weights of the spread s that is seen,
    :math:`\sqrt{(e^{s^2} - 1) / n}`, at most about 1.

    Where few weights carry the mean, the jackknife sees only those few, and is too small.
    """
    num_chains = len(log_weights)
    variance = torch.maximum(*_spreads(log_weights)).square()
    return (variance.clamp(max=math.log(num_chains)).expm1() / num_chains).sqrt()


def _spreads(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations, if they are normal: of the middle, and of the half above the median."""
    ordered = log_weights.sort(0).values
    low, middle, high = (ordered[round(q * (len(ordered) - 1))] for q in (0.159, 0.5, 0.841))
    above = (log_weights - middle).clamp(min=0.0)
    return 0.5 * (high - low), (2.0 * above.square().mean(0)).sqrt()


def _describe(mask: Tensor, worst: Tensor | None, text: str) -> str:
    """The text with the worst number of the batch, and of how many elements it holds."""
    if worst is not None:
        text = text.format(abs(worst[mask].max().item()))
    if mask.dim():
        text += f" (in {int(mask.sum())} of {mask.numel()} elements)"
    return text
