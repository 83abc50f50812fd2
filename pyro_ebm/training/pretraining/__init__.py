# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Greedy training of machines layer by layer, and deep machines that are put together from them."""

from pyro_ebm.training.pretraining.deep import PRETRAINING_METHODS, pretrain
from pyro_ebm.training.pretraining.stack import TrainedStack, train_stack
from pyro_ebm.training.pretraining.tied_trainer import TiedTrainer

__all__ = ["PRETRAINING_METHODS", "TiedTrainer", "TrainedStack", "pretrain", "train_stack"]
