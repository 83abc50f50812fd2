# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Training of Boltzmann machines."""

from pyro_ebm.training.callbacks import Callback
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.finetuning import FeedForwardClassifier, FineTuneConfig, FineTuner
from pyro_ebm.training.history_file import HistoryFile
from pyro_ebm.training.presets import paper_config
from pyro_ebm.training.pretraining import TiedTrainer, TrainedStack, pretrain, train_stack
from pyro_ebm.training.tensorboard import TensorBoardLogger
from pyro_ebm.training.trainer import Trainer, TrainingDivergedError

__all__ = [
    "Callback",
    "FeedForwardClassifier",
    "FineTuneConfig",
    "FineTuner",
    "HistoryFile",
    "TensorBoardLogger",
    "TiedTrainer",
    "TrainedStack",
    "Trainer",
    "TrainerConfig",
    "TrainingDivergedError",
    "paper_config",
    "pretrain",
    "train_stack",
]
