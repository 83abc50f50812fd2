# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Rows with missing entries, from the definition: sums and quadratures over what is missing."""

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM
from tests import brute_force
from tests.brute_force import Layer, Machine
from tests.distributions.families import some_states, to_machine


def part_of_layer(layer: Layer, entries: np.ndarray) -> Layer:
    """The layer of the units of one family whose entries are chosen."""
    parameters = layer.parameters
    if layer.family == "categorical":
        groups = entries.reshape(parameters["bias"].shape).all(-1)
        return Layer(layer.family, {"bias": parameters["bias"][groups]})
    if layer.family in ("multinomial", "low_rank"):
        return layer
    return Layer(layer.family, {name: p[entries] for name, p in parameters.items()})


def by_block(layer: Layer, row: np.ndarray) -> list[tuple[Layer, np.ndarray]]:
    """The layers of one family that a layer consists of, with their part of a row."""
    if layer.family != "mixed":
        return [(layer, row)]
    return [(block, part[0]) for block, part in layer.split(row[None])]


def missing_points(layer: Layer, row: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, Any]:
    """States with the observed entries of a row, and the weights of the sum or quadrature."""
    parts = zip(by_block(layer, row), by_block(layer, mask), strict=True)
    every = [_points(block, own, given) for (block, own), (_, given) in parts]
    states = [np.concatenate(p) for p in itertools.product(*(x for x, _ in every))]
    weights = [math.prod(w) for w in itertools.product(*(w for _, w in every))]
    return np.array(states), np.array(weights)


def _points(layer: Layer, row: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, Any]:
    if mask.all():
        return row[None], np.ones(1)
    points, weights = brute_force.points(part_of_layer(layer, ~mask))
    states = np.repeat(row[None], len(points), 0)
    states[:, ~mask] = points
    return states, weights


def log_density_alone(layer: Layer, row: np.ndarray, mask: np.ndarray) -> float:
    """log p of the observed entries under the layer alone, without its weights."""
    total = 0.0
    parts = zip(by_block(layer, row), by_block(layer, mask), strict=True)
    for (block, own), (_, given) in parts:
        if given.any():
            part = part_of_layer(block, given)
            total -= brute_force.layer_energy(part, own[None, given]).real.item()
            total -= brute_force.log_partition(part, np.zeros(part.size)).real
    return total


def log_density(machine: Machine, row: np.ndarray, mask: np.ndarray) -> complex:
    """log of exp(-E) summed over hidden units and missing entries."""
    states, weights = missing_points(machine.visible, row, mask)
    return complex(brute_force.log_sum(-brute_force.free_energy(machine, states), weights))


def log_likelihood(machine: Machine, row: np.ndarray, mask: np.ndarray) -> complex:
    return log_density(machine, row, mask) - log_density(machine, row, np.zeros_like(mask))


def conditional_moments(
    machine: Machine, row: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First and second moments of all entries given the observed ones."""
    states, weights = missing_points(machine.visible, row, mask)
    exponent = -brute_force.free_energy(machine, states).real
    p = weights * np.exp(exponent - exponent.max())
    p /= p.sum()
    return p @ states, p @ states**2


def unit_sizes(layer: Layer) -> list[int]:
    """Entries of every unit."""
    if layer.family == "mixed":
        return [size for block in layer.blocks for size in unit_sizes(block)]
    if layer.family in ("multinomial", "low_rank"):
        return [layer.size]
    size = layer.parameters["bias"].shape[-1] if layer.family == "categorical" else 1
    return [size] * (layer.size // size)


def masks(layer: Layer, count: int) -> Tensor:
    """Masks of some rows, all different as far as they can be: nothing and everything are the first."""
    sizes = unit_sizes(layer)
    patterns = 2 ** len(sizes)
    order = [0, patterns - 1, *range(1, patterns - 1)]
    rows = []
    for number in range(count):
        bits = order[number % patterns]
        units = [bool(bits >> i & 1) for i in range(len(sizes))]
        rows.append(np.repeat(units, sizes))
    return torch.from_numpy(np.array(rows))


def rows_of(rbm: RBM, count: int) -> tuple[Tensor, Tensor]:
    """Values with NaN at missing places, and masks, of some rows."""
    layer = to_machine(rbm, (0,) * len(rbm.batch_shape)).visible
    observed = masks(layer, count)
    values = torch.from_numpy(np.concatenate([some_states(layer, 1) for _ in range(count)]))
    return torch.where(observed, values, torch.nan), observed
