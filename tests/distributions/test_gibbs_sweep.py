# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""One sweep from the exact law stays in the exact law, for every pair of families.

Starts are drawn from the brute-force law: states of a discrete layer, nodes of a quadrature for a
continuous one (integrals of the smooth transition kernel over the nodes are exact). A sweep that
did nothing would not drift either, so the correlation of start and end is compared as well.
"""

import numpy as np
import pytest
import torch

from pyro_ebm.distributions import GibbsSweep, units
from tests import brute_force
from tests.distributions.families import (
    ALL_PAIR_IDS,
    ALL_PAIRS,
    batch_indices,
    random_rbm,
    to_machine,
)
from tests.distributions.laws import ALPHA, layer_law, z_test

CHAINS = 200_000

every_pair = pytest.mark.parametrize("pair", ALL_PAIRS, ids=ALL_PAIR_IDS)


class Exact:
    """Exact laws of one machine: of v, of h, and of the pair (v before, v after a sweep)."""

    def __init__(self, machine: brute_force.Machine) -> None:
        self.machine = machine
        self.v, self.h, joint = brute_force.joint(machine)
        self.p_v, self.p_h = joint.sum(1), joint.sum(0)
        given_h = joint / np.maximum(self.p_h, 1e-300)
        self.mean_given_h = given_h.T @ self.v
        self.square_given_h = given_h.T @ self.v**2

    def start(self, count: int) -> np.ndarray:
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        return self.v[rng.choice(len(self.v), count, p=self.p_v)]

    def check(self, start: np.ndarray, h: np.ndarray, end: np.ndarray) -> float:
        """Smallest p-value of the hidden layer, the visible one, and v_i(before) v_j(after)."""
        products = (start[:, :, None] * end[:, None, :]).reshape(len(start), -1)
        size = products.shape[1]
        first = np.einsum("k,ki,kj->ij", self.p_h, self.mean_given_h, self.mean_given_h)
        second = np.einsum("k,ki,kj->ij", self.p_h, self.square_given_h, self.square_given_h)
        moving = np.flatnonzero((second - first**2).reshape(size) > 1e-9)
        return 3 * min(
            layer_law(self.machine.hidden, self.h, self.p_h, h),
            layer_law(self.machine.visible, self.v, self.p_v, end),
            z_test(products[:, moving], first.reshape(size)[moving], second.reshape(size)[moving]),
        )


def sweep_once(sweep: GibbsSweep, exact: Exact, dtype=torch.float64) -> float:
    start = exact.start(CHAINS)
    h = sweep.sample_hidden(torch.from_numpy(start).to(dtype))
    end = sweep.sample_visible(h)
    return exact.check(start, h.double().numpy(), end.double().numpy())


@every_pair
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_no_drift(pair, dtype):
    rbm = random_rbm(pair, offsets=True)
    sweep = GibbsSweep(rbm.to(dtype=dtype))
    assert sweep_once(sweep, Exact(to_machine(rbm)), dtype) > ALPHA


def break_conditional(unit: units.Unit) -> None:
    """Shift the first probability of a layer by 2 %, or its mean by 2 % of a standard deviation."""
    natural_sample = unit.natural_sample
    shift = torch.zeros(unit.size, dtype=torch.float64)
    if unit.is_discrete:  # d sigmoid(t) = dt / 4 and d sigmoid(2t) = dt / 2 where it is steepest
        shift[0] = 0.04 if isinstance(unit, units.Ising) else 0.08
    else:  # d mean = variance dt
        shift[0] = 0.02 / unit.conditional().variance[0].sqrt()

    def broken(theta: torch.Tensor, generator: object = None) -> torch.Tensor:
        return natural_sample(theta + shift, generator)

    unit.natural_sample = broken


@every_pair
@pytest.mark.parametrize("side", ["visible", "hidden"])
def test_a_conditional_broken_by_two_percent_is_rejected(pair, side):
    # The power of the test above: the same seeds, the same number of chains.
    rbm = random_rbm(pair, offsets=True)
    sweep = GibbsSweep(rbm)
    break_conditional(getattr(sweep, f"_{side}"))
    assert sweep_once(sweep, Exact(to_machine(rbm))) < ALPHA


def test_a_sweep_that_does_nothing_is_rejected():
    rbm = random_rbm(("bernoulli", "bernoulli"), offsets=True)
    exact = Exact(to_machine(rbm))
    start = exact.start(CHAINS)
    h = GibbsSweep(rbm).sample_hidden(torch.from_numpy(start)).numpy()
    assert exact.check(start, h, start) < ALPHA


@pytest.mark.parametrize("pair", [("bernoulli", "ising"), ("relu", "categorical")], ids="-".join)
def test_batches_of_machines(pair):
    """Each element of a batch follows its own law, with chains in front of the batch."""
    rbm = random_rbm(pair, offsets=True, batched=True)
    laws = {index: Exact(to_machine(rbm, index)) for index in batch_indices(rbm.batch_shape)}
    start = torch.empty(CHAINS // 4, *rbm.batch_shape, rbm.visible.size, dtype=torch.float64)
    for index, exact in laws.items():
        start[(slice(None), *index)] = torch.from_numpy(exact.start(CHAINS // 4))
    sweep = GibbsSweep(rbm)
    h = sweep.sample_hidden(start)
    end = sweep.sample_visible(h)
    assert h.shape == (*start.shape[:-1], rbm.hidden.size) and end.shape == start.shape
    for index, exact in laws.items():
        here = (slice(None), *index)
        assert 6 * exact.check(start[here].numpy(), h[here].numpy(), end[here].numpy()) > ALPHA


@every_pair
def test_the_ways_to_step_agree(pair):
    """``run`` and ``step_from_theta`` make the same draws from the same random bits."""
    rbm = random_rbm(pair, offsets=True)
    start = rbm.visible.sample(torch.zeros(5, rbm.visible.size, dtype=torch.float64))
    by_run = GibbsSweep(rbm, torch.Generator().manual_seed(1))
    by_theta = GibbsSweep(rbm, torch.Generator().manual_seed(1))
    expected = by_run.run(start, 2)
    v, theta = by_theta.step_from_theta(by_theta.hidden_theta(start))
    v, theta = by_theta.step_from_theta(theta)
    assert torch.equal(v, expected) and not v.requires_grad
    torch.testing.assert_close(theta, by_run.hidden_theta(v))


def test_initial_states_are_those_of_the_visible_layer_alone():
    rbm = random_rbm(("categorical", "ising"), batched=True)
    v = GibbsSweep(rbm).initial_visible(torch.Size((20_000, 2, 3, 6)))
    expected = rbm.visible.mean().expand(2, 3, 6).numpy()
    assert z_test(v.reshape(20_000, -1).numpy(), expected.ravel(), expected.ravel()) > ALPHA


def test_a_learnable_machine_is_swept_without_autograd():
    rbm = random_rbm(("gaussian", "bernoulli"), offsets=True)
    rbm.weight.requires_grad_()
    sweep = GibbsSweep(rbm)
    v = sweep.run(torch.zeros(3, 2, dtype=torch.float64), 1)
    assert not v.requires_grad and not sweep.hidden_theta(v).requires_grad
    assert not sweep.free_energy(v, sweep.hidden_theta(v)).requires_grad
