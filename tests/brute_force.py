# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Boltzmann machines from the definition of their energy, without the library's formulas.

Everything here is a sum over all states (itertools) or a quadrature (Gauss-Legendre panels) of
exp(-E), in numpy, with E written unit by unit. Parameters are flat dictionaries of arrays without a
batch shape, ``{"weight", "visible.<name>", "hidden.<name>", "visible_offset", "hidden_offset"}``, and
may be complex: E is a polynomial in them, so that a step of 1e-30 i gives exact derivatives.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

Array = np.ndarray

#: Quadrature: [low, high] of each continuous family and nodes an interval, exact to rounding for
#: precisions between about 0.7 and 2.5 and means within about 3 of zero.
_RANGE = {"gaussian": (-13.0, 13.0), "low_rank": (-13.0, 13.0), "relu": (0.0, 13.0)}
_NODES = {"gaussian": 66, "low_rank": 66, "relu": 48}


@dataclass(frozen=True)
class Layer:
    """One layer: the name of the family, its parameters, and M for counts.

    A layer of the family "mixed" has the families and counts of its blocks; the parameters of block i
    are named "i_name".
    """

    family: str
    parameters: dict[str, Array]
    total_count: int = 0
    kinds: tuple[tuple[str, int], ...] = ()

    @property
    def blocks(self) -> "list[Layer]":
        """The layers of one family that a mixed one is made of."""
        if not self.kinds:
            return []
        own: list[dict[str, Array]] = [{} for _ in self.kinds]
        for name, value in self.parameters.items():
            number, key = name.split("_", 1)
            own[int(number)][key] = value
        return [Layer(kind[0], p, kind[1]) for kind, p in zip(self.kinds, own, strict=True)]

    @property
    def size(self) -> int:
        if self.family == "mixed":
            return sum(block.size for block in self.blocks)
        if self.family == "low_rank":
            return self.parameters["cov_factor"].shape[0]
        return max(p.size for p in self.parameters.values())

    @property
    def is_continuous(self) -> bool:
        """Whether any entry is."""
        return self.family in _RANGE or any(block.is_continuous for block in self.blocks)

    def split(self, x: Array) -> "list[tuple[Layer, Array]]":
        """The blocks of a mixed layer with their columns of states."""
        ends = np.cumsum([block.size for block in self.blocks])
        return list(zip(self.blocks, np.split(x, ends[:-1], axis=1), strict=True))


@dataclass(frozen=True)
class Machine:
    """Two layers, the weight between them and offsets."""

    visible: Layer
    hidden: Layer
    weight: Array
    visible_offset: Array
    hidden_offset: Array

    def swapped(self) -> "Machine":
        return Machine(
            self.hidden, self.visible, self.weight.T, self.hidden_offset, self.visible_offset
        )


def layer_energy(layer: Layer, x: Array) -> Array:
    """u(x) of every row of x, one term a unit."""
    total = np.zeros(len(x), dtype=complex)
    if layer.family in ("bernoulli", "ising", "categorical", "multinomial"):
        bias = layer.parameters["bias"].reshape(-1)
        for i in range(layer.size):
            total -= bias[i] * x[:, i]
    if layer.family == "multinomial":
        for row, counts in enumerate(x):
            ways = math.factorial(layer.total_count)
            for count in counts:
                ways //= math.factorial(round(count))
            total[row] -= math.log(ways)
    if layer.family == "gaussian":
        for i in range(layer.size):
            deviation = x[:, i] - layer.parameters["loc"][i]
            total += deviation * layer.parameters["precision"][i] * deviation / 2
    if layer.family == "low_rank":
        factor = layer.parameters["cov_factor"]
        covariance = np.diag(1 / layer.parameters["precision"]) + factor @ factor.T
        precision = np.linalg.inv(covariance)
        deviation = x - layer.parameters["loc"]
        for i, j in itertools.product(range(layer.size), repeat=2):
            total += deviation[:, i] * precision[i, j] * deviation[:, j] / 2
    if layer.family == "mixed":
        for block, part in layer.split(x):
            total += layer_energy(block, part)
    if layer.family == "relu":
        for i in range(layer.size):
            total += layer.parameters["precision"][i] * x[:, i] ** 2 / 2
            total -= layer.parameters["bias"][i] * x[:, i]
    return total


def energy(machine: Machine, v: Array, h: Array) -> Array:
    """E(v, h) for every pair of a row of v and a row of h."""
    total = layer_energy(machine.visible, v)[:, None] + layer_energy(machine.hidden, h)[None, :]
    for i, j in itertools.product(range(v.shape[1]), range(h.shape[1])):
        left = v[:, i] - machine.visible_offset[i]
        right = h[:, j] - machine.hidden_offset[j]
        total -= np.multiply.outer(left * machine.weight[i, j], right)
    return total


