# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""``python -m benchmarks.nbm``: a training step of the paper's neural Boltzmann machine, literally and ours.

784 visible units, 64 hidden spins, 10 contexts, batches of 128, 32 Gibbs steps. Times of one step are
compared within a round; ``x`` is the literal time over ours. The floor is the time of the arithmetic,
the random numbers and the optimiser alone.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.harness import Timing, command_line, time_in_turn, write_json
from benchmarks.nbm_by_hand import LiteralNBM
from benchmarks.nbm_floor import Counts, Rates, count_collapsed, count_grouped
from pyro_ebm import nn
from pyro_ebm.training import TrainerConfig, paper_config
from pyro_ebm.training.conditional_gradient import ConditionalGradient
from pyro_ebm.training.optimization import Optimization
from pyro_ebm.training.training_data import draw_states

__all__ = ["bench_nbm"]

NUM_VISIBLE, NUM_HIDDEN, NUM_CLASSES, BATCH_SIZE, NUM_STEPS = 784, 64, 10, 128, 32
#: Steps of an epoch of 55,000 images.
STEPS_PER_EPOCH = 430
#: Chains of a class in the recommended configuration, and its Gibbs steps.
_CHAINS, _PCD_STEPS = 30, 2
LITERAL = "paper, literally"
#: Chains do not depend on the rows if they start at mu(x): as many for each class save the padding.
EVEN = "pyro_ebm, 13 chains a class"
RECOMMENDED = f"pyro_ebm, recommended (PCD-{_PCD_STEPS})"
#: What the library promises: how many times faster than the literal step it is.
TARGET = 10.0


class Batches:
    """Grey images in [0, 1] with their classes, all of random pixels.

    :param str device: device.
    """

    def __init__(self, device: str) -> None:
        g = Generator().manual_seed(0)
        images = torch.rand(1280, NUM_VISIBLE, generator=g).pow(4.0)
        labels = torch.randint(NUM_CLASSES, (len(images),), generator=g)
        self.images = images.to(device)
        self.context = torch.nn.functional.one_hot(labels, NUM_CLASSES).float().to(device)
        self._generator = g
        self.generator = Generator(device=device).manual_seed(0)

    def next(self) -> Tensor:
        """Numbers of the rows of a batch, on the CPU."""
        return torch.randperm(len(self.images), generator=self._generator)[:BATCH_SIZE]

    def states(self, rows: Tensor, visible: str) -> Tensor:
        """Rows as the literal step takes them."""
        images = self.images[rows.to(self.images.device)]
        if visible == "ising":
            return 2.0 * torch.bernoulli(images, generator=self.generator) - 1.0
        noise = torch.empty_like(images).normal_(generator=self.generator)
        return 2.0 * images - 1.0 + 1e-3 * noise


def literal_step(visible: str, batches: Batches) -> Callable[[], None]:
    """An update of the literal algorithm."""
    device = batches.images.device
    torch.manual_seed(0)
    model = LiteralNBM(NUM_CLASSES, NUM_VISIBLE, NUM_HIDDEN, visible, NUM_STEPS, device)

    def step() -> None:
        rows = batches.next()
        model.step(batches.states(rows, visible), batches.context[rows.to(device)])

    return step


def trainer_step(
    module: nn.NeuralBoltzmannMachine, config: TrainerConfig, batches: Batches
) -> Callable[[], None]:
    """An update by the objects that ``Trainer`` makes of a module and its options."""
    generator = Generator(device=module.device).manual_seed(0)
    gradient = ConditionalGradient(module, config, generator)
    optimization = Optimization(module, config)
    gradient.start(batches.context)
    # Data of Gaussian units are 2x - 1 already when they come to a trainer.
    data = batches.images if config.binarize else 2.0 * batches.images - 1.0

    def step() -> None:
        rows = batches.next()
        gradient(draw_states(data[rows.to(data.device)], module, config, generator), rows)
        optimization.step(0.0)
        gradient.after_step()
        optimization.average()

    return step


def paper_step(visible: str, batches: Batches, **changes: Any) -> Callable[[], None]:
    """An update of our form of the paper's model and training."""
    options = {"seed": 0, "device": batches.images.device}
    module = nn.paper_nbm(NUM_CLASSES, NUM_VISIBLE, NUM_HIDDEN, visible, **options)
    return trainer_step(module, paper_config(visible, **changes), batches)


