# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The classifier: exact probabilities of classes, labels of any type, training."""

import copy
import pickle
from itertools import product
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pyro_ebm import nn
from pyro_ebm.estimators import ClassificationRBM
from pyro_ebm.training import Trainer, TrainerConfig
from tests.estimators.machines import randomize, some_bits, some_numbers

NAMES = np.array(["b", "a", "c"])


def some_labels(num_rows: int = 40) -> np.ndarray:
    return NAMES[np.random.RandomState(1).randint(3, size=num_rows)]


def fitted(visible: str = "bernoulli", **options: Any) -> ClassificationRBM:
    X = some_bits() if visible == "bernoulli" else some_numbers()
    arguments = {"n_components": 3, "n_iter": 1, "centered": True, "random_state": 0, **options}
    return ClassificationRBM(visible=visible, **arguments).fit(X, some_labels())


def class_probabilities(rbm: ClassificationRBM, x: np.ndarray) -> np.ndarray:
    """p(y | x) of every class by the sum over hidden states of exp(-E)."""
    state = {name: tensor.numpy() for name, tensor in rbm.module_.state_dict().items()}
    weight, offsets = state["weight"], (state["visible_offset"], state["hidden_offset"])
    label_bias = state["visible.labels.bias"].reshape(-1)
    hidden = np.array(list(product([0.0, 1.0], repeat=weight.shape[1])))
    log_p = np.empty((len(x), 3))
    for i, row in enumerate(x):
        for y in range(3):
            v = np.concatenate([row, np.eye(3)[y]])
            terms = (v - offsets[0]) @ weight @ (hidden - offsets[1]).T
            terms = terms + hidden @ state["hidden.bias"] + label_bias[y]
            log_p[i, y] = np.log(np.exp(terms).sum())
    p = np.exp(log_p)
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("visible, data", [("bernoulli", some_bits), ("gaussian", some_numbers)])
def test_probabilities_are_exact(visible: str, data) -> None:
    rbm, X = randomize(fitted(visible)), data()
    states = X if visible == "bernoulli" else (X - X.mean(0)) / X.std(0)
    expected = class_probabilities(rbm, states)
    np.testing.assert_allclose(rbm.predict_proba(X), expected, atol=1e-9)
    np.testing.assert_allclose(rbm.predict_log_proba(X), np.log(expected), atol=1e-9)
    assert list(rbm.classes_) == ["a", "b", "c"]
    predicted = np.array(["a", "b", "c"])[expected.argmax(1)]
    assert np.array_equal(rbm.predict(X), predicted)
    assert rbm.score(X, some_labels()) == np.mean(predicted == some_labels())


def test_fit_is_a_run_of_the_trainer() -> None:
    X, numbers = some_bits(), torch.tensor([1, 0, 2] * 13 + [1])
    options = {"learning_rate": 0.02, "batch_size": 7, "objective": "hybrid", "seed": 3}
    rbm = ClassificationRBM(
        3,
        learning_rate=0.02,
        batch_size=7,
        n_iter=2,
        generative_weight=0.3,
        trainer_options={"dropout": 0.2},
        random_state=np.random.RandomState(0),
    ).fit(X, np.array(["a", "b", "c"])[numbers])
    source = np.random.RandomState(0)
    options["seed"], weights = (int(source.randint(2**31 - 1)) for _ in range(2))
    module = nn.ClassificationRBM(4, 3, 3, seed=weights, dtype=torch.float64)
    data = torch.from_numpy(X)
    module.visible.inputs.init_from_data(data)
    more = {"generative_weight": 0.3, "dropout": 0.2, "optimizer": "adam", "progress": False}
    Trainer(module, TrainerConfig(num_epochs=2, **options, **more)).fit(module.join(data, numbers))
    assert torch.equal(rbm.module_.weight, module.weight)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["b", "a", "c"]),
        np.array(["b", "a", "c"], dtype=object),
        np.array([3, -1, 7]),
        np.array([2.0, 1.0, 0.0]),
        np.array([True, False]),
    ],
    ids=lambda labels: f"{labels.dtype}{len(labels)}",
)
def test_labels_of_any_type(labels: np.ndarray) -> None:
    X = np.repeat(np.eye(len(labels)), 30, 0)
    y = np.repeat(labels, 30)
    rbm = ClassificationRBM(4, learning_rate=0.1, n_iter=10, random_state=0).fit(X, y)
    assert np.array_equal(rbm.predict(X), y)
    assert rbm.predict(X).dtype == y.dtype
    assert np.array_equal(rbm.classes_, np.unique(labels))


