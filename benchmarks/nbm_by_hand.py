# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The paper's algorithm for neural Boltzmann machines, written down as it reads: the reference of
``benchmarks.nbm``. One weight matrix a row, and alternating Gibbs steps through all of them."""

import math

import torch
from torch import Generator, Tensor, nn

__all__ = ["LiteralNBM"]

#: Rate of AdamW by visible family, and decay of the networks of mu, P and W.
_RATES = {"gaussian": 5e-4, "ising": 1e-2}
_DECAYS = (0.5, 0.5, 1.0)
_LOG_BOUND = math.log(1e3)


class LiteralNBM(nn.Module):
    """Three networks, 32 Gibbs steps a row from y = mu(x), and one backward pass through F at the data
    minus F at the last state.

    :param int num_context: entries of a context.
    :param int num_visible: V.
    :param int num_hidden: H.
    :param str visible: "gaussian" or "ising".
    :param int num_steps: Gibbs steps an update.
    :param device: device.
    """

    def __init__(
        self,
        num_context: int,
        num_visible: int,
        num_hidden: int,
        visible: str,
        num_steps: int = 32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.ising, self.num_steps = visible == "ising", num_steps
        self.shape = num_visible, num_hidden
        self.loc = self._perceptron(num_context, num_visible)
        self.log_precision = self._perceptron(num_context, num_visible)
        self.weight = nn.Linear(num_context, num_visible * num_hidden)
        self.to(device)
        networks = (self.loc, self.log_precision, self.weight)
        groups = [
            {"params": list(network.parameters()), "weight_decay": decay}
            for network, decay in zip(networks, _DECAYS, strict=True)
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=_RATES[visible])
        self.generator = Generator(device=next(self.parameters()).device).manual_seed(0)

    @staticmethod
    def _perceptron(num_context: int, num_visible: int) -> nn.Module:
        return nn.Sequential(nn.Linear(num_context, 32), nn.ReLU(), nn.Linear(32, num_visible))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mu and P of shape ``(rows, V)``, W of shape ``(rows, V, H)``."""
        loc = self.loc(x)
        if self.ising:
            loc = torch.tanh(loc)
        precision = self.log_precision(x).clamp(-_LOG_BOUND, _LOG_BOUND).exp()
        weight = self.weight(x).view(-1, *self.shape) / self.shape[0] ** 0.5
        return loc, precision, weight

    @staticmethod
    def free_energy(y: Tensor, loc: Tensor, precision: Tensor, weight: Tensor) -> Tensor:
        """F(y) of every row."""
        d = y - loc
        field = torch.bmm(d.unsqueeze(1), weight).squeeze(1)
        hidden = field.abs() + torch.log1p(torch.exp(-2.0 * field.abs()))
        return 0.5 * (precision * d.square()).sum(-1) - hidden.sum(-1)

    @torch.no_grad()
    def sample(self, loc: Tensor, precision: Tensor, weight: Tensor) -> Tensor:
        """The chain of every row."""
        y = loc
        for _ in range(self.num_steps):
            h = self._spins(torch.bmm((y - loc).unsqueeze(1), weight).squeeze(1))
            pull = torch.bmm(weight, h.unsqueeze(2)).squeeze(2)
            if self.ising:
                y = self._spins(precision * loc + pull)
            else:
                noise = torch.empty_like(loc).normal_(generator=self.generator)
                y = loc + pull / precision + noise / precision.sqrt()
        return y

    def _spins(self, field: Tensor) -> Tensor:
        return 2.0 * torch.bernoulli(torch.sigmoid(2.0 * field), generator=self.generator) - 1.0

    def step(self, y: Tensor, x: Tensor) -> None:
        """One update.

        :param Tensor y: states, shape ``(rows, V)``.
        :param Tensor x: contexts, shape ``(rows, num_context)``.
        """
        parts = self(x)
        negative = self.sample(*parts)
        loss = (self.free_energy(y, *parts) - self.free_energy(negative, *parts)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
