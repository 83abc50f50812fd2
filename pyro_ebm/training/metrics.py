# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Numbers that are watched while a model trains; computing them changes no chain."""

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM

__all__ = ["epoch_metrics"]


@torch.no_grad()
def epoch_metrics(
    dist: RBM, train: Tensor, validation: Tensor | None, chains: Tensor | None
) -> dict[str, float]:
    """Metrics of one epoch.

    ``reconstruction_error`` is the mean squared difference of a unit to its mean given the mean hidden
    state; ``free_energy_gap`` (validation minus training) grows when the model overfits;
    ``free_energy_chains`` near ``free_energy_train`` says that chains look like data.

    :param RBM dist: the model.
    :param Tensor train: rows of training data.
    :param Tensor validation: rows of validation data, or None.
    :param Tensor chains: visible states of persistent chains, or None.
    """
    mean = dist.hidden.mean(dist.hidden_field(train))
    reconstruction = dist.visible.mean(dist.visible_field(mean))
    free_energy = dist.free_energy(train).mean().item()
    metrics = {
        "reconstruction_error": (train - reconstruction).square().mean().item(),
        "free_energy_train": free_energy,
        "weight_norm": dist.weight.norm().item(),
    }
    if validation is not None:
        held_out = dist.free_energy(validation).mean().item()
        metrics["free_energy_validation"] = held_out
        metrics["free_energy_gap"] = held_out - free_energy
    if chains is not None:
        metrics["free_energy_chains"] = dist.free_energy(chains).mean().item()
    return metrics
