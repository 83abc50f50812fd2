# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A deep Boltzmann machine of whole CIFAR-10 images: 3072 Gaussian, 5000 binary, 1000 multinomial units.

Stages, each of which goes on where it was stopped: ``data`` fits the map from images to rows; ``grbm`` trains
the Gaussian RBM; ``mrbm`` the machine of its features; ``dbm`` both together; ``finetune`` makes
classifiers of the Gaussian RBM and of random weights.

    PYRO_EBM_DATA=/path/to/data python examples/dbm_cifar_naive.py --output runs/cifar --device cuda
    python examples/dbm_cifar_naive.py --output runs/cifar --stage grbm --max-minutes 9 --device cuda
    python examples/dbm_cifar_naive.py --output runs/cifar --stage finetune --finetune max_epochs=100
    python examples/dbm_cifar_naive.py --output runs/cifar-smoke --smoke
"""

import argparse
from typing import Any

import cifar_pictures as pictures
from cifar_data import Preprocessing, training_rows
from cifar_finetuning import add_classifier_options, fine_tune
from cifar_stages import Run, gaussian_rbm, hidden_means, make_parser
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.nn.tied_rbm import TiedRBM
from pyro_ebm.training import Trainer
from pyro_ebm.training.pretraining import TiedTrainer

#: Options of training by stage.
RECIPES: dict[str, dict[str, Any]] = {
    "grbm": {
        "num_epochs": 100,
        "learning_rate": 5e-3,
        "learning_rate_schedule": "linear",
        "momentum": 0.9,
        "weight_decay": 2e-4,
    },
    "mrbm": {
        "num_epochs": 60,
        "learning_rate": 5e-4,
        "learning_rate_schedule": "linear",
        "momentum": 0.9,
        "weight_decay": 1e-3,
    },
    "dbm": {
        "num_epochs": 60,
        "learning_rate": 1e-4,
        "learning_rate_schedule": "linear",
        "momentum": 0.9,
        "mean_field_updates": 25,
        "layers": [{"max_norm": 4.0}, {"max_norm": 4.0}],
    },
    "finetune": {
        "max_epochs": 80,
        "learning_rate": 1e-3,
        "rate_factors": None,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "learning_rate_schedule": "cosine",
        "label_smoothing": 0.1,
        "averaging": 0.999,
        "patience": None,
    },
}


def fit_data(run: Run) -> None:
    """The map from images to rows, fitted on training images."""
    options = run.options
    preprocessing = Preprocessing.fit(
        run.images.pixels["train"].to(run.device),
        contrast=options.contrast,
        num_dropped=options.dropped,
        whiten=options.whiten,
        regularization=options.regularization,
    )
    preprocessing.save(run.file("preprocessing"))
    run.__dict__.pop("preprocessing", None)
    pictures.draw_data(run)
    run.report("data", image_shape=run.images.shape, num_train=len(run.images.labels["train"]))


def train_grbm(run: Run, augment: str = "none") -> None:
    """The Gaussian RBM of the rows."""
    options = run.options
    rows, _ = training_rows(run.images, run.preprocessing, augment, run.dtype)

    def make() -> nn.RBM:
        return gaussian_rbm(run, rows[:50_000], options.hidden, options.seed)

    trainer = run.train("grbm", make, rows, run.rows("validation"), options.grbm)
    pictures.draw_rbm(run, "grbm", trainer.averaged, trainer)


def train_mrbm(run: Run, augment: str = "none") -> None:
    """The machine of the Gaussian RBM's features, with counts for hidden units."""
    options, grbm = run.options, run.load("grbm")
    rows, _ = training_rows(run.images, run.preprocessing, augment, run.dtype)
    features = hidden_means(grbm, rows, run.dtype)
    del rows
    held_out = hidden_means(grbm, run.rows("validation"), run.dtype)

    def make() -> nn.RBM:
        return (TiedRBM if options.tied else nn.RBM)(
            options.hidden,
            options.top,
            hidden="multinomial",
            hidden_options={"total_count": options.total_count},
            centered=options.centered,
            weight_scale=options.top_weight_scale,
            seed=options.seed + 1,
            device=run.device,
            **({"hidden_copies": 2} if options.tied else {}),
        ).init_from_data(features[:50_000].float())

    # Features are rates: bits are drawn from them at each visit.
    kind = TiedTrainer if options.tied else Trainer
    trainer = run.train("mrbm", make, features, held_out, options.mrbm, kind, binarize=True)
    weights = [grbm.weight, trainer.averaged.weight]
    pictures.draw_filters(run, "mrbm", weights, "What counts of the top layer add to the image")


def train_dbm(run: Run, augment: str = "none") -> None:
    """All layers together: mean field beside the data, persistent chains beside the model."""
    rows, _ = training_rows(run.images, run.preprocessing, augment, run.dtype)
    trainer = run.train(
        "dbm",
        lambda: make_dbm(run, rows),
        rows,
        run.rows("validation"),
        run.options.dbm,
        persistent=True,
        num_chains=run.options.num_chains,
    )
    pictures.draw_dbm(run, trainer.averaged, trainer)


def make_dbm(run: Run, rows: Tensor) -> nn.DBM:
    """The deep machine that the two others make."""
    options = run.options
    dbm = nn.DBM(
        rows.shape[1],
        [options.hidden, options.top],
        visible="gaussian",
        hidden=["bernoulli", "multinomial"],
        visible_options={"learn_precision": options.learn_precision},
        hidden_options=[{}, {"total_count": options.total_count}],
        centered=options.centered,
        seed=options.seed,
        device=run.device,
    )
    return dbm.init_from_rbms([run.load("grbm"), run.load("mrbm")])


STAGES = {
    "data": fit_data,
    "grbm": train_grbm,
    "mrbm": train_mrbm,
    "dbm": train_dbm,
    "finetune": fine_tune,
}


def add_top_options(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Flags of the layers above the pixels."""
    group = parser.add_argument_group("layers")
    add = group.add_argument
    add("--top", type=int, default=defaults["top"], help="states of the multinomial layer")
    add("--total-count", type=int, default=defaults["total_count"], help="its draws, M")
    add("--top-weight-scale", type=float, default=0.01, help="of the initial weights below it")
    add(
        "--tied",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train the machine below it with two copies of it, as half of what makes the layer",
    )
    add("--num-chains", type=int, default=100, help="persistent chains of the joint training")


def smoke_options(options: Any) -> None:
    """Seconds: small layers, few epochs; the recipe's other options stay."""
    options.dropped, options.samples, options.sweeps = 60, 16, 20
    options.hidden, options.top, options.total_count, options.num_chains = 60, 12, 12, 20
    options.grbm |= {"num_epochs": 12, "batch_size": 20, "learning_rate": 0.05, "progress": False}
    options.mrbm |= {"num_epochs": 4, "batch_size": 20, "learning_rate": 1e-3, "progress": False}
    options.dbm |= {"num_epochs": 4, "batch_size": 20, "learning_rate": 1e-3, "progress": False}
    options.finetune |= {"max_epochs": 15, "batch_size": 20, "progress": False}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, those of ``--smoke`` set."""
    parser = make_parser(__doc__.split("\n\n")[0], list(STAGES), RECIPES)
    parser.add_argument("--hidden", type=int, default=5000)
    add_top_options(parser, top=1000, total_count=1000)
    add_classifier_options(parser, augment="none")
    options = parser.parse_args(arguments)
    if options.smoke:
        smoke_options(options)
    return options


if __name__ == "__main__":
    run = Run(parse())
    run.run(STAGES)
