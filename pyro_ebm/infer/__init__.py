# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What is done with a Boltzmann machine: sampling, log Z, objectives."""

from pyro_ebm.infer.contrastive import ContrastiveDivergence
from pyro_ebm.infer.log_partition import (
    LogPartitionBracket,
    LogPartitionEstimate,
    LogPartitionWarning,
    bracket_log_partition,
    estimate_log_partition,
    exact_log_partition,
    log_likelihood,
    pseudo_log_likelihood,
)
from pyro_ebm.infer.mcmc import BlockGibbs, VectorizedMCMC

__all__ = [
    "BlockGibbs",
    "ContrastiveDivergence",
    "LogPartitionBracket",
    "LogPartitionEstimate",
    "LogPartitionWarning",
    "VectorizedMCMC",
    "bracket_log_partition",
    "estimate_log_partition",
    "exact_log_partition",
    "log_likelihood",
    "pseudo_log_likelihood",
]
