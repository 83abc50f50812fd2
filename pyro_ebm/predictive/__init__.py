# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""How good are conditional models and classifiers? Scores of what they predict.

Everything here is a function of arrays or of distributions, whatever made them: class probabilities
(:func:`classification_report`), predictive distributions of continuous values
(:class:`GaussianMixture`, which :func:`marginal_mixture` makes of a machine), samples by class
(:func:`sample_report`), and machines whose chains must mix (:func:`coupling_spectrum`,
:func:`two_start_rhat`, :func:`statistics_against_chain_length`).

Evaluation is in float64; from devices without it (MPS) move models and data to the CPU first.
"""

from pyro_ebm.predictive.calibration import ClassificationReport, classification_report
from pyro_ebm.predictive.chain_length import (
    ChainLengthStatistics,
    statistics_against_chain_length,
)
from pyro_ebm.predictive.class_quality import ClassQuality
from pyro_ebm.predictive.continuous import marginal_mixture
from pyro_ebm.predictive.coupling import CouplingSpectrum, coupling_spectrum
from pyro_ebm.predictive.estimates import Estimate
from pyro_ebm.predictive.hidden_chain import HiddenStatistics, exact_hidden_statistics
from pyro_ebm.predictive.mixing import TwoStartRhat, two_start_rhat
from pyro_ebm.predictive.mixture import GaussianMixture
from pyro_ebm.predictive.pit import CoverageReport, PitReport, coverage, pit_report
from pyro_ebm.predictive.reliability import ReliabilityTable, reliability_table
from pyro_ebm.predictive.samples import SampleReport, rows_by_class, sample_report
from pyro_ebm.predictive.scores import crps_from_samples, energy_score

__all__ = [
    "ChainLengthStatistics",
    "ClassQuality",
    "ClassificationReport",
    "CouplingSpectrum",
    "CoverageReport",
    "Estimate",
    "GaussianMixture",
    "HiddenStatistics",
    "PitReport",
    "ReliabilityTable",
    "SampleReport",
    "TwoStartRhat",
    "classification_report",
    "coupling_spectrum",
    "coverage",
    "crps_from_samples",
    "energy_score",
    "exact_hidden_statistics",
    "marginal_mixture",
    "pit_report",
    "reliability_table",
    "rows_by_class",
    "sample_report",
    "statistics_against_chain_length",
    "two_start_rhat",
]
