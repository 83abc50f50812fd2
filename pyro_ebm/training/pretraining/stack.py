# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Machines that are trained one on the hidden layer of the other."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.nn.tied_rbm import TiedRBM
from pyro_ebm.training.callbacks import Callback
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.pretraining.tied_trainer import TiedTrainer
from pyro_ebm.training.trainer import Trainer

__all__ = ["TrainedStack", "configs_by_machine", "train_stack"]

#: Rows whose features are computed at once.
_CHUNK_ROWS = 8192
#: Hidden families whose means are rates that the trainer draws states from.
_RATES = ("bernoulli", "ising")
#: Hidden families whose means are no states, and no rates either.
_DRAWN = ("categorical", "multinomial")


@dataclass(frozen=True)
class TrainedStack:
    """What greedy training made.

    :param machines: the machines from the lowest to the top, with averaged parameters if that was asked for.
        Those with tied copies of a layer are :class:`~pyro_ebm.nn.TiedRBM`, ``untied()`` is the plain one.
    :param histories: their histories, one record an epoch. Metrics of tied machines are those of the sums of
        the copies: squared errors of n copies of a visible layer are n^2 times those of one.
    """

    machines: tuple[nn.RBM, ...]
    histories: tuple[list[dict[str, Any]], ...]


def train_stack(
    machines: Sequence[nn.RBM],
    data: Tensor,
    config: TrainerConfig | Sequence[TrainerConfig],
    *,
    validation: Tensor | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> TrainedStack:
    r"""Train machines from the bottom to the top, each on the hidden layer of the one below.

    Features are the deterministic means :math:`E[h | v]` of the trained machine given the *rows* of the data
    (grey levels as they are), for tied visible copies the doubled ones, :math:`\sigma(c + 2 W^\top v)`.
    Of bits and spins they are rates, from which the next machine's trainer draws new states at each visit
    (``binarize``), so that it learns the aggregated posterior of the layer and not its mean; means of
    Gaussian and rectified units are states themselves; of one-hot groups and counts states are drawn once.
    The visible layer of every machine but the lowest starts at the features' statistics.

    :param machines: the machines, trained in place (but see :class:`TrainedStack`): sizes and families of
        neighbours must fit. :class:`~pyro_ebm.nn.tied_rbm.TiedRBM` are trained as such.
    :param Tensor data: rows of the lowest machine, shape ``(rows, V)``.
    :param config: options, of each machine, or of all of them. If one is for all, upper machines have other
        seeds, no ``noise_std``, and files named ``name_2.safetensors`` and so on for ``checkpoint`` and
        ``best_checkpoint``. ``binarize`` of upper machines is set as the families want it.
    :param Tensor validation: rows for the metrics only.
    :param callbacks: see :meth:`Trainer.fit <pyro_ebm.training.Trainer.fit>`; they see every machine.
    :param bool resume: whether to go on from the files ``checkpoint`` that are there: a machine of which
        the epochs are done is read and not trained.
    :returns: the machines and their histories.
    :raises TypeError: if a machine is no RBM, or options are no TrainerConfig.
    :raises ValueError: if machines or the number of options do not fit, and as ``Trainer.fit``.
    """
    machines = _check_machines(machines)
    configs = configs_by_machine(config, len(machines))
    _check_files(configs, resume)
    for number, machine in enumerate(machines[1:], start=1):
        configs[number] = replace(configs[number], binarize=machine.visible.family in _RATES)
    # All of them first: an option that an upper machine cannot have costs no training of those below.
    trainers = [_make_trainer(*pair, resume) for pair in zip(machines, configs, strict=True)]
    trained: list[nn.RBM] = []
    histories = []
    rows, held_out = data, validation
    for number, (machine, trainer) in enumerate(zip(machines, trainers, strict=True)):
        if number and trainer.epoch == 0:
            trainer.module.visible.init_from_data(_first_states(rows, machine))
        trainer.fit(rows, held_out, callbacks=callbacks)
        trained.append(trainer.averaged)
        histories.append(trainer.history)
        if number + 1 < len(machines):
            seed = trainer.config.seed or 0
            rows = features(trained[-1], rows, seed)
            held_out = None if held_out is None else features(trained[-1], held_out, seed + 1)
    return TrainedStack(tuple(trained), tuple(histories))


@torch.no_grad()
def features(machine: nn.RBM, rows: Tensor, seed: int = 0) -> Tensor:
    """What the machine above is trained on, see :func:`train_stack`.

    :param machine: a trained machine.
    :param Tensor rows: what it was trained on, shape ``(rows, V)``.
    :param int seed: seed of states that are drawn, of families whose means are no states.
    :returns: shape ``(rows, H)``, on the device of the machine.
    """
    dist = machine(validate_args=False)
    copies = machine.visible_copies if isinstance(machine, TiedRBM) else 1
    weight = machine.get_parameter("weight")
    generator = Generator(device=weight.device).manual_seed(seed)
    family = machine.hidden.family
    parts = []
    for block in rows.split(_CHUNK_ROWS):
        field = dist.hidden_field(copies * block.to(weight))
        if family in _DRAWN:
            parts.append(dist.hidden.sample(field, generator))
        else:
            mean = dist.hidden.mean(field)
            parts.append(0.5 * (1.0 + mean) if family == "ising" else mean)
    return torch.cat(parts)


def _first_states(rows: Tensor, machine: nn.RBM) -> Tensor:
    """Rows whose mean is that of the visible states."""
    return 2.0 * rows - 1.0 if machine.visible.family == "ising" else rows


def _make_trainer(machine: nn.RBM, config: TrainerConfig, resume: bool) -> Trainer:
    if resume and config.checkpoint is not None and Path(config.checkpoint).is_file():
        kind = TiedTrainer if isinstance(machine, TiedRBM) else Trainer
        device = machine.get_parameter("weight").device
        trainer = kind.from_checkpoint(config.checkpoint, device=device, **_changes(config))
        theirs = trainer.module.config() | {"seed": None, "weight_scale": None}
        if theirs != machine.config() | {"seed": None, "weight_scale": None}:
            raise ValueError(f"{config.checkpoint} holds another machine than {machine.config()}")
        return trainer
    if isinstance(machine, TiedRBM):
        return TiedTrainer(machine, config)
    return Trainer(machine, config)


def _changes(config: TrainerConfig) -> dict[str, Any]:
    """All options: those that differ from the run that wrote the file are changed. A seed that was drawn is
    that of the file."""
    changes = {field.name: getattr(config, field.name) for field in fields(config)}
    return {n: value for n, value in changes.items() if n != "seed" or value is not None}


def configs_by_machine(
    config: TrainerConfig | Sequence[TrainerConfig], number: int
) -> list[TrainerConfig]:
    """The options of every machine, see :func:`train_stack`.

    :raises TypeError: if something is no TrainerConfig.
    :raises ValueError: for another number of them.
    """
    if not isinstance(config, TrainerConfig):
        configs = list(config)
        for own in configs:
            if not isinstance(own, TrainerConfig):
                raise TypeError(f"config must be TrainerConfigs, got {type(own).__name__}")
        if len(configs) != number:
            raise ValueError(f"config must be one for all or {number}, got {len(configs)}")
        return configs
    made = [config]
    for i in range(1, number):
        changes: dict[str, Any] = {"noise_std": 0.0}
        if config.seed is not None:
            changes["seed"] = config.seed + i
        for name in ("checkpoint", "best_checkpoint"):
            changes[name] = _numbered(getattr(config, name), i + 1)
        made.append(replace(config, **changes))
    return made


def _numbered(path: str | os.PathLike[str] | None, number: int) -> Path | None:
    if path is None:
        return None
    path = Path(path)
    return path.with_name(f"{path.stem}_{number}{path.suffix}")


def _check_machines(machines: Sequence[nn.RBM]) -> list[nn.RBM]:
    machines = list(machines)
    if not machines:
        raise ValueError("machines must be at least one RBM, got none")
    for number, machine in enumerate(machines):
        if not isinstance(machine, nn.RBM) or isinstance(machine, nn.ClassificationRBM):
            raise TypeError(
                f"machine {number} must be a pyro_ebm.nn.RBM, got {type(machine).__name__}"
            )
    for number, (below, above) in enumerate(pairwise(machines)):
        got = (below.weight.shape[1], below.hidden.family)
        expected = (above.weight.shape[0], above.visible.family)
        if got != expected:
            raise ValueError(
                f"the hidden layer of machine {number} is {got[0]} {got[1]} entries, the visible layer of "
                f"machine {number + 1} {expected[0]} {expected[1]}"
            )
    return machines


def _check_files(configs: Sequence[TrainerConfig], resume: bool) -> None:
    files = [Path(own.checkpoint) for own in configs if own.checkpoint is not None]
    if len(set(files)) < len(files):
        raise ValueError("config: machines need checkpoint files of their own, two have the same")
    if resume and len(files) < len(configs):
        raise ValueError("resume=True needs a checkpoint of every machine")
