# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Deep machines of any families and depths, for the library and for brute force over all layers.

The energy is written from its definition, entry by entry, and summed over the states of all layers at once
(one axis of an array a layer), so that nothing here knows of two sides, fields or mean field:

    dbm = random_dbm(("bernoulli", "ising", "categorical"), (3, 2, 2), offsets=True)
    machine = to_deep(dbm)
    log_partition(machine)                                 # log Z
    log_p_star(machine, v)                                 # log p*(v), one number a row
    log_partition(machine, {0: (mask, value)})             # the rest summed out
    states, p = joint(machine)                             # p has one axis a layer
    x, p = marginal(machine, 2, {0: (None, v[0])})         # of layer 2 given the whole visible layer
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from pyro_ebm.distributions import DBM
from tests import brute_force
from tests.brute_force import Array, Layer
from tests.distributions.families import UNBOUNDED, at, random_unit, to_layer, uniform

#: What is fixed: by layer a boolean mask (None: all entries) and the values (read where it is True).
Fixed = Mapping[int, tuple[Array | None, Array]]


@dataclass(frozen=True)
class DeepMachine:
    """Layers from the visible one upwards, the weights between them and an offset of each."""

    layers: tuple[Layer, ...]
    weights: tuple[Array, ...]
    offsets: tuple[Array, ...]


# --- random machines --------------------------------------------------------------------------


def random_dbm(
    families: Sequence[str],
    num_units: int | Sequence[int] = 3,
    *,
    offsets: bool = False,
    batched: bool = False,
    scale: float = 1.0,
) -> DBM:
    """A machine of families by layer, in float64, that brute force can sum or integrate.

    Layers have up to ``num_units`` units, one number or one by layer (see ``families.random_unit``: one-hot
    layers have two groups, continuous ones at most two units; take one in deep machines). Batched ones
    broadcast to a batch shape of (2, 3).
    """
    numbers = [num_units] * len(families) if isinstance(num_units, int) else num_units
    shapes: list[tuple[int, ...]] = [(3,), (2, 1), (), (2, 3)] if batched else [()]
    layers = [
        random_unit(family, shapes[i % len(shapes)], number)
        for i, (family, number) in enumerate(zip(families, numbers, strict=True))
    ]
    weights = []
    for number in range(len(layers) - 1):
        unbounded = {families[number], families[number + 1]} <= set(UNBOUNDED)
        bound = scale * (0.35 if unbounded else 0.7)
        shape = (layers[number].size, layers[number + 1].size)
        weights.append(uniform((*shapes[(number + 1) % len(shapes)], *shape), -bound, bound))
    own = [
        uniform((*shapes[(number + 2) % len(shapes)], layer.size), -1, 1)
        for number, layer in enumerate(layers)
    ]
    return DBM(layers, weights, offsets=own if offsets else None)


def to_deep(dbm: DBM, index: tuple[int, ...] = ()) -> DeepMachine:
    """One machine of a batch for brute force. Constants of clamped machines are not part of it."""
    return DeepMachine(
        tuple(to_layer(unit, index) for unit in dbm.units),
        tuple(at(w.detach(), index, 2).double().numpy() for w in dbm.weights),
        tuple(at(o.detach(), index, 1).double().numpy() for o in dbm.offsets),
    )


def flat_tensors(dbm: DBM) -> dict[str, Tensor]:
    """The tensors of a machine by the names of :func:`parameters` (given offsets only)."""
    flat = {f"weights.{number}": w for number, w in enumerate(dbm.weights)}
    for number, unit in enumerate(dbm.units):
        flat |= {f"layers.{number}.{name}": p for name, p in unit.parameters.items()}
    given = dbm.offsets if dbm._offsets is not None else ()
    return flat | {f"offsets.{number}": o for number, o in enumerate(given)}


def parameters(machine: DeepMachine) -> dict[str, Array]:
    """All parameters by flat names: ``weights.0``, ``layers.1.bias``, ``offsets.2``."""
    flat = {f"weights.{number}": w for number, w in enumerate(machine.weights)}
    for number, layer in enumerate(machine.layers):
        flat |= {f"layers.{number}.{name}": p for name, p in layer.parameters.items()}
    return flat | {f"offsets.{number}": o for number, o in enumerate(machine.offsets)}


