# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The loops that one writes by hand in torch, without autograd: what the library is held against."""

import itertools

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["HandWrittenRBM"]


class HandWrittenRBM:
    """A Bernoulli RBM as three tensors and the shortest loops over them.

    :param Tensor weight: shape ``(V, H)``.
    :param Tensor visible_bias: shape ``(V,)``.
    :param Tensor hidden_bias: shape ``(H,)``.
    """

    def __init__(self, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> None:
        self.w, self.b, self.c = weight.clone(), visible_bias.clone(), hidden_bias.clone()

    def hidden(self, v: Tensor) -> Tensor:
        return torch.sigmoid(torch.addmm(self.c, v, self.w))

    def visible(self, h: Tensor) -> Tensor:
        return torch.sigmoid(torch.addmm(self.b, h, self.w.T))

    @torch.no_grad()
    def products(self, v: Tensor, h: Tensor) -> None:
        """The two matrix products of a sweep and nothing else: the floor."""
        torch.addmm(self.c, v, self.w)
        torch.addmm(self.b, h, self.w.T)

    @torch.no_grad()
    def sweep(self, v: Tensor) -> Tensor:
        h = torch.bernoulli(self.hidden(v))
        return torch.bernoulli(self.visible(h))

    @torch.no_grad()
    def epoch(
        self, data: Tensor, batch_size: int, rate: float, num_steps: int, chains: Tensor | None
    ) -> None:
        """One epoch of CD (``chains`` None) or PCD (started at ``chains``)."""
        order = torch.randperm(len(data))
        for rows in order.split(batch_size):
            v = data[rows]
            p = self.hidden(v)
            negative = v if chains is None else chains
            q = p if chains is None else self.hidden(negative)
            for _ in range(num_steps):
                negative = torch.bernoulli(self.visible(torch.bernoulli(q)))
                q = self.hidden(negative)
            if chains is not None:
                chains = negative
            n, m = len(v), len(negative)
            self.w += rate * (v.T @ p / n - negative.T @ q / m)
            self.b += rate * (v.mean(0) - negative.mean(0))
            self.c += rate * (p.mean(0) - q.mean(0))

    @torch.no_grad()
    def ais(self, base: Tensor, num_chains: int, num_temperatures: int) -> Tensor:
        """Annealed importance sampling with ``x = v W + c`` kept between ratio and move."""
        betas = torch.linspace(0, 1, num_temperatures + 1).tolist()
        v = torch.bernoulli(torch.sigmoid(base).expand(num_chains, -1))
        log_w = torch.zeros(num_chains, dtype=torch.float64)
        change = self.b - base
        x = torch.addmm(self.c, v, self.w)
        for beta, following in itertools.pairwise(betas):
            step = (softplus(following * x) - softplus(beta * x)).sum(1)
            log_w += step + (following - beta) * (v @ change)
            h = torch.bernoulli(torch.sigmoid(following * x))
            bias = (1 - following) * base + following * self.b
            v = torch.bernoulli(torch.sigmoid(bias + following * (h @ self.w.T)))
            x = torch.addmm(self.c, v, self.w)
        log_z0 = softplus(base).sum() + len(self.c) * torch.log(torch.tensor(2.0))
        return log_z0 + log_w.logsumexp(0) - torch.log(torch.tensor(float(num_chains)))
