# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""``python -m benchmarks.dbm``: an update of a deep Boltzmann machine, by hand and ours.

784-512-1024 bits, batches of 100, 100 particles with 5 Gibbs steps, mean field of 10 updates. Times of one
update are compared within a round; ``x`` is the time over the hand-written one, and the floor is
that of the matrix products alone.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.dbm_by_hand import HandWrittenDBM
from benchmarks.harness import Timing, command_line, time_in_turn, write_json
from pyro_ebm import nn
from pyro_ebm.training import TrainerConfig
from pyro_ebm.training.choose_gradient import make_gradient
from pyro_ebm.training.optimization import Optimization
from pyro_ebm.training.training_data import draw_states

__all__ = ["bench_dbm"]

SIZES = (784, 512, 1024)
BATCH_SIZE, NUM_CHAINS, NUM_STEPS, NUM_UPDATES, RATE = 100, 100, 5, 10, 1e-3
FLOOR, BY_HAND, OURS = "matrix products", "hand-written loop", "pyro_ebm"
CENTERED = "pyro_ebm, centred"
#: Mean field until it stands still, as training has it by default.
ADAPTIVE = "pyro_ebm, mean field to 0.01"
#: What the library promises: how much slower than the hand-written loop it is at most.
TARGET = 1.3


def make_machine(device: str, centered: bool = False) -> nn.DBM:
    """A machine of plausible weights: chains neither freeze nor are independent."""
    module = nn.DBM(SIZES[0], list(SIZES[1:]), weight_scale=0.05, centered=centered, seed=0)
    with torch.no_grad():
        for layer in module.layers:
            layer.bias.fill_(-1.0)
    return module.to(device)


def make_data(device: str, rows: int = 1000) -> Tensor:
    """Random bits with the rates of random pixels."""
    g = Generator().manual_seed(0)
    rates = 0.5 * torch.rand(SIZES[0], generator=g)
    return torch.bernoulli(rates.expand(rows, -1), generator=g).to(device)


def by_hand(device: str) -> HandWrittenDBM:
    """The hand-written machine with the parameters of ours."""
    module = make_machine(device)
    weights = [weight.detach() for weight in module.weights]
    biases = [layer.bias.detach() for layer in module.layers]
    options = NUM_CHAINS, NUM_UPDATES, NUM_STEPS
    return HandWrittenDBM((weights[0], weights[1]), (biases[0], biases[1], biases[2]), *options)


def trainer_step(module: nn.DBM, config: TrainerConfig) -> Callable[[Tensor], None]:
    """An update by the objects that ``Trainer`` makes of a module and its options."""
    generator = Generator(device=module.weights[0].device).manual_seed(0)
    gradient = make_gradient(module, config, generator)
    optimization = Optimization(module, config)
    gradient.start_epoch(0)
    optimization.start_epoch(0)

    def step(batch: Tensor) -> None:
        gradient(draw_states(batch, module, config, generator), None)
        optimization.step(0.0)
        gradient.after_step()
        optimization.average()

    return step


def our_step(device: str, centered: bool = False, **changes: Any) -> Callable[[Tensor], None]:
    """An update of ours with the options of the hand-written one, but for some."""
    options: dict[str, Any] = {
        "learning_rate": RATE,
        "persistent": True,
        "num_chains": NUM_CHAINS,
        "num_steps": NUM_STEPS,
        "mean_field_updates": NUM_UPDATES,
        "mean_field_tolerance": 0.0,
    }
    config = TrainerConfig(batch_size=BATCH_SIZE, seed=0, **{**options, **changes})
    return trainer_step(make_machine(device, centered), config)


def bench_dbm(
    rounds: int, device: str = "cpu", clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Times of an update; a round has one epoch of ten updates of each candidate.

    :param int rounds: counted rounds.
    :param str device: device.
    :param clock: gives seconds.
    """
    data, reference = make_data(device), by_hand(device)
    g = Generator().manual_seed(0)
    steps = {
        FLOOR: reference.products,
        BY_HAND: lambda batch: reference.update(batch, RATE),
        OURS: our_step(device),
        CENTERED: our_step(device, centered=True),
        ADAPTIVE: our_step(device, mean_field_updates=50, mean_field_tolerance=1e-2),
    }

    def epoch(step: Callable[[Tensor], None]) -> Callable[[], None]:
        def run() -> None:
            for rows in torch.randperm(len(data), generator=g).split(BATCH_SIZE):
                step(data[rows.to(data.device)])

        return run

    candidates = {name: epoch(step) for name, step in steps.items()}
    units = dict.fromkeys(candidates, len(data) / BATCH_SIZE)
    return time_in_turn(candidates, BY_HAND, rounds=rounds, units=units, clock=clock)


def multiply_adds() -> int:
    """Multiply-adds of the matrix products of an update."""
    lower, upper = SIZES[0] * SIZES[1], SIZES[1] * SIZES[2]
    data = BATCH_SIZE * (lower + upper + 2 * NUM_UPDATES * upper)
    model = NUM_CHAINS * (2 * NUM_STEPS + 1) * (lower + upper)
    return data + model + (BATCH_SIZE + NUM_CHAINS) * (lower + upper)


def summarize(timings: dict[str, Timing]) -> dict[str, Any]:
    """Median times, ratios to the hand-written loop and to the products, JSON types."""
    floor = statistics.median(timings[FLOOR].seconds)
    rows = {}
    for name, timing in timings.items():
        rows[name] = timing.to_dict()
        rows[name]["over floor"] = statistics.median(timing.seconds) / floor
    count = multiply_adds()
    return {"multiply-adds": count, "GFLOP/s of the products": 2e-9 * count / floor, "rows": rows}


def report(document: dict[str, Any]) -> None:
    """A table as text."""
    sizes = "-".join(map(str, SIZES))
    print(f"\nDeep Boltzmann machine {sizes}, an update of PCD-{NUM_STEPS}")
    rate = document["GFLOP/s of the products"]
    print(f"  {1e-9 * document['multiply-adds']:.2f} G multiply-adds; {rate:.0f} GFLOP/s")
    print(f"  {'':34}{'ms':>9}{'x':>7}{'over floor':>12}")
    for name, row in document["rows"].items():
        ratio = row["ratio"]["median"]
        print(
            f"  {name:34}{row['milliseconds']['median']:9.2f}{ratio:7.2f}{row['over floor']:12.2f}"
        )
    got = document["rows"][OURS]["ratio"]["median"]
    print(f"  target: at most {TARGET} times: {'met' if got <= TARGET else 'missed'}")


def main() -> None:
    """Command line."""
    arguments = command_line(__doc__.split("\n\n")[0])
    document = summarize(bench_dbm(arguments.rounds, arguments.device, arguments.clock))
    report(document)
    write_json(arguments.json, arguments.device, document)


if __name__ == "__main__":
    main()
