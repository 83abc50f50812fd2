# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Machines within the distributions that Pyro wraps them in: ``.mask()``, ``.to_event()``, expansion."""

from collections.abc import Callable
from typing import Any

from pyro.distributions.torch_distribution import (
    ExpandedDistribution,
    MaskedDistribution,
    TorchDistributionMixin,
)
from torch import Tensor
from torch.distributions import Independent

from pyro_ebm.distributions.energy_based import EnergyBased

__all__ = ["is_masked_out", "replace_machine", "wrapped_machine"]


def wrapped_machine(fn: Any) -> EnergyBased | None:
    """The machine that a distribution is, or wraps at any depth; None if there is none."""
    while fn is not None and not isinstance(fn, EnergyBased):
        fn = getattr(fn, "base_dist", None)
    return fn


def is_masked_out(fn: Any, outer: Any) -> bool:
    """Whether no row counts, from ``mask(False)`` around (``outer``) or within a distribution."""
    while fn is not None:
        if getattr(fn, "_mask", None) is False:
            return True
        fn = getattr(fn, "base_dist", None)
    return outer is False


def replace_machine(
    fn: Any,
    replace: Callable[[EnergyBased, Tensor | None], Any],
    mask: Tensor | None = None,
    *,
    site: str,
) -> Any:
    """A distribution with the machine within it replaced, its masks, event axes and expansion kept.

    :param fn: any distribution; one without a machine is given back as it is.
    :param replace: makes the new distribution from the machine and the mask of its rows (None: all
        rows count); where it returns the machine itself, ``fn`` is given back.
    :param Tensor mask: which rows count from outside.
    :param str site: name of the site, for messages.
    :raises TypeError: if the machine is within something else, such as a mixture of two distributions.
    """
    if isinstance(fn, EnergyBased):
        return replace(fn, mask)
    if not isinstance(fn, TorchDistributionMixin):
        return fn
    if isinstance(fn, MaskedDistribution) and isinstance(fn._mask, Tensor):
        mask = fn._mask if mask is None else fn._mask & mask
    elif isinstance(fn, Independent) and mask is not None:
        mask = mask.reshape(mask.shape + (1,) * fn.reinterpreted_batch_ndims)
    base = getattr(fn, "base_dist", None)
    new: Any = None if base is None else replace_machine(base, replace, mask, site=site)
    if new is base:
        return fn
    if isinstance(fn, MaskedDistribution):
        return new.mask(fn._mask)
    if isinstance(fn, Independent):
        return new.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, ExpandedDistribution):
        return new.expand(fn.batch_shape)
    raise TypeError(
        f"site {site!r}: cannot look inside a {type(fn).__name__} of an energy-based distribution"
    )
