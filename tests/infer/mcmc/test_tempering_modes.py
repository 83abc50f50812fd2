# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""A machine of two well-separated modes of known weights: block Gibbs fails, tempering does not."""

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import BlockGibbs, ParallelTempering, VectorizedMCMC
from pyro_ebm.infer.mcmc import MachineKernel

NUM_CHAINS, WARMUP, DRAWS = 800, 200, 600


def two_modes(dtype: torch.dtype = torch.float64) -> RBM:
    """Spins that are nearly all up with probability 0.3, else nearly all down.

    The visible biases, which chains start from, point up; the hidden ones outweigh them.
    """
    ones = torch.ones(16, 8, dtype=dtype)
    return RBM(units.Ising(0.5 * ones[:, 0]), units.Ising(-1.01254 * ones[0]), 0.25 * ones)


def is_up(v: Tensor) -> Tensor:
    return v.sum(-1) > 0


def exact_share(rbm: RBM) -> float:
    """Of the states that are up, by enumeration."""
    states = rbm.visible.states(0, 2**16)
    return float(torch.softmax(rbm.log_prob(states), 0)[is_up(states)].sum())


def run(kernel: MachineKernel, draws: int = DRAWS) -> VectorizedMCMC:
    mcmc = VectorizedMCMC(kernel, draws, WARMUP, NUM_CHAINS, disable_progbar=True)
    mcmc.run()
    return mcmc


def test_weights_of_two_modes() -> None:
    """To 0.02 by tempering (whose standard error is 0.003); at as many sweeps of machines, block Gibbs
    is off by more than 0.2."""
    rbm, exact = two_modes(torch.float32), exact_share(two_modes())
    assert exact == pytest.approx(0.3, abs=1e-3)
    tempering = ParallelTempering(rbm)
    mcmc = run(tempering)
    up = is_up(mcmc.get_samples(group_by_chain=True)["v"]).double()
    assert abs(up.mean() - exact) < 0.02
    assert (mcmc.diagnostics()["tempering"]["chain 0"]["round_trips"] > 0).all()
    # A draw of block Gibbs has as many sweeps as there are levels.
    gibbs = run(BlockGibbs(rbm, num_steps=len(tempering.betas)))
    stuck = is_up(gibbs.get_samples(group_by_chain=True)["v"]).double()
    assert abs(stuck.mean() - exact) > 0.2
    # Not one chain in ten has ever left its mode.
    assert (stuck.mean(1) * (1.0 - stuck.mean(1)) > 0).double().mean() < 0.1
    assert (up.mean(1) * (1.0 - up.mean(1)) > 0).all()


def test_a_trajectory_finds_them_too() -> None:
    """Checkpoints of machines on their way to two modes."""
    rbm, exact = two_modes(torch.float32), exact_share(two_modes())
    scales = (0.0, 0.3, 0.45, 0.6, 0.8)
    visible, hidden = rbm.visible.natural_bias, rbm.hidden.natural_bias
    machines = [
        RBM(units.Ising(s * visible), units.Ising(s * hidden), s * rbm.weight) for s in scales
    ]
    kernel = ParallelTempering.from_checkpoints([*machines, rbm])
    mcmc = run(kernel, 200)
    up = is_up(mcmc.get_samples()["v"]).double().mean()
    assert abs(up - exact) < 0.035
    assert mcmc.diagnostics()["tempering"]["chain 0"]["round_trips"].sum() > 0
