# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Machines without offsets, in a form in which one can be compared with another."""

from collections.abc import Sequence

import torch
from torch import Size, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.units import Unit

__all__ = ["canonical", "check_alike", "exact_constant", "with_bias"]


@torch.no_grad()
def canonical(machine: RBM) -> RBM:
    """The same machine without offsets, detached, its own batch shape in every parameter."""
    form, batch = machine.canonical(), machine.parameter_batch_shape
    visible = with_bias(machine.visible, form.visible_bias, batch)
    hidden = with_bias(machine.hidden, form.hidden_bias, batch)
    new = RBM(
        visible,
        hidden,
        form.weight.detach().expand(*batch, *form.weight.shape[-2:]),
        num_gibbs_steps=machine.num_gibbs_steps,
        validate_args=False,
    )
    constant = -form.constant - visible.energy_constant - hidden.energy_constant
    new._constant = constant.detach().expand(batch)
    return new


@torch.no_grad()
def exact_constant(machine: RBM) -> Tensor:
    """The constant of the canonical form, float64, shape of the parameters' batch."""
    constant = machine.to(dtype=torch.float64).canonical().constant
    return constant.detach().expand(machine.parameter_batch_shape)


def with_bias(unit: Unit, bias: Tensor, batch: Size) -> Unit:
    """A layer of another natural bias, its parameters expanded to a batch shape."""
    moved, _ = unit.tilt(bias - unit.natural_bias)
    return moved.map_whole(lambda p, own: p.detach().expand(*batch, *p.shape[p.dim() - own :]))


def check_alike(machines: Sequence[RBM]) -> None:
    """Refuse machines that no path can join.

    :raises ValueError: if there are fewer than two, one is not normalisable, or they differ in family,
        size, batch shape or dtype.
    """
    if len(machines) < 2:
        raise ValueError(f"a path needs at least 2 machines, got {len(machines)}")

    def kind(machine: RBM) -> tuple[object, ...]:
        layers = (machine.visible, machine.hidden)
        families = tuple(unit.signature() for unit in layers)
        return (*families, tuple(machine.parameter_batch_shape), machine.weight.dtype)

    for number, machine in enumerate(machines):
        if not isinstance(machine, RBM):
            raise TypeError(f"machines must be RBM distributions, got {type(machine).__name__}")
        machine.check_normalizable()
        if kind(machine) != kind(machines[0]):
            raise ValueError(
                f"machine {number} of the path differs from the first in family, size, batch shape "
                f"or dtype: {kind(machine)} and {kind(machines[0])}"
            )
