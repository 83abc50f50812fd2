# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of Markov chains."""

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyro_ebm.plotting.figures import COLOURS, Array, annotate, new_figure, plain, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyro_ebm.diagnostics import SamplerComparison

__all__ = ["energy_trace", "rank_histograms", "sampler_comparison"]


def energy_trace(
    energies: Any,
    *,
    sweeps_per_draw: int = 1,
    data_energies: Tensor | None = None,
    title: str | None = "Free energy along the chains",
) -> "Figure":
    """Free energies of chains over time, and their distribution.

    :param energies: shape ``(chains, draws)``, in nats.
    :param int sweeps_per_draw: sweeps between two draws, for the horizontal axis.
    :param Tensor data_energies: free energies of data rows, whose distribution is shown beside it.
    :param str title: heading.
    """
    values = to_array(energies)
    if values.ndim != 2:
        raise ValueError(f"energies must have shape (chains, draws), got {values.shape}")
    figure = new_figure(8.0, 3.6)
    trace, density = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    sweeps = np.arange(1, values.shape[1] + 1) * sweeps_per_draw
    for i, chain in enumerate(values):
        trace.plot(sweeps, chain, lw=0.5, alpha=0.7, color=f"C{i % 10}")
    trace.set_xlabel("Gibbs sweeps after warm-up")
    trace.set_ylabel("free energy F(v) (nats)")
    trace.set_xlim(0, sweeps[-1])
    everything = [values.ravel()] + ([] if data_energies is None else [to_array(data_energies)])
    low = min(float(x.min()) for x in everything)
    high = max(float(x.max()) for x in everything)
    bins = np.linspace(low, high + 1e-9 + 1e-6 * abs(high), 31)
    options: dict[str, Any] = {"density": True, "orientation": "horizontal"}
    if data_energies is not None:
        data = to_array(data_energies).ravel()
        density.hist(data, bins, color="0.8", label="test data", **options)
    density.hist(values.ravel(), bins, histtype="step", color="k", label="all chains", **options)
    density.legend(frameon=False, fontsize=8, loc="lower right")
    density.set_xlabel("density (1/nat)")
    annotate(figure, title, f"{len(values)} chains, one colour each")
    return figure


def rank_histograms(
    values: Any,
    *,
    max_chains: int = 8,
    num_bins: int = 20,
    name: str = "free energy",
    title: str | None = "Ranks of the draws of each chain",
) -> "Figure":
    """Traces of chains, and histograms of the ranks of their draws among those of all chains.

    Where chains have mixed, every histogram is flat. A chain that leans to one side sits elsewhere
    than the others; a hump or a trough means that its spread differs [1]. The grey band holds 99 % of
    the bars of independent draws, and bars of correlated ones scatter more.

    **References**

    [1] *Rank-Normalization, Folding, and Localization: An Improved R-hat for Assessing Convergence of
    MCMC*, Aki Vehtari, Andrew Gelman, Daniel Simpson, Bob Carpenter, Paul-Christian Bürkner (2021)

    :param values: a number of every draw, shape ``(chains, draws)``.
    :param int max_chains: chains that are shown, evenly chosen; ranks are among all.
    :param int num_bins: bars of a histogram.
    :param str name: what the number is.
    :param str title: heading.
    :raises ValueError: for another shape.
    """
    array = to_array(values)
    if array.ndim != 2 or array.shape[0] < 2:
        raise ValueError(f"values must have shape (chains >= 2, draws), got {array.shape}")
    ranks = _ranks(array)
    shown = np.unique(np.linspace(0, len(array) - 1, min(len(array), max_chains)).astype(int))
    figure = new_figure(7.4, 0.62 * len(shown) + 1.2)
    axes = figure.subplots(len(shown), 2, squeeze=False, sharex="col", sharey="col")
    expected = array.shape[1] / num_bins
    margin = 2.58 * np.sqrt(expected * (1.0 - 1.0 / num_bins))
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    for row, chain in zip(axes, shown, strict=True):
        trace, bars = row
        trace.plot(np.arange(1, array.shape[1] + 1), array[chain], lw=0.5, color=COLOURS[0])
        bars.axhspan(expected - margin, expected + margin, color="0.88", lw=0)
        bars.hist(ranks[chain], edges, color=COLOURS[0], alpha=0.8, rwidth=0.9)
        bars.axhline(expected, color="0.3", lw=0.8, ls="--")
        trace.set_ylabel(f"{chain}", fontsize=8, rotation=0, va="center", labelpad=12)
        bars.set_yticks([])
        plain(trace, bars)
    axes[0, 0].set_title(f"{name} by draw, chain by chain", fontsize=9)
    axes[0, 1].set_title("ranks among all chains", fontsize=9)
    axes[-1, 0].set_xlabel("draw", fontsize=9)
    axes[-1, 1].set_xlabel("rank (as a share)", fontsize=9)
    axes[-1, 0].set_xlim(1, array.shape[1])
    caption = f"{len(shown)} of {len(array)} chains; " if len(shown) < len(array) else ""
    annotate(figure, title, f"{caption}dashed: flat; band: 99 % of independent draws")
    return figure


