# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Small machines of every kind, and their laws written out from the definition of the energy."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM, units
from pyro_ebm.nn import NeuralBoltzmannMachine

NUM_VISIBLE = 3
NUM_ROWS = 4


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def bits(size: int) -> Tensor:
    """All states of some bits, shape (2 ** size, size)."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)), dtype=torch.float64)


def _random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rbm(shift: Tensor | float = 0.0) -> RBM:
    """Bits with offsets."""
    bias = _random(3, seed=2) + torch.as_tensor(shift)
    return RBM(
        units.Bernoulli(bias),
        units.Bernoulli(_random(2, seed=3)),
        _random(3, 2, seed=1),
        visible_offset=double(0.3, 0.5, 0.1),
        hidden_offset=double(0.2, 0.4),
    )


def dbm() -> DBM:
    """Two hidden layers, coupled weakly enough for one mean field."""
    layers = [units.Bernoulli(_random(n, seed=10 + n)) for n in (3, 2, 2)]
    weights = [0.7 * _random(3, 2, seed=5), 0.5 * _random(2, 2, seed=6)]
    return DBM(layers, weights, mean_field_tolerance=1e-13)


NBM = NeuralBoltzmannMachine(
    2, NUM_VISIBLE, 2, visible="bernoulli", hidden="bernoulli", seed=0, dtype=torch.float64
).requires_grad_(False)
CONTEXTS = _random(NUM_ROWS, 2, seed=7)


def nbm() -> RBM:
    """A machine for each of the rows."""
    return NBM.condition(CONTEXTS)


MACHINES: dict[str, Callable[[], RBM | DBM]] = {"rbm": rbm, "dbm": dbm, "nbm": nbm}


def joint_terms(machine: RBM | DBM, v: Tensor) -> Tensor:
    """-E of visible states with all hidden states, which stand along the first axis."""
    if isinstance(machine, RBM):
        hidden = bits(machine.hidden.size)
        hidden = hidden.reshape(-1, *[1] * (v.dim() - 1), hidden.shape[-1])
        return -machine.energy(
            v.expand(len(hidden), *v.shape), hidden.expand(-1, *v.shape[:-1], -1)
        )
    one, two = (bits(unit.size) for unit in machine.units[1:])
    pairs = [(a, b) for a in one for b in two]
    rows = v.shape[:-1]
    return torch.stack(
        [-machine.energy([v, a.expand(*rows, -1), b.expand(*rows, -1)]) for a, b in pairs]
    )


def log_p_star(machine: RBM | DBM, v: Tensor) -> Tensor:
    """log of the sum of exp(-E) over the hidden states."""
    return joint_terms(machine, v).logsumexp(0)


def log_z(machine: RBM | DBM) -> Tensor:
    """log Z, shape of the machine's batch."""
    v = bits(NUM_VISIBLE).reshape(-1, *[1] * len(machine.batch_shape), NUM_VISIBLE)
    v = v.expand(-1, *machine.batch_shape, -1)
    return log_p_star(machine, v).logsumexp(0)


def bound(machine: DBM, v: Tensor, num_updates: int = 300) -> Tensor:
    """Mean field of every row from its definition: E_q[-E] + H(q) after coordinate ascent from one half."""
    w1, w2 = machine.weights
    b1, b2 = (unit.natural_bias for unit in machine.units[1:])
    two = torch.full((*v.shape[:-1], w2.shape[1]), 0.5, dtype=torch.float64)
    one = torch.sigmoid(b1 + v @ w1 + two @ w2.mT)
    for _ in range(num_updates):
        two = torch.sigmoid(b2 + one @ w2)
        one = torch.sigmoid(b1 + v @ w1 + two @ w2.mT)
    linear = v @ machine.units[0].natural_bias + one @ b1 + two @ b2
    pairs = ((v @ w1) * one).sum(-1) + ((one @ w2) * two).sum(-1)
    return linear + pairs + _entropy(one) + _entropy(two)


def _entropy(p: Tensor) -> Tensor:
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)).sum(-1)


def log_score(machine: RBM | DBM, v: Tensor) -> Tensor:
    """What ``log_prob`` of an unnormalised machine is by its definition."""
    return bound(machine, v) if isinstance(machine, DBM) else log_p_star(machine, v)


def rows_of(number: int, indices: Sequence[int] = (5, 0, 6, 3)) -> Tensor:
    """Some visible states."""
    return bits(NUM_VISIBLE)[list(indices)[:number]]
