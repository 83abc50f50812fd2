# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""All methods for log Z and the likelihood on one machine: which of them to believe?

On a published RBM of MNIST (CD25(500) of Salakhutdinov & Murray, 2008, as an .npz file of weight,
visible_bias, hidden_bias, train_mean and test_bits), or on a small one of the digits that is trained here
and has an exact log Z. Prints a table, writes it as JSON, Markdown, LaTeX and a picture.

    python examples/log_partition_methods.py --model cd25_500.npz --budget 10000000
    python examples/log_partition_methods.py            # the digits, half a minute
    python examples/log_partition_methods.py --smoke
"""

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_ebm import datasets, nn
from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import (
    LogPartitionWarning,
    bidirectional_log_partition,
    compare_log_partition,
    estimate_log_partition,
    exact_log_partition,
    log_likelihood,
    raise_log_likelihood,
)
from pyro_ebm.infer.paths import SCHEDULES
from pyro_ebm.training import Trainer, TrainerConfig

METHODS = ["ais", "reverse-ais", "bidirectional", "bar", "mbar", "ti", "moment-ais", "raise"]


@dataclass
class Problem:
    """A machine, what it was trained on, and earlier states of it if there are any."""

    machine: RBM
    train_mean: Tensor
    test: Tensor
    checkpoints: list[RBM]


def load_published(path: Path) -> Problem:
    """The machine of an .npz file; it has no checkpoints."""
    with np.load(path) as file:
        weight, visible, hidden, mean = (
            torch.tensor(file[name], dtype=torch.float32)
            for name in ("weight", "visible_bias", "hidden_bias", "train_mean")
        )
        bits = np.unpackbits(file["test_bits"], axis=1)[:, : len(visible)]
    return Problem(BernoulliRBM(weight, visible, hidden), mean, torch.tensor(bits).float(), [])


def train_digits(hidden: int, epochs: int, seed: int) -> Problem:
    """A machine of the digits, with a checkpoint after every doubling of the epochs."""
    data = datasets.load("digits")
    train, test = data.binarized("train", seed=0), data.binarized("test", seed=0)
    rbm = nn.RBM(train.shape[1], hidden, seed=seed).init_from_data(train)
    checkpoints, done, length = [], 0, 1
    while done < epochs:
        length = min(length, epochs - done)
        config = TrainerConfig(
            num_epochs=length, persistent=True, learning_rate=0.1, seed=seed + done, progress=False
        )
        Trainer(rbm, config).fit(train)
        done, length = done + length, 2 * length
        with torch.no_grad():
            checkpoints.append(rbm().to(dtype=torch.float32, copy=True))
    return Problem(checkpoints[-1], train.mean(0), test, checkpoints[:-1])


def trap(problem: Problem, seed: int) -> None:
    """Too few temperatures: a small error bar around a wrong value. The report must say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogPartitionWarning)
        estimate = estimate_log_partition(
            problem.machine, num_temperatures=100, base=problem.train_mean, seed=seed
        )
    print(f"\nthe trap, 100 temperatures: {estimate}")
    print(f"flags: {'; '.join(estimate.flags) or 'none'}")


def bracket(problem: Problem, chains: int, temperatures: int, sweeps: int, seed: int) -> None:
    """Both sides of log Z, the reverse chains started from tempering."""
    result = bidirectional_log_partition(
        problem.machine,
        num_chains=chains,
        num_temperatures=temperatures,
        schedule="adaptive",
        base=problem.train_mean,
        tempering_sweeps=sweeps,
        seed=seed,
        progress=True,
    )
    low, high = result.settings["bracket"]
    print(f"\nboth sides: {result}\nbracket [{low:.3f}, {high:.3f}], {high - low:.3f} nats wide")
    for side in ("forward", "reverse"):
        print(f"  {side}: {result.settings[side]}")
    print(f"  start: {result.settings['start']}; {result.settings['seconds']:.0f} s")
    print(f"flags: {'; '.join(result.flags) or 'none'}")
    for end, log_z in (("low", low), ("high", high)):
        rows = log_likelihood(problem.machine, problem.test, log_z)
        print(f"mean test log-likelihood with the {end} end of log Z: {rows.mean():.3f}")


def main(options: argparse.Namespace) -> None:
    """Run all of it."""
    if options.model:
        problem = load_published(options.model)
    else:
        problem = train_digits(options.hidden, options.epochs, options.seed)
    methods = [*METHODS, "trajectory-ais"] if problem.checkpoints else METHODS
    trap(problem, options.seed)
    comparison = compare_log_partition(
        problem.machine,
        methods,
        budget=options.budget,
        base=problem.train_mean,
        schedule="adaptive",
        checkpoints=problem.checkpoints,
        data=problem.test,
        seed=options.seed,
        progress=True,
    )
    print(f"\n{comparison}\n\n{comparison.to_markdown()}")
    if not options.model:
        print(f"\nexact log Z: {exact_log_partition(problem.machine):.3f}")
    options.output.mkdir(parents=True, exist_ok=True)
    comparison.save_json(options.output / "comparison.json")
    (options.output / "comparison.tex").write_text(comparison.to_latex() + "\n")
    (options.output / "comparison.md").write_text(comparison.to_markdown() + "\n")
    picture(comparison, options.output / "comparison.png")
    if options.bracket_chains:
        bracket(
            problem,
            options.bracket_chains,
            options.bracket_temperatures,
            options.bracket_sweeps,
            options.seed,
        )
    if options.raise_rows:
        likelihood = raise_log_likelihood(
            problem.machine,
            problem.test,
            num_rows=options.raise_rows,
            num_chains=options.raise_chains,
            num_temperatures=options.raise_temperatures,
            schedule=options.raise_schedule,
            base=problem.train_mean,
            seed=options.seed,
            progress=True,
        )
        print(f"\nRAISE: {likelihood}")
    print(f"\nwrote {options.output}")


def picture(comparison: object, path: Path) -> None:
    """Intervals by method, if matplotlib is there."""
    import matplotlib

    matplotlib.use("Agg")
    from pyro_ebm import plotting

    figure = plotting.log_partition_comparison(comparison)
    getattr(figure, "figure", figure).savefig(path, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="an .npz file; the digits if absent")
    parser.add_argument("--hidden", type=int, default=16, help="hidden units for the digits")
    parser.add_argument("--epochs", type=int, default=63)
    parser.add_argument("--budget", type=int, default=1_000_000, help="sweeps of one chain")
    parser.add_argument("--bracket-chains", type=int, default=100, help="0 for no bracket")
    parser.add_argument("--bracket-temperatures", type=int, default=1000)
    parser.add_argument("--bracket-sweeps", type=int, default=1000, help="of tempering")
    parser.add_argument("--raise-rows", type=int, default=50, help="0 for no RAISE")
    parser.add_argument("--raise-chains", type=int, default=10)
    parser.add_argument("--raise-temperatures", type=int, default=1000)
    parser.add_argument("--raise-schedule", default="salakhutdinov-murray", choices=SCHEDULES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/log_partition_methods"))
    parser.add_argument("--smoke", action="store_true", help="seconds, on the digits")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.hidden, arguments.epochs, arguments.budget = 4, 3, 50_000
        arguments.bracket_temperatures = arguments.raise_temperatures = 50
        arguments.raise_rows, arguments.bracket_sweeps = 10, 100
    main(arguments)