def points(layer: Layer, nodes: int | None = None) -> tuple[Array, Array]:
    """All states, or the nodes of a quadrature, of a layer with their weights."""
    if layer.family == "mixed":
        every = [points(block, nodes) for block in layer.blocks]
        rows = itertools.product(*(states for states, _ in every))
        weights = itertools.product(*(w for _, w in every))
        return np.array([np.concatenate(r) for r in rows]), np.array(
            [math.prod(w) for w in weights]
        )
    if layer.is_continuous:
        low, high = _RANGE[layer.family]
        x, w = np.polynomial.legendre.leggauss(nodes or _NODES[layer.family])
        x, w = low + (high - low) * (x + 1) / 2, w * (high - low) / 2
        grid = np.array(list(itertools.product(x, repeat=layer.size)))
        return grid, np.array([math.prod(p) for p in itertools.product(w, repeat=layer.size)])
    if layer.family == "multinomial":
        counts = itertools.product(range(layer.total_count + 1), repeat=layer.size)
        states = np.array([c for c in counts if sum(c) == layer.total_count], dtype=float)
    elif layer.family == "categorical":
        num_states = layer.parameters["bias"].shape[-1]
        groups = itertools.product(np.eye(num_states), repeat=layer.size // num_states)
        states = np.array([np.concatenate(g) for g in groups])
    else:
        values = (-1.0, 1.0) if layer.family == "ising" else (0.0, 1.0)
        states = np.array(list(itertools.product(values, repeat=layer.size)))
    return states, np.ones(len(states))


def log_sum(negative_energy: Array, weights: Array) -> Array:
    """log sum_k w_k exp(-E_k) along the last axis."""
    top = negative_energy.real.max(-1, keepdims=True)
    return np.log((weights * np.exp(negative_energy - top)).sum(-1)) + top[..., 0]


def log_partition(layer: Layer, field: Array) -> complex:
    """Gamma(t) = log sum_x exp(-u(x) + t'x)."""
    x, weights = points(layer)
    return complex(log_sum(-layer_energy(layer, x) + x @ field, weights))


def mean(layer: Layer, field: Array) -> Array:
    """Mean of a layer under a field."""
    x, weights = points(layer)
    exponent = -layer_energy(layer, x).real + x @ field
    p = weights * np.exp(exponent - exponent.max())
    return p @ x / p.sum()


def free_energy(machine: Machine, v: Array) -> Array:
    """F(v) = -log sum_h exp(-E(v, h)) of every row of v."""
    h, weights = points(machine.hidden)
    return -log_sum(-energy(machine, v, h), weights)


def hidden_mean(machine: Machine, v: Array) -> Array:
    """E[h | v] of every row of v."""
    h, weights = points(machine.hidden)
    exponent = -energy(machine, v, h).real
    p = weights * np.exp(exponent - exponent.max(-1, keepdims=True))
    return p @ h / p.sum(-1, keepdims=True)


def hidden_log_prob(machine: Machine, v: Array, h: Array) -> Array:
    """log p(h | v) for every pair of rows."""
    return (-energy(machine, v, h) + free_energy(machine, v)[:, None]).real


def joint(machine: Machine) -> tuple[Array, Array, Array]:
    """Points of both layers and the probabilities of their pairs (quadrature weights included)."""
    # Two continuous layers have the square of the nodes; laws of samples need six digits, not ten.
    nodes = 40 if machine.visible.is_continuous and machine.hidden.is_continuous else None
    v, v_weights = points(machine.visible, nodes)
    h, h_weights = points(machine.hidden, nodes)
    exponent = -energy(machine, v, h).real
    p = np.exp(exponent - exponent.max()) * v_weights[:, None] * h_weights[None, :]
    return v, h, p / p.sum()


def parameters(machine: Machine) -> dict[str, Array]:
    """All parameters by their flat names."""
    flat = {name: getattr(machine, name) for name in ("weight", "visible_offset", "hidden_offset")}
    for side in ("visible", "hidden"):
        for name, value in getattr(machine, side).parameters.items():
            flat[f"{side}.{name}"] = value
    return flat


def with_parameter(machine: Machine, name: str, value: Array) -> Machine:
    """The machine with one parameter replaced, by its flat name."""
    if "." not in name:
        return replace(machine, **{name: value})
    side, key = name.split(".")
    layer = getattr(machine, side)
    return replace(machine, **{side: replace(layer, parameters={**layer.parameters, key: value})})


def derivative(function: Callable[[Array], complex], x: Array) -> Array:
    """Gradient of an analytic function by complex steps, exact to rounding."""
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        shifted = x.astype(complex)
        shifted[index] += 1e-30j
        gradient[index] = np.imag(function(shifted)) / 1e-30
    return gradient
