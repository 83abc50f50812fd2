# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Boltzmann machines as estimators of scikit-learn. Needs scikit-learn 1.6 or newer."""

try:
    from sklearn.utils.validation import validate_data as _validate_data  # noqa: F401
except ImportError as error:
    raise ImportError(
        "pyro_ebm.estimators needs scikit-learn 1.6 or newer: pip install 'pyro-ebm[sklearn]'"
    ) from error

from pyro_ebm.estimators.bernoulli import BernoulliRBM
from pyro_ebm.estimators.classification import ClassificationRBM
from pyro_ebm.estimators.deep import DeepBoltzmannMachine
from pyro_ebm.estimators.gaussian import GaussianRBM

__all__ = ["BernoulliRBM", "ClassificationRBM", "DeepBoltzmannMachine", "GaussianRBM"]
