# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Bayes' rule with a conditional machine: which context, and how likely is the data at all?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.infer.conditional.contexts import (
    ConditionalModel,
    check_contexts,
    condition,
    evaluating,
)
from pyro_ebm.infer.conditional.density import check_data
from pyro_ebm.infer.conditional.join import as_estimates

__all__ = ["BayesClassifier", "ClassificationBounds"]

#: Entries of the states and fields of one chunk of rows under all contexts: 4 MiB in float64; with
#: eight times as many it takes twice as long on a CPU.
_CHUNK_ENTRIES = 2**19
#: How far prior probabilities may sum from one.
_PRIOR_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ClassificationBounds:
    """What the doubt about log Z(x) means for every row.

    :param Tensor lower: lower end of log p(y), shape ``(rows,)``: every log Z at the upper end of its
        interval.
    :param Tensor upper: upper end of log p(y).
    :param Tensor changed: whether the most probable context is another one with log Z from above than
        with log Z from below, shape ``(rows,)``.
    :param Tensor certain: whether the most probable context is the same wherever in their intervals the
        log Z of all contexts are, shape ``(rows,)``.
    """

    lower: Tensor
    upper: Tensor
    changed: Tensor
    certain: Tensor

    @property
    def num_changed(self) -> int:
        """Number of rows whose prediction changes between the two sides of log Z."""
        return int(self.changed.sum())


