# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The update of a deep Boltzmann machine of two hidden layers that one writes by hand in torch: the reference
of ``benchmarks.dbm``."""

import torch
from torch import Tensor

__all__ = ["HandWrittenDBM"]


class HandWrittenDBM:
    """Bits as five tensors, and the shortest loops over them: without autograd, biases within the
    products, what does not change computed once, random bits by the fastest way that torch has.

    :param weights: shapes ``(V, H_1)`` and ``(H_1, H_2)``.
    :param biases: those of the three layers.
    :param int num_chains: persistent chains.
    :param int num_updates: updates of the mean field.
    :param int num_steps: Gibbs steps of the chains.
    """

    def __init__(
        self,
        weights: tuple[Tensor, Tensor],
        biases: tuple[Tensor, Tensor, Tensor],
        num_chains: int = 100,
        num_updates: int = 10,
        num_steps: int = 5,
    ) -> None:
        self.w1, self.w2 = (weight.clone() for weight in weights)
        self.b0, self.b1, self.b2 = (bias.clone() for bias in biases)
        self.num_updates, self.num_steps = num_updates, num_steps
        self.v = self.draw(torch.sigmoid(self.b0).expand(num_chains, -1))
        self.h2 = self.draw(torch.sigmoid(self.b2).expand(num_chains, -1))

    @staticmethod
    def draw(probs: Tensor) -> Tensor:
        """Bits; a comparison with uniform numbers is faster than ``torch.bernoulli``."""
        noise = torch.rand_like(probs)
        return torch.lt(noise, probs, out=noise)

    def mean_field(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Means of the hidden layers given v after a number of updates."""
        below = torch.mm(v, self.w1)
        mu1 = torch.add(self.b1, below, alpha=2.0).sigmoid_()
        below += self.b1
        mu2 = torch.addmm(self.b2, mu1, self.w2).sigmoid_()
        for _ in range(self.num_updates):
            mu1 = torch.addmm(below, mu2, self.w2.T).sigmoid_()
            mu2 = torch.addmm(self.b2, mu1, self.w2).sigmoid_()
        return mu1, mu2

    def middle(self, v: Tensor, h2: Tensor) -> Tensor:
        """Means of the first hidden layer given both of its neighbours."""
        return torch.addmm(self.b1, v, self.w1).addmm_(h2, self.w2.T).sigmoid_()

    def gibbs(self) -> Tensor:
        """Move the chains; gives the means of the layer between their states."""
        p = self.middle(self.v, self.h2)
        for _ in range(self.num_steps):
            h1 = self.draw(p)
            self.v = self.draw(torch.addmm(self.b0, h1, self.w1.T).sigmoid_())
            self.h2 = self.draw(torch.addmm(self.b2, h1, self.w2).sigmoid_())
            p = self.middle(self.v, self.h2)
        return p

    @torch.no_grad()
    def update(self, v: Tensor, rate: float) -> None:
        """One update by a batch of bits, shape ``(rows, V)``."""
        mu1, mu2 = self.mean_field(v)
        p = self.gibbs()
        n, m = rate / len(v), rate / len(p)
        self.w1.addmm_(v.T, mu1, alpha=n).addmm_(self.v.T, p, alpha=-m)
        self.w2.addmm_(mu1.T, mu2, alpha=n).addmm_(p.T, self.h2, alpha=-m)
        for bias, data, model in ((self.b0, v, self.v), (self.b1, mu1, p), (self.b2, mu2, self.h2)):
            bias.add_(data.mean(0) - model.mean(0), alpha=rate)

    @torch.no_grad()
    def products(self, v: Tensor) -> None:
        """The matrix products of an update and nothing else: the floor."""
        h1, h2 = v.new_ones(len(v), len(self.b1)), v.new_ones(len(v), len(self.b2))
        torch.mm(v, self.w1)
        torch.mm(h1, self.w2)
        for _ in range(self.num_updates):
            torch.mm(h2, self.w2.T)
            torch.mm(h1, self.w2)
        chains = len(self.v)
        v, h1, h2 = self.v, h1.new_ones(chains, len(self.b1)), self.h2
        for i in range(self.num_steps + 1):
            torch.mm(v, self.w1)
            torch.mm(h2, self.w2.T)
            if i < self.num_steps:
                torch.mm(h1, self.w1.T)
                torch.mm(h1, self.w2)
        for _ in range(2):
            torch.mm(v.T, h1)
            torch.mm(h1.T, h2)
