# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Machines of some of the visible units: what a unit that does not exist leaves of the others."""

import torch
from torch import Tensor

from pyro_ebm.distributions.observed_rows import ObservedRows
from pyro_ebm.distributions.rbm import RBM
from pyro_ebm.distributions.unit_terms import UnitTerms
from pyro_ebm.distributions.units import Bernoulli, Categorical, Ising, Multinomial, Unit
from pyro_ebm.ops.linear import apply_weight

__all__ = ["absent_free_energy", "absent_machine", "check_can_be_absent", "without_offsets"]

_LINEAR = (Bernoulli, Ising, Categorical, Multinomial)


def check_can_be_absent(unit: Unit) -> None:
    """Refuse units whose absence is not the loss of the terms of ``b'v + v'Wh``.

    :param Unit unit: the visible layer.
    :raises ValueError: for other units than bits, spins, one-hot groups and counts.
    """
    for _, part in unit.parts():
        if not isinstance(part, _LINEAR):
            raise ValueError(
                "absent units must be bits, spins, one-hot groups or counts, whose energy is linear "
                f"in their state, got {type(part).__name__} units; sum missing ones out instead"
            )


def without_offsets(dist: RBM) -> RBM:
    """The same machine, energies included, with its offsets absorbed into the biases.

    :param RBM dist: the machine.
    """
    if dist._visible_offset is None and dist._hidden_offset is None:
        return dist
    pull = apply_weight(dist.visible_offset, dist.weight)
    visible, constant_v = dist.visible.tilt(-apply_weight(dist.hidden_offset, dist.weight.mT))
    hidden, constant_h = dist.hidden.tilt(-pull)
    constant = constant_v + constant_h - (pull * dist.hidden_offset).sum(-1)
    if dist._constant is not None:
        constant = constant + dist._constant
    new = RBM(
        visible, hidden, dist.weight, num_gibbs_steps=dist.num_gibbs_steps, validate_args=False
    )
    new._constant = constant
    new._validate_args = dist._validate_args
    new._batch_shape = dist.batch_shape
    return new


def absent_machine(dist: RBM, observed: Tensor) -> RBM:
    r"""Machines of the units that each row has, as one machine with a batch shape.

    A row's machine has the energy

    .. math:: E_o(v_o, h) = u_h(h) + \sum_{i \in o} \bigl[u_i(v_i) - v_i W_i h\bigr]

    of the machine *without offsets* (which are absorbed first, so that they change no probability), and a
    normaliser :math:`Z_o` of its own: log Z of the result. Absent units are kept as ones without couplings,
    whose part in Z is taken away, so that every estimator of log Z and every kernel takes the result. Its
    weight is repeated for every row: take some rows at a time.

    :param RBM dist: the machine, without a batch shape.
    :param Tensor observed: boolean, shape ``(..., V)``; True where a row has the unit.
    :returns: a machine of batch shape ``observed.shape[:-1]``.
    :raises ValueError: for visible units that cannot be absent, a batch shape, or a mask that is not boolean,
        has another size or divides a unit.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM, absent_machine
    >>> from pyro_ebm.infer import exact_log_partition
    >>> rbm = BernoulliRBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2))
    >>> observed = torch.tensor([[True, False, True], [False, False, False]])
    >>> exact_log_partition(absent_machine(rbm, observed)).exp().round()
    tensor([16.,  4.], dtype=torch.float64)
    """
    rows = present_units(dist, observed)
    plain = without_offsets(dist)
    terms = UnitTerms(plain.visible)
    alone = terms.log_partition(plain.weight.new_zeros(plain.visible.size))
    constant = torch.where(rows.units, 0.0, alone).sum(-1)
    if plain._constant is not None:
        constant = constant + plain._constant
    new = RBM(
        plain.visible,
        plain.hidden,
        torch.where(observed.unsqueeze(-1), plain.weight, 0.0),
        num_gibbs_steps=dist.num_gibbs_steps,
        validate_args=False,
    )
    new._constant = constant
    new._validate_args = dist._validate_args
    new._batch_shape = observed.shape[:-1]
    return new


def absent_free_energy(
    dist: RBM, value: Tensor, observed: Tensor, *, validate: bool | None = None
) -> Tensor:
    r"""Free energy :math:`F_o(v_o) = -\log \sum_h e^{-E_o(v_o, h)}` over the units that each row has.

    Absent units contribute nothing, see :func:`absent_machine`. Values of rows with different masks lack
    different :math:`\log Z_o`: do not compare them.

    :param RBM dist: the machine, without a batch shape.
    :param Tensor value: shape ``(..., V)``; read only where ``observed`` is True.
    :param Tensor observed: boolean, shape ``(..., V)``; True where a row has the unit.
    :param validate: whether to look at the numbers; None for the machine's own setting.
    :returns: shape ``broadcast(value, observed).shape[:-1]``, differentiable in the parameters.
    :raises ValueError: for visible units that cannot be absent, a batch shape, or rows that
        :class:`~pyro_ebm.distributions.observed_rows.ObservedRows` refuses.
    """
    present_rows(dist, value, observed, validate=validate)
    plain = without_offsets(dist)
    rows = ObservedRows(plain, value, observed, validate=False)
    field = apply_weight(rows.value, plain.weight)
    energy = rows.energy() - plain.hidden.log_partition(field)
    return energy if plain._constant is None else energy + plain._constant


def present_rows(
    dist: RBM, value: Tensor, observed: Tensor, *, validate: bool | None = None
) -> ObservedRows:
    """Rows whose other units do not exist, checked.

    :raises ValueError: see :func:`absent_free_energy`.
    """
    check_can_be_absent(dist.visible)
    if dist.parameter_batch_shape.numel() != 1 or dist.batch_shape:
        raise ValueError(
            f"dist must be one machine, got one of batch shape {tuple(dist.batch_shape)}"
        )
    return ObservedRows(dist, value, observed, validate=validate)


def present_units(dist: RBM, observed: Tensor) -> ObservedRows:
    """Rows of which only the units are known, checked; their values are zeros.

    :raises ValueError: see :func:`absent_machine`.
    """
    # Broadcasts with any mask, and is never looked at.
    zeros = dist.weight.new_zeros(dist.visible.size)
    rows = present_rows(dist, zeros, observed, validate=False)
    rows.terms.check_whole(observed)
    return rows
