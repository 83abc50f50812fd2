# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A stack of RBMs as a deep belief network: a lower bound of its likelihood."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.gibbs_sweep import GibbsSweep
from pyro_ebm.infer.log_partition.likelihood import check_data

__all__ = ["belief_network_log_likelihood"]

#: Entries of the table that the samples of a block of rows make.
_BLOCK_ENTRIES = 2**22


@torch.no_grad()
def belief_network_log_likelihood(
    machines: Sequence[RBM],
    data: Tensor,
    log_partition: Any,
    *,
    num_samples: int = 10,
    generator: Generator | None = None,
) -> Tensor:
    r"""Stochastic lower bound of the log-likelihood of a deep belief network, row by row.

    The network of machines that were trained one on the other is

    .. math::
        p(v, h_1, \dots, h_L) = p_1(v | h_1) \cdots p_{L-1}(h_{L-2} | h_{L-1}) \, p_L(h_{L-1}, h_L)

    with the conditionals of the lower machines and the joint law of the top one, of which alone log Z is
    needed. With S draws from :math:`q(h_1, \dots, h_{L-1} | v) = \prod_l p_l(h_l | h_{l-1})`, the
    machines' own conditionals upwards,

    .. math::
        \log \frac{1}{S} \sum_s \frac{p(v, h^{(s)})}{q(h^{(s)} | v)}

    is returned, with :math:`h_L` summed out. For S = 1 its expectation is the variational bound
    :math:`E_q[\log p(v, h)] + H(q)` that [1] evaluates; it grows with S and tends to log p(v). The exact
    log-likelihood is never below the expectation, apart from the error of log Z: an estimate by annealing is
    too small on average, which makes the result too large.

    **References**

    [1] *On the quantitative analysis of deep belief networks*, Ruslan Salakhutdinov, Iain Murray (2008)

    :param machines: the machines from the bottom to the top, without batch shapes.
    :param Tensor data: states of the lowest visible layer, shape ``(rows, V)``.
    :param log_partition: log Z of the top machine: a number, a tensor or an estimate.
    :param int num_samples: S.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :returns: shape ``(rows,)``, float64.
    :raises TypeError: if something is no RBM.
    :raises ValueError: for sizes or families that do not fit, data outside of the support, batch
        shapes or an impossible number.
    """
    machines = _check(machines, data, num_samples)
    log_z = torch.as_tensor(getattr(log_partition, "value", log_partition), dtype=torch.float64)
    width = num_samples * max(machine.weight.shape[0] for machine in machines)
    parts = []
    for rows in data.split(max(1, _BLOCK_ENTRIES // width)):
        x = rows.to(machines[0].weight).repeat_interleave(num_samples, 0)
        log_w = _log_weights(machines, x, generator).reshape(len(rows), num_samples)
        parts.append(log_w.logsumexp(1) - math.log(num_samples))
    return torch.cat(parts) - log_z.to(parts[0].device)


def _log_weights(machines: Sequence[RBM], x: Tensor, generator: Generator | None) -> Tensor:
    """log of p(v, h) / q(h | v) for one draw a row, but for log Z of the top machine."""
    total = x.new_zeros(len(x), dtype=torch.float64)
    for machine in machines[:-1]:
        h = GibbsSweep(machine, generator).sample_hidden(x)
        # log p(x | h) - log q(h | x), by Bayes' rule within the machine: what remains are free energies.
        hidden_free_energy = machine.transpose().free_energy(h)
        total += (hidden_free_energy - machine.free_energy(x)).double()
        x = h
    return total - machines[-1].free_energy(x).double()


def _check(machines: Sequence[RBM], data: Tensor, num_samples: int) -> list[RBM]:
    machines = list(machines)
    if not machines:
        raise ValueError("machines must be at least one RBM, got none")
    for number, machine in enumerate(machines):
        if not isinstance(machine, RBM):
            raise TypeError(f"machine {number} must be an RBM, got {type(machine).__name__}")
        if machine.batch_shape:
            raise ValueError(f"machine {number} has the batch shape {tuple(machine.batch_shape)}")
    for number, (below, above) in enumerate(pairwise(machines)):
        if below.hidden.size != above.visible.size:
            raise ValueError(
                f"machine {number} has {below.hidden.size} hidden entries, machine {number + 1} "
                f"{above.visible.size} visible ones"
            )
        if below.hidden.signature() != above.visible.signature():
            raise ValueError(
                f"the hidden layer of machine {number} is {below.hidden!r}, the visible layer of machine "
                f"{number + 1} {above.visible!r}: states of one must be states of the other"
            )
    if data.dim() != 2 or data.shape[1] != machines[0].visible.size or not len(data):
        raise ValueError(
            f"data must have shape (rows >= 1, {machines[0].visible.size}), got {tuple(data.shape)}"
        )
    check_data(machines[0], data)
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be a whole number >= 1, got {num_samples!r}")
    return machines
