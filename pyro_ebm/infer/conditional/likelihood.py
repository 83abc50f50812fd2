# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log-likelihoods of data under conditional machines, row by row and in the mean."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_ebm.infer.conditional.contexts import (
    ConditionalModel,
    check_contexts,
    match_contexts,
    unique_contexts,
)
from pyro_ebm.infer.conditional.density import log_densities
from pyro_ebm.infer.conditional.join import as_estimates
from pyro_ebm.infer.log_partition import LogPartitionEstimate
from pyro_ebm.infer.log_partition.likelihood_report import LikelihoodReport

__all__ = ["ConditionalLikelihood", "conditional_likelihood", "conditional_log_likelihood"]


def conditional_log_likelihood(
    model: ConditionalModel,
    data: Tensor,
    context: Tensor,
    log_partition: Any,
    *,
    contexts: Tensor | None = None,
    chunk_contexts: int | None = None,
) -> Tensor:
    r"""Log-likelihood :math:`\log p(y | x) = -F(y | x) - \log Z(x)` of every row.

    Rows of the same context share one machine and one matrix product. A bracket counts by its midpoint;
    with log Z from AIS, a stochastic lower bound, the result is optimistic.

    :param model: anything with a method ``condition(context)`` that makes an
        :class:`~pyro_ebm.distributions.RBM`; a module is put into evaluation mode meanwhile.
    :param Tensor data: y, shape ``(rows, V)``.
    :param Tensor context: x, shape ``(rows, n_x)``.
    :param log_partition: log Z as an estimate, a bracket or a tensor: for each of the ``contexts``; or, if
        these are None, for every row.
    :param Tensor contexts: what ``log_partition`` belongs to, shape ``(U, n_x)``; a row's is found by the
        numbers of its context, not by its place.
    :param int chunk_contexts: contexts whose machines are in memory at the same time.
    :returns: shape ``(rows,)``, float64.
    :raises ValueError: for wrong shapes, contexts or data that are not finite, data outside of the
        support, or a row whose context is not among ``contexts``.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import conditional_log_likelihood, conditional_log_partition
    >>> class Scaled:
    ...     def condition(self, context):
    ...         weight = context.unsqueeze(-1) * torch.ones(4, 3)
    ...         return BernoulliRBM(weight, torch.zeros(4), torch.zeros(3))
    >>> contexts = torch.tensor([[0.0], [1.0]])
    >>> log_z = conditional_log_partition(Scaled(), contexts)
    >>> context = torch.tensor([[1.0], [0.0], [1.0]])
    >>> conditional_log_likelihood(Scaled(), torch.ones(3, 4), context, log_z, contexts=contexts)
    tensor([-0.2151, -2.7726, -0.2151], dtype=torch.float64)
    """
    table = _Table(context, log_partition, contexts)
    density = log_densities(model, data, table.contexts, table.context_index, chunk_contexts)
    value = torch.stack([e.value for e in table.estimates]).mean(0)
    return density - value.to(density.device)[table.index]


def conditional_likelihood(
    model: ConditionalModel,
    data: Tensor,
    context: Tensor,
    log_partition: Any,
    *,
    contexts: Tensor | None = None,
    chunk_contexts: int | None = None,
) -> "ConditionalLikelihood":
    """Mean log-likelihood of data with its errors; arguments as for
    :func:`conditional_log_likelihood`.

    :returns: a :class:`ConditionalLikelihood`.
    """
    table = _Table(context, log_partition, contexts)
    density = log_densities(model, data, table.contexts, table.context_index, chunk_contexts)
    return ConditionalLikelihood.from_log_density(density, table.index, table.estimates)


class _Table:
    """Which log Z, and which machine, belongs to every row."""

    def __init__(self, context: Tensor, log_partition: Any, contexts: Tensor | None) -> None:
        check_contexts(context, "context", "rows")
        if contexts is None:
            self.contexts, self.context_index = unique_contexts(context)
        else:
            self.contexts, self.context_index = contexts, match_contexts(context, contexts)
        self.index, size, name = self.context_index, len(self.contexts), "contexts"
        if contexts is None:
            shape = torch.as_tensor(getattr(log_partition, "value", log_partition)).shape
            if shape != context.shape[:1]:
                raise ValueError(
                    f"log_partition has shape {tuple(shape)}, but there are {len(context)} rows: give "
                    "the contexts that it belongs to, contexts=..."
                )
            self.index = torch.arange(len(context), device=context.device)
            size, name = len(context), "rows"
        self.estimates = as_estimates(log_partition, size, name)


