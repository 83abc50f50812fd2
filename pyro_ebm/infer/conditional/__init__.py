# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Evaluation of conditional machines p(y | x), whose parameters depend on a context x.

Evaluation is in float64; from devices without it (MPS) move models and data to the CPU first.
"""

from pyro_ebm.infer.conditional.by_class import MachinesByClass
from pyro_ebm.infer.conditional.classifier import BayesClassifier, ClassificationBounds
from pyro_ebm.infer.conditional.contexts import ConditionalModel, unique_contexts
from pyro_ebm.infer.conditional.likelihood import (
    ConditionalLikelihood,
    conditional_likelihood,
    conditional_log_likelihood,
)
from pyro_ebm.infer.conditional.nll import conditional_nll
from pyro_ebm.infer.conditional.partition import conditional_log_partition

__all__ = [
    "BayesClassifier",
    "ClassificationBounds",
    "ConditionalLikelihood",
    "ConditionalModel",
    "MachinesByClass",
    "conditional_likelihood",
    "conditional_log_likelihood",
    "conditional_log_partition",
    "conditional_nll",
    "unique_contexts",
]
