# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Supports that torch does not have: spins, flattened one-hot groups, counts with a fixed total."""

import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["counts", "flat_one_hot", "spin"]


class _Spin(constraints.Constraint):
    """Values in {-1, +1}."""

    is_discrete = True
    event_dim = 0

    def check(self, value: Tensor) -> Tensor:
        return (value == 1) | (value == -1)


class flat_one_hot(constraints.Constraint):
    """``num_sites`` one-hot groups of ``num_states`` entries, flattened into the last axis."""

    is_discrete = True
    event_dim = 1

    def __init__(self, num_states: int) -> None:
        self.num_states = num_states

    def check(self, value: Tensor) -> Tensor:
        groups = value.unflatten(-1, (-1, self.num_states))
        boolean = ((groups == 0) | (groups == 1)).all(-1)
        return (boolean & (groups.sum(-1) == 1)).all(-1)

    def __repr__(self) -> str:
        return f"flat_one_hot(num_states={self.num_states})"


class counts(constraints.Constraint):
    """Non-negative integers of the last axis that sum to ``total_count``."""

    is_discrete = True
    event_dim = 1

    def __init__(self, total_count: int) -> None:
        self.total_count = total_count

    def check(self, value: Tensor) -> Tensor:
        whole = ((value >= 0) & (value == torch.floor(value))).all(-1)
        return whole & (value.sum(-1) == self.total_count)

    def __repr__(self) -> str:
        return f"counts(total_count={self.total_count})"


spin = _Spin()
