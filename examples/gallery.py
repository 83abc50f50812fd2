# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Every picture of a model that ``pyro_ebm.plotting`` makes, of a small RBM of binarised MNIST.

    PYRO_EBM_DATA=/path/to/data python examples/gallery.py --output runs/gallery
    python examples/gallery.py --smoke

The documentation's pictures are those of
``python examples/gallery.py --output docs/source/_static/pictures --dpi 90``.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Generator, Tensor
from training_options import add_training_options, training_config

import pyro_ebm
from pyro_ebm import datasets, nn, plotting
from pyro_ebm.datasets import Dataset
from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.training import Trainer


def train(data: Dataset, options: argparse.Namespace) -> Trainer:
    """The RBM of all pictures but the learning curves."""
    rows = data.train()
    module = nn.RBM(data.num_pixels, options.hidden, centered=True, seed=options.seed)
    module.init_from_data(rows)
    trainer = Trainer(module, training_config(options, seed=options.seed))
    trainer.fit(rows, data.validation())
    return trainer


def compare_runs(data: Dataset, options: argparse.Namespace) -> dict[str, list[Any]]:
    """Histories of a plain and a centred machine, some seeds each, on some of the images."""
    rows, runs = data.train()[: options.curve_rows], {}
    for name, centered in (("plain", False), ("centred", True)):
        runs[name] = []
        for seed in range(options.curve_seeds):
            module = nn.RBM(data.num_pixels, options.curve_hidden, centered=centered, seed=seed)
            config = training_config(
                options, seed=seed, num_epochs=options.curve_epochs, progress=False
            )
            runs[name].append(Trainer(module, config).fit(rows, data.validation()))
    return runs


@torch.no_grad()
def run_chains(
    machine: RBM, start: Tensor, num_sweeps: int, every: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Block Gibbs from given states.

    :returns: means of the pixels given the hidden units after every ``every`` sweeps, shape
        ``(chains, draws, V)``, and the last states, shape ``(chains, V)``.
    """
    sweep = GibbsSweep(machine, Generator().manual_seed(seed))
    v, draws = start, [start]
    for i in range(num_sweeps):
        theta = sweep.visible_theta(sweep.sample_hidden(v))
        v = machine.visible.natural_sample(theta, sweep.generator)
        if (i + 1) % every == 0:
            draws.append(machine.visible.natural_mean(theta))
    return torch.stack(draws, 1), v


def classify(machine: RBM, data: Dataset, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Classes of the test images, and what a logistic regression on the hidden means says they are."""
    count = options.classifier_rows
    features = {
        split: machine.hidden.mean(machine.hidden_field(data.grey_levels(split)[:count]))
        for split in ("train", "test")
    }
    model = LogisticRegression(max_iter=300)
    model.fit(features["train"].numpy(), data.labels("train")[:count].numpy())
    return data.labels("test")[:count], torch.tensor(model.predict(features["test"].numpy()))


@torch.no_grad()
def draw(trainer: Trainer, data: Dataset, options: argparse.Namespace) -> None:
    """All pictures of the trained machine."""
    machine, shape, folder = trainer.module(), data.image_shape, options.output

    def save(name: str, figure: Any) -> None:
        print(plotting.save(figure, folder / f"{name}.png", dpi=options.dpi))

    test, labels = data.binarized("test", seed=0), data.labels("test")
    noise = torch.bernoulli(
        torch.full((options.chains, data.num_pixels), 0.5), generator=_bits(options)
    )
    means, _ = run_chains(machine, noise, options.sweeps, options.every, options.seed)
    long = torch.bernoulli(torch.full((1000, data.num_pixels), 0.5), generator=_bits(options))
    chains = run_chains(machine, long, options.long_sweeps, options.long_sweeps, options.seed)[1]
    train_rows = data.binarized("train", seed=0)[: len(test)]

    save("filters", plotting.filters(machine.weight, shape, max_filters=36))
    save("reconstructions", plotting.reconstructions(machine, test[:20], shape))
    rows = {"train": train_rows, "test": test, "chains": chains}
    save("energy_histogram", plotting.energy_histogram(machine, rows))
    save("hidden_activations", plotting.hidden_activations(machine, test, max_rows=100))
    save("history", plotting.history(trainer.history))
    features = machine.hidden.mean(machine.hidden_field(test))
    count = options.points
    figure = plotting.embedding(
        features[:count], labels[:count], perplexity=options.perplexity, seed=options.seed
    )
    save("embedding", figure)
    save("confusion_matrix", plotting.confusion_matrix(*classify(machine, data, options)))
    sweeps = [i * options.every for i in range(means.shape[1])]
    film = plotting.chain_animation(means, shape, sweeps=sweeps, zoom=options.zoom)
    print(plotting.save_animation(film, folder / "chains.gif", frames_per_second=5))


def _bits(options: argparse.Namespace) -> Generator:
    return Generator().manual_seed(options.seed)


def main(options: argparse.Namespace) -> None:
    """Train, and draw."""
    data = datasets.load(options.data, validation=options.validation)
    trainer = train(data, options)
    pyro_ebm.save(trainer.module, options.output / "model.safetensors") if options.save else None
    draw(trainer, data, options)
    # Levels of free energies lack log Z: only those of the same machine can be compared.
    metrics = ["reconstruction_error", ("free_energy_train", "free_energy_validation")]
    figure = plotting.learning_curves(compare_runs(data, options), metrics)
    print(plotting.save(figure, options.output / "learning_curves.png", dpi=options.dpi))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="mnist", choices=datasets.available())
    parser.add_argument("--validation", type=int, default=10_000, help="training images held out")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--chains", type=int, default=9, help="of the film")
    parser.add_argument("--sweeps", type=int, default=75, help="of its chains")
    parser.add_argument("--long-sweeps", type=int, default=500, help="of the energy histogram's")
    parser.add_argument("--every", type=int, default=5, help="sweeps from frame to frame")
    parser.add_argument("--zoom", type=int, default=2, help="pixels of the film to one of an image")
    parser.add_argument("--points", type=int, default=3000, help="rows of the embedding")
    parser.add_argument("--perplexity", type=float, default=30.0)
    parser.add_argument("--classifier-rows", type=int, default=5000)
    parser.add_argument("--curve-rows", type=int, default=5000, help="rows of the learning curves")
    parser.add_argument("--curve-hidden", type=int, default=64)
    parser.add_argument("--curve-epochs", type=int, default=20)
    parser.add_argument("--curve-seeds", type=int, default=3)
    parser.add_argument("--dpi", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="write the model too")
    parser.add_argument("--output", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--smoke", action="store_true", help="seconds, on the digits")
    add_training_options(
        parser,
        num_epochs=2,
        learning_rate=0.05,
        learning_rate_schedule="linear",
        persistent=True,
        binarize=True,
        progress=False,
    )
    options = parser.parse_args()
    if options.smoke:
        options.data, options.validation, options.hidden, options.sweeps = "digits", 237, 16, 20
        options.points, options.perplexity, options.zoom = 60, 10.0, 4
        options.long_sweeps = 50
        options.classifier_rows, options.curve_rows, options.curve_hidden = 200, 200, 8
        options.curve_epochs, options.curve_seeds = 3, 2
    return options


if __name__ == "__main__":
    main(parse())
