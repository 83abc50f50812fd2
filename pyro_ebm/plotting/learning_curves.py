# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Metrics of several training runs over one another."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_ebm.plotting.figures import COLOURS, Array, annotate, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["learning_curves"]

Record = Mapping[str, Any]
History = Sequence[Record]

_MARKERS, _STYLES = "os^Dv", ("-", "--", ":", "-.")
_BANDS = {"range": "smallest to largest", "std": "standard deviation", "stderr": "standard error"}
#: Names of axes, with units.
_LABELS = {
    "reconstruction_error": "reconstruction error per unit",
    "free_energy": "mean free energy (nats)",
    "free_energy_gap": "free energy gap (nats)",
    "log_likelihood": "log-likelihood (nats)",
    "pseudo_log_likelihood": "pseudo-log-likelihood (nats)",
    "weight_norm": "norm of the weights",
}
_SPLITS = ("train", "validation", "test", "chains")


def learning_curves(
    histories: Mapping[str, History | Sequence[History]] | History,
    metrics: Sequence[str | Sequence[str]],
    *,
    x: str = "epoch",
    band: str = "range",
    title: str | None = "Learning curves",
) -> "Figure":
    """Metrics of several runs, with a band over the seeds of each.

    A line is the mean over the seeds of a run at every epoch. On the time axis, it stands at their mean
    time. Metrics that are not computed at every epoch, or are not finite, are joined over the gaps.

    :param histories: :attr:`pyro_ebm.training.Trainer.history` by the name of the run; a list of histories,
        one a seed, gets a band. Or a single history.
    :param metrics: what is shown: a panel for every metric, or for several together, such as
        ``["reconstruction_error", ("free_energy_train", "free_energy_validation")]``: colours tell runs
        apart, line styles the metrics of a panel.
    :param str x: "epoch", or "seconds" for the time of training, which has the unit that fits.
    :param str band: what the band is: "range", the smallest and the largest value; "std", one standard
        deviation to each side; or "stderr", one standard error of the mean.
    :param str title: heading.
    :raises ValueError: for empty histories, metrics that no run has, or unknown options.
    """
    if x not in ("epoch", "seconds"):
        raise ValueError(f"x must be 'epoch' or 'seconds', got {x!r}")
    if band not in _BANDS:
        raise ValueError(f"band must be one of {tuple(_BANDS)}, got {band!r}")
    runs = _runs(histories)
    panels = [(m,) if isinstance(m, str) else tuple(m) for m in metrics]
    _check_metrics(runs, panels)
    curves = {
        (name, metric): _curve(seeds, metric, x, band)
        for name, seeds in runs.items()
        for metric in {m for panel in panels for m in panel}
    }
    unit, seconds = _unit(curves.values()) if x == "seconds" else ("epoch", 1.0)
    figure = new_figure(max(3.5 * len(panels), 4.2), 3.3)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        for i, name in enumerate(runs):
            for k, metric in enumerate(panel):
                _draw(ax, curves[name, metric] / np.array([[seconds], [1], [1], [1]]), i, k)
        ax.set_xlabel(unit, fontsize=9)
        if x == "epoch":
            ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_ylabel(_label(panel), fontsize=9)
        _style_legend(ax, panel)
        plain(ax)
    _run_legend(figure, axes[0], list(runs))
    annotate(figure, title, _caption(runs, band))
    return figure


def _runs(histories: Any) -> dict[str, list[History]]:
    """Histories of every seed by run."""
    named = histories if isinstance(histories, Mapping) else {"": histories}
    runs = {}
    for name, value in named.items():
        seeds = [value] if len(value) and isinstance(value[0], Mapping) else list(value)
        if not seeds or not all(len(seed) for seed in seeds):
            raise ValueError(f"the history{f' of {name!r}' if name else ''} holds no epochs yet")
        runs[str(name)] = seeds
    if not runs:
        raise ValueError("histories must hold at least one run")
    return runs


def _check_metrics(runs: Mapping[str, list[History]], panels: list[tuple[str, ...]]) -> None:
    if not panels or not all(panels):
        raise ValueError("metrics must name at least one metric a panel")
    for name, seeds in runs.items():
        known = {key for seed in seeds for record in seed for key in record}
        unknown = sorted({m for panel in panels for m in panel} - known)
        if unknown:
            run = f"run {name!r}" if name else "the run"
            raise ValueError(f"{run} has no metrics {unknown}; it has {sorted(known)}")


