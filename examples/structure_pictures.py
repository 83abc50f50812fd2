# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of ``structure_learning.py``."""

from collections.abc import Mapping
from typing import Any

from potts_models import matrix
from torch import Tensor

from pyro_ebm.plotting.figures import COLOURS, new_figure, plain
from pyro_ebm.plotting.tiles import show


def picture_of_scores(sizes: Mapping[int, Mapping[str, Any]]) -> Any:
    """AUC and F1 of all methods against the number of rows, with standard errors over data sets."""
    figure = new_figure(6.4, 2.8)
    axes = figure.subplots(1, 2)
    methods = next(iter(sizes.values()))
    for ax, (key, label) in zip(axes, {"auc": "AUC of the edges", "f1": "F1"}.items(), strict=True):
        for colour, name in zip(COLOURS, methods, strict=False):
            values = [by_method[name][key] for by_method in sizes.values()]
            errors = [by_method[name][f"{key}_std_error"] for by_method in sizes.values()]
            ax.errorbar(list(sizes), values, errors, fmt="o-", ms=4, color=colour, label=name)
        ax.set_xscale("log")
        ax.set_xticks(list(sizes), [str(n) for n in sizes])
        ax.minorticks_off()
        ax.set_xlabel("rows of data", fontsize=9)
        ax.set_ylabel(label, fontsize=9)
        plain(ax)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def picture_of_graphs(panels: Mapping[str, Tensor], num_spins: int) -> Any:
    """Probabilities of edges as matrices, white for 1."""
    figure = new_figure(2.2 * len(panels), 2.5)
    for ax, (name, values) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        show(ax, matrix(values, num_spins).double().numpy(), 0.0, 1.0)
        ax.set_title(name, fontsize=10)
    return figure
