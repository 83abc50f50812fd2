# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""``python -m benchmarks.run``: measure, print a table, write JSON.

Everything is a ratio within one run; absolute times depend on the machine and its neighbours.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.by_hand import HandWrittenRBM
from benchmarks.harness import Timing, environment, time_in_turn
from benchmarks.nbm import bench_nbm
from benchmarks.peers import rbms_annealing, rbms_trainer, sklearn_trainer
from benchmarks.samplers import bench_collapsed, bench_tempering
from pyro_ebm import nn
from pyro_ebm.distributions import BernoulliRBM, GibbsSweep
from pyro_ebm.infer import estimate_log_partition
from pyro_ebm.ops.random import bernoulli_from_logits
from pyro_ebm.training import Trainer, TrainerConfig

NUM_VISIBLE, NUM_HIDDEN, BATCH_SIZE = 784, 500, 100


def make_machine(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of a plausible size: chains neither freeze nor are independent."""
    g = torch.Generator().manual_seed(seed)
    weight = 0.1 * torch.randn(NUM_VISIBLE, NUM_HIDDEN, generator=g)
    visible_bias = torch.randn(NUM_VISIBLE, generator=g) - 1.0
    return weight, visible_bias, -torch.ones(NUM_HIDDEN)


def make_data(rows: int, seed: int = 0) -> Tensor:
    """Random bits with the rates of random pixels."""
    g = torch.Generator().manual_seed(seed)
    rates = torch.rand(NUM_VISIBLE, generator=g) * 0.5
    return torch.bernoulli(rates.expand(rows, -1), generator=g)


def bench_sampling(rounds: int) -> dict[str, Timing]:
    """Drawing 100 x 500 bits from their fields."""
    fields = torch.randn(BATCH_SIZE, NUM_HIDDEN)
    repeat = 50

    def loop(draw: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(repeat):
                draw()

        return run

    candidates = {
        "torch.bernoulli(sigmoid)": loop(lambda: torch.bernoulli(torch.sigmoid(fields))),
        "(rand < sigmoid).float()": loop(
            lambda: (torch.rand_like(fields) < torch.sigmoid(fields)).float()
        ),
        "pyro_ebm": loop(lambda: bernoulli_from_logits(fields)),
    }
    units = dict.fromkeys(candidates, repeat)
    return time_in_turn(candidates, "torch.bernoulli(sigmoid)", rounds=rounds, units=units)


def bench_sweep(rounds: int) -> dict[str, Timing]:
    """A block Gibbs sweep over its two matrix products."""
    machine = make_machine()
    by_hand = HandWrittenRBM(*machine)
    sweep = GibbsSweep(BernoulliRBM(*machine))
    v = make_data(BATCH_SIZE)
    h = sweep.sample_hidden(v)
    repeat = 30

    def products() -> None:
        for _ in range(repeat):
            by_hand.products(v, h)

    def hand_written() -> None:
        state = v
        for _ in range(repeat):
            state = by_hand.sweep(state)

    candidates = {
        "two matrix products": products,
        "hand-written sweep": hand_written,
        "pyro_ebm": lambda: sweep.run(v, repeat),
    }
    units = dict.fromkeys(candidates, repeat)
    return time_in_turn(candidates, "two matrix products", rounds=rounds, units=units)


def bench_training(
    rounds: int, rows: int, num_steps: int, persistent: bool, peers: bool
) -> dict[str, Timing]:
    """An epoch of training; times are per update."""
    machine, data = make_machine(), make_data(rows)
    by_hand = HandWrittenRBM(*machine)
    chains = make_data(BATCH_SIZE, seed=1) if persistent else None
    module = nn.RBM(NUM_VISIBLE, NUM_HIDDEN, seed=0)
    config = TrainerConfig(
        num_epochs=1,
        batch_size=BATCH_SIZE,
        num_steps=num_steps,
        persistent=persistent,
        seed=0,
        metrics_rows=1,
        progress=False,
    )
    updates = rows / BATCH_SIZE
    candidates: dict[str, Callable[[], object]] = {
        "hand-written loop": lambda: by_hand.epoch(data, BATCH_SIZE, 0.05, num_steps, chains),
        "pyro_ebm": lambda: Trainer(module, config).fit(data),
    }
    units = dict.fromkeys(candidates, updates)
    if peers and num_steps == 1 and (epoch := sklearn_trainer(data, NUM_HIDDEN, BATCH_SIZE)):
        candidates["scikit-learn BernoulliRBM (PCD-1)"] = epoch
        units["scikit-learn BernoulliRBM (PCD-1)"] = updates
    timings = time_in_turn(candidates, "hand-written loop", rounds=rounds, units=units)
    if not peers:
        return timings
    run = rbms_trainer(data, NUM_HIDDEN, BATCH_SIZE, num_steps=num_steps, persistent=persistent)
    if run is not None:
        timings["rbms 0.5.0"] = _difference_timing(
            run, candidates["hand-written loop"], updates, rounds
        )
    return timings


def _difference_timing(
    run: Callable[[int], None], reference: Callable[[], object], updates: float, rounds: int
) -> Timing:
    """Time per update from a long and a short call, beside the reference in every round."""
    short, long = 10, 10 + int(updates)
    seconds, ratios = [], []
    for i in range(rounds + 1):
        marks = [time.perf_counter()]
        for call in (lambda: run(short), lambda: run(long), reference):
            call()
            marks.append(time.perf_counter())
        first, second, base = (b - a for a, b in itertools.pairwise(marks))
        if i:
            seconds.append((second - first) / (long - short))
            ratios.append(seconds[-1] / (base / updates))
    return Timing(seconds, ratios)


def bench_ais(rounds: int, num_temperatures: int, peers: bool) -> dict[str, Timing]:
    """Annealed importance sampling; times are per temperature."""
    machine = make_machine()
    by_hand = HandWrittenRBM(*machine)
    dist = BernoulliRBM(*machine)
    candidates: dict[str, Callable[[], object]] = {
        "hand-written loop": lambda: by_hand.ais(machine[1], BATCH_SIZE, num_temperatures),
        "pyro_ebm": lambda: _quiet_estimate(dist, num_temperatures),
    }
    if peers and (run := rbms_annealing(*machine, BATCH_SIZE, num_temperatures)):
        candidates["rbms 0.5.0"] = run
    units = dict.fromkeys(candidates, float(num_temperatures))
    return time_in_turn(candidates, "hand-written loop", rounds=rounds, units=units)


def _quiet_estimate(dist: BernoulliRBM, num_temperatures: int) -> object:
    import warnings

    with warnings.catch_warnings():
        # So few temperatures give a low effective sample size, which is not the point here.
        warnings.simplefilter("ignore")
        return estimate_log_partition(
            dist, num_chains=BATCH_SIZE, num_temperatures=num_temperatures, seed=0
        )


def collect(quick: bool) -> dict[str, dict[str, Timing]]:
    """All measurements; the quick form leaves the peers out."""
    rounds = 5 if quick else 15
    rows = 2000 if quick else 6000
    return {
        "bits from fields, 100 x 500": bench_sampling(rounds),
        "Gibbs sweep, 784 x 500, batch 100": bench_sweep(rounds),
        "CD-1 update": bench_training(rounds, rows, 1, False, not quick),
        "PCD-1 update": bench_training(rounds, rows, 1, True, not quick),
        "PCD-10 update": bench_training(rounds, rows // 2, 10, True, not quick),
        "AIS temperature, 100 chains": bench_ais(rounds, 100 if quick else 300, not quick),
        "Tempering sweep, 20 replicas x 10 chains": bench_tempering(rounds, make_machine()),
        "Collapsed Gibbs, 784 Gaussian x 64, 128 chains x 32 steps": bench_collapsed(
            rounds, 128, 32
        ),
        "Collapsed Gibbs, 784 Gaussian x 64, 1000 chains x 128 steps": bench_collapsed(
            3 if quick else 7, 1000, 128
        ),
        **bench_nbm(2 if quick else 7),
    }


#: What the library promises: the largest median ratio to each benchmark's reference.
TARGETS = {
    "Gibbs sweep, 784 x 500, batch 100": 1.4,
    "CD-1 update": 1.0,
    "PCD-10 update": 1.0,
    "AIS temperature, 100 chains": 1.2,
    "Tempering sweep, 20 replicas x 10 chains": 1.2,
    "Collapsed Gibbs, 784 Gaussian x 64, 1000 chains x 128 steps": 0.1,
    "Neural Boltzmann machine, gaussian, a step of CD-32": 0.1,
    "Neural Boltzmann machine, ising, a step of CD-32": 0.1,
}


def report(results: dict[str, dict[str, Timing]]) -> list[str]:
    """A table as text; a line for every target that is missed."""
    missed = []
    for name, timings in results.items():
        print(f"\n{name}")
        print(f"  {'':34}{'ms (min)':>10}{'ms (median)':>13}{'ratio (median)':>16}")
        for label, timing in timings.items():
            row = timing.to_dict()
            ms, ratio = row["milliseconds"], row["ratio"]["median"]
            print(f"  {label:34}{ms['min']:10.3f}{ms['median']:13.3f}{ratio:16.2f}")
        target = TARGETS.get(name)
        if target is not None:
            got = timings["pyro_ebm"].to_dict()["ratio"]["median"]
            verdict = "met" if got <= target else "missed"
            print(f"  target: at most {target} times the reference: {verdict}")
            if got > target:
                missed.append(f"{name}: {got:.2f}, target {target}")
    return missed


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under two minutes, without peers")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks.json"))
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    results = collect(arguments.quick)
    missed = report(results)
    document: dict[str, Any] = {
        "environment": environment("cpu"),
        "results": {
            name: {label: t.to_dict() for label, t in timings.items()}
            for name, timings in results.items()
        },
        "missed": missed,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nwrote {arguments.output}")


if __name__ == "__main__":
    main()
