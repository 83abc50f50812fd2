# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Images of a deep machine as tensors, by name and layer."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import DBM, MeanField
from pyro_ebm.infer import completions
from pyro_ebm.training.tensorboard.pictures import levels, tile, weight_images

__all__ = [
    "activation_maps",
    "chain_image",
    "completion_image",
    "field_of",
    "filter_images_by_layer",
    "reconstruction_image",
]

#: Of the mean field that pictures show.
_MAX_UPDATES, _TOLERANCE = 200, 1e-3


def field_of(dist: DBM, rows: Tensor) -> MeanField:
    """The mean field of rows that pictures and histograms show."""
    return dist.mean_field(rows, max_updates=_MAX_UPDATES, tolerance=_TOLERANCE)


def filter_images_by_layer(dist: DBM, num_filters: int, shape: Sequence[int]) -> dict[str, Tensor]:
    r"""What the units of every layer look for in the pixels: columns of :math:`W_1 \cdots W_l`, those of
    largest norm, by the name of the layer."""
    found = {}
    for layer in range(1, dist.depth + 1):
        product = reduce(torch.matmul, dist.weights[:layer])
        found[f"h{layer}"] = tile(weight_images(product, num_filters), shape)
    return found


def activation_maps(dist: DBM, field: MeanField) -> dict[str, Tensor]:
    """Means of every hidden layer given rows, a line a row, by the name of the layer."""
    return {
        f"h{layer}": levels(unit, mean).unsqueeze(0)
        for layer, (unit, mean) in enumerate(zip(dist.units[1:], field.means, strict=True), start=1)
    }


def chain_image(dist: DBM, chains: Tensor, shape: Sequence[int]) -> Tensor:
    """The visible means of chains given the means of the odd layers; the chains stay where they are.

    :param Tensor chains: states of the even layers, one after the other.
    """
    machine = dist.bipartite()
    odd = machine.hidden.mean(machine.hidden_field(chains))
    return tile(levels(dist.units[0], _visible_mean(dist, dist.split_odd(odd)[0])), shape)


def reconstruction_image(dist: DBM, rows: Tensor, field: MeanField, shape: Sequence[int]) -> Tensor:
    """Rows, and below them their means given the mean field of the lowest hidden layer."""
    both = torch.cat([rows, _visible_mean(dist, field.means[0])])
    return tile(levels(dist.units[0], both), shape, num_columns=len(rows))


def completion_image(
    dist: DBM, rows: Tensor, given: Tensor, generator: Generator, shape: Sequence[int]
) -> Tensor:
    """Rows, and below them the same with the entries that are not given drawn by the machine.

    :param Tensor given: boolean, shape ``(V,)``.
    :param torch.Generator generator: the source of random bits.
    """
    machine = dist.bipartite()
    others = machine.visible.size - rows.shape[1]
    mask = torch.cat([given, given.new_zeros(others)])
    value = torch.cat([rows, rows.new_zeros(len(rows), others)], -1)
    states = completions(machine, mask, value, generator=generator)
    mean = _visible_mean(dist, dist.split_odd(states.hidden.squeeze(0))[0])
    both = torch.cat([rows, torch.where(given, rows, mean)])
    return tile(levels(dist.units[0], both), shape, num_columns=len(rows))


def _visible_mean(dist: DBM, first: Tensor) -> Tensor:
    """Means of the visible layer given states or means of the lowest hidden one."""
    return dist.units[0].mean(dist.field(0, [first]))
