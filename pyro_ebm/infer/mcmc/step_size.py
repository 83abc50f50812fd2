# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Step sizes that are tuned to an acceptance probability."""

import torch
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor

__all__ = ["StepSize"]


class StepSize:
    """A step size for every element of a batch, tuned by dual averaging and then frozen.

    Nothing is read from the device while tuning: the step sizes are a tensor throughout.

    :param Tensor start: the first step sizes, positive, of the shape of the batch.
    :param float target_accept_prob: the mean acceptance probability to reach.

    **References**

    [1] *The No-U-Turn Sampler: Adaptively Setting Path Lengths in Hamiltonian Monte Carlo*,
    Matthew Hoffman, Andrew Gelman (2014)
    """

    def __init__(self, start: Tensor, target_accept_prob: float) -> None:
        self.value = start
        self._target = target_accept_prob
        self._scheme = DualAveraging(prox_center=start.log())
        self._is_tuned = False

    def update(self, accept_prob: Tensor) -> None:
        """Take the acceptance probabilities of one step into account.

        :param Tensor accept_prob: shape ``chains + batch``.
        """
        mean = accept_prob.reshape(-1, *self.value.shape).mean(0).to(self.value.dtype)
        self._scheme.step(self._target - mean)
        self.value = torch.exp(self._scheme.get_state()[0])
        self._is_tuned = True

    def freeze(self) -> None:
        """Settle on the average of what was tried."""
        if self._is_tuned:
            self.value = torch.exp(self._scheme.get_state()[1])
            self._is_tuned = False
