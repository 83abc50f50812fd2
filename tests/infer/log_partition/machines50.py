# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Fifty random machines of known log Z, from weak to frustrated, for any estimator to be tried on.

from tests.infer.log_partition.machines50 import machines

for case in machines():
    estimate = my_estimator(case.rbm)
    assert abs(estimate.value - case.log_z) < ...
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import exact_log_partition

#: Visible and hidden families, one of which can always be enumerated, and for every coupling the steps of
#: a linear ladder at which the log-weights of AIS, and of reverse AIS, have a standard deviation of 1.
TEMPERATURES = {
    ("bernoulli", "bernoulli"): [(1, 1), (10, 9), (20, 13), (31, 30), (61, 47)],
    ("ising", "ising"): [(1, 1), (1, 1), (7, 8), (29, 16), (74, 45)],
    ("bernoulli", "ising"): [(1, 1), (2, 3), (10, 8), (19, 15), (61, 39)],
    ("categorical", "bernoulli"): [(1, 1), (3, 1), (19, 12), (1, 1), (81, 34)],
    ("multinomial", "ising"): [(1, 1), (1, 1), (9, 7), (1, 1), (237, 60)],
    ("gaussian", "bernoulli"): [(1, 1), (42, 38), (228, 134), (111, 107), (431, 350)],
    ("gaussian", "ising"): [(1, 1), (5, 8), (404, 101), (89, 49), (472, 371)],
    ("bernoulli", "gaussian"): [(1, 1), (11, 10), (89, 47), (73, 58), (161, 116)],
    ("ising", "relu"): [(1, 1), (44, 32), (182, 72), (55, 44), (240, 113)],
    ("relu", "bernoulli"): [(1, 2), (54, 51), (207, 196), (218, 218), (591, 561)],
}
PAIRS = list(TEMPERATURES)

#: Strength of the couplings, in units of those at which a machine of spins begins to freeze.
COUPLINGS = {"weak": 0.3, "moderate": 1.0, "strong": 2.0, "ordered": 1.5, "frustrated": 4.0}

NUM_VISIBLE, NUM_HIDDEN = 12, 8


@dataclass(frozen=True)
class Case:
    """A machine and the truth about it.

    :param str name: families and coupling.
    :param str coupling: a key of :data:`COUPLINGS`. Weights are random, but those of "ordered"
        machines, all of one sign, which has two modes where both layers are spins.
    :param RBM rbm: the machine, float64.
    :param float log_z: its exact log Z.
    :param dict num_temperatures: by method ("ais", "reverse-ais"), the fewest that are adequate; 1 where
        the base is near enough.
    """

    name: str
    coupling: str
    rbm: RBM
    log_z: float
    num_temperatures: dict[str, int]


@lru_cache
def machines() -> list[Case]:
    """The fifty machines, the same ones on every call."""
    cases = []
    for i, pair in enumerate(PAIRS):
        for k, coupling in enumerate(COUPLINGS):
            generator = torch.Generator().manual_seed(1000 * i + k)
            rbm = _machine(pair, coupling, generator)
            log_z = exact_log_partition(rbm).item()
            temperatures = dict(zip(("ais", "reverse-ais"), TEMPERATURES[pair][k], strict=True))
            name = f"{pair[0]}-{pair[1]}-{coupling}"
            cases.append(Case(name, coupling, rbm, log_z, temperatures))
    return cases


def _machine(pair: tuple[str, str], coupling: str, generator: torch.Generator) -> RBM:
    visible = _unit(pair[0], NUM_VISIBLE, generator)
    hidden = _unit(pair[1], NUM_HIDDEN, generator)
    noise = _randn((visible.size, hidden.size), generator)
    if coupling == "ordered":
        noise = 0.5 + 0.2 * noise
    # A unit's standard deviation without weights: 1/2 for a bit, 1 for a spin or a real number.
    spread = {"bernoulli": 0.5, "categorical": 0.5, "multinomial": 0.9, "relu": 0.6}
    width = spread.get(pair[0], 1.0) * spread.get(pair[1], 1.0)
    scale = COUPLINGS[coupling] / (width * math.sqrt(visible.size + hidden.size))
    return RBM(visible, hidden, scale * noise)


def _unit(family: str, size: int, generator: torch.Generator) -> units.Unit:
    bias = 0.3 * _randn((size,), generator)
    if family == "categorical":
        return units.Categorical(bias.view(size // 3, 3))
    if family == "multinomial":
        return units.Multinomial(bias[: size // 2], 4)
    if family == "gaussian":
        return units.Gaussian(bias, torch.ones_like(bias))
    if family == "relu":
        return units.ReLU(bias, torch.ones_like(bias))
    return {"bernoulli": units.Bernoulli, "ising": units.Ising}[family](bias)


def _randn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator)
