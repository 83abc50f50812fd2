# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""CPU time of an update with each kind of gradient, over that of centred PCD-1.

OMP_NUM_THREADS=1 python -m benchmarks.directions
"""

import argparse
import statistics
import time
from typing import Any

import torch

from pyro_ebm import nn
from pyro_ebm.training import TrainerConfig
from pyro_ebm.training.gradient import ContrastiveGradient
from pyro_ebm.training.optimization import Optimization

CASES: dict[str, dict[str, Any]] = {
    "centred PCD-1": {},
    "fast PCD": {"fast_rate": 0.01},
    "sparsity": {"sparsity_cost": 0.1},
    "dropout": {"dropout": 0.5},
    "standardize": {"preconditioner": "standardize"},
    "diagonal": {"preconditioner": "diagonal"},
    "natural, 100 chains": {"preconditioner": "natural"},
    "500 chains": {"num_chains": 500},
    "natural, 500 chains": {"preconditioner": "natural", "num_chains": 500},
    "tempering, 5 replicas": {"negative_phase": "tempering", "num_replicas": 5},
}


def main(options: argparse.Namespace) -> None:
    """Print medians over rounds in which the cases take turns."""
    generator = torch.Generator().manual_seed(0)
    batch = (torch.rand(100, 784, generator=generator) < 0.2).float()
    updates = {}
    for name, changes in CASES.items():
        module = nn.RBM(784, 500, centered=True, seed=0)
        config = TrainerConfig(persistent=True, learning_rate=1e-4, **changes)
        gradient = ContrastiveGradient(module, config, torch.Generator().manual_seed(0))
        updates[name] = gradient, Optimization(module, config)
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(options.rounds + 1):
        for name, (gradient, optimization) in updates.items():
            started = time.process_time()
            for _ in range(options.updates):
                gradient(batch)
                optimization.step(0.0)
                gradient.after_step()
            times[name].append((time.process_time() - started) / options.updates)
    base = statistics.median(times["centred PCD-1"][1:])
    for name, seconds in times.items():
        middle = statistics.median(seconds[1:])  # the first round warms up
        print(f"{name:24s} {1e3 * middle:7.2f} ms {middle / base:6.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=10)
    main(parser.parse_args())
