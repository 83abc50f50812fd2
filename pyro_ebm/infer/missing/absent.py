# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Likelihoods and predictions where every row is a machine of the units that it has."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.absent_units import (
    absent_free_energy,
    present_rows,
    present_units,
    without_offsets,
)
from pyro_ebm.distributions.enumeration import state_chunks
from pyro_ebm.distributions.unit_terms import UnitTerms
from pyro_ebm.distributions.units import Multinomial, Unit
from pyro_ebm.infer.log_partition.exact import exact_log_partition

__all__ = ["absent_log_likelihood", "absent_log_partition", "predict_absent"]

#: Entries of the tables of one chunk of pairs: 16 MiB in float32.
_CHUNK_ENTRIES = 2**22


def absent_log_partition(dist: RBM, observed: Tensor, *, max_states: int = 2**16) -> Tensor:
    r"""Exact :math:`\log Z_o` of the machine of the units that each row has, in float64,

    .. math:: Z_o = \sum_h e^{-u_h(h)} \prod_{i \in o} e^{\Gamma_i(W_i h)} .

    The hidden layer is enumerated once for rows of any masks, whose sums are then one matrix product;
    where it is too large, the visible units of one mask after the other are. For machines that are too
    large either way anneal those of some rows at a time:
    ``estimate_log_partition(absent_machine(dist, observed[:100]))``.

    :param RBM dist: the machine, without a batch shape.
    :param Tensor observed: boolean, shape ``(..., V)``; True where a row has the unit.
    :param int max_states: enumerate no more states than this.
    :returns: shape ``observed.shape[:-1]``, differentiable in the parameters.
    :raises ValueError: for visible units that cannot be absent, a batch shape, a mask that divides a unit,
        or too many states.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import absent_log_partition
    >>> rbm = BernoulliRBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2))
    >>> absent_log_partition(rbm, torch.tensor([[True, False, True]])).exp().round()
    tensor([16.], dtype=torch.float64)
    """
    double = dist.to(dtype=torch.float64)
    rows = present_units(double, observed)
    plain = without_offsets(double)
    states = plain.hidden.num_states
    if states is None or states > max_states:
        return _by_mask(plain, observed, max_states)
    terms = UnitTerms(plain.visible)
    present = rows.units.to(plain.weight).reshape(-1, rows.units.shape[-1])

    def log_sum(h: Tensor) -> Tensor:
        tables = terms.log_partition(plain.visible_field(h))
        return torch.logsumexp(present @ tables.mT - plain.hidden.energy(h), -1)

    # A product of rows and states, or of states and visible entries: what is larger.
    chunks = state_chunks(plain.hidden, max(plain.visible.size, len(present) // 16))
    if torch.is_grad_enabled() and any(p.requires_grad for p in plain.parameters()):
        parts = [checkpoint(log_sum, h, use_reentrant=False) for h in chunks]
    else:
        parts = [log_sum(h) for h in chunks]
    total = torch.logsumexp(torch.stack(parts), 0).reshape(observed.shape[:-1])
    return total if plain._constant is None else total - plain._constant


def _by_mask(plain: RBM, observed: Tensor, max_states: int) -> Tensor:
    masks, index = torch.unique(observed.flatten(0, -2), dim=0, return_inverse=True)
    parts = []
    for mask in masks:
        if not bool(mask.any()):
            parts.append(plain.hidden.log_partition().reshape(()))
            continue
        visible = plain.visible.select(mask)
        if visible.num_states is None or visible.num_states > max_states:
            raise ValueError(
                f"the hidden layer and the units of some row have over max_states={max_states} "
                "states; anneal the machines that absent_machine gives"
            )
        machine = RBM(visible, plain.hidden, plain.weight[mask], validate_args=False)
        parts.append(exact_log_partition(machine, max_states=max_states).reshape(()))
    total = torch.stack(parts)[index].reshape(observed.shape[:-1])
    return total if plain._constant is None else total - plain._constant


def absent_log_likelihood(
    dist: RBM, value: Tensor, observed: Tensor, *, max_states: int = 2**16
) -> Tensor:
    r"""Exact :math:`\log p(v_o) = -F_o(v_o) - \log Z_o` under the machine of the units that each row has.

    That is the likelihood of RBM collaborative filtering [1]: weights are shared by all rows, and what a
    row does not have is no part of its machine. It is *not* the marginal of the whole machine, which is
    :func:`observed_log_likelihood`.

    **References**

    [1] *Restricted Boltzmann machines for collaborative filtering*, Ruslan Salakhutdinov, Andriy Mnih,
    Geoffrey Hinton (2007)

    :param RBM dist: the machine, without a batch shape.
    :param Tensor value: shape ``(..., V)``; read only where ``observed`` is True.
    :param Tensor observed: boolean, shape ``(..., V)``; True where a row has the unit.
    :param int max_states: see :func:`absent_log_partition`.
    :returns: shape ``broadcast(value, observed).shape[:-1]``, in float64, differentiable.
    :raises ValueError: see :func:`absent_log_partition` and
        :func:`~pyro_ebm.distributions.absent_free_energy`.
    """
    double = dist.to(dtype=torch.float64)
    energy = absent_free_energy(double, value, observed, validate=True)
    return -energy - absent_log_partition(double, observed, max_states=max_states)


@torch.no_grad()
def predict_absent(
    dist: RBM,
    value: Tensor,
    observed: Tensor,
    row: Tensor,
    unit: Tensor,
    *,
    mean_field: bool = False,
) -> Tensor:
    r"""Probabilities of the states of units that rows do not have, each if it joined its row alone,

    .. math:: p(v_q = k \mid v_o) \propto e^{b_q^k} \prod_j e^{A_j(\theta_j + W_{qj}^k)},
        \qquad \theta = c + W_o^\top v_o,

    exactly and without chains: equation 4 of Salakhutdinov, Mnih and Hinton (2007). It is the
    conditional of the machine of the row's units and q.

    :param RBM dist: the machine, without a batch shape, of bits, spins or one-hot groups.
    :param Tensor value: shape ``(rows, V)``; read only where ``observed`` is True.
    :param Tensor observed: boolean, shape ``(rows, V)``.
    :param Tensor row: numbers of rows, one for every question, shape ``(questions,)``.
    :param Tensor unit: numbers of units, none of them observed in its row, shape ``(questions,)``.
    :param bool mean_field: whether to take :math:`p(v_q \mid E[h \mid v_o])` instead, one mean-field
        step (equations 5 to 7 of the paper), which is faster and less exact.
    :returns: shape ``(questions, K)``, over the states of a unit in their order (``[0, 1]`` of a bit).
    :raises ValueError: for rows or units that do not exist, a unit that is observed, a machine with a batch
        shape or of other units.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import predict_absent
    >>> rbm = BernoulliRBM(torch.tensor([[4.0], [4.0]]), torch.zeros(2), torch.tensor([-4.0]))
    >>> observed = torch.tensor([[True, False]])
    >>> p = predict_absent(rbm, torch.ones(1, 2), observed, torch.tensor([0]), torch.tensor([1]))
    >>> p.round(decimals=3)
    tensor([[0.0350, 0.9650]])
    """
    rows = present_rows(dist, value, observed)
    plain = without_offsets(dist)
    states = _unit_states(plain.visible)
    num_units, width = plain.visible.num_units, states.shape[1]
    _check_questions(rows.units, row, unit, num_units)
    weight = torch.einsum("kw,nwh->nkh", states, plain.weight.unflatten(0, (num_units, width)))
    bias = plain.visible.natural_bias.unflatten(-1, (num_units, width)) @ states.mT
    theta = plain.hidden.theta(plain.hidden_field(rows.value))
    mean = plain.hidden.natural_mean(theta)
    size = max(1, _CHUNK_ENTRIES // weight[0].numel())
    parts = []
    for r, q in zip(row.split(size), unit.split(size), strict=True):
        if mean_field:
            log_weight = (weight[q] @ mean[r].unsqueeze(-1)).squeeze(-1)
        else:
            log_weight = plain.hidden.natural_log_partition(theta[r].unsqueeze(-2) + weight[q])
        parts.append(torch.softmax(bias[q] + log_weight, -1))
    return torch.cat(parts)


def _unit_states(visible: Unit) -> Tensor:
    """The states of one unit, shape ``(K, width)``."""
    if len(visible.parts()) > 1 or isinstance(visible, Multinomial):
        raise ValueError(
            f"dist must have bits, spins or one-hot groups, got {type(visible).__name__} units"
        )
    return visible.unit_states()


def _check_questions(present: Tensor, row: Tensor, unit: Tensor, num_units: int) -> None:
    for name, index, size in (("row", row, len(present)), ("unit", unit, num_units)):
        if index.dim() != 1 or index.dtype != torch.int64 or len(index) != len(row):
            raise ValueError(
                f"{name} must be whole numbers of shape ({len(row)},), got {index.dtype} of shape "
                f"{tuple(index.shape)}"
            )
        if bool(((index < 0) | (index >= size)).any()):
            raise ValueError(f"{name} must be in [0, {size}), got {index.min()} to {index.max()}")
    if bool(present[row, unit].any()):
        raise ValueError("unit is observed in its row: nothing is to be predicted")
