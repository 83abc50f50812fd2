# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Which classes are taken for which."""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_ebm.plotting.features import class_numbers
from pyro_ebm.plotting.figures import Array, annotate, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["confusion_matrix"]

#: Shares above this have white text.
_DARK = 0.35


def confusion_matrix(
    true: Any,
    predicted: Any,
    names: Sequence[str] | None = None,
    *,
    title: str | None = "Confusion matrix",
) -> "Figure":
    """Rows of every class by what they were taken for: counts, and shares of the true class.

    The scale is that of the square root of the share, so that a confusion of one in a hundred is seen beside
    a diagonal that is nearly one.

    :param true: class of every row, whole numbers from 0, shape ``(N,)``.
    :param predicted: what was said of it, shape ``(N,)``.
    :param names: of the classes; their numbers if None.
    :param str title: heading.
    :raises ValueError: for wrong shapes, labels that are no numbers of classes, or too few names.
    """
    rows, _ = class_numbers("true", true, None, names)
    columns, _ = class_numbers("predicted", predicted, len(rows), names)
    if names is None:
        names = [str(k) for k in range(max(rows.max(), columns.max()) + 1)]
    size = len(names)
    counts = np.bincount(rows * size + columns, minlength=size**2).reshape(size, size)
    totals = counts.sum(1)
    shares = counts / np.maximum(totals, 1)[:, None]
    side = max(0.52 * size, 1.6)
    figure = new_figure(side + 2.3, side + 1.2)
    ax = figure.subplots()
    colors = importlib.import_module("matplotlib.colors")
    image = ax.imshow(shares, cmap="Blues", norm=colors.PowerNorm(0.5, 0.0, 1.0))
    _write(ax, counts, shares)
    long = max(map(len, names)) > 3
    ax.set_xticks(range(size), names, rotation=45 if long else 0, ha="right" if long else "center")
    ax.set_yticks(range(size), [f"{n}  ({t})" for n, t in zip(names, totals, strict=True)])
    ax.set_xlabel("predicted class", fontsize=9)
    ax.set_ylabel("true class (number of rows)", fontsize=9)
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
    bar.set_label("share of the true class", fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    wrong = len(rows) - int(np.trace(counts))
    caption = f"{wrong} of {len(rows)} rows wrong ({100 * wrong / len(rows):.2f} %)"
    annotate(figure, title, caption)
    return figure


def _write(ax: "Axes", counts: Any, shares: Array) -> None:
    """Counts, and below them shares; empty cells say nothing."""
    for (i, k), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[i, k] > _DARK else "0.1"
            ax.text(k, i - 0.14, f"{count}", ha="center", va="center", fontsize=8, color=colour)
            share = f"{100 * shares[i, k]:.1f} %"
            ax.text(k, i + 0.24, share, ha="center", va="center", fontsize=5.5, color=colour)
