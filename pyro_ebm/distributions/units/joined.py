# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Several layers as one."""

from collections.abc import Sequence

import torch
from torch import Size

from pyro_ebm.distributions.units.base import Unit
from pyro_ebm.distributions.units.continuous import Gaussian, ReLU
from pyro_ebm.distributions.units.discrete import Bernoulli, Categorical, Ising
from pyro_ebm.distributions.units.mixed import Mixed
from pyro_ebm.ops.shapes import broadcast_shapes

__all__ = ["join_units"]

#: Families whose units are independent of each other, so that two layers of one family are one.
_SEPARABLE = (Bernoulli, Ising, Categorical, Gaussian, ReLU)


def join_units(layers: Sequence[Unit]) -> Unit:
    """Layers one after the other as one layer.

    Neighbours of one family become one layer of it, which costs less than two; what remains is a
    :class:`~pyro_ebm.distributions.units.Mixed` layer.

    :param layers: layers of any families, of one dtype and device, whose batch shapes broadcast.
    :raises ValueError: if there is none, or shapes, dtypes or devices do not fit.
    """
    joined: list[Unit] = []
    for unit in (part for layer in layers for _, part in layer.parts()):
        if joined and _are_one_family(joined[-1], unit):
            joined[-1] = _joined(joined[-1], unit)
        else:
            joined.append(unit)
    return joined[0] if len(joined) == 1 else Mixed(joined)


def _are_one_family(first: Unit, second: Unit) -> bool:
    if type(first) is not type(second) or not isinstance(first, _SEPARABLE):
        return False
    if isinstance(first, Categorical):
        same_states = first.size // first.num_units == second.size // second.num_units
        return same_states and first.dtype == second.dtype
    return first.dtype == second.dtype and first.device == second.device


def _joined(first: Unit, second: Unit) -> Unit:
    """One layer of two of a family. A parameter has the batch axes that it had in one of them: the precision
    of layers whose locations alone differ by row stays that of all rows."""
    axis = -first.parameter_dim
    joined = {}
    for name in first.parameters:
        parts = []
        for unit in (first, second):
            own = unit.parameters[name]
            event = Size((unit.num_units, *unit._shape[len(unit._shape) + axis + 1 :]))
            batch = own.shape[: own.dim() - len(event)]
            parts.append((own, batch, event))
        try:
            shape = broadcast_shapes([batch for _, batch, _ in parts])
        except RuntimeError as error:
            got = [tuple(batch) for _, batch, _ in parts]
            raise ValueError(f"batch shapes of the layers do not broadcast: {got}") from error
        joined[name] = torch.cat([own.expand(*shape, *event) for own, _, event in parts], axis)
    return first.replace(**joined)
