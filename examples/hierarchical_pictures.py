# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of the hierarchical-deep model: its tree, what it reaches, and images of new classes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions import DBM, GibbsSweep
from pyro_ebm.plotting.figures import COLOURS, new_figure, plain, to_array
from pyro_ebm.plotting.tiles import show, tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracies", "classes_together", "images_of", "new_class_images"]


def classes_together(
    together: Tensor, names: Sequence[str], joined: Tensor, new_names: Sequence[str], shots: int
) -> "Figure":
    """Which classes share a super-class.

    :param Tensor together: posterior probability that two base classes do, shape ``(K, K)``.
    :param names: names of the base classes.
    :param Tensor joined: probability that a new class joins each base class, or none in the last column;
        shape ``(new, K + 1)``.
    :param new_names: names of the new classes.
    :param int shots: images of a new class.
    """
    order = _by_group(together)
    titles = [names[k] for k in order]
    height = 0.27 * (len(names) + len(joined)) + 2.2
    figure = new_figure(0.33 * len(names) + 2.6, height)
    axes = figure.subplots(2, 1, height_ratios=[len(names), len(joined)])
    full = torch.cat([joined[:, order], joined[:, -1:]], 1)
    several = "image" if shots == 1 else "images"
    panels = (
        (axes[0], together[order][:, order], titles, titles, "base classes in one super-class"),
        (
            axes[1],
            full,
            [*titles, "(new)"],
            list(new_names),
            f"new classes after {shots} {several}",
        ),
    )
    for ax, values, columns, rows, title in panels:
        image = ax.imshow(to_array(values), vmin=0.0, vmax=1.0, cmap="Blues", aspect="equal")
        ax.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
        ax.set_yticks(range(len(rows)), rows, fontsize=7)
        ax.set_title(title, fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.5)
    bar.set_label("posterior probability", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _by_group(together: Tensor) -> list[int]:
    """Classes in an order in which those of a super-class are neighbours."""
    left, order = list(range(len(together))), []
    while left:
        first = left[0]
        own = sorted(
            (k for k in left if together[first, k] > 0.5), key=lambda k: -together[first, k]
        )
        order += own
        left = [k for k in left if k not in own]
    return order


def accuracies(results: dict[str, dict[str, Any]]) -> "Figure":
    """A number of every method with its standard error.

    :param results: by title of the panel and method, ``{"mean": ..., "std_error": ...}``.
    """
    methods = list(next(iter(results.values())))
    figure = new_figure(2.6 * len(results) + 1.7, 0.26 * len(methods) + 1.0)
    axes = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for ax, (title, values) in zip(axes, results.items(), strict=True):
        means = [100.0 * values[name]["mean"] for name in methods]
        errors = [100.0 * values[name]["std_error"] for name in methods]
        own = [COLOURS[1] if name == "tree, whitened" else COLOURS[5] for name in methods]
        ax.barh(methods, means, xerr=errors, color=own, ecolor="0.2", capsize=2)
        for place, (mean, error) in enumerate(zip(means, errors, strict=True)):
            ax.text(mean + error + 1.0, place, f"{mean:.1f}", va="center", fontsize=7)
        ax.set_xlim(0.0, 1.15 * max(means))
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("%", fontsize=8)
        plain(ax)
    axes[0].invert_yaxis()
    return figure


@torch.no_grad()
def images_of(machine: DBM, top: Tensor, num_sweeps: int, seed: int = 0) -> Tensor:
    """Means of the pixels given probabilities of the top layer: bits are drawn and clamped, the layers
    below go on by Gibbs sampling.

    :param DBM machine: of two hidden layers.
    :param Tensor top: probabilities, shape ``(..., units)``.
    :param int num_sweeps: of the other layers.
    :returns: shape ``(..., pixels)``.
    """
    generator = Generator().manual_seed(seed)
    flat = top.reshape(-1, top.shape[-1]).to(machine.weights[0].dtype)
    bits = flat.clamp(0.0, 1.0).bernoulli(generator=generator)
    all_of_them = torch.ones(machine.sizes[2], dtype=torch.bool)
    below = machine.clamp({2: all_of_them}, {2: bits})
    sweep = GibbsSweep(below.bipartite(), generator)
    start = sweep.initial_visible(Size((len(bits), below.sizes[0])))
    hidden = sweep.sample_hidden(sweep.run(start, num_sweeps))
    means = below.units[0].mean(below.field(0, [hidden]))
    return means.reshape(*top.shape[:-1], means.shape[-1])


def new_class_images(
    examples: Tensor, drawn: Tensor, names: Sequence[str], image_shape: Sequence[int]
) -> "Figure":
    """The image of each new class, and images that the model expects of it.

    :param Tensor examples: shape ``(K, pixels)``.
    :param Tensor drawn: shape ``(number, K, pixels)``.
    :param names: names of the classes.
    """
    number = len(drawn)
    figure = new_figure(0.6 * (number + 2) + 1.2, 0.6 * len(names) + 0.6)
    axes = figure.subplots(1, 2, width_ratios=[1, number])
    size = image_shape[-2]
    show(axes[0], tiles(examples, image_shape, 1), 0.0, 1.0)
    show(axes[1], tiles(drawn.movedim(0, 1).flatten(0, 1), image_shape, number), 0.0, 1.0)
    axes[0].set_title("given", fontsize=9)
    axes[1].set_title("drawn from the class's posterior, through the machine", fontsize=9)
    axes[0].set_axis_on()
    axes[0].set_xticks([])
    axes[0].spines[:].set_visible(False)
    axes[0].set_yticks([(size + 1) * k + size / 2 for k in range(len(names))], names, fontsize=8)
    axes[0].tick_params(length=0)
    return figure
