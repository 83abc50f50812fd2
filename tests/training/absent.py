# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Likelihoods of rows with missing entries by enumeration of every state, from the energy's definition."""

import math

import torch
from torch import Tensor

from pyro_ebm import nn

#: Families whose units can be absent, with the states of one unit.
UNIT_STATES = {
    "bernoulli": torch.tensor([[0.0], [1.0]], dtype=torch.float64),
    "ising": torch.tensor([[-1.0], [1.0]], dtype=torch.float64),
    "categorical": torch.eye(3, dtype=torch.float64),
    "multinomial": torch.tensor(
        [[i, k, 3 - i - k] for i in range(4) for k in range(4 - i)], dtype=torch.float64
    ),
}


def num_units(module: nn.RBM) -> int:
    """Units of the visible layer."""
    return len(module.get_parameter("weight")) // UNIT_STATES[module.visible.family].shape[1]


def layer_states(family: str, units: int) -> Tensor:
    """All states of a layer, shape ``(states, V)``."""
    table = UNIT_STATES[family]
    index = torch.cartesian_prod(*[torch.arange(len(table))] * units).reshape(-1, units)
    return table[index].flatten(1)


def some_masks(module: nn.RBM, rows: int = 8) -> Tensor:
    """Entries that are observed, in whole units; the first row has all and the second none."""
    units = num_units(module)
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(rows, units, generator=generator) < 0.6
    mask[0], mask[1] = True, False
    mask[2, 1:], mask[2, 0] = False, True
    return mask.repeat_interleave(UNIT_STATES[module.visible.family].shape[1], 1)


def _log_ways(module: nn.RBM, v: Tensor, observed: Tensor) -> Tensor:
    if module.visible.family != "multinomial":
        return v.new_zeros(v.shape[:-1])
    ways = math.lgamma(4.0) - torch.lgamma(v + 1.0).sum(-1)
    return torch.where(observed.all(-1), ways, 0.0)


def absent_log_joint(module: nn.RBM, v: Tensor, observed: Tensor) -> Tensor:
    """log sum over h of exp(-E) of the observed units alone; a constant of the offsets is left out.

    :param Tensor v: shape ``(..., V)``.
    :param Tensor observed: which entries exist, shape ``(V,)``.
    """
    weight = module.get_parameter("weight")
    b, c = module.visible.bias.flatten(), module.hidden.bias
    if module.centered:
        b, c = b - weight @ module.hidden_offset, c - module.visible_offset @ weight
    h = layer_states(module.hidden.family, module.hidden.bias.numel())
    some = v[..., observed]
    own = some @ b[observed] + _log_ways(module, v, observed)
    log_terms = (some @ weight[observed]) @ h.T + h @ c
    return own + torch.logsumexp(log_terms, -1)


def absent_log_partition(module: nn.RBM, observed: Tensor) -> Tensor:
    """log Z of the machine of the observed units."""
    states = layer_states(module.visible.family, num_units(module))
    # One state of every combination of what exists.
    kept = torch.unique(torch.where(observed, states, 0.0), dim=0)
    return torch.logsumexp(absent_log_joint(module, kept, observed), 0)


def absent_log_likelihood(module: nn.RBM, v: Tensor, observed: Tensor) -> Tensor:
    """log p of the observed units of every row under the machine of these units, shape ``(rows,)``."""
    return torch.stack(
        [
            absent_log_joint(module, row, mask) - absent_log_partition(module, mask)
            for row, mask in zip(v, observed, strict=True)
        ]
    )


def marginal_log_likelihood(module: nn.RBM, v: Tensor, observed: Tensor) -> Tensor:
    """log p of the observed units of every row, the others summed out, shape ``(rows,)``."""
    states = layer_states(module.visible.family, num_units(module))
    everything = torch.ones(v.shape[-1], dtype=torch.bool)
    log_p = absent_log_joint(module, states, everything)
    log_p = log_p - torch.logsumexp(log_p, 0)
    agrees = ((states.unsqueeze(1) == v) | ~observed).all(-1)
    return torch.logsumexp(torch.where(agrees, log_p.unsqueeze(-1), -math.inf), 0)
