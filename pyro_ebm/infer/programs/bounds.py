# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Intervals that supports of single units are."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["interval_of", "is_inside", "is_same"]

Bound = float | Tensor
_LOWER = (constraints.greater_than, constraints.greater_than_eq)
_BOTH = (constraints.interval, constraints.half_open_interval)


def interval_of(support: Any) -> tuple[Bound, Bound] | None:
    """Lower and upper bound of the units of a support; None if it is no product of intervals."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.real:
        return -math.inf, math.inf
    if isinstance(support, _LOWER):
        return support.lower_bound, math.inf
    if isinstance(support, constraints.less_than):
        return -math.inf, support.upper_bound
    if isinstance(support, _BOTH) and not support.is_discrete:
        return support.lower_bound, support.upper_bound
    return None


def is_same(support: Any, other: Any) -> bool:
    """Whether two supports are the same up to their bounds, which have no mass."""
    if support is other:
        return True
    own, others = interval_of(support), interval_of(other)
    if own is None or others is None:
        return False
    return all(_all(torch.eq, a, b) for a, b in zip(own, others, strict=True))


def is_inside(support: Any, other: Any) -> bool:
    """Whether a support lies within another one, as far as both are intervals; otherwise True."""
    own, others = interval_of(support), interval_of(other)
    if own is None or others is None:
        return True
    return _all(torch.ge, own[0], others[0]) and _all(torch.le, own[1], others[1])


def _all(compare: Any, a: Bound, b: Bound) -> bool:
    return bool(compare(torch.as_tensor(a), torch.as_tensor(b)).all())
