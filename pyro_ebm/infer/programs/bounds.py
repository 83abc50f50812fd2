# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Intervals that supports of single units are."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ebm.distributions.constraints import concatenation, counts, flat_one_hot, spin

__all__ = ["hull_of", "interval_of", "is_inside", "is_inside_hull", "is_same"]

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


def hull_of(support: Any) -> tuple[Bound, Bound] | None:
    """The smallest interval with all states of the units of a discrete support; None if there is no bound
    that is known. Of a layer of several families it is the interval that they share."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, concatenation):
        parts = [hull_of(p) if p.is_discrete else interval_of(p) for p in support.supports]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        # The bounds of these supports are numbers.
        return max(float(low) for low, _ in known), min(float(high) for _, high in known)
    if support is constraints.boolean or isinstance(support, flat_one_hot):
        return 0.0, 1.0
    if support is spin:
        return -1.0, 1.0
    if isinstance(support, counts):
        return 0.0, float(support.total_count)
    return None


def is_inside_hull(support: Any, discrete: Any) -> bool:
    """Whether a support lies within the hull of the states of a discrete one. Beyond it no energy is bounded:
    the density of a relaxed unit has no integral there. False where this cannot be told."""
    hull = hull_of(discrete)
    own = (0.0, 1.0) if support is constraints.simplex else interval_of(support)
    if hull is None or own is None:
        return False
    return _all(torch.ge, own[0], hull[0]) and _all(torch.le, own[1], hull[1])


def _all(compare: Any, a: Bound, b: Bound) -> bool:
    return bool(compare(torch.as_tensor(a), torch.as_tensor(b)).all())
