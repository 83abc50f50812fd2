# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""``pyro-ebm train``."""

import json
import time
from typing import Any

import click
from click.core import ParameterSource

from pyro_ebm.cli.commands.common import (
    DATA_NAMES,
    check_device,
    device_option,
    quiet_option,
    root_option,
    seed_option,
    set_threads,
    threads_option,
)
from pyro_ebm.cli.data import BINARIZATIONS, DataOptions, default_binarization
from pyro_ebm.cli.errors import Command
from pyro_ebm.cli.run_folder import RunFolder
from pyro_ebm.cli.training import describe_training, resume_run, start_run, train
from pyro_ebm.training import TrainerConfig
from pyro_ebm.training.config_checks import LEARNING_RATE_SCHEDULES, OPTIMIZERS, SCHEDULERS

__all__ = ["train_command"]

_VISIBLE = ("bernoulli", "ising", "gaussian")
_HIDDEN = ("bernoulli", "ising", "gaussian", "relu")


class ByLayer(click.ParamType):  # type: ignore[type-arg]
    """A value of every hidden layer, with commas between them, as a list.

    :param click.ParamType kind: of one value.
    """

    def __init__(self, kind: "click.ParamType[Any]") -> None:
        self.kind = kind
        self.name = f"{kind.name},..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Any]:
        """See :meth:`click.ParamType.convert`."""
        if isinstance(value, list):
            return value
        return [self.kind.convert(part, param, ctx) for part in str(value).split(",")]


#: Options that may be given together with --resume; the others are those of the run.
_WITH_RESUME = {"data", "output", "resume", "epochs", "threads", "quiet"}


@click.command("train", cls=Command)
@click.argument("data", type=click.Choice(DATA_NAMES), required=False)
@click.option(
    "-o", "--output", required=True, type=click.Path(file_okay=False), help="The run folder."
)
@click.option(
    "--hidden",
    type=ByLayer(click.IntRange(1)),
    default="64",
    help="Hidden units; of the layers of a deep machine with commas between them, such as 500,1000, "
    "the lowest one first.",
)
@click.option("--epochs", type=click.IntRange(0), default=20, help="Passes over the data.")
@click.option("--batch-size", type=click.IntRange(1), default=100, help="Rows per update.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0.0, min_open=True),
    default=0.1,
    help="Step size of the optimiser.",
)
@click.option(
    "--schedule",
    type=click.Choice((*LEARNING_RATE_SCHEDULES, *SCHEDULERS)),
    default="linear",
    help='"linear": the learning rate falls to zero over all epochs.',
)
@click.option("--steps", type=click.IntRange(1), default=1, help="Gibbs sweeps per update.")
@click.option(
    "--persistent/--no-persistent",
    default=True,
    help="Chains that go on from update to update (PCD), or start at the data (CD).",
)
@click.option(
    "--chains",
    type=click.IntRange(1),
    show_default="the batch size",
    help="Chains of the model's side of the gradient.",
)
@click.option(
    "--optimizer", type=click.Choice(sorted(OPTIMIZERS)), default="sgd", help="Optimiser."
)
@click.option(
    "--momentum",
    type=click.FloatRange(0.0, 1.0, max_open=True),
    default=0.0,
    help='Momentum of "sgd".',
)
@click.option(
    "--weight-decay", type=click.FloatRange(0.0), default=0.0, help="Decay of the weights."
)
@click.option(
    "--centered/--no-centered", default=True, help="Subtract running means in the gradient."
)
@click.option(
    "--visible-units", type=click.Choice(_VISIBLE), default="bernoulli", help="Visible family."
)
@click.option(
    "--hidden-units",
    type=ByLayer(click.Choice(_HIDDEN)),
    default="bernoulli",
    help=f"Hidden family, out of {', '.join(_HIDDEN)}; one for all layers, or one of each with commas "
    "between them.",
)
@click.option(
    "--binarize",
    "binarization",
    type=click.Choice(BINARIZATIONS),
    show_default="by the visible family",
    help="How grey levels become bits: new ones at each visit, drawn once, by --threshold, or not.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0.0, 1.0, max_open=True),
    default=0.5,
    help="Grey level above which a pixel is on, for --binarize threshold.",
)
@click.option(
    "--validation",
    type=click.IntRange(0),
    default=0,
    help="Training images held out, for metrics only.",
)
@click.option(
    "--option",
    "more",
    metavar="NAME=VALUE",
    multiple=True,
    help="Any other option of TrainerConfig, such as sparsity_cost=0.1 or momentum=[0.5,0.9] (values in "
    "JSON); may be repeated.",
)
@click.option(
    "--checkpoint-every", type=click.IntRange(1), default=1, help="Epochs between checkpoints."
)
@root_option
@seed_option
@device_option
@threads_option
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the checkpoint in --output, with the options of that run; "
    "a larger --epochs extends it.",
)
@quiet_option
@click.pass_context
def train_command(
    ctx: click.Context, /, data: str | None, output: str, resume: bool, **options: Any
) -> None:
    """Train an RBM or a deep Boltzmann machine by (persistent) contrastive divergence.

    DATA is a set of images: digits comes with scikit-learn, the others are found or downloaded.
    --output receives config.json, checkpoint.safetensors, model.safetensors and the metrics of every
    epoch as history.csv and history.json. Interrupt it at any time: --resume goes on from the last
    checkpoint and ends in the same parameters.
    """
    set_threads(options["threads"])
    run = RunFolder(output)
    if resume:
        _check_resume(ctx, run, data)
        given = ctx.get_parameter_source("epochs") is not ParameterSource.DEFAULT
        resume_run(run, options["epochs"] if given else None)
    else:
        if data is None:
            raise click.UsageError("name the DATA to train on, or --resume a run")
        start_run(
            run,
            _data_options(data, options),
            _model_options(options),
            _training_options(options),
            check_device(options["device"]),
            progress=not options["quiet"],
        )
    started = time.perf_counter()
    try:
        trainer = train(run, progress=not options["quiet"])
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; go on with: pyro-ebm train --resume --output {run}", err=True)
        ctx.exit(130)
    click.echo(describe_training(run, trainer, started))


