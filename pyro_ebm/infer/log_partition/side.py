# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The layer whose states are annealed, and the machine that has only that one."""

import math

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, reduced_machine

__all__ = ["SIDES", "even_in_coupling", "is_reduced", "side_machine"]

SIDES = ("auto", "visible", "hidden")


def side_machine(dist: RBM, side: str = "auto") -> RBM:
    """The machine whose visible states are those of one layer, with the same log Z.

    :param RBM dist: the machine.
    :param str side: ``"visible"``, ``"hidden"`` or ``"auto"``, see
        :func:`~pyro_ebm.infer.conditional_log_partition`.
    :returns: the machine itself, its transpose, or where the other layer is Gaussian its
        :func:`~pyro_ebm.distributions.reduced_machine` in float64.
    """
    turned = dist.transpose()
    if side == "auto":
        side = "hidden" if dist.visible.is_gaussian else "visible"
    machine, other = (dist, turned) if side == "visible" else (turned, dist)
    if not other.visible.is_gaussian or machine.visible.is_gaussian:
        return machine
    # Sums over hundreds of Gaussian units lose digits in float32, and small machines cost little.
    exact = other.to(torch.float64)
    unit = exact.hidden
    middle = unit.neutral().mean() if unit.is_discrete else None
    return reduced_machine(exact, middle)


def is_reduced(machine: RBM) -> bool:
    """Whether a machine of :func:`side_machine` has a Gaussian layer beside that which is annealed, so that
    annealing goes better with :func:`even_in_coupling`."""
    return machine.hidden.is_gaussian and not machine.visible.is_gaussian


def even_in_coupling(num_temperatures: int) -> Tensor:
    """Inverse temperatures with even squares: the Gaussian layer leaves beta^2 K between the others."""
    if num_temperatures < 1:
        raise ValueError(f"num_temperatures must be at least 1, got {num_temperatures}")
    steps = range(num_temperatures + 1)
    return torch.tensor([math.sqrt(i / num_temperatures) for i in steps], dtype=torch.float64)
