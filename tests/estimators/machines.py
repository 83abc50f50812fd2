# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Small fitted estimators with parameters that are far from zero, and the same for brute force."""

from typing import Any

import numpy as np
import torch

from pyro_ebm.estimators import BernoulliRBM, GaussianRBM
from tests.brute_force import Machine
from tests.training.machines import to_machine


def some_bits(num_rows: int = 40, num_features: int = 4, seed: int = 0) -> np.ndarray:
    """Rows of bits, float64."""
    rates = np.linspace(0.2, 0.8, num_features)
    return (np.random.RandomState(seed).uniform(size=(num_rows, num_features)) < rates).astype(
        float
    )


def some_numbers(num_rows: int = 40, num_features: int = 2, seed: int = 0) -> np.ndarray:
    """Rows of real numbers of different scales, float64."""
    noise = np.random.RandomState(seed).normal(size=(num_rows, num_features))
    return noise * np.linspace(0.5, 3.0, num_features) + np.linspace(-2.0, 5.0, num_features)


@torch.no_grad()
def randomize(estimator: Any) -> Any:
    """Give a fitted estimator random parameters and offsets, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in estimator.module_.state_dict().items():
        if not name.endswith("log_precision"):
            bound = 0.7 if name == "weight" else 1.0
            tensor.uniform_(-bound, bound, generator=generator)
    return estimator


def bernoulli_rbm(**options: Any) -> BernoulliRBM:
    """Four bits, three hidden units, offsets."""
    arguments = {"n_components": 3, "n_iter": 1, "centered": True, "random_state": 0, **options}
    return randomize(BernoulliRBM(**arguments).fit(some_bits()))


def gaussian_rbm(**options: Any) -> GaussianRBM:
    """Two real numbers, three hidden units."""
    arguments = {"n_components": 3, "n_iter": 1, "random_state": 0, "scoring": "exact", **options}
    return randomize(GaussianRBM(**arguments).fit(some_numbers()))


def machine_of(estimator: Any) -> Machine:
    """The machine of standardised rows for brute force."""
    return to_machine(estimator.module_)
