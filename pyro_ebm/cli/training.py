# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Training into a run folder."""

import time
from dataclasses import replace
from typing import Any

import click
import torch

import pyro_ebm
from pyro_ebm import nn
from pyro_ebm.cli.data import DataOptions
from pyro_ebm.cli.machines import Machine
from pyro_ebm.cli.run_folder import RunFolder, hardware, versions
from pyro_ebm.training import Trainer, TrainerConfig
from pyro_ebm.training.weights import weights_of

__all__ = ["describe_training", "resume_run", "start_run", "train"]


def start_run(
    run: RunFolder,
    data: DataOptions,
    model: dict[str, Any],
    training: TrainerConfig,
    device: str = "cpu",
    *,
    progress: bool = True,
) -> None:
    """Make a run folder that holds its configuration and nothing else.

    :param RunFolder run: an empty folder, or one that does not exist.
    :param DataOptions data: what to train on.
    :param model: arguments of :class:`pyro_ebm.nn.RBM`, without ``num_visible``; of
        :class:`pyro_ebm.nn.DBM` where ``num_hidden`` is a list.
    :param TrainerConfig training: options of the trainer.
    :param bool progress: whether a download of the data shows a progress bar.
    :raises ValueError: if the folder is not empty.
    """
    if not run.is_empty:
        hint = "go on with --resume or" if run.is_run else "it is no run folder:"
        raise ValueError(f"{run} is not empty; {hint} choose another --output")
    # Data that cannot be had must not leave a folder behind.
    data.load(progress=progress)
    values = replace(training, checkpoint=None).to_dict()
    run.write_json(
        "config.json",
        {
            "data": data.to_dict(),
            "model": model,
            "training": {k: v for k, v in values.items() if k not in ("checkpoint", "progress")},
            "device": device,
            "versions": versions(),
            "hardware": hardware(device),
        },
    )


def resume_run(run: RunFolder, num_epochs: int | None = None) -> None:
    """Check that a run can go on, and extend it to a larger number of epochs if one is given.

    A linear schedule of the learning rate is from then on that of the larger number.

    :raises ValueError: if there is no run, or it has already gone further.
    """
    if not run.is_run:
        raise ValueError(f"there is no run in {run} to resume")
    config = run.config()
    if num_epochs is None or num_epochs == config["training"]["num_epochs"]:
        return
    if run.file("checkpoint.safetensors").is_file():
        done = Trainer.from_checkpoint(run.file("checkpoint.safetensors")).epoch
        if num_epochs < done:
            raise ValueError(f"{run} has already done {done} epochs, more than {num_epochs}")
    config["training"]["num_epochs"] = num_epochs
    run.write_json("config.json", config)


def train(run: RunFolder, *, progress: bool = True) -> Trainer:
    """Train from the folder's configuration, from its checkpoint if there is one.

    On an interruption the folder holds the last checkpoint and the history, so that another call
    goes on from there and ends in the same parameters.

    :returns: the trainer, all epochs done.
    """
    config = run.config()
    options = DataOptions.from_dict(config["data"])
    data = options.load(progress=progress)
    trainer = _trainer(run, config, options, data, progress)
    if trainer.epoch:
        click.echo(f"going on after epoch {trainer.epoch}")
    rows = options.training_rows(data, "train")
    held_out = options.training_rows(data, "validation") if options.validation else None
    try:
        history = trainer.fit(rows, held_out)
    except BaseException:
        if trainer.history:
            run.write_history(trainer.history)
        raise
    run.write_history(history)
    pyro_ebm.save(trainer.module, run.file("model.safetensors"))
    return trainer


def _trainer(
    run: RunFolder, config: dict[str, Any], options: DataOptions, data: Any, progress: bool
) -> Trainer:
    checkpoint = run.file("checkpoint.safetensors")
    training = config["training"]
    if checkpoint.is_file():
        return Trainer.from_checkpoint(
            checkpoint,
            device=config["device"],
            num_epochs=training["num_epochs"],
            checkpoint=checkpoint,
            progress=progress,
        )
    kind = nn.DBM if isinstance(config["model"]["num_hidden"], list) else nn.RBM
    module = kind(data.num_pixels, device=config["device"], **config["model"])
    module.init_from_data(options.training_rows(data, "train"))
    changes = {"checkpoint": checkpoint, "progress": progress}
    return Trainer(module, TrainerConfig.from_dict({**training, **changes}))


def describe_training(run: RunFolder, trainer: Trainer, started: float) -> str:
    """One line on a finished training run."""
    record = trainer.history[-1] if trainer.history else {}
    error = record.get("reconstruction_error")
    shown = "" if error is None else f", reconstruction error {error:.4f}"
    seconds = time.perf_counter() - started
    module = trainer.module
    assert isinstance(module, Machine)
    weights = weights_of(module)
    sizes = " x ".join(str(size) for size in (len(weights[0]), *(w.shape[1] for w in weights)))
    device = weights[0].device
    where = "" if device == torch.device("cpu") else f" on {device}"
    return (
        f"{'DBM' if len(weights) > 1 else 'RBM'} {sizes}: {trainer.epoch} epochs done in {seconds:.1f} s"
        f"{where}{shown}\nwritten to {run}"
    )