def _check_resume(ctx: click.Context, run: RunFolder, data: str | None) -> None:
    given = [
        name
        for name in ctx.params
        if name not in _WITH_RESUME
        and ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in sorted(given))
        raise click.UsageError(f"{names} cannot be changed by --resume")
    if run.is_run and data not in (None, run.config()["data"]["name"]):
        raise click.UsageError(f"{run} was trained on {run.config()['data']['name']}, not {data}")


def _data_options(name: str, options: dict[str, Any]) -> DataOptions:
    family = options["visible_units"]
    return DataOptions(
        name=name,
        binarization=options["binarization"] or default_binarization(family),
        threshold=options["threshold"],
        validation=options["validation"],
        root=options["root"],
        family=family,
    )


def _model_options(options: dict[str, Any]) -> dict[str, Any]:
    sizes, families = options["hidden"], options["hidden_units"]
    if len(families) not in (1, len(sizes)):
        raise click.UsageError(
            f"--hidden-units: one family, or as many as layers of --hidden ({len(sizes)}), got "
            f"{len(families)}"
        )
    return {
        "num_hidden": sizes if len(sizes) > 1 else sizes[0],
        "visible": options["visible_units"],
        "hidden": families if len(families) > 1 else families[0],
        "centered": options["centered"],
        "seed": options["seed"],
    }


def _training_options(options: dict[str, Any]) -> TrainerConfig:
    family = options["visible_units"]
    binarization = options["binarization"] or default_binarization(family)
    values = {
        "num_epochs": options["epochs"],
        "batch_size": options["batch_size"],
        "learning_rate": options["learning_rate"],
        "learning_rate_schedule": options["schedule"],
        "num_steps": options["steps"],
        "persistent": options["persistent"],
        "num_chains": options["chains"],
        "seed": options["seed"],
        "optimizer": options["optimizer"],
        "momentum": options["momentum"],
        "weight_decay": options["weight_decay"],
        "binarize": binarization == "dynamic",
        "checkpoint_every": options["checkpoint_every"],
    }
    return TrainerConfig.from_dict(values | _more_options(options["more"], set(values)))


def _more_options(texts: tuple[str, ...], named: set[str]) -> dict[str, Any]:
    """Options that are given as ``NAME=VALUE``."""
    # Where the run is kept, and whether it shows its progress, are the command's to say.
    named = named | {"checkpoint", "progress"}
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--option must be NAME=VALUE, got {text!r}")
        if name in named:
            raise click.UsageError(f"--option {name}: this command has an option of its own for it")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value  # a word
    return values
