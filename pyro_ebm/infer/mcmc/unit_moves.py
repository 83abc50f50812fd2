# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Moves of discrete units from first-order differences: the proposals of informed kernels."""

from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor
from torch.distributions import constraints
from torch.nn.functional import pad

from pyro_ebm.distributions.constraints import flat_one_hot, spin
from pyro_ebm.ops.numerics import softplus_sum
from pyro_ebm.ops.random import bernoulli_from_logits, categorical_from_logits

__all__ = ["BinaryMoves", "OneHotMoves", "UnitMoves", "moves_of"]


class UnitMoves(ABC):
    r"""The two proposals of informed samplers for the units of one family.

    Both are made of the differences of the log-density to first order,
    :math:`d_{ik} = g_i^\top (s_k - x_i)`, for unit i in its present state :math:`x_i`, the gradient g
    and every state :math:`s_k` of the unit. Log-probabilities are functions of their arguments alone.
    Event axes are last; any axes may stand in front.
    """

    @abstractmethod
    def single_logits(self, v: Tensor, gradient: Tensor) -> Tensor:
        """``d / 2`` of every change of one unit, minus infinity where nothing would change."""

    @abstractmethod
    def _apply_single(self, v: Tensor, change: Tensor) -> Tensor:
        """The states after a change that is coded as a one-hot vector, or as zeros for none."""

    @abstractmethod
    def _changes(self, v: Tensor, v_new: Tensor) -> Tensor:
        """The code of the changes between two states, ones at every unit that differs."""

    @abstractmethod
    def sample_joint(
        self, v: Tensor, gradient: Tensor, step_size: Tensor, generator: Generator | None
    ) -> Tensor:
        r"""New states of all units at once, :math:`q_i(s_k) \propto
        \exp(d_{ik} / 2 - |s_k - x_i|^2 / (2 \alpha))`.

        :param Tensor step_size: :math:`\alpha`, without event axes.
        """

    @abstractmethod
    def joint_log_prob(
        self, v: Tensor, gradient: Tensor, step_size: Tensor, v_new: Tensor
    ) -> Tensor:
        """Log-probability that :meth:`sample_joint` proposes ``v_new``."""

    @property
    @abstractmethod
    def squared_distance(self) -> float:
        """Squared Euclidean distance between two states of a unit."""

    @abstractmethod
    def random_states(self, like: Tensor, generator: Generator | None = None) -> Tensor:
        """Uniformly random states of the shape and dtype of a tensor."""

    def sample_single(self, v: Tensor, gradient: Tensor, generator: Generator | None) -> Tensor:
        r"""States with one unit changed, with probability :math:`\propto \exp(d_{ik} / 2)`, or the same
        states, with weight :math:`\exp(0) = 1`.
        """
        logits = pad(self.single_logits(v, gradient), (0, 1))
        return self._apply_single(v, categorical_from_logits(logits, generator)[..., :-1])

    def single_log_prob(self, v: Tensor, gradient: Tensor, v_new: Tensor) -> Tensor:
        """Log-probability that :meth:`sample_single` proposes ``v_new``, minus infinity for states that
        differ in more than one unit."""
        logits = self.single_logits(v, gradient)
        changes = self._changes(v, v_new)
        chosen = torch.where(changes > 0, logits, 0.0).sum(-1)
        chosen = torch.where(changes.sum(-1) > 1, -torch.inf, chosen)
        return chosen - pad(logits, (0, 1)).logsumexp(-1)


