# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The gradient of the exact likelihood of an RBM that can be enumerated."""

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.natural_gradient import EnumeratedFisher
from pyro_ebm.training.offsets import follow_hidden_mean
from pyro_ebm.training.preconditioning import make_preconditioner

__all__ = ["ExactGradient", "refuse_statistics"]

#: Options of the averages of contrastive divergence, which the exact gradient does not take.
_OF_STATISTICS = {
    "chain_start": "data",
    "chain_hidden": "sample",
    "chain_visible": "sample",
    "positive_hidden": "mean",
    "negative_hidden": "mean",
    "sparsity_cost": 0.0,
    "dropout": 0.0,
    "dropconnect": 0.0,
}


def refuse_statistics(config: TrainerConfig) -> None:
    """Refuse options of averages over states.

    :raises ValueError: naming the option.
    """
    for name, default in _OF_STATISTICS.items():
        if getattr(config, name) != default:
            raise ValueError(f"{name} is no option of negative_phase='exact'")


class ExactGradient:
    r"""Writes the gradient of :math:`\langle F(v) \rangle_{data} + \log Z` to a module's ``.grad``.

    Without chains and without noise, for a layer of at most about 20 bits. The states are summed in float64,
    whatever the module's type. With ``preconditioner="natural"`` (a visible layer that can be enumerated) it
    is the natural gradient, see :class:`~pyro_ebm.training.natural_gradient.EnumeratedFisher`.

    :param module: the module.
    :param TrainerConfig config: options of the run.
    :raises ValueError: for a machine that cannot be enumerated, or options of chains.
    """

    def __init__(self, module: nn.RBM, config: TrainerConfig) -> None:
        refuse_statistics(config)
        if config.preconditioner not in ("none", "natural"):
            raise ValueError(
                "preconditioner is no option of negative_phase='exact', unless it is 'natural', got "
                f"{config.preconditioner!r}"
            )
        self.module = module
        self.config = config
        self.chains: Tensor | None = None
        self._hidden_mean: Tensor | None = None
        with torch.no_grad():
            exact_log_partition(module())
        preconditioner = make_preconditioner(module, config)
        assert preconditioner is None or isinstance(preconditioner, EnumeratedFisher)
        self._natural = preconditioner

    def start_epoch(self, epoch: int) -> None:
        """No schedule concerns it."""

    def __call__(self, batch: Tensor, rows: Tensor | None = None) -> None:
        """Set the gradients for a batch.

        :param Tensor batch: shape ``(rows, V)``, of the module's dtype and device.
        :param Tensor rows: not used.
        """
        with torch.enable_grad():
            dist = self.module(validate_args=False)
            free_energy = dist.free_energy(batch).mean()
            loss = free_energy + exact_log_partition(dist).to(free_energy.dtype)
        for parameter in self.module.parameters():
            parameter.grad = None
        loss.backward()
        if self._natural is not None:
            self._natural(dist)
        if self.module.centered:
            with torch.no_grad():
                self._hidden_mean = dist.hidden.mean(dist.hidden_field(batch)).mean(0)

    def after_step(self) -> None:
        """Let the hidden offset of a centred module follow the mean of the last batch."""
        follow_hidden_mean(self.module, self._hidden_mean, self.config.offset_rate)

    def after_epoch(self) -> None:
        """Nothing is kept from epoch to epoch."""

    def state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to take back."""
