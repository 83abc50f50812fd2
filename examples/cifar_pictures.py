# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of the CIFAR-10 recipes: images as machines see them, filters, reconstructions, samples."""

from collections.abc import Sequence
from typing import Any

import torch
from cifar_stages import Run
from grbm_patches import reconstruct
from torch import Generator, Tensor

from pyro_ebm import nn, plotting
from pyro_ebm.distributions import DBM, GibbsSweep
from pyro_ebm.training import Trainer


def save(run: Run, name: str, figure: Any) -> None:
    """Write a figure into the folder of the run."""
    plotting.save(figure, run.folder / f"{name}.png")


def draw_data(run: Run) -> None:
    """Test images, and what is left of them in the rows."""
    count = run.options.samples
    pixels = run.images.pixels["test"][:count]
    panels = {
        "test images": pixels.flatten(1) / 255.0,
        "what machines see": run.preprocessing.to_pixels(run.rows("test")[:count]).cpu(),
    }
    save(run, "images", plotting.image_grid(panels, run.images.shape, title="CIFAR-10 images"))


def draw_filters(run: Run, name: str, weights: Sequence[Tensor], title: str) -> None:
    """Weights of the last layer, projected to pixels."""
    pixels = run.preprocessing.directions(weights[0].detach())
    figure = plotting.filters(
        [pixels, *weights[1:]] if weights[1:] else pixels,
        run.images.shape,
        max_filters=run.options.samples,
        scale="filter",
        title=title,
    )
    save(run, f"{name}_filters", figure)


def draw_rbm(run: Run, name: str, rbm: nn.RBM, trainer: Trainer) -> None:
    """Filters, reconstructions and the history of a machine of whole images."""
    draw_filters(run, name, [rbm.weight], "What hidden units add to the image")
    rows = run.rows("test")[: run.options.samples].float()
    panels = {"test images": rows, "reconstructions": reconstruct(rbm, rows)}
    draw_rows(run, f"{name}_reconstructions", panels, "Means of v given the means of h")
    save(run, f"{name}_history", plotting.history(trainer.history))


def draw_rows(run: Run, name: str, panels: dict[str, Tensor], title: str) -> None:
    """Rows as images, side by side."""
    pixels = {key: run.preprocessing.to_pixels(rows).cpu() for key, rows in panels.items()}
    save(run, name, plotting.image_grid(pixels, run.images.shape, title=title))


@torch.no_grad()
def draw_dbm(run: Run, module: nn.DBM, trainer: Trainer) -> None:
    """Filters of every layer, reconstructions by mean field, particles and new samples."""
    machine = module().detach()
    for layer in range(1, module.depth + 1):
        title = f"What units of layer {layer} add to the image"
        draw_filters(run, f"dbm_layer{layer}", machine.weights[:layer], title)
    count = run.options.samples
    rows = run.rows("test")[:count].float()
    first = machine.mean_field(rows).means[0]
    mean = machine.units[0].mean(machine.field(0, [first]))
    draw_rows(run, "dbm_reconstructions", {"test images": rows, "mean field": mean}, "DBM")
    generator = Generator(device=run.device).manual_seed(run.options.seed)
    # Chains that start at the layers without couplings.
    walk = module(num_gibbs_steps=run.options.sweeps).detach().bipartite()
    states = walk.sample((count,), generator=generator)
    panels = {"samples": pixel_means(machine, states, generator)}
    if trainer.chains is not None:
        panels["particles"] = pixel_means(machine, trainer.chains[:count], generator)
    draw_rows(run, "dbm_samples", panels, f"Pixel means of chains ({run.options.sweeps} sweeps)")
    save(run, "dbm_history", plotting.history(trainer.history))


def pixel_means(machine: DBM, even: Tensor, generator: Generator) -> Tensor:
    """Means of the pixels given hidden states that are drawn given states of the even layers: without the
    noise of the pixels, which hides what a sample shows."""
    odd = machine.split_odd(GibbsSweep(machine.bipartite(), generator).sample_hidden(even))
    return machine.units[0].mean(machine.field(0, [odd[0]]))
