# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Laws p(y | x) to learn, with densities that are known: for ``nbm_regression.py``.

x is uniform on [-1.5, 1.5], y has one or more outputs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.distributions import Gamma, Normal
from torch.nn.functional import logsigmoid

__all__ = ["LIMIT", "TARGETS", "Target", "inputs"]

#: x is between minus this and this.
LIMIT = 1.5


@dataclass(frozen=True)
class Target:
    """A law p(y | x): branches, one choice of which holds for all outputs, and noise by output.

    :param centres: from x of shape ``(rows, 1)`` and the number of an output to the branches' centres,
        shape ``(branches, rows)``.
    :param log_weights: from x to log-probabilities of the branches, shape ``(branches, rows)``.
    :param std: from x to the noise's standard deviation, shape ``(rows,)``.
    :param int gamma: shape of the Gamma variable that the noise is, centred; None for normal noise.
    """

    centres: Callable[[Tensor, int], Tensor]
    log_weights: Callable[[Tensor], Tensor]
    std: Callable[[Tensor], Tensor]
    gamma: int | None = None

    def sample(self, x: Tensor, outputs: int, generator: Generator) -> Tensor:
        """Draws of y, shape ``(rows, outputs)``."""
        weights = self.log_weights(x).exp().T
        branch = torch.multinomial(weights, 1, generator=generator).T
        noise = self._noise((outputs, len(x)), generator)
        centres = [self.centres(x, k).gather(0, branch)[0] for k in range(outputs)]
        return (torch.stack(centres) + self.std(x) * noise).T

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-density of every row, shape ``(rows,)``."""
        total = self.log_weights(x)
        for k in range(y.shape[1]):
            z = (y[:, k] - self.centres(x, k)) / self.std(x)
            total = total + self._noise_log_prob(z) - self.std(x).log()
        return torch.logsumexp(total, 0)

    def _noise(self, shape: tuple[int, int], generator: Generator) -> Tensor:
        """Noise of mean zero and variance one."""
        if self.gamma is None:
            return torch.randn(shape, generator=generator)
        # A sum of exponential variables, as torch's draws of Gamma variables take no generator.
        uniform = torch.rand(self.gamma, *shape, generator=generator)
        return (-torch.log1p(-uniform).sum(0) - self.gamma) / math.sqrt(self.gamma)

    def _noise_log_prob(self, z: Tensor) -> Tensor:
        if self.gamma is None:
            return Normal(0.0, 1.0).log_prob(z)
        g = z * math.sqrt(self.gamma) + self.gamma
        density = Gamma(float(self.gamma), 1.0, validate_args=False).log_prob(g.clamp(min=1e-6))
        return torch.where(g > 0.0, density, -torch.inf) + 0.5 * math.log(self.gamma)


def inputs(rows: int, generator: Generator) -> Tensor:
    """Draws of x, shape ``(rows, 1)``."""
    return LIMIT * (2.0 * torch.rand(rows, 1, generator=generator) - 1.0)


def _curve(x: Tensor, k: int) -> Tensor:
    return torch.sin(3.0 * x[:, 0] + k).unsqueeze(0)


def _branches(x: Tensor, k: int) -> Tensor:
    middle, half = 0.5 * torch.sin(2.0 * x[:, 0] + k), 0.35 + 0.3 * x[:, 0].abs()
    return torch.stack([middle - half, middle + half])


def _one_branch(x: Tensor) -> Tensor:
    return torch.zeros(1, len(x))


def _even_branches(x: Tensor) -> Tensor:
    return torch.full((2, len(x)), -math.log(2.0))


def _uneven_branches(x: Tensor) -> Tensor:
    return logsigmoid(torch.stack([-1.5 * x[:, 0], 1.5 * x[:, 0]]))


TARGETS = {
    "skewed": Target(_curve, _one_branch, lambda x: 0.35 + 0.15 * x[:, 0], gamma=3),
    "bimodal": Target(_branches, _even_branches, lambda x: torch.full((len(x),), 0.12)),
    "unequal": Target(_branches, _uneven_branches, lambda x: torch.full((len(x),), 0.12)),
    "heteroscedastic": Target(
        _curve, _one_branch, lambda x: 0.05 + 0.35 * torch.sin(2.0 * x[:, 0]).square()
    ),
}
