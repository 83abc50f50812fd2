# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Machines as parts of Pyro programs: which there are, some of their units fixed, factors for HMC."""

from pyro_ebm.infer.programs.clamp import clamped
from pyro_ebm.infer.programs.factor import FactorReparam, FactorReparamWarning
from pyro_ebm.infer.programs.sites import ProgramSite, check_log_partitions, machine_sites

__all__ = [
    "FactorReparam",
    "FactorReparamWarning",
    "ProgramSite",
    "check_log_partitions",
    "clamped",
    "machine_sites",
]
