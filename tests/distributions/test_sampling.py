# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""``RBM.sample`` draws independently from the exact law."""

import numpy as np
import pyro
import pytest
import torch

from pyro_ebm.distributions import RBM, sampling
from tests import brute_force
from tests.distributions.families import (
    ALL_PAIR_IDS,
    ALL_PAIRS,
    UNBOUNDED,
    batch_indices,
    random_rbm,
    random_unit,
    to_machine,
    uniform,
)
from tests.distributions.laws import ALPHA, chi_square, exact_law, layer_law, state_index, z_test

COUNT = 100_000

EXACT = [pair for pair in ALL_PAIRS if not set(pair) <= set(UNBOUNDED)]


def p_value(samples: torch.Tensor, machine: brute_force.Machine) -> float:
    v, p = exact_law(machine)
    return layer_law(machine.visible, v, p, samples.double().numpy())


@pytest.mark.parametrize("pair", EXACT, ids="-".join)
@pytest.mark.parametrize("offsets", [False, True], ids=["plain", "offsets"])
def test_exact_law(pair, offsets):
    rbm = random_rbm(pair, offsets=offsets)
    assert p_value(rbm.sample((COUNT,)), to_machine(rbm)) > ALPHA


@pytest.mark.parametrize("pair", EXACT[::3], ids="-".join)
def test_exact_law_of_batches_and_expanded_plates(pair):
    rbm = random_rbm(pair, offsets=True, batched=True)
    plate = rbm.expand((4, 2, 3)).sample((COUNT // 16,))
    assert plate.shape == (COUNT // 16, 4, 2, 3, rbm.visible.size)
    for index in batch_indices(rbm.batch_shape):
        samples = plate[(slice(None), slice(None), *index)].reshape(-1, rbm.visible.size)
        assert 6 * p_value(samples, to_machine(rbm, index)) > ALPHA


@pytest.mark.parametrize(("num_visible", "num_hidden"), [(2, 5), (5, 2)])
def test_both_sides_are_enumerated(num_visible, num_hidden, monkeypatch):
    """The smaller layer is enumerated, whichever it is, and Gibbs sampling is not used."""
    rbm = RBM(
        random_unit("bernoulli", num_units=num_visible),
        random_unit("ising", num_units=num_hidden),
        uniform((num_visible, num_hidden), -1, 1),
    )
    sizes = []
    original = sampling._sample_enumerated
    monkeypatch.setattr(
        sampling,
        "_sample_enumerated",
        lambda side, *args: sizes.append(side.visible.size) or original(side, *args),
    )
    monkeypatch.setattr(sampling.GibbsSweep, "run", None)
    assert p_value(rbm.sample((COUNT,)), to_machine(rbm)) > ALPHA
    assert sizes == [min(num_visible, num_hidden)]


@pytest.mark.parametrize("pair", [("bernoulli", "ising"), ("categorical", "gaussian")])
def test_a_machine_perturbed_by_two_percent_is_rejected(pair):
    rbm = random_rbm(pair, offsets=True)
    machine = to_machine(rbm)
    bias = rbm.visible.bias.clone()
    bias.view(-1)[0] += 0.1  # shifts one conditional probability by about 2 %
    perturbed = RBM(
        rbm.visible.replace(bias=bias),
        rbm.hidden,
        rbm.weight,
        visible_offset=rbm.visible_offset,
        hidden_offset=rbm.hidden_offset,
    )
    assert p_value(perturbed.sample((COUNT,)), machine) < ALPHA


def test_elements_are_independent():
    """Pairs of neighbouring draws, along every axis of the sample, follow the product law."""
    rbm = random_rbm(("bernoulli", "bernoulli"), batched=True)
    draws = rbm.expand((5, 2, 3)).sample((20_000,))
    laws = {index: exact_law(to_machine(rbm, index)) for index in batch_indices((2, 3))}
    states = laws[0, 0][0]
    number = state_index(states, draws.reshape(-1, 3).numpy()).reshape(draws.shape[:-1])
    size = len(states)
    neighbours = [
        (number[:-1:2, 0, 0, 0], number[1::2, 0, 0, 0], (0, 0), (0, 0)),  # draws
        (number[:, 0, 0, 0], number[:, 1, 0, 0], (0, 0), (0, 0)),  # the plate
        (number[:, 0, 0, 1], number[:, 0, 1, 1], (0, 1), (1, 1)),  # batch elements
        (number[:, 0, 0, 1], number[:, 0, 0, 2], (0, 1), (0, 2)),
    ]
    for first, second, i, j in neighbours:
        counts = np.bincount(first * size + second, minlength=size**2)
        assert 4 * chi_square(counts, np.outer(laws[i][1], laws[j][1]).ravel()) > ALPHA


@pytest.mark.parametrize("pair", ALL_PAIRS, ids=ALL_PAIR_IDS)
def test_gibbs_fallback_reaches_the_law(pair, monkeypatch):
    monkeypatch.setattr(sampling, "MAX_EXACT_STATES", 0)
    rbm = random_rbm(pair, offsets=True, scale=0.7)
    rbm.num_gibbs_steps = 12  # such small weights are forgotten by then
    assert p_value(rbm.sample((20_000,)), to_machine(rbm)) > ALPHA


def test_too_few_gibbs_steps_are_noticed(monkeypatch):
    monkeypatch.setattr(sampling, "MAX_EXACT_STATES", 0)
    rbm = random_rbm(("bernoulli", "bernoulli"), offsets=True, scale=6)
    rbm.num_gibbs_steps = 1
    assert p_value(rbm.sample((20_000,)), to_machine(rbm)) < ALPHA


def test_large_layers_use_the_given_number_of_sweeps(monkeypatch):
    steps = []
    run = sampling.GibbsSweep.run
    monkeypatch.setattr(
        sampling.GibbsSweep, "run", lambda self, v, n: steps.append(n) or run(self, v, n)
    )
    weight = torch.zeros(17, 17)
    bits = random_unit("bernoulli").replace(bias=torch.zeros(17))
    assert RBM(bits, bits, weight, num_gibbs_steps=3).sample((2,)).shape == (2, 17)
    assert steps == [3]
    RBM(bits, bits.replace(bias=torch.zeros(16)), weight[:, :16]).sample()
    assert steps == [3]  # 2^16 states are still enumerated


def test_strong_weights_are_sampled_exactly_where_gibbs_would_not_mix():
    """Two modes that Gibbs sampling cannot leave: only enumeration gives both."""
    rbm = RBM(
        random_unit("ising").replace(bias=torch.zeros(3)),
        random_unit("ising").replace(bias=torch.zeros(3)),
        torch.full((3, 3), 20.0),
    )
    total = rbm.sample((10_000,)).sum(-1)
    assert set(total.tolist()) == {-3.0, 3.0}
    assert z_test(total[:, None].double().numpy(), np.zeros(1), np.full(1, 9.0)) > ALPHA


@pytest.mark.parametrize("pair", ALL_PAIRS, ids=ALL_PAIR_IDS)
def test_reproducible(pair):
    rbm = random_rbm(pair)
    rbm.num_gibbs_steps = 2

    def by_generator(seed: int) -> torch.Tensor:
        return rbm.sample((50,), generator=torch.Generator().manual_seed(seed))

    def by_pyro(seed: int) -> torch.Tensor:
        pyro.set_rng_seed(seed)
        return rbm.sample((50,))

    for draw in (by_generator, by_pyro):
        assert torch.equal(draw(1), draw(1))
        assert not torch.equal(draw(1), draw(2))
    # A generator leaves the global one alone.
    before = torch.get_rng_state()
    by_generator(1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 1)])
def test_shapes(shape):
    rbm = random_rbm(("bernoulli", "gaussian"), batched=True)
    assert rbm.sample(shape).shape == (*shape, 2, 3, 3)
    assert rbm.sample(torch.Size(shape)).shape == (*shape, 2, 3, 3)
    turned = rbm.transpose()
    assert turned.sample(shape).shape == (*shape, 2, 3, 2)