def recommended_step(batches: Batches) -> Callable[[], None]:
    """An update of spins with persistent chains of every class, which fit far better."""
    module = nn.NeuralBoltzmannMachine(
        NUM_CLASSES, NUM_VISIBLE, NUM_HIDDEN, "ising", seed=0, device=batches.images.device
    )
    config = paper_config(
        "ising",
        learning_rate=4e-3,
        groups={"weight": {"weight_decay": 1e-3, "learning_rate": 2e-2}},
        persistent=True,
        num_steps=_PCD_STEPS,
        num_chains=_CHAINS,
        chain_start="data",
    )
    return trainer_step(module, config, batches)


def bench_nbm(
    rounds: int,
    device: str = "cpu",
    repeat: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, Timing]]:
    """Times of a step; a round has one literal step and ``repeat`` steps of each of ours.

    :param int rounds: counted rounds.
    :param str device: device.
    :param clock: gives seconds.
    """
    batches = Batches(device)
    results = {}
    for visible in ("gaussian", "ising"):
        candidates = {LITERAL: literal_step(visible, batches)}
        ours = {
            "pyro_ebm": paper_step(visible, batches),
            EVEN: paper_step(visible, batches, num_chains=-(-BATCH_SIZE // NUM_CLASSES)),
        }
        if visible == "ising":
            ours[RECOMMENDED] = recommended_step(batches)
        candidates |= {name: _repeated(step, repeat) for name, step in ours.items()}
        units = dict.fromkeys(ours, float(repeat))
        timings = time_in_turn(candidates, LITERAL, rounds=rounds, units=units, clock=clock)
        results[f"Neural Boltzmann machine, {visible}, a step of CD-{NUM_STEPS}"] = timings
    return results


def _repeated(step: Callable[[], None], repeat: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(repeat):
            step()

    return run


def floors() -> list[dict[str, Counts]]:
    """Counts of our candidates, in the order of :func:`bench_nbm`."""
    sizes = NUM_VISIBLE, NUM_HIDDEN
    perceptrons = 2 * (NUM_CLASSES * 32 + 32 + 32 * NUM_VISIBLE + NUM_VISIBLE)
    parameters = (NUM_CLASSES + 1) * NUM_VISIBLE * NUM_HIDDEN + perceptrons
    collapsed = count_collapsed(BATCH_SIZE, *sizes, NUM_STEPS, parameters, NUM_CLASSES)
    grouped = count_grouped(BATCH_SIZE, *sizes, NUM_STEPS, parameters, BATCH_SIZE)
    chains = NUM_CLASSES * _CHAINS
    short = count_grouped(BATCH_SIZE, *sizes, _PCD_STEPS, parameters, chains)
    return [
        {"pyro_ebm": collapsed, EVEN: collapsed},
        {"pyro_ebm": grouped, EVEN: grouped, RECOMMENDED: short},
    ]


def summarize(
    results: dict[str, dict[str, Timing]], rates: Rates
) -> dict[str, dict[str, dict[str, Any]]]:
    """Median times, ratios, floors and seconds an epoch, JSON types."""
    document: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, timings), counts in zip(results.items(), floors(), strict=True):
        rows = document[name] = {}
        for label, timing in timings.items():
            median = statistics.median(timing.seconds)
            row = rows[label] = timing.to_dict()
            row["times faster"] = statistics.median(1.0 / r for r in timing.ratios)
            row["seconds an epoch"] = STEPS_PER_EPOCH * median
            if label in counts:
                row["floor"] = rates.parts(counts[label])
                row["over floor"] = 1e3 * median / sum(row["floor"].values())
    return document


def report(document: dict[str, dict[str, dict[str, Any]]]) -> None:
    """A table as text."""
    for name, rows in document.items():
        print(f"\n{name}")
        print(f"  {'':34}{'ms':>9}{'x':>7}{'s/epoch':>10}{'floor ms':>10}{'over floor':>12}")
        for label, row in rows.items():
            line = f"  {label:34}{row['milliseconds']['median']:9.2f}{row['times faster']:7.1f}"
            line += f"{row['seconds an epoch']:10.1f}"
            if "floor" in row:
                line += f"{sum(row['floor'].values()):10.2f}{row['over floor']:12.2f}"
            print(line)
            if "floor" in row:
                parts = ", ".join(f"{part} {ms:.2f}" for part, ms in row["floor"].items())
                print(f"      floor: {parts}")
        got = rows["pyro_ebm"]["times faster"]
        print(f"  target: {TARGET:.0f} times faster: {'met' if got >= TARGET else 'missed'}")


def main() -> None:
    """Command line."""
    arguments = command_line(__doc__.split("\n\n")[0])
    clock = arguments.clock
    results = bench_nbm(arguments.rounds, arguments.device, clock=clock)
    document = summarize(results, Rates(arguments.device, clock))
    report(document)
    write_json(arguments.json, arguments.device, document)


if __name__ == "__main__":
    main()