class BayesClassifier:
    r"""Probabilities of contexts given data, by Bayes' rule:
    :math:`p(x_u | y) \propto p(x_u)\, e^{-F(y | x_u)} / Z(x_u)`.

    Free energies of different contexts are not comparable: log Z(x) must be known for each. The
    machines of all contexts are made once, when the object is; make a new one after parameters have
    changed. Rows are taken in chunks, each of which costs one batched product with all contexts.

    :param model: anything with a method ``condition(context)`` that makes an
        :class:`~pyro_ebm.distributions.RBM`; a module is put into evaluation mode meanwhile.
    :param Tensor contexts: all contexts that come into question, shape ``(U, n_x)``.
    :param log_partition: their log Z: an estimate, a bracket (counts by its midpoint), or a tensor of
        shape ``(U,)``, in the same order.
    :param Tensor log_prior: log p(x), shape ``(U,)``, probabilities that sum to 1; even if None.
    :param int chunk_rows: rows that are done at a time; what fits into bounded memory if None.
    :raises TypeError: if the model makes no RBM.
    :raises ValueError: for wrong shapes, numbers that are not finite, or a prior that does not sum to 1.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import BayesClassifier, conditional_log_partition
    >>> class Biased:
    ...     def condition(self, context):
    ...         return BernoulliRBM(torch.zeros(4, 3), context * torch.ones(4), torch.zeros(3))
    >>> contexts = torch.tensor([[-1.0], [1.0]])
    >>> classifier = BayesClassifier(Biased(), contexts, conditional_log_partition(Biased(), contexts))
    >>> data = torch.tensor([[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    >>> classifier.predict(data)
    tensor([0, 1])
    >>> classifier.log_posterior(data).exp()
    tensor([[0.8808, 0.1192],
            [0.0180, 0.9820]], dtype=torch.float64)
    """

    def __init__(
        self,
        model: ConditionalModel,
        contexts: Tensor,
        log_partition: Any,
        log_prior: Tensor | None = None,
        *,
        chunk_rows: int | None = None,
    ) -> None:
        check_contexts(contexts)
        if chunk_rows is not None and chunk_rows < 1:
            raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
        with evaluating(model):
            self._dist = condition(model, contexts).detach().to(torch.float64)
        self._device = self._dist.weight.device
        size = len(contexts)
        estimates = as_estimates(log_partition, size, "contexts")
        #: Log Z of every context, at the midpoint of a bracket, shape ``(U,)``.
        self.log_partition = self._mean([e.value for e in estimates])
        #: Log Z from below and from above; the ends of the interval of a single estimate.
        self._sides = [e.value.to(self._device) for e in estimates]
        self._lower = torch.stack([e.lower for e in estimates]).amin(0).to(self._device)
        self._upper = torch.stack([e.upper for e in estimates]).amax(0).to(self._device)
        if len(self._sides) == 1:
            self._sides = [self._lower, self._upper]
        #: Log p(x), shape ``(U,)``.
        self.log_prior = _checked_prior(log_prior, size).to(self._device)
        num_visible, num_hidden = self._dist.weight.shape[-2:]
        width = size * (num_visible + num_hidden)
        self._chunk_rows = chunk_rows or max(1, _CHUNK_ENTRIES // width)

    def _mean(self, values: list[Tensor]) -> Tensor:
        return torch.stack(values).mean(0).to(self._device)

    @property
    def num_contexts(self) -> int:
        """Number U of contexts."""
        return len(self.log_prior)

    def log_joint(self, data: Tensor) -> Tensor:
        """log p(x_u) + log p(y | x_u) of every row and context.

        :param Tensor data: y, shape ``(rows, V)``.
        :returns: shape ``(rows, U)``, float64; -inf where the prior is.
        :raises ValueError: if the data has a wrong shape, is not finite or outside of the support.
        """
        return self._by_chunk(data, lambda unnormalized: unnormalized - self.log_partition)

    def log_evidence(self, data: Tensor) -> Tensor:
        """log p(y), the contexts summed out, shape ``(rows,)``, float64."""
        return self._by_chunk(data, lambda u: torch.logsumexp(u - self.log_partition, -1))

    def log_posterior(self, data: Tensor) -> Tensor:
        """log p(x_u | y), shape ``(rows, U)``, float64."""
        return self._by_chunk(data, lambda u: torch.log_softmax(u - self.log_partition, -1))

    def predict(self, data: Tensor) -> Tensor:
        """The number of the most probable context of every row, shape ``(rows,)``."""
        return self._by_chunk(data, lambda u: (u - self.log_partition).argmax(-1))

    def bounds(self, data: Tensor) -> ClassificationBounds:
        """What the intervals of log Z leave open, see :class:`ClassificationBounds`.

        For a single estimate the two sides are the ends of its interval; plain numbers and exact
        values leave nothing open.
        """
        below, above = self._sides

        def examine(u: Tensor) -> Tensor:
            changed = (u - below).argmax(-1) != (u - above).argmax(-1)
            # The winner must win with its own log Z as large, and all others as small, as may be.
            best = (u - self.log_partition).argmax(-1, keepdim=True)
            rivals = (u - self._lower).scatter(-1, best, -torch.inf).amax(-1)
            certain = (u - self._upper).gather(-1, best).squeeze(-1) >= rivals
            ends = [torch.logsumexp(u - log_z, -1) for log_z in (self._upper, self._lower)]
            return torch.stack([*ends, changed.double(), certain.double()])

        lower, upper, changed, certain = self._by_chunk(data, examine, dim=-1)
        return ClassificationBounds(lower, upper, changed.bool(), certain.bool())

    @torch.no_grad()
    def _by_chunk(self, data: Tensor, function: Callable[[Tensor], Tensor], dim: int = 0) -> Tensor:
        """Apply a function to log p(x_u) - F(y | x_u) of every row and context, in chunks of rows."""
        check_data(self._dist, data)
        parts = []
        for rows in data.split(self._chunk_rows):
            energy = self._dist.free_energy(rows.to(self._device).unsqueeze(1))
            energy = energy.expand(len(rows), self.num_contexts)
            parts.append(function(self.log_prior - energy))
        return torch.cat(parts, dim)


def _checked_prior(log_prior: Tensor | None, size: int) -> Tensor:
    if log_prior is None:
        return torch.zeros(size, dtype=torch.float64) - torch.tensor(size).double().log()
    prior = torch.as_tensor(log_prior, dtype=torch.float64).detach()
    if prior.shape != (size,):
        raise ValueError(f"log_prior must have shape ({size},), got {tuple(prior.shape)}")
    total = prior.logsumexp(0).exp().item()
    if not abs(total - 1.0) <= _PRIOR_TOLERANCE:
        raise ValueError(
            f"log_prior must be log-probabilities that sum to 1, they sum to {total:.6g}"
        )
    return prior - prior.logsumexp(0)
