# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The parameters of a visible layer that is an input and the label of its class."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.distributions import units
from pyro_ebm.distributions.units import Unit
from pyro_ebm.nn.param_store import LocalModule
from pyro_ebm.nn.unit_parameters import UnitParameters

__all__ = ["LabelledUnits"]


class LabelledUnits(LocalModule):
    r"""Owns the parameters of the entries of an input, followed by a one-hot group for the class; calling
    it gives the :class:`~pyro_ebm.distributions.units.Mixed` layer of both.

    It has the interface of :class:`~pyro_ebm.nn.unit_parameters.UnitParameters`, of the family "mixed".

    :param str family: family of the input, a name of :data:`~pyro_ebm.nn.unit_parameters.FAMILIES`.
    :param int size: entries of the input.
    :param int num_classes: states of the label.
    :param options: options of the family of the input.
    :raises ValueError: for unknown families, options or impossible sizes.
    """

    family = "mixed"

    def __init__(
        self,
        family: str,
        size: int,
        num_classes: int,
        options: Mapping[str, Any] | None = None,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.inputs = UnitParameters(family, size, options, **factory)
        self.labels = UnitParameters(
            "categorical", num_classes, {"num_states": num_classes}, **factory
        )
        self.sizes = [size, num_classes]

    @property
    def options(self) -> dict[str, Any]:
        """The blocks, as a conditional model describes those of mixed units."""
        parts = zip((self.inputs, self.labels), self.sizes, strict=True)
        return {
            "blocks": [
                {"family": b.family, "size": n, "options": dict(b.options)} for b, n in parts
            ]
        }

    def forward(self) -> Unit:
        """The layer with the current parameters."""
        return units.Mixed([self.inputs(), self.labels()])

    @torch.no_grad()
    def assign(self, unit: Unit) -> None:
        """Copy the parameters of a mixed layer of the same blocks."""
        assert isinstance(unit, units.Mixed)
        for own, block in zip((self.inputs, self.labels), unit.blocks, strict=True):
            own.assign(block)

    @torch.no_grad()
    def tilt(self, field: Tensor) -> None:
        """Absorb a field in place.

        :param Tensor field: shape ``(size,)``.
        """
        for block, part in zip((self.inputs, self.labels), field.split(self.sizes), strict=True):
            block.tilt(part)

    @torch.no_grad()
    def init_from_data(self, data: Tensor) -> None:
        """Set the layer, without the weights, to the means (and variances) of the data's columns.

        :param Tensor data: shape ``(rows, size)``; rows whose label is all zero count for the input only.
        """
        inputs, labels = data.split(self.sizes, -1)
        self.inputs.init_from_data(inputs)
        labels = labels[labels.any(-1)]
        if len(labels):
            self.labels.init_from_data(labels)

    @torch.no_grad()
    def accumulate_gradient(self, gradient: Mapping[str, Tensor], scale: float) -> None:
        """Add ``scale`` times a gradient by the layer's own parameters to ``.grad``."""
        for prefix, block in (("0_", self.inputs), ("1_", self.labels)):
            own = {n.removeprefix(prefix): g for n, g in gradient.items() if n.startswith(prefix)}
            block.accumulate_gradient(own, scale)
