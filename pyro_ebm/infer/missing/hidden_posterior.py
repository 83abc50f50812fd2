# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The law of a hidden layer that can be enumerated, given what is observed of every row."""

from collections.abc import Iterator

import torch
from torch import Generator, Size, Tensor
from torch.utils.checkpoint import checkpoint

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.observed_rows import ObservedRows
from pyro_ebm.ops.linear import apply_weight

__all__ = ["HiddenPosterior"]

#: Entries of the tables of one chunk of hidden states: 16 MiB in float64.
_CHUNK_ENTRIES = 2**21


class HiddenPosterior:
    r"""All hidden states h weighed by the observed entries of every row, missing ones summed out,

    .. math::
        \log w(h) = \log \sum_{v_m} e^{-E(v_o, v_m, h)} = -u_h(h)
            + \sum_{i \in o} \bigl[(v_i - o_i) t_i - u_i(v_i)\bigr]
            + \sum_{i \in m} \bigl[\Gamma_i(t_i) - o_i t_i\bigr], \qquad t = W (h - o_h),

    where i runs over visible units. The fields t and the log-partitions :math:`\Gamma_i(t_i)` depend on h
    alone, so that rows of any masks cost two matrix products with these tables, and none has a weight of
    its own.

    :param RBM dist: the machine, whose hidden layer is finite; float64 is advised.
    :param ObservedRows rows: the rows, of the machine's dtype.
    """

    def __init__(self, dist: RBM, rows: ObservedRows) -> None:
        self._dist = dist.compact()
        self._rows = rows
        num_states = dist.hidden.num_states
        if num_states is None:
            raise ValueError(f"{type(dist.hidden).__name__} hidden units cannot be enumerated")
        self.num_states = num_states
        self._batch = self._dist.parameter_batch_shape
        #: What the tables of h are multiplied with: values of observed entries, less the offset.
        self._pull = rows.value - self._dist.visible_offset
        self._missing = (~rows.units).to(rows.value.dtype)
        self._energy = rows.energy().unsqueeze(-1)

    def log_partition(self) -> Tensor:
        """``log sum_h w(h)`` of every row, differentiable in the parameters.

        :returns: shape ``rows.batch_shape``, but for what the machine was expanded by.
        """
        differentiable = torch.is_grad_enabled() and any(
            p.requires_grad for p in self._dist.parameters()
        )
        parts = []
        for start, stop in self._chunks():
            if differentiable:
                parts.append(checkpoint(self._log_sum, start, stop, use_reentrant=False))
            else:
                parts.append(self._log_sum(start, stop))
        return torch.logsumexp(torch.stack(parts), 0)

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """Posterior probability of every hidden state, shape ``rows + (num_states,)``."""
        log_w = torch.cat([self.log_weights(start, stop) for start, stop in self._chunks()], -1)
        return torch.softmax(log_w, -1)

    @torch.no_grad()
    def visible_mean(self, probabilities: Tensor) -> Tensor:
        """Mean of all visible entries where hidden states have these probabilities.

        :param Tensor probabilities: shape ``rows + (num_states,)``.
        :returns: shape ``rows + (V,)``.
        """
        total = torch.zeros_like(self._rows.value)
        for start, stop in self._chunks():
            mean = self._dist.visible.mean(self._field(start, stop)).movedim(0, -2)
            total = total + apply_weight(probabilities[..., start:stop], mean)
        return total

    @torch.no_grad()
    def sample(
        self, probabilities: Tensor, num_samples: int, generator: Generator | None = None
    ) -> Tensor:
        """Hidden states drawn with these probabilities, shape ``(num_samples,) + rows + (H,)``."""
        table = probabilities.reshape(-1, self.num_states)
        index = torch.multinomial(table, num_samples, replacement=True, generator=generator)
        states = self._dist.hidden.states(0, self.num_states)
        draws = states[index].movedim(1, 0)
        return draws.reshape(num_samples, *probabilities.shape[:-1], states.shape[-1])

    def log_weights(self, start: int, stop: int) -> Tensor:
        """Log-weights of hidden states number ``start`` to ``stop - 1``, shape ``rows + (states,)``."""
        dist, rows = self._dist, self._rows
        field = self._field(start, stop)
        own = -dist.hidden.energy(self._states(start, stop))
        if dist._constant is not None:
            own = own - dist._constant
        free = rows.terms.log_partition(field)
        return (
            own.movedim(0, -1)
            + apply_weight(self._pull, field.movedim(0, -1))
            + apply_weight(self._missing, free.movedim(0, -1))
            - self._energy
        )

    def _log_sum(self, start: int, stop: int) -> Tensor:
        return torch.logsumexp(self.log_weights(start, stop), -1)

    def _states(self, start: int, stop: int) -> Tensor:
        """Hidden states, shape ``(states,) + (1, ...) + (H,)``, that broadcast with the parameters."""
        states = self._dist.hidden.states(start, stop)
        return states.reshape(len(states), *(1,) * len(self._batch), -1)

    def _field(self, start: int, stop: int) -> Tensor:
        """What hidden states exert on the visible layer, shape ``(states, ..., V)``."""
        return self._dist.visible_field(self._states(start, stop))

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of hidden states whose tables, and weights of all rows, are of bounded size."""
        shape = torch.broadcast_shapes(self._rows.value.shape[:-1], self._batch)
        width = shape.numel() + Size(self._batch).numel() * self._dist.visible.size
        size = max(1, _CHUNK_ENTRIES // max(1, width))
        for start in range(0, self.num_states, size):
            yield start, min(start + size, self.num_states)
