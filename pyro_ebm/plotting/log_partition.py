# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of estimates of log Z."""

import math
from typing import TYPE_CHECKING

from pyro_ebm.plotting.figures import annotate, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyro_ebm.infer import LogPartitionComparison, LogPartitionEstimate

__all__ = ["log_partition_comparison"]

_RELIABLE, _FLAGGED, _BRACKET = "#1f5a94", "#c4661f", "0.88"
#: Markers by the side from which an estimate bounds log Z in expectation.
_MARKERS = {"below": ">", "above": "<", None: "o"}


def log_partition_comparison(
    comparison: "LogPartitionComparison",
    *,
    truth: float | None = None,
    title: str | None = "Estimates of log Z",
) -> "Figure":
    """Intervals of all methods below each other, with the combined bracket behind them.

    Arrows point to where log Z is for methods that bound it from one side; methods that find something
    suspicious about themselves are orange and hollow.

    :param comparison: of one machine, as from :func:`~pyro_ebm.infer.compare_log_partition`.
    :param float truth: the exact or a published value, a line.
    :param str title: heading.
    :raises ValueError: for a comparison with a batch shape.
    """
    estimates = comparison.estimates
    shape = tuple(next(iter(estimates.values())).value.shape)
    if shape:
        raise ValueError(f"the comparison must be of one machine, got a batch of shape {shape}")
    figure = new_figure(7.0, 1.3 + 0.32 * len(estimates))
    ax = figure.subplots()
    low, high = comparison.lower.item(), comparison.upper.item()
    if math.isfinite(low) and math.isfinite(high) and low <= high:
        ax.axvspan(low, high, color=_BRACKET, lw=0, zorder=0)
    if truth is not None:
        ax.axvline(truth, color="k", lw=1.0, ls="--", zorder=1)
    for row, estimate in enumerate(estimates.values()):
        _interval(ax, row, estimate)
    ax.set_yticks(range(len(estimates)), list(estimates))
    ax.set_ylim(len(estimates) - 0.5, -0.5)
    ax.set_xlabel("log Z (nats), 95 % intervals")
    ax.ticklabel_format(axis="x", useOffset=False)
    ax.spines[["top", "right"]].set_visible(False)
    caption = "shaded: highest lower and lowest upper bound of the methods without flags"
    if truth is not None:
        caption += f"; dashed: {truth:g}"
    if comparison.flagged:
        caption += "\norange: suspicious by its own diagnostics"
    annotate(figure, title, caption)
    return figure


def _interval(ax: "Axes", row: int, estimate: "LogPartitionEstimate") -> None:
    colour = _RELIABLE if estimate.reliable else _FLAGGED
    value = estimate.value.item()
    ends = [[value - estimate.lower.item()], [estimate.upper.item() - value]]
    ax.errorbar(
        [value],
        [row],
        xerr=ends,
        fmt=_MARKERS[estimate.side],
        color=colour,
        markerfacecolor=colour if estimate.reliable else "white",
        markersize=6,
        capsize=3,
        lw=1.4,
    )
