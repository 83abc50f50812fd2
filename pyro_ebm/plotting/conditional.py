# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of class-conditional machines: samples by class, and what each class has learnt."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pyro_ebm.plotting.figures import Array, annotate, new_figure, to_array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["class_parameters", "class_samples"]


def class_samples(
    samples: Tensor,
    image_shape: Sequence[int],
    names: Sequence[str],
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    title: str | None = "Samples by class",
    caption: str | None = None,
) -> "Figure":
    """Samples of every class, one class a column and one chain a row, all on one scale.

    :param Tensor samples: shape ``(chains, classes, V)``.
    :param image_shape: shape ``(H, W)`` of one image.
    :param names: the classes.
    :param limits: values that are black and white.
    :param str title: heading.
    :param str caption: a line below.
    :raises ValueError: if the sizes contradict each other.
    """
    rows = {"": to_array(samples)}
    if rows[""].ndim != 3:
        raise ValueError(f"samples must have shape (chains, classes, V), got {samples.shape}")
    panels = {str(i): rows[""][i] for i in range(len(rows[""]))}
    scales = dict.fromkeys(panels, ("gray", *limits))
    return _grid(panels, scales, image_shape, names, title, caption, labels=False)


def class_parameters(
    rows: Mapping[str, Tensor],
    image_shape: Sequence[int],
    names: Sequence[str],
    *,
    signed: Sequence[str] = (),
    title: str | None = "Parameters by class",
    caption: str | None = None,
) -> "Figure":
    """Quantities of every class as images: one class a column, one quantity a row.

    A row has one scale for all classes, so that brightness can be compared: grey levels between its
    smallest and its largest value, or for signed quantities colours around zero.

    :param rows: quantities by name, each of shape ``(classes, V)``.
    :param image_shape: shape ``(H, W)`` of one image.
    :param names: the classes.
    :param signed: names of quantities whose sign matters.
    :param str title: heading.
    :param str caption: a line below.
    :raises ValueError: if the sizes contradict each other.
    """
    panels = {name: to_array(values) for name, values in rows.items()}
    scales = {}
    for name, values in panels.items():
        # A single extreme pixel would make everything else look flat.
        low, high = (float(np.quantile(values, q)) for q in (0.002, 0.998))
        if name in signed:
            limit = max(abs(low), abs(high), 1e-12)
            scales[name] = ("RdBu_r", -limit, limit)
        else:
            scales[name] = ("gray", low, max(high, low + 1e-12))
    return _grid(panels, scales, image_shape, names, title, caption, labels=True)


def _grid(
    panels: Mapping[str, Array],
    scales: Mapping[str, tuple[str, float, float]],
    image_shape: Sequence[int],
    names: Sequence[str],
    title: str | None,
    caption: str | None,
    *,
    labels: bool,
) -> "Figure":
    height, width = image_shape
    for name, values in panels.items():
        if values.shape != (len(names), height * width):
            raise ValueError(
                f"row {name!r} must have shape ({len(names)}, {height * width}), got {values.shape}"
            )
    num_rows, num_columns = len(panels), len(names)
    left = 1.15 if labels else 0.0
    tile = 6.4 / num_columns
    figure = new_figure(6.4 + left + 0.9 * labels, num_rows * tile * height / width + 0.9)
    axes = figure.subplots(num_rows, num_columns, squeeze=False, gridspec_kw={"wspace": 0.02})
    for i, (name, values) in enumerate(panels.items()):
        colours, low, high = scales[name]
        for k in range(num_columns):
            ax = axes[i, k]
            image = ax.imshow(
                values[k].reshape(height, width),
                cmap=colours,
                vmin=low,
                vmax=high,
                interpolation="nearest",
            )
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
            if i == 0:
                ax.set_title(names[k], fontsize=8)
        if labels:
            axes[i, 0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
            bar = figure.colorbar(image, ax=list(axes[i]), fraction=0.02, pad=0.01, aspect=12)
            bar.ax.tick_params(labelsize=6)
            bar.outline.set_visible(False)
    annotate(figure, title, caption)
    return figure
