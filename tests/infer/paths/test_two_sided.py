# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The path whose two layers both have a base: its ends, its densities, its log Z."""

import itertools

import pytest
import torch
from torch import Size

from pyro_ebm.distributions import RBM
from pyro_ebm.infer import estimate_log_partition, exact_log_partition
from pyro_ebm.infer.paths.two_sided import TwoSidedPath
from tests.distributions.families import DISCRETE, random_rbm, random_unit
from tests.infer.reference import Z_LIMIT

CONTINUOUS_PAIRS = [("gaussian", "bernoulli"), ("bernoulli", "relu"), ("bernoulli", "gaussian")]
PAIRS = [*itertools.product(DISCRETE, DISCRETE), *CONTINUOUS_PAIRS]


def make(pair: tuple[str, str]) -> tuple[RBM, TwoSidedPath]:
    torch.manual_seed(0)
    rbm = random_rbm(pair, offsets=True)
    base, hidden_base = (
        unit.tilt(random_unit("ising", (), unit.size).natural_bias[: unit.size])[0]
        if unit.size <= 3
        else unit.neutral()
        for unit in (rbm.visible, rbm.hidden)
    )
    return rbm, TwoSidedPath(rbm, base, hidden_base)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_densities(pair: tuple[str, str]) -> None:
    """The machine at beta is the density whose ratios annealing takes, and the ends are what they should."""
    rbm, path = make(pair)
    v = rbm.visible.sample(rbm.visible.natural_bias.new_zeros(5, rbm.visible.size))
    fields = path.fields(v)
    for low, high in itertools.pairwise((0.0, 0.3, 1.0)):
        ratio, _ = path.log_ratio(v, fields, low, high)
        ratio = ratio + path.constant(high) - path.constant(low)
        expected = path.machine(high).log_prob(v) - path.machine(low).log_prob(v)
        torch.testing.assert_close(ratio, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(path.machine(1.0).log_prob(v), rbm.log_prob(v))
    start = exact_log_partition(path.machine(0.0))
    torch.testing.assert_close(path.log_partition_base, start, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pair", [("bernoulli", "ising"), ("gaussian", "bernoulli")], ids="-".join)
def test_annealing_and_levels(pair: tuple[str, str]) -> None:
    rbm, path = make(pair)
    estimate = estimate_log_partition(rbm, path=path, num_chains=500, num_temperatures=10, seed=0)
    error = (estimate.value - exact_log_partition(rbm)).abs() / estimate.std_error
    assert error < Z_LIMIT
    ladder = path.ladder((0.0, 0.5, 1.0))
    v = ladder.initial(Size((4,)))
    expected = torch.stack(
        [path.machine(b).log_prob(v[:, level]) for level, b in enumerate((0.0, 0.5, 1.0))], 1
    )
    torch.testing.assert_close(ladder.log_density(v, ladder.fields(v)), expected)
