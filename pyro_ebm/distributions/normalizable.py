# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""When is the partition function finite?"""

import torch
from torch import Tensor

from pyro_ebm.distributions.units import ReLU, Unit

__all__ = ["check_normalizable", "largest_coupling"]


@torch.no_grad()
def check_normalizable(visible: Unit, hidden: Unit, weight: Tensor) -> None:
    r"""Refuse a pair of continuous layers whose energy may be unbounded below.

    With a discrete layer Z is a finite sum of finite integrals. With precisions P and G on two
    continuous layers the quadratic part is positive definite if and only if the largest singular
    value of :math:`S = P^{-1/2} W G^{-1/2}` is below 1. Rectified units need less, positivity on the
    cone :math:`x \ge 0`: there it suffices that the same holds for the positive part of S (two
    rectified layers) or of :math:`S^\top S` (one), and the smaller of the two norms decides. In general
    :math:`P^{-1/2}` and :math:`G^{-1/2}` are roots of the inverse quadratic parts
    (:meth:`~pyro_ebm.distributions.units.Unit.covariance_root`), and discrete entries of a mixed layer,
    which are bounded, have no part in S.

    :raises ValueError: if the condition fails.
    """
    largest = largest_coupling(visible, hidden, weight)
    if largest is not None and bool((largest >= 1.0).any()):
        names = f"{type(visible).__name__}-{type(hidden).__name__}"
        raise ValueError(
            f"this {names} machine is not normalisable (or not provably so): the largest singular "
            f"value of P^(-1/2) W G^(-1/2) is {largest.max().item():.4g} and must be below 1"
        )


@torch.no_grad()
def largest_coupling(visible: Unit, hidden: Unit, weight: Tensor) -> Tensor | None:
    """The number that must be below 1 in :func:`check_normalizable`, float64, shape of the parameters' batch;
    None if a layer is discrete, so that there is no such condition."""
    if visible.is_discrete or hidden.is_discrete:
        return None
    scaled = _scaled(visible, hidden, weight).double()
    rectified = [_is_rectified(unit) for unit in (visible, hidden)]
    largest = torch.linalg.matrix_norm(scaled, ord=2)
    # Dropping the negative entries can also raise the norm, so it is never the only test.
    if all(rectified):
        cone = torch.linalg.matrix_norm(scaled.clamp(min=0.0), ord=2)
        largest = torch.minimum(largest, cone)
    elif any(rectified):
        # Integrate the Gaussian side out; what remains is quadratic on the rectified one.
        gram = scaled.mT @ scaled if rectified[1] else scaled @ scaled.mT
        cone = torch.linalg.matrix_norm(gram.clamp(min=0.0), ord=2).sqrt()
        largest = torch.minimum(largest, cone)
    return largest


def _scaled(visible: Unit, hidden: Unit, weight: Tensor) -> Tensor:
    """S, with a row and a column for every continuous entry."""
    half = visible.covariance_root(weight)
    whole = None if half is None else hidden.covariance_root(half.mT)
    if whole is None:
        unknown = visible if half is None else hidden
        raise ValueError(
            f"a machine of two continuous layers needs their quadratic parts, which "
            f"{type(unknown).__name__} does not say (covariance_root)"
        )
    return whole.mT


def _is_rectified(unit: Unit) -> bool:
    """Whether all continuous entries are non-negative, each with a row of its own in S."""
    return all(isinstance(part, ReLU) for _, part in unit.parts() if not part.is_discrete)
