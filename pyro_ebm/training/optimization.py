# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Optimiser, schedule and averaging of a training run."""

import math
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_ebm import nn
from pyro_ebm.training.config import TrainerConfig

__all__ = ["Optimization"]

Module = nn.RBM | nn.NeuralBoltzmannMachine


class Optimization:
    """Moves a module's parameters along their gradients.

    :param module: the module.
    :param TrainerConfig config: options of the run.
    :raises ValueError: if the options name a network that the module does not have.
    """

    def __init__(self, module: Module, config: TrainerConfig) -> None:
        self.config = config
        self.optimizer = _make_optimizer(_groups(module, config), config)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        #: The module with averaged parameters, None where nothing is averaged.
        self.averaged: Any = None
        if config.averaging:
            # With the offsets of a centred RBM, which its biases belong to.
            self.averaged = AveragedModel(
                module, multi_avg_fn=get_ema_multi_avg_fn(config.averaging), use_buffers=True
            )
        self._module = module

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters that are trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, progress: float) -> None:
        """One update.

        :param float progress: the part of the run that is over, in [0, 1).
        """
        scale = _SCHEDULES[self.config.learning_rate_schedule](progress)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * scale
        if self.config.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        self.optimizer.step()

    def average(self) -> None:
        """Let the average follow the module; called when an update is complete."""
        if self.averaged is not None:
            self.averaged.update_parameters(self._module)


_SCHEDULES = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def _groups(module: Module, config: TrainerConfig) -> list[dict[str, Any]]:
    rate, decay = config.learning_rate, config.weight_decay
    if isinstance(module, nn.RBM):
        if config.groups:
            raise ValueError(f"groups {sorted(config.groups)} are an option of conditional models")
        weight = module.get_parameter("weight")
        others = [p for p in module.parameters() if p is not weight and p.requires_grad]
        return [
            {"params": [weight] if weight.requires_grad else [], "lr": rate, "weight_decay": decay},
            {"params": others, "lr": rate, "weight_decay": 0.0},
        ]
    networks = module.parameter_groups()
    unknown = sorted(set(config.groups) - set(networks))
    if unknown:
        raise ValueError(f"groups names networks {unknown}; the model has {sorted(networks)}")
    groups = []
    for name, parameters in networks.items():
        options = config.groups.get(name, {})
        groups.append(
            {
                "params": parameters,
                "lr": options.get("learning_rate", rate),
                "weight_decay": options.get("weight_decay", decay if name == "weight" else 0.0),
            }
        )
    return groups


def _make_optimizer(groups: list[dict[str, Any]], config: TrainerConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    try:
        # One pass over all states instead of a dozen: a sixth of the time on a CPU.
        return kind(groups, lr=config.learning_rate, fused=True)
    except RuntimeError:  # not for every device in every version of torch
        return kind(groups, lr=config.learning_rate)
