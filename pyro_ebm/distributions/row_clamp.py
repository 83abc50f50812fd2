# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A machine clamped to rows that do not agree on what is observed."""

import torch
from torch import Tensor

from pyro_ebm.distributions.observed_rows import ObservedRows
from pyro_ebm.distributions.rbm import RBM
from pyro_ebm.ops.linear import apply_weight

__all__ = ["clamp_rows", "hidden_log_weight"]


def clamp_rows(dist: RBM, rows: ObservedRows) -> RBM:
    """The machine of :meth:`RBM.clamp_rows` for rows that have been checked."""
    field = apply_weight(rows.deviation(dist._visible_offset), dist.weight)
    hidden, constant = dist.hidden.tilt(field)
    # Decoupled units add the log-partition of their layer to log Z, which the constant takes away.
    constant = constant + rows.negative_log_density()
    if dist._hidden_offset is not None:
        constant = constant + (field * dist._hidden_offset).sum(-1)
    if dist._constant is not None:
        constant = constant + dist._constant
    new = RBM(
        dist.visible,
        hidden,
        torch.where(rows.observed.unsqueeze(-1), 0.0, dist.weight),
        visible_offset=dist._visible_offset,
        hidden_offset=dist._hidden_offset,
        num_gibbs_steps=dist.num_gibbs_steps,
        validate_args=False,
    )
    new._constant = constant
    new._validate_args = dist._validate_args
    new._batch_shape = rows.batch_shape
    return new


def hidden_log_weight(dist: RBM, rows: ObservedRows, h: Tensor) -> Tensor:
    r"""Unnormalised log-posterior of hidden states given the observed entries, missing ones summed out,

    .. math::
        \log w(h) = \log \sum_{v_m} e^{-E(v_o, v_m, h)} = -u_h(h)
            + \sum_{i \in o} \bigl[(v_i - o_i) t_i - u_i(v_i)\bigr]
            + \sum_{i \in m} \bigl[\Gamma_i(t_i) - o_i t_i\bigr], \qquad t = W (h - o_h),

    where i runs over visible units. It is ``-clamped.transpose().free_energy(h)`` of
    :meth:`RBM.clamp_rows` without a weight for every row. By Fisher's identity its gradient in the
    parameters, averaged over draws of h given the observed entries, is that of
    :math:`\log p(v_o) + \log Z`: the positive phase of training on incomplete rows, with less variance
    than that of :math:`-F` at completed rows, as the missing entries are summed out.

    :param RBM dist: the machine.
    :param ObservedRows rows: the rows, of the machine's dtype.
    :param Tensor h: hidden states, shape ``(chains..., rows..., H)``; no gradient flows through them.
    :returns: shape ``(chains..., rows...)``, differentiable in the parameters.
    """
    h = h.detach()
    field = dist.visible_field(h)
    pull = ((rows.value - dist.visible_offset) * field).sum(-1)
    free = torch.where(rows.units, 0.0, rows.terms.log_partition(field)).sum(-1)
    total = pull + free - dist.hidden.energy(h) - rows.energy()
    return total if dist._constant is None else total - dist._constant
