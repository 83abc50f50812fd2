# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Small deep modules with random parameters, and all that can be said about them by enumeration."""

import itertools

import torch
from torch import Tensor

from pyro_ebm import distributions, nn

#: By name: families from the visible layer upwards, sizes, options of the layers.
STACKS: dict[str, tuple[tuple[str, ...], tuple[int, ...], tuple[dict, ...]]] = {
    "1": (("bernoulli", "bernoulli"), (4, 3), ({}, {})),
    "2": (("bernoulli", "bernoulli", "bernoulli"), (4, 3, 3), ({}, {}, {})),
    "2-mixed": (
        ("categorical", "ising", "multinomial"),
        (6, 2, 3),
        ({"num_states": 3}, {}, {"total_count": 2}),
    ),
    "3": (
        ("ising", "bernoulli", "categorical", "ising"),
        (3, 3, 3, 2),
        ({}, {}, {"num_states": 3}, {}),
    ),
    "4": (("bernoulli",) * 5, (3, 2, 2, 2, 2), ({},) * 5),
    "gaussian": (
        ("gaussian", "bernoulli", "ising"),
        (2, 3, 2),
        ({"learn_precision": True}, {}, {}),
    ),
}


@torch.no_grad()
def random_deep(name: str, *, centered: bool = False, seed: int = 0, scale: float = 0.6) -> nn.DBM:
    """A module in float64 with random parameters and offsets."""
    families, sizes, options = STACKS[name]
    module = nn.DBM(
        sizes[0],
        sizes[1:],
        families[0],
        families[1:],
        visible_options=options[0],
        hidden_options=list(options[1:]),
        centered=centered,
        dtype=torch.float64,
        seed=0,
    )
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        tensor.uniform_(-scale, scale, generator=generator)
    return module


def all_states(dist: distributions.DBM) -> list[Tensor]:
    """Every joint state, by layer."""
    tables = [unit.states(0, unit.num_states) for unit in dist.units]
    index = torch.tensor(list(itertools.product(*(range(len(table)) for table in tables))))
    return [table[index[:, number]] for number, table in enumerate(tables)]


def log_weights(dist: distributions.DBM, states: list[Tensor]) -> Tensor:
    """Minus the energies of joint states, from their definition."""
    centered = [x - o for x, o in zip(states, dist.offsets, strict=True)]
    total = -sum(unit.energy(x) for unit, x in zip(dist.units, states, strict=True))
    for number, weight in enumerate(dist.weights):
        total = total + ((centered[number] @ weight) * centered[number + 1]).sum(-1)
    return total


def even_states(dist: distributions.DBM) -> tuple[Tensor, Tensor]:
    """Every state of the even layers, one layer after the other, and its probability."""
    states = all_states(dist)
    joined = torch.cat(states[0::2], -1)
    unique, index = torch.unique(joined, dim=0, return_inverse=True)
    weights = log_weights(dist, states).softmax(0)
    return unique, torch.zeros(len(unique), dtype=weights.dtype).index_add(0, index, weights)
