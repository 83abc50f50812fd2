# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Metrics of parameters, gradients and hidden units."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.distributions.units import Bernoulli, Ising
from pyro_ebm.training.metrics.snapshot import DeepSnapshot, Snapshot
from pyro_ebm.training.regularizers import Sparsity, weight_penalty

__all__ = [
    "gradient_norm",
    "hidden_units",
    "largest_column_norm",
    "penalties",
    "update_ratio",
    "weight_norm",
]


def weight_norm(s: Snapshot) -> dict[str, Any]:
    r"""Frobenius norm :math:`\|W\|_F` of the weights; of a conditional model the mean over the contexts of
    the training rows. Of a deep machine that of all weights together, and that of the weights into every
    layer ("weight_norm_h1", ...)."""
    record = {"weight_norm": s.weight_norm()}
    if not isinstance(s, DeepSnapshot):
        return record
    return record | _by_layer("weight_norm", [weight.norm() for weight in s.weights()])


def _by_layer(name: str, values: Sequence[Tensor]) -> dict[str, Any]:
    """Numbers of hidden layers, the lowest first."""
    numbers = torch.stack(list(values)).tolist()
    return {f"{name}_h{layer}": value for layer, value in enumerate(numbers, start=1)}


def largest_column_norm(s: Snapshot) -> dict[str, Any]:
    r"""Largest norm :math:`\max_j \|W_{\cdot j}\|_2` of the weights into a hidden unit from below, what
    ``max_norm`` limits; of a deep machine also by layer."""
    norms = [weight.norm(dim=0).max() for weight in s.weights()]
    record = {"largest_column_norm": torch.stack(norms).max().item()}
    return record | (_by_layer("largest_column_norm", norms) if isinstance(s, DeepSnapshot) else {})


def gradient_norm(s: Snapshot) -> dict[str, Any]:
    r"""Norm :math:`\|g\|_2` of the gradient of the last batch of the epoch over all parameters, as the
    negative phase gives it: with preconditioning and the sparsity term, before clipping, L1 and weight
    decay. Of a deep machine also that of the weights into every layer."""
    assert s.watch is not None and s.watch.gradient_norm is not None
    record = {"gradient_norm": s.watch.gradient_norm.item()}
    if isinstance(s, DeepSnapshot) and s.watch.weight_gradient_norms is not None:
        record |= _by_layer("gradient_norm", list(s.watch.weight_gradient_norms))
    return record


def update_ratio(s: Snapshot) -> dict[str, Any]:
    r"""Size of the last update of the epoch beside the weights, :math:`\|\Delta W\|_F / \|W\|_F`; of a deep
    machine that of all weights together and by layer.

    About 1e-3 is usual where learning goes on (Hinton 2010, section 7). A copy of the weights an epoch.
    """
    assert s.watch is not None and s.watch.update_ratio is not None
    record = {"update_ratio": s.watch.update_ratio.item()}
    if isinstance(s, DeepSnapshot) and s.watch.update_ratios is not None:
        record |= _by_layer("update_ratio", list(s.watch.update_ratios))
    return record


def hidden_units(s: Snapshot, threshold: float) -> dict[str, Any]:
    r"""The mean over training rows and units of :math:`E[h_j \mid v]`; for bits and spins also the share of
    units that are dead or saturated.

    A unit is dead if it is on at a rate below ``threshold`` over the training rows, and saturated if above
    1 - ``threshold``: it says the same about every row. The rate is the mean of
    :math:`p(h_j = 1 \mid v_n)`, in a deep machine of the mean field. A product. Of a deep machine also by
    layer ("dead_units_h1", ...).
    """
    means, dead, saturated = [], {}, {}
    for layer, (unit, states) in enumerate(s.hidden_layers(), start=1):
        means.append(states.mean(0))
        if isinstance(unit, Bernoulli | Ising):
            rate = 0.5 * (means[-1] + 1.0) if isinstance(unit, Ising) else means[-1]
            dead[layer] = (rate < threshold).double()
            saturated[layer] = (rate > 1.0 - threshold).double()
    record = {"mean_activation": torch.cat(means).mean().item()}
    deep = isinstance(s, DeepSnapshot)
    if deep:
        record |= _by_layer("mean_activation", [mean.mean() for mean in means])
    for name, found in (("dead_units", dead), ("saturated_units", saturated)):
        if found:
            record[name] = torch.cat(list(found.values())).mean().item()
        if deep:
            record |= {f"{name}_h{layer}": x.mean().item() for layer, x in found.items()}
    return record


def penalties(s: Snapshot) -> dict[str, Any]:
    r"""What the regularisers add to the loss: :math:`\lambda_1 \sum |W|`,
    :math:`\frac{\lambda_2}{2} \sum W^2` and, for hidden bits and spins, the penalty of
    :class:`~pyro_ebm.training.regularizers.Sparsity` at the rates of the training rows.

    With the costs of the epoch, zero for what is switched off, over all layers of a deep machine. Weight
    decay that is decoupled is counted as if it were not.
    """
    weights, costs = s.weights(), s.penalties
    record = {
        "penalty_l1": sum(weight_penalty(w, costs["l1"]).item() for w in weights),
        "penalty_l2": sum(weight_penalty(w, 0.0, costs["weight_decay"]).item() for w in weights),
    }
    found = []
    for (unit, states), (cost, target) in zip(s.hidden_layers(), s.sparsity, strict=True):
        if isinstance(unit, Bernoulli | Ising):
            spins = isinstance(unit, Ising)
            mean = states.mean(0)
            rate = 0.5 * (mean + 1.0) if spins else mean
            sparsity = Sparsity(target, 0.0, "ising" if spins else "bernoulli")
            found.append(cost * sparsity.penalty(rate).item())
    return record | ({"penalty_sparsity": sum(found)} if found else {})
