# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Gaussian random-walk proposals that learn their scale and covariance in the warm-up."""

import math

import torch
from torch import Tensor

from pyro_ebm.infer.mcmc.step_size import StepSize

__all__ = ["RandomWalk", "covariance_windows"]

#: Draws of the first window that a covariance is estimated from; the next ones are twice as long each.
_FIRST_WINDOW = 50
#: Shares of the warm-up before the first window and after the last, in which only the scale is tuned.
_START, _END = 0.15, 0.15


def covariance_windows(warmup_steps: int) -> list[tuple[int, int]]:
    """First and last transition (excluded) of the windows of a warm-up; none in a short one.

    >>> covariance_windows(1000)
    [(150, 200), (200, 300), (300, 850)]
    """
    first, end = int(_START * warmup_steps), warmup_steps - int(_END * warmup_steps)
    windows = []
    length = _FIRST_WINDOW
    while first + length <= end:
        # The last window takes what is too short for one of its own.
        last = end if first + 3 * length > end else first + length
        windows.append((first, last))
        first, length = last, 2 * length
    return windows


class RandomWalk:
    r"""Proposals :math:`z' = z + s L \epsilon`, for every chain with its own s and L.

    The scale s is tuned to an acceptance probability by dual averaging. L is the Cholesky factor of the
    covariance of the draws in the latest of the windows of the warm-up, shrunk towards its diagonal while
    draws are few. Both are fixed after the warm-up.

    :param Tensor z: where the chains start, shape ``chain_shape + (d,)``.
    :param int warmup_steps: transitions in which it learns.
    :param float target_accept_prob: the mean acceptance probability to reach.
    :param float init_scale: the first scale.
    :param bool adapt_covariance: whether to learn L, which is the identity otherwise.
    """

    def __init__(
        self,
        z: Tensor,
        warmup_steps: int,
        *,
        target_accept_prob: float,
        init_scale: float,
        adapt_covariance: bool,
    ) -> None:
        self._size = z.shape[-1]
        self._target = target_accept_prob
        self._warmup_steps = warmup_steps
        self._windows = covariance_windows(warmup_steps)
        self._adapt_covariance = adapt_covariance
        self._num_calls = 0
        self._scale = StepSize(torch.full_like(z[..., 0], init_scale), target_accept_prob)
        self._factor = torch.eye(self._size, dtype=z.dtype, device=z.device).expand(
            *z.shape, self._size
        )
        self._window: list[Tensor] = []

    @property
    def scale(self) -> Tensor:
        """The scale s, shape ``chain_shape``."""
        return self._scale.value

    def propose(self, z: Tensor) -> Tensor:
        """A proposal for every chain."""
        step = (self._factor @ torch.randn_like(z).unsqueeze(-1)).squeeze(-1)
        return z + self.scale.unsqueeze(-1) * step

    def adapt(self, z: Tensor, accept_prob: Tensor) -> Tensor | None:
        """Learn from a transition of the warm-up; does nothing after it.

        :param Tensor z: where the chains are.
        :param Tensor accept_prob: the acceptance probabilities that led there, shape ``chain_shape``.
        :returns: the means of the draws of a window that ends here, shape of ``z``, None otherwise.
        """
        if self._num_calls >= self._warmup_steps:
            return None
        self._num_calls += 1
        self._scale.update(accept_prob)
        mean = self._collect(z)
        if self._num_calls == self._warmup_steps:
            self._scale.freeze()
        return mean

    def _collect(self, z: Tensor) -> Tensor | None:
        """Take a draw into the window, and close the window if it is full."""
        if not self._windows or self._num_calls <= self._windows[0][0]:
            return None
        self._window.append(z)
        if self._num_calls < self._windows[0][1]:
            return None
        draws = torch.stack(self._window)
        self._window = []
        self._windows.pop(0)
        if self._adapt_covariance:
            self._factor = _factor(draws, self._factor)
            # Gaussian targets have about this optimum; dual averaging starts from it again.
            start = torch.full_like(self.scale, 2.38 / math.sqrt(self._size))
            self._scale = StepSize(start, self._target)
        return draws.mean(0)


def _factor(draws: Tensor, before: Tensor) -> Tensor:
    """Cholesky factor of the covariance of draws, shape ``chain_shape + (d, d)``.

    :param Tensor draws: shape ``(n,) + chain_shape + (d,)``.
    :param Tensor before: the factor so far, kept where draws never moved.
    """
    number, size = draws.shape[0], draws.shape[-1]
    centred = (draws - draws.mean(0)).movedim(0, -2)
    covariance = centred.mT @ centred / (number - 1)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    floor = 1e-6 * before.square().sum(-1)
    share = number / (number + 5.0 * size)
    shrunk = share * covariance + torch.diag_embed((1.0 - share) * variance + floor)
    moved = (variance > 0.0).all(-1)[..., None, None]
    factor, failed = torch.linalg.cholesky_ex(torch.where(moved, shrunk, before @ before.mT))
    return torch.where((failed == 0)[..., None, None], factor, before)
