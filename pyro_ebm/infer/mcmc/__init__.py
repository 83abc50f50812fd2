# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pyro MCMC kernels and the vectorised driver."""

from pyro_ebm.infer.mcmc.completions import Completions, completions
from pyro_ebm.infer.mcmc.compound import Gibbs
from pyro_ebm.infer.mcmc.discrete_gibbs import DiscreteGibbs
from pyro_ebm.infer.mcmc.gibbs import BlockGibbs
from pyro_ebm.infer.mcmc.hamiltonian import FreeEnergyModel, free_energy_model
from pyro_ebm.infer.mcmc.informed import DiscreteLangevin, GibbsWithGradients
from pyro_ebm.infer.mcmc.kernel import MachineKernel, VectorizedKernel, run_kernel
from pyro_ebm.infer.mcmc.ladder_tuning import LadderTuning, tune_ladder
from pyro_ebm.infer.mcmc.langevin import MALA, GibbsLangevin
from pyro_ebm.infer.mcmc.metropolis_gibbs import MetropolisBlockGibbs
from pyro_ebm.infer.mcmc.posterior import rbm_posterior
from pyro_ebm.infer.mcmc.tempering import ParallelTempering
from pyro_ebm.infer.mcmc.vectorized import VectorizedMCMC

__all__ = [
    "MALA",
    "BlockGibbs",
    "Completions",
    "DiscreteGibbs",
    "DiscreteLangevin",
    "FreeEnergyModel",
    "Gibbs",
    "GibbsLangevin",
    "GibbsWithGradients",
    "LadderTuning",
    "MachineKernel",
    "MetropolisBlockGibbs",
    "ParallelTempering",
    "VectorizedKernel",
    "VectorizedMCMC",
    "completions",
    "free_energy_model",
    "rbm_posterior",
    "run_kernel",
    "tune_ladder",
]
