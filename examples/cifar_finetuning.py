# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Classifiers of the CIFAR-10 recipes: networks that start as the machines, or at random."""

import argparse
import time
from itertools import pairwise

import torch
from cifar_data import training_rows
from cifar_stages import Run
from torch import Generator, Tensor

from pyro_ebm import nn, plotting
from pyro_ebm.training.finetuning import (
    FeedForwardClassifier,
    FineTuneConfig,
    FineTuner,
    MeanLayer,
)

STARTS = ("grbm", "dbm", "random")
AUGMENTATIONS = ("none", "mirrors", "shifts")
ACTIVATIONS = ("relu", "sigmoid")


class RectifiedLayer(MeanLayer):
    """A layer that starts with the weights of bits, and computes max(0, preactivation) instead of the mean:
    it keeps what a bit that is certainly on forgets, how far it is on."""

    def forward(self, x: Tensor) -> Tensor:
        """Rectified preactivations, shape ``(rows, num_outputs)``."""
        return torch.relu(self.preactivation(x))


def add_classifier_options(parser: argparse.ArgumentParser, augment: str) -> None:
    """Flags of the networks."""
    group = parser.add_argument_group("classifier")
    group.add_argument("--starts", nargs="+", choices=STARTS, default=["grbm", "random"])
    group.add_argument("--activation", choices=ACTIVATIONS, default="relu")
    group.add_argument("--dropout", type=float, default=0.5)
    group.add_argument("--input-dropout", type=float, default=0.2)
    group.add_argument(
        "--top-layers", type=int, nargs="*", default=[], help="sizes of random layers on top"
    )
    group.add_argument("--finetune-augment", choices=AUGMENTATIONS, default=augment)


def fine_tune(run: Run) -> None:
    """The stage: one network a start, their accuracies, their confusions."""
    options = run.options
    rows, labels = training_rows(run.images, run.preprocessing, options.finetune_augment, run.dtype)
    for start in options.starts:
        name = f"finetune_{start}_{options.finetune_augment}"
        classifier = make_classifier(run, start, rows[:4096])
        tuner = _tuner(run, name, classifier)
        started = time.perf_counter()
        validation = run.rows("validation"), run.images.labels["validation"]
        history = tuner.fit(rows, labels, *validation)
        seconds = time.perf_counter() - started
        accuracy = {split: _accuracy(classifier, run, split) for split in ("validation", "test")}
        run.report(
            name,
            training=tuner.config.to_dict(),
            epochs=len(history),
            best_epoch=tuner.progress.best_epoch,
            seconds_of_this_run=seconds,
            accuracy=accuracy,
            history=history,
        )
        print(
            f"{name}: validation {100 * accuracy['validation']:.2f} %, "
            f"test {100 * accuracy['test']:.2f} %, {seconds:.0f} s",
            flush=True,
        )
        predicted = classifier.predict(run.rows("test")).cpu()
        title = f"Test images, start: {start}"
        names = run.images.names
        figure = plotting.confusion_matrix(
            run.images.labels["test"], predicted, names=names, title=title
        )
        plotting.save(figure, run.folder / f"{name}.png")


#: Options that define a network, beside those of the machines.
_DEFINING = ("activation", "dropout", "input_dropout", "top_layers", "finetune_augment")


def _tuner(run: Run, name: str, classifier: FeedForwardClassifier) -> FineTuner:
    checkpoint = run.file(f"{name}.checkpoint")
    values = {"seed": run.options.seed, **run.options.finetune}
    config = FineTuneConfig(**values, checkpoint=str(checkpoint))
    if checkpoint.exists() and not run.options.fresh:
        run.check_same(name, _DEFINING)
        return FineTuner.from_checkpoint(checkpoint, classifier, **config.to_dict())
    run.report(name, epochs=0)
    return FineTuner(classifier, config)


def _accuracy(classifier: FeedForwardClassifier, run: Run, split: str) -> float:
    return classifier.accuracy(run.rows(split), run.images.labels[split])


def make_classifier(run: Run, start: str, rows: Tensor) -> FeedForwardClassifier:
    """A network at its start.

    :param rows: training rows by which rectified layers are normalised.
    """
    options = run.options
    grbm = run.load("grbm")
    sizes = [*grbm.weight.shape, *options.top_layers]
    generator = Generator(device=run.device).manual_seed(options.seed)
    kind = RectifiedLayer if options.activation == "relu" else MeanLayer
    factory = {"generator": generator, "device": run.device}
    layers = [kind.glorot(*pair, **factory) for pair in pairwise(sizes)]
    if start != "random":
        weight, bias = lowest_layer(grbm if start == "grbm" else run.load("dbm"))
        layers[0] = kind(weight, bias)
    if options.activation == "relu":
        normalize(layers, rows.float())
    return FeedForwardClassifier(
        layers,
        len(run.images.names),
        dropout=options.dropout,
        input_dropout=options.input_dropout,
        generator=generator,
    )


@torch.no_grad()
def lowest_layer(module: nn.RBM | nn.DBM) -> tuple[Tensor, Tensor]:
    """Weights into the first hidden layer and its bias; above a centred deep machine's, the layer on top
    is at its offset, the mean."""
    if isinstance(module, nn.RBM):
        canonical = module().canonical()
        return canonical.weight.detach(), canonical.hidden_bias.detach()
    weight = module.weights[0].detach()
    bias = module.layers[1]().natural_bias.detach()
    if module.centered:
        bias = bias - module.offsets[0] @ weight
    return weight, bias


@torch.no_grad()
def normalize(layers: list[MeanLayer], rows: Tensor) -> None:
    """Give the preactivations of every layer mean 0 and variance 1 over some rows: batch normalisation at
    its start, written into weights and biases."""
    x = rows
    for layer in layers:
        found = layer.preactivation(x)
        mean, scale = found.mean(0), found.std(0, correction=0).clamp(min=1e-3)
        layer.weight.div_(scale)
        bias = layer.units.get_parameter("bias")
        bias.sub_(mean).div_(scale)
        x = layer(x)
