# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Training: arguments, going on, copies."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from pyro_ebm import nn
from pyro_ebm.estimators import BernoulliRBM, GaussianRBM
from pyro_ebm.training import Trainer, TrainerConfig
from tests.estimators.machines import bernoulli_rbm, some_bits, some_numbers

BOTH = pytest.mark.parametrize(
    "kind, data", [(BernoulliRBM, some_bits), (GaussianRBM, some_numbers)]
)


def test_fit_is_a_run_of_the_trainer() -> None:
    """The arguments reach the options that they are documented to be."""
    X = some_bits()
    arguments: dict[str, Any] = {
        "learning_rate": 0.2,
        "batch_size": 7,
        "n_iter": 3,
        "n_steps": 2,
        "n_chains": 5,
        "centered": True,
        "momentum": 0.5,
        "weight_decay": 0.01,
        "averaging": 0.9,
        "trainer_options": {"gradient_clip": 1.0},
    }
    rbm = BernoulliRBM(3, random_state=np.random.RandomState(0), **arguments).fit(X)
    source = np.random.RandomState(0)
    # The order in which fit draws them.
    seed, weights = (int(source.randint(2**31 - 1)) for _ in range(2))
    data = torch.from_numpy(X)
    module = nn.RBM(4, 3, centered=True, seed=weights, dtype=torch.float64).init_from_data(data)
    config = TrainerConfig(
        learning_rate=0.2,
        batch_size=7,
        num_epochs=3,
        num_steps=2,
        persistent=True,
        num_chains=5,
        momentum=0.5,
        weight_decay=0.01,
        averaging=0.9,
        binarize=True,
        gradient_clip=1.0,
        seed=seed,
        progress=False,
    )
    trainer = Trainer(module, config)
    trainer.fit(data)
    expected = trainer.averaged.weight.detach().numpy().T
    assert np.array_equal(rbm.components_, expected)
    assert rbm.n_iter_ == 3
    assert [record["epoch"] for record in rbm.history_] == [1, 2, 3]


@BOTH
def test_no_epoch(kind, data) -> None:
    rbm = kind(3, n_iter=0, random_state=0).fit(data())
    assert rbm.n_iter_ == 0 and rbm.history_ == []
    means = rbm.inverse_transform(np.zeros((1, 3)))[0]
    np.testing.assert_allclose(means, data().mean(0), atol=1e-6)


@BOTH
def test_partial_fit_moves_on(kind, data) -> None:
    rbm = kind(3, random_state=0)
    assert rbm.partial_fit(data()) is rbm
    first = rbm.components_.copy()
    rbm.partial_fit(data())
    assert not np.array_equal(rbm.components_, first)
    assert rbm.n_iter_ == 2
    rbm.fit(data())
    assert rbm.n_iter_ == 10


@BOTH
@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_pickled_estimators_go_on_as_the_original(kind, data, averaging: float) -> None:
    rbm = kind(3, n_iter=2, persistent=True, averaging=averaging, random_state=0).fit(data())
    for other in (pickle.loads(pickle.dumps(rbm)), copy.deepcopy(rbm)):
        assert np.array_equal(other.transform(data()), rbm.transform(data()))
        assert np.array_equal(other.sample(9, random_state=0), rbm.sample(9, random_state=0))
        assert other.history_ == rbm.history_ and other.n_iter_ == 2
    others = [pickle.loads(pickle.dumps(rbm)), copy.deepcopy(rbm)]
    rbm.partial_fit(data())
    for other in others:
        assert np.array_equal(other.partial_fit(data()).components_, rbm.components_)
        assert np.array_equal(other.sample(9), copy.deepcopy(rbm).sample(9))


@BOTH
def test_clone_has_the_arguments_only(kind, data) -> None:
    rbm = kind(3, n_iter=1, trainer_options={"gradient_clip": 5.0}, random_state=0).fit(data())
    other = clone(rbm)
    assert other.get_params() == rbm.get_params()
    with pytest.raises(NotFittedError):
        other.transform(data())
    assert np.array_equal(other.fit(data()).components_, rbm.components_)


@BOTH
def test_warm_start(kind, data) -> None:
    rbm = kind(3, n_iter=2, warm_start=True, random_state=0).fit(data())
    learnt = rbm.components_.copy()
    np.testing.assert_array_equal(rbm.set_params(n_iter=0).fit(data()).components_, learnt)
    assert not np.array_equal(rbm.set_params(n_iter=1).fit(data()).components_, learnt)
    with pytest.raises(ValueError, match="n_components must stay 3 with warm_start, got 4"):
        rbm.set_params(n_components=4).fit(data())
    cold = rbm.set_params(n_components=3, n_iter=0, warm_start=False).fit(data())
    assert not np.array_equal(cold.components_, learnt)


def test_parameters_of_a_search_are_numbers_of_numpy() -> None:
    options = {"learning_rate": np.float32(0.5), "n_iter": np.int64(1), "persistent": np.bool_(0)}
    rbm = BernoulliRBM(np.int64(3), **options, random_state=0).fit(some_bits())
    assert rbm.components_.shape == (3, 4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_components": 0}, "num_hidden must be|n_components must be"),
        ({"n_iter": -1}, "n_iter must be"),
        ({"n_steps": 0}, "n_steps must be"),
        ({"n_chains": 0}, "n_chains must be"),
        ({"batch_size": 1.5}, "batch_size must be"),
        ({"learning_rate": -1.0}, "learning_rate must be"),
        ({"optimizer": "none"}, "optimizer must be"),
        ({"binarize": 2}, "binarize must be"),
        ({"scoring": "aic"}, "scoring must be one of"),
        ({"scoring_options": {"seed": 0}}, "which scoring='pseudo' does not take"),
        ({"trainer_options": {"num_epochs": 3}}, "give the argument n_iter instead"),
        ({"trainer_options": {"seed": 3}}, "give the argument random_state instead"),
        ({"trainer_options": {"rate": 3}}, "unknown name 'rate'"),
    ],
)
def test_bad_arguments(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BernoulliRBM(**{"n_components": 3, **arguments}).fit(some_bits())


@pytest.mark.parametrize("name", ["trainer_options", "scoring_options"])
def test_options_are_dictionaries(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a dictionary or None"):
        BernoulliRBM(3, **{name: 3}).fit(some_bits())


def test_numbers_have_no_pseudo_log_likelihood() -> None:
    with pytest.raises(ValueError, match=r"scoring must be one of \('ais', 'exact'\)"):
        GaussianRBM(3, scoring="pseudo").fit(some_numbers())


def test_values_outside_of_the_range() -> None:
    rbm, X = bernoulli_rbm(), some_bits()
    X[3, 2] = 1.5
    for method in (rbm.transform, rbm.score_samples, rbm.score, rbm.gibbs, clone(rbm).fit):
        with pytest.raises(
            ValueError, match=r"values in \[0, 1\].* from 0 to 1\.5; scale the data"
        ):
            method(X)
    clipped = rbm.set_params(clip=True).transform(X)
    assert np.array_equal(clipped, rbm.transform(np.clip(X, 0, 1)))


def test_rates_are_no_bits() -> None:
    with pytest.raises(ValueError, match="support of 'bernoulli' units"):
        BernoulliRBM(3, binarize=False).fit(some_bits() * 0.5)


def test_inverse_transform_takes_hidden_states() -> None:
    with pytest.raises(ValueError, match=r"n_components=3 columns.*got 4"):
        bernoulli_rbm().inverse_transform(some_bits())
