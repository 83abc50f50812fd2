# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Chains and draws against the enumerated law, and what decides their random numbers."""

import numpy as np
import pytest

from pyro_ebm.estimators import BernoulliRBM
from tests import brute_force
from tests.brute_force import points
from tests.distributions.laws import ALPHA, chi_square, exact_law, state_index, z_test
from tests.estimators.machines import (
    bernoulli_rbm,
    gaussian_rbm,
    machine_of,
    some_bits,
    some_numbers,
)


def test_sample_has_the_law_of_the_machine() -> None:
    rbm = bernoulli_rbm()
    v, p = exact_law(machine_of(rbm))
    counts = np.bincount(state_index(v, rbm.sample(20_000)), minlength=len(v))
    assert chi_square(counts, p) > ALPHA


@pytest.mark.parametrize("n_steps", [1, 2])
def test_gibbs_has_the_law_of_the_sweeps(n_steps: int) -> None:
    rbm = bernoulli_rbm()
    machine = machine_of(rbm)
    v, h = points(machine.visible)[0], points(machine.hidden)[0]
    up = np.exp(brute_force.hidden_log_prob(machine, v, h))
    down = np.exp(brute_force.hidden_log_prob(machine.swapped(), h, v))
    p = np.linalg.matrix_power(up @ down, n_steps)[5]
    draws = rbm.gibbs(np.tile(v[5], (20_000, 1)), n_steps)
    counts = np.bincount(state_index(v, draws), minlength=len(v))
    assert chi_square(counts, p) > ALPHA


def test_draws_of_numbers_have_the_moments_of_the_machine() -> None:
    rbm, X = gaussian_rbm(), some_numbers()
    z, p = exact_law(machine_of(rbm))
    v = z * X.std(0) + X.mean(0)
    for draws in (rbm.sample(20_000), rbm.gibbs(rbm.sample(20_000), 3)):
        statistics = np.column_stack([draws, draws**2])
        exact = np.column_stack([v, v**2])
        assert z_test(statistics, p @ exact, p @ exact**2) > ALPHA


def test_no_sweep_leaves_rows_where_they_are() -> None:
    assert np.array_equal(bernoulli_rbm().gibbs(some_bits(), 0), some_bits())
    np.testing.assert_allclose(gaussian_rbm().gibbs(some_numbers(), 0), some_numbers())


def test_a_seed_decides_everything() -> None:
    first, second, other = bernoulli_rbm(), bernoulli_rbm(), bernoulli_rbm(random_state=1)
    for rbm in (first, second):
        assert np.array_equal(rbm.sample(50, random_state=3), first.sample(50, random_state=3))
    draws = [rbm.sample(50) for rbm in (first, second, other)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    # Calls go on where the last one ended.
    assert not np.array_equal(first.sample(50), draws[0])


def fitted_weights(random_state: object) -> np.ndarray:
    rbm = BernoulliRBM(3, n_iter=2, random_state=random_state).fit(some_bits())
    return rbm.components_


def test_seed_of_fit() -> None:
    assert np.array_equal(fitted_weights(0), fitted_weights(0))
    assert not np.array_equal(fitted_weights(0), fitted_weights(1))
    state = np.random.RandomState(0)
    assert np.array_equal(fitted_weights(np.random.RandomState(0)), fitted_weights(state))
    # A RandomState moves on, None is numpy's global one.
    assert not np.array_equal(fitted_weights(0), fitted_weights(state))
    np.random.seed(0)
    assert np.array_equal(fitted_weights(None), fitted_weights(0))


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "1"])
def test_bad_counts(count: object) -> None:
    rbm = bernoulli_rbm()
    with pytest.raises(ValueError, match="n_samples must be a whole number >= 1"):
        rbm.sample(count)
    with pytest.raises(ValueError, match="n_steps must be a whole number >= 1"):
        rbm.sample(3, count)
    if count != 0 or count is True:
        with pytest.raises(ValueError, match="n_steps must be a whole number >= 0"):
            rbm.gibbs(some_bits(), count)
