# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of training runs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_ebm.plotting.figures import COLOURS, annotate, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["history"]

#: Styles as well as colours, for readers who see no colours.
_STYLES = ("-", "--", ":")


def history(records: Sequence[Mapping[str, Any]], *, title: str | None = "Training") -> "Figure":
    """Metrics of a training run by epoch.

    :param records: :attr:`pyro_ebm.training.Trainer.history`.
    :param str title: heading.
    :raises ValueError: if there are no records, or none of these metrics in them.
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
        "bound of log p*(v) (nats)": {"training": "elbo_train", "validation": "elbo_validation"},
        "norm of the weights": {"": "weight_norm"},
    }
    shown = {n: p for n, p in panels.items() if any(m in records[-1] for m in p.values())}
    if not shown:
        raise ValueError(
            f"the history has none of the usual metrics, only {sorted(records[-1])}; take learning_curves()"
        )
    figure = new_figure(3.4 * len(shown), 3.0)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    epochs = [record["epoch"] for record in records]
    for ax, (label, metrics) in zip(axes, shown.items(), strict=True):
        for i, (name, metric) in enumerate(metrics.items()):
            if metric in records[-1]:
                values = [record.get(metric, np.nan) for record in records]
                marker = "o" if len(epochs) < 3 else None
                style: dict[str, Any] = {"color": COLOURS[i], "ls": _STYLES[i], "lw": 1.2}
                ax.plot(epochs, values, label=name, marker=marker, ms=4, **style)
        ax.set_title(label, fontsize=9)
        ax.set_xlabel("epoch", fontsize=9)
        # Epochs are whole, also where there are few.
        ax.xaxis.get_major_locator().set_params(integer=True)
        plain(ax)
        if len(ax.get_lines()) > 1:
            ax.legend(frameon=False, fontsize=8)
    annotate(figure, title, None)
    return figure
