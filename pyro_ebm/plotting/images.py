# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of images: samples, filters, completions."""

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_ebm.plotting.figures import Array, annotate, new_figure, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["completions", "filters", "image_grid"]

#: Pixels that are unknown, and lines between images by colour map.
_UNKNOWN = "#7ea6d3"
_LINES = {"gray": "0.35", "RdBu_r": "0.75"}


def image_grid(
    images: Tensor | Mapping[str, Tensor],
    image_shape: Sequence[int],
    *,
    num_columns: int | None = None,
    title: str | None = None,
    caption: str | None = None,
) -> "Figure":
    """Images as tiles, in grey levels from 0 (black) to 1 (white).

    :param images: shape ``(N, V)``, or several of them by their titles, shown side by side.
    :param image_shape: shape of one image, ``(H, W)`` or ``(C, H, W)``.
    :param int num_columns: tiles in a row; about the square root of N if None.
    :param str title: heading.
    :param str caption: a line below, on what is shown.
    :raises ValueError: if the sizes contradict each other.
    """
    panels = dict(images) if isinstance(images, Mapping) else {"": images}
    tiles = [_tiles(x, image_shape, num_columns) for x in panels.values()]
    widths = [t.shape[1] for t in tiles]
    height = 5.0 * tiles[0].shape[0] / max(widths)
    # Room for the titles of the panels, the heading and the caption.
    height += 0.3 + 0.35 * bool(title) + 0.3 * bool(caption)
    figure = new_figure(5.0 * sum(widths) / max(widths), height)
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for ax, name, tile in zip(axes, panels, tiles, strict=True):
        _show(ax, tile, 0.0, 1.0, "gray")
        ax.set_title(name, fontsize=10)
    annotate(figure, title, caption)
    return figure


def filters(
    weight: Tensor,
    image_shape: Sequence[int],
    *,
    num_columns: int | None = None,
    max_filters: int = 100,
    title: str | None = "Weights of the hidden units",
) -> "Figure":
    """Weights of hidden units as images, strongest first, on one diverging scale around zero.

    :param Tensor weight: shape ``(V, H)``; with colour channels, their mean is shown.
    :param image_shape: shape of one image.
    :param int num_columns: tiles in a row.
    :param int max_filters: units shown at most: those with the largest norms.
    :param str title: heading.
    """
    rows = weight.detach().cpu().double().T
    order = rows.norm(dim=1).argsort(descending=True)[:max_filters]
    shape = tuple(image_shape)
    shown = rows[order]
    if len(shape) == 3:
        shown, shape = shown.reshape(len(shown), *shape).mean(1).flatten(1), shape[1:]
    tile = _tiles(shown, shape, num_columns)
    # A single large weight would make everything else look flat.
    limit = max(float(np.quantile(shown.abs().numpy(), 0.998)), 1e-12)
    figure = new_figure(6.0, 5.2 * tile.shape[0] / tile.shape[1] + 0.5)
    ax = figure.subplots()
    image = _show(ax, tile, -limit, limit, "RdBu_r")
    bar = figure.colorbar(image, ax=ax, fraction=0.045, pad=0.02, extend="neither")
    bar.set_label("weight (nats)")
    kept = f"the {len(order)} of {len(rows)} units with the largest norm, " * (
        len(order) < len(rows)
    )
    annotate(figure, title, f"{kept}largest norm first; colours saturate at the ends of the scale")
    return figure


def completions(
    original: Tensor,
    mask: Tensor,
    mean: Tensor,
    samples: Tensor,
    image_shape: Sequence[int],
    *,
    title: str | None = "Completion of the hidden pixels",
) -> "Figure":
    """Images, the part of them that was given, and how the model goes on.

    :param Tensor original: whole images, shape ``(N, V)``.
    :param Tensor mask: True where a pixel was given, shape ``(V,)``.
    :param Tensor mean: completed images, pixel means, shape ``(N, V)``.
    :param Tensor samples: completed images, single samples, shape ``(S, N, V)``.
    :param image_shape: shape of one image.
    :param str title: heading.
    """
    given = original.detach().cpu().double().clone()
    given[:, ~mask.cpu()] = torch.nan
    names = ["test image", "given", "mean"]
    names += [f"sample {i + 1}" for i in range(len(samples))]
    rows = torch.stack([original.cpu().double(), given, mean.cpu().double()])
    rows = torch.cat([rows, samples.detach().cpu().double()])
    num_rows, num_columns = rows.shape[:2]
    tile = _tiles(rows.flatten(0, 1), image_shape, num_columns)
    height = 6.6 * tile.shape[0] / tile.shape[1]
    figure = new_figure(7.4, height + 0.7)
    ax = figure.subplots()
    _show(ax, tile, 0.0, 1.0, "gray")
    step = tile.shape[0] / num_rows
    for i, name in enumerate(names):
        ax.text(-2.0, (i + 0.5) * step - 0.5, name, ha="right", va="center", fontsize=9)
    caption = "one test image a column; blue pixels were not given, and are shown by their means "
    caption += "given the hidden units"
    annotate(figure, title, caption)
    return figure


def _show(ax: "Axes", tile: Array, low: float, high: float, colours: str) -> Any:
    if tile.ndim == 2:
        colormaps = importlib.import_module("matplotlib").colormaps
        # Lines between images, infinite here, lie above the scale; unknown pixels are NaN.
        scale = colormaps[colours].with_extremes(over=_LINES[colours], bad=_UNKNOWN)
        inside = np.where(np.isposinf(tile), 2.0 * high - low, np.clip(tile, low, high))
        image = ax.imshow(inside, cmap=scale, vmin=low, vmax=high, interpolation="nearest")
    else:
        image = ax.imshow(np.clip(tile, low, high), interpolation="nearest")
    ax.set_axis_off()
    return image


def _tiles(images: Tensor, image_shape: Sequence[int], num_columns: int | None) -> Array:
    """All images in one array, a line of one pixel (infinite) between them."""
    array = to_array(images)
    shape = tuple(image_shape)
    if len(shape) not in (2, 3) or array.ndim != 2 or array.shape[1] != np.prod(shape):
        raise ValueError(f"images of shape {array.shape} are no rows of images of shape {shape}")
    if len(array) == 0:
        raise ValueError("there are no images to show")
    columns = num_columns or max(1, round(len(array) ** 0.5))
    if columns < 1:
        raise ValueError(f"num_columns must be at least 1, got {num_columns}")
    columns = min(columns, len(array))
    rows = -(-len(array) // columns)
    height, width = shape[-2:]
    colour = (shape[0],) if len(shape) == 3 else ()
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, *colour), np.inf)
    for i, image in enumerate(array.reshape(-1, *shape)):
        top, left = divmod(i, columns)
        top, left = top * (height + 1) + 1, left * (width + 1) + 1
        pixels = np.moveaxis(image, 0, -1) if colour else image
        canvas[top : top + height, left : left + width] = pixels
    return canvas