def _ranks(array: Array) -> Array:
    """Ranks among all draws as shares in (0, 1).

    Equal values share an interval of ranks, over which every chain's draws of that value are spread
    evenly: bits and spins give flat histograms too where the chains agree.
    """
    _, group, counts = np.unique(array, return_inverse=True, return_counts=True)
    group = group.reshape(array.shape)
    start = counts.cumsum() - counts
    ranks = np.empty(array.shape)
    for chain, own in enumerate(group):
        order = np.argsort(own, kind="stable")
        size = np.bincount(own, minlength=len(counts))
        place = np.arange(len(own)) - (size.cumsum() - size)[own[order]]
        share = (place + 0.5) / size[own[order]]
        ranks[chain, order] = start[own[order]] + share * counts[own[order]]
    return ranks / array.size


def sampler_comparison(
    comparison: "SamplerComparison", *, title: str | None = "Effective draws by second"
) -> "Figure":
    """Effective draws by second of several samplers, one panel a function, one dot a seed.

    :param comparison: what :func:`pyro_ebm.diagnostics.compare_samplers` returned.
    :param str title: heading.
    """
    samplers, functions = comparison.samplers, comparison.functions
    width = 1.4 + 0.07 * max(map(len, samplers)) + 2.1 * len(functions)
    figure = new_figure(width, 1.3 + 0.34 * len(samplers))
    axes = figure.subplots(1, len(functions), squeeze=False, sharex=True, sharey=True)[0]
    mixed = {name: comparison.r_hat(name) <= 1.1 for name in samplers}
    for ax, function in zip(axes, functions, strict=True):
        for place, name in enumerate(samplers):
            rates = [run.ess(function) / run.seconds for run in comparison.of(name)]
            middle = comparison.ess_per_second(name, function).mean
            colour = COLOURS[0] if mixed[name] else "0.55"
            face = colour if mixed[name] else "white"
            ax.plot([min(rates), max(rates)], [place, place], color=colour, lw=1.2, zorder=1)
            ax.scatter(
                rates, [place] * len(rates), s=14, facecolor=face, edgecolor=colour, zorder=2
            )
            ax.plot([middle] * 2, [place - 0.22, place + 0.22], color=colour, lw=1.2, zorder=3)
        ax.set_title(function, fontsize=9)
        ax.grid(axis="x", color="0.9", lw=0.6)
        ax.set_axisbelow(True)
    axes[0].set_yticks(range(len(samplers)), samplers)
    axes[0].set_ylim(len(samplers) - 0.5, -0.5)
    _decades(axes[0], [run.ess(f) / run.seconds for run in comparison.runs for f in functions])
    plain(*axes)
    figure.supxlabel("bulk effective draws by second", fontsize=9)
    settings = comparison.settings
    note = "" if all(mixed.values()) else "; hollow: chains have not mixed (R-hat above 1.1)"
    head = f"{settings['num_chains']} chains, {settings['budget']} a run, one dot a seed{note}"
    if title:
        figure.suptitle(f"{title}\n{head}", fontsize=10)
    return figure


def _decades(ax: "Axes", values: list[float]) -> None:
    """A logarithmic axis from power of ten to power of ten, if all values are positive."""
    if min(values) <= 0.0:
        ax.set_xlim(left=0.0)
        return
    ticker = importlib.import_module("matplotlib.ticker")
    ax.set_xscale("log")
    low, high = np.floor(np.log10(min(values))), np.ceil(np.log10(max(values)))
    ax.set_xlim(10.0**low, 10.0 ** max(high, low + 1.0))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
