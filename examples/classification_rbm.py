# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Classification of images by an RBM with label units, or by one RBM a class.

The classification RBM [1] has exact class probabilities and is trained for them, for the images, or for
both (``--objective``). With ``--per-class`` every class has a machine of its own, and Bayes' rule with
their log Z decides. Published errors on MNIST [1]: 1.81 % discriminative, 1.28 % hybrid.

    PYRO_EBM_DATA=/path/to/data python examples/classification_rbm.py
    python examples/classification_rbm.py --objective discriminative --dropout 0
    python examples/classification_rbm.py --labels 1000 --objective hybrid
    python examples/classification_rbm.py --per-class --hidden 200
    python examples/classification_rbm.py --smoke

[1] *Classification using discriminative restricted Boltzmann machines*, Hugo Larochelle, Yoshua Bengio
(2008)
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad
from training_options import add_training_options, training_config

import pyro_ebm
from pyro_ebm import datasets, nn, plotting
from pyro_ebm.infer import BayesClassifier, MachinesByClass, conditional_log_partition
from pyro_ebm.predictive import classification_report
from pyro_ebm.training import Trainer
from pyro_ebm.training.finetuning import stratified_split

NUM_CLASSES = 10
#: What is good for each of the two ways on MNIST.
WITH_LABELS = {
    "num_epochs": 60,
    "objective": "hybrid",
    "generative_weight": 0.01,
    "optimizer": "adam",
    "learning_rate": [0.001, 0.003, 0.005],  # Adam's first steps are long ones
    "learning_rate_schedule": "cosine",
    "dropout": 0.5,
    "averaging": 0.998,
    "progress": False,
}
BY_CLASS = {
    "num_epochs": 20,
    "learning_rate": 0.05,
    "learning_rate_schedule": "linear",
    "persistent": True,
    "binarize": True,
    "progress": False,
}


class Images:
    """Grey levels and labels; the last images of the training set are kept for choices."""

    def __init__(self, name: str, num_validation: int) -> None:
        self.data = datasets.load(name)
        x, labels = self.data.train(), self.data.labels("train")
        cut = len(x) - num_validation
        self.x, self.labels = x[:cut], labels[:cut]
        self.validation = x[cut:], labels[cut:]
        self.test = self.data.test(), self.data.labels("test")


def forget_labels(labels: Tensor, count: int | None, seed: int) -> Tensor:
    """Labels of random rows, as many of every class as classes are frequent; -1 for the others."""
    if count is None:
        return labels
    kept = torch.full_like(labels, -1)
    rows, _ = stratified_split(labels, count, generator=Generator().manual_seed(seed))
    kept[rows] = labels[rows]
    return kept


def shifted(x: Tensor, shape: tuple[int, ...], most: int, generator: Generator) -> Tensor:
    """Every image moved by up to ``most`` pixels each way, filled with black."""
    if not most:
        return x
    height, width = shape[-2:]
    images = pad(x.reshape(-1, height, width), (most, most, most, most))
    steps = torch.randint(2 * most + 1, (len(x), 2), generator=generator)
    result = torch.empty(len(x), height, width, dtype=x.dtype)
    for down in range(2 * most + 1):
        for right in range(2 * most + 1):
            rows = (steps[:, 0] == down) & (steps[:, 1] == right)
            result[rows] = images[rows, down : down + height, right : right + width]
    return result.flatten(1)


def error_of(module: nn.ClassificationRBM, x: Tensor, labels: Tensor) -> float:
    """Share of wrong predictions in per cent."""
    wrong = torch.cat([module.predict(part) for part in x.split(1000)]) != labels
    return 100.0 * wrong.double().mean().item()


# --- one machine with label units -----------------------------------------------------------------


