# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of ``denoising.py``."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from denoising_scores import calibration
from torch import Tensor

from pyro_ebm.plotting.figures import COLOURS, new_figure, plain
from pyro_ebm.plotting.tiles import show, tiles


def picture_of_images(
    panels: Mapping[str, Tensor], image_shape: Sequence[int], count: int = 8
) -> Any:
    """One image a line, one method a column."""
    arrays = [tiles(x[:count], image_shape, 1) for x in panels.values()]
    height, width = arrays[0].shape
    figure = new_figure(1.05 * len(arrays), 1.05 * height / width + 0.5)
    for ax, name, array in zip(figure.subplots(1, len(arrays)), panels, arrays, strict=True):
        show(ax, array, 0.0, 1.0)
        ax.set_title(name.replace(" ", "\n"), fontsize=8)
    return figure


def picture_of_noise(
    parameters: Mapping[str, Mapping[str, Tensor]], truth: Mapping[str, float]
) -> Any:
    """Draws of every parameter under every prior, and the truth. Where each image has its own noise, of all
    images together."""
    figure = new_figure(3.4 * len(truth), 2.4)
    axes = figure.subplots(1, len(truth), squeeze=False)[0]
    for ax, (name, value) in zip(axes, truth.items(), strict=True):
        for colour, (method, draws) in zip(COLOURS, parameters.items(), strict=False):
            x = draws[name].flatten().tolist()
            ax.hist(
                x, 40, density=True, histtype="stepfilled", alpha=0.6, color=colour, label=method
            )
        ax.axvline(value, color=COLOURS[6], linestyle="--", label="truth")
        ax.set_xlabel(name, fontsize=9)
        ax.set_yticks([])
        plain(ax)
        ax.spines["left"].set_visible(False)
    axes[0].set_ylabel("posterior density", fontsize=9)
    axes[-1].legend(fontsize=7, frameon=False)
    return figure


def picture_of_calibration(means: Mapping[str, Tensor], clean: Tensor) -> Any:
    """How often pixels are what they most probably are, by that probability."""
    figure = new_figure(3.6, 3.2)
    ax = figure.subplots()
    ax.plot([0.5, 1.0], [0.5, 1.0], color="0.7", linewidth=1.0)
    for colour, (name, probability) in zip(COLOURS, means.items(), strict=False):
        table = calibration(probability, clean)
        right = torch.tensor([share.value for share in table.accuracy]).tolist()
        errors = [share.std_error for share in table.accuracy]
        ax.errorbar(table.confidence, right, errors, fmt="o-", ms=3, lw=1, color=colour, label=name)
    ax.set_xlabel("posterior probability of the likelier value", fontsize=9)
    ax.set_ylabel("share of pixels that have it", fontsize=9)
    ax.legend(fontsize=7, frameon=False, loc="lower right")
    plain(ax)
    return figure
