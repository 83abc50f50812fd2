# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""``pyro-ebm plot``."""

import click

from pyro_ebm.cli.commands.common import open_model, quiet_option, root_option, run_data
from pyro_ebm.cli.errors import Command
from pyro_ebm.cli.pictures import draw_energy, draw_filters, draw_history, draw_samples
from pyro_ebm.cli.run_folder import RunFolder
from pyro_ebm.cli.sampling import ChainOptions, read_chains, run_chains

__all__ = ["plot_command"]


@click.command("plot", cls=Command)
@click.argument("run_dir", type=click.Path(file_okay=False))
@root_option
@quiet_option
def plot_command(run_dir: str, root: str | None, quiet: bool) -> None:
    """Draw the filters, the history, samples and energies of a run.

    RUN_DIR receives filters.png, history.png, samples.png and energy.png. Samples are those of
    "pyro-ebm sample", or of short chains if there are none yet. Filters of the upper layers of a
    deep machine, projected to the pixels, go to filters-h2.png and so on.
    """
    module, _ = open_model(run_dir)
    run = RunFolder(run_dir)
    settings = run_data(module, run, None, root)
    images = settings.load(progress=not quiet)
    written = draw_filters(module, images, run.file("filters.png"))
    if run.file("history.json").is_file():
        records = run.read_json("history.json")
        written += draw_history(records, run.file("history.png"))
    if run.file("chains.nc").is_file():
        chains = read_chains(run.file("chains.nc"))
    else:
        chains = run_chains(module, ChainOptions(num_draws=200), progress=not quiet)
    written.append(draw_samples(module, chains, settings, images, run.file("samples.png")))
    written.append(draw_energy(module, chains, settings, images, run.file("energy.png")))
    click.echo("written to " + ", ".join(str(path) for path in written))