def with_parameter(machine: DeepMachine, name: str, value: Array) -> DeepMachine:
    """The machine with one parameter replaced, by its flat name; it may be complex."""
    kind, number, *rest = name.split(".")
    whole = list(getattr(machine, kind))
    if kind == "layers":
        old = whole[int(number)]
        value = replace(old, parameters={**old.parameters, rest[0]: value})
    whole[int(number)] = value
    return replace(machine, **{kind: tuple(whole)})


# --- the definition ---------------------------------------------------------------------------


def negative_energy(machine: DeepMachine, states: Sequence[Array]) -> Array:
    """-E of every combination of a row of each layer, one axis a layer."""
    depth = len(machine.layers)
    total = np.zeros([len(x) for x in states], dtype=complex)
    for number, (layer, x) in enumerate(zip(machine.layers, states, strict=True)):
        total -= _along(brute_force.layer_energy(layer, x), number, depth)
    for number, weight in enumerate(machine.weights):
        pairs = np.zeros((len(states[number]), len(states[number + 1])), dtype=complex)
        for i, j in itertools.product(*(range(n) for n in weight.shape)):
            low = states[number][:, i] - machine.offsets[number][i]
            high = states[number + 1][:, j] - machine.offsets[number + 1][j]
            pairs += np.multiply.outer(low * weight[i, j], high)
        shape = [1] * depth
        shape[number : number + 2] = pairs.shape
        total += pairs.reshape(shape)
    return total


def energy(machine: DeepMachine, states: Sequence[Array]) -> Array:
    """E of joint states: one number for each row that all layers have."""
    rows = zip(*states, strict=True)
    return np.array([-negative_energy(machine, [x[None] for x in row]).item() for row in rows])


def _along(x: Array, axis: int, depth: int) -> Array:
    """A vector along one of several axes."""
    return x.reshape([-1 if number == axis else 1 for number in range(depth)])


def points(machine: DeepMachine, fixed: Fixed | None = None) -> tuple[list[Array], Array]:
    """States of every layer that agree with what is fixed, and the weights of all combinations (those of
    quadratures; ones where all layers are discrete)."""
    fixed = fixed or {}
    every = []
    for number, layer in enumerate(machine.layers):
        mask, value = fixed.get(number, (np.zeros(layer.size, dtype=bool), np.zeros(layer.size)))
        mask = np.ones(layer.size, dtype=bool) if mask is None else np.asarray(mask)
        every.append(_points(layer, mask, np.asarray(value, dtype=float)))
    weights = np.ones([1] * len(every))
    for number, (_, w) in enumerate(every):
        weights = weights * _along(w, number, len(every))
    return [x for x, _ in every], weights


def _points(layer: Layer, mask: Array, value: Array) -> tuple[Array, Array]:
    """States of one layer that agree with values where a mask is True. A layer that is fixed as a whole may
    have values that are no states, such as grey levels."""
    if mask.all():
        return value[None].copy(), np.ones(1)
    if layer.family == "mixed":
        masks, values = mask[None], value[None]
        blocks = zip(layer.split(masks), layer.split(values), strict=True)
        every = [_points(block, m[0], v[0]) for (block, m), (_, v) in blocks]
        rows = itertools.product(*(x for x, _ in every))
        weights = itertools.product(*(w for _, w in every))
        return np.array([np.concatenate(row) for row in rows]), np.array(
            [math.prod(w) for w in weights]
        )
    if not layer.is_continuous:
        states, weights = brute_force.points(layer)
        keep = (states == value)[:, mask].all(1)
        return states[keep], weights[keep]
    # A grid of the free entries alone.
    free = int((~mask).sum())
    states = np.tile(np.where(mask, value, 0.0), (1, 1))
    if not free:
        return states, np.ones(1)
    name = next(iter(layer.parameters))
    grid, weights = brute_force.points(Layer(_GRID_OF[layer.family], {name: np.zeros(free)}))
    states = np.repeat(states, len(grid), 0)
    states[:, ~mask] = grid
    return states, weights


#: Factor analysis has the grid of independent Gaussian units.
_GRID_OF = {"gaussian": "gaussian", "low_rank": "gaussian", "relu": "relu"}


# --- sums -------------------------------------------------------------------------------------


def _log_terms(machine: DeepMachine, fixed: Fixed | None) -> tuple[list[Array], Array]:
    """States by layer, and log of weight times exp(-E) of every combination."""
    states, weights = points(machine, fixed)
    return states, negative_energy(machine, states) + np.log(weights)


