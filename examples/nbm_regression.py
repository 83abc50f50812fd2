# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Density regression: a neural Boltzmann machine, the paper's symmetric one, and two baselines.

y has one to three outputs, x is a number. Targets: skewed noise, two branches that are equally likely,
two that are not, and normal noise of a varying width. The law of every target is known, so that
each score can be set beside that of the truth. All models read x through the same trunk and are
trained by exact maximum likelihood, so that only the family of p(y | x) differs:

- ``nbm``: a neural Boltzmann machine with a hidden bias c(x);
- ``symmetric``: without it, as in Lang, Loukianov, Fisher (2023): p(mu + d | x) = p(mu - d | x) whatever
  the parameters, so that it cannot represent a skewed law;
- ``mdn``: a mixture density network (Bishop, 1994);
- ``gaussian``: one normal law with mean and width that depend on x (W = 0).

A single output is the machine's hardest case: p(y | x) is a mixture of normal laws of one width, and all
hidden units pull along the same axis. A mixture density network has a width for every component.

Prints a table of held-out scores and writes it as JSON, with a picture of every target.

    python examples/nbm_regression.py
    python examples/nbm_regression.py --targets skewed --outputs 2 --seeds 0 1 2 3 4
    python examples/nbm_regression.py --smoke
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from baselines.mdn import MixtureDensityNetwork
from regression_targets import LIMIT, TARGETS, Target, inputs
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.plotting.figures import COLOURS, new_figure, plain, save
from pyro_ebm.predictive import (
    GaussianMixture,
    coverage,
    crps_from_samples,
    marginal_mixture,
    pit_report,
)
from pyro_ebm.training import Trainer, TrainerConfig

MODELS = ("nbm", "symmetric", "mdn", "gaussian")
LABELS = {
    "truth": "true law",
    "nbm": "NBM, hidden bias",
    "symmetric": "NBM, symmetric (paper)",
    "mdn": "mixture density network",
    "gaussian": "Gaussian (W = 0)",
}
#: Smallest standard deviation of a model.
MIN_STD = 0.01


# --- models -------------------------------------------------------------------------------------


@dataclass
class Fitted:
    """What was trained, in the form in which it is scored."""

    log_prob: Callable[[Tensor, Tensor], Tensor]
    mixture: Callable[[Tensor], GaussianMixture]
    parameters: int
    seconds: float


