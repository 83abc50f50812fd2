# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A deep Boltzmann machine of CIFAR-10 that starts as 26 machines of patches: 3072, 7800, 512 units.

Gaussian RBMs of 300 units are trained on a 4 x 4 grid of patches, on a 3 x 3 grid between them, and on the
image made four times smaller; put together they are where the RBM of whole images starts. Training images
are ten for one, by shifts and mirrors, unless ``--no-augment`` says otherwise. Stages, each of which goes on
where it was stopped: ``data``, ``patches``, ``grbm``, ``mrbm``, ``dbm`` and ``finetune``.

    PYRO_EBM_DATA=/path/to/data python examples/dbm_cifar.py --output runs/cifar-patches --device cuda
    python examples/dbm_cifar.py --output runs/cifar-patches --stage patches --max-minutes 9 --device cuda
    python examples/dbm_cifar.py --output runs/cifar-plain --no-augment --finetune-augment none
    python examples/dbm_cifar.py --output runs/cifar-smoke --smoke
"""

import argparse
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import cifar_pictures as pictures
import dbm_cifar_naive as naive
import torch
from cifar_data import pool_rows, training_rows
from cifar_finetuning import add_classifier_options, fine_tune
from cifar_stages import Run, gaussian_rbm, make_parser
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.nn.patches import grid_corners, patch_entries

#: Patches across an image, and how many times smaller the image of the last machine is.
GRID = 4
#: Options of training by stage.
RECIPES: dict[str, dict[str, Any]] = {
    "patches": {
        "num_epochs": 20,
        "batch_size": 100,
        "learning_rate": 0.01,
        "learning_rate_schedule": "linear",
        "momentum": 0.9,
        "weight_decay": 2e-4,
    },
    "grbm": {
        "num_epochs": 40,
        "learning_rate": 2e-3,
        "learning_rate_schedule": "linear",
        "momentum": 0.9,
        "weight_decay": 2e-4,
    },
    "mrbm": {
        "num_epochs": 20,
        "learning_rate": 2e-4,
        "learning_rate_schedule": "linear",
        "momentum": 0.9,
        "weight_decay": 1e-3,
    },
    "dbm": {
        "num_epochs": 10,
        "learning_rate": 5e-5,
        "learning_rate_schedule": "linear",
        "momentum": 0.9,
        "mean_field_updates": 25,
        "layers": [{"max_norm": 4.0}, {"max_norm": 4.0}],
    },
    "finetune": {**naive.RECIPES["finetune"], "max_epochs": 40},
}


def patch_positions(shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Entries of the patches of an image by name: the grid, then the one between its patches."""
    size = shape[-1] // GRID
    patch = (*shape[:-2], size, size)
    corners = grid_corners(shape, patch)
    # The grid between begins half a patch from the edges.
    half = size // 2
    inner = (*shape[:-2], shape[-2] - size, shape[-1] - size)
    corners += [(top + half, left + half) for top, left in grid_corners(inner, patch)]
    return {f"patch_{i:02d}": patch_entries(shape, patch, *c) for i, c in enumerate(corners)}


def patch_rows(run: Run, rows: Tensor, positions: Mapping[str, Tensor]) -> Any:
    """Names and rows of all patches, the small image last."""
    for name, entries in positions.items():
        yield name, rows[:, entries.to(rows.device)].float()
    yield "patch_small", pool_rows(rows, run.images.shape, GRID).float()


def train_patches(run: Run) -> None:
    """One Gaussian RBM a patch."""
    options = run.options
    rows, _ = training_rows(run.images, run.preprocessing, options.augment, run.dtype)
    order = torch.Generator().manual_seed(options.seed)
    chosen = torch.randperm(len(rows), generator=order)[: options.patch_rows]
    rows = rows[chosen.to(rows.device)]
    machines = []
    for number, (name, patches) in enumerate(
        patch_rows(run, rows, patch_positions(run.images.shape))
    ):
        trainer = run.train(
            name,
            partial(gaussian_rbm, run, patches, options.patch_hidden, options.seed + number),
            patches,
            None,
            options.patches,
        )
        machines.append((name, trainer.averaged))
    for name, rbm in (machines[0], machines[5], machines[-1]):
        draw_patch(run, name, rbm)


