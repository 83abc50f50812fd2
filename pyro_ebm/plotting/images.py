# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of images: samples, completions, reconstructions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_ebm.plotting.figures import Array, annotate, new_figure, to_array
from pyro_ebm.plotting.machines import as_machine, check_rows
from pyro_ebm.plotting.tiles import image_size, show, tiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["completions", "image_grid", "reconstructions"]


def image_grid(
    images: Tensor | Mapping[str, Tensor],
    image_shape: Sequence[int],
    *,
    layout: str = "channels_first",
    limits: tuple[float, float] = (0.0, 1.0),
    num_columns: int | None = None,
    title: str | None = None,
    caption: str | None = None,
) -> "Figure":
    """Images as tiles, in grey levels from black to white, or in colour.

    :param images: shape ``(N, V)``, or several of them by their titles, shown side by side.
    :param image_shape: shape of one image: ``(H, W)``, or with one or three channels as ``layout`` says.
    :param str layout: "channels_first", images of shape ``(C, H, W)``, or "channels_last",
        ``(H, W, C)``; the order in which the V units are flattened.
    :param limits: values that are black and white, such as (-1, 1) for spins.
    :param int num_columns: tiles in a row; about the square root of N if None.
    :param str title: heading.
    :param str caption: a line below, on what is shown.
    :raises ValueError: if the sizes contradict each other.
    """
    panels = dict(images) if isinstance(images, Mapping) else {"": images}
    if not panels:
        raise ValueError("there are no images to show")
    arrays = [tiles(x, image_shape, num_columns, layout) for x in panels.values()]
    widths = [t.shape[1] for t in arrays]
    height = 5.0 * arrays[0].shape[0] / max(widths)
    # Room for the titles of the panels, the heading and the caption.
    height += 0.3 + 0.35 * bool(title) + 0.3 * bool(caption)
    figure = new_figure(5.0 * sum(widths) / max(widths), height)
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for ax, name, array in zip(axes, panels, arrays, strict=True):
        show(ax, array, *limits)
        ax.set_title(name, fontsize=10)
    annotate(figure, title, caption)
    return figure


def completions(
    original: Tensor,
    mask: Tensor,
    mean: Tensor,
    samples: Tensor,
    image_shape: Sequence[int],
    *,
    layout: str = "channels_first",
    name: str = "test image",
    title: str | None = "Completion of the hidden pixels",
) -> "Figure":
    """Images, the part of them that was given, and how the model goes on.

    :param Tensor original: whole images, shape ``(N, V)``.
    :param Tensor mask: True where a pixel was given, shape ``(V,)``.
    :param Tensor mean: completed images, pixel means, shape ``(N, V)``.
    :param Tensor samples: completed images, single samples, shape ``(S, N, V)``.
    :param image_shape: shape of one image.
    :param str layout: where channels are, see :func:`image_grid`.
    :param str name: what the whole images are.
    :param str title: heading.
    :raises ValueError: if the sizes contradict each other.
    """
    given = original.detach().cpu().double().clone()
    given[:, ~mask.cpu()] = torch.nan
    names = [name, "given", "mean"]
    names += [f"sample {i + 1}" for i in range(len(samples))]
    rows = torch.stack([original.cpu().double(), given, mean.cpu().double()])
    rows = torch.cat([rows, samples.detach().cpu().double()])
    num_rows, num_columns = rows.shape[:2]
    array = tiles(rows.flatten(0, 1), image_shape, num_columns, layout)
    height = 6.6 * array.shape[0] / array.shape[1]
    figure = new_figure(7.4, height + 0.7)
    ax = figure.subplots()
    show(ax, array, 0.0, 1.0)
    step = array.shape[0] / num_rows
    for i, label in enumerate(names):
        ax.text(-2.0, (i + 0.5) * step - 0.5, label, ha="right", va="center", fontsize=9)
    caption = f"one {name} a column; blue pixels were not given, and are shown by their means "
    caption += "given the hidden units"
    annotate(figure, title, caption)
    return figure


@torch.no_grad()
def reconstructions(
    machine: Any,
    rows: Tensor,
    image_shape: Sequence[int],
    *,
    layout: str = "channels_first",
    limits: tuple[float, float] = (0.0, 1.0),
    num_columns: int = 10,
    title: str | None = "Reconstructions",
) -> "Figure":
    r"""Rows above their one-step mean-field reconstructions, with the error of each below.

    The reconstruction of v is :math:`E[v \mid E[h \mid v]]`, the error the mean over units of its squared
    difference to v: the ``reconstruction_error`` of :attr:`pyro_ebm.training.Trainer.history`. Nothing is
    drawn at random.

    :param machine: a :class:`pyro_ebm.distributions.RBM` without batch shape, or a module that makes it.
    :param Tensor rows: visible states or rates, shape ``(N, V)``.
    :param image_shape: shape of one image.
    :param str layout: where channels are, see :func:`image_grid`.
    :param limits: values that are black and white.
    :param int num_columns: images side by side.
    :param str title: heading.
    :raises TypeError: for another machine, or rows that are no tensor.
    :raises ValueError: if the sizes contradict each other.
    """
    dist = as_machine(machine)
    rows = check_rows(dist, "rows", rows)
    if num_columns < 1:
        raise ValueError(f"num_columns must be at least 1, got {num_columns}")
    height, width, _ = image_size(image_shape, layout)
    mean = dist.visible.mean(dist.visible_field(dist.hidden.mean(dist.hidden_field(rows))))
    errors = to_array((rows - mean).square().mean(-1))
    columns = min(num_columns, len(rows))
    bands = -(-len(rows) // columns)
    aspect = (2 * height + 3) / (columns * (width + 1) + 1)
    figure = new_figure(7.4, bands * (6.6 * aspect + 0.28) + 0.75)
    axes = figure.subplots(bands, 1, squeeze=False)[:, 0]
    for ax, start in zip(axes, range(0, len(rows), columns), strict=True):
        band = slice(start, start + columns)
        pair = torch.stack([rows[band], mean[band]])
        _pair(ax, tiles(pair.flatten(0, 1), image_shape, pair.shape[1], layout), limits)
        _label(ax, errors[band], width, columns)
    caption = "below each: mean squared error per unit; "
    annotate(figure, title, f"{caption}mean over the {len(rows)} rows {errors.mean():.4f}")
    return figure


def _pair(ax: "Axes", array: Array, limits: tuple[float, float]) -> None:
    """One row of images above another."""
    show(ax, array, *limits)
    ax.set_axis_on()
    ax.spines[:].set_visible(False)
    height = array.shape[0]
    ax.set_yticks([0.25 * height, 0.75 * height], ["data", "reconstruction"], fontsize=9)
    ax.tick_params(length=0)


def _label(ax: "Axes", errors: Array, width: int, columns: int) -> None:
    """Errors below the images; a last row that is not full keeps the size of its images."""
    centres = [(i + 0.5) * (width + 1) for i in range(len(errors))]
    ax.set_xticks(centres, [f"{error:.4f}" for error in errors], fontsize=7, color="0.25")
    ax.set_xlim(-0.5, columns * (width + 1) + 0.5)