def train(options: argparse.Namespace, images: Images) -> tuple[nn.ClassificationRBM, list[Any]]:
    """The machine with the parameters of the smallest validation error, and a record an epoch."""
    module = nn.ClassificationRBM(
        images.data.num_pixels,
        options.hidden,
        NUM_CLASSES,
        hidden=options.hidden_family,
        centered=options.centered,
        weight_scale=options.weight_scale,
        seed=options.seed,
    )
    labels = forget_labels(images.labels, options.labels, options.seed)
    module.init_from_data(module.join(images.x, labels))
    trainer = Trainer(module, training_config(options, seed=options.seed))
    generator = Generator().manual_seed(options.seed)
    best, best_epoch, history = {}, 0, []
    for epoch in range(1, options.num_epochs + 1):
        x = shifted(images.x, images.data.image_shape, options.shift, generator)
        record = dict(trainer.partial_fit(module.join(x, labels)))
        record["validation_error"] = error_of(trainer.averaged, *images.validation)
        history.append(record)
        # Of equal errors the later one: the rate of learning falls.
        if record["validation_error"] <= min(r["validation_error"] for r in history):
            best_epoch = epoch
            best = {name: t.clone() for name, t in trainer.averaged.state_dict().items()}
        print(
            f"epoch {epoch}: validation error {record['validation_error']:.2f} %, "
            f"{sum(r['seconds'] for r in history):.0f} s",
            flush=True,
        )
        if epoch - best_epoch >= options.stop_after:
            break
    module.load_state_dict(best)
    print(f"took the parameters after epoch {best_epoch}")
    return module, history


def draw_samples(options: argparse.Namespace, module: nn.ClassificationRBM) -> Tensor:
    """Means of the pixels at the end of chains with clamped labels, shape ``(chains, classes, V)``."""
    size = module.num_inputs + NUM_CLASSES
    mask = torch.arange(size) >= module.num_inputs
    rows = module.join(torch.zeros(NUM_CLASSES, module.num_inputs), torch.arange(NUM_CLASSES))
    with torch.no_grad():
        machine = module(num_gibbs_steps=options.sample_steps).clamp(mask, rows)
        v = machine.sample((6,), generator=Generator().manual_seed(options.seed))
        return machine.visible.mean(
            machine.visible_field(machine.hidden.mean(machine.hidden_field(v)))
        )


def classify_with_labels(options: argparse.Namespace, images: Images) -> dict[str, Any]:
    """Train, test and draw the classification RBM."""
    module, history = train(options, images)
    x, labels = images.test
    with torch.no_grad():
        logits = torch.cat([module.class_logits(part) for part in x.split(1000)])
    shape = images.data.image_shape
    names = images.data.label_names
    pyro_ebm.save(module, options.output / "model.safetensors")
    caption = f"means of the pixels after {options.sample_steps} sweeps with the label clamped"
    samples = draw_samples(options, module)
    figure = plotting.class_samples(samples, shape, names, caption=caption)
    plotting.save(figure, options.output / "samples.png")
    weight = module.weight.detach()[: module.num_inputs]
    plotting.save(plotting.filters(weight, shape), options.output / "filters.png")
    return {**scores(options, logits, labels, names), "history": history}


# --- a machine a class ----------------------------------------------------------------------------


def classify_by_class(options: argparse.Namespace, images: Images) -> dict[str, Any]:
    """Train a machine a class, find log Z of each, and classify binarised images by Bayes' rule."""
    machines, means = [], []
    for k in range(NUM_CLASSES):
        x = images.x[images.labels == k]
        module = nn.RBM(
            images.data.num_pixels,
            options.hidden,
            hidden=options.hidden_family,
            centered=options.centered,
            weight_scale=options.weight_scale,
            seed=options.seed + k,
        ).init_from_data(x)
        trainer = Trainer(module, training_config(options, seed=options.seed + k))
        trainer.fit(x)
        machines.append(trainer.averaged().detach())
        means.append(x.mean(0))
        print(f"class {k}: {sum(r['seconds'] for r in trainer.history):.0f} s", flush=True)
    model = MachinesByClass(machines)
    bracket = conditional_log_partition(
        model,
        model.contexts,
        "bracket",
        num_chains=options.ais_chains,
        num_temperatures=options.ais_temperatures,
        base=torch.stack(means),
        seed=options.seed,
    )
    prior = torch.bincount(images.labels, minlength=NUM_CLASSES).double()
    classifier = BayesClassifier(model, model.contexts, bracket, (prior / prior.sum()).log())
    x, labels = images.data.binarized("test", seed=0), images.test[1]
    bounds = classifier.bounds(x)
    print(bracket)
    print(f"{bounds.num_changed} of {len(x)} predictions depend on the side of log Z")
    report = scores(options, classifier.log_joint(x), labels, images.data.label_names)
    return {
        **report,
        "log_partition": bracket.to_dict(),
        "log_evidence": classifier.log_evidence(x).mean().item(),
        "num_changed": bounds.num_changed,
        "num_uncertain": int((~bounds.certain).sum()),
    }


