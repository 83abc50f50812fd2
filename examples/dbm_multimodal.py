# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A deep Boltzmann machine of two kinds of inputs: an image and its label, either given the other.

The visible layer holds the pixels and a bit for every class. Trained on both together, the machine draws
images of a class (its bits clamped) and classifies images (their pixels clamped), by the mean-field bound of
every class and by Gibbs sampling. Labels are one-hot: the trained machine is used given that one of its
label bits is on, which makes them a categorical unit of the same parameters.

    PYRO_EBM_DATA=/path/to/data python examples/dbm_multimodal.py --output runs/dbm-multimodal
    python examples/dbm_multimodal.py --data fashion-mnist --learning-rate 0.02 --output runs/dbm-clothes
    python examples/dbm_multimodal.py --skip-training --model runs/dbm-multimodal/model.safetensors
    python examples/dbm_multimodal.py --smoke
"""

import sys
import time
from typing import Any

import torch
from dbm_mnist import RECIPE
from dbm_training import describe, model_file, parse, train_dbm, write_report
from rbm_mnist import RECIPE as RBM_RECIPE
from torch import Generator, Size, Tensor
from torch.nn.functional import one_hot

import pyro_ebm
from pyro_ebm import datasets, plotting
from pyro_ebm.distributions import DBM, GibbsSweep
from pyro_ebm.distributions.units import Bernoulli, Categorical, Mixed

NUM_CLASSES = 10
#: Images of a class in the picture; rows at a time.
SAMPLES, CHUNK = 8, 500
SMOKE = {"hidden": [50, 20], "num_epochs": 20, "learning_rate": 0.1, "sweeps": 60}
SMOKE_RBM = {"num_epochs": 35, "learning_rate": 0.3, "batch_size": 30}


def join(images: Tensor, labels: Tensor) -> Tensor:
    """Rows of the visible layer: pixels, then label bits."""
    return torch.cat([images, one_hot(labels, NUM_CLASSES).to(images)], -1)


def with_one_hot_labels(machine: DBM) -> DBM:
    """The machine given that exactly one label bit is on: what is left of the bits is a categorical unit."""
    visible = machine.units[0]
    assert isinstance(visible, Bernoulli)
    pixels, labels = visible.bias.split([visible.size - NUM_CLASSES, NUM_CLASSES])
    layer = Mixed([Bernoulli(pixels), Categorical(labels.unsqueeze(0))])
    return DBM([layer, *machine.units[1:]], machine.weights, offsets=machine.offsets)


def is_pixel(machine: DBM) -> Tensor:
    """The mask of the pixels in the visible layer."""
    return torch.arange(machine.sizes[0]) < machine.sizes[0] - NUM_CLASSES


# --- one given the other --------------------------------------------------------------------------


@torch.no_grad()
def class_bounds(machine: DBM, images: Tensor) -> Tensor:
    """log p(y | x), with the mean-field bound of log p*(x, y) in the place of the exact one; shape
    ``(rows, classes)``."""
    parts = []
    labels = torch.arange(NUM_CLASSES)
    for block in images.split(CHUNK):
        rows = join(block.repeat_interleave(NUM_CLASSES, 0), labels.repeat(len(block)))
        bound = machine.mean_field(rows, max_updates=200, tolerance=1e-3).bound
        parts.append(bound.reshape(-1, NUM_CLASSES).log_softmax(-1))
    return torch.cat(parts)


@torch.no_grad()
def class_rates(machine: DBM, images: Tensor, num_sweeps: int, seed: int = 0) -> Tensor:
    """p(y | x) by a Gibbs chain an image: label probabilities given the layer above, averaged over the second
    half of the sweeps; shape ``(rows, classes)``."""
    generator = Generator().manual_seed(seed)
    parts = []
    for block in images.split(CHUNK):
        values = join(block, torch.zeros(len(block), dtype=torch.long))
        # What is free of the visible layer is the label.
        clamped = machine.clamp(is_pixel(machine), values)
        sweep = GibbsSweep(clamped.bipartite(), generator)
        even = sweep.initial_visible(Size((len(block), sum(clamped.sizes[0::2]))))
        total = torch.zeros(len(block), NUM_CLASSES)
        for i in range(num_sweeps):
            odd = sweep.sample_hidden(even)
            if i >= num_sweeps // 2:
                field = clamped.field(0, clamped.split_odd(odd)[:1])
                total += clamped.units[0].mean(field)
            even = sweep.sample_visible(odd)
        parts.append(total / (num_sweeps - num_sweeps // 2))
    return torch.cat(parts)


@torch.no_grad()
def images_of_classes(machine: DBM, num_sweeps: int, seed: int = 0) -> Tensor:
    """Means of the pixels at the end of chains with clamped labels, shape ``(chains, classes, pixels)``."""
    pixels = is_pixel(machine)
    values = join(torch.zeros(NUM_CLASSES, int(pixels.sum())), torch.arange(NUM_CLASSES))
    clamped = machine.clamp(~pixels, values.repeat(SAMPLES, 1))
    sweep = GibbsSweep(clamped.bipartite(), Generator().manual_seed(seed))
    even = sweep.initial_visible(Size((SAMPLES * NUM_CLASSES, sum(clamped.sizes[0::2]))))
    odd = sweep.sample_hidden(sweep.run(even, num_sweeps))
    means = clamped.units[0].mean(clamped.field(0, clamped.split_odd(odd)[:1]))
    return means.reshape(SAMPLES, NUM_CLASSES, -1)


def scores(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy and mean log p(y | x) with their standard errors over images."""
    hits = (log_probs.argmax(-1) == labels).double()
    score = log_probs.gather(1, labels.unsqueeze(1)).double()
    root = len(labels) ** 0.5
    return {
        "accuracy": hits.mean().item(),
        "accuracy_error": hits.std().item() / root,
        "log_score": score.mean().item(),
        "log_score_error": score.std().item() / root,
    }


