# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Bernoulli RBMs of images: what ``rbm_mnist.py`` and ``rbm_fashion_mnist.py`` have in common."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training_options import add_training_options, resumed_trainer, training_config

import pyro_ebm
from pyro_ebm import datasets, nn, plotting
from pyro_ebm.distributions import RBM
from pyro_ebm.infer import (
    BlockGibbs,
    VectorizedMCMC,
    bracket_log_partition,
    exact_log_partition,
    log_likelihood,
)
from pyro_ebm.training import Trainer

#: With at most this many hidden units log Z is summed exactly.
MAX_EXACT_HIDDEN = 20
SMOKE = {"data": "digits", "hidden": 12, "num_epochs": 3, "num_chains": 20, "ais_temperatures": 200}


def parse(description: str, data: str, arguments: list[str] | None = None, **defaults: Any) -> Any:
    """The options of a program.

    :param str description: its first line of help.
    :param str data: the data set.
    :param arguments: the command line; that of the process if None.
    :param defaults: options of ``TrainerConfig`` that are its own.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", default=data, choices=datasets.available())
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--centered", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--weight-scale", type=float, default=0.01)
    parser.add_argument(
        "--validation", type=int, default=0, help="training images to evaluate on, not the test set"
    )
    parser.add_argument("--ais-chains", type=int, default=100)
    parser.add_argument("--ais-temperatures", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=100, help="chains of the pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a folder for the model, report and pictures")
    parser.add_argument(
        "--model", type=Path, help="evaluate this file; nothing is trained (its data are --data's)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    parser.add_argument("--smoke", action="store_true", help="seconds, on the digits")
    add_training_options(parser, persistent=True, binarize=True, **defaults)
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(SMOKE)
    return options


def run(options: Any) -> dict[str, Any]:
    """Train, estimate log Z from both sides, and say what the test images' likelihood is."""
    data = datasets.load(options.data)
    grey = data.train()
    cut = len(grey) - options.validation
    train = grey[:cut]
    if options.validation:
        bits = torch.Generator().manual_seed(0)
        test = torch.bernoulli(grey[cut:], generator=bits)
    else:
        test = data.binarized("test", seed=0)
    report: dict[str, Any] = {"command": " ".join(sys.argv), "seed": options.seed}
    if options.model:
        module, trainer = pyro_ebm.load(options.model), None
    else:
        trainer, costs = train_rbm(train, data.num_pixels, options)
        module = trainer.averaged
        report |= costs
    with torch.no_grad():
        machine = module()
    report |= evaluate(machine, test, train.mean(0), options)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        pyro_ebm.save(module, options.output / "model.safetensors")
        (options.output / "report.json").write_text(json.dumps(report, indent=1))
        draw(machine, trainer, data.image_shape, options)
    return report


def train_rbm(train: Tensor, num_pixels: int, options: Any) -> tuple[Trainer, dict[str, Any]]:
    """A trainer that is done, and what it cost."""
    module = nn.RBM(
        num_pixels,
        options.hidden,
        centered=options.centered,
        weight_scale=options.weight_scale,
        seed=options.seed,
    ).init_from_data(train)
    config = training_config(options, seed=options.seed)
    started = time.perf_counter(), time.process_time()
    trainer = resumed_trainer(config, options.resume, module) or Trainer(module, config)
    trainer.fit(train)
    costs = {
        "training": config.to_dict(),
        "wall_seconds": time.perf_counter() - started[0],
        "cpu_seconds": time.process_time() - started[1],
    }
    print(f"trained {config.num_epochs} epochs in {costs['wall_seconds']:.0f} s")
    return trainer, costs


def evaluate(machine: RBM, test: Tensor, base: Tensor, options: Any) -> dict[str, Any]:
    """Test log-likelihoods with log Z exact, or from below and from above."""
    if machine.weight.shape[1] <= MAX_EXACT_HIDDEN:
        log_z = exact_log_partition(machine)
        rows = log_likelihood(machine, test, log_z)
        report = {"log_partition": log_z.item(), "log_likelihood": rows.mean().item()}
        report["row_error"] = rows.std().item() / len(rows) ** 0.5
        print(
            f"test log-likelihood, exact: {report['log_likelihood']:.3f} +- "
            f"{report['row_error']:.3f} (images) nats per image"
        )
        return report
    bracket = bracket_log_partition(
        machine,
        num_chains=options.ais_chains,
        num_temperatures=options.ais_temperatures,
        schedule="adaptive",
        base=base,
        seed=options.seed,
        progress=options.progress,
    )
    print(bracket)
    report = {}
    for side, estimate in (("AIS", bracket.forward), ("reverse AIS", bracket.reverse)):
        rows = log_likelihood(machine, test, estimate)
        value, error = rows.mean().item(), rows.std().item() / len(rows) ** 0.5
        # The error of log Z is common to all rows; that of the mean over rows comes on top.
        print(
            f"test log-likelihood by {side}: {value:.2f} +- {error:.2f} (images) "
            f"+- {estimate.std_error.item():.2f} (log Z) nats per image"
        )
        report[side] = {"log_likelihood": value, "row_error": error, **estimate.to_dict()}
    # Of the likelihood with the images as they are: log Z from its lowest to its highest end.
    mean = report["AIS"]["log_likelihood"] + bracket.forward.value.item()
    report["log_likelihood_interval"] = [
        mean - bracket.upper.item(),
        mean - bracket.lower.item(),
    ]
    print("interval of log Z:", "{:.2f} to {:.2f}".format(*report["log_likelihood_interval"]))
    return report


def draw(machine: RBM, trainer: Trainer | None, shape: Any, options: Any) -> None:
    """Filters, samples, and of a run its chains and history."""
    count = options.samples
    order = machine.weight.norm(dim=0).argsort(descending=True)[:count]
    figures = {"filters": plotting.filters(machine.weight[:, order], shape)}
    if trainer is not None and trainer.chains is not None:
        means = machine.visible.mean(
            machine.visible_field(machine.hidden.mean(machine.hidden_field(trainer.chains[:count])))
        )
        figures["chains"] = plotting.image_grid(means, shape)
    mcmc = VectorizedMCMC(BlockGibbs(machine), 1, 1000, num_chains=count, disable_progbar=True)
    mcmc.run()
    v = mcmc.get_samples()["v"]
    means = machine.visible.mean(
        machine.visible_field(machine.hidden.mean(machine.hidden_field(v)))
    )
    figures["samples"] = plotting.image_grid(means, shape)
    if trainer is not None:
        figures["history"] = plotting.history(trainer.history)
    for name, figure in figures.items():
        plotting.save(figure, options.output / f"{name}.png")
