# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""RBMs that make features, trained or read from files: what two examples share."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from training_options import add_training_options, training_config

import pyro_ebm
from pyro_ebm import datasets, nn
from pyro_ebm.training import Trainer

#: Rows whose features are computed at once.
_CHUNK_ROWS = 10_000


def add_rbm_options(parser: argparse.ArgumentParser) -> None:
    """Flags of the data, the machines and their training."""
    parser.add_argument("--data", default="mnist", choices=datasets.available())
    parser.add_argument(
        "--validate-on",
        type=int,
        default=0,
        metavar="N",
        help="choose options: the last N training images play the test set, which is not looked at",
    )
    parser.add_argument(
        "--model", nargs="+", help="files of trained RBMs, from the bottom to the top"
    )
    parser.add_argument(
        "--hidden", type=int, nargs="+", default=[1024], help="hidden units by layer"
    )
    parser.add_argument(
        "--centered",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="whether the RBMs have offsets",
    )
    parser.add_argument(
        "--activation",
        type=float,
        default=0.05,
        help="mean of hidden units at the start: what is sparse at first stays so, and classifies better",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the RBMs")
    parser.add_argument("--output", default="runs/features", help="folder for the results")
    parser.add_argument("--smoke", action="store_true", help="seconds, on the digits")
    # CD-1 with momentum: what features need is a long way, in many updates.
    add_training_options(
        parser,
        num_epochs=60,
        batch_size=100,
        learning_rate=0.1,
        learning_rate_schedule="linear",
        momentum=0.9,
        weight_decay=1e-5,
        binarize=True,
    )


def load_images(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, their labels, test images and their labels."""
    data = datasets.load(arguments.data)
    x, y = data.train(), data.labels()
    if arguments.validate_on:
        split = len(x) - arguments.validate_on
        return x[:split], y[:split], x[split:], y[split:]
    return x, y, data.test(), data.labels("test")


def make_rbms(arguments: argparse.Namespace, x: Tensor) -> list[nn.RBM]:
    """The machines of ``--model``, or a stack that is trained on unlabelled rows, one after the other.

    :param arguments: with the flags of :func:`add_rbm_options`.
    :param Tensor x: rates in [0, 1], shape ``(rows, V)``.
    """
    if arguments.model:
        return [pyro_ebm.load(path) for path in arguments.model]
    rbms: list[nn.RBM] = []
    for number, num_hidden in enumerate(arguments.hidden):
        seed = arguments.seed + number
        rbm = nn.RBM(x.shape[1], num_hidden, centered=arguments.centered, seed=seed)
        rbm.init_from_data(x, hidden_activation=arguments.activation)
        started = time.perf_counter()
        history = Trainer(rbm, training_config(arguments, seed=seed)).fit(x)
        seconds = time.perf_counter() - started
        error = history[-1]["reconstruction_error"]
        print(f"RBM {number + 1}: {seconds:.0f} s, reconstruction error {error:.4f}", flush=True)
        pyro_ebm.save(rbm, Path(arguments.output) / f"rbm_{number + 1}.safetensors")
        rbms.append(rbm)
        x = features([rbm], x)
    return rbms


@torch.no_grad()
def features(rbms: Sequence[nn.RBM], x: Tensor) -> Tensor:
    """Means of the top hidden layer given the grey levels, E[h|v] layer by layer: no random numbers."""
    for rbm in rbms:
        dist = rbm()
        x = torch.cat([dist.hidden.mean(dist.hidden_field(rows)) for rows in x.split(_CHUNK_ROWS)])
    return x