def fit_network(x: Tensor, y: Tensor, components: int, seed: int, options: Any) -> Fitted:
    """A mixture density network with the optimiser, the epochs and the average of the machines."""
    torch.manual_seed(seed)
    model = MixtureDensityNetwork(1, y.shape[1], components, options.trunk, MIN_STD)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(options.averaging)
    )
    optimizer = torch.optim.Adam(model.parameters(), options.learning_rate)
    started = time.perf_counter()
    steps = options.epochs * math.ceil(len(x) / options.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(options.epochs):
        for rows in torch.randperm(len(x)).split(options.batch_size):
            loss = -model.log_prob(y[rows], x[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
    seconds = time.perf_counter() - started
    best = average.module
    return Fitted(lambda x, y: best.log_prob(y, x), best.marginals, _size(model), seconds)


def fit_machine(x: Tensor, y: Tensor, hidden_bias: bool, seed: int, options: Any) -> Fitted:
    """A neural Boltzmann machine, by the gradient of its exact log Z."""
    nbm = nn.NeuralBoltzmannMachine(
        1,
        y.shape[1],
        options.hidden,
        trunk_sizes=options.trunk,
        hidden_sizes=(),
        hidden_bias=hidden_bias,
        visible_options={"max_precision": MIN_STD**-2},
        seed=seed,
    )
    config = TrainerConfig(
        num_epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        learning_rate_schedule="cosine",
        optimizer="adam",
        averaging=options.averaging,
        negative_phase="exact",
        seed=seed,
        progress=False,
    )
    # Small weights are near a saddle, where all hidden units want the same: start beyond it.
    torch.manual_seed(seed)
    torch.nn.init.normal_(nbm.get_parameter("weight.linear.bias"))
    trainer = Trainer(nbm, config)
    started = time.perf_counter()
    nbm.init_from_data(y, x, num_steps=options.warmup_steps, seed=seed)
    trainer.fit(y, context=x)
    seconds = time.perf_counter() - started
    best = trainer.averaged

    @torch.no_grad()
    def log_prob(x: Tensor, y: Tensor) -> Tensor:
        machine = best.condition(x)
        return machine.normalize(exact_log_partition(machine)).log_prob(y)

    @torch.no_grad()
    def mixture(x: Tensor) -> GaussianMixture:
        return marginal_mixture(best.condition(x))

    return Fitted(log_prob, mixture, _size(nbm), seconds)


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def fit(name: str, x: Tensor, y: Tensor, seed: int, options: Any) -> Fitted:
    """Train one of the models."""
    if name in ("nbm", "symmetric"):
        return fit_machine(x, y, name == "nbm", seed, options)
    return fit_network(x, y, options.components if name == "mdn" else 1, seed, options)


# --- scores -------------------------------------------------------------------------------------


@torch.no_grad()
def scores(model: Fitted, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Held-out scores; those of single outputs are averaged over the outputs."""
    mixture = model.mixture(x)
    pit = mixture.cdf(y)
    reports = [pit_report(pit[:, k], num_bins=20) for k in range(y.shape[1])]
    inside = coverage(mixture, y, (0.5, 0.9))
    return {
        "log_likelihood": model.log_prob(x, y).mean().item(),
        "crps": mixture.crps(y).mean().item(),
        "ks": fmean(r.ks_statistic for r in reports),
        "ks_p_value": min(1.0, len(reports) * min(r.p_value for r in reports)),
        "coverage_50": inside.coverage[0].value,
        "coverage_90": inside.coverage[1].value,
        "pit_counts": [r.counts for r in reports],
        "seconds": model.seconds,
        "parameters": model.parameters,
    }


def true_scores(target: Target, x: Tensor, y: Tensor, generator: Generator) -> dict[str, Any]:
    """What the law itself scores: no model can expect better."""
    draws = torch.stack([target.sample(x, y.shape[1], generator) for _ in range(200)])
    return {
        "log_likelihood": target.log_prob(x, y).mean().item(),
        "crps": crps_from_samples(draws, y).mean().item(),
    }


NUMBERS = (
    ("log_likelihood", "log p(y|x)", 3),
    ("crps", "CRPS", 4),
    ("ks", "PIT KS", 3),
    ("coverage_50", "in 50 %", 3),
    ("coverage_90", "in 90 %", 3),
    ("seconds", "train s", 1),
)


def table(target: str, runs: dict[str, list[dict[str, Any]]]) -> str:
    """Means over the seeds, with the standard error of the mean where there are two or more."""
    lines = [["", *(label for _, label, _ in NUMBERS), "seeds uniform"]]
    for name, rows in runs.items():
        line = [LABELS[name]]
        for key, _, digits in NUMBERS:
            values = [row[key] for row in rows if key in row]
            cell = f"{fmean(values):.{digits}f}" if values else "-"
            if len(values) > 1:
                cell += f" +- {stdev(values) / math.sqrt(len(values)):.{digits}f}"
            line.append(cell)
        p_values = [row["ks_p_value"] for row in rows if "ks_p_value" in row]
        passed = sum(p > 0.05 for p in p_values)
        line.append(f"{passed} of {len(p_values)}" if p_values else "-")
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([f"\n{target}", *text])


def findings(target: str, runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """In words: the two machines side by side, and the price in time."""

    def mean(name: str, key: str) -> float:
        return fmean(row[key] for row in runs[name])

    def difference(other: str, key: str, digits: int) -> str:
        """Of the same seeds, with the standard error of its mean."""
        pairs = zip(runs[other], runs["nbm"], strict=True)
        values = [a[key] - b[key] for a, b in pairs]
        error = (
            f" +- {stdev(values) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
        )
        return f"{fmean(values):+.{digits}f}{error}"

    lines = []
    for other in runs if "nbm" in runs else ():
        if other not in ("truth", "nbm"):
            lines.append(
                f"{target}: {other} minus nbm: {difference(other, 'log_likelihood', 3)} nats, CRPS "
                f"{difference(other, 'crps', 4)} (nbm {mean('nbm', 'crps'):.4f}), KS "
                f"{difference(other, 'ks', 3)} (nbm {mean('nbm', 'ks'):.3f})"
            )
    if {"nbm", "mdn"} <= runs.keys():
        ratio = mean("nbm", "seconds") / mean("mdn", "seconds")
        lines.append(f"{target}: training takes {ratio:.2f} times as long as the mdn's")
    return lines


# --- pictures -----------------------------------------------------------------------------------


@torch.no_grad()
def picture(
    target: str, models: dict[str, Fitted], runs: dict[str, list[dict[str, Any]]], path: Path
) -> None:
    """Densities of the first output and histograms of its transforms, for the first seed."""
    x = torch.linspace(-LIMIT, LIMIT, 200).unsqueeze(-1)
    y = torch.linspace(*_range(target), 240)
    law = TARGETS[target]
    columns = y.reshape(-1, 1).expand(-1, len(x))
    truth = torch.stack([law.log_prob(x, row.unsqueeze(-1)) for row in columns]).exp()
    densities = {"truth": truth}
    for name, model in models.items():
        densities[name] = model.mixture(x)[:, 0].log_prob(columns).exp()
    figure = new_figure(2.6 * len(densities), 4.6)
    axes = figure.subplots(2, len(densities), height_ratios=(2, 1), squeeze=False, sharey="row")
    # One scale for all, that of the truth; a power shows tails beside peaks.
    top = float(truth.flatten().quantile(0.995))
    data = law.sample(
        grid := inputs(250, Generator().manual_seed(9)), 1, Generator().manual_seed(8)
    )
    for column, (name, density) in enumerate(densities.items()):
        above, below = axes[0, column], axes[1, column]
        above.imshow(
            density.sqrt(),
            origin="lower",
            aspect="auto",
            extent=(-LIMIT, LIMIT, float(y[0]), float(y[-1])),
            cmap="Blues",
            vmin=0.0,
            vmax=math.sqrt(top),
        )
        above.set_title(LABELS[name], fontsize=10)
        above.set_xlabel("x", fontsize=9)
        plain(above, below)
        if name == "truth":
            above.scatter(grid[:, 0], data[:, 0], s=2.0, color=COLOURS[1], linewidths=0)
            below.axis("off")
            below.text(
                0.0,
                0.5,
                "Right: PIT of held-out rows\n(flat where calibrated;\nline: uniform)",
                fontsize=8,
                color="0.35",
                transform=below.transAxes,
                va="center",
            )
            continue
        counts = torch.tensor(runs[name][0]["pit_counts"][0]).float()
        share = counts * len(counts) / counts.sum()
        width = 1.0 / len(counts)
        below.bar((torch.arange(len(counts)) + 0.5) * width, share, width, color=COLOURS[0])
        below.axhline(1.0, color=COLOURS[1], linewidth=1)
        below.set_xlim(0.0, 1.0)
        below.set_xlabel("probability integral transform", fontsize=9)
        below.tick_params(labelleft=True)
    axes[0, 0].set_ylabel("y", fontsize=9)
    save(figure, path)


def _range(target: str) -> tuple[float, float]:
    """Values of the first output that matter."""
    generator = Generator().manual_seed(0)
    y = TARGETS[target].sample(inputs(4000, generator), 1, generator)
    low, high = y.min().item(), y.quantile(0.999).item()
    return low - 0.1 * (high - low), high + 0.05 * (high - low)


# --- the run ------------------------------------------------------------------------------------


def run(target: str, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """All models and seeds on one target."""
    law, first = TARGETS[target], {}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("truth", *options.models)}
    for seed in options.seeds:
        generator = Generator().manual_seed(1000 + seed)
        x, x_test = inputs(options.rows, generator), inputs(options.test_rows, generator)
        y = law.sample(x, options.outputs, generator)
        y_test = law.sample(x_test, options.outputs, generator)
        runs["truth"].append(true_scores(law, x_test, y_test, generator))
        for name in options.models:
            model = fit(name, x, y, seed, options)
            first.setdefault(name, model)
            runs[name].append(scores(model, x_test, y_test))
    print(table(target, runs), flush=True)
    picture(target, first, runs, options.output / f"{target}.png")
    return runs


def main(options: argparse.Namespace) -> None:
    """All targets."""
    results = {target: run(target, options) for target in options.targets}
    print()
    for target, runs in results.items():
        print("\n".join(findings(target, runs)))
    settings = {k: v for k, v in vars(options).items() if k != "output"}
    content = {"settings": settings, "results": results}
    (options.output / "regression.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nwrote {options.output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--outputs", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument("--rows", type=int, default=4000, help="for training")
    parser.add_argument("--test-rows", type=int, default=2000)
    parser.add_argument("--trunk", type=int, nargs="+", default=[64, 64], help="layer sizes")
    parser.add_argument("--hidden", type=int, default=6, help="hidden spins of the machines")
    parser.add_argument("--components", type=int, default=8, help="of the mixture density network")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--warmup-steps", type=int, default=300, help="of the machines with W = 0")
    parser.add_argument("--averaging", type=float, default=0.99, help="of the parameters, by decay")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/nbm_regression"))
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.targets, arguments.seeds, arguments.hidden = ["skewed"], [0], 4
        arguments.rows, arguments.test_rows, arguments.epochs = 600, 500, 20
    main(arguments)
