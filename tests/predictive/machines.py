# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Machines with Gaussian visible and Ising hidden units, one for each of some contexts."""

import torch

from pyro_ebm.distributions import RBM, units


def gaussian_ising(
    batch: tuple[int, ...] = (3,),
    num_visible: int = 2,
    num_hidden: int = 3,
    *,
    scale: float = 1.0,
    bias: float = 0.5,
    offset: bool = True,
) -> RBM:
    """As a neural Boltzmann machine gives them: the centre is the offset of the visible units."""
    mean = torch.randn(*batch, num_visible, dtype=torch.float64)
    precision = 0.5 + torch.rand(*batch, num_visible, dtype=torch.float64)
    weight = scale * torch.randn(*batch, num_visible, num_hidden, dtype=torch.float64)
    hidden = units.Ising(bias * torch.randn(*batch, num_hidden, dtype=torch.float64))
    return RBM(
        units.Gaussian(mean, precision), hidden, weight, visible_offset=mean if offset else None
    )


def scaled_to(dist: RBM, largest: float) -> RBM:
    """The machine with W scaled so that the largest eigenvalue of the coupling is the given number."""
    precision = dist.visible.parameters["precision"]
    coupling = dist.weight.mT @ (dist.weight / precision.unsqueeze(-1))
    now = torch.linalg.eigvalsh(coupling)[..., -1]
    weight = dist.weight * (largest / now).sqrt()[..., None, None]
    return RBM(dist.visible, dist.hidden, weight, visible_offset=dist.visible_offset)
