# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A mixture density network (Bishop, 1994) for y of few dimensions."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from pyro_ebm.predictive import GaussianMixture

__all__ = ["MixtureDensityNetwork", "fit_mdn"]


class MixtureDensityNetwork(nn.Module):
    """A mixture of K normal densities with diagonal covariance, all of it functions of x.

    :param int num_context: entries of x.
    :param int num_outputs: entries V of y.
    :param int num_components: K.
    :param hidden_sizes: sizes of the hidden layers.
    :param float min_std: least standard deviation of a component: without one the likelihood has no bound.
    """

    def __init__(
        self,
        num_context: int,
        num_outputs: int,
        num_components: int,
        hidden_sizes: Sequence[int] = (32, 32),
        min_std: float = 1e-3,
    ) -> None:
        super().__init__()
        self.min_std = min_std
        self.shape = num_components, num_outputs
        layers: list[nn.Module] = []
        for size in hidden_sizes:
            layers += [nn.Linear(num_context, size), nn.SiLU()]
            num_context = size
        width = num_components * (1 + 2 * num_outputs)
        self.network = nn.Sequential(*layers, nn.Linear(num_context, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of weights, shape ``(rows, K)``; means and stds, shape ``(rows, K, V)``."""
        k, v = self.shape
        logits, loc, raw = self.network(x).split([k, k * v, k * v], -1)
        std = self.min_std + nn.functional.softplus(raw)
        return torch.log_softmax(logits, -1), loc.unflatten(-1, (k, v)), std.unflatten(-1, (k, v))

    def log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        """log p(y | x), shape ``(rows,)``."""
        log_weight, loc, std = self(x)
        z = (y.unsqueeze(-2) - loc) / std
        component = -0.5 * (z.square() + math.log(2.0 * math.pi)) - std.log()
        return torch.logsumexp(log_weight + component.sum(-1), -1)

    @torch.no_grad()
    def marginals(self, x: Tensor) -> GaussianMixture:
        """The marginal distributions of y, mixtures of batch shape ``(rows, V)``."""
        log_weight, loc, std = self(x)
        weights = log_weight.exp().movedim(-1, 0).unsqueeze(-1)
        return GaussianMixture(loc.movedim(-2, 0), std.movedim(-2, 0), weights)

    @torch.no_grad()
    def sample(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """One y a row, shape ``(rows, V)``."""
        log_weight, loc, std = self(x)
        index = torch.multinomial(log_weight.exp(), 1, generator=generator).unsqueeze(-1)
        loc, std = (
            part.gather(1, index.expand(-1, 1, self.shape[1])).squeeze(1) for part in (loc, std)
        )
        return loc + std * torch.empty_like(loc).normal_(generator=generator)


def fit_mdn(
    model: MixtureDensityNetwork,
    y: Tensor,
    x: Tensor,
    *,
    num_steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    generator: Generator | None = None,
) -> MixtureDensityNetwork:
    """Maximum likelihood by Adam, the rate falling to zero along a cosine.

    :param MixtureDensityNetwork model: the model, which is changed.
    :param Tensor y: shape ``(rows, V)``.
    :param Tensor x: shape ``(rows, num_context)``.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        rows = torch.randint(len(y), (batch_size,), generator=generator, device=y.device)
        optimizer.zero_grad()
        (-model.log_prob(y[rows], x[rows]).mean()).backward()
        optimizer.step()
        schedule.step()
    return model
