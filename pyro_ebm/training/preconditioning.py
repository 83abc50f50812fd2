# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Directions of steepest descent other than that of the gradient."""

from typing import Protocol

from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.diagonal_fisher import DiagonalFisher
from pyro_ebm.training.natural_gradient import (
    EnumeratedFisher,
    SampledFisher,
    is_cheap_to_enumerate,
)
from pyro_ebm.training.phase_statistics import Statistics
from pyro_ebm.training.standardization import Standardization

__all__ = ["Preconditioner", "Statistics", "make_preconditioner"]

#: Options under which chains are not of the machine that the Fisher information is of.
_OTHER_MACHINES = {
    "dropout": 0.0,
    "dropconnect": 0.0,
    "fast_rate": 0.0,
    "chain_hidden": "sample",
    "chain_visible": "sample",
}


class Preconditioner(Protocol):
    """Turns the gradient of the likelihood into another direction of descent."""

    def __call__(self, dist: RBM, data: Statistics, model: Statistics) -> None:
        """Change the gradients of the module.

        :param RBM dist: the machine.
        :param Statistics data: the positive side.
        :param Statistics model: the negative side.
        """

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""


def make_preconditioner(module: nn.RBM, config: TrainerConfig) -> Preconditioner | None:
    """The preconditioner of a configuration, None for the plain gradient.

    :param module: the module.
    :param TrainerConfig config: ``preconditioner``, ``damping``, and what must agree with them.
    :raises ValueError: for a machine, or other options, that cannot have it.
    """
    name = config.preconditioner
    if name == "none":
        return None
    rate = config.offset_rate or 0.01
    if name == "standardize":
        return Standardization(module, rate, config.damping)
    _check(module, config)
    if name == "diagonal":
        return DiagonalFisher(module, rate, config.damping)
    if config.negative_phase == "exact" or is_cheap_to_enumerate(module):
        return EnumeratedFisher(module, config.damping)
    return SampledFisher(module, config.damping)


def _check(module: nn.RBM, config: TrainerConfig) -> None:
    """Refuse what makes a Fisher information another one, or undoes the division by it."""
    option = f"preconditioner={config.preconditioner!r}"
    if config.optimizer.lower() not in ("sgd", "asgd"):
        raise ValueError(
            f"{option} has no effect beside {config.optimizer!r}, which scales every parameter by "
            "itself; take optimizer='sgd'"
        )
    if isinstance(module, nn.ClassificationRBM):
        raise ValueError(f"{option} is not for visible units with labels (nn.ClassificationRBM)")
    for name, default in _OTHER_MACHINES.items():
        if getattr(config, name) != default:
            raise ValueError(
                f"{name} and {option} exclude each other: the Fisher information is that of the "
                "whole machine, in states of its own"
            )
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError(f"{option} needs at least one parameter that is trained")
    if (config.num_chains or config.batch_size) == 1:
        raise ValueError(f"{option} needs num_chains of at least 2: one has no variance")
