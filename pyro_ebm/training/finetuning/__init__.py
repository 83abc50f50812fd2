# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Discriminative fine-tuning of networks that start as Boltzmann machines."""

from pyro_ebm.training.finetuning.classifier import FeedForwardClassifier
from pyro_ebm.training.finetuning.config import FineTuneConfig
from pyro_ebm.training.finetuning.layers import MeanLayer
from pyro_ebm.training.finetuning.mean_field import MeanFieldInputs
from pyro_ebm.training.finetuning.splits import (
    labelled_subset,
    stratified_folds,
    stratified_split,
)
from pyro_ebm.training.finetuning.tuner import FineTuner

__all__ = [
    "FeedForwardClassifier",
    "FineTuneConfig",
    "FineTuner",
    "MeanFieldInputs",
    "MeanLayer",
    "labelled_subset",
    "stratified_folds",
    "stratified_split",
]
