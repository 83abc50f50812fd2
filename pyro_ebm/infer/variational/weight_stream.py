# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Importance weights of rows, of which no more is kept than what the estimates need."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pyro_ebm.ops.pareto import pareto_k

__all__ = ["RowWeights", "WeightStream"]


@dataclass(frozen=True)
class RowWeights:
    r"""What the weights of rows come to, float64, each of shape ``(rows,)``.

    :param Tensor value: :math:`\log \frac{1}{K} \sum_k w_k`.
    :param Tensor std_error: its standard error (delta method); zero where nothing is random.
    :param Tensor bias: how much too low the value is, as far as halving the number of weights shows it:
        infinite where half of them are all zero.
    :param Tensor ess: Kish's effective number of weights; NaN where nothing is random.
    :param Tensor pareto_k: shape of the tail of the weights; NaN for fewer than 25.
    """

    value: Tensor
    std_error: Tensor
    bias: Tensor
    ess: Tensor
    pareto_k: Tensor

    @classmethod
    def of_known(cls, value: Tensor) -> "RowWeights":
        """Rows of a model without latent variables."""
        zero = torch.zeros_like(value)
        unknown = torch.full_like(value, math.nan)
        return cls(value, zero, zero, unknown, unknown)

    @classmethod
    def cat(cls, parts: "list[RowWeights]") -> "RowWeights":
        """The rows of all parts."""
        columns = [torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)]
        return cls(*columns)


class WeightStream:
    r"""Sums over weights that come in chunks: memory does not grow with their number.

    Kept are the logarithms of :math:`\sum w` over either half of the weights, that of :math:`\sum w^2`, and
    the largest :math:`\lceil 3 \sqrt K \rceil + 1` weights of every row, to which the tail is fitted.

    :param int num_weights: K, the number of weights of a row that are going to come.
    """

    def __init__(self, num_weights: int) -> None:
        self._total = num_weights
        self._num_top = math.ceil(3.0 * math.sqrt(num_weights)) + 1
        self._seen = 0
        self._halves: list[Tensor | None] = [None, None]
        self._squares: Tensor | None = None
        self._top: Tensor | None = None

    def add(self, log_weights: Tensor) -> None:
        """Take some more weights.

        :param Tensor log_weights: shape ``(weights, rows)``, float64.
        """
        # Every other weight, so that both halves come from all chunks.
        for half in range(2):
            own = log_weights[(half + self._seen) % 2 :: 2]
            if len(own):
                self._halves[half] = _add(self._halves[half], own.logsumexp(0))
        self._squares = _add(self._squares, (2.0 * log_weights).logsumexp(0))
        kept = log_weights if self._top is None else torch.cat([self._top, log_weights])
        self._top = kept.topk(min(len(kept), self._num_top), dim=0).values
        self._seen += len(log_weights)

    def rows(self) -> RowWeights:
        """What has come in, of all weights that were to come."""
        assert self._seen == self._total and self._squares is not None
        number = self._total
        first, second = self._halves
        assert first is not None
        log_sum = _add(first, second) if second is not None else first
        share = (self._squares - 2.0 * log_sum).exp()
        value = log_sum - math.log(number)
        if number > 1:
            error = ((number * share - 1.0) / (number - 1)).clamp(min=0.0).sqrt()
        else:
            error = torch.full_like(value, math.inf)
        # All weights are zero: nothing is known, which 0 / 0 would call NaN.
        empty = value == -math.inf
        error = torch.where(empty, math.inf, error)
        ess = torch.where(empty, 0.0, share.reciprocal())
        assert self._top is not None
        shape = pareto_k(self._top, num_weights=number)
        return RowWeights(value, error, self._bias(value), ess, shape)

    def _bias(self, value: Tensor) -> Tensor:
        """What the log-mean-exp gains over that of half the weights."""
        first, second = self._halves
        if second is None or first is None:
            return torch.zeros_like(value)
        counts = ((self._total + 1) // 2, self._total // 2)
        means = [
            (log_sum - math.log(count)) * (count / self._total)
            for log_sum, count in zip((first, second), counts, strict=True)
        ]
        # Minus infinity less itself is none: a row without any weight gains infinitely by the first.
        return torch.where(value == -math.inf, math.inf, value - sum(means))


def _add(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else torch.logaddexp(a, b)
