# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Continuous unit families: Gaussian and rectified units."""

import math
from typing import Self

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Tensor
from torch.distributions import constraints

from pyro_ebm.distributions.conditionals import RectifiedNormal
from pyro_ebm.distributions.units.base import Unit
from pyro_ebm.ops.numerics import log_erfcx, truncated_normal_mean
from pyro_ebm.ops.random import truncated_normal

__all__ = ["Gaussian", "ReLU"]


class Gaussian(Unit):
    r"""Real units with :math:`u(x) = (x - m)^\top P (x - m) / 2` and diagonal P, mean m + t / P.

    :param Tensor loc: m, shape ``(..., n)``.
    :param Tensor precision: the diagonal of P, positive, shape ``(..., n)``.
    """

    parameter_constraints = {"loc": constraints.real, "precision": constraints.positive}
    is_discrete = False
    is_gaussian = True
    loc: Tensor
    precision: Tensor

    def __init__(
        self, loc: Tensor, precision: Tensor, *, validate_args: bool | None = None
    ) -> None:
        super().__init__({"loc": loc, "precision": precision}, validate_args)

    @property
    def natural_bias(self) -> Tensor:
        return self.precision * self.loc

    @property
    def energy_constant(self) -> Tensor:
        return 0.5 * (self.precision * self.loc.square()).sum(-1)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * (self.precision * (x - self.loc).square()).sum(-1)

    def natural_log_partition(self, theta: Tensor) -> Tensor:
        quadratic = theta.square() / self.precision
        return 0.5 * (quadratic + (2.0 * math.pi / self.precision).log()).sum(-1)

    def log_partition(self, field: Tensor | None = None) -> Tensor:
        # Written in the field itself: with a large precision A(b + t) - C would cancel.
        log_volume = 0.5 * (2.0 * math.pi / self.precision).log()
        if field is None:
            return log_volume.expand(self._shape).sum(-1)
        return (field * (self.loc + 0.5 * field / self.precision) + log_volume).sum(-1)

    def natural_mean(self, theta: Tensor) -> Tensor:
        return theta / self.precision

    def natural_sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        mean = self.natural_mean(theta)
        noise = torch.empty_like(mean, memory_format=torch.contiguous_format)
        noise.normal_(generator=generator)
        return torch.addcmul(mean, noise, self.precision.rsqrt())

    def natural_conditional(self, theta: Tensor) -> TorchDistribution:
        return dist.Normal(self.natural_mean(theta), self.precision.rsqrt()).to_event(1)

    def from_mean(self, mean: Tensor) -> Self:
        return self.replace(loc=mean.to(self.loc))

    def neutral(self) -> Self:
        return self.replace(loc=torch.zeros_like(self.loc))

    def interpolate(self, base: Self, beta: float) -> Self:
        precision = torch.lerp(base.precision, self.precision, beta)
        bias = torch.lerp(base.natural_bias, self.natural_bias, beta)
        return self.replace(loc=bias / precision, precision=precision)

    def tilt(self, field: Tensor) -> tuple[Self, Tensor]:
        shift = field / self.precision
        constant = -(field * (self.loc + 0.5 * shift)).sum(-1)
        return self.replace(loc=self.loc + shift), constant

    def select(self, mask: Tensor) -> Self:
        return self.replace(
            loc=self.loc.expand(self._shape)[..., mask],
            precision=self.precision.expand(self._shape)[..., mask],
        )


class ReLU(Unit):
    r"""Rectified units :math:`x \ge 0` with :math:`u(x) = g x^2 / 2 - b x`.

    Under a field t a unit is normal with location (b + t) / g and precision g, truncated to
    :math:`[0, \infty)`.

    :param Tensor bias: b, shape ``(..., n)``.
    :param Tensor precision: g, positive, shape ``(..., n)``.
    """

    parameter_constraints = {"bias": constraints.real, "precision": constraints.positive}
    is_discrete = False
    bias: Tensor
    precision: Tensor

    def __init__(
        self, bias: Tensor, precision: Tensor, *, validate_args: bool | None = None
    ) -> None:
        super().__init__({"bias": bias, "precision": precision}, validate_args)

    @property
    def natural_bias(self) -> Tensor:
        return self.bias.expand(self._shape)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.nonnegative, 1)

    def energy(self, x: Tensor) -> Tensor:
        return (x * (0.5 * self.precision * x - self.bias)).sum(-1)

    def natural_log_partition(self, theta: Tensor) -> Tensor:
        log_scale = 0.5 * (math.pi / (2.0 * self.precision)).log()
        return (log_scale + log_erfcx(-theta * (2.0 * self.precision).rsqrt())).sum(-1)

    def natural_mean(self, theta: Tensor) -> Tensor:
        scale = self.precision.rsqrt()
        return scale * truncated_normal_mean(theta * scale)

    def natural_sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        scale = self.precision.rsqrt()
        return scale * truncated_normal(theta * scale, generator)

    def natural_conditional(self, theta: Tensor) -> TorchDistribution:
        return RectifiedNormal(theta / self.precision, self.precision.rsqrt()).to_event(1)

    def from_mean(self, mean: Tensor) -> Self:
        scale = self.precision.rsqrt()
        target = (mean.to(self.bias) / scale).clamp(min=0.05)
        return self.replace(bias=_truncated_normal_location(target) / scale)

    def neutral(self) -> Self:
        return self.replace(bias=torch.zeros_like(self.bias))

    def interpolate(self, base: Self, beta: float) -> Self:
        return self.replace(
            bias=torch.lerp(base.bias, self.bias, beta),
            precision=torch.lerp(base.precision, self.precision, beta),
        )

    def tilt(self, field: Tensor) -> tuple[Self, Tensor]:
        return self.replace(bias=self.bias + field), field.new_zeros(())

    def select(self, mask: Tensor) -> Self:
        return self.replace(
            bias=self.bias.expand(self._shape)[..., mask],
            precision=self.precision.expand(self._shape)[..., mask],
        )


def _truncated_normal_location(mean: Tensor) -> Tensor:
    """Invert :func:`truncated_normal_mean` by bisection (it is increasing)."""
    low, high = -2.0 / mean, mean.clone()
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = truncated_normal_mean(middle) < mean
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)
