# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log-likelihoods of data, given log Z or without it."""

from typing import Any

import torch
from torch import Size, Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.distributions.units import Unit
from pyro_ebm.infer.log_partition.row_posteriors import mean_field_bounds

__all__ = ["check_data", "log_likelihood", "pseudo_log_likelihood"]

#: Entries of the table of hidden fields that one chunk of rows may fill: 16 MiB in float32.
_CHUNK_ENTRIES = 2**22


def log_likelihood(dist: RBM | DBM, data: Tensor, log_partition: Any) -> Tensor:
    r"""Log-likelihood :math:`-F(v) - \log Z` of every row.

    With log Z from AIS, a stochastic lower bound, the result is optimistic: report the one from
    reverse AIS beside it.

    Of a deep machine it is the **mean-field bound** of every row less log Z: too low by the divergence of
    the mean field from the posterior, and exact for one hidden layer. Rows are worked off in chunks of
    bounded memory. Tighter are the methods of :func:`deep_log_likelihood`.

    :param dist: an RBM, or a DBM without a batch shape.
    :param Tensor data: shape ``(..., V)``.
    :param log_partition: log Z as a number, a tensor, an estimate or a bracket, whose midpoint counts.
    :returns: shape ``broadcast(data.shape[:-1], batch_shape)``, float64.
    :raises ValueError: if the data has a wrong shape or values outside of the support, or log Z does
        not fit the batch shape.
    """
    check_data(dist, data)
    log_z = torch.as_tensor(getattr(log_partition, "value", log_partition), dtype=torch.float64)
    normalized = dist.to(dtype=torch.float64).normalize(log_z)
    if isinstance(normalized, DBM):
        return _deep_log_likelihood(normalized, data)
    with torch.no_grad():
        return normalized.log_prob(data.to(normalized.weight))


@torch.no_grad()
def _deep_log_likelihood(dbm: DBM, data: Tensor) -> Tensor:
    if dbm.batch_shape:
        raise ValueError(f"a DBM must have no batch shape, got {tuple(dbm.batch_shape)}")
    rows = data.to(dbm.weights[0]).reshape(-1, data.shape[-1])
    bounds = mean_field_bounds(dbm, rows).reshape(data.shape[:-1])
    assert dbm.log_partition is not None
    return bounds - dbm.log_partition


def pseudo_log_likelihood(dist: RBM, data: Tensor) -> Tensor:
    r"""Pseudo-log-likelihood :math:`\sum_i \log p(v_i \mid v_{-i})` of every row, exact over units.

    Needs no log Z. (Averages of free energies over rows must not be taken before the logarithm: the
    result would be far too optimistic.)

    :param RBM dist: an unbatched machine whose visible units have finitely many states each.
    :param Tensor data: shape ``(..., V)``.
    :returns: shape ``data.shape[:-1]``.
    :raises ValueError: if the visible units are continuous, the machine has a batch shape, or the data
        has a wrong shape or values outside of the support.
    :raises TypeError: for a DBM, in which a unit given the others is no easier than log Z.
    """
    if not isinstance(dist, RBM):
        raise TypeError(f"dist must be an RBM, got {type(dist).__name__}")
    check_data(dist, data)
    if dist.batch_shape:
        raise ValueError(
            f"pseudo_log_likelihood takes an unbatched machine, got {tuple(dist.batch_shape)}"
        )
    rows = data.to(dist.weight).reshape(-1, data.shape[-1])
    width = dist.visible.num_units * dist.hidden.size
    with torch.no_grad():
        # Units that differ in their states, those of a mixed layer, one family after the other.
        tables = [
            (entries, part, part.unit_states().to(dist.weight))
            for entries, part in dist.visible.parts()
        ]
        visible = [_visible_log_weights(dist, *table) for table in tables]
        results = []
        for chunk in rows.split(max(1, _CHUNK_ENTRIES // width)):
            of_parts = [
                _pseudo_rows(dist, chunk, entries, states, log_weights)
                for (entries, _, states), log_weights in zip(tables, visible, strict=True)
            ]
            results.append(torch.stack(of_parts).sum(0))
    return torch.cat(results).reshape(data.shape[:-1])


def _pseudo_rows(dist: RBM, v: Tensor, entries: slice, states: Tensor, visible: Tensor) -> Tensor:
    """One chunk: log p(v_i | rest) needs the free energy with unit i in each of its K states.

    :param slice entries: those of units that have the same states.
    """
    num_units, (num_states, width) = len(visible), states.shape
    form = dist.canonical()
    field = torch.addmm(form.hidden_bias, v, form.weight)
    units = v[:, entries].unflatten(-1, (num_units, width))
    weight = form.weight[entries].unflatten(0, (num_units, width))
    own = torch.einsum("bud,udh->buh", units, weight)
    log_p = []
    for k in range(num_states):
        change = torch.einsum("d,udh->uh", states[k], weight) - own
        hidden = dist.hidden.natural_log_partition(field.unsqueeze(1) + change)
        log_p.append(visible[:, k] + hidden)
    stacked = torch.stack(log_p)
    actual = (units.unsqueeze(0) == states[:, None, None, :]).all(-1)
    observed = torch.where(actual, stacked, stacked.new_zeros(())).sum(0)
    return (observed - stacked.logsumexp(0)).sum(-1)


def _visible_log_weights(dist: RBM, entries: slice, part: Unit, states: Tensor) -> Tensor:
    """Log-weight of visible units in each of their states, without the hidden layer.

    The energy of all of them with one unit changed, so that base measures are included; constants of a
    unit cancel in its conditional.

    :param slice entries: those of the units.
    :param Unit part: the units, a layer of one family.
    :param Tensor states: what each of them can be.
    :returns: shape ``(num_units, K)``.
    """
    num_units, (num_states, width) = part.num_units, states.shape
    shift = (dist.canonical().visible_bias - dist.visible.natural_bias)[entries]
    start = states[0].repeat(num_units)
    weights = []
    for unit in range(num_units):
        changed = start.expand(num_states, -1).clone()
        changed[:, unit * width : (unit + 1) * width] = states
        weights.append(changed @ shift - part.energy(changed))
    return torch.stack(weights)


def check_data(dist: RBM | DBM, data: Tensor) -> None:
    """Refuse rows of a wrong shape or outside of the support."""
    shape: Size = data.shape
    if data.dim() == 0 or shape[-1:] != dist.event_shape:
        raise ValueError(f"data must have shape (..., {dist.event_shape[0]}), got {tuple(shape)}")
    valid = dist.support.check(data)
    if not bool(valid.all()):
        bad = int((~valid).sum())
        raise ValueError(f"data has {bad} of {valid.numel()} rows outside of {dist.support}")
