# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of ``nbm_missing_context.py``, and the names of its columns."""

import math
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.plotting.figures import COLOURS, new_figure, plain
from pyro_ebm.predictive import GaussianMixture

__all__ = ["COVARIATES", "OUTCOMES", "check_picture", "posterior_picture", "predictive_picture"]

COVARIATES = ("age", "bmi", "bp", "s1", "s2", "s3", "s5")
OUTCOMES = ("progression", "blood sugar")


def posterior_picture(check: dict[str, Any], *, panels: int = 6) -> Any:
    """Missing covariates: before y is known, after, the guide, and what was deleted."""
    x, observed, _ = check["rows"]
    samples, weights = check["reference"]
    places = (~observed).nonzero()[:panels].tolist()
    figure = new_figure(3.0 * math.ceil(len(places) / 2), 4.2)
    axes = figure.subplots(2, math.ceil(len(places) / 2), squeeze=False).flatten()
    grid = torch.linspace(-3.5, 3.5, 200)
    bins = torch.linspace(-3.5, 3.5, 36).tolist()
    for ax, (row, column) in zip(axes, places, strict=False):
        draws, own = samples[:, row, column].numpy(), weights[:, row].numpy()
        ax.hist(draws, bins, density=True, histtype="step", color="0.5", label="given x observed")
        ax.hist(draws, bins, weights=own, density=True, color=COLOURS[5], label="given y too")
        nuts = check["nuts"][:, row, column].numpy()
        ax.hist(nuts, bins, density=True, histtype="step", color=COLOURS[6], label="NUTS")
        loc, scale = (t[row, column] for t in check["guide"])
        density = torch.distributions.Normal(loc, scale).log_prob(grid).exp()
        ax.plot(grid, density, "--", color=COLOURS[1], label="guide")
        ax.axvline(float(x[row, column]), color=COLOURS[2], label="deleted value")
        ax.set_title(f"row {row + 1}: {COVARIATES[column]}", fontsize=9)
        ax.set_yticks([])
        plain(ax)
    for ax in axes[len(places) :]:
        ax.axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def check_picture(check: dict[str, dict[str, Any]]) -> Any:
    """Statistics of replications as histograms, those of the measured outcomes as lines."""
    figure = new_figure(9.0, 4.0)
    axes = figure.subplots(2, 3).flatten()
    for ax, (name, own) in zip(axes, check.items(), strict=True):
        ax.hist(own["replicated"], 30, color=COLOURS[5])
        ax.axvline(own["measured"], color=COLOURS[1], linewidth=2.0)
        ax.set_title(f"{name} (p = {own['p_value']:.2f})", fontsize=9)
        ax.set_yticks([])
        plain(ax)
    return figure


def predictive_picture(
    predicted: GaussianMixture, y: Tensor, observed: Tensor, *, rows: int = 6
) -> Any:
    """Predictive densities of the first outcome for rows of ever more gaps."""
    order = (~observed).sum(-1).argsort(stable=True)
    chosen = order[torch.linspace(0, len(order) - 1, rows).long()]
    grid = torch.linspace(-3.0, 4.0, 200)
    figure = new_figure(9.0, 2.0)
    axes = figure.subplots(1, rows, sharey=True)
    for ax, row in zip(axes, chosen.tolist(), strict=True):
        density = predicted[row, 0].log_prob(grid).exp()
        ax.fill_between(grid, density, color=COLOURS[5])
        ax.axvline(float(y[row, 0]), color=COLOURS[1])
        ax.set_title(f"{int((~observed[row]).sum())} missing", fontsize=9)
        ax.set_yticks([])
        plain(ax)
    axes[0].set_xlabel(OUTCOMES[0], fontsize=8)
    return figure
