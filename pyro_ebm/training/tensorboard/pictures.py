# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Images of a machine as tensors, from its parameters and from rows that are given."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.units import Unit
from pyro_ebm.infer import completions

__all__ = [
    "activation_map",
    "chain_images",
    "completion_images",
    "filter_images",
    "levels",
    "tile",
    "weight_images",
]

#: Grey level of the lines between tiles.
_LINE = 0.5


def tile(images: Tensor, image_shape: Sequence[int], num_columns: int | None = None) -> Tensor:
    """Images in one, with a grey line of one pixel around each.

    :param Tensor images: levels in [0, 1], shape ``(N, V)``.
    :param image_shape: ``(height, width)``, or ``(channels, height, width)`` with 1 or 3 channels.
    :param int num_columns: tiles in a row; about the square root of N if None.
    :returns: shape ``(channels, height, width)``.
    """
    channels, height, width = (1, *image_shape)[-3:]
    columns = num_columns or math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    levels = images.new_full((rows * columns, channels, height + 1, width + 1), _LINE)
    levels[: len(images), :, :-1, :-1] = images.reshape(-1, channels, height, width)
    grid = levels.reshape(rows, columns, channels, height + 1, width + 1)
    grid = grid.permute(2, 0, 3, 1, 4).reshape(channels, rows * (height + 1), -1)
    return torch.nn.functional.pad(grid, (1, 0, 1, 0), value=_LINE)


def levels(unit: Unit, x: Tensor) -> Tensor:
    """Means of a layer as levels in [0, 1]: on the scale of its states, or of the values themselves."""
    try:
        states = unit.unit_states()
    except ValueError:
        states = x
    low, high = states.amin(), states.amax()
    span = (high - low).clamp(min=torch.finfo(x.dtype).tiny)
    return ((x - low) / span).clamp(0.0, 1.0)


def filter_images(dist: RBM, num_filters: int) -> Tensor:
    """Weights of the hidden units of largest norm, on one scale that is symmetric around mid-grey.

    :param RBM dist: the machine.
    :param int num_filters: units that are shown at most.
    :returns: levels in [0, 1], shape ``(filters, V)``.
    """
    return weight_images(dist.weight, num_filters)


def weight_images(weight: Tensor, num_filters: int) -> Tensor:
    """Columns of a matrix of largest norm, see :func:`filter_images`.

    :param Tensor weight: shape ``(V, units)``.
    :param int num_filters: columns that are shown at most.
    :returns: levels in [0, 1], shape ``(filters, V)``.
    """
    weight = weight.T
    order = weight.norm(dim=1).argsort(descending=True, stable=True)[:num_filters]
    limit = weight.abs().max().clamp(min=torch.finfo(weight.dtype).tiny)
    return 0.5 + 0.5 * weight[order] / limit


def activation_map(dist: RBM, rows: Tensor) -> Tensor:
    """Mean hidden states of rows as an image, one row a row of the data.

    :returns: levels in [0, 1], shape ``(1, rows, H)``.
    """
    mean = dist.hidden.mean(dist.hidden_field(rows))
    return levels(dist.hidden, mean).unsqueeze(0)


def chain_images(dist: RBM, chains: Tensor) -> Tensor:
    """The visible means of chains given their mean hidden states; the chains stay where they are.

    :returns: levels in [0, 1], shape ``(chains, V)``.
    """
    mean = dist.hidden.mean(dist.hidden_field(chains))
    return levels(dist.visible, dist.visible.mean(dist.visible_field(mean)))


def completion_images(dist: RBM, rows: Tensor, given: Tensor, generator: Generator) -> Tensor:
    """Rows, and the same with the entries that are not given drawn by the machine.

    Shown are the means of the free units given the hidden units of the draw.

    :param RBM dist: the machine.
    :param Tensor rows: visible states, shape ``(rows, V)``.
    :param Tensor given: boolean, shape ``(V,)``.
    :param torch.Generator generator: the source of random bits.
    :returns: levels in [0, 1], shape ``(2 * rows, V)``: the rows, then their completions.
    """
    states = completions(dist, given, rows, generator=generator)
    mean = dist.visible.mean(dist.visible_field(states.hidden.squeeze(0)))
    completed = torch.where(given, rows, mean)
    return levels(dist.visible, torch.cat([rows, completed]))
