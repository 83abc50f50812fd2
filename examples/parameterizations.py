# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Likelihood against CPU time: plain, centred, standardised, diagonal and natural gradients of one RBM.

Every variant is given the same CPU seconds. Its rate is the one of a small grid that is best, after
short runs, on training images that are left out; then it is trained on the others, and the test images'
log-likelihood is taken at times that double. With at most 20 hidden units log Z is exact, otherwise
it comes from both sides (AIS and reverse AIS). Evaluation is not counted.

    PYRO_EBM_DATA=/path/to/data OMP_NUM_THREADS=1 python examples/parameterizations.py --output runs/p
    python examples/parameterizations.py --data digits --hidden 16 --seconds 30 --trial-seconds 5
    python examples/parameterizations.py --smoke
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training_options import add_training_options, training_config

from pyro_ebm import datasets, nn, plotting
from pyro_ebm.distributions import RBM
from pyro_ebm.infer import bracket_log_partition, exact_log_partition, log_likelihood
from pyro_ebm.training import Trainer

#: With at most this many hidden units log Z is summed exactly.
MAX_EXACT_HIDDEN = 20
SMOKE = {
    "data": "digits",
    "hidden": 10,
    "seconds": 1.0,
    "trial_seconds": 0.2,
    "points": 3,
    "validation": 200,
    "num_chains": 50,
    "averaging": 0.9,
}


@dataclass(frozen=True)
class Variant:
    """A parameterisation: whether it has offsets, what the gradient is divided by, and what it tries."""

    centered: bool
    preconditioner: str
    rates: tuple[float, ...]
    damping: float = 0.01


