# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Paths of machines: what annealing walks along and tempering swaps between.

A :class:`Path` is a family of machines over the same visible layer, indexed by :math:`\\beta \\in [0, 1]`,
whose end is the machine of interest and whose start can be sampled exactly. A :class:`Ladder` holds
several of its machines at once.
"""

from pyro_ebm.infer.paths.base import Ladder, Path, Transition
from pyro_ebm.infer.paths.geometric import GeometricPath, base_unit
from pyro_ebm.infer.paths.machines import MachinePath
from pyro_ebm.infer.paths.moments import moment_averaged_path
from pyro_ebm.infer.paths.schedule import SCHEDULES, inverse_temperatures

__all__ = [
    "SCHEDULES",
    "GeometricPath",
    "Ladder",
    "MachinePath",
    "Path",
    "Transition",
    "base_unit",
    "inverse_temperatures",
    "moment_averaged_path",
]
