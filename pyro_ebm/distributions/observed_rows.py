# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Rows of visible values, some entries of which are missing."""

from typing import Any

import torch
from torch import Size, Tensor

from pyro_ebm.distributions.rbm import RBM
from pyro_ebm.distributions.unit_terms import UnitTerms

__all__ = ["ObservedRows"]


class ObservedRows:
    """Values with a mask per row, checked against the machine that they are visible states of.

    What stands at missing places (NaN, say) is replaced by zero here, once, and read by nobody.

    :param RBM dist: the machine, of V visible entries.
    :param Tensor value: shape ``(..., V)``, of any dtype; its batch shape broadcasts with the machine's.
    :param Tensor observed: boolean, shape ``(..., V)``; True where an entry is observed. It broadcasts
        with ``value``.
    :param validate: whether to look at the numbers (which waits for the device) and not only at shapes;
        None for the machine's own setting. Layers that are one unit are looked at in any case.
    :raises ValueError: if shapes do not fit, the mask is not boolean, a one-hot group or a layer that
        is one unit is observed in part, or an observed value is not finite or outside of the
        support.
    """

    def __init__(
        self, dist: RBM, value: Tensor, observed: Tensor, *, validate: bool | None = None
    ) -> None:
        _check_shapes(dist.visible.size, value, observed)
        self.terms = UnitTerms(dist.visible)
        #: True where an entry is observed, shape ``(..., V)``.
        self.observed = observed
        #: The observed values, zero at missing places, shape ``(..., V)``.
        self.value = torch.where(observed, value.to(dist.weight.dtype), 0.0)
        #: True where a unit is observed, shape ``(..., n)``.
        self.units = self.terms.units(observed)
        #: Shape of the rows with the batch shape of the machine.
        self.batch_shape = _batch_shape(self.value.shape[:-1], dist.batch_shape)
        wanted = dist._validate_args if validate is None else validate
        if value.numel() > 0:
            if wanted:
                self._check_values()
            else:
                # Such a layer in part has no terms at all: what came out would be no log Z of anything.
                self.terms.check_whole(observed, only_layers=True)

    def _check_values(self) -> None:
        self.terms.check_whole(self.observed)
        if not bool(torch.isfinite(self.value).all()):
            what = "NaN" if bool(torch.isnan(self.value).any()) else "infinite"
            raise ValueError(f"value is {what} at an observed entry")
        inside = self.terms.check_support(self.value)
        bad = ~inside & self.units
        if bool(bad.any()):
            raise ValueError(
                f"value is outside of the support at {int(bad.sum())} of {int(self.units.sum())} "
                "observed units"
            )

    def deviation(self, offset: Tensor | None) -> Tensor:
        """Observed values less an offset, zero at missing places, shape ``(..., V)``."""
        if offset is None:
            return self.value
        return torch.where(self.observed, self.value - offset, 0.0)

    def energy(self) -> Tensor:
        """Energy of the observed units, shape ``(...)``."""
        return self._sum_observed(self.terms.energy(self.value))

    def negative_log_density(self) -> Tensor:
        """``-log p`` of the observed values under the layer alone, shape ``(...)``."""
        no_field = self.value.new_zeros(self.value.shape[-1])
        return self._sum_observed(
            self.terms.energy(self.value) + self.terms.log_partition(no_field)
        )

    def _sum_observed(self, terms: Tensor) -> Tensor:
        return torch.where(self.units, terms, 0.0).sum(-1)

    def complete(self, x: Tensor) -> Tensor:
        """States with the observed values in their places.

        :param Tensor x: shape ``(..., V)``, which broadcasts with the rows.
        """
        return torch.where(self.observed, self.value, x)


def _check_shapes(size: int, value: Any, observed: Any) -> None:
    for name, tensor in (("value", value), ("observed", observed)):
        if not isinstance(tensor, Tensor) or tensor.shape[-1:] != (size,):
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else repr(tensor)
            raise ValueError(f"{name} must be a tensor of shape (..., {size}), got {got}")
    if observed.dtype != torch.bool:
        raise ValueError(f"observed must be boolean, got {observed.dtype}")
    try:
        torch.broadcast_shapes(value.shape, observed.shape)
    except RuntimeError as error:
        raise ValueError(
            f"value of shape {tuple(value.shape)} and observed of shape {tuple(observed.shape)} "
            "do not broadcast"
        ) from error


def _batch_shape(rows: Size, batch: Size) -> Size:
    try:
        return torch.broadcast_shapes(rows, batch)
    except RuntimeError as error:
        raise ValueError(
            f"rows of shape {tuple(rows)} do not broadcast with the batch shape {tuple(batch)}"
        ) from error
