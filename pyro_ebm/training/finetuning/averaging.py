# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The moving average of a classifier's weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage", "copy_of"]


class WeightAverage:
    r"""An exponential moving average that does not remember where a short run started.

    .. math:: a \leftarrow d_t a + (1 - d_t) w, \qquad d_t = \min(d, (1 + t) / (10 + t))

    :param module: what is averaged.
    :param float decay: d.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.values = copy_of(dict(module.named_parameters()))
        self.num_updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Follow the module by one step."""
        self.num_updates += 1
        decay = min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, parameter in module.named_parameters():
            self.values[name].lerp_(parameter, 1.0 - decay)


def copy_of(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors in memory of their own."""
    return {name: value.detach().clone() for name, value in values.items()}
