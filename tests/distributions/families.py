# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Random machines of every pair of families, for the library and for the brute force."""

import itertools

import numpy as np
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, units
from tests import brute_force
from tests.brute_force import Layer, Machine

FAMILIES = {
    "bernoulli": units.Bernoulli,
    "ising": units.Ising,
    "categorical": units.Categorical,
    "multinomial": units.Multinomial,
    "gaussian": units.Gaussian,
    "relu": units.ReLU,
}
DISCRETE = ["bernoulli", "ising", "categorical", "multinomial"]
CONTINUOUS = ["gaussian", "relu"]
PAIRS = list(itertools.product(FAMILIES, FAMILIES))
PAIR_IDS = ["-".join(pair) for pair in PAIRS]

#: Layers that are no independent units of one family: spins and a number, bits and labels, correlations.
COMPOSED = {"mixed": units.Mixed, "labels": units.Mixed, "low_rank": units.LowRankGaussian}
ALL_FAMILIES = {**FAMILIES, **COMPOSED}
FINITE = [*DISCRETE, "labels"]
UNBOUNDED = [*CONTINUOUS, "mixed", "low_rank"]
COMPOSED_PAIRS = [
    ("low_rank", "bernoulli"),
    ("ising", "low_rank"),
    ("low_rank", "labels"),
    ("mixed", "categorical"),
    ("bernoulli", "mixed"),
    ("labels", "multinomial"),
    ("labels", "gaussian"),
    ("relu", "labels"),
    ("labels", "mixed"),
    ("low_rank", "gaussian"),
    ("gaussian", "low_rank"),
    ("low_rank", "low_rank"),
    ("low_rank", "relu"),
    ("mixed", "low_rank"),
    ("gaussian", "mixed"),
]
ALL_PAIRS = [*PAIRS, *COMPOSED_PAIRS]
ALL_PAIR_IDS = ["-".join(pair) for pair in ALL_PAIRS]

TOTAL_COUNT = 3
#: Shape of the parameters of one layer: the bias of 2 or 3 units, 2 groups of 3 states, 3 counts.
_SHAPE = {"categorical": (2, 3), "multinomial": (3,)}


def layer_shape(family: str, num_units: int = 3) -> tuple[int, ...]:
    return _SHAPE.get(family, (min(num_units, 2) if family in UNBOUNDED else num_units,))


def uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(shape, dtype=torch.float64)


def random_unit(family: str, batch: tuple[int, ...] = (), num_units: int = 3) -> units.Unit:
    """A layer with random parameters that the brute force can integrate."""
    if family == "mixed":
        few = random_unit("ising", batch[1:], 1 if num_units < 3 else 2)
        return units.Mixed([few, random_unit("gaussian", batch, 1)])
    if family == "labels":
        return units.Mixed([random_unit("bernoulli", batch, 1), random_unit("categorical")])
    shape = batch + layer_shape(family, num_units)
    if family == "gaussian":
        return units.Gaussian(uniform(shape, -1, 1), uniform(shape, 0.8, 2.0))
    if family == "low_rank":
        factor = uniform((*shape, 2 if shape[-1] > 1 else 1), -0.5, 0.5)
        return units.LowRankGaussian(uniform(shape, -1, 1), uniform(shape, 1.3, 2.2), factor)
    if family == "relu":
        return units.ReLU(uniform(shape, -1, 1), uniform(shape, 0.8, 2.0))
    if family == "multinomial":
        return units.Multinomial(uniform(shape, -1, 1), TOTAL_COUNT)
    return FAMILIES[family](uniform(shape, -1, 1))


