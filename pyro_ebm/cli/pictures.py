# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of a run, made from what its folder holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_ebm import plotting
from pyro_ebm.cli.completion import Completion
from pyro_ebm.cli.data import DataOptions
from pyro_ebm.cli.machines import Machine, free_energies
from pyro_ebm.cli.sampling import Chains, unit_means
from pyro_ebm.datasets import Dataset
from pyro_ebm.training.metrics import DEFAULT_KEYS, base_key
from pyro_ebm.training.weights import weights_of

__all__ = ["draw_completions", "draw_energy", "draw_filters", "draw_history", "draw_samples"]

#: Rows and columns of sample pictures.
_ROWS, _COLUMNS = 10, 10
#: Metrics of a run that are shown.
_PANELS = 4


@torch.no_grad()
def draw_samples(
    module: Machine, chains: Chains, options: DataOptions, data: Dataset, path: Path
) -> Path:
    """Test images beside samples: one row a chain, draws far apart along it."""
    num_chains, num_draws = chains.v.shape[:2]
    rows, columns = min(num_chains, _ROWS), min(num_draws, _COLUMNS)
    at = torch.linspace(0, num_draws - 1, columns).round().long()
    means = unit_means(module, chains.v[:rows, at].flatten(0, 1))
    test = options.rows(data, "test")[: rows * columns]
    gap = (num_draws - 1) // max(columns - 1, 1) * chains.options.thin
    figure = plotting.image_grid(
        {
            f"{options.name}, test images": options.to_grey(test),
            "samples": _displayed(options, means),
        },
        data.image_shape,
        num_columns=columns,
        caption=f"samples: pixel means given the hidden units; one chain a row, "
        f"about {gap} Gibbs sweeps from image to image",
    )
    return plotting.save(figure, path)


def draw_filters(module: Machine, data: Dataset, path: Path) -> list[Path]:
    """Weights of the hidden units; of the upper layers of a deep machine the products of the weights, in
    files with the layer at the end of their names."""
    weights = weights_of(module)
    written = [plotting.save(plotting.filters(weights[0], data.image_shape), path)]
    for layer in range(2, len(weights) + 1):
        figure = plotting.filters(
            list(weights[:layer]), data.image_shape, title=f"What layer {layer} looks for"
        )
        target = path.with_name(f"{path.stem}-h{layer}{path.suffix}")
        written.append(plotting.save(figure, target))
    return written


def draw_history(records: Sequence[Mapping[str, Any]], path: Path) -> list[Path]:
    """Metrics of a run by epoch, the first ones where others than the usual were chosen; no file where there
    are none."""
    if not records or any(key in records[-1] for key in DEFAULT_KEYS):
        return [plotting.save(plotting.history(records), path)]
    panels: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for record in records for key in record):
        values = [record[key] for record in records if key in record]
        # Layers have keys of their own, beside that of all of them.
        if key in ("epoch", "seconds") or base_key(key) != key or not _are_numbers(values):
            continue
        name = key.removesuffix("_train").removesuffix("_validation")
        panels.setdefault(name, []).append(key)
    if not panels:
        return []
    shown = list(panels.values())[:_PANELS]
    return [plotting.save(plotting.learning_curves(records, shown, title="Training"), path)]


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)


@torch.no_grad()
def draw_energy(
    module: Machine, chains: Chains, options: DataOptions, data: Dataset, path: Path
) -> Path:
    """Free energies along the chains, beside those of the test images."""
    figure = plotting.energy_trace(
        chains.energy,
        sweeps_per_draw=chains.options.thin,
        data_energies=free_energies(module, options.rows(data, "test")),
    )
    return plotting.save(figure, path)


def draw_completions(
    completion: Completion, images: Tensor, labels: Tensor, data: Dataset, path: Path
) -> Path:
    """One test image of each class with its completions."""
    count = completion.mean.shape[0]
    known = labels[:count].tolist()
    shown = [known.index(label) for label in sorted(set(known))][:10]
    figure = plotting.completions(
        images[shown],
        completion.mask,
        completion.mean[shown],
        completion.samples[:4, shown],
        data.image_shape,
        title="Lower halves given the upper halves",
    )
    return plotting.save(figure, path)


def _displayed(options: DataOptions, states: Tensor) -> Tensor:
    return options.to_grey(states).clamp(0.0, 1.0)
