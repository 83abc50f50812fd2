# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Other conditional models of known likelihood, which the examples compare with."""

from .by_class import ClassModels, class_posterior, log_evidence
from .cvae import ConditionalVAE, fit_cvae
from .factor_analysis import FactorAnalysis, fit_factor_analysis, fit_ppca
from .independent import IndependentUnits, fit_independent
from .mdn import MixtureDensityNetwork, fit_mdn
from .ratings import BiasModel, MatrixFactorization, fit_als, fit_biases, item_probabilities

__all__ = [
    "BiasModel",
    "ClassModels",
    "ConditionalVAE",
    "FactorAnalysis",
    "IndependentUnits",
    "MatrixFactorization",
    "MixtureDensityNetwork",
    "class_posterior",
    "fit_als",
    "fit_biases",
    "fit_cvae",
    "fit_factor_analysis",
    "fit_independent",
    "fit_mdn",
    "fit_ppca",
    "item_probabilities",
    "log_evidence",
]
