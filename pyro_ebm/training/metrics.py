# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Numbers that are watched while a model trains; computing them changes no chain."""

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM
from pyro_ebm.infer.conditional.contexts import evaluating
from pyro_ebm.ops.grouping import RowGroups

__all__ = ["conditional_metrics", "epoch_metrics"]


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


@torch.no_grad()
def conditional_metrics(
    module: nn.NeuralBoltzmannMachine, *data: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """Metrics of one epoch of a conditional model in evaluation mode, see :func:`epoch_metrics`.

    :param module: the model.
    :param data: rows and contexts of the training data, then those of the validation data.
    """
    metrics: dict[str, float] = {}
    for name, (rows, context) in zip(("train", "validation"), data, strict=False):
        contexts, index = torch.unique(context, dim=0, return_inverse=True)
        groups = RowGroups(index)
        with evaluating(module):
            dist = module.condition(contexts.to(module.device, module.dtype), validate_args=False)
        y = groups.pack(rows)
        free_energy = groups.unpack(dist.free_energy(y))
        metrics[f"free_energy_{name}"] = free_energy.mean().item()
        if name == "train":
            mean = dist.hidden.mean(dist.hidden_field(y))
            reconstruction = groups.unpack(dist.visible.mean(dist.visible_field(mean)))
            metrics["reconstruction_error"] = (rows - reconstruction).square().mean().item()
            metrics["weight_norm"] = dist.weight.norm(dim=(-2, -1)).mean().item()
        else:
            gap = metrics["free_energy_validation"] - metrics["free_energy_train"]
            metrics["free_energy_gap"] = gap
    return metrics