@dataclass(frozen=True)
class ConditionalLikelihood(LikelihoodReport):
    r"""The mean log-likelihood of rows given their contexts, and its two kinds of doubt.

    *Which rows.* ``std_error`` says how far the mean over other rows of the same source would be from
    this one. *Log Z.* ``log_partition_error`` is what the errors of the estimates of log Z(x), which are
    independent from context to context, come to in the mean, :math:`\sqrt{\sum_u (n_u / N)^2 s_u^2}`, and
    ``lower`` and ``upper`` are the ends of the 95 % interval of the mean **of these rows**: with a
    bracket they come from its two sides. Mind that AIS is a lower bound of log Z in expectation, so that
    the likelihood from it is an **upper** bound, whatever its error bar says (``side``).

    :param Tensor value: mean log-likelihood, a scalar, float64; at the midpoint of a bracket.
    :param Tensor std_error: its standard error for the choice of rows.
    :param Tensor log_partition_error: its standard error from log Z.
    :param Tensor lower: lower end of the interval from log Z.
    :param Tensor upper: upper end.
    :param Tensor optimistic: the mean with log Z from below; that of the only estimate if there is one.
    :param Tensor pessimistic: the mean with log Z from above; the same.
    :param Tensor context_values: mean of every context's rows, shape ``(U,)``; NaN where it has none.
    :param Tensor counts: rows of every context, shape ``(U,)``.
    :param Tensor rows: log-likelihoods of the rows, shape ``(rows,)``.
    :param dict settings: how log Z was obtained.
    :param flags: what makes log Z suspicious, short texts; empty if nothing does.
    :param str side: "above" where the value bounds the likelihood from above in expectation, "below"
        where from below, None otherwise.
    """

    _reported: ClassVar[tuple[str, ...]] = (
        *("value", "std_error", "log_partition_error", "lower", "upper"),
        *("optimistic", "pessimistic", "context_values", "counts", "side", "flags", "settings"),
    )

    value: Tensor
    std_error: Tensor
    log_partition_error: Tensor
    lower: Tensor
    upper: Tensor
    optimistic: Tensor
    pessimistic: Tensor
    context_values: Tensor = field(repr=False)
    counts: Tensor = field(repr=False)
    rows: Tensor = field(repr=False)
    settings: dict[str, Any]
    flags: tuple[str, ...] = ()
    side: str | None = None

    @classmethod
    def from_log_density(
        cls, log_density: Tensor, index: Tensor, estimates: list[LogPartitionEstimate]
    ) -> "ConditionalLikelihood":
        """Put free energies and log Z together.

        :param Tensor log_density: :math:`-F(y | x)` of every row, shape ``(rows,)``, float64.
        :param Tensor index: the number of every row's log Z, shape ``(rows,)``.
        :param estimates: log Z of each: one estimate, or that from below and that from above.
        """
        index = index.to(log_density.device)
        counts = torch.bincount(index, minlength=len(estimates[0].value))
        share = counts.double() / len(index)

        def mean(x: Tensor) -> Tensor:
            return (share * x.to(share.device)).sum()

        def spread(x: Tensor) -> Tensor:
            # A context without rows does not count, even if its error is infinite.
            x = torch.where(counts > 0, x.to(share.device), 0.0)
            return (share * x).square().sum().sqrt()

        value = torch.stack([e.value for e in estimates]).mean(0)
        error = torch.stack([e.std_error for e in estimates]).square().sum(0).sqrt()
        rows = log_density - value.to(log_density.device)[index]
        centre = log_density.mean()
        lower = [centre - mean(e.value) - spread(e.upper - e.value) for e in estimates]
        upper = [centre - mean(e.value) + spread(e.value - e.lower) for e in estimates]
        sums = torch.zeros_like(share).index_add(0, index, rows)
        sides = {None: None, "below": "above", "above": "below"}
        return cls(
            rows.mean(),
            rows.std() / math.sqrt(len(rows)) if len(rows) > 1 else rows.new_tensor(math.inf),
            spread(error / len(estimates)),
            torch.stack(lower).min(),
            torch.stack(upper).max(),
            centre - mean(estimates[0].value),
            centre - mean(estimates[-1].value),
            sums / counts,
            counts,
            rows,
            dict(estimates[0].settings),
            _flags(estimates),
            sides[estimates[0].side] if len(estimates) == 1 else None,
        )

    def __str__(self) -> str:
        bound = {"above": ", an upper bound", "below": ", a lower bound", None: ""}[self.side]
        tail = f"; SUSPICIOUS: {'; '.join(self.flags)}" if self.flags else ""
        return (
            f"conditional log-likelihood = {self.value.item():.3f} +- {self.std_error.item():.3f} "
            f"(rows) +- {self.log_partition_error.item():.3f} (log Z; 95 %: {self.lower.item():.3f} to "
            f"{self.upper.item():.3f}){bound} of {len(self.rows)} rows in "
            f"{int((self.counts > 0).sum())} contexts, log Z by {self.settings['method']}{tail}"
        )


def _flags(estimates: list[LogPartitionEstimate]) -> tuple[str, ...]:
    if len(estimates) == 1:
        return estimates[0].flags
    return tuple(f"from {e.side}: {text}" for e in estimates for text in e.flags)
