# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of ``sequence_machines.py``."""

import itertools
from typing import Any

import torch
from sequence_data import Sequences
from torch import Tensor

from pyro_ebm.plotting.figures import COLOURS, new_figure, plain

__all__ = ["regimes_picture", "traces_picture"]


def regimes_picture(sequences: Sequences, posterior: Tensor, *, rows: int = 4) -> Any:
    """A channel of some sequences over the activity (colours behind), and the probabilities of the regimes.

    :param Tensor posterior: shape ``(sequences, frames - order, K)``.
    """
    chosen = torch.linspace(0, len(sequences.frames) - 1, rows).long()
    order = sequences.frames.shape[1] - posterior.shape[1]
    figure = new_figure(9.0, 1.5 * rows + 0.4)
    axes = figure.subplots(2 * rows, 1, sharex=True, height_ratios=[2, 1] * rows, squeeze=False)
    for line, number in enumerate(chosen.tolist()):
        above, below = axes[2 * line, 0], axes[2 * line + 1, 0]
        _activities(above, sequences.labels[number])
        above.plot(sequences.frames[number, :, 0], color=COLOURS[6], linewidth=0.8)
        time = range(order, sequences.frames.shape[1])
        below.stackplot(time, posterior[number].T.numpy(), colors=COLOURS, step="mid")
        below.set_ylim(0.0, 1.0)
        above.set_yticks([])
        below.set_yticks([])
        plain(above, below)
    axes[0, 0].set_title(
        "above: acceleration and activity; below: probability of each regime", fontsize=9
    )
    handles = [
        axes[0, 0].plot([], [], color=COLOURS[k], linewidth=6.0, alpha=0.3, label=name)[0]
        for k, name in enumerate(sequences.names)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    axes[-1, 0].set_xlim(0, sequences.frames.shape[1] - 1)
    return figure


def _activities(ax: Any, labels: Tensor) -> None:
    """Colours behind, from every change of the activity to the next one."""
    changes = (labels[1:] != labels[:-1]).nonzero().squeeze(-1) + 1
    edges = [0, *changes.tolist(), len(labels)]
    for begin, end in itertools.pairwise(edges):
        colour = COLOURS[int(labels[begin])]
        ax.axvspan(begin - 0.5, end - 0.5, color=colour, alpha=0.3, linewidth=0)


def traces_picture(sequences: Sequences, made: Tensor, *, rows: int = 5) -> Any:
    """Sequences that were measured, and sequences that a model has made from the same first frames."""
    chosen = torch.linspace(0, len(made) - 1, rows).long().tolist()
    figure = new_figure(9.0, 1.2 * rows)
    axes = figure.subplots(rows, 2, sharex=True, sharey="row", squeeze=False)
    alike = bool((sequences.labels == sequences.labels[:, :1]).all())
    for line, number in enumerate(chosen):
        for ax, frames in zip(axes[line], (sequences.frames, made), strict=True):
            for channel in range(min(3, frames.shape[-1])):
                ax.plot(frames[number, :, channel], color=COLOURS[channel], linewidth=0.8)
            plain(ax)
        # Streams have several activities: their numbers say which ones these are.
        own = sequences.names[int(sequences.labels[number, 0])] if alike else f"stream {number + 1}"
        axes[line, 0].set_ylabel(own, fontsize=8)
    axes[0, 0].set_title("measured", fontsize=9)
    axes[0, 1].set_title("generated", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("frame", fontsize=8)
    return figure
