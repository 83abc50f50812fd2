# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The exact negative log-likelihood of small conditional machines, as a loss."""

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.reduction import reduced_machine
from pyro_ebm.distributions.sampling import MAX_EXACT_STATES
from pyro_ebm.infer.conditional.contexts import (
    ConditionalModel,
    condition,
    unique_contexts,
)
from pyro_ebm.infer.conditional.density import check_data, grouped_free_energy
from pyro_ebm.infer.log_partition import exact_log_partition
from pyro_ebm.ops.grouping import group_blocks

__all__ = ["conditional_nll", "exact_by_reduction"]

_REDUCTIONS = ("mean", "sum", "none")


def exact_by_reduction(dist: RBM, max_states: int) -> Tensor:
    """Exact log Z, by way of the reduced machine where that has fewer products to sum.

    :param RBM dist: the machine.
    :param int max_states: refuse more states than this.
    """
    if dist.visible.is_gaussian != dist.hidden.is_gaussian:
        dist = reduced_machine(dist.to(torch.float64))
    return exact_log_partition(dist, max_states=max_states)


def conditional_nll(
    model: ConditionalModel,
    data: Tensor,
    context: Tensor,
    *,
    max_states: int = MAX_EXACT_STATES,
    reduction: str = "mean",
) -> Tensor:
    r"""Exact negative log-likelihood :math:`F(y | x) + \log Z(x)`, differentiable: maximum likelihood by any
    optimiser, without chains, for machines with a layer of up to about 16 bits.

    log Z is enumerated once for every **different** context of the batch. With a Gaussian layer the
    other one is enumerated on the :func:`reduced machine <pyro_ebm.distributions.reduced_machine>`, so
    that its cost does not depend on the number of Gaussian units. First derivatives are exact, but
    with a Gaussian layer second ones are not.

    :param model: anything with a method ``condition(context)`` that makes an
        :class:`~pyro_ebm.distributions.RBM`, such as a ``NeuralBoltzmannMachine``.
    :param Tensor data: y, shape ``(rows, V)``.
    :param Tensor context: x, shape ``(rows, n_x)``.
    :param int max_states: refuse to enumerate more states than this.
    :param str reduction: ``"mean"`` or ``"sum"`` over rows, or ``"none"``.
    :returns: a scalar, or shape ``(rows,)`` without a reduction; float64.
    :raises ValueError: for wrong shapes, contexts or data that are not finite, data outside of the
        support, or where no layer is small enough.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> class Table(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.weight = torch.nn.Parameter(torch.zeros(2, 4, 3))
    ...     def condition(self, context):
    ...         weight = self.weight[context.squeeze(-1).long()]
    ...         return BernoulliRBM(weight, weight.new_zeros(4), weight.new_zeros(3))
    >>> conditional_nll(Table(), torch.ones(5, 4), torch.tensor([[0.0], [1.0], [1.0], [0.0], [1.0]]))
    tensor(2.7726, dtype=torch.float64, grad_fn=<MeanBackward0>)
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")
    contexts, index = unique_contexts(context)
    parts: list[Tensor] = []
    order: list[Tensor] = []
    for block in group_blocks(index):
        dist = condition(model, contexts[block.groups])
        if not parts:
            check_data(dist, data, len(context))
        log_z = exact_by_reduction(dist, max_states)
        rows = data[block.rows.to(data.device)]
        energy = grouped_free_energy(dist, rows, block.position.to(dist.weight.device))
        parts.append(energy + log_z[block.position.to(log_z.device)])
        order.append(block.rows)
    nll = torch.cat(parts)
    if reduction == "none":
        return nll[torch.argsort(torch.cat(order)).to(nll.device)]
    return nll.mean() if reduction == "mean" else nll.sum()
