# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Numbers that are watched while a model trains; computing them changes no chain."""

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM
from pyro_ebm.infer.conditional.contexts import evaluating
from pyro_ebm.ops.grouping import RowGroups, group_blocks

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

    Free energies lack log Z(x): compare them between rows of the same contexts.

    :param module: the model.
    :param data: rows and contexts of the training data, then those of the validation data.
    """
    metrics: dict[str, float] = {}
    for name, (rows, context) in zip(("train", "validation"), data, strict=False):
        contexts, index = torch.unique(context, dim=0, return_inverse=True)
        contexts = contexts.to(module.device, module.dtype)
        energies, errors, norms = [], [], []
        for block in group_blocks(index):
            groups = RowGroups(block.position)
            with evaluating(module):
                own = contexts[block.groups.to(contexts.device)]
                dist = module.condition(own, validate_args=False)
            y = groups.pack(rows[block.rows.to(rows.device)])
            energies.append(groups.unpack(dist.free_energy(y)))
            mean = dist.hidden.mean(dist.hidden_field(y))
            error = (y - dist.visible.mean(dist.visible_field(mean))).square()
            errors.append(groups.unpack(error.mean(-1)))
            norms.append(dist.weight.norm(dim=(-2, -1)).expand(groups.num_groups))
        metrics[f"free_energy_{name}"] = torch.cat(energies).mean().item()
        if name == "train":
            metrics["reconstruction_error"] = torch.cat(errors).mean().item()
            metrics["weight_norm"] = torch.cat(norms).mean().item()
        else:
            gap = metrics["free_energy_validation"] - metrics["free_energy_train"]
            metrics["free_energy_gap"] = gap
    return metrics
