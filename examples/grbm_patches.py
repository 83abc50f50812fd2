# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A Gaussian-Bernoulli RBM of whitened patches of natural images.

Learns edge filters, and says what they are worth: the log-likelihood of test patches with log Z from both
sides, against a normal law with full covariance in the same units. The start and the training follow
Melchior, Wang and Wiskott (2017): whitened patches, small weights, hidden units that are rarely on, a
limited norm of the gradient.

``--paste`` repeats the machine on a grid over whole images. Blocks are whitened one by one, so that the big
machine is exactly the product over blocks, and its log Z their sum; ``--paste-epochs`` then trains it on
whole images.

    PYRO_EBM_DATA=/path/to/data python examples/grbm_patches.py --output runs/patches
    python examples/grbm_patches.py --data fashion-mnist --patch 7 --hidden 64
    python examples/grbm_patches.py --paste --paste-epochs 2 --output runs/paste
    python examples/grbm_patches.py --smoke
"""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from patch_data import BlockWhitening, cut_patches, gaussian_log_prob, load_images, to_pixels
from torch import Generator, Tensor
from training_options import add_training_options, training_config

import pyro_ebm
from pyro_ebm import datasets, nn, plotting
from pyro_ebm.datasets import Whitening
from pyro_ebm.infer import LogPartitionBracket, bracket_log_partition
from pyro_ebm.training import Trainer

#: Options of training that differ from those of ``TrainerConfig``.
TRAINING: dict[str, Any] = {
    "num_epochs": 20,
    "learning_rate": 0.2,
    "learning_rate_schedule": "linear",
    "momentum": 0.9,
    "gradient_clip": 10.0,
}
#: Lower end, estimate and upper end of log Z.
Ends = tuple[float, float, float]


def main(options: argparse.Namespace) -> dict[str, Any]:
    """Train, evaluate, draw; returns the report."""
    generator = Generator().manual_seed(options.seed)
    dataset = load_images(options.data, options.validation)
    held_out = "validation" if options.validation else "test"
    images = {
        split: to_pixels(dataset, split, options.colour, generator) for split in ("train", held_out)
    }
    shape = (images["train"].shape[1], options.patch, options.patch)
    pixels = cut_patches(images["train"], options.patch, options.num_patches, generator)
    test_pixels = cut_patches(images[held_out], options.patch, options.num_test, generator)
    whitening = Whitening.fit(pixels, options.regularization)
    train, test = whitening(pixels), whitening(test_pixels)

    rbm, history = train_machine(options, train)
    bracket = log_partition(options, rbm, train)
    report = {
        "data": dataset.name,
        "split": held_out,
        "patch_shape": shape,
        "options": vars(options),
        "history": history,
        "log_partition": bracket.to_dict(),
        **evaluate(rbm, ends_of(bracket), train, test, whitening.log_abs_det),
        "reconstruction": reconstruction_report(rbm, whitening, test, test_pixels),
    }
    print_likelihood(report)
    for name, value in report["reconstruction"].items():
        print(f"{name}: {value:.4g}")
    if options.output:
        pyro_ebm.save(rbm, options.output / "model.safetensors")
        draw_patches(options.output, rbm, whitening, test, shape)
    if options.paste:
        blocks = BlockWhitening(whitening, shape)
        report["paste"] = paste(options, rbm, ends_of(bracket), blocks, images)
    if options.output:
        write_report(options.output / "report.json", report)
    return report


# --- the machine --------------------------------------------------------------------------------


def train_machine(options: argparse.Namespace, train: Tensor) -> tuple[nn.RBM, list[Any]]:
    """Fit the machine of patches."""
    rbm = nn.RBM(
        train.shape[1],
        options.hidden,
        "gaussian",
        visible_options={"learn_precision": options.learn_precision},
        centered=options.centered,
        # The variance of Glorot's uniform weights.
        weight_scale=math.sqrt(2.0 / (train.shape[1] + options.hidden)),
        seed=options.seed,
    )
    rbm.init_from_data(train)
    set_rarity(rbm, options.rarity)
    trainer = Trainer(rbm, training_config(options, seed=options.seed))
    started = time.perf_counter()
    history = trainer.fit(train)
    print(f"trained {options.num_epochs} epochs in {time.perf_counter() - started:.0f} s")
    return (trainer.averaged or rbm), history


@torch.no_grad()
def set_rarity(rbm: nn.RBM, rarity: float) -> None:
    r"""Give hidden units the bias with which the state that has only unit j on is ``rarity`` times as
    probable as the one that has none.

    Summed over v, :math:`\log p(h) = c^\top h + m^\top W h + |P^{-1/2} W h|^2 / 2` up to a constant.
    """
    precision = rbm().visible.parameters["precision"]
    pull = rbm.visible.loc @ rbm.weight + 0.5 * (rbm.weight.square() / precision.unsqueeze(-1)).sum(
        0
    )
    rbm.init_from_arrays(visible_bias=rbm.visible.loc, hidden_bias=math.log(rarity) - pull)


def log_partition(options: argparse.Namespace, rbm: nn.RBM, train: Tensor) -> LogPartitionBracket:
    """Log Z from both sides."""
    return bracket_log_partition(
        rbm().detach().to(torch.float64),
        num_chains=options.ais_chains,
        num_temperatures=options.ais_temperatures,
        base=train.mean(0),
        seed=options.seed,
    )


def ends_of(bracket: LogPartitionBracket) -> Ends:
    """Lower end, midpoint and upper end as numbers."""
    return bracket.lower.item(), bracket.value.item(), bracket.upper.item()


# --- what it is worth ---------------------------------------------------------------------------


def evaluate(
    rbm: nn.RBM, log_z: Ends, train: Tensor, test: Tensor, log_abs_det: float
) -> dict[str, Any]:
    """Log-likelihoods per row in nats, of whitened numbers and of pixels.

    Their lower and upper ends are those of log Z; the error of the mean over rows comes on top.
    """
    machine = rbm().detach().to(torch.float64)
    unnormalised = -machine.free_energy(test.double())
    gaussian = gaussian_log_prob(train, test)
    mean = unnormalised.mean().item()
    likelihood = {
        "value": mean - log_z[1],
        "lower": mean - log_z[2],
        "upper": mean - log_z[0],
        "std_error": (unnormalised.std() / len(test) ** 0.5).item(),
    }
    difference = unnormalised - gaussian
    return {
        "log_likelihood": likelihood,
        "gaussian_log_likelihood": gaussian.mean().item(),
        "gain": likelihood["value"] - gaussian.mean().item(),
        "gain_std_error": (difference.std() / len(test) ** 0.5).item(),
        "pixel_units": {
            "log_abs_det": log_abs_det,
            "log_likelihood": likelihood["value"] + log_abs_det,
            "gaussian_log_likelihood": gaussian.mean().item() + log_abs_det,
        },
    }


@torch.no_grad()
def reconstruct(rbm: nn.RBM, rows: Tensor) -> Tensor:
    """Means of v given the means of the hidden units given v."""
    machine = rbm()
    hidden = machine.hidden_given(rows).mean
    return machine.visible_given(hidden).mean


def reconstruction_report(
    rbm: nn.RBM, whitening: Whitening, test: Tensor, pixels: Tensor
) -> dict[str, float]:
    """Part of the variance that reconstructions hold, of whitened numbers and of pixels, and how often
    hidden units are on."""
    again = reconstruct(rbm, test)
    restored = whitening.inverse(again)
    activity = rbm().detach().hidden_given(test).mean.mean(0)
    return {
        "r2_whitened": 1.0 - ((again - test).square().mean() / test.var()).item(),
        "r2_pixels": 1.0
        - ((restored - pixels).square().mean() / (pixels - pixels.mean(0)).square().mean()).item(),
        "mean_activation": activity.mean().item(),
        "rare_units": int((activity < 1e-3).sum()),
    }


def print_likelihood(report: dict[str, Any]) -> None:
    likelihood, pixels = report["log_likelihood"], report["pixel_units"]
    print(
        f"log-likelihood: {likelihood['value']:.3f} in [{likelihood['lower']:.3f}, "
        f"{likelihood['upper']:.3f}] nats per row, +- {likelihood['std_error']:.3f} (rows)"
    )
    print(
        f"normal law with full covariance: {report['gaussian_log_likelihood']:.3f}; "
        f"gain {report['gain']:.3f} +- {report['gain_std_error']:.3f}"
    )
    print(
        f"the same of pixels: {pixels['log_likelihood']:.3f} and "
        f"{pixels['gaussian_log_likelihood']:.3f}"
    )


# --- whole images -------------------------------------------------------------------------------


def paste(
    options: argparse.Namespace,
    patch_rbm: nn.RBM,
    patch_log_z: Ends,
    blocks: BlockWhitening,
    images: dict[str, Tensor],
) -> dict[str, Any]:
    """The machine on a grid over whole images, and where it gets by training there."""
    train_pixels, test_pixels = (blocks.crop(pixels) for pixels in images.values())
    shape = tuple(train_pixels.shape[1:])
    train, test = blocks(train_pixels), blocks(test_pixels[: options.num_test])
    # Noise lets training connect blocks; without it the machine is the product over them.
    pasted = nn.tile_rbm(
        patch_rbm, shape, blocks.shape, noise_scale=options.noise, seed=options.seed
    )
    count = pasted.weight.shape[1] // patch_rbm.weight.shape[1]
    log_abs_det = count * blocks.whitening.log_abs_det
    machines = {"pasted": pasted}
    if options.paste_epochs:
        machines["trained"] = train_jointly(options, pasted, train)
    found: dict[str, Any] = {"image_shape": shape, "num_blocks": count}
    for name, machine in machines.items():
        if name == "pasted" and options.noise == 0.0:
            low, middle, high = patch_log_z
            ends = (count * low, count * middle, count * high)
        else:
            ends = ends_of(log_partition(options, machine, train))
        found[name] = evaluate(machine, ends, train, test, log_abs_det)
        print(f"whole images, {name}:")
        print_likelihood(found[name])
    if options.output:
        draw_images(options.output, machines, blocks, test[:8], shape)
    return found


def train_jointly(options: argparse.Namespace, pasted: nn.RBM, train: Tensor) -> nn.RBM:
    """A copy that goes on learning from whole images."""
    joint = nn.RBM(**{**pasted.config(), "seed": options.seed}).init_from_rbm(pasted)
    rate = options.paste_learning_rate
    config = training_config(
        options, seed=options.seed, num_epochs=options.paste_epochs, learning_rate=rate
    )
    trainer = Trainer(joint, config)
    started = time.perf_counter()
    trainer.fit(train)
    print(f"trained {options.paste_epochs} epochs jointly in {time.perf_counter() - started:.0f} s")
    return trainer.averaged or joint


# --- pictures and files -------------------------------------------------------------------------


def draw_patches(
    folder: Path, rbm: nn.RBM, whitening: Whitening, test: Tensor, shape: tuple[int, ...]
) -> None:
    """Filters of hidden units, and test patches with their reconstructions and samples."""
    shown = shape if shape[0] == 3 else shape[1:]
    weight = rbm.weight.detach()
    figure = plotting.filters(weight, shown, max_filters=144, title="Filters of whitened patches")
    plotting.save(figure, folder / "filters.png")
    samples = rbm(num_gibbs_steps=1000).detach().sample((64,), generator=Generator().manual_seed(0))
    panels = {"test patches": test[:64], "reconstructions": reconstruct(rbm, test[:64])}
    panels["samples"] = samples
    # Of real patches the middle 98 % of values use the grey scale.
    low, high = (torch.quantile(test[:64], q).item() for q in (0.01, 0.99))
    grey = {name: ((rows - low) / (high - low)).clamp(0.0, 1.0) for name, rows in panels.items()}
    plotting.save(
        plotting.image_grid(grey, shown, num_columns=8, title="Whitened patches"),
        folder / "patches.png",
    )
    pixels = {name: whitening.inverse(rows).clamp(0.0, 1.0) for name, rows in panels.items()}
    plotting.save(
        plotting.image_grid(pixels, shown, num_columns=8, title="Patches, whitening undone"),
        folder / "pixels.png",
    )


def draw_images(
    folder: Path,
    machines: dict[str, nn.RBM],
    blocks: BlockWhitening,
    test: Tensor,
    shape: tuple[int, ...],
) -> None:
    """Whole images, their reconstructions and samples."""
    panels = {"test images": test}
    for name, machine in machines.items():
        panels[f"{name}: reconstructions"] = reconstruct(machine, test)
    for name, machine in machines.items():
        dist = machine(num_gibbs_steps=1000).detach()
        panels[f"{name}: samples"] = dist.sample((8,), generator=Generator().manual_seed(0))
    pixels = {name: blocks.inverse(rows, shape).clamp(0.0, 1.0) for name, rows in panels.items()}
    shown = shape if shape[0] == 3 else shape[1:]
    figure = plotting.image_grid(
        pixels, shown, num_columns=2, title="Patch machines on whole images"
    )
    plotting.save(figure, folder / "images.png")


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write JSON: the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    os.replace(part, path)


# --- options ------------------------------------------------------------------------------------


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, those of ``--smoke`` set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--data", default="auto", choices=["auto", *datasets.available()])
    add("--colour", action="store_true", help="three channels instead of their mean")
    add("--patch", type=int, default=8, help="width of a patch in pixels")
    add("--num-patches", type=int, default=200_000, help="training patches")
    add("--num-test", type=int, default=10_000, help="test patches, and images of --paste")
    add("--validation", type=int, default=0, help="evaluate on the last N training images instead")
    add(
        "--regularization", type=float, default=0.0, help="of the whitening, in squared grey levels"
    )
    add("--hidden", type=int, default=128)
    add("--learn-precision", action=argparse.BooleanOptionalAction, default=True)
    add("--centered", action=argparse.BooleanOptionalAction, default=False)
    add("--rarity", type=float, default=0.01, help="initial odds of a single hidden unit")
    add("--ais-chains", type=int, default=100)
    add("--ais-temperatures", type=int, default=5000)
    add("--paste", action="store_true", help="repeat the machine over whole images")
    add("--paste-epochs", type=int, default=0, help="train it there")
    add("--paste-learning-rate", type=float, default=0.01)
    add("--noise", type=float, default=0.0, help="weights between blocks, standard deviation")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="folder for the report, the model and pictures")
    add("--smoke", action="store_true", help="seconds, on patches of the digits")
    add_training_options(parser, **TRAINING)
    options = parser.parse_args(arguments)
    if options.smoke:
        options.data, options.patch, options.hidden = "digits", 4, 8
        options.num_patches, options.num_test, options.num_epochs = 2000, 300, 3
        options.ais_chains, options.ais_temperatures = 50, 200
    return options


if __name__ == "__main__":
    main(parse())
