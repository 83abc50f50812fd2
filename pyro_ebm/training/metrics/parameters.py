# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Metrics of parameters, gradients and hidden units."""

from typing import Any

from pyro_ebm.distributions.units import Bernoulli, Ising
from pyro_ebm.training.metrics.snapshot import RBMSnapshot, Snapshot
from pyro_ebm.training.regularizers import SPARSE_FAMILIES, Sparsity, weight_penalty

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
    the training rows."""
    return {"weight_norm": s.weight_norm()}


def largest_column_norm(s: RBMSnapshot) -> dict[str, Any]:
    r"""Largest norm :math:`\max_j \|W_{\cdot j}\|_2` of the weights into a hidden unit, what ``max_norm``
    limits."""
    return {"largest_column_norm": s.dist.weight.norm(dim=0).max().item()}


def gradient_norm(s: Snapshot) -> dict[str, Any]:
    r"""Norm :math:`\|g\|_2` of the gradient of the last batch of the epoch over all parameters, as the
    negative phase gives it: with preconditioning and the sparsity term, before clipping, L1 and weight
    decay."""
    assert s.watch is not None and s.watch.gradient_norm is not None
    return {"gradient_norm": s.watch.gradient_norm.item()}


def update_ratio(s: RBMSnapshot) -> dict[str, Any]:
    r"""Size of the last update of the epoch beside the weights, :math:`\|\Delta W\|_F / \|W\|_F`.

    About 1e-3 is usual where learning goes on (Hinton 2010, section 7). A copy of the weights an epoch.
    """
    assert s.watch is not None and s.watch.update_ratio is not None
    return {"update_ratio": s.watch.update_ratio.item()}


def hidden_units(s: RBMSnapshot, threshold: float) -> dict[str, Any]:
    r"""The mean over training rows and units of :math:`E[h_j \mid v]`; for bits and spins also the share of
    units that are dead or saturated.

    A unit is dead if it is on at a rate below ``threshold`` over the training rows, and saturated if above
    1 - ``threshold``: it says the same about every row. The rate is the mean of
    :math:`p(h_j = 1 \mid v_n)`. A product.
    """
    mean = s.hidden_mean("train").mean(0)
    record = {"mean_activation": mean.mean().item()}
    if isinstance(s.dist.hidden, Bernoulli | Ising):
        rate = (mean + 1.0) / 2.0 if isinstance(s.dist.hidden, Ising) else mean
        record["dead_units"] = (rate < threshold).double().mean().item()
        record["saturated_units"] = (rate > 1.0 - threshold).double().mean().item()
    return record


def penalties(s: RBMSnapshot) -> dict[str, Any]:
    r"""What the regularisers add to the loss: :math:`\lambda_1 \sum |W|`,
    :math:`\frac{\lambda_2}{2} \sum W^2` and, for hidden bits and spins, the penalty of
    :class:`~pyro_ebm.training.regularizers.Sparsity` at the rates of the training rows.

    With the costs of the epoch, zero for what is switched off. Weight decay that is decoupled is counted as
    if it were not.
    """
    weight, costs = s.dist.weight, s.penalties
    record = {
        "penalty_l1": weight_penalty(weight, costs["l1"]).item(),
        "penalty_l2": weight_penalty(weight, 0.0, costs["weight_decay"]).item(),
    }
    family = s.module.hidden.family
    if family in SPARSE_FAMILIES:
        sparsity = Sparsity(costs["sparsity_target"], 0.0, family)
        mean = s.hidden_mean("train").mean(0)
        rate = (mean + 1.0) / 2.0 if sparsity.spins else mean
        record["penalty_sparsity"] = costs["sparsity_cost"] * sparsity.penalty(rate).item()
    return record
