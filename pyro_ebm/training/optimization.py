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
from pyro_ebm.training.config_checks import make_optimizer, make_scheduler
from pyro_ebm.training.regularizers import layer_option, restore_max_norm, shrink
from pyro_ebm.training.schedules import value_at
from pyro_ebm.training.weights import weights_of

__all__ = ["Optimization"]

Module = nn.RBM | nn.DBM | nn.NeuralBoltzmannMachine


class Optimization:
    """Moves a module's parameters along their gradients.

    :param module: the module.
    :param TrainerConfig config: options of the run.
    :raises ValueError: if the options name a network that the module does not have.
    """

    def __init__(self, module: Module, config: TrainerConfig) -> None:
        self.config = config
        groups = _groups(module, config)
        self.optimizer: torch.optim.Optimizer = make_optimizer(config, groups)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        #: torch's schedule of the learning rate, None for ours.
        self.scheduler: Any = make_scheduler(config, self.optimizer)
        #: The module with averaged parameters, None where nothing is averaged.
        self.averaged: Any = None
        if config.averaging:
            # With the offsets of a centred RBM, which its biases belong to.
            self.averaged = AveragedModel(
                module, multi_avg_fn=get_ema_multi_avg_fn(config.averaging), use_buffers=True
            )
        self._module = module
        #: Weights that are trained, with the largest norms of their columns.
        self._weights: list[tuple[Parameter, float | None]] = []
        if not isinstance(module, nn.NeuralBoltzmannMachine):
            self._weights = [
                (weight, layer_option(config, "max_norm", number))
                for number, weight in enumerate(weights_of(module), start=1)
                if weight.requires_grad
            ]
        self._l1 = self._decay = self._scale = 0.0
        self.start_epoch(0)

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters that are trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def start_epoch(self, epoch: int) -> None:
        """Take the values of the schedules.

        :param int epoch: epochs that are done.
        """
        config = self.config
        decay = float(value_at(config.weight_decay, epoch))
        self._l1 = float(value_at(config.l1, epoch))
        self._decay = decay if config.decoupled_weight_decay else 0.0
        self._scale = value_at(config.learning_rate, epoch) / value_at(config.learning_rate, 0)
        for group in self.optimizer.param_groups:
            if config.momentum and "momentum" in group:
                group["momentum"] = float(value_at(config.momentum, epoch))
            if group["decays"] and not config.decoupled_weight_decay:
                group["weight_decay"] = decay

    def step(self, progress: float) -> None:
        """One update.

        :param float progress: the part of the run that is over, in [0, 1).
        """
        config = self.config
        if self.scheduler is None:
            scale = self._scale * _SCHEDULES[config.learning_rate_schedule](progress)
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * scale
        for weight, _ in self._weights if self._l1 else ():
            if weight.grad is not None:
                weight.grad.add_(weight.detach().sign(), alpha=self._l1)
        if config.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip)
        for weight, _ in self._weights if self._decay else ():
            shrink(weight, float(self.optimizer.param_groups[0]["lr"]) * self._decay)
        self.optimizer.step()
        for weight, max_norm in self._weights:
            if max_norm is not None:
                restore_max_norm(weight, max_norm)

    def average(self) -> None:
        """Let the average follow the module; called when an update is complete."""
        if self.averaged is not None:
            self.averaged.update_parameters(self._module)

    def finish_epoch(self) -> None:
        """Let torch's schedule make its step."""
        if self.scheduler is not None:
            self.scheduler.step()

    def schedule_state(self) -> dict[str, Any]:
        """How far torch's schedule has got, JSON types; empty for ours.

        What follows from its options is not in it: JSON would make other types of some of that.
        """
        if self.scheduler is None:
            return {}
        state = self.scheduler.state_dict()
        return {name: state[name] for name in _SCHEDULE_STATE if name in state}

    def restore_schedule(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`schedule_state` gave; for a run with the same rate and schedule."""
        if self.scheduler is None or not state:
            return
        self.scheduler.load_state_dict(state)
        for group, rate in zip(self.optimizer.param_groups, state["_last_lr"], strict=True):
            group["lr"] = rate


#: Attributes of torch's schedules that change as they go on.
_SCHEDULE_STATE = (
    "last_epoch",
    "_step_count",
    "_last_lr",
    "T_cur",
    "T_i",
    "best",
    "num_bad_epochs",
    "cooldown_counter",
)

_SCHEDULES = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def _groups(module: Module, config: TrainerConfig) -> list[dict[str, Any]]:
    rate, decay = value_at(config.learning_rate, 0), value_at(config.weight_decay, 0)
    if config.decoupled_weight_decay:
        decay = 0.0  # of an RBM; done in the update
    if not isinstance(module, nn.NeuralBoltzmannMachine):
        weights = weights_of(module)
        trained = [weight for weight in weights if weight.requires_grad]
        known = {id(weight) for weight in weights}
        others = [p for p in module.parameters() if id(p) not in known and p.requires_grad]
        return [
            {"params": trained, "lr": rate, "weight_decay": decay, "decays": True},
            {"params": others, "lr": rate, "weight_decay": 0.0, "decays": False},
        ]
    networks = module.parameter_groups()
    unknown = sorted(set(config.groups) - set(networks))
    if unknown:
        raise ValueError(f"groups names networks {unknown}; the model has {sorted(networks)}")
    groups = []
    for name, parameters in networks.items():
        options = config.groups.get(name, {})
        decays = name == "weight" and "weight_decay" not in options
        groups.append(
            {
                "params": parameters,
                "lr": options.get("learning_rate", rate),
                "weight_decay": options.get("weight_decay", decay if decays else 0.0),
                "decays": decays,
            }
        )
    return groups
