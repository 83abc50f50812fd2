# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Where the models of ``sequence_machines.py`` start: autoregressions by least squares, and blocks of
frames that are divided among them as k-means divides points."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

__all__ = ["Autoregressions", "divide", "weighted"]

#: Added to the diagonal of the normal equations (in frames) and of covariances.
_RIDGE, _FLOOR = 1.0, 1e-4


@dataclass(frozen=True)
class Autoregressions:
    """K affine maps from a history to a frame, with the covariance of what is left.

    :param Tensor weight: shape ``(K, channels, order * channels)``.
    :param Tensor bias: shape ``(K, channels)``.
    :param Tensor covariance: shape ``(K, channels, channels)``.
    """

    weight: Tensor
    bias: Tensor
    covariance: Tensor

    @property
    def num_regimes(self) -> int:
        """K."""
        return len(self.weight)

    @property
    def order(self) -> int:
        """Frames of a history."""
        return self.weight.shape[-1] // self.weight.shape[-2]

    def log_prob(self, history: Tensor, frames: Tensor) -> Tensor:
        """Normal log-densities, shape ``frames.shape[:-1] + (K,)``."""
        loc = torch.einsum("kvf,...f->...kv", self.weight, history) + self.bias
        law = torch.distributions.MultivariateNormal(loc, self.covariance, validate_args=False)
        return law.log_prob(frames.unsqueeze(-2))


def weighted(history: Tensor, frames: Tensor, shares: Tensor) -> Autoregressions:
    """Weighted least squares.

    :param Tensor history: shape ``(rows, order * channels)``.
    :param Tensor frames: shape ``(rows, channels)``.
    :param Tensor shares: weights of the rows, shape ``(rows, K)``, one autoregression each.
    """
    own = [_least_squares(history, frames, share) for share in shares.unbind(-1)]
    return Autoregressions(*(torch.cat(parts) for parts in zip(*own, strict=True)))


def _least_squares(history: Tensor, frames: Tensor, share: Tensor) -> tuple[Tensor, ...]:
    design = torch.cat([history, history.new_ones(len(history), 1)], -1).double()
    target, weight = frames.double(), share.double().unsqueeze(-1)
    gram = design.T @ (weight * design) + _RIDGE * torch.eye(design.shape[-1]).double()
    solution = torch.linalg.solve(gram, design.T @ (weight * target)).T
    left = target - design @ solution.T
    covariance = left.T @ (weight * left) / weight.sum().clamp_min(1e-6)
    covariance = covariance + _FLOOR * torch.eye(target.shape[-1]).double()
    parts = (solution[:, :-1], solution[:, -1], covariance)
    return tuple(part.to(frames).unsqueeze(0) for part in parts)


def divide(
    history: Tensor,
    frames: Tensor,
    num_regimes: int,
    generator: Generator,
    *,
    restarts: int = 10,
    rounds: int = 15,
) -> Autoregressions:
    """Autoregressions of blocks: each block goes to the one that makes it most probable, each autoregression
    is fitted to its blocks, in turns; the best of some random starts.

    :param Tensor history: shape ``(blocks, frames, order * channels)``.
    :param Tensor frames: shape ``(blocks, frames, channels)``.
    :param int num_regimes: K.
    :raises ValueError: if there are fewer blocks than regimes.
    """
    if len(frames) < num_regimes:
        raise ValueError(f"{num_regimes} regimes need as many blocks, got {len(frames)}")
    best: tuple[float, Autoregressions] | None = None
    for _ in range(restarts if num_regimes > 1 else 1):
        first = torch.randperm(len(frames), generator=generator)[:num_regimes]
        found = _fit(history[first], frames[first], torch.arange(num_regimes), num_regimes)
        for _ in range(rounds):
            score = found.log_prob(history, frames).sum(-2)
            owner = score.argmax(-1)
            owner = _without_empty(owner, score.amax(-1).argsort(), num_regimes)
            found = _fit(history, frames, owner, num_regimes)
        total = found.log_prob(history, frames).sum(-2).amax(-1).sum().item()
        if best is None or total > best[0]:
            best = total, found
    assert best is not None
    return best[1]


def _without_empty(owner: Tensor, worst_first: Tensor, num_regimes: int) -> Tensor:
    """A regime without a block gets the one that suits its own regime least, of a regime that has others."""
    owner = owner.clone()
    for k in range(num_regimes):
        counts = torch.bincount(owner, minlength=num_regimes)
        if counts[k] == 0:
            taken = next(block for block in worst_first.tolist() if counts[owner[block]] > 1)
            owner[taken] = k
    return owner


def _fit(history: Tensor, frames: Tensor, owner: Tensor, num_regimes: int) -> Autoregressions:
    shares = torch.nn.functional.one_hot(owner, num_regimes).to(frames)
    shares = shares.unsqueeze(1).expand(-1, frames.shape[1], -1)
    return weighted(history.flatten(0, 1), frames.flatten(0, 1), shares.flatten(0, 1))
