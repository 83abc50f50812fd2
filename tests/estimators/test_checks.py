# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The checks that scikit-learn makes of an estimator."""

from typing import Any

import pytest
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from pyro_ebm.estimators import BernoulliRBM, ClassificationRBM, GaussianRBM

SMALL: dict[str, Any] = {"n_components": 4, "n_iter": 2, "batch_size": 20}

# The checks' data are real numbers of any size, which bits are made of only with clip=True.
ESTIMATORS = [
    BernoulliRBM(clip=True, **SMALL),
    GaussianRBM(scoring="exact", **SMALL),
    ClassificationRBM(8, clip=True, learning_rate=0.1, batch_size=30, n_iter=8),
    ClassificationRBM(8, visible="gaussian", learning_rate=0.1, batch_size=30, n_iter=4),
]


@parametrize_with_checks(ESTIMATORS)
def test_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [
        BernoulliRBM(clip=True),
        GaussianRBM(),
        ClassificationRBM(clip=True),
        ClassificationRBM(visible="gaussian"),
    ],
    ids=repr,
)
def test_checks_with_default_arguments(estimator: Any) -> None:
    check_estimator(estimator, on_skip=None)


def test_without_clip_the_values_of_the_data_are_all_that_fails() -> None:
    results = check_estimator(BernoulliRBM(**SMALL), on_fail=None, on_skip=None)
    failed = [result for result in results if result["status"] == "failed"]
    assert failed
    assert all("X must have values in [0, 1]" in str(result["exception"]) for result in failed)
