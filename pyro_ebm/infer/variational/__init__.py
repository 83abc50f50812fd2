# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Variational inference with energy-based latent sites."""

from pyro_ebm.infer.variational.importance import importance_log_likelihood
from pyro_ebm.infer.variational.leave_one_out import LeaveOneOutELBO
from pyro_ebm.infer.variational.mean_field_guide import AutoMeanFieldBoltzmann
from pyro_ebm.infer.variational.mean_field_posterior import mean_field_posterior
from pyro_ebm.infer.variational.model_likelihood import ModelLogLikelihood

__all__ = [
    "AutoMeanFieldBoltzmann",
    "LeaveOneOutELBO",
    "ModelLogLikelihood",
    "importance_log_likelihood",
    "mean_field_posterior",
]
