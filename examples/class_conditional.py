# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Images given their class: what ``nbm_mnist.py`` and ``nbm_fashion_mnist.py`` have in common."""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from factor_analysis_start import start_at_factor_analysis
from torch import Generator, Tensor
from torch.nn.functional import one_hot

import pyro_ebm
from pyro_ebm import datasets, nn, plotting
from pyro_ebm.distributions import RBM, CollapsedSweep, GibbsSweep
from pyro_ebm.infer import BayesClassifier, conditional_likelihood, conditional_log_partition
from pyro_ebm.predictive import (
    classification_report,
    coupling_spectrum,
    rows_by_class,
    sample_report,
)
from pyro_ebm.training import Trainer, TrainerConfig, paper_config

FAMILIES = ("ising", "bernoulli", "gaussian", "low-rank-gaussian")
#: Rows of the training set that are kept for choices, as in the paper's code: the last of them.
NUM_VALIDATION = 5000
#: Standard deviation of the noise on Gaussian images in [-1, 1].
NOISE = 1e-3


@dataclass(frozen=True)
class Split:
    """Images as states of the visible layer (rates before they are binarised, for training)."""

    rows: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Split":
        return Split(self.rows.to(device), self.labels.to(device))

    @property
    def context(self) -> Tensor:
        return one_hot(self.labels, 10).to(self.rows.dtype)


