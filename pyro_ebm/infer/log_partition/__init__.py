# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log-partition functions and likelihoods, exact and estimated."""

from pyro_ebm.infer.log_partition.ais import bracket_log_partition, estimate_log_partition
from pyro_ebm.infer.log_partition.estimate import (
    LogPartitionBracket,
    LogPartitionEstimate,
    LogPartitionWarning,
)
from pyro_ebm.infer.log_partition.exact import exact_log_partition
from pyro_ebm.infer.log_partition.likelihood import log_likelihood, pseudo_log_likelihood

__all__ = [
    "LogPartitionBracket",
    "LogPartitionEstimate",
    "LogPartitionWarning",
    "bracket_log_partition",
    "estimate_log_partition",
    "exact_log_partition",
    "log_likelihood",
    "pseudo_log_likelihood",
]
