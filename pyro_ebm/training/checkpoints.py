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

_OPTIMIZER, _CHAINS, _GENERATOR = "optimizer.", "training.chains", "training.generator"


@dataclass(frozen=True)
class Checkpoint:
    """A training run at the end of an epoch.

    :param module: the module.
    :param config: the options of the run.
    :param epoch: epochs done.
    :param history: metrics of the epochs done.
    :param optimizer: state of the optimiser, as its ``state_dict()["state"]``.
    :param chains: visible states of persistent chains.
    :param generator: state of the random generator.
    """

    module: nn.RBM
    config: TrainerConfig
    epoch: int
    history: list[dict[str, Any]]
    optimizer: dict[int, dict[str, Any]]
    chains: Tensor | None
    generator: Tensor


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically; :func:`pyro_ebm.load` reads the module from it too."""
    tensors = dict(checkpoint.module.state_dict())
    for index, state in checkpoint.optimizer.items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{index}.{name}"] = value
    if checkpoint.chains is not None:
        tensors[_CHAINS] = checkpoint.chains
    tensors[_GENERATOR] = checkpoint.generator
    metadata = {
        "model": describe(checkpoint.module),
        "training": checkpoint.config.to_dict(),
        "epoch": checkpoint.epoch,
        "history": checkpoint.history,
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
        module = module.to(dtype=tensors["weight"].dtype)
        for name, value in tensors.items():
            if name.startswith(_OPTIMIZER):
                index, key = name.removeprefix(_OPTIMIZER).split(".", 1)
                optimizer.setdefault(int(index), {})[key] = value
        module.load_state_dict({name: tensors[name] for name in module.state_dict()})
        config = TrainerConfig.from_dict(metadata["training"])
        epoch, history = int(metadata["epoch"]), list(metadata["history"])
        chains = _check_chains(tensors.get(_CHAINS), tensors["weight"])
        if epoch < 0:
            raise ValueError(f"epoch {epoch}")
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: damaged checkpoint ({error!r})") from error
    generator = tensors[_GENERATOR].to(torch.uint8)
    return Checkpoint(module, config, epoch, history, optimizer, chains, generator)


def _check_chains(chains: Tensor | None, weight: Tensor) -> Tensor | None:
    if chains is not None:
        shape = (len(chains) if chains.dim() else 0, len(weight))
        if chains.shape != shape or chains.dtype != weight.dtype:
            raise ValueError(f"chains of {chains.dtype}, shape {tuple(chains.shape)}")
    return chains
