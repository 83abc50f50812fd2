# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Rows with missing entries: their likelihood, and draws of what is missing."""

from pyro_ebm.infer.missing.absent import (
    absent_log_likelihood,
    absent_log_partition,
    predict_absent,
)
from pyro_ebm.infer.missing.imputation import Imputation, impute
from pyro_ebm.infer.missing.likelihood import observed_log_likelihood
from pyro_ebm.infer.missing.result import ObservedLogLikelihood

__all__ = [
    "Imputation",
    "ObservedLogLikelihood",
    "absent_log_likelihood",
    "absent_log_partition",
    "impute",
    "observed_log_likelihood",
    "predict_absent",
]
