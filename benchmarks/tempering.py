# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""``python -m benchmarks.tempering``: tempering and block Gibbs on a machine of two modes.

How many independent draws of *which mode* a second gives. The modes are so far from each other that
block Gibbs crosses between them once in some thousand sweeps, which a long run can still measure;
further apart it never does, and the ratio is infinite.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import environment
from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import BlockGibbs, ParallelTempering, VectorizedMCMC
from pyro_ebm.infer.mcmc import MachineKernel
from pyro_ebm.ops.chains import effective_sample_size

NUM_VISIBLE, NUM_HIDDEN, NUM_CHAINS = 100, 20, 50


@dataclass(frozen=True)
class Rates:
    """What one run has given.

    :param float share: estimate of the probability of the mode that points up.
    :param float ess_per_second: effective draws of the mode a second, warm-up included.
    :param float ess_per_sweep: the same by sweep of one machine, all replicas counted.
    """

    share: float
    ess_per_second: float
    ess_per_sweep: float


def two_modes(coupling: float, share: float = 0.3) -> RBM:
    """Spins that pull each other along, their modes tilted by the biases of the hidden ones."""
    ones = torch.ones(NUM_VISIBLE, NUM_HIDDEN)
    odds = 0.5 * math.log(share / (1.0 - share)) / NUM_HIDDEN
    visible = units.Ising(torch.zeros(NUM_VISIBLE))
    return RBM(visible, units.Ising(odds * ones[0]), coupling * ones)


def exact_share(rbm: RBM) -> float:
    """Probability that most spins are up; the free energy depends on their number alone."""
    up = torch.arange(NUM_VISIBLE + 1, dtype=torch.float64)
    ways = torch.lgamma(torch.tensor(NUM_VISIBLE + 1.0)) - torch.lgamma(up + 1.0)
    ways = ways - torch.lgamma(NUM_VISIBLE - up + 1.0)
    field = rbm.weight[0, 0].double() * (2.0 * up - NUM_VISIBLE) + rbm.hidden.natural_bias[0]
    log_weight = ways + NUM_HIDDEN * (field.abs() + torch.log1p(torch.exp(-2.0 * field.abs())))
    return float(torch.softmax(log_weight, 0)[up > NUM_VISIBLE / 2].sum())


def measure(kernel: MachineKernel, share: float, draws: int, levels: int = 1) -> Rates:
    """Run a kernel and count effective draws of the mode.

    :param MachineKernel kernel: the kernel.
    :param float share: exact probability of the mode.
    :param int draws: draws of every chain, after a warm-up of a quarter of them.
    :param int levels: machines that are swept for a draw; those of the ladder for tempering.
    """
    warmup = draws // 4
    mcmc = VectorizedMCMC(kernel, draws, warmup, NUM_CHAINS, disable_progbar=True)
    started = time.perf_counter()
    mcmc.run()
    seconds = time.perf_counter() - started
    if isinstance(kernel, ParallelTempering):
        levels = len(kernel.betas)
    up = (mcmc.get_samples(group_by_chain=True)["v"].sum(-1) > 0).double()
    size = _effective(up, share)
    sweeps = NUM_CHAINS * (draws + warmup) * levels * kernel.num_steps
    return Rates(up.mean().item(), size / seconds, size / sweeps)


def _effective(up: Tensor, share: float) -> float:
    """From the autocorrelations, or from the number of crossings if that says less.

    A chain that hops between two states at rates a and b has a relaxation time 1 / (a + b), so that N
    crossings are worth N / (4 p (1 - p)) draws. Chains that hardly ever cross have no autocorrelations
    to speak of, and would count as one draw each.
    """
    crossings = (up[:, 1:] != up[:, :-1]).sum().item() / (4.0 * share * (1.0 - share))
    return min(float(effective_sample_size(up)), crossings)


def compare(coupling: float, seeds: int, draws: int) -> dict[str, Any]:
    """Both samplers on the same machine with several seeds, at an equal number of sweeps."""
    rbm = two_modes(coupling)
    share = exact_share(rbm)
    runs: dict[str, list[Rates]] = {"block Gibbs": [], "parallel tempering": []}
    levels = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        kernel = ParallelTempering(rbm)
        runs["parallel tempering"].append(measure(kernel, share, draws))
        levels.append(len(kernel.betas))
        gibbs = BlockGibbs(rbm, num_steps=levels[-1])
        runs["block Gibbs"].append(measure(gibbs, share, draws))
    ratios = [
        tempering.ess_per_second / gibbs.ess_per_second if gibbs.ess_per_second else math.inf
        for gibbs, tempering in zip(*runs.values(), strict=True)
    ]
    return {
        "coupling": coupling,
        "exact_share": share,
        "levels": levels,
        "runs": {name: [asdict(r) for r in rates] for name, rates in runs.items()},
        "ratio": ratios,
    }


def report(result: dict[str, Any]) -> None:
    """A table of means and deviations over the seeds."""
    print(f"\ncoupling {result['coupling']}: {result['exact_share']:.3f} of the mass is up")
    print(f"  {'':20}{'share':>16}{'ESS / s':>22}{'ESS / 1000 sweeps':>22}")
    for name, runs in result["runs"].items():
        columns = (
            _spread([r["share"] for r in runs], ".3f"),
            _spread([r["ess_per_second"] for r in runs], ".3g"),
            _spread([1e3 * r["ess_per_sweep"] for r in runs], ".3g"),
        )
        print(f"  {name:20}{columns[0]:>16}{columns[1]:>22}{columns[2]:>22}")
    low, high = min(result["ratio"]), max(result["ratio"])
    middle = statistics.median(result["ratio"])
    print(f"  ESS per second, tempering over block Gibbs: {middle:.1f} ({low:.1f} to {high:.1f})")


def _spread(values: list[float], form: str) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):{form}} ± {deviation:{form}}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--couplings", type=float, nargs="+", default=[0.026, 0.03, 0.034])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    parser.add_argument("--output", type=Path, default=Path("runs/tempering.json"))
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    results = []
    for coupling in arguments.couplings:
        results.append(compare(coupling, arguments.seeds, arguments.draws))
        report(results[-1])
    document = {"environment": environment("cpu"), "results": results}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nwrote {arguments.output}")


if __name__ == "__main__":
    main()
