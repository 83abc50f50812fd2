# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What the hidden units say about rows of data, and which of them say nothing."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_ebm.distributions.units import Bernoulli, Ising
from pyro_ebm.plotting.figures import COLOURS, Array, annotate, new_figure, plain, to_array
from pyro_ebm.plotting.machines import as_machine, check_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["hidden_activations"]


@torch.no_grad()
def hidden_activations(
    machine: Any,
    rows: Tensor,
    *,
    max_rows: int = 200,
    max_units: int = 500,
    sort: bool = True,
    threshold: float = 0.01,
    title: str | None = "Activations of the hidden units",
) -> "Figure":
    r"""The map of :math:`E[h_j \mid v]` over rows and units, and a histogram of the units' means.

    A vertical stripe is a unit that says the same about every row: black ones are dead, white ones
    saturated. A horizontal stripe is a row that most units agree on. For bits and spins the units are counted
    whose mean lies within ``threshold`` of the ends of the scale (as a share of its length).

    :param machine: a :class:`pyro_ebm.distributions.RBM` without batch shape, or a module that makes it.
    :param Tensor rows: visible states, shape ``(N, V)``; the means are over all of them.
    :param int max_rows: rows of the map: the first ones.
    :param int max_units: units of the map, evenly chosen in their order.
    :param bool sort: whether units stand in the order of their means, so that dead ones are on the left and
        saturated ones on the right; otherwise as they come.
    :param float threshold: how near to an end a mean must be.
    :param str title: heading.
    :raises TypeError: for another machine, or rows that are no tensor.
    :raises ValueError: for a wrong shape or option.
    """
    if max_rows < 1 or max_units < 1:
        raise ValueError(
            f"max_rows and max_units must be at least 1, got {max_rows} and {max_units}"
        )
    if not 0.0 < threshold < 0.5:
        raise ValueError(f"threshold must be in (0, 0.5), got {threshold}")
    dist = as_machine(machine)
    rows = check_rows(dist, "rows", rows)
    table = to_array(dist.hidden.mean(dist.hidden_field(rows)))
    means = table.mean(0)
    order = np.argsort(means, kind="stable") if sort else np.arange(len(means))
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), max_units)).astype(int))]
    low, high = _ends(dist.hidden, table)
    figure = new_figure(8.4, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    _map(left, table[:max_rows, shown], low, high, sort)
    caption = f"means over {len(table)} rows of {len(means)} units"
    if isinstance(dist.hidden, Bernoulli | Ising):
        margin = threshold * (high - low)
        dead, full = int((means < low + margin).sum()), int((means > high - margin).sum())
        caption += (
            f": {dead} dead (below {low + margin:g}), {full} saturated (above {high - margin:g})"
        )
        right.axvspan(low, low + margin, color=COLOURS[1], alpha=0.35, lw=0)
        right.axvspan(high - margin, high, color=COLOURS[1], alpha=0.35, lw=0)
    _means(right, means, low, high)
    annotate(figure, title, caption)
    return figure


def _ends(hidden: Any, table: Array) -> tuple[float, float]:
    """The scale: the ends of the support of bits and spins, those of the values otherwise."""
    if isinstance(hidden, Bernoulli):
        return 0.0, 1.0
    if isinstance(hidden, Ising):
        return -1.0, 1.0
    low = float(table.min())
    return low, max(float(table.max()), low + 1e-12)


def _map(ax: "Axes", values: Array, low: float, high: float, sort: bool) -> None:
    image = ax.imshow(
        values, cmap="gray", vmin=low, vmax=high, aspect="auto", interpolation="nearest"
    )
    ax.set_xlabel("hidden unit, by mean activation" if sort else "hidden unit", fontsize=9)
    ax.set_ylabel("row", fontsize=9)
    ax.tick_params(labelsize=8)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
    bar.set_label("E[h | v]", fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _means(ax: "Axes", means: Array, low: float, high: float) -> None:
    ax.hist(means, np.linspace(low, high, 41).tolist(), color=COLOURS[0])
    ax.set_xlim(low, high)
    ax.set_xlabel("mean activation of a unit", fontsize=9)
    ax.set_ylabel("units", fontsize=9)
    plain(ax)
