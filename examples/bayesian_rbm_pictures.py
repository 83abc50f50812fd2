# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of bayesian_rbm.py."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pyro_ebm.plotting.figures import COLOURS, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: Names of functions in titles.
TITLES = {"p[0]": "first field on", "r[0,1]": "correlation of fields 0 and 1"}


def posteriors(
    numbers: dict[str, dict[str, Tensor]],
    names: tuple[str, ...] = ("scale", "log Z", "p[0]", "r[0,1]"),
) -> "Figure":
    """Marginal posteriors of some functions of the parameters: those with log Z above, those without below.

    :param numbers: by sampler and function, shape ``(chains, draws)``.
    """
    available = next(iter(numbers.values()))
    shown = [name for name in names if name in available]
    right = [sampler for sampler in numbers if "without" not in sampler]
    lines = [right, [sampler for sampler in numbers if sampler not in right]]
    lines = [line for line in lines if line]
    figure = new_figure(2.4 * len(shown), 0.6 + 1.7 * len(lines))
    axes = figure.subplots(len(lines), len(shown), squeeze=False)
    for samplers, row in zip(lines, axes, strict=True):
        for ax, name in zip(row, shown, strict=True):
            _histograms(ax, {sampler: numbers[sampler][name] for sampler in samplers}, right)
            ax.set_title(TITLES.get(name, name), fontsize=9)
        row[0].legend(fontsize=7, frameon=False, loc="upper right")
    figure.suptitle("Posterior of the parameters of an RBM", fontsize=11)
    return figure


def _histograms(ax: "Axes", values: dict[str, Tensor], right: list[str]) -> None:
    """One histogram a sampler, in the same bins."""
    arrays = {sampler: x.flatten().double().numpy() for sampler, x in values.items()}
    finite = {sampler: x[np.isfinite(x)] for sampler, x in arrays.items()}
    plain(ax)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if min(len(x) for x in finite.values()) == 0:
        ax.text(0.5, 0.4, "undefined:\nfields never change", ha="center", fontsize=8)
        ax.set_xticks([])
        return
    low, high = min(map(np.min, finite.values())), max(map(np.max, finite.values()))
    # What hardly varies is shown as a line and not magnified.
    margin = max(0.0, 0.05 - (high - low)) / 2.0
    bins = np.linspace(low - margin, high + margin, 41)
    for sampler, x in finite.items():
        number = right.index(sampler) if sampler in right else len(right)
        filled = {"histtype": "step"} if number == 1 else {"histtype": "stepfilled", "alpha": 0.4}
        ax.hist(x, bins, density=True, color=COLOURS[number], lw=1.3, label=sampler, **filled)
    ax.margins(y=0.45)


def predictive_check(observed: Tensor, replicated: Tensor) -> "Figure":
    """Shares of images with so many fields on: those observed, and 90 % intervals of replicated data sets.

    :param observed: shape ``(V + 1,)``.
    :param replicated: shape ``(data sets, V + 1)``.
    """
    figure = new_figure(4.6, 2.8)
    ax = figure.subplots()
    number = np.arange(len(observed))
    low, middle, high = np.quantile(replicated.numpy(), [0.05, 0.5, 0.95], axis=0)
    ax.bar(number, high - low, 0.8, low, color="0.85", label="90 % of replicated data sets")
    ax.hlines(middle, number - 0.4, number + 0.4, color="0.5", lw=1.2)
    ax.plot(number, observed.numpy(), "o", color=COLOURS[1], ms=5, label="data")
    ax.set_xlabel("fields that are on", fontsize=9)
    ax.set_ylabel("share of images", fontsize=9)
    ax.set_ylim(0.0, 1.35 * float(max(high.max(), observed.max())))
    ax.legend(fontsize=8, frameon=False)
    ax.set_title("Posterior predictive check", fontsize=10)
    plain(ax)
    return figure
