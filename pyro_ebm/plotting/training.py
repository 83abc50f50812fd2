# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of training runs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_ebm.plotting.figures import annotate, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["history"]


def history(records: Sequence[Mapping[str, Any]], *, title: str | None = "Training") -> "Figure":
    """Metrics of a training run by epoch.

    :param records: :attr:`pyro_ebm.training.Trainer.history`.
    :param str title: heading.
    :raises ValueError: if there are no records.
    """
    if not records:
        raise ValueError("the history holds no epochs yet")
    panels = {
        "mean squared reconstruction error": {"training": "reconstruction_error"},
        "mean free energy (nats)": {
            "training": "free_energy_train",
            "validation": "free_energy_validation",
            "chains": "free_energy_chains",
        },
        "free energy, validation - training (nats)": {"": "free_energy_gap"},
        "norm of the weights": {"": "weight_norm"},
    }
    shown = {n: p for n, p in panels.items() if any(m in records[-1] for m in p.values())}
    figure = new_figure(3.4 * len(shown), 3.0)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    epochs = [record["epoch"] for record in records]
    for ax, (label, metrics) in zip(axes, shown.items(), strict=True):
        for name, metric in metrics.items():
            if metric in records[-1]:
                values = [record.get(metric, np.nan) for record in records]
                marker = "o" if len(epochs) < 3 else None
                ax.plot(epochs, values, label=name, lw=1.2, marker=marker)
        ax.set_title(label, fontsize=9)
        ax.set_xlabel("epoch")
        if len(ax.get_lines()) > 1:
            ax.legend(frameon=False, fontsize=8)
    annotate(figure, title, None)
    return figure
