# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Conditional distributions of units that Pyro has no class for."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyro_ebm.distributions.constraints import concatenation, flat_one_hot, spin
from pyro_ebm.ops.numerics import log_erfcx, truncated_normal_mean
from pyro_ebm.ops.random import bernoulli_from_logits, categorical_from_logits, truncated_normal

__all__ = ["Concatenated", "FlatOneHotCategorical", "RectifiedNormal", "Spin"]


_D = TypeVar("_D", bound=TorchDistribution)


def _keep_validation(old: TorchDistribution, new: _D) -> _D:
    """The parameters have been checked, values are still to be: what Pyro's expand() does."""
    new._validate_args = old._validate_args
    return new


class Spin(TorchDistribution):
    r"""A spin :math:`x \in \{-1, +1\}` in a field, :math:`p(x) = e^{f x} / (2 \cosh f)`.

    :param Tensor field: the field f, any shape; it is the batch shape.
    """

    arg_constraints = {"field": constraints.real}
    support = spin
    has_enumerate_support = True

    def __init__(self, field: Tensor, *, validate_args: bool | None = None) -> None:
        self.field = field
        super().__init__(field.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Spin":
        new = type(self)(self.field.expand(batch_shape), validate_args=False)
        return _keep_validation(self, new)

    @property
    def mean(self) -> Tensor:
        """``tanh(field)``."""
        return torch.tanh(self.field)

    @property
    def variance(self) -> Tensor:
        """``1 - tanh(field)^2``."""
        return 1.0 - self.mean.square()

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        field = self.field.expand(self._extended_shape(Size(sample_shape)))
        rows = field if field.dim() else field.unsqueeze(0)
        return bernoulli_from_logits(2.0 * rows, values=(-1.0, 1.0)).reshape(field.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return logsigmoid(2.0 * self.field * value)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self.field.new_tensor([-1.0, 1.0]).reshape((2,) + (1,) * len(self.batch_shape))
        return values.expand((2, *self.batch_shape)) if expand else values


class FlatOneHotCategorical(TorchDistribution):
    r"""Independent one-hot categorical sites, flattened into one event of ``num_sites * K``.

    :param Tensor logits: unnormalised log-probabilities, shape ``(..., num_sites, K)``.
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 2)}

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        event = Size((logits.shape[-2] * logits.shape[-1],))
        super().__init__(logits.shape[:-2], event, validate_args=validate_args)

    @classmethod
    def infer_shapes(cls, **arg_shapes: Any) -> tuple[Size, Size]:
        shape = Size(arg_shapes["logits"])
        return shape[:-2], Size((shape[-2] * shape[-1],))

    @property
    def support(self) -> constraints.Constraint:
        return flat_one_hot(self.logits.shape[-1])

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FlatOneHotCategorical":
        shape = Size(batch_shape) + self.logits.shape[-2:]
        new = type(self)(self.logits.expand(shape), validate_args=False)
        return _keep_validation(self, new)

    @property
    def mean(self) -> Tensor:
        """Probabilities of the states, flattened."""
        return torch.softmax(self.logits, -1).flatten(-2)

    @property
    def variance(self) -> Tensor:
        """Variances of the indicator variables, flattened."""
        return self.mean * (1.0 - self.mean)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        batch = Size(sample_shape) + self.batch_shape
        logits = self.logits.expand(batch + self.logits.shape[-2:])
        return categorical_from_logits(logits).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_probs = torch.log_softmax(self.logits, -1).flatten(-2)
        return (value * log_probs).sum(-1)


class RectifiedNormal(TorchDistribution):
    r"""A normal distribution truncated to :math:`[0, \infty)`.

    :param Tensor loc: location of the untruncated normal.
    :param Tensor scale: standard deviation of the untruncated normal.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.nonnegative

    def __init__(self, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "RectifiedNormal":
        shape = Size(batch_shape)
        new = type(self)(self.loc.expand(shape), self.scale.expand(shape), validate_args=False)
        return _keep_validation(self, new)

    @property
    def mean(self) -> Tensor:
        """Mean of the truncated normal."""
        return self.scale * truncated_normal_mean(self.loc / self.scale)

    @property
    def variance(self) -> Tensor:
        """Variance of the truncated normal."""
        alpha = (self.loc / self.scale).double()
        mean = truncated_normal_mean(alpha)
        return self.scale.square() * (1.0 + alpha * mean - mean.square()).to(self.scale.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        alpha = (self.loc / self.scale).expand(self._extended_shape(Size(sample_shape)))
        return self.scale * truncated_normal(alpha)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        alpha = self.loc / self.scale
        z = value / self.scale
        # Completing the square where alpha > 0 avoids a difference of terms of order alpha^2.
        zero = torch.zeros_like(alpha)
        above, below = torch.where(alpha > 0, alpha, zero), torch.where(alpha > 0, zero, alpha)
        exponent = below * z - 0.5 * (z - above).square()
        tails = log_erfcx(-below * 0.5**0.5) + torch.special.log_ndtr(above)
        return exponent - tails - self.scale.log() - 0.5 * math.log(2.0 * math.pi)


class Concatenated(TorchDistribution):
    """Independent vectors, put one after the other into one.

    :param parts: distributions of event dimension 1, whose batch shapes broadcast.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self, parts: Sequence[TorchDistribution], *, validate_args: bool | None = None
    ) -> None:
        batch = torch.broadcast_shapes(*(part.batch_shape for part in parts))
        self.parts = tuple(part.expand(batch) for part in parts)
        self._lengths = [part.event_shape[0] for part in parts]
        super().__init__(batch, Size((sum(self._lengths),)), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return concatenation([part.support for part in self.parts], self._lengths)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return all(part.has_rsample for part in self.parts)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Concatenated":
        new = type(self)([part.expand(batch_shape) for part in self.parts], validate_args=False)
        return _keep_validation(self, new)

    @property
    def mean(self) -> Tensor:
        """Means of the parts."""
        return torch.cat([part.mean for part in self.parts], -1)

    @property
    def variance(self) -> Tensor:
        """Variances of the parts' entries."""
        return torch.cat([part.variance for part in self.parts], -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.cat([part.sample(Size(sample_shape)) for part in self.parts], -1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return torch.cat([part.rsample(Size(sample_shape)) for part in self.parts], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        values = value.split(self._lengths, -1)
        return sum(
            (part.log_prob(x) for part, x in zip(self.parts, values, strict=True)),
            start=value.new_zeros(()),
        )
