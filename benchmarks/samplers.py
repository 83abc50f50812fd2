# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Samplers against the sampler that they build upon, at equal numbers of rows."""

import torch
from torch import Size, Tensor

from benchmarks.harness import Timing, time_in_turn
from pyro_ebm.distributions import BernoulliRBM, GaussianBernoulliRBM
from pyro_ebm.infer import BlockGibbs, ParallelTempering
from pyro_ebm.infer.mcmc import VectorizedKernel

__all__ = ["bench_collapsed", "bench_tempering"]

NUM_REPLICAS, NUM_CHAINS = 20, 10


class _Running:
    """A kernel that goes on from call to call, set up once."""

    def __init__(self, kernel: VectorizedKernel, num_chains: int) -> None:
        self._kernel = kernel
        kernel.chain_shape = Size((num_chains,))
        kernel.setup(0)
        self._params = kernel.initial_params

    def run(self, draws: int) -> None:
        for _ in range(draws):
            self._params = self._kernel.sample(self._params)


def bench_tempering(rounds: int, machine: tuple[Tensor, Tensor, Tensor]) -> dict[str, Timing]:
    """Parallel tempering with R replicas of C chains over block Gibbs on R C chains."""
    dist = BernoulliRBM(*machine)
    betas = torch.linspace(0.0, 1.0, NUM_REPLICAS).tolist()
    repeat = 15
    gibbs = _Running(BlockGibbs(dist), NUM_REPLICAS * NUM_CHAINS)
    tempering = _Running(ParallelTempering(dist, betas=betas, adapt=False), NUM_CHAINS)
    candidates = {
        f"block Gibbs, {NUM_REPLICAS * NUM_CHAINS} chains": lambda: gibbs.run(repeat),
        "pyro_ebm": lambda: tempering.run(repeat),
    }
    units = dict.fromkeys(candidates, float(repeat))
    return time_in_turn(candidates, next(iter(candidates)), rounds=rounds, units=units)


def bench_collapsed(rounds: int, num_chains: int, num_steps: int) -> dict[str, Timing]:
    """Collapsed over alternating Gibbs, 784 Gaussian units x 64 bits; times are per draw."""
    g = torch.Generator().manual_seed(0)
    weight = 0.05 * torch.randn(784, 64, generator=g)
    dist = GaussianBernoulliRBM(weight, torch.zeros(784), torch.ones(784), torch.zeros(64))
    alternating = _Running(BlockGibbs(dist, num_steps, collapse=False), num_chains)
    collapsed = _Running(BlockGibbs(dist, num_steps, collapse=True), num_chains)
    candidates = {
        f"alternating Gibbs, {num_steps} steps": lambda: alternating.run(1),
        "pyro_ebm": lambda: collapsed.run(1),
    }
    return time_in_turn(candidates, next(iter(candidates)), rounds=rounds)