class BinaryMoves(UnitMoves):
    """Units of two values.

    :param float low: one value.
    :param float high: the other.
    """

    def __init__(self, low: float, high: float) -> None:
        self._sum = low + high
        self._distance = high - low

    @property
    def squared_distance(self) -> float:
        return self._distance**2

    def random_states(self, like: Tensor, generator: Generator | None = None) -> Tensor:
        values = 0.5 * (self._sum - self._distance), 0.5 * (self._sum + self._distance)
        return bernoulli_from_logits(torch.zeros_like(like), generator, values=values)

    def _flip(self, v: Tensor) -> Tensor:
        """What a flip adds to every unit."""
        return self._sum - 2.0 * v

    def single_logits(self, v: Tensor, gradient: Tensor) -> Tensor:
        return 0.5 * gradient * self._flip(v)

    def _apply_single(self, v: Tensor, change: Tensor) -> Tensor:
        return torch.addcmul(v, change, self._flip(v))

    def _changes(self, v: Tensor, v_new: Tensor) -> Tensor:
        return (v_new != v).to(v.dtype)

    def _joint_logits(self, v: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        penalty = self.squared_distance / (2.0 * step_size)
        return self.single_logits(v, gradient) - penalty.unsqueeze(-1)

    def sample_joint(
        self, v: Tensor, gradient: Tensor, step_size: Tensor, generator: Generator | None
    ) -> Tensor:
        logits = self._joint_logits(v, gradient, step_size)
        return self._apply_single(v, bernoulli_from_logits(logits, generator))

    def joint_log_prob(
        self, v: Tensor, gradient: Tensor, step_size: Tensor, v_new: Tensor
    ) -> Tensor:
        logits = self._joint_logits(v, gradient, step_size)
        return (logits * self._changes(v, v_new)).sum(-1) - softplus_sum(logits)


class OneHotMoves(UnitMoves):
    """Flattened one-hot groups.

    :param int num_states: states of a group.
    """

    def __init__(self, num_states: int) -> None:
        self.num_states = num_states

    @property
    def squared_distance(self) -> float:
        return 2.0

    def random_states(self, like: Tensor, generator: Generator | None = None) -> Tensor:
        return categorical_from_logits(self._groups(torch.zeros_like(like)), generator).flatten(-2)

    def _groups(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.num_states))

    def _half_differences(self, v: Tensor, gradient: Tensor) -> Tensor:
        """``d / 2`` for every state of every group, shape ``(..., groups, num_states)``."""
        here = self._groups(gradient * v).sum(-1, keepdim=True)
        return 0.5 * (self._groups(gradient) - here)

    def single_logits(self, v: Tensor, gradient: Tensor) -> Tensor:
        half = self._half_differences(v, gradient).flatten(-2)
        return half.masked_fill(v > 0, -torch.inf)

    def _apply_single(self, v: Tensor, change: Tensor) -> Tensor:
        moved = self._groups(change).sum(-1, keepdim=True)
        return (self._groups(v) * (1.0 - moved)).flatten(-2) + change

    def _changes(self, v: Tensor, v_new: Tensor) -> Tensor:
        return v_new * (1.0 - v)

    def _joint_logits(self, v: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        penalty = self.squared_distance / (2.0 * step_size)
        stay = self._groups(v) - 1.0
        return self._half_differences(v, gradient) + penalty[..., None, None] * stay

    def sample_joint(
        self, v: Tensor, gradient: Tensor, step_size: Tensor, generator: Generator | None
    ) -> Tensor:
        logits = self._joint_logits(v, gradient, step_size)
        return categorical_from_logits(logits, generator).flatten(-2)

    def joint_log_prob(
        self, v: Tensor, gradient: Tensor, step_size: Tensor, v_new: Tensor
    ) -> Tensor:
        logits = self._joint_logits(v, gradient, step_size)
        chosen = (logits.flatten(-2) * v_new).sum(-1)
        return chosen - logits.logsumexp(-1).sum(-1)


def moves_of(support: constraints.Constraint, size: int) -> UnitMoves | None:
    """The moves of a layer of discrete units, None if there are none for its support.

    :param support: of event dimension 1: bits, spins or one-hot groups.
    :param int size: entries of the event.
    """
    if support.event_dim != 1:
        return None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.boolean:
        return BinaryMoves(0.0, 1.0)
    if support is spin:
        return BinaryMoves(-1.0, 1.0)
    if isinstance(support, flat_one_hot):
        return OneHotMoves(support.num_states)
    return OneHotMoves(size) if support is constraints.one_hot else None
