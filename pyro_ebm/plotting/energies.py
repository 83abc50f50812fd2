# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Free energies of data and of chains, side by side."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_ebm.plotting.figures import COLOURS, annotate, new_figure, plain, to_array
from pyro_ebm.plotting.machines import as_machine, check_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["energy_histogram"]

_STYLES = ("-", "--", "-.", ":")
#: Share of rows at each end that need not be shown.
_OUTSIDE = 1e-3


@torch.no_grad()
def energy_histogram(
    machine: Any,
    rows: Mapping[str, Tensor],
    *,
    num_bins: int = 40,
    title: str | None = "Free energies",
) -> "Figure":
    """Histograms of the free energies of several sets of rows under one machine.

    Test rows that lie to the right of training rows say that the machine overfits. Chains that lie to the
    left of both say that it has mass where there is no data; to the right, that they have not come to
    the data. The mean and standard deviation of the legend are of all rows of a set; the axis leaves the
    outermost thousandth of each out, and the caption says how many rows these are.

    :param machine: a :class:`pyro_ebm.distributions.RBM` without batch shape, or a module that makes it.
    :param rows: visible states by their names, such as ``{"train": ..., "test": ..., "chains": ...}``,
        of shape ``(N, V)`` or ``(chains, draws, V)``. The first set is filled.
    :param int num_bins: bars, the same for all sets.
    :param str title: heading.
    :raises TypeError: for another machine, or rows that are no tensors.
    :raises ValueError: without rows, or for a wrong shape.
    """
    dist = as_machine(machine)
    if not isinstance(rows, Mapping) or not rows:
        raise ValueError("rows must be a dictionary of rows by name, with at least one entry")
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    energies = {
        name: to_array(dist.free_energy(check_rows(dist, f"rows[{name!r}]", x)))
        for name, x in rows.items()
    }
    # A few rows far away would leave no room for the others.
    low = min(float(np.quantile(x, _OUTSIDE)) for x in energies.values())
    high = max(float(np.quantile(x, 1.0 - _OUTSIDE)) for x in energies.values())
    margin = 1e-9 + 1e-6 * max(abs(low), abs(high))
    edges = np.linspace(low - margin, high + margin, num_bins + 1)
    outside = sum(int(((x < edges[0]) | (x > edges[-1])).sum()) for x in energies.values())
    figure = new_figure(6.0, 3.4)
    ax = figure.subplots()
    for i, (name, values) in enumerate(energies.items()):
        density = np.histogram(values, edges)[0] / (len(values) * np.diff(edges))
        label = f"{name}: mean {values.mean():.1f}, sd {values.std():.1f} (n = {len(values)})"
        options: dict[str, Any] = {"color": "0.82", "fill": True, "lw": 0}
        if i:
            style = _STYLES[(i - 1) % len(_STYLES)]
            options = {"color": COLOURS[(i - 1) % len(COLOURS)], "ls": style, "lw": 1.3}
        ax.stairs(density, edges, label=label, **options)
    ax.set_xlabel("free energy F(v) (nats)", fontsize=9)
    ax.set_ylabel("density (1/nat)", fontsize=9)
    ax.set_xlim(edges[0], edges[-1])
    # Above the axes, where it hides no bar.
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8)
    plain(ax)
    total = sum(map(len, energies.values()))
    annotate(figure, title, f"{outside} of {total} rows lie outside" if outside else None)
    return figure
