# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The gradient of the variational bound of a deep machine whose log Z can be enumerated."""

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.exact_gradient import refuse_statistics
from pyro_ebm.training.offsets import follow_hidden_means
from pyro_ebm.training.regularizers import layer_option

__all__ = ["DeepExactGradient"]


class DeepExactGradient:
    r"""Writes the gradient of :math:`\log Z - \langle \mathcal{L}(v) \rangle_{data}` to a module's ``.grad``.

    :math:`\mathcal{L}(v) \le \log p^*(v)` is the mean-field bound, and log Z is summed in float64 over all
    even or all odd layers, whichever have fewer states: at most about 20 bits. The gradient goes through
    autograd, without chains; it is what that of :class:`~pyro_ebm.training.deep_gradient.DeepGradient` is on
    average where the chains are in equilibrium.

    :param module: the module.
    :param TrainerConfig config: options of the run.
    :raises ValueError: for a machine that cannot be enumerated, or options of chains.
    """

    def __init__(self, module: nn.DBM, config: TrainerConfig) -> None:
        refuse_statistics(config)
        for number in range(1, module.depth + 1):
            if layer_option(config, "sparsity_cost", number):
                raise ValueError("sparsity_cost is no option of negative_phase='exact'")
        self.module = module
        self.config = config
        self.chains: Tensor | None = None
        #: Means of the hidden layers of the rows of the last batch.
        self.hidden_means: tuple[Tensor, ...] | None = None
        with torch.no_grad():
            exact_log_partition(module().bipartite())

    def start_epoch(self, epoch: int) -> None:
        """No schedule concerns it."""

    def __call__(self, batch: Tensor, rows: Tensor | None = None) -> None:
        """Set the gradients for a batch.

        :param Tensor batch: shape ``(rows, V)``, of the module's dtype and device.
        :param Tensor rows: not used.
        """
        with torch.enable_grad():
            dist = self.module(validate_args=False)
            found = dist.mean_field(
                batch,
                max_updates=self.config.mean_field_updates,
                tolerance=self.config.mean_field_tolerance,
            )
            bound = found.bound.mean()
            loss = exact_log_partition(dist.bipartite()).to(bound.dtype) - bound
        for parameter in self.module.parameters():
            parameter.grad = None
        loss.backward()
        self.hidden_means = tuple(mean.detach().mean(0) for mean in found.means)

    def after_step(self) -> None:
        """Let the hidden offsets of a centred module follow the means of the last batch."""
        follow_hidden_means(self.module, self.hidden_means, self.config.offset_rate)

    def after_epoch(self) -> None:
        """Nothing is kept from epoch to epoch."""

    def state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to take back."""
