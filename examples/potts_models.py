# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

r"""Potts models for ``structure_learning.py``, :math:`p(x) \propto \exp \sum_{i<j} K_{ij} [x_i = x_j]`, of p
spins with q states each. With two states they are Ising models of couplings :math:`J_{ij} = K_{ij} / 2`."""

import itertools

import torch
from torch import Generator, Size, Tensor
from torch.nn.functional import one_hot

from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.distributions.units import Categorical

#: Models with at most this many states are enumerated.
MAX_STATES = 20_000
#: Sweeps from a random state to a draw where they are not.
_SWEEPS = 1000


def pairs(num_spins: int) -> Tensor:
    """Numbers of the two spins of every pair, shape ``(2, p (p - 1) / 2)``."""
    return torch.triu_indices(num_spins, num_spins, 1)


def matrix(values: Tensor, num_spins: int) -> Tensor:
    """Values of pairs as a symmetric matrix with a zero diagonal, shape ``(..., p, p)``."""
    first, second = pairs(num_spins)
    result = values.new_zeros((*values.shape[:-1], num_spins, num_spins))
    result[..., first, second] = values
    return result + result.mT


def agreement(x: Tensor) -> Tensor:
    """Which pairs of spins are in the same state, shape ``(..., pairs)``, of states ``(..., p)``."""
    first, second = pairs(x.shape[-1])
    return (x[..., first] == x[..., second]).to(torch.get_default_dtype())


def all_states(num_spins: int, num_states: int) -> Tensor:
    """Every state of the model, shape ``(q ** p, p)``."""
    if num_states**num_spins > MAX_STATES:
        raise ValueError(f"{num_spins} spins of {num_states} states are too many to enumerate")
    return torch.tensor(list(itertools.product(range(num_states), repeat=num_spins)))


def can_enumerate(num_spins: int, num_states: int) -> bool:
    """Whether log Z can be summed."""
    return num_states**num_spins <= MAX_STATES


class ExactLikelihood:
    r"""Log-likelihood of data sets with log Z by enumeration:
    :math:`n (K^\top \bar t - \log \sum_x \exp K^\top t(x))` with the mean agreement of pairs in the data.

    :param Tensor x: states, shape ``(sets, n, p)``.
    :param int num_states: q.
    """

    num_biases = 0

    def __init__(self, x: Tensor, num_states: int) -> None:
        self.num_sets, self.num_rows, num_spins = x.shape
        self._mean = agreement(x).mean(1)
        self._table = agreement(all_states(num_spins, num_states))

    def __call__(self, couplings: Tensor, bias: Tensor | None = None) -> Tensor:
        """Couplings of shape ``(..., sets, pairs)`` to values of shape ``(..., sets)``."""
        log_z = (couplings @ self._table.mT).logsumexp(-1)
        return self.num_rows * ((couplings * self._mean).sum(-1) - log_z)


class PseudoLikelihood:
    """Sum of the log-probabilities of every spin given all others (J. Besag, 1975): consistent, no log Z, and
    not the likelihood, so that posteriors with it are at about the right place and not of the right width.

    :param Tensor x: states, shape ``(sets, n, p)``.
    :param int num_states: q.
    :param bool biases: whether states have biases of their own, for data that are not symmetric.
    """

    def __init__(self, x: Tensor, num_states: int, biases: bool = False) -> None:
        self.num_sets, self.num_rows, self.num_spins = x.shape
        self.num_biases = self.num_spins * num_states if biases else 0
        self._states = one_hot(x, num_states).to(torch.get_default_dtype())

    def __call__(self, couplings: Tensor, bias: Tensor | None = None) -> Tensor:
        """Couplings of shape ``(..., sets, pairs)`` to values of shape ``(..., sets)``."""
        # Rows of the product are spins, columns all rows of the data and states.
        own = self._states.transpose(1, 2).flatten(2)
        field = (matrix(couplings, self.num_spins) @ own).unflatten(-1, (self.num_rows, -1))
        if bias is not None:
            field = field + bias.unflatten(-1, (self.num_spins, 1, -1))
        chosen = (field.log_softmax(-1) * self._states.transpose(1, 2)).sum(-1)
        return chosen.sum((-1, -2))


def potts_machine(couplings: Tensor, num_spins: int, num_states: int) -> RBM:
    r"""The Potts model as an RBM: a hidden unit of q states for every pair.

    It pulls both of its spins into its own state with strength w. Summed out, it contributes
    :math:`e^{2 w} + q - 1` where they agree and :math:`2 e^w + q - 2` where they do not; the ratio is
    :math:`e^K` for :math:`e^w = e^K + \sqrt{e^{2 K} + (q - 2) e^K - (q - 1)}`. This is exact.

    :param Tensor couplings: K of every pair, none of them negative, shape ``(pairs,)``.
    """
    if bool((couplings < 0.0).any()):
        raise ValueError("couplings must not be negative: a hidden unit makes its spins agree")
    q, ratio = num_states, couplings.exp()
    pull = (ratio + (ratio.square() + (q - 2) * ratio - (q - 1)).clamp_min(0.0).sqrt()).log()
    ends = one_hot(pairs(num_spins), num_spins).sum(0).to(couplings)
    weight = torch.kron((ends * pull.unsqueeze(-1)).mT.contiguous(), torch.eye(q).to(couplings))
    zeros = couplings.new_zeros
    visible, hidden = Categorical(zeros(num_spins, q)), Categorical(zeros(len(couplings), q))
    return RBM(visible, hidden, weight)


def sample(
    couplings: Tensor, num_spins: int, num_states: int, num_rows: int, generator: Generator
) -> Tensor:
    """Independent draws, shape ``(num_rows, p)``: exact where the states can be enumerated, otherwise by
    block Gibbs of the machine above, one chain a draw."""
    if can_enumerate(num_spins, num_states):
        states = all_states(num_spins, num_states)
        probabilities = (agreement(states) @ couplings).softmax(-1)
        return states[torch.multinomial(probabilities, num_rows, True, generator=generator)]
    sweep = GibbsSweep(potts_machine(couplings, num_spins, num_states), generator)
    start = sweep.initial_visible(Size((num_rows, num_spins * num_states)))
    v = sweep.run(start, _SWEEPS)
    return v.unflatten(-1, (num_spins, num_states)).argmax(-1)
