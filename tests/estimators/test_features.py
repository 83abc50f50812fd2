# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Features, energies and scores against sums over all states."""

import numpy as np
import pytest
from scipy.special import expit

from pyro_ebm.estimators import GaussianRBM
from tests import brute_force
from tests.brute_force import points
from tests.estimators.machines import (
    bernoulli_rbm,
    gaussian_rbm,
    machine_of,
    some_bits,
    some_numbers,
)


def standardized(rbm: GaussianRBM, X: np.ndarray) -> np.ndarray:
    return (X - X.mean(0)) / X.std(0)


def bit_log_law(rbm) -> tuple[np.ndarray, np.ndarray]:
    """All visible states and their log-probabilities."""
    machine = machine_of(rbm)
    v, _ = points(machine.visible)
    log_p = -brute_force.free_energy(machine, v).real
    return v, log_p - np.log(np.exp(log_p).sum())


def test_transform_is_the_logistic_function() -> None:
    rbm, X = bernoulli_rbm(), np.random.RandomState(1).uniform(size=(9, 4))
    expected = expit(X @ rbm.components_.T + rbm.intercept_hidden_)
    np.testing.assert_allclose(rbm.transform(X), expected, atol=1e-12)
    exact = brute_force.hidden_mean(machine_of(rbm), some_bits())
    np.testing.assert_allclose(rbm.transform(some_bits()), exact, atol=1e-12)


def test_transform_of_numbers_is_that_of_standardised_ones() -> None:
    rbm, X = gaussian_rbm(), some_numbers()
    exact = brute_force.hidden_mean(machine_of(rbm), standardized(rbm, X))
    np.testing.assert_allclose(rbm.transform(X), exact, atol=1e-9)


def test_transform_has_no_side_effect() -> None:
    rbm = bernoulli_rbm()
    before, state = rbm.transform(some_bits()), rbm.random_state_.get_state()[1].copy()
    assert np.array_equal(rbm.transform(some_bits()), before)
    assert np.array_equal(rbm.random_state_.get_state()[1], state)


def test_inverse_transform_of_bits() -> None:
    rbm, h = bernoulli_rbm(), some_bits(9, 3)
    expected = brute_force.hidden_mean(machine_of(rbm).swapped(), h)
    np.testing.assert_allclose(rbm.inverse_transform(h), expected, atol=1e-12)
    by_hand = expit(h @ rbm.components_ + rbm.intercept_visible_)
    np.testing.assert_allclose(rbm.inverse_transform(h), by_hand, atol=1e-12)


def test_inverse_transform_is_in_the_units_of_the_data() -> None:
    rbm, X, h = gaussian_rbm(), some_numbers(), some_bits(9, 3)
    mean = brute_force.hidden_mean(machine_of(rbm).swapped(), h)
    expected = mean * X.std(0) + X.mean(0)
    np.testing.assert_allclose(rbm.inverse_transform(h), expected, atol=1e-9)


def test_score_samples_is_minus_the_free_energy() -> None:
    rbm, X = bernoulli_rbm(), some_bits()
    expected = -brute_force.free_energy(machine_of(rbm), X).real
    np.testing.assert_allclose(rbm.score_samples(X), expected, atol=1e-9)


def test_exact_score_of_bits() -> None:
    rbm, X = bernoulli_rbm(scoring="exact"), some_bits()
    v, log_p = bit_log_law(rbm)
    expected = np.mean([log_p[(v == x).all(1)].item() for x in X])
    assert rbm.score(X) == pytest.approx(expected, abs=1e-9)


def test_pseudo_log_likelihood_is_the_default() -> None:
    rbm, X = bernoulli_rbm(), some_bits()
    v, log_p = bit_log_law(rbm)
    number = {tuple(state): i for i, state in enumerate(v)}
    total = 0.0
    for x in X:
        for i in range(4):
            other = x.copy()
            other[i] = 1.0 - x[i]
            pair = log_p[[number[tuple(x)], number[tuple(other)]]]
            total += pair[0] - np.logaddexp(*pair)
    assert rbm.score(X) == pytest.approx(total / len(X), abs=1e-9)


def test_score_of_rates_is_that_of_bits_drawn_from_them() -> None:
    rbm, X = bernoulli_rbm(scoring="exact"), np.random.RandomState(0).uniform(size=(20_000, 4))
    v, log_p = bit_log_law(rbm)
    rates = np.where(v[:, None, :] == 1.0, X, 1.0 - X).prod(-1)
    expected = (log_p[:, None] * rates).sum(0)
    spread = ((log_p[:, None] - expected) ** 2 * rates).sum(0).mean()
    assert rbm.score(X) == rbm.score(X)
    assert abs(rbm.score(X) - expected.mean()) < 6.0 * np.sqrt(spread / len(X))


def test_exact_density_of_numbers_integrates_to_one() -> None:
    """In the units of the data, by a sum over a grid that is fine enough for rounding."""
    rbm = gaussian_rbm()
    low, high = rbm.mean_ - 9.0 * rbm.scale_, rbm.mean_ + 9.0 * rbm.scale_
    axes = [np.linspace(a, b, 181) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    log_z = rbm.score_samples(grid[:1]).item() - rbm.score(grid[:1])
    cell = np.prod([axis[1] - axis[0] for axis in axes])
    assert np.exp(rbm.score_samples(grid) - log_z).sum() * cell == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("make, data", [(bernoulli_rbm, some_bits), (gaussian_rbm, some_numbers)])
def test_ais_score_is_near_the_exact_one(make, data) -> None:
    exact, ais = make(scoring="exact").score(data()), make(scoring="ais")
    assert ais.score(data()) == ais.score(data())
    assert ais.score(data()) == pytest.approx(exact, abs=0.02)
    # A few temperatures with another seed are another estimate, still a good one.
    rough = ais.set_params(scoring_options={"num_temperatures": 200, "seed": 5})
    assert rough.score(data()) != make(scoring="ais").score(data())


def test_numbers_are_not_standardised_on_request() -> None:
    rbm, X = gaussian_rbm(standardize=False), some_numbers()
    expected = -brute_force.free_energy(machine_of(rbm), X).real
    np.testing.assert_allclose(rbm.score_samples(X), expected, atol=1e-9)


def test_a_constant_feature_has_no_scale() -> None:
    X = some_numbers()
    X[:, 1] = 0.1
    rbm = GaussianRBM(n_components=3, n_iter=2, random_state=0).fit(X)
    assert rbm.scale_[1] == 1.0
    assert np.isfinite(rbm.score_samples(X)).all()
