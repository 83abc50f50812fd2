# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""``pyro-ebm evaluate``."""

import json
from pathlib import Path

import click

from pyro_ebm.cli.commands.common import (
    DATA_NAMES,
    device_option,
    open_model,
    quiet_option,
    root_option,
    run_data,
    seed_option,
    set_threads,
    threads_option,
)
from pyro_ebm.cli.errors import Command
from pyro_ebm.cli.evaluation import BASES, EXACT, AISOptions, describe_evaluation, evaluate
from pyro_ebm.cli.run_folder import write_text
from pyro_ebm.infer.paths import SCHEDULES

__all__ = ["evaluate_command"]


@click.command("evaluate", cls=Command)
@click.argument("model", type=click.Path())
@click.option(
    "--data",
    type=click.Choice(DATA_NAMES),
    show_default="the run's own",
    help="Images whose likelihood is computed.",
)
@click.option("--ais-chains", type=click.IntRange(2), default=100, help="Annealing runs.")
@click.option(
    "--ais-temperatures", type=click.IntRange(1), default=5000, help="Steps of every run."
)
@click.option(
    "--schedule",
    type=click.Choice(SCHEDULES),
    default="linear",
    help="How temperatures are spread; a pilot run finds the adaptive ones.",
)
@click.option(
    "--base",
    type=click.Choice(BASES),
    default="means",
    help="Start of the path: pixel means of the training set, the model's biases, or uniform.",
)
@click.option(
    "--exact",
    type=click.Choice(EXACT),
    default="auto",
    help="Compute log Z exactly too: where the smaller layer has at most 2^20 states, or always.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False),
    show_default="evaluation.json in the run folder",
    help="File that receives the numbers.",
)
@root_option
@seed_option
@device_option
@threads_option
@quiet_option
def evaluate_command(
    model: str,
    data: str | None,
    ais_chains: int,
    ais_temperatures: int,
    schedule: str,
    base: str,
    exact: str,
    output: str | None,
    root: str | None,
    seed: int,
    device: str,
    threads: int | None,
    quiet: bool,
) -> None:
    """Estimate log Z from both sides, and likelihoods of training and test images.

    MODEL is a run folder or a .safetensors file. Annealed importance sampling bounds log Z from
    below (so that likelihoods are optimistic), reverse annealing from above; small models are
    also summed exactly. The numbers, their intervals, settings and hardware go to evaluation.json.
    """
    set_threads(threads)
    module, run = open_model(model, device)
    options = run_data(module, run, data, root)
    images = options.load(progress=not quiet)
    ais = AISOptions(
        num_chains=ais_chains,
        num_temperatures=ais_temperatures,
        schedule=schedule,
        base=base,
        exact=exact,
        seed=seed,
    )
    result = evaluate(module, options, images, ais, progress=not quiet)
    if output is not None:
        path = Path(output)
    elif run is not None:
        path = run.file("evaluation.json")
    else:
        path = Path(model).with_suffix(".evaluation.json")
    write_text(path, json.dumps(result, indent=2) + "\n")
    click.echo(describe_evaluation(result))
    click.echo(f"written to {path}")