def _curve(seeds: list[History], metric: str, x: str, band: str) -> Array:
    """Places, means, and lower and upper ends over the seeds, shape ``(4, points)``."""
    epochs = sorted({int(record["epoch"]) for seed in seeds for record in seed})
    place = {epoch: i for i, epoch in enumerate(epochs)}
    values = np.full((len(seeds), len(epochs)), np.nan)
    times = np.full_like(values, np.nan)
    for i, seed in enumerate(seeds):
        passed = np.cumsum([float(record.get("seconds", math.nan)) for record in seed])
        for record, time in zip(seed, passed, strict=True):
            at = place[int(record["epoch"])]
            value = float(record.get(metric, math.nan))
            values[i, at] = value if math.isfinite(value) else math.nan
            times[i, at] = time
    there = np.isfinite(values)
    kept = there.any(0)
    values, times, there = values[:, kept], times[:, kept], there[:, kept]
    count = there.sum(0)
    mean = np.where(there, values, 0.0).sum(0) / count
    if band == "range":
        low = np.where(there, values, np.inf).min(0, initial=np.inf)
        high = np.where(there, values, -np.inf).max(0, initial=-np.inf)
    else:
        square = np.where(there, (values - mean) ** 2, 0.0).sum(0)
        half = np.sqrt(square / np.maximum(count - 1, 1))
        half = half / np.sqrt(count) if band == "stderr" else half
        low, high = mean - half, mean + half
    if x == "epoch":
        where = np.array(epochs, dtype=float)[kept]
    else:
        where = np.where(there, times, 0.0).sum(0) / count
        if np.isnan(where).any():
            raise ValueError("x='seconds' needs the seconds of every epoch in the histories")
    return np.stack([where, mean, low, high])


def _unit(curves: Any) -> tuple[str, float]:
    longest = max((float(curve[0].max()) for curve in curves if curve.shape[1]), default=0.0)
    if longest > 2 * 3600:
        return "time of training (h)", 3600.0
    return ("time of training (min)", 60.0) if longest > 120 else ("time of training (s)", 1.0)


def _draw(ax: "Axes", curve: Array, run: int, metric: int) -> None:
    where, mean, low, high = curve
    colour = COLOURS[run % len(COLOURS)]
    if (high > low).any():
        ax.fill_between(where, low, high, color=colour, alpha=0.2, lw=0)
    marks: dict[str, Any] = {"marker": _MARKERS[run % len(_MARKERS)], "ms": 3.5}
    # Shifted from run to run, so that the marks of curves that coincide do not cover each other.
    step = max(1, len(where) // 6)
    every = (run % step, step) if len(where) > 3 else None
    style = _STYLES[metric % len(_STYLES)]
    ax.plot(where, mean, color=colour, ls=style, lw=1.3, markevery=every, **marks)


def _split(metric: str) -> tuple[str, str]:
    """``free_energy_train`` as its quantity and what it is of."""
    for split in _SPLITS:
        if metric.endswith(f"_{split}"):
            return metric.removesuffix(f"_{split}"), split
    return metric, ""


def _label(panel: tuple[str, ...]) -> str:
    names = [metric if metric in _LABELS else _split(metric)[0] for metric in panel]
    label = " / ".join(_LABELS.get(n, n.replace("_", " ")) for n in dict.fromkeys(names))
    return f"{label}, {_split(panel[0])[1]}" if len(panel) == 1 and _split(panel[0])[1] else label


def _style_legend(ax: "Axes", panel: tuple[str, ...]) -> None:
    if len(panel) < 2:
        return
    same = len({_split(metric)[0] for metric in panel}) == 1
    for k, metric in enumerate(panel):
        name = (_split(metric)[1] if same else "") or metric.replace("_", " ")
        ax.plot([], [], color="0.3", ls=_STYLES[k % len(_STYLES)], lw=1.3, label=name)
    ax.legend(frameon=False, fontsize=8)


def _run_legend(figure: "Figure", ax: "Axes", names: list[str]) -> None:
    if names == [""]:
        return
    handles = []
    for i, name in enumerate(names):
        colour, marker = COLOURS[i % len(COLOURS)], _MARKERS[i % len(_MARKERS)]
        handles += ax.plot([], [], color=colour, marker=marker, ms=3.5, lw=1.3, label=name)
    figure.legend(
        handles=handles, loc="outside right center", frameon=False, fontsize=8, handlelength=2.4
    )


def _caption(runs: Mapping[str, list[History]], band: str) -> str | None:
    counts = {len(seeds) for seeds in runs.values()}
    if counts == {1}:
        return None
    number = f"{counts.pop()}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return f"lines: means of {number} seeds; bands: {_BANDS[band]}"