class Images:
    """A data set as the visible family needs it; ``margin`` keeps rates of bits from 0 and 1."""

    def __init__(self, name: str, visible: str, margin: float = 0.0) -> None:
        self.data = datasets.load(name)
        self.gaussian = "gaussian" in visible
        self.spins = visible == "ising"
        grey, labels = self.data.train(), self.data.labels("train")
        if self.gaussian:
            grey = 2.0 * grey - 1.0
        else:
            grey = grey.clamp(margin, 1.0 - margin)
        cut = len(grey) - min(NUM_VALIDATION, len(grey) // 10)
        self.train = Split(grey[:cut], labels[:cut])
        self.validation = Split(grey[cut:], labels[cut:])

    def states(self, rows: Tensor, seed: int) -> Tensor:
        """Rows of training data as states, once."""
        generator = Generator().manual_seed(seed)
        if self.gaussian:
            return rows + NOISE * torch.randn(rows.shape, generator=generator)
        bits = torch.bernoulli(rows, generator=generator)
        return 2.0 * bits - 1.0 if self.spins else bits

    def test(self) -> Split:
        """The test set: bits are drawn once (seed 0), so that likelihoods can be compared."""
        labels = self.data.labels("test")
        if self.gaussian:
            return Split(self.states(2.0 * self.data.test() - 1.0, 0), labels)
        bits = self.data.binarized("test", seed=0)
        return Split(2.0 * bits - 1.0 if self.spins else bits, labels)


# --- training -------------------------------------------------------------------------------------


def make(
    arguments: argparse.Namespace, images: Images, *, untrained: bool = False
) -> nn.NeuralBoltzmannMachine:
    """The model at the start of training, or without that start too."""
    options: dict[str, Any] = {"seed": arguments.seed, "scale_weight": arguments.scale_weight}
    num_pixels = images.data.num_pixels
    if arguments.preset == "paper":
        options["hidden_bias"] = arguments.hidden_bias
        if not arguments.bounded_loc:
            options["visible_options"] = {
                "bound": "hard",
                "form": "quadratic",
                "bounded_loc": False,
            }
        return nn.paper_nbm(10, num_pixels, arguments.hidden, arguments.visible, **options)
    if arguments.visible == "low-rank-gaussian":
        options["visible_options"] = {"rank": arguments.rank}
    model = nn.NeuralBoltzmannMachine(
        10, num_pixels, arguments.hidden, arguments.visible, hidden_sizes=(), **options
    )
    if untrained:
        return model
    rows = images.states(images.train.rows, arguments.seed)
    if arguments.visible == "low-rank-gaussian":
        return start_at_factor_analysis(model, rows, images.train.labels)
    return model.init_from_data(rows, images.train.context, seed=arguments.seed)


def configure(arguments: argparse.Namespace) -> TrainerConfig:
    """The options of training."""
    common: dict[str, Any] = {
        "num_epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
        "num_steps": arguments.steps,
        "checkpoint": Path(arguments.output) / "checkpoint.safetensors",
        "seed": arguments.seed,
    }
    if arguments.preset == "paper":
        decay = {"weight": arguments.weight_decay, "loc": 0.5, "log_precision": 0.5}
        groups = {name: {"weight_decay": value} for name, value in decay.items()}
        return paper_config(arguments.visible, groups=groups, **common)
    gaussian = "gaussian" in arguments.visible
    return TrainerConfig(
        persistent=True,
        num_chains=arguments.chains,
        optimizer="adamw",
        learning_rate=arguments.learning_rate,
        learning_rate_schedule="cosine",
        groups={
            "weight": {
                "learning_rate": arguments.weight_rate,
                "weight_decay": arguments.weight_decay,
            }
        },
        averaging=arguments.averaging,
        binarize=not gaussian,
        noise_std=NOISE if gaussian else 0.0,
        **common,
    )


def train(arguments: argparse.Namespace, images: Images) -> tuple[nn.NeuralBoltzmannMachine, float]:
    """The trained model and the seconds that its training took; goes on where it was interrupted."""
    config = configure(arguments)
    checkpoint = Path(str(config.checkpoint))
    if checkpoint.exists():
        trainer = Trainer.from_checkpoint(
            checkpoint, device=arguments.device, num_epochs=arguments.epochs
        )
        model = make(arguments, images, untrained=True)
        refuse_differences(trainer.config.to_dict(), config.to_dict(), arguments.output)
        refuse_differences(trainer.module.config(), model.config(), arguments.output)
    else:
        trainer = Trainer(make(arguments, images).to(arguments.device), config)
    split = images.train
    history = trainer.fit(split.rows, context=split.context)
    pyro_ebm.save(trainer.averaged, checkpoint.with_name("model.safetensors"))
    return trainer.averaged, sum(record["seconds"] for record in history)


def refuse_differences(found: dict[str, Any], wanted: dict[str, Any], output: str) -> None:
    """A run goes on with the options that it was started with."""
    # Where the file lies is no option of the run.
    names = [name for name in wanted if name != "checkpoint"]
    changed = [name for name in names if found[name] != wanted[name]]
    for name in changed:
        print(f"{name}: {found[name]!r} in {output}, now {wanted[name]!r}")
    if changed:
        raise SystemExit(f"{output} holds a run with other options; give another --output")


# --- evaluation -----------------------------------------------------------------------------------


def evaluate(
    arguments: argparse.Namespace, model: nn.NeuralBoltzmannMachine, images: Images
) -> dict[str, Any]:
    """Likelihoods from both sides of log Z, classification by Bayes' rule, quality of samples."""
    contexts, test = torch.eye(10, device=model.device), images.test().to(model.device)
    means = torch.stack([images.train.rows[images.train.labels == k].mean(0) for k in range(10)])
    means = means.to(model.device)
    options: dict[str, Any] = {}
    if not images.gaussian:
        options["base"] = 2.0 * means - 1.0 if images.spins else means
    bracket = conditional_log_partition(
        model,
        contexts,
        "bracket",
        start=arguments.reverse_start,
        num_chains=arguments.ais_chains,
        num_temperatures=arguments.ais_temperatures,
        seed=arguments.seed,
        **options,
    )
    likelihood = conditional_likelihood(model, test.rows, test.context, bracket, contexts=contexts)
    prior = torch.bincount(images.train.labels, minlength=10).double()
    classifier = BayesClassifier(model, contexts, bracket, (prior / prior.sum()).log())
    scores = classification_report(classifier.log_joint(test.rows).cpu(), test.labels.cpu())
    evidence = classifier.log_evidence(test.rows)
    with torch.no_grad():
        machine = model.condition(contexts)
    spectrum = coupling_spectrum(machine)
    print(likelihood)
    print(
        f"log p(y) {evidence.mean():.2f}; lambda_max of K by class {spectrum.lambda_max.tolist()}"
    )
    print(scores)
    return {
        "likelihood": likelihood.to_dict(),
        "log_evidence": evidence.mean().item(),
        "classification": scores.to_dict(),
        "lambda_max": spectrum.lambda_max.tolist(),
        "log_partition": bracket.to_dict(),
    }


@torch.no_grad()
def draw(machine: RBM, num_chains: int, num_steps: int, seed: int) -> Tensor:
    """Hidden states of chains from the hidden layer without its couplings, where the paper starts too.

    :returns: shape ``(num_chains, 10, H)``.
    """
    generator = Generator(device=machine.weight.device).manual_seed(seed)
    theta = machine.hidden.natural_bias.expand(num_chains, 10, machine.hidden.size)
    h = machine.hidden.natural_sample(theta, generator)
    if machine.visible.is_gaussian:
        return CollapsedSweep(machine, generator).run(h, num_steps)
    sweep = GibbsSweep(machine, generator)
    return sweep.sample_hidden(sweep.run(sweep.sample_visible(h), num_steps - 1))


def judge_samples(
    arguments: argparse.Namespace, model: nn.NeuralBoltzmannMachine, images: Images
) -> dict[str, Any]:
    """Compare samples with real images, class by class."""
    with torch.no_grad():
        machine = model.condition(torch.eye(10, device=model.device))
        h = draw(machine, arguments.samples, arguments.sample_steps, arguments.seed)
        samples = machine.visible_given(h).sample().cpu()
    labels = torch.arange(10).expand(arguments.samples, 10)
    real, test = images.train, images.test()
    rows = images.states(real.rows, 0)
    report = sample_report(
        rows_by_class(samples.flatten(0, 1), labels.flatten()),
        rows_by_class(rows, real.labels),
        rows_by_class(test.rows, test.labels),
        classifier=train_classifier(rows, real.labels, arguments.seed, arguments.smoke),
        max_rows=500,
        generator=Generator().manual_seed(arguments.seed),
    )
    print(report)
    return report.to_dict()


def train_classifier(rows: Tensor, labels: Tensor, seed: int, smoke: bool) -> torch.nn.Module:
    """A convolutional network that has nothing to do with the model, to recognise samples."""
    torch.manual_seed(seed)
    side = int(rows.shape[1] ** 0.5)
    network = torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, side, side)),
        torch.nn.Conv2d(1, 16, 5, stride=2, padding=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * (-(-side // 4)) ** 2, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(1 if smoke else 4):
        for index in torch.randperm(len(rows)).split(100):
            loss = torch.nn.functional.cross_entropy(network(rows[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


# --- pictures -------------------------------------------------------------------------------------


def draw_pictures(
    arguments: argparse.Namespace, model: nn.NeuralBoltzmannMachine, images: Images
) -> None:
    """The paper's figures, and the parts of them that do not depend on arbitrary signs."""
    with torch.no_grad():
        machine = model.condition(torch.eye(10, device=model.device))
    names, shape = images.data.label_names, images.data.image_shape
    limits = (0.0, 1.0) if arguments.visible == "bernoulli" else (-1.0, 1.0)
    h = draw(machine, 200, arguments.sample_steps, arguments.seed)
    mean = machine.visible_given(h).mean
    steps = f"{arguments.sample_steps} sweeps from the hidden layer without its couplings"
    figure = plotting.class_samples(
        mean[:6],
        shape,
        names,
        limits=limits,
        caption=f"means of the pixels given the last hidden states; {steps}",
    )
    plotting.save(figure, Path(arguments.output) / "samples.png")
    rows = {"sample": mean[0], **parameter_images(machine, h)}
    figure = plotting.class_parameters(
        rows,
        shape,
        names,
        signed=("mean weight", "main direction"),
        caption="'mean weight' depends on arbitrary signs of the hidden units; the rows below do not",
    )
    plotting.save(figure, Path(arguments.output) / "parameters.png")


def parameter_images(machine: RBM, h: Tensor) -> dict[str, Tensor]:
    """What each class has learnt, as images.

    The last two are of the field W h (of the mean W h / P where units are Gaussian), as h varies: its
    standard deviation, and the direction in which it varies most. Hidden units may change their signs
    together with their weights, which alters neither.
    """
    moved = machine.weight
    rows = {"mean without W": machine.visible.mean()}
    if machine.visible.is_gaussian:
        variance = 1.0 / machine.visible.parameters["precision"]
        rows["log10 1/P"] = variance.log10()
        moved = machine.weight * variance.unsqueeze(-1)
    rows["mean weight"] = machine.weight.mean(-1)
    centred = (h - h.mean(0)).movedim(0, -1) / (len(h) - 1) ** 0.5
    left, strength, _ = torch.linalg.svd(moved @ centred, full_matrices=False)
    rows["std by hidden"] = (left * strength.unsqueeze(-2)).square().sum(-1).sqrt()
    first = left[..., 0] * strength[..., :1]
    # The sign of the direction is arbitrary: its largest entry is made positive.
    sign = first.gather(-1, first.abs().argmax(-1, keepdim=True)).sign()
    rows["main direction"] = first * sign
    return rows


# --- the program ----------------------------------------------------------------------------------


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train (or go on), evaluate, draw pictures; returns the report."""
    # The paper's code draws bits of rates that are at least 1e-3 away from 0 and 1.
    margin = 1e-3 if arguments.preset == "paper" else 0.0
    images = Images(arguments.data, arguments.visible, margin)
    model, seconds = train(arguments, images)
    model.requires_grad_(False)
    started = time.perf_counter()
    report = {"options": vars(arguments), "training_seconds": seconds}
    report |= evaluate(arguments, model, images)
    if arguments.samples:
        report["samples"] = judge_samples(arguments, model, images)
    report["evaluation_seconds"] = time.perf_counter() - started
    draw_pictures(arguments, model, images)
    path = Path(arguments.output) / "report.json"
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"trained in {seconds:.0f} s; report and pictures in {arguments.output}")
    return report


def parse(description: str, data: str, argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, with defaults that depend on the preset and the visible family."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", default=data, choices=datasets.available())
    parser.add_argument("--visible", default="ising", choices=FAMILIES)
    parser.add_argument("--preset", default="best", choices=("best", "paper"))
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--rank", type=int, default=64, help="factors of low-rank-gaussian units")
    parser.add_argument("--epochs", type=int, help="50 for the paper's, else 40")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, help="Gibbs sweeps per update")
    parser.add_argument("--chains", type=int, default=30, help="persistent chains a class")
    parser.add_argument("--learning-rate", type=float, help="of all networks but W's (best)")
    parser.add_argument("--weight-rate", type=float, help="learning rate of W's network (best)")
    parser.add_argument("--weight-decay", type=float, help="decoupled, of W's network")
    parser.add_argument("--averaging", type=float, default=0.999, help="decay of the average")
    parser.add_argument(
        "--hidden-bias", action="store_true", help="give the paper's model a hidden bias"
    )
    parser.add_argument("--scale-weight", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--bounded-loc",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a tanh for the paper's spins",
    )
    parser.add_argument("--ais-chains", type=int, default=100)
    parser.add_argument("--ais-temperatures", type=int, default=10_000)
    parser.add_argument(
        "--reverse-start",
        choices=("tempering", "forward"),
        help="where reverse AIS starts: tempering is dear without a Gaussian layer",
    )
    parser.add_argument("--samples", type=int, default=500, help="samples a class to judge, or 0")
    parser.add_argument("--sample-steps", type=int, help="sweeps before a sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--output", help="a folder for the model, the report and the pictures")
    parser.add_argument("--smoke", action="store_true", help="seconds, on the digits")
    options = parser.parse_args(argv)
    gaussian = "gaussian" in options.visible
    if options.preset == "paper":
        defaults = _paper_defaults(gaussian)
    else:
        defaults = _best_defaults(gaussian, options.hidden)
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.smoke:
        options.data, options.hidden, options.epochs, options.rank = "digits", 8, 2, 4
        options.ais_chains, options.ais_temperatures, options.reverse_start = 20, 200, "forward"
        options.samples, options.sample_steps = 20, 20
    if options.output is None:
        kind = "smoke" if options.smoke else "nbm"
        model = f"{options.visible}-{options.preset}-{options.hidden}"
        options.output = f"runs/{kind}-{options.data}-{model}-seed{options.seed}"
    return options


def _paper_defaults(gaussian: bool) -> dict[str, Any]:
    return {
        "epochs": 50,
        "steps": 32,
        "weight_decay": 1.0,
        "sample_steps": 32,
        "reverse_start": "tempering" if gaussian else "forward",
    }


def _best_defaults(gaussian: bool, hidden: int) -> dict[str, Any]:
    # With more hidden units each may move less for the same change of the fields.
    rate = 2e-3 if gaussian else 6e-3 * min(1.0, 64 / hidden)
    return {
        "reverse_start": "tempering" if gaussian else "forward",
        "epochs": 40,
        "steps": 10 if gaussian else 2,
        "learning_rate": rate,
        "weight_rate": 5.0 * rate if gaussian else 10.0 * rate,
        "weight_decay": 1e-3,
        "sample_steps": 1000,
    }
