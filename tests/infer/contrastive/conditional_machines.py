# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Machines of some contexts, and their likelihood written out state by state."""

import itertools
import math

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, units

NUM_VISIBLE, NUM_HIDDEN = 3, 2
VISIBLE = ["gaussian", "ising", "bernoulli"]
HIDDEN = ["ising", "bernoulli"]


class Contexts:
    """Parameters of the machines of a few contexts, leaves of autograd.

    Gaussian layers have their mean as the offset, as a neural Boltzmann machine has.

    :param str visible: family of the visible layer.
    :param str hidden: family of the hidden layer.
    :param int num: number of contexts.
    """

    def __init__(self, visible: str, hidden: str, num: int, dtype=torch.float64, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)

        def leaf(*shape: int) -> Tensor:
            values = torch.randn(num, *shape, generator=generator, dtype=torch.float64)
            return (0.5 * values).to(dtype).requires_grad_()

        self.visible, self.hidden, self.num = visible, hidden, num
        self.bias = leaf(NUM_VISIBLE)
        self.log_precision = leaf(NUM_VISIBLE)
        self.hidden_bias = leaf(NUM_HIDDEN)
        self.weight = leaf(NUM_VISIBLE, NUM_HIDDEN)
        self.leaves = [self.bias, self.hidden_bias, self.weight]
        if visible == "gaussian":
            self.leaves.append(self.log_precision)

    def condition(self, index: Tensor) -> RBM:
        """The machines of some contexts, batch shape that of the index."""
        bias = self.bias[index]
        unit: units.Unit
        offset = None
        if self.visible == "gaussian":
            unit, offset = units.Gaussian(bias, self.log_precision[index].exp()), bias
        else:
            unit = (units.Ising if self.visible == "ising" else units.Bernoulli)(bias)
        hidden = units.Ising if self.hidden == "ising" else units.Bernoulli
        return RBM(unit, hidden(self.hidden_bias[index]), self.weight[index], visible_offset=offset)

    def hidden_states(self) -> Tensor:
        return _states(self.hidden, NUM_HIDDEN).to(self.weight)

    def log_joint(self, v: Tensor, context: int) -> Tensor:
        """-E(v, h) for rows v and all hidden states, by the definition."""
        h = self.hidden_states()
        bias, weight = self.bias[context], self.weight[context]
        from_hidden = h @ self.hidden_bias[context]
        if self.visible != "gaussian":
            return (v @ bias)[:, None] + from_hidden + v @ weight @ h.T
        d = v - bias
        own = -0.5 * (self.log_precision[context].exp() * d.square()).sum(-1)
        return own[:, None] + from_hidden + d @ weight @ h.T

    def log_partition(self, context: int) -> Tensor:
        """log Z: a sum over all states, the Gaussian layer integrated by hand."""
        if self.visible != "gaussian":
            v = _states(self.visible, NUM_VISIBLE).to(self.weight)
            return self.log_joint(v, context).logsumexp((0, 1))
        h, precision = self.hidden_states(), self.log_precision[context].exp()
        pull = (h @ self.weight[context].T).square() / precision
        volume = 0.5 * (2 * math.pi / precision).log().sum()
        return (h @ self.hidden_bias[context] + 0.5 * pull.sum(-1) + volume).logsumexp(0)

    def nll(self, v: Tensor, contexts: Tensor) -> Tensor:
        """Negative log-likelihood of rows, each under the machine of its context."""
        total = v.new_zeros(())
        for context in range(self.num):
            rows = v[contexts == context]
            if len(rows):
                log_p = self.log_joint(rows, context).logsumexp(1) - self.log_partition(context)
                total = total - log_p.sum()
        return total

    def gradient(self, objective: Tensor) -> Tensor:
        """Of a scalar by all parameters, as one vector."""
        found = torch.autograd.grad(objective, self.leaves, allow_unused=True)
        pairs = zip(found, self.leaves, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])

    def sample(self, contexts: Tensor, seed: int = 1) -> Tensor:
        """A row for every context of a list, exact."""
        torch.manual_seed(seed)
        return self.condition(contexts).sample()


def _states(family: str, size: int) -> Tensor:
    low = -1.0 if family == "ising" else 0.0
    return torch.tensor(list(itertools.product([low, 1.0], repeat=size)), dtype=torch.float64)


def empty_guide(*args: object) -> None:
    pass


def largest_z(draws: list[Tensor], expected: Tensor) -> float:
    """Standard errors between the mean of draws and what is expected, the largest one."""
    stack = torch.stack(draws)
    error = stack.std(0) / math.sqrt(len(stack))
    # A parameter without noise must be right to rounding.
    return ((stack.mean(0) - expected) / error.clamp(min=1e-9)).abs().max().item()
