# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""``pyro-ebm demo``."""

import click

from pyro_ebm.cli.commands.common import (
    quiet_option,
    root_option,
    seed_option,
    set_threads,
)
from pyro_ebm.cli.demo import PLANS, run_demo
from pyro_ebm.cli.errors import Command

__all__ = ["demo_command"]


@click.command("demo", cls=Command)
@click.option("--data", type=click.Choice(sorted(PLANS)), default="digits", help="The images.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False),
    default="runs/demo",
    help="Folder that receives the report and everything else; an earlier run is replaced.",
)
@click.option("--quick", is_flag=True, help="A few seconds, to see that everything runs.")
@root_option
@seed_option
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    help="Threads on the CPU. These models are small: more are slower if the cores are busy.",
)
@quiet_option
def demo_command(
    data: str,
    output: str,
    quick: bool,
    root: str | None,
    seed: int,
    threads: int,
    quiet: bool,
) -> None:
    """Train, evaluate and sample two RBMs, complete images, and write a report.

    A larger model by persistent contrastive divergence, and one of 16 hidden units beside it, whose
    log Z is exact and shows what the estimates are worth. Read report.md in the output folder.
    """
    set_threads(threads)
    run_demo(data, output, seed=seed, quick=quick, root=root, progress=not quiet)
