# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Where a factorised guide of a machine starts: a layer of its own visible units."""

from typing import Any

import torch
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.distributions.units import Unit
from pyro_ebm.distributions.wrapped import wrapped_machine
from pyro_ebm.infer.mcmc.even_layers import as_rbm
from pyro_ebm.ops.linear import apply_weight

__all__ = ["prior_layer", "visible_machine"]

#: Updates of both sides: a start need not be a fixed point.
_NUM_UPDATES = 20
#: Largest natural parameter of a discrete unit that is not given: probabilities of bits from 0.12 to 0.88.
_MAX_FIELD = 2.0


def visible_machine(fn: Any) -> RBM | DBM | None:
    """The machine that a site's distribution is or wraps; None if it is no machine of visible units."""
    machine = wrapped_machine(fn)
    return machine if isinstance(machine, RBM | DBM) else None


@torch.no_grad()
def prior_layer(machine: RBM | DBM, start: str) -> Unit:
    """Visible units of a machine, independent of each other.

    :param machine: the machine.
    :param str start: ``"bias"``: at the visible biases; ``"mean-field"``: at the mean field of the machine.
    """
    unit = _visible(machine).map(torch.Tensor.detach)
    rbm = as_rbm(machine).detach()
    theta = rbm.canonical().visible_bias
    if start == "mean-field":
        theta = _mean_field(rbm)
    theta = _limited(unit, theta[..., : unit.size])
    return unit.tilt(theta - unit.natural_bias)[0]


def _visible(machine: RBM | DBM) -> Unit:
    return machine.units[0] if isinstance(machine, DBM) else machine.visible


def _mean_field(rbm: RBM) -> Tensor:
    """Natural parameters of the visible side, whose weight may have a batch shape."""
    form = rbm.canonical()
    theta = form.visible_bias
    for _ in range(_NUM_UPDATES):
        field = form.hidden_bias + apply_weight(rbm.visible.natural_mean(theta), form.weight)
        theta = form.visible_bias + apply_weight(rbm.hidden.natural_mean(field), form.weight.mT)
    return theta


def _limited(unit: Unit, theta: Tensor) -> Tensor:
    """Natural parameters of discrete units kept small, those of others as they are."""
    pieces = []
    for entries, part in unit.parts():
        own = theta[..., entries]
        if part.is_discrete:
            # Groups have one parameter a state, of which a constant is free.
            groups = own.unflatten(-1, (part.num_units, -1))
            if groups.shape[-1] > 1:
                groups = groups - groups.mean(-1, keepdim=True)
            own = groups.clamp(-_MAX_FIELD, _MAX_FIELD).flatten(-2)
        pieces.append(own)
    return torch.cat(pieces, -1)