# --- the program ----------------------------------------------------------------------------------


def evaluate(machine: DBM, images: Tensor, labels: Tensor, options: Any) -> dict[str, Any]:
    """How well labels are found from images."""
    results: dict[str, Any] = {"rows": len(labels)}
    started = time.perf_counter()
    results["mean field"] = scores(class_bounds(machine, images), labels)
    rates = class_rates(machine, images, options.sweeps, options.seed)
    # A class that no sweep came near has not probability 0.
    floor = 0.5 / options.sweeps / NUM_CLASSES
    results["Gibbs"] = scores(rates.clamp_min(floor).log().log_softmax(-1), labels)
    results["wall_seconds"] = time.perf_counter() - started
    for name in ("mean field", "Gibbs"):
        own = results[name]
        print(
            f"labels of images by {name}: accuracy {100 * own['accuracy']:.2f} +- "
            f"{100 * own['accuracy_error']:.2f} %, log score {own['log_score']:.3f} +- "
            f"{own['log_score_error']:.3f} nats"
        )
    return results


def run(options: Any) -> dict[str, Any]:
    """Train on images with labels; draw images of the classes, and classify the test images."""
    model = model_file(options)
    data = datasets.load(options.data, validation=options.validation)
    split: Any = "validation" if options.validation else "test"
    report = {"data": options.data, **describe(options)}
    if model is None:
        rows = join(data.train(), data.labels("train"))
        trainer, report["training"] = train_dbm(rows, options)
        module = trainer.averaged
        write_report(options, report, module)
    else:
        module = pyro_ebm.load(model)
    machine = with_one_hot_labels(module().detach())
    images = data.binarized(split, seed=0)[: options.rows]
    report["evaluation"] = evaluate(machine, images, data.labels(split)[: options.rows], options)
    write_report(options, report)
    if options.output and options.pictures:
        draw(machine, data, options)
    return report


def draw(machine: DBM, data: datasets.Dataset, options: Any) -> None:
    """Images of every class, and what the units look for in the pixels."""
    samples = images_of_classes(machine, options.sweeps, options.seed)
    caption = f"means of the pixels after {options.sweeps} sweeps with the label clamped"
    figures = {
        "samples": plotting.class_samples(
            samples, data.image_shape, data.label_names, caption=caption
        )
    }
    lowest = machine.weights[0][:-NUM_CLASSES]
    figures["filters_1"] = plotting.filters(lowest, data.image_shape)
    figures["filters_2"] = plotting.filters([lowest, machine.weights[1]], data.image_shape)
    for name, figure in figures.items():
        plotting.save(figure, options.output / f"{name}.png")


def main(arguments: list[str]) -> dict[str, Any]:
    """The program."""
    options = parse(
        __doc__.split("\n\n")[0], "mnist", RBM_RECIPE, arguments, likelihood=False, **RECIPE
    )
    if options.smoke:
        vars(options).update(SMOKE)
        options.rbm_options |= SMOKE_RBM
    return run(options)


if __name__ == "__main__":
    main(sys.argv[1:])
