# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""``pyro-ebm sample``."""

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
from pyro_ebm.cli.pictures import draw_energy, draw_samples
from pyro_ebm.cli.sampling import (
    ChainOptions,
    describe_diagnostics,
    diagnose,
    run_chains,
    write_chains,
)

__all__ = ["sample_command"]


@click.command("sample", cls=Command)
@click.argument("model", type=click.Path())
@click.option("--chains", type=click.IntRange(1), default=8, help="Independent chains.")
@click.option("--draws", type=click.IntRange(1), default=500, help="Draws kept of every chain.")
@click.option(
    "--warmup", type=click.IntRange(0), default=200, help="Draws of every chain thrown away first."
)
@click.option("--thin", type=click.IntRange(1), default=10, help="Gibbs sweeps per draw.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False),
    show_default="chains.nc in the run folder",
    help="netCDF file that receives the chains; pictures go beside it.",
)
@click.option(
    "--data",
    type=click.Choice(DATA_NAMES),
    show_default="the run's own",
    help="Images to compare samples with, for a model file.",
)
@root_option
@seed_option
@device_option
@threads_option
@quiet_option
def sample_command(
    model: str,
    chains: int,
    draws: int,
    warmup: int,
    thin: int,
    output: str | None,
    data: str | None,
    root: str | None,
    seed: int,
    device: str,
    threads: int | None,
    quiet: bool,
) -> None:
    """Run chains of block Gibbs, and show ArviZ's R-hat and effective sample sizes.

    MODEL is a run folder or a .safetensors file. Chains start from draws of the visible layer
    alone, and are written for ArviZ (chains.nc), with pictures of samples (samples.png) and of
    free energies (energy.png).
    """
    set_threads(threads)
    module, run = open_model(model, device)
    settings = run_data(module, run, data, root)
    images = settings.load(progress=not quiet)
    options = ChainOptions(num_chains=chains, num_draws=draws, warmup=warmup, thin=thin, seed=seed)
    if output is not None:
        path = Path(output)
    else:
        path = Path(model) / "chains.nc" if run is not None else Path(model).with_suffix(".nc")
    result = run_chains(module, options, progress=not quiet)
    write_chains(result, path)
    click.echo(describe_diagnostics(diagnose(result)))
    pictures = {"samples": draw_samples, "energy": draw_energy}
    written = [path]
    for name, draw in pictures.items():
        target = f"{name}.png" if path.name == "chains.nc" else f"{path.stem}-{name}.png"
        written.append(draw(module, result, settings, images, path.with_name(target)))
    click.echo("written to " + ", ".join(str(p) for p in written))
