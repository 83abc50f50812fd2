# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of deep Boltzmann machines of images: filters, samples, completions, chains in motion."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor

from pyro_ebm import plotting
from pyro_ebm.distributions import DBM, GibbsSweep
from pyro_ebm.infer import BlockGibbs, completions
from pyro_ebm.training import Trainer

#: Images that are completed, and samples of each.
COMPLETED, COMPLETIONS = 12, 3
CAPTION = "means of the pixels given the layer above"


@torch.no_grad()
def draw(
    machine: DBM, trainer: Trainer | None, test: Tensor, shape: Sequence[int], options: Any
) -> None:
    """Write all pictures to ``options.output``."""
    torch.manual_seed(options.seed)  # kernels draw from the global generator
    figures = {"filters": plotting.layer_filters(machine, shape)}
    for layer in range(1, machine.depth + 1):
        title = f"What units of layer {layer} look for in the pixels"
        figures[f"filters_{layer}"] = plotting.filters(
            machine.weights[:layer], shape, max_filters=options.samples, title=title
        )
    chains = {"samples": fresh_chains(machine, options)}
    if trainer is not None and trainer.chains is not None:
        chains["particles"] = trainer.chains[: options.samples]
    for name, even in chains.items():
        figures[name] = plotting.image_grid(pixel_means(machine, even), shape, caption=CAPTION)
    figures["completions"] = complete(machine, test[:COMPLETED], shape, options)
    if trainer is not None:
        figures["history"] = plotting.history(trainer.history)
    for name, figure in figures.items():
        plotting.save(figure, options.output / f"{name}.png")
    moving = chains.get("particles", chains["samples"])
    film = plotting.particle_animation(machine, moving, shape, num_frames=options.frames)
    plotting.save_animation(film, options.output / "particles.gif")


def pixel_means(machine: DBM, even: Tensor) -> Tensor:
    """Means of the pixels given a draw of the layer above them."""
    odd = GibbsSweep(machine.bipartite()).sample_hidden(even)
    return machine.units[0].mean(machine.field(0, machine.split_odd(odd)[:1]))


def fresh_chains(machine: DBM, options: Any) -> Tensor:
    """Even layers of chains that started from the layers without their couplings."""
    sweep = GibbsSweep(machine.bipartite())
    even = sweep.initial_visible(Size((options.samples, sum(machine.sizes[0::2]))))
    return sweep.run(even, options.sweeps)


def complete(machine: DBM, images: Tensor, shape: Sequence[int], options: Any) -> Any:
    """The lower half of images given the upper one: their pixels drawn along with all hidden layers."""
    seen = torch.zeros(tuple(shape), dtype=torch.bool)
    seen[..., : shape[-2] // 2, :] = True
    seen = seen.flatten()
    above = [torch.zeros(size) for size in machine.sizes[2::2]]
    states = completions(
        machine.bipartite(),
        machine.join_even([seen, *above]).bool(),
        machine.join_even([images, *above]),
        num_samples=10 * COMPLETIONS,
        kernel=BlockGibbs,
        num_steps=options.sweeps,
    )
    lowest = machine.split_odd(states.hidden)[0]
    pixels = torch.where(seen, images, machine.units[0].mean(machine.field(0, [lowest])))
    return plotting.completions(images, seen, pixels.mean(0), pixels[:COMPLETIONS], shape)
