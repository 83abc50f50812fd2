# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pyro MCMC kernels and the vectorised driver."""

from pyro_ebm.infer.mcmc.gibbs import BlockGibbs
from pyro_ebm.infer.mcmc.kernel import MachineKernel, VectorizedKernel, run_kernel
from pyro_ebm.infer.mcmc.vectorized import VectorizedMCMC

__all__ = ["BlockGibbs", "MachineKernel", "VectorizedKernel", "VectorizedMCMC", "run_kernel"]
