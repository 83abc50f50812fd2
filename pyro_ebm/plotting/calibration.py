# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of simulation-based calibration."""

from typing import TYPE_CHECKING

import numpy as np

from pyro_ebm.plotting.figures import COLOURS, annotate, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyro_ebm.diagnostics import CalibrationResult

__all__ = ["calibration_ranks"]


def calibration_ranks(
    result: "CalibrationResult",
    *,
    max_quantities: int = 8,
    title: str | None = "Simulation-based calibration",
) -> "Figure":
    """Histograms of ranks, and the difference of their empirical CDF to that of uniform ones.

    Ranks of a correct sampler stay in the grey areas: on the left 99 % of the bars of one histogram,
    on the right, simultaneously, the whole curve with a probability of one less the level of the tests.

    :param result: what :func:`pyro_ebm.diagnostics.simulation_based_calibration` returned.
    :param int max_quantities: quantities that are shown, those with the smallest p-values.
    :param str title: heading.
    """
    from pyro_ebm.diagnostics.rank_tests import ecdf_band, ecdf_counts

    adjusted = result.adjusted_p_values
    shown = sorted(adjusted, key=lambda name: min(adjusted[name]))[:max_quantities]
    shown.sort(key=list(adjusted).index)
    number, num_draws = result.num_simulations, result.num_draws
    share = np.arange(1, num_draws + 1) / (num_draws + 1)
    low, high = ecdf_band(number, num_draws, result.level)
    expected = number / result.num_bins
    margin = 2.58 * np.sqrt(expected * (1.0 - 1.0 / result.num_bins))
    figure = new_figure(7.4, 1.15 * len(shown) + 1.2)
    axes = figure.subplots(len(shown), 2, squeeze=False, sharex="col", sharey="col")
    edges = np.linspace(0, num_draws + 1, result.num_bins + 1)
    for (bars, curve), name in zip(axes, shown, strict=True):
        ranks = result.ranks[name]
        bars.axhspan(max(0.0, expected - margin), expected + margin, color="0.88", lw=0)
        bars.hist(ranks, edges, color=COLOURS[0], alpha=0.8, rwidth=0.9)
        bars.axhline(expected, color="0.3", lw=0.8, ls="--")
        bars.set_ylabel(name, fontsize=8)
        curve.fill_between(share, low / number - share, high / number - share, color="0.88", lw=0)
        failed = min(adjusted[name]) <= result.level
        difference = ecdf_counts(ranks, num_draws) / number - share
        curve.plot(share, difference, color=COLOURS[1 if failed else 0], lw=1.2)
        curve.axhline(0.0, color="0.3", lw=0.8, ls="--")
        curve.set_title(_p_value(min(adjusted[name])), fontsize=8, loc="right", pad=2)
        plain(bars, curve)
    axes[0, 0].set_title("ranks of the truth", fontsize=9)
    axes[0, 1].set_title("ECDF less that of uniform ranks", fontsize=9, loc="left")
    axes[-1, 0].set_xlabel(f"rank among {num_draws} draws", fontsize=9)
    axes[-1, 1].set_xlabel("rank (as a share)", fontsize=9)
    axes[-1, 1].set_xlim(0.0, 1.0)
    verdict = "passed" if result.passed else "FAILED"
    caption = f"{number} simulations, {verdict} at level {result.level:g}; p adjusted for all tests"
    annotate(figure, title, caption)
    return figure


def _p_value(p: float) -> str:
    """A p-value in words; rounding takes what is below 1e-12."""
    return f"p = {p:.2g}" if p >= 1e-12 else "p < 1e-12"
