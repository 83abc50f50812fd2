# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Estimators in the hands of scikit-learn's tools, and the forms that data come in."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from pyro_ebm.estimators import BernoulliRBM, GaussianRBM, arrays
from tests.estimators.machines import bernoulli_rbm, gaussian_rbm, some_bits, some_numbers

BOTH = pytest.mark.parametrize(
    "make, data", [(bernoulli_rbm, some_bits), (gaussian_rbm, some_numbers)]
)


def test_grid_search_finds_the_better_setting() -> None:
    """Two copies of the same bits: no machine without a rate to speak of learns that they agree."""
    X = np.tile(some_bits(60, 3), 2)
    rbm = BernoulliRBM(4, optimizer="adam", n_iter=40, persistent=False, random_state=0)
    search = GridSearchCV(rbm, {"learning_rate": [1e-6, 0.3]}, cv=2, refit=False).fit(X)
    worse, better = search.cv_results_["mean_test_score"]
    assert better > worse + 0.5
    assert search.best_params_ == {"learning_rate": 0.3}


def test_features_of_digits() -> None:
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(
        X.astype(np.float32), y, test_size=0.4, random_state=0, stratify=y
    )
    scaler, classifier = MinMaxScaler(clip=True), LogisticRegression(C=100.0, max_iter=1000)
    rbm = BernoulliRBM(64, learning_rate=0.1, batch_size=10, n_iter=8, random_state=0)
    pipeline = make_pipeline(scaler, rbm, classifier).fit(X_train, y_train)
    assert pipeline.score(X_test, y_test) > 0.93


@BOTH
def test_names_of_features(make, data) -> None:
    pandas = pytest.importorskip("pandas")
    rbm = make()
    name = type(rbm).__name__.lower()
    frame = pandas.DataFrame(data(), columns=[f"x{i}" for i in range(data().shape[1])])
    rbm = rbm.fit(frame)
    assert list(rbm.feature_names_in_) == list(frame.columns)
    assert list(rbm.get_feature_names_out()) == [f"{name}{i}" for i in range(3)]
    out = rbm.set_output(transform="pandas").transform(frame)
    assert list(out.columns) == [f"{name}{i}" for i in range(3)]
    with pytest.raises(ValueError, match="feature names should match"):
        rbm.transform(frame.rename(columns={"x0": "y0"}))


@BOTH
def test_types(make, data) -> None:
    rbm = make()
    for dtype in (np.float32, np.float64):
        X = data().astype(dtype)
        h = rbm.transform(X)
        assert h.dtype == rbm.inverse_transform(h).dtype == rbm.gibbs(X).dtype == dtype
        assert rbm.score_samples(X).dtype == dtype
        fitted = rbm.__class__(3, n_iter=1).fit(X)
        assert fitted.components_.dtype == fitted.sample(2).dtype == dtype
        assert isinstance(fitted.score(X), float)


@BOTH
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csr_array, sp.csc_array])
def test_sparse(make, data, form) -> None:
    rbm = make()
    X = data() * (data() > 0.0)
    for method in ("transform", "score_samples", "score"):
        np.testing.assert_allclose(getattr(rbm, method)(form(X)), getattr(rbm, method)(X))
    kind, options = type(rbm), {"n_iter": 2, "random_state": 0}
    fits = [kind(3, **options).fit(x).components_ for x in (X, form(X))]
    assert np.array_equal(*fits)


def test_sparse_rates() -> None:
    X = some_bits() * 0.5
    fits = [BernoulliRBM(3, random_state=0).fit(x).components_ for x in (X, sp.csr_array(X))]
    assert np.array_equal(*fits)
    out = bernoulli_rbm().set_params(clip=True).transform(sp.csr_array(some_bits() * 3.0))
    assert np.array_equal(out, bernoulli_rbm().transform(some_bits()))


@BOTH
def test_blocks_are_no_part_of_the_result(make, data, monkeypatch: pytest.MonkeyPatch) -> None:
    rbm = make()
    whole = rbm.transform(data()), rbm.score_samples(data())
    monkeypatch.setattr(arrays, "_BLOCK_ENTRIES", 20)
    np.testing.assert_allclose(rbm.transform(data()), whole[0], rtol=1e-12)
    np.testing.assert_allclose(rbm.score_samples(data()), whole[1], rtol=1e-12)


def test_arrays_in_any_memory() -> None:
    X = some_bits()
    readonly = X.copy()
    readonly.flags.writeable = False
    fits = [
        BernoulliRBM(3, random_state=0).fit(x).components_
        for x in (X, np.asfortranarray(X), X[::-1][::-1], readonly, X.astype(int), X > 0.5)
    ]
    assert all(np.array_equal(fit, fits[0]) for fit in fits)


def test_data_are_left_alone() -> None:
    for rbm, X in (
        (BernoulliRBM(3, clip=True), some_bits() * 3.0),
        (GaussianRBM(3), some_numbers()),
    ):
        before = X.copy()
        rbm.fit(X).transform(X)
        assert np.array_equal(X, before)
