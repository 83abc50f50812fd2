# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The upper layers of a deep Boltzmann machine given its visible layer, as inputs of a network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_ebm.distributions import DBM, units
from pyro_ebm.distributions.units import Unit
from pyro_ebm.training.finetuning.layers import MeanLayer

__all__ = ["MeanFieldInputs"]

#: Rows that are iterated at once.
_CHUNK_ROWS = 4096


class MeanFieldInputs(nn.Module):
    r"""The means of :math:`q(h_2 | v), \dots, q(h_L | v)` one after the other, by the mean field of a deep
    Boltzmann machine (:meth:`~pyro_ebm.distributions.DBM.mean_field`).

    The machine's parameters are buffers: what a classifier gets as an extra input stays fixed while it is
    trained.

    :param DBM dbm: the machine; its parameters are copied.
    :param int max_updates: largest number of updates of all layers.
    :param float tolerance: a row is done when an update changes no natural parameter by more.
    :raises ValueError: for less than two hidden layers or impossible options.
    """

    def __init__(self, dbm: DBM, *, max_updates: int = 200, tolerance: float = 1e-4) -> None:
        super().__init__()
        if dbm.depth < 2:
            raise ValueError(f"extra inputs need two hidden layers, got {dbm.depth}")
        if not isinstance(max_updates, int) or max_updates < 1:
            raise ValueError(f"max_updates must be a whole number >= 1, got {max_updates!r}")
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be a number >= 0, got {tolerance!r}")
        self.max_updates = max_updates
        self.tolerance = tolerance
        # The families; their tensors are the buffers, which move with the network.
        self._units = dbm.detach().units
        for number, weight in enumerate(dbm.weights):
            self.register_buffer(f"weight_{number}", weight.detach().clone())
        for number, unit in enumerate(dbm.units):
            for name, value in unit.parameters.items():
                self.register_buffer(f"layer_{number}_{name}", value.detach().clone())
        self._has_offsets = dbm._offsets is not None
        for number, offset in enumerate(dbm.offsets if self._has_offsets else ()):
            self.register_buffer(f"offset_{number}", offset.detach().clone())

    @classmethod
    def of_layers(cls, layers: Sequence[MeanLayer]) -> "MeanFieldInputs":
        """Of the machine whose hidden layers, weights and biases are those of some layers of a network."""
        first = layers[0].weight.detach()
        # The mean field given v does not ask what v is.
        visible = units.Bernoulli(first.new_zeros(len(first)), validate_args=False)
        hidden = [layer.units.forward() for layer in layers]
        weights = [layer.weight for layer in layers]
        return cls(DBM([visible, *hidden], weights, validate_args=False))

    def machine(self) -> DBM:
        """The machine."""
        depth = len(self._units) - 1
        offsets = None
        if self._has_offsets:
            offsets = [self.get_buffer(f"offset_{number}") for number in range(depth + 1)]
        return DBM(
            [self._unit(number) for number in range(depth + 1)],
            [self.get_buffer(f"weight_{number}") for number in range(depth)],
            offsets=offsets,
            validate_args=False,
        )

    def _unit(self, number: int) -> Unit:
        unit = self._units[number]
        return unit.replace(
            **{name: self.get_buffer(f"layer_{number}_{name}") for name in unit.parameters}
        )

    @torch.no_grad()
    def forward(self, v: Tensor) -> Tensor:
        """The means, shape ``(rows, H2 + ... + HL)``.

        :param Tensor v: shape ``(rows, V)``.
        """
        dbm = self.machine()
        parts = []
        for rows in v.split(_CHUNK_ROWS):
            found = dbm.mean_field(rows, max_updates=self.max_updates, tolerance=self.tolerance)
            parts.append(torch.cat(found.means[1:], -1))
        return torch.cat(parts)