def random_rbm(
    pair: tuple[str, str],
    *,
    offsets: bool = False,
    batched: bool = False,
    scale: float = 1.0,
    num_hidden: int = 2,
) -> RBM:
    """A machine of a pair of families; batched ones broadcast to a batch shape of (2, 3)."""
    visible = random_unit(pair[0], (3,) if batched else (), 3)
    hidden = random_unit(pair[1], (2, 1) if batched else (), num_hidden)
    # Two continuous layers of two units each are normalisable below a spectral norm of 0.8.
    bound = 0.35 if set(pair) <= set(UNBOUNDED) else 0.7
    bound *= scale
    batch = (2, 1) if batched else ()
    weight = uniform((*batch, visible.size, hidden.size), -bound, bound)
    return RBM(
        visible,
        hidden,
        weight,
        visible_offset=uniform(((2, 3) if batched else ()) + (visible.size,), -1, 1)
        if offsets
        else None,
        hidden_offset=uniform(((3,) if batched else ()) + (hidden.size,), -1, 1)
        if offsets
        else None,
    )


def at(tensor: Tensor, index: tuple[int, ...], own_dim: int) -> Tensor:
    """The element of a batch that ``index`` of the full batch shape broadcasts to."""
    return tensor[position(tensor, index, own_dim)]


def position(tensor: Tensor, index: tuple[int, ...], own_dim: int) -> tuple[int, ...]:
    """Where in the batch of a tensor the element ``index`` of the full batch is."""
    batch = tensor.shape[: tensor.dim() - own_dim]
    tail = index[len(index) - len(batch) :]
    return tuple(i if size > 1 else 0 for i, size in zip(tail, batch, strict=True))


def to_layer(unit: units.Unit, index: tuple[int, ...] = ()) -> Layer:
    """One layer of a batch for the brute force."""
    arrays = {
        name: at(p.detach(), index, unit.parameter_event_dim(name)).double().numpy()
        for name, p in unit.parameters.items()
    }
    kinds = tuple(_kind(block) for block in getattr(unit, "blocks", ()))
    return Layer(_kind(unit)[0], arrays, _kind(unit)[1], kinds)


def _kind(unit: units.Unit) -> tuple[str, int]:
    """Name of the family for the brute force, and M of counts."""
    name = "low_rank" if isinstance(unit, units.LowRankGaussian) else type(unit).__name__.lower()
    return name, getattr(unit, "total_count", 0)


def to_machine(rbm: RBM, index: tuple[int, ...] = ()) -> Machine:
    """One machine of a batch for the brute force."""
    return Machine(
        to_layer(rbm.visible, index),
        to_layer(rbm.hidden, index),
        at(rbm.weight.detach(), index, 2).double().numpy(),
        at(rbm.visible_offset.detach(), index, 1).double().numpy(),
        at(rbm.hidden_offset.detach(), index, 1).double().numpy(),
    )


def batch_indices(shape: torch.Size) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(size) for size in shape)))


def some_states(layer: Layer, count: int = 4) -> np.ndarray:
    """A few states inside the support, drawn with torch's generator."""
    if layer.family == "mixed" and layer.is_continuous:
        parts = [some_states(block, count) for block in layer.blocks]
        return np.column_stack([np.resize(part, (count, part.shape[1])) for part in parts])
    if layer.is_continuous:
        draws = uniform((count, layer.size), -2, 2).numpy()
        return np.abs(draws) if layer.family == "relu" else draws
    states, _ = brute_force.points(layer)
    return states[torch.randperm(len(states))[:count].numpy()]


def flat_tensors(rbm: RBM) -> dict[str, Tensor]:
    """The tensors of a machine by the flat names of the brute force (given offsets only)."""
    flat = {"weight": rbm.weight}
    for side in ("visible", "hidden"):
        for name, value in getattr(rbm, side).parameters.items():
            flat[f"{side}.{name}"] = value
    if rbm._visible_offset is not None:
        flat["visible_offset"] = rbm.visible_offset
    if rbm._hidden_offset is not None:
        flat["hidden_offset"] = rbm.hidden_offset
    return flat


def own_dim(rbm: RBM, name: str) -> int:
    """Number of axes of a parameter that are no batch axes."""
    if name == "weight":
        return 2
    side, dot, own = name.partition(".")
    return getattr(rbm, side).parameter_event_dim(own) if dot else 1
