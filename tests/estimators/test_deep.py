# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The deep Boltzmann machine as an estimator of scikit-learn."""

import pickle
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyro_ebm.estimators import DeepBoltzmannMachine
from pyro_ebm.training.pretraining import PRETRAINING_METHODS
from tests.deep_machines import log_p_star, log_partition, mean_field, to_deep
from tests.estimators.machines import randomize, some_bits

SMALL: dict[str, Any] = {"n_components": (4, 3), "n_iter": 2, "random_state": 0}
X = some_bits()


def fitted(**options: Any) -> DeepBoltzmannMachine:
    """Four bits and random parameters."""
    return randomize(DeepBoltzmannMachine(**{**SMALL, "n_components": (3, 2), **options}).fit(X))


def close(got: Any, expected: Any, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@parametrize_with_checks(
    [
        DeepBoltzmannMachine((4, 3), clip=True, n_iter=1, scoring="exact"),
        DeepBoltzmannMachine(3, clip=True, n_iter=1, scoring="exact"),
    ]
)
def test_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("sizes", [(3,), (3, 2), (3, 2, 2)])
def test_scores_against_enumeration(sizes):
    estimator = fitted(n_components=sizes, scoring="exact")
    machine = to_deep(estimator.module_().detach())
    log_z = log_partition(machine).real
    expected = log_p_star(machine, X).real
    close(estimator.score(X), (expected - log_z).mean())
    bound = estimator.score_samples(X)
    assert (bound <= expected + 1e-9).all()
    if len(sizes) == 1:
        close(bound, expected)
    options = {"num_chains": 200, "num_temperatures": 300, "seed": 1}
    estimator.set_params(scoring="ais", scoring_options=options)
    # 200 chains know log Z of so small a machine to a few hundredths.
    assert abs(estimator.score(X) - (bound.mean() - log_z)) < 0.1


def test_features_are_the_mean_field_of_the_top_layer():
    estimator = fitted()
    machine = to_deep(estimator.module_().detach())
    start = [np.full(3, 0.5), np.full(2, 0.5)]
    expected = [mean_field(machine, row, start, 100)[0][-1] for row in X[:5]]
    close(estimator.transform(X[:5]), expected, 1e-5)
    assert list(estimator.get_feature_names_out()) == [
        "deepboltzmannmachine0",
        "deepboltzmannmachine1",
    ]


def test_parameters_are_those_without_offsets():
    estimator = fitted()
    w1, w2 = (w.T for w in estimator.components_)
    b0, b1, b2 = estimator.intercepts_
    assert [b.shape for b in estimator.intercepts_] == [(4,), (3,), (2,)]
    dist = estimator.module_()
    h = np.random.RandomState(0).uniform(size=(40, 2))
    states = [torch.as_tensor(x) for x in (X, h)]
    expected = dist.units[1].theta(dist.field(1, states)).detach()
    close(b1 + X @ w1 + h @ w2.T, expected)
    close(b2 + X[:, :3] @ w2, dist.units[2].theta(dist.field(2, [states[0][:, :3]])).detach())
    close(estimator.intercept_visible_, b0)
    close(estimator.intercept_hidden_[1], b2)


def test_inverse_transform_is_a_fixed_point():
    estimator = fitted()
    h = np.random.RandomState(0).uniform(size=(5, 2))
    mean = estimator.inverse_transform(h)
    w1, w2 = (w.T for w in estimator.components_)
    b0, b1, _ = estimator.intercepts_
    between = 1 / (1 + np.exp(-(b1 + mean @ w1 + h @ w2.T)))
    close(mean, 1 / (1 + np.exp(-(b0 + between @ w1.T))), 1e-5)
    shallow = fitted(n_components=3)
    close(shallow.inverse_transform(h[:, [0, 1, 1]]).shape, (5, 4))
    with pytest.raises(ValueError, match="2 columns"):
        estimator.inverse_transform(np.ones((5, 3)))


def test_chains_have_the_law_of_the_model():
    estimator = fitted()
    chains = estimator.gibbs(np.repeat(X[:1], 4000, 0), 30, random_state=1)
    draws = estimator.sample(4000, random_state=2)
    error = np.sqrt(0.25 / 4000) * np.sqrt(2)
    assert (np.abs(chains.mean(0) - draws.mean(0)) < 6 * error).all()
    close(estimator.gibbs(X, 0), X)
    close(estimator.gibbs(X, 2, random_state=3), estimator.gibbs(X, 2, random_state=3))


def test_looking_moves_nothing():
    estimator = DeepBoltzmannMachine(**SMALL).fit(X)
    chains = estimator._trainer.chains.clone()
    before = {name: x.clone() for name, x in estimator.module_.state_dict().items()}
    first = estimator.transform(X)
    estimator.score_samples(X)
    estimator.inverse_transform(first)
    estimator.gibbs(X, 2)
    estimator.sample(3, 5)
    close(estimator.transform(X), first, 0)
    assert torch.equal(estimator._trainer.chains, chains)
    assert all(torch.equal(x, before[n]) for n, x in estimator.module_.state_dict().items())


@pytest.mark.parametrize("method", PRETRAINING_METHODS)
def test_pretraining(method):
    options = {"pretraining": method, "pretraining_options": {"num_epochs": 3}}
    estimator = DeepBoltzmannMachine(**{**SMALL, "n_components": (4, 4)}, **options).fit(X)
    assert {len(h) for h in estimator.pretraining_histories_} == {3}
    again = clone(estimator).fit(X)
    close(again.transform(X), estimator.transform(X), 0)
    other = clone(estimator).set_params(pretraining=None, pretraining_options=None).fit(X)
    assert not np.allclose(other.transform(X), estimator.transform(X))
    assert other.pretraining_histories_ == ()


def test_partial_fits_are_a_fit():
    whole = DeepBoltzmannMachine(**SMALL).fit(X)
    parts = DeepBoltzmannMachine(**SMALL)
    for _ in range(2):
        parts.partial_fit(X)
    close(parts.transform(X), whole.transform(X), 0)
    assert parts.n_iter_ == 2


def test_copies_go_on():
    estimator = DeepBoltzmannMachine(**SMALL).fit(X)
    copy = pickle.loads(pickle.dumps(estimator))
    close(copy.transform(X), estimator.transform(X), 0)
    close(copy.partial_fit(X).transform(X), estimator.partial_fit(X).transform(X), 0)


def test_warm_start():
    estimator = DeepBoltzmannMachine(**SMALL, warm_start=True).fit(X)
    module = estimator.module_
    assert estimator.fit(X).module_ is module
    with pytest.raises(ValueError, match="n_components must stay"):
        estimator.set_params(n_components=(4, 2)).fit(X)


def test_sparse_rows_and_single_precision():
    estimator = DeepBoltzmannMachine(**SMALL).fit(sp.csr_array(X))
    close(estimator.transform(sp.csr_array(X)), estimator.transform(X), 0)
    single = DeepBoltzmannMachine(**SMALL).fit(X.astype(np.float32))
    assert single.transform(X.astype(np.float32)).dtype == np.float32
    assert single.inverse_transform(np.ones((2, 3), np.float32)).shape == (2, 4)


def test_pipeline_and_grid():
    y = (X[:, 0] > 0).astype(int)
    pipeline = make_pipeline(DeepBoltzmannMachine(**SMALL), LogisticRegression())
    grid = {"deepboltzmannmachine__n_components": [(3, 2), (2,)]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, y)
    assert search.best_score_ > 0.5
    own = GridSearchCV(
        DeepBoltzmannMachine(**SMALL, scoring="exact"),
        {"learning_rate": np.array([1e-3, 0.1])},
        cv=2,
    )
    assert np.isfinite(own.fit(X).best_score_)


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"n_components": ()}, ValueError, "num_hidden"),
        ({"n_components": (3, 0)}, ValueError, "num_hidden"),
        ({"n_components": "3"}, ValueError, "num_hidden"),
        ({"pretraining": "x"}, ValueError, "pretraining must be"),
        ({"pretraining_options": {"num_epochs": 1}}, ValueError, "pretraining is None"),
        (
            {"pretraining": "rbm", "pretraining_options": {"epochs": 1}},
            ValueError,
            "pretraining_options",
        ),
        ({"pretraining": "rbm", "pretraining_options": 3}, TypeError, "pretraining_options"),
        ({"scoring": "pseudo"}, ValueError, "scoring"),
        ({"scoring": "exact", "scoring_options": {"seed": 1}}, ValueError, "scoring_options"),
        ({"trainer_options": {"batch_size": 1}}, ValueError, "batch_size"),
    ],
)
def test_refusals(options, error, match):
    with pytest.raises(error, match=match):
        DeepBoltzmannMachine(**{**SMALL, **options}).fit(X)