def test_digits() -> None:
    X, y = load_digits(return_X_y=True)
    X = X.astype(np.float32) / 16.0
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.4, random_state=0, stratify=y
    )
    rbm = ClassificationRBM(50, n_iter=6, random_state=0).fit(X_train, y_train)
    assert rbm.score(X_test, y_test) > 0.93
    assert rbm.predict_proba(X_test).dtype == np.float32


def test_generative_objective_draws_bits() -> None:
    X, y = some_bits() * 0.9, some_labels()
    rbm = ClassificationRBM(3, n_iter=2, objective="generative", random_state=0)
    with pytest.raises(ValueError, match="support of 'mixed' units"):
        rbm.fit(X, y)
    assert rbm.set_params(binarize=True).fit(X, y).n_iter_ == 2


def test_sparse() -> None:
    X, y = some_bits(), some_labels()
    fits = [ClassificationRBM(3, random_state=0).fit(x, y) for x in (X, sp.csr_array(X))]
    assert torch.equal(fits[0].module_.weight, fits[1].module_.weight)
    assert np.array_equal(fits[0].predict_proba(X), fits[0].predict_proba(sp.csr_array(X)))


@pytest.mark.parametrize("visible, data", [("bernoulli", some_bits), ("gaussian", some_numbers)])
def test_partial_fit_moves_on(visible: str, data) -> None:
    X, y = data(), some_labels()
    rbm = ClassificationRBM(3, visible=visible, random_state=0)
    with pytest.raises(ValueError, match="classes must be given at the first call"):
        rbm.partial_fit(X, y)
    rbm.partial_fit(X[y != "b"], y[y != "b"], classes=NAMES)
    assert list(rbm.classes_) == ["a", "b", "c"]
    first = rbm.predict_proba(X)
    other = pickle.loads(pickle.dumps(rbm))
    assert not np.array_equal(rbm.partial_fit(X, y).predict_proba(X), first)
    assert rbm.n_iter_ == 2
    assert np.array_equal(other.partial_fit(X, y).predict_proba(X), rbm.predict_proba(X))
    with pytest.raises(ValueError, match=r"classes must stay \['a', 'b', 'c'\]"):
        rbm.partial_fit(X, y, classes=["a", "b"])
    with pytest.raises(ValueError, match=r"y has labels \['d'\]"):
        rbm.partial_fit(X, np.where(y == "a", "d", y))


def test_copies() -> None:
    rbm, X = fitted(), some_bits()
    assert np.array_equal(copy.deepcopy(rbm).predict_proba(X), rbm.predict_proba(X))
    again = clone(rbm).fit(X, some_labels())
    assert np.array_equal(again.predict_proba(X), rbm.predict_proba(X))


def test_warm_start() -> None:
    rbm, X, y = fitted(warm_start=True), some_bits(), some_labels()
    before = rbm.predict_proba(X)
    rbm.set_params(n_iter=0).fit(X, y)
    np.testing.assert_allclose(rbm.predict_proba(X), before, rtol=1e-12)
    with pytest.raises(ValueError, match=r"y has labels \['d'\]"):
        rbm.fit(X, np.where(y == "a", "d", y))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"visible": "ising"}, "visible must be one of"),
        ({"objective": "best"}, "objective must be"),
        ({"generative_weight": -1.0}, "generative_weight must be"),
        ({"trainer_options": {"objective": "hybrid"}}, "give the argument objective instead"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassificationRBM(**{"n_components": 3, **arguments}).fit(some_bits(), some_labels())


def test_bad_data() -> None:
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        ClassificationRBM(3).fit(some_numbers(), some_labels())
    with pytest.raises(ValueError, match="at least 2 classes, got 1 class"):
        ClassificationRBM(3).fit(some_bits(), ["a"] * 40)
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        ClassificationRBM(3).fit(some_bits(), np.linspace(0.0, 1.0, 40))