def scores(
    options: argparse.Namespace, log_probs: Tensor, labels: Tensor, names: Any
) -> dict[str, Any]:
    """Test error with its standard error over images, other scores, and the confusions as a picture."""
    report = classification_report(log_probs, labels)
    predicted = log_probs.argmax(-1)
    figure = plotting.confusion_matrix(labels, predicted, names)
    plotting.save(figure, options.output / "confusion.png")
    rate = (predicted != labels).double().mean().item()
    error = {"value": 100.0 * rate, "std_error": 100.0 * (rate * (1 - rate) / len(labels)) ** 0.5}
    print(report)
    print(f"test error {error['value']:.2f} % +- {error['std_error']:.2f} (standard error)")
    return {"test_error": error, "scores": report.to_dict()}


def main(options: argparse.Namespace) -> dict[str, Any]:
    """Train and test; returns what the report holds."""
    images = Images(options.data, options.validation)
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    started = time.perf_counter()
    run = classify_by_class if options.per_class else classify_with_labels
    report = {"settings": settings, **run(options, images)}
    report["seconds"] = round(time.perf_counter() - started, 1)
    (options.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {options.output}")
    return report


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    kind = argparse.ArgumentParser(add_help=False)
    kind.add_argument("--per-class", action="store_true", help="a machine of each class")
    first, _ = kind.parse_known_args(words)
    description = __doc__.split("\n\n")[0]
    parser = argparse.ArgumentParser(description=description, parents=[kind])
    parser.add_argument("--data", default="mnist", choices=datasets.available())
    parser.add_argument("--hidden", type=int, default=200 if first.per_class else 1000)
    parser.add_argument("--hidden-family", default="bernoulli", help="such as ising")
    parser.add_argument(
        "--centered", action=argparse.BooleanOptionalAction, default=first.per_class
    )
    parser.add_argument("--weight-scale", type=float, default=0.01)
    parser.add_argument("--validation", type=int, default=10_000, help="last training images")
    parser.add_argument("--stop-after", type=int, default=1000, help="epochs without a better one")
    parser.add_argument(
        "--labels",
        type=int,
        help="images that keep their labels, beside those of --validation, which choose the epoch; "
        "all if not given",
    )
    parser.add_argument(
        "--shift", type=int, default=0, help="pixels by which images move at random"
    )
    parser.add_argument("--sample-steps", type=int, default=1000, help="sweeps of the pictures")
    parser.add_argument("--ais-chains", type=int, default=100)
    parser.add_argument("--ais-temperatures", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/classification_rbm"))
    parser.add_argument("--smoke", action="store_true", help="seconds, on the digits")
    add_training_options(parser, **(BY_CLASS if first.per_class else WITH_LABELS))
    options = parser.parse_args(words)
    if options.smoke:
        options.data, options.validation, options.batch_size = "digits", 200, 30
        options.num_epochs = 5 if options.per_class else 10
        options.hidden = 20 if options.per_class else 60
        options.sample_steps, options.ais_temperatures, options.averaging = 50, 100, 0.9
        options.learning_rate = 0.1 if options.per_class else 0.015
    return options


if __name__ == "__main__":
    main(parse())
