# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The whole state of a training run in one safetensors file."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.nn.serialization import (
    ModelFileError,
    build,
    describe,
    read_tensors,
    write_tensors,
)
from pyro_ebm.training.config import TrainerConfig

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]

_OPTIMIZER, _STATE, _AVERAGE = "optimizer.", "training.", "average."
_GENERATOR = "training.generator"


@dataclass(frozen=True)
class Checkpoint:
    """A training run at the end of an epoch.

    :param module: the module; parameters that are not trained require no gradient.
    :param config: the options of the run.
    :param epoch: epochs done.
    :param history: metrics of the epochs done.
    :param optimizer: state of the optimiser, as its ``state_dict()["state"]``.
    :param state: tensors of the gradient, such as persistent chains, by name.
    :param generator: state of the random generator.
    :param average: the averaged parameters, as their ``state_dict()``; empty for none.
    :param schedule: the state of torch's schedule of the learning rate; empty for none.
    """

    module: nn.RBM | nn.DBM | nn.NeuralBoltzmannMachine
    config: TrainerConfig
    epoch: int
    history: list[dict[str, Any]]
    optimizer: dict[int, dict[str, Any]]
    state: dict[str, Tensor]
    generator: Tensor
    average: dict[str, Tensor]
    schedule: dict[str, Any]


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically; :func:`pyro_ebm.load` reads the module from it too."""
    tensors = dict(checkpoint.module.state_dict())
    for index, state in checkpoint.optimizer.items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{index}.{name}"] = value
    tensors |= {f"{_STATE}{name}": value for name, value in checkpoint.state.items()}
    tensors |= {f"{_AVERAGE}{name}": value for name, value in checkpoint.average.items()}
    tensors[_GENERATOR] = checkpoint.generator
    metadata = {
        "model": describe(checkpoint.module),
        "training": checkpoint.config.to_dict(),
        "epoch": checkpoint.epoch,
        "history": checkpoint.history,
        "schedule": checkpoint.schedule,
        "trained": [n for n, p in checkpoint.module.named_parameters() if p.requires_grad],
    }
    write_tensors(path, tensors, metadata)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what :func:`write_checkpoint` wrote.

    :raises FileNotFoundError: if there is no such file.
    :raises ~pyro_ebm.nn.ModelFileError: if the file is damaged or no checkpoint.
    """
    tensors, metadata = read_tensors(path)
    if "training" not in metadata or _GENERATOR not in tensors:
        raise ModelFileError(f"{path} holds a model, but not the state of a training run")
    module = build(metadata.get("model"), Path(path))
    optimizer: dict[int, dict[str, Any]] = {}
    try:
        names = list(module.state_dict())
        module = module.to(dtype=tensors[names[0]].dtype)
        for name, value in _part(tensors, _OPTIMIZER).items():
            index, key = name.split(".", 1)
            optimizer.setdefault(int(index), {})[key] = value
        module.load_state_dict({name: tensors[name] for name in names})
        _freeze_others(module, metadata.get("trained"))
        config = TrainerConfig.from_dict(metadata["training"])
        epoch, history = int(metadata["epoch"]), list(metadata["history"])
        schedule = dict(metadata.get("schedule", {}))
        state = _part(tensors, _STATE)
        generator = state.pop("generator").to(torch.uint8)
        _check_chains(state.get("chains"), module, tensors[names[0]].dtype)
        if epoch < 0:
            raise ValueError(f"epoch {epoch}")
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: damaged checkpoint ({error!r})") from error
    average = _part(tensors, _AVERAGE)
    return Checkpoint(
        module, config, epoch, history, optimizer, state, generator, average, schedule
    )


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _freeze_others(module: nn.RBM | nn.DBM | nn.NeuralBoltzmannMachine, trained: Any) -> None:
    """Let only the named parameters be trained; all of them in files of before there were names."""
    if trained is None:
        return
    parameters = dict(module.named_parameters())
    unknown = sorted(set(trained) - set(parameters))
    if unknown:
        raise ValueError(f"trained parameters {unknown}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)


def _check_chains(
    chains: Tensor | None,
    module: nn.RBM | nn.DBM | nn.NeuralBoltzmannMachine,
    dtype: torch.dtype,
) -> None:
    if chains is None:
        return
    if isinstance(module, nn.RBM):
        fits = chains.dim() == 2 and chains.shape[1] == len(module.get_parameter("weight"))
    elif isinstance(module, nn.DBM):
        fits = chains.dim() == 2 and chains.shape[1] == sum(module.sizes[0::2])
    else:
        fits = chains.dim() == 3 and chains.shape[2] in (module.num_visible, module.num_hidden)
    if not fits or chains.dtype != dtype:
        raise ValueError(f"chains of {chains.dtype}, shape {tuple(chains.shape)}")
