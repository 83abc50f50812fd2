# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Learnable parameters of a layer of units."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from pyro_ebm.distributions import units
from pyro_ebm.distributions.units import Unit
from pyro_ebm.nn.param_store import LocalModule

__all__ = ["FAMILIES", "UnitParameters"]

#: A family's options with their defaults (None: required), by its name.
FAMILIES: dict[str, dict[str, Any]] = {
    "bernoulli": {},
    "ising": {},
    "categorical": {"num_states": None},
    "multinomial": {"total_count": None},
    "gaussian": {"learn_precision": False},
    "relu": {"learn_precision": False},
}

_VECTOR_CLASSES: dict[str, Callable[..., Unit]] = {
    "bernoulli": units.Bernoulli,
    "ising": units.Ising,
    "categorical": units.Categorical,
}

#: Smallest variance that data-driven initialisation believes: constant pixels have none.
_MIN_VARIANCE = 1e-3


class UnitParameters(LocalModule):
    r"""Owns the parameters of one layer; calling it gives the :class:`~pyro_ebm.distributions.units.Unit`.

    Precisions are stored by their logarithm and learnt only on request; others are buffers.

    :param str family: a name of :data:`FAMILIES`.
    :param int size: number of entries of the layer (one-hot groups flattened).
    :param options: options of the family: ``num_states`` of "categorical", ``total_count`` of
        "multinomial", ``learn_precision`` of "gaussian" and "relu".
    :raises ValueError: for an unknown family, or unknown, missing or impossible options.
    """

    def __init__(
        self, family: str, size: int, options: Mapping[str, Any] | None = None, **factory: Any
    ) -> None:
        super().__init__()
        self.family = family
        self.options = _check_options(family, options or {})
        if not is_whole(size):
            raise ValueError(f"size of a layer must be a whole number >= 1, got {size!r}")
        shape: tuple[int, ...] = (size,)
        if family == "categorical":
            num_states = self.options["num_states"]
            if size % num_states:
                raise ValueError(
                    f"{size} entries are no whole number of groups of num_states={num_states}"
                )
            shape = (size // num_states, num_states)
        name = "loc" if family == "gaussian" else "bias"
        self.register_parameter(name, Parameter(torch.zeros(shape, **factory)))
        if "learn_precision" in self.options:
            log_precision = torch.zeros(shape, **factory)
            if self.options["learn_precision"]:
                self.log_precision = Parameter(log_precision)
            else:
                # No parameter without gradient: pyro.param() would switch its gradient on.
                self.register_buffer("log_precision", log_precision)

    def forward(self) -> Unit:
        """The layer with the current parameters."""
        if self.family == "gaussian":
            return units.Gaussian(self.loc, self.log_precision.exp(), validate_args=False)
        if self.family == "relu":
            return units.ReLU(self.bias, self.log_precision.exp(), validate_args=False)
        if self.family == "multinomial":
            count = self.options["total_count"]
            return units.Multinomial(self.bias, count, validate_args=False)
        return _VECTOR_CLASSES[self.family](self.bias, validate_args=False)

    @torch.no_grad()
    def assign(self, unit: Unit) -> None:
        """Copy the parameters of a layer of the same family."""
        for name, value in unit.parameters.items():
            if name == "precision":
                # log(exp(x)) is not x: a precision that stays must not drift by rounding.
                if not torch.equal(value, self.log_precision.exp()):
                    self.log_precision.copy_(value.log())
            else:
                getattr(self, name).copy_(value)

    @torch.no_grad()
    def tilt(self, field: Tensor) -> None:
        """Absorb a field, as :meth:`Unit.tilt <pyro_ebm.distributions.units.Unit.tilt>` does, in place.

        :param Tensor field: shape ``(size,)``.
        """
        bias = self._parameters.get("bias")
        if bias is None:
            self.assign(self().tilt(field)[0])
        else:  # every training step of a centred machine comes here
            bias.add_(field.view_as(bias))

    @torch.no_grad()
    def init_from_data(self, data: Tensor) -> None:
        """Set the layer, without the weights, to the means (and variances) of the data's columns.

        :param Tensor data: shape ``(rows, size)``.
        """
        if self.family == "gaussian":
            # The maximum-likelihood estimate, which one row has too.
            variance = data.var(0, correction=0).clamp(min=_MIN_VARIANCE)
            self.log_precision.copy_(-variance.log())
        self.assign(self().from_mean(data.mean(0)))

    @torch.no_grad()
    def accumulate_gradient(self, gradient: Mapping[str, Tensor], scale: float) -> None:
        """Add ``scale`` times a gradient by the layer's own parameters to ``.grad``."""
        for name, value in gradient.items():
            stored = "log_precision" if name == "precision" else name
            parameter = self._parameters.get(stored)
            if parameter is None or not parameter.requires_grad:
                continue
            if name == "precision":
                value = value * parameter.detach().exp()
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(value, alpha=scale)


def _check_options(family: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if family not in FAMILIES:
        raise ValueError(f"unknown unit family {family!r}; choose from {sorted(FAMILIES)}")
    known = FAMILIES[family]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"unknown options of {family!r} units: {unknown}; known: {sorted(known)}")
    merged = {**known, **options}
    missing = [name for name, value in merged.items() if value is None]
    if missing:
        raise ValueError(f"{family!r} units need the options {missing}")
    for name in ("num_states", "total_count"):
        if name in merged and not is_whole(merged[name]):
            raise ValueError(f"{name} must be a whole number >= 1, got {merged[name]!r}")
    if not isinstance(merged.get("learn_precision", False), bool):
        raise ValueError(f"learn_precision must be a bool, got {merged['learn_precision']!r}")
    return merged


def check_seed_and_dtype(seed: Any, dtype: Any) -> None:
    """Check arguments that all modules share.

    :raises ValueError: if one is impossible.
    """
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**64):
        raise ValueError(f"seed must be None or a whole number in [0, 2^64), got {seed!r}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a floating-point type, got {dtype!r}")


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
