# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Have the chains mixed, and which sampler mixes best? With ArviZ, of both major versions."""

from pyro_ebm.diagnostics.calibration import CalibrationResult, simulation_based_calibration
from pyro_ebm.diagnostics.comparison import SamplerComparison, SamplerRun, Spread
from pyro_ebm.diagnostics.convergence import Convergence, convergence_of
from pyro_ebm.diagnostics.inference_data import to_inference_data
from pyro_ebm.diagnostics.model_comparison import MachineComparison, compare_machines
from pyro_ebm.diagnostics.program_groups import program_groups
from pyro_ebm.diagnostics.quantities import (
    leading_direction,
    machine_functions,
    magnetisation,
    principal_component,
)
from pyro_ebm.diagnostics.samplers import compare_samplers
from pyro_ebm.diagnostics.summary import ChainSummary, summarize_chains

__all__ = [
    "CalibrationResult",
    "ChainSummary",
    "Convergence",
    "MachineComparison",
    "SamplerComparison",
    "SamplerRun",
    "Spread",
    "compare_machines",
    "compare_samplers",
    "convergence_of",
    "leading_direction",
    "machine_functions",
    "magnetisation",
    "principal_component",
    "program_groups",
    "simulation_based_calibration",
    "summarize_chains",
    "to_inference_data",
]
