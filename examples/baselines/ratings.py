# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What ratings are predicted by without an RBM: counts of an item, biases, matrix factorisation."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["BiasModel", "MatrixFactorization", "fit_als", "fit_biases", "item_probabilities"]


def item_probabilities(known: Any, num_states: int, strength: float = 5.0) -> Tensor:
    """Shares of the ratings of every item, shrunk to those of all items, shape ``(items, states)``.

    :param known: ratings with ``item``, ``value`` (from 0) and ``num_items``.
    :param int num_states: number of values.
    :param float strength: how many ratings those of all items count as.
    """
    counts = torch.zeros(known.num_items, num_states)
    counts.index_put_((known.item, known.value), torch.ones(len(known.value)), accumulate=True)
    overall = (counts.sum(0) + 1.0) / (counts.sum() + num_states)
    return (counts + strength * overall) / (counts.sum(1, keepdim=True) + strength)


@dataclass(frozen=True)
class BiasModel:
    r"""A normal rating around :math:`\mu + b_u + c_i`, cut into bins for probabilities.

    :param float mean: :math:`\mu`.
    :param Tensor user: b, shape ``(users,)``.
    :param Tensor item: c, shape ``(items,)``.
    """

    mean: float
    user: Tensor
    item: Tensor

    def expected(self, user: Tensor, item: Tensor) -> Tensor:
        """Predicted values of some pairs."""
        return self.mean + self.user[user] + self.item[item]


@dataclass(frozen=True)
class MatrixFactorization:
    r"""A normal rating around the biases plus :math:`p_u^\top q_i`.

    :param BiasModel biases: the biases.
    :param Tensor user: p, shape ``(users, rank)``.
    :param Tensor item: q, shape ``(items, rank)``.
    """

    biases: BiasModel
    user: Tensor
    item: Tensor

    def expected(self, user: Tensor, item: Tensor) -> Tensor:
        """Predicted values of some pairs."""
        return self.biases.expected(user, item) + (self.user[user] * self.item[item]).sum(-1)


def fit_biases(known: Any, ridge: float = 5.0, num_sweeps: int = 20) -> BiasModel:
    """Ridge regression on users and items by alternating least squares.

    :param known: ratings with ``user``, ``item``, ``value``, ``num_users`` and ``num_items``.
    :param float ridge: penalty of the squared biases, in ratings.
    """
    value = known.value.float()
    mean = value.mean().item()
    user, item = torch.zeros(known.num_users), torch.zeros(known.num_items)
    for _ in range(num_sweeps):
        item = _shrunk_mean(value - mean - user[known.user], known.item, known.num_items, ridge)
        user = _shrunk_mean(value - mean - item[known.item], known.user, known.num_users, ridge)
    return BiasModel(mean, user, item)


def fit_als(
    known: Any, rank: int, ridge: float, *, num_sweeps: int = 20, seed: int = 0
) -> MatrixFactorization:
    r"""Matrix factorisation of what the biases leave, by alternating least squares on the known ratings,

    .. math:: \min_{p, q} \sum_{known} (r - \mu - b_u - c_i - p_u^\top q_i)^2
        + \lambda \bigl(\sum_u \|p_u\|^2 + \sum_i \|q_i\|^2\bigr) .

    :param known: see :func:`fit_biases`.
    :param int rank: length of p and q.
    :param float ridge: :math:`\lambda`.
    """
    biases = fit_biases(known)
    rest = known.value.float() - biases.expected(known.user, known.item)
    generator = torch.Generator().manual_seed(seed)
    item = 0.1 * torch.randn(known.num_items, rank, generator=generator)
    user = torch.zeros(known.num_users, rank)
    for _ in range(num_sweeps):
        user = _regress(rest, item[known.item], known.user, known.num_users, ridge)
        item = _regress(rest, user[known.user], known.item, known.num_items, ridge)
    return MatrixFactorization(biases, user, item)


def _shrunk_mean(values: Tensor, group: Tensor, count: int, ridge: float) -> Tensor:
    total = torch.zeros(count).index_add_(0, group, values)
    return total / (torch.bincount(group, minlength=count) + ridge)


def _regress(target: Tensor, features: Tensor, group: Tensor, count: int, ridge: float) -> Tensor:
    """Ridge regressions, one a group; groups without a row have zeros."""
    rank = features.shape[1]
    gram = ridge * torch.eye(rank).repeat(count, 1, 1)
    gram.index_add_(0, group, features.unsqueeze(-1) * features.unsqueeze(-2))
    right = torch.zeros(count, rank).index_add_(0, group, features * target.unsqueeze(-1))
    return torch.linalg.solve(gram, right)
