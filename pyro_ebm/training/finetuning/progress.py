# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Where a run of fine-tuning stands: best epoch, learning rate, when to stop."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from pyro_ebm.training.finetuning.config import FineTuneConfig

__all__ = ["Progress"]


@dataclass
class Progress:
    """What decides about the learning rate and the end of a run; numbers only, so that files can hold it.

    :param int epoch: epochs that are done.
    :param int best_epoch: the epoch with the best validation result, 0 for none so far.
    :param best: its result, larger is better from the first number on.
    :param float scale: what plateaus have multiplied the learning rate by.
    :param int waited: epochs since the last improvement or cut of the learning rate.
    """

    epoch: int = 0
    best_epoch: int = 0
    best: tuple[float, ...] | None = None
    scale: float = 1.0
    waited: int = 0

    def update(self, config: FineTuneConfig, record: dict[str, Any]) -> bool:
        """Take the validation result of the epoch that was done.

        :returns: whether it is the best one.
        """
        loss, accuracy = record["validation_loss"], record["validation_accuracy"]
        result = (accuracy, -loss) if config.monitor == "accuracy" else (-loss,)
        if self.best is None or result > tuple(self.best):
            self.best, self.best_epoch, self.waited = result, self.epoch, 0
            return True
        self.waited += 1
        if config.learning_rate_schedule == "plateau" and self.waited >= config.plateau_patience:
            self.scale *= config.plateau_factor
            self.waited = 0
        return False

    def is_over(self, config: FineTuneConfig) -> bool:
        """Whether nothing is left to be done."""
        if self.epoch >= config.max_epochs:
            return True
        if config.patience is None or self.best_epoch == 0:
            return False
        return self.epoch - self.best_epoch >= config.patience

    def rate(self, config: FineTuneConfig, done: float) -> float:
        """What the learning rate is multiplied by.

        :param float done: epochs that are done, with the part of the one in flight.
        """
        if config.learning_rate_schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done / config.max_epochs))
        return self.scale

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON types."""
        return asdict(self)
