# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log-partition functions and likelihoods, exact and estimated."""

from pyro_ebm.infer.log_partition.ais import bracket_log_partition, estimate_log_partition
from pyro_ebm.infer.log_partition.ais_kernel import AIS, WeightedMean
from pyro_ebm.infer.log_partition.bennett import LogRatio, bennett_acceptance_ratio
from pyro_ebm.infer.log_partition.bidirectional import bidirectional_log_partition
from pyro_ebm.infer.log_partition.bracket import LogPartitionBracket
from pyro_ebm.infer.log_partition.combine import combine_estimates
from pyro_ebm.infer.log_partition.compare import LogPartitionComparison, compare_log_partition
from pyro_ebm.infer.log_partition.deep_estimate import DeepLogLikelihood
from pyro_ebm.infer.log_partition.deep_likelihood import deep_log_likelihood
from pyro_ebm.infer.log_partition.estimate import LogPartitionEstimate, LogPartitionWarning
from pyro_ebm.infer.log_partition.exact import exact_log_partition
from pyro_ebm.infer.log_partition.likelihood import log_likelihood, pseudo_log_likelihood
from pyro_ebm.infer.log_partition.likelihood_estimate import LogLikelihoodEstimate
from pyro_ebm.infer.log_partition.moments_exact import MachineMoments, exact_moments
from pyro_ebm.infer.log_partition.multistate import mbar
from pyro_ebm.infer.log_partition.raise_ import raise_log_likelihood
from pyro_ebm.infer.log_partition.report import load_json, table_rows, to_latex, to_markdown
from pyro_ebm.infer.log_partition.tempering import tempering_estimates, tempering_log_partition
from pyro_ebm.infer.log_partition.thermodynamic import (
    ThermodynamicIntegral,
    thermodynamic_integration,
)
from pyro_ebm.infer.log_partition.trajectory import trajectory_log_partition

__all__ = [
    "AIS",
    "DeepLogLikelihood",
    "LogLikelihoodEstimate",
    "LogPartitionBracket",
    "LogPartitionComparison",
    "LogPartitionEstimate",
    "LogPartitionWarning",
    "LogRatio",
    "MachineMoments",
    "ThermodynamicIntegral",
    "WeightedMean",
    "bennett_acceptance_ratio",
    "bidirectional_log_partition",
    "bracket_log_partition",
    "combine_estimates",
    "compare_log_partition",
    "deep_log_likelihood",
    "estimate_log_partition",
    "exact_log_partition",
    "exact_moments",
    "load_json",
    "log_likelihood",
    "mbar",
    "pseudo_log_likelihood",
    "raise_log_likelihood",
    "table_rows",
    "tempering_estimates",
    "tempering_log_partition",
    "thermodynamic_integration",
    "to_latex",
    "to_markdown",
    "trajectory_log_partition",
]
