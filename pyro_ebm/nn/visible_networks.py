# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The networks of a visible layer by themselves, and a copy of them that stays as it is."""

import copy
from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from pyro_ebm.nn.networks import freeze

__all__ = ["FrozenNetworks", "VisibleNetworks"]


class VisibleNetworks(nn.Module):
    """From a context to what the networks of the visible layer give.

    :param trunk: from contexts to what the networks read; None if they read contexts.
    :param networks: networks by name.
    """

    def __init__(self, trunk: nn.Module | None, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.networks = nn.ModuleDict(networks)

    def forward(self, context: Tensor) -> dict[str, Tensor]:
        """What each network gives, shape ``(..., entries)``, by name."""
        features = context if self.trunk is None else self.trunk(context)
        return {name: network(features) for name, network in self.networks.items()}


class FrozenNetworks(VisibleNetworks):
    """A copy of networks that gives the same numbers for ever, whatever becomes of the networks.

    Always in evaluation mode: units that are dropped at random, or statistics of batches, would move it.

    :param networks: the networks.
    """

    def __init__(self, networks: VisibleNetworks) -> None:
        own = copy.deepcopy(networks)
        super().__init__(own.trunk, dict(own.networks.items()))
        freeze(self)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)
