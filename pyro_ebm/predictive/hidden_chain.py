# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Chains of the hidden layer of a machine, and what is measured on them."""

import math
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM, CollapsedSweep, GibbsSweep
from pyro_ebm.distributions.enumeration import state_chunks

__all__ = ["HiddenChain", "HiddenStatistics", "exact_hidden_statistics"]

#: Default limit of :func:`exact_hidden_statistics`: 2^16 states.
MAX_STATES = 2**16
#: Entries of the fields that free energies are computed from at once: 32 MiB in float64.
_CHUNK_ENTRIES = 2**22


@dataclass(frozen=True)
class HiddenStatistics:
    """Expectations over the hidden layer of every element of a batch.

    :param Tensor free_energy: mean of F(h), the free energy of the hidden states, shape ``batch_shape``.
    :param Tensor second_moment: E[h h'], shape ``batch_shape + (H, H)``.
    """

    free_energy: Tensor = field(repr=False)
    second_moment: Tensor = field(repr=False)


class HiddenChain:
    """Block Gibbs chains of the hidden layer, the visible one summed out where it is Gaussian.

    :param RBM dist: the machine, of any batch shape.
    :param torch.Generator generator: the source of random bits; the global one if None.
    """

    def __init__(self, dist: RBM, generator: Generator | None = None) -> None:
        #: The machine without axes of :meth:`RBM.expand`, turned so that hidden units are the event.
        self.side = dist.compact().detach().transpose()
        self._sweep = GibbsSweep(self.side, generator)
        self._chain: GibbsSweep | CollapsedSweep = self._sweep
        if self.side.hidden.is_gaussian and self.side.visible.size <= 2 * self.side.hidden.size:
            self._chain = CollapsedSweep(self.side.transpose(), generator)

    def prior(self, num_chains: int) -> Tensor:
        """Draws of the hidden layer without the weights, shape ``(num_chains, *batch, H)``."""
        shape = (num_chains, *self.side.batch_shape, *self.side.event_shape)
        return self._sweep.initial_visible(torch.Size(shape))

    def given(self, v: Tensor) -> Tensor:
        """Draws of the hidden layer given visible states, shape ``(..., *batch, V)``."""
        return self._sweep.sample_visible(v.to(self.side.weight))

    def run(self, h: Tensor, num_steps: int) -> Tensor:
        """Hidden states after so many sweeps."""
        return self._chain.run(h, num_steps)

    @torch.no_grad()
    def free_energy(self, h: Tensor) -> Tensor:
        """Free energy of hidden states, the visible layer summed out; some states at a time.

        :param Tensor h: shape ``(..., *batch, H)``.
        :returns: shape ``(..., *batch)``.
        """
        batch, size = self.side.batch_shape, self.side.visible.size
        rows = h.reshape(-1, *batch, size)
        # Fields on the summed layer are what is large.
        width = batch.numel() * max(size, self.side.hidden.size)
        parts = rows.split(max(1, _CHUNK_ENTRIES // max(1, width)))
        return torch.cat([self.side.free_energy(part) for part in parts]).reshape(h.shape[:-1])


@torch.no_grad()
def exact_hidden_statistics(dist: RBM, *, max_states: int = MAX_STATES) -> HiddenStatistics:
    """Mean free energy and second moments of the hidden layer by enumerating it, in float64.

    :param RBM dist: the machine.
    :param int max_states: refuse more hidden states than this.
    :raises ValueError: if the hidden layer is not finite or has more states.
    """
    side = dist.compact().detach().to(dtype=torch.float64).transpose()
    num_states = side.visible.num_states
    if num_states is None or num_states > max_states:
        got = "infinitely many" if num_states is None else num_states
        raise ValueError(
            f"the hidden layer must have at most max_states={max_states} states, got {got}"
        )
    batch, size = side.batch_shape, side.visible.size
    lift = (-1, *(1,) * len(batch), size)
    chunks = list(state_chunks(side.visible, (side.hidden.size + size) * math.prod(batch)))
    energies = [side.free_energy(h.reshape(lift)).expand(len(h), *batch) for h in chunks]
    p = torch.softmax(-torch.cat(energies), 0)
    mean = (p * torch.cat(energies)).sum(0)
    second = p.new_zeros(*batch, size, size)
    for h, share in zip(chunks, p.split([len(h) for h in chunks]), strict=True):
        second += (share.movedim(0, -1).unsqueeze(-2) * h.mT) @ h
    return HiddenStatistics(
        mean.expand(dist.batch_shape), second.expand(*dist.batch_shape, size, size)
    )
