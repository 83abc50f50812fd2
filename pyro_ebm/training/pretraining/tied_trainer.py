# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The training loop of machines with tied copies of a layer."""

from torch import Generator, Tensor

from pyro_ebm.nn.tied_rbm import TiedRBM
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.trainer import Trainer
from pyro_ebm.training.training_data import TrainingData

__all__ = ["TiedTrainer"]


class TiedTrainer(Trainer):
    r"""Trains a :class:`~pyro_ebm.nn.tied_rbm.TiedRBM`, whose visible copies are all the row of the data.

    What rows are, and what may be drawn from them, is as for one copy; then the sum of the copies is n times
    the state. The gradient is the exact one of contrastive divergence of the machine with copies: that of
    the weight is n times what a program adds up that writes :math:`\sigma(c + n W^\top v)` into the
    updates of an RBM, so that a learning rate of such a program is to be divided by n.

    :param module: the machine.
    :param TrainerConfig config: options, see :class:`~pyro_ebm.training.Trainer`.
    :raises TypeError: for another module.
    :raises ValueError: see there; or for a sparsity penalty on a hidden layer of several copies.
    """

    module: TiedRBM

    def __init__(self, module: TiedRBM, config: TrainerConfig) -> None:
        if not isinstance(module, TiedRBM):
            raise TypeError(f"module must be a TiedRBM, got {type(module).__name__}")
        if config.sparsity_cost and module.hidden_copies > 1:
            raise ValueError("sparsity_cost is no option of a hidden layer of several tied copies")
        super().__init__(module, config)

    def _states(self, rows: Tensor, generator: Generator) -> Tensor:
        return super()._states(rows, generator) * self.module.visible_copies

    def _start(self, train: TrainingData) -> None:
        super()._start(train)
        if self.module.centered and self.epoch == 0:
            # At the mean of the sum; the other has put it at that of one copy.
            others = self.module.visible_copies - 1
            self.module.shift_offsets(others * self.module.visible_offset)
