# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Supports that torch does not have: spins, flattened one-hot groups, counts with a fixed total, and
vectors made of several."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import CatTransform, Transform

__all__ = ["concatenation", "counts", "flat_one_hot", "spin"]


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


class concatenation(constraints.Constraint):
    """Vectors that are made of vectors with a support each, of event dimension 1.

    ``torch.distributions.constraints.cat`` joins the answers of its parts along the axis that supports of
    vectors do not leave.

    :param supports: the supports of the parts.
    :param lengths: their numbers of entries.
    """

    event_dim = 1

    def __init__(self, supports: Sequence[constraints.Constraint], lengths: Sequence[int]) -> None:
        self.supports = tuple(supports)
        self.lengths = tuple(lengths)

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        """Whether any entry is discrete, as torch says it of its own compound supports."""
        return any(support.is_discrete for support in self.supports)

    def check(self, value: Tensor) -> Tensor:
        parts = value.split(self.lengths, -1)
        valid = value.new_ones(value.shape[:-1], dtype=torch.bool)
        for support, part in zip(self.supports, parts, strict=True):
            valid = valid & support.check(part)
        return valid

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{n} of {support}" for n, support in zip(self.lengths, self.supports, strict=True)
        )
        return f"concatenation({parts})"


@biject_to.register(concatenation)
@transform_to.register(concatenation)
def _to_concatenation(support: concatenation) -> Transform:
    return CatTransform([biject_to(part) for part in support.supports], -1, support.lengths)


spin = _Spin()