def _log_sum(terms: Array, axes: tuple[int, ...] | None = None) -> Array:
    top = terms.real.max(axis=axes, keepdims=True)
    total = np.log(np.exp(terms - top).sum(axis=axes, keepdims=True)) + top
    return np.squeeze(total, axis=axes)


def log_partition(machine: DeepMachine, fixed: Fixed | None = None) -> complex:
    """log of the sum of exp(-E) over all states that agree with what is fixed; log Z if nothing is."""
    return complex(_log_sum(_log_terms(machine, fixed)[1]))


def log_p_star(machine: DeepMachine, v: Array) -> Array:
    """log p*(v) = log sum_h exp(-E(v, h)) of every row of v."""
    return np.array([log_partition(machine, {0: (None, row)}) for row in np.asarray(v)])


def even_log_prob(machine: DeepMachine, states: Sequence[Array]) -> Array:
    """Unnormalised log-probability of every row of states of the even layers, the odd ones summed out."""
    rows = zip(*(np.asarray(x) for x in states), strict=True)
    even = [{2 * number: (None, x) for number, x in enumerate(row)} for row in rows]
    return np.array([log_partition(machine, fixed) for fixed in even])


def joint(machine: DeepMachine, fixed: Fixed | None = None) -> tuple[list[Array], Array]:
    """States by layer and the probabilities of all combinations (weights of quadratures included), given
    what is fixed."""
    states, terms = _log_terms(machine, fixed)
    p = np.exp((terms - terms.real.max()).real)
    return states, p / p.sum()


def marginal(machine: DeepMachine, layer: int, fixed: Fixed | None = None) -> tuple[Array, Array]:
    """States of a layer and their probabilities, given what is fixed."""
    states, p = joint(machine, fixed)
    others = tuple(number for number in range(len(states)) if number != layer)
    return states[layer], p.sum(others)


def means(machine: DeepMachine, fixed: Fixed | None = None) -> list[Array]:
    """Mean of every layer, given what is fixed."""
    found = []
    for number in range(len(machine.layers)):
        x, p = marginal(machine, number, fixed)
        found.append(p @ x)
    return found


# --- mean field from its definition -----------------------------------------------------------


def bound(machine: DeepMachine, v: Array, fields: Sequence[Array]) -> float:
    """E_q[-E(v, x)] + H(q) of one row v, where q(x_l) is proportional to exp(-u_l(x_l) + t_l'x_l) with the
    given fields of the hidden layers: a sum over all joint states."""
    states, weights = points(machine, {0: (None, v)})
    log_q = np.zeros(weights.shape)
    for number, (layer, x, t) in enumerate(
        zip(machine.layers[1:], states[1:], fields, strict=True), 1
    ):
        own = -brute_force.layer_energy(layer, x).real + x @ np.asarray(t)
        own = own - brute_force.log_partition(layer, np.asarray(t)).real
        log_q = log_q + _along(own, number, len(states))
    q = weights * np.exp(log_q)
    return float((q * (negative_energy(machine, states).real - log_q)).sum())


def mean_field(
    machine: DeepMachine, v: Array, hidden_means: Sequence[Array], num_updates: int
) -> tuple[list[Array], list[Array]]:
    """Plain mean field of one row: odd hidden layers, then even ones, each at once, from means of the hidden
    layers. Gives the means and the fields that made them."""
    mu = [np.asarray(v, dtype=float), *(np.asarray(m, dtype=float) for m in hidden_means)]
    fields = [np.zeros_like(m) for m in mu]
    depth = len(machine.weights)
    for _ in range(num_updates):
        for number in [*range(1, depth + 1, 2), *range(2, depth + 1, 2)]:
            fields[number] = field(machine, mu, number)
            mu[number] = brute_force.mean(machine.layers[number], fields[number])
    return mu[1:], fields[1:]


def field(machine: DeepMachine, x: Sequence[Array], layer: int) -> Array:
    """The field that states, or means, of the layers beside a layer exert on it."""
    total = np.zeros(machine.layers[layer].size)
    if layer > 0:
        below = np.asarray(x[layer - 1]) - machine.offsets[layer - 1]
        total = total + below @ machine.weights[layer - 1]
    if layer < len(machine.weights):
        above = np.asarray(x[layer + 1]) - machine.offsets[layer + 1]
        total = total + machine.weights[layer] @ above
    return total