def draw_patch(run: Run, name: str, rbm: nn.RBM) -> None:
    """Filters in the space of rows."""
    size = run.images.shape[-1] // GRID
    shape = (run.images.shape[0], size, size)
    title = f"Filters of {name}, in the space of rows"
    figure = pictures.plotting.filters(rbm.weight, shape, max_filters=100, title=title)
    pictures.save(run, f"{name}_filters", figure)


@torch.no_grad()
def enlarged(rbm: nn.RBM, shape: tuple[int, ...]) -> nn.RBM:
    """A machine of the small image as one of the image: a unit that sees the mean of 16 pixels sees each
    of them with a sixteenth of the weight, and adds the same to all of them as it did to their mean."""
    channels, height, width = shape
    pixel = torch.arange(channels * height * width, device=rbm.weight.device).reshape(shape)
    small = (channels, height // GRID, width // GRID)
    source = torch.arange(rbm.weight.shape[0], device=pixel.device).reshape(small)
    source = source.repeat_interleave(GRID, 1).repeat_interleave(GRID, 2).flatten()
    config = {**rbm.config(), "num_visible": pixel.numel(), "seed": 0}
    image = nn.RBM(**config, dtype=rbm.weight.dtype, device=rbm.weight.device)
    image.get_parameter("weight").copy_(rbm.weight[source] / GRID**2)
    unit = rbm.visible()
    values = {
        "loc": unit.parameters["loc"][source],
        "precision": unit.parameters["precision"][source] / GRID**2,
    }
    image.visible.assign(image.visible().replace(**values))
    image.hidden.assign(rbm.hidden())
    if rbm.centered:
        image.visible_offset.copy_(rbm.visible_offset[source])
        image.hidden_offset.copy_(rbm.hidden_offset)
    return image


def paste(run: Run) -> nn.RBM:
    """The machine of whole images that those of the patches make."""
    positions = patch_positions(run.images.shape)
    machines = [run.load(name) for name in positions]
    machines.append(enlarged(run.load("patch_small"), run.images.shape))
    everywhere = [*positions.values(), torch.arange(math.prod(run.images.shape))]
    # Energies add up: where patches overlap, the mean of a pixel is a mean of what their machines say.
    return nn.paste_rbms(
        machines,
        everywhere,
        run.images.shape,
        overlap="sum",
        noise_scale=run.options.noise,
        seed=run.options.seed,
    )


def train_grbm(run: Run) -> None:
    """The Gaussian RBM of whole images, from the patches."""
    options = run.options
    rows, _ = training_rows(run.images, run.preprocessing, options.augment, run.dtype)
    validation = run.rows("validation")
    trainer = run.train("grbm", lambda: paste(run), rows, validation, options.grbm)
    pictures.draw_rbm(run, "grbm", trainer.averaged, trainer)


STAGES = {
    "data": naive.fit_data,
    "patches": train_patches,
    "grbm": train_grbm,
    "mrbm": lambda run: naive.train_mrbm(run, run.options.augment),
    "dbm": lambda run: naive.train_dbm(run, run.options.augment),
    "finetune": fine_tune,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, those of ``--smoke`` set."""
    parser = make_parser(__doc__.split("\n\n")[0], list(STAGES), RECIPES)
    add = parser.add_argument
    add("--patch-hidden", type=int, default=300, help="hidden units of a patch")
    add("--patch-rows", type=int, default=100_000, help="images that patches are taken from")
    add("--noise", type=float, default=5e-4, help="weights outside of patches")
    augment = parser.add_mutually_exclusive_group()
    augment.add_argument("--augment", choices=["none", "mirrors", "shifts"], default="shifts")
    augment.add_argument("--no-augment", dest="augment", action="store_const", const="none")
    naive.add_top_options(parser, top=512, total_count=512)
    add_classifier_options(parser, augment="shifts")
    options = parser.parse_args(arguments)
    if options.smoke:
        naive.smoke_options(options)
        options.patches |= {"num_epochs": 10, "learning_rate": 0.05, "progress": False}
        options.patch_hidden, options.patch_rows = 6, 500
        # Ten times as many rows as those of the other program.
        for recipe in (options.grbm, options.mrbm, options.dbm):
            recipe |= {"num_epochs": 1, "batch_size": 80}
        options.finetune |= {"max_epochs": 2, "batch_size": 80}
    options.hidden = options.patch_hidden * (GRID**2 + (GRID - 1) ** 2 + 1)
    return options


if __name__ == "__main__":
    run = Run(parse())
    run.run(STAGES)
