# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of parallel tempering: does the ladder carry states from its easy end to the machine?"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_ebm.plotting.figures import COLOURS, Array, annotate, new_figure, plain, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["replica_paths", "tempering_ladder"]


def tempering_ladder(
    report: Mapping[str, Any], *, title: str | None = "Ladder of parallel tempering"
) -> "Figure":
    """Swap rates between neighbours, the inverse temperatures, and the energies of all levels.

    Rates should be alike, and not near zero anywhere: a pair that never swaps cuts the ladder in two. With
    a batch of machines, the mean over machines is shown and their range is shaded.

    :param report: what :class:`~pyro_ebm.infer.ParallelTempering` says of its ladder: its
        ``diagnostics()["tempering"]``, or that of one chain. Needs ``betas`` and ``swap_rate``, shows
        ``energy_mean``, ``energy_std`` and ``round_trips``.
    :param str title: heading.
    :raises ValueError: if the numbers of levels contradict each other.
    """
    betas, rates = to_array(report["betas"]), _by_level(report["swap_rate"])
    if betas.ndim != 1 or len(rates) != len(betas) - 1:
        raise ValueError(
            f"{len(betas)} levels have {len(betas) - 1} pairs, but there are {len(rates)} swap rates"
        )
    has_energy = "energy_mean" in report and "energy_std" in report
    figure = new_figure(3.0 * (2 + has_energy), 2.8)
    axes = figure.subplots(1, 2 + has_energy, squeeze=False)[0]
    _swap_rates(axes[0], rates)
    levels = np.arange(len(betas))
    axes[1].plot(levels, betas, "o-", ms=3.5, lw=1.0, color=COLOURS[0])
    axes[1].set_xlabel("level", fontsize=9)
    axes[1].set_ylabel("position β (1: the machine)", fontsize=9)
    axes[1].set_ylim(-0.03, 1.03)
    if has_energy:
        _energies(axes[2], report)
    plain(*axes)
    annotate(figure, title, _round_trips(report))
    return figure


def _by_level(values: Any) -> Array:
    """Shape ``(levels, machines)``."""
    array = to_array(values)
    return array.reshape(len(array), -1)


def _swap_rates(ax: "Axes", rates: Array) -> None:
    pairs = np.arange(len(rates)) + 0.5
    mean = rates.mean(1)
    ax.bar(pairs, mean, width=0.8, color=COLOURS[0], alpha=0.85)
    if rates.shape[1] > 1:
        ax.vlines(pairs, rates.min(1), rates.max(1), color="0.2", lw=1.0)
    ax.axhline(mean.mean(), color="0.2", lw=0.8, ls="--")
    ax.set_ylim(0.0, 1.0)
    ax.set_xlim(0, len(rates))
    ax.set_xlabel("between levels", fontsize=9)
    ax.set_ylabel("acceptance of swaps", fontsize=9)


def _energies(ax: "Axes", report: Mapping[str, Any]) -> None:
    mean, std = _by_level(report["energy_mean"]), _by_level(report["energy_std"])
    levels = np.arange(len(mean))
    for i in range(mean.shape[1]):
        low, high = mean[:, i] - std[:, i], mean[:, i] + std[:, i]
        ax.fill_between(levels, low, high, color=COLOURS[0], alpha=0.2, lw=0)
        ax.plot(levels, mean[:, i], lw=1.2, color=COLOURS[0])
    ax.set_xlabel("level", fontsize=9)
    ax.set_ylabel("free energy ± sd (nats)", fontsize=9)


def _round_trips(report: Mapping[str, Any]) -> str | None:
    if "round_trips" not in report:
        return None
    trips = to_array(report["round_trips"]).ravel()
    if len(trips) == 1:
        return f"{trips[0]:.0f} round trips"
    return (
        f"round trips: {trips.sum():.0f} in {len(trips)} chains, {trips.min():.0f} to "
        f"{trips.max():.0f} a chain"
    )


def replica_paths(
    identity: Any,
    *,
    chain: int = 0,
    num_highlighted: int = 3,
    sweeps_per_draw: int = 1,
    title: str | None = "Replicas on the ladder",
) -> "Figure":
    """Where replicas are on the ladder over time.

    A replica that goes from level 0 to the machine (the top) and back has brought a state that owes
    nothing to the one before. Replicas that stay on one side show where the ladder is cut.

    :param identity: which replica is at each level, shape ``(chains, draws, levels)``. Store it with
        ``kernel.save_params = ["v", "v.identity"]``; then it is ``get_samples(True)["v.identity"]``.
    :param int chain: the chain that is shown.
    :param int num_highlighted: replicas in colour; the others are grey.
    :param int sweeps_per_draw: sweeps between two draws, for the horizontal axis.
    :param str title: heading.
    :raises ValueError: for another shape or chain.
    """
    array = to_array(identity)
    if array.ndim != 3 or not -len(array) <= chain < len(array):
        raise ValueError(
            f"identity must have shape (chains, draws, levels) and hold chain {chain}, got {array.shape}"
        )
    positions = np.argsort(array[chain], axis=1)
    num_draws, num_levels = positions.shape
    sweeps = np.arange(1, num_draws + 1) * sweeps_per_draw
    figure = new_figure(7.4, 3.0)
    ax = figure.subplots()
    trips = _count_round_trips(positions)
    chosen = np.argsort(-trips, kind="stable")[:num_highlighted]
    for replica in range(num_levels):
        if replica not in chosen:
            ax.step(sweeps, positions[:, replica], where="post", lw=0.5, color="0.82", zorder=1)
    for i, replica in enumerate(chosen):
        colour = COLOURS[i % len(COLOURS)]
        label = f"replica {replica}: {trips[replica]} round trips"
        line: dict[str, Any] = {"lw": 1.1, "color": colour, "label": label, "zorder": 2}
        ax.step(sweeps, positions[:, replica], where="post", **line)
    ax.set_xlim(sweeps[0], sweeps[-1])
    ax.set_ylim(-0.5, num_levels - 0.5)
    ax.set_xlabel("sweeps", fontsize=9)
    ax.set_ylabel("level (top: the machine)", fontsize=9)
    plain(ax)
    if len(chosen):
        ax.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=len(chosen), frameon=False, fontsize=8
        )
    caption = (
        f"chain {chain % len(array)}: {trips.sum()} round trips of all {num_levels} replicas; "
    )
    annotate(figure, title, caption + "in colour the replicas with most")
    return figure


def _count_round_trips(positions: Any) -> Any:
    """Journeys of every replica from level 0 to the top and back, shape ``(replicas,)``."""
    top = positions.shape[1] - 1
    ends = np.where(positions == 0, -1, np.where(positions == top, 1, 0))
    counts = np.zeros(positions.shape[1], dtype=int)
    for replica in range(positions.shape[1]):
        visits = ends[:, replica][ends[:, replica] != 0]
        if (visits == -1).any():
            visits = visits[np.argmax(visits == -1) :]
            counts[replica] = int(((visits[1:] == -1) & (visits[:-1] == 1)).sum())
    return counts
