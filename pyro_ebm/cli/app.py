# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The commands and their options."""

import click

import pyro_ebm
from pyro_ebm.cli.commands.demo import demo_command
from pyro_ebm.cli.commands.evaluate import evaluate_command
from pyro_ebm.cli.commands.info import info_command
from pyro_ebm.cli.commands.plot import plot_command
from pyro_ebm.cli.commands.sample import sample_command
from pyro_ebm.cli.commands.train import train_command

__all__ = ["app"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(pyro_ebm.__version__, prog_name="pyro-ebm", message="%(prog)s %(version)s")
def app() -> None:
    """Boltzmann machines for Pyro: train, evaluate, sample and draw them.

    A run lives in one folder: its configuration, the model, checkpoints, metrics, and what the
    other commands add. Begin with "pyro-ebm demo", or with

    \b
        pyro-ebm train digits --output runs/digits
        pyro-ebm evaluate runs/digits
        pyro-ebm sample runs/digits
        pyro-ebm plot runs/digits
    """


for command in (
    train_command,
    evaluate_command,
    sample_command,
    plot_command,
    info_command,
    demo_command,
):
    app.add_command(command)