VARIANTS = {
    "plain": Variant(False, "none", (0.03, 0.1, 0.3, 1.0)),
    "centred": Variant(True, "none", (0.1, 0.3, 1.0, 3.0)),
    "standardised": Variant(True, "standardize", (0.01, 0.03, 0.1, 0.3), 0.05),
    "diagonal": Variant(True, "diagonal", (0.01, 0.03, 0.1, 0.3), 0.01),
    "natural": Variant(True, "natural", (0.03, 0.1, 0.3, 1.0), 0.1),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="mnist", choices=datasets.available())
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seconds", type=float, default=1800.0, help="CPU time of every run")
    parser.add_argument("--trial-seconds", type=float, default=120.0, help="and of every trial")
    parser.add_argument("--points", type=int, default=7, help="evaluations, at times that double")
    parser.add_argument("--validation", type=int, default=5000, help="last training images")
    for name, variant in VARIANTS.items():
        rates = " ".join(map(str, variant.rates))
        parser.add_argument(
            f"--{name}-rates", type=float, nargs="+", default=list(variant.rates), help=rates
        )
        parser.add_argument(f"--{name}-damping", type=float, default=variant.damping)
    parser.add_argument("--ais-chains", type=int, default=100)
    parser.add_argument("--ais-temperatures", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a folder for the report and the picture")
    parser.add_argument("--smoke", action="store_true", help="seconds, on the digits")
    add_training_options(
        parser, persistent=True, binarize=True, averaging=0.999, num_chains=100, progress=False
    )
    options = parser.parse_args(arguments)
    if options.smoke:
        vars(options).update(SMOKE)
    return options


def make_trainer(name: str, rate: float, train: Tensor, options: argparse.Namespace) -> Trainer:
    """A run of a variant that has not begun."""
    variant = VARIANTS[name]
    module = nn.RBM(
        train.shape[1], options.hidden, centered=variant.centered, seed=options.seed
    ).init_from_data(train)
    config = training_config(
        options,
        seed=options.seed,
        learning_rate=rate,
        preconditioner=variant.preconditioner,
        damping=getattr(options, f"{name}_damping"),
    )
    return Trainer(module, config)


def train_for(trainer: Trainer, train: Tensor, seconds: float) -> float:
    """Passes over the rows until the CPU time is over; what was used."""
    used = 0.0
    while used < seconds:
        start = time.process_time()
        trainer.partial_fit(train)
        used += time.process_time() - start
    return used


def evaluate(
    machine: RBM, rows: Tensor, base: Tensor, options: argparse.Namespace
) -> dict[str, float]:
    """The mean log-likelihood of rows, and its ends where log Z is estimated from both sides."""
    if options.hidden <= MAX_EXACT_HIDDEN:
        log_z = exact_log_partition(machine)
        value = log_likelihood(machine, rows, log_z).mean().item()
        return {"log_likelihood": value, "low": value, "high": value}
    bracket = bracket_log_partition(
        machine,
        num_chains=options.ais_chains,
        num_temperatures=options.ais_temperatures,
        schedule="adaptive",
        base=base,
        seed=options.seed,
        progress=False,
    )
    high, low = (
        log_likelihood(machine, rows, side).mean().item()
        for side in (bracket.forward, bracket.reverse)
    )
    return {"log_likelihood": 0.5 * (low + high), "low": low, "high": high}


def best_rate(
    name: str, train: Tensor, held_out: Tensor, options: argparse.Namespace
) -> tuple[float, dict[str, float]]:
    """The rate of the grid with the best held-out likelihood after a short run."""
    found = {}
    for rate in getattr(options, f"{name}_rates"):
        trainer = make_trainer(name, rate, train, options)
        try:
            train_for(trainer, train, options.trial_seconds)
            with torch.no_grad():
                result = evaluate(trainer.averaged(), held_out, train.mean(0), options)
        except RuntimeError as error:  # a rate at which the run diverges is not the best
            print(f"  {name}, rate {rate}: {error}")
            continue
        found[rate] = result["log_likelihood"]
        print(f"  {name}, rate {rate}: held-out log-likelihood {found[rate]:.3f}")
    if not found:
        raise SystemExit(f"no rate of --{name}-rates can be trained with")
    best = max(found, key=found.__getitem__)
    if best in (min(found), max(found)):
        print(f"  {name}: {best} is at the end of --{name}-rates, others may be better")
    return best, {str(rate): value for rate, value in found.items()}


def run_variant(
    name: str, train: Tensor, held_out: Tensor, test: Tensor, options: argparse.Namespace
) -> dict[str, Any]:
    """The best rate of a variant, and its test log-likelihood against CPU time."""
    rate, trials = best_rate(name, train, held_out, options)
    trainer = make_trainer(name, rate, train, options)
    used, history = 0.0, []
    for point in range(options.points):
        due = options.seconds / 2 ** (options.points - 1 - point)
        spent = train_for(trainer, train, due - used)
        if not spent:
            continue  # a pass has taken longer than that
        used += spent
        with torch.no_grad():
            result = evaluate(trainer.averaged(), test, train.mean(0), options)
        history.append(
            {
                "epoch": trainer.epoch,
                "seconds": spent,
                "cpu_seconds": used,
                "log_likelihood_test": result["log_likelihood"],
                "low": result["low"],
                "high": result["high"],
            }
        )
        print(f"{name}: {used:.1f} s, {trainer.epoch} epochs, {result['log_likelihood']:.3f}")
    config = trainer.config.to_dict()
    return {"rate": rate, "trials": trials, "history": history, "training": config}


def main(options: argparse.Namespace) -> dict[str, Any]:
    """Run all variants, and write what is found."""
    data = datasets.load(options.data)
    grey = data.train()
    train, held_out = grey[: -options.validation], grey[-options.validation :]
    held_out = torch.bernoulli(held_out, generator=torch.Generator().manual_seed(0))
    test = data.binarized("test", seed=0)
    report = {name: run_variant(name, train, held_out, test, options) for name in options.variants}
    for name, result in report.items():
        last = result["history"][-1]
        print(
            f"{name}: test log-likelihood {last['log_likelihood_test']:.3f} "
            f"({last['low']:.3f} to {last['high']:.3f}) after {last['cpu_seconds']:.0f} CPU s, "
            f"rate {result['rate']}"
        )
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "parameterizations.json").write_text(json.dumps(report, indent=1))
        draw(report, options)
    return report


def draw(report: dict[str, Any], options: argparse.Namespace) -> None:
    """The curves of all variants over one another."""
    figure = plotting.learning_curves(
        {name: result["history"] for name, result in report.items()},
        ["log_likelihood_test"],
        x="seconds",
        title=f"{options.hidden} hidden units, {options.data}: likelihood against CPU time",
    )
    axes = figure.axes[0]
    unit = axes.get_xlabel()
    axes.set_xscale("log")
    # Times double from one evaluation to the next, and so do the ticks.
    ticks = sorted({round(float(x), 3) for x in axes.lines[0].get_xdata()})
    axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(f"CPU {unit}", fontsize=9)
    plotting.save(figure, options.output / "parameterizations.png")


if __name__ == "__main__":
    main(parse())
