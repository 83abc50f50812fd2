# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Classes that share what a super-class knows: two laws with the super-class summed out, and what it is
given its classes.

A super-class s has a mean m and a typical variance q of every feature, its classes k a mean and a precision:

    q ~ Gamma(a, a),   precision_k ~ Gamma(shape, shape * q)         E[precision_k | q] = 1 / q
    m ~ N(0, 1 / c),   mean_k ~ N(m, 1 / (strength * precision_k))

Where many features must agree, a sampler that holds m and q fixed never moves a class: a super-class that is
fresh from its prior fits nobody. Both are conjugate, so that they are integrated out of the program.
"""

import math
from typing import Any

import torch
from pyro.distributions import Gamma, Normal, TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

__all__ = ["SharedGamma", "SharedNormal", "sums_by_group"]


def sums_by_group(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Sums of rows by their group.

    :param Tensor values: shape ``(..., K, D)``.
    :param Tensor groups: whole numbers, shape ``(..., K)``; its batch axes may be others.
    :returns: shape ``(..., num_groups, D)``.
    """
    member = groups.unsqueeze(-2) == torch.arange(num_groups, device=groups.device).unsqueeze(-1)
    return member.to(values) @ values


class _Shared(TorchDistribution):
    """Rows that share a latent row by group: shapes, and the copies that plates make."""

    has_rsample = False

    def __init__(self, groups: Tensor, num_groups: int, rows: Tensor) -> None:
        self.groups, self.num_groups = groups, num_groups
        batch = torch.broadcast_shapes(groups.shape[:-1], rows.shape[:-2])
        super().__init__(batch, Size((groups.shape[-1], rows.shape[-1])), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Shared":
        # Parameters stay as they are: results are broadcast.
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = Size(batch_shape)
        return new

    def _of_rows(self, values: Tensor) -> Tensor:
        """The row of its group for every row."""
        index = self.groups.unsqueeze(-1)
        shape = torch.broadcast_shapes(index.shape[:-2], values.shape[:-2])
        index = index.expand(*shape, index.shape[-2], values.shape[-1])
        return values.expand(*shape, *values.shape[-2:]).gather(-2, index)

    def _broadcast(self, total: Tensor) -> Tensor:
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))


class SharedGamma(_Shared):
    r"""Precisions of classes, the typical variances of their super-classes summed out.

    .. math::

        p(\tau) = \prod_{s, d} \int \mathrm{Gamma}(q; a, a)
            \prod_{k \in s} \mathrm{Gamma}(\tau_{kd}; \alpha, \alpha q) \, dq

    :param Tensor groups: the super-class of every class, shape ``(..., K)``.
    :param int num_groups: how many there may be.
    :param Tensor shape: :math:`\alpha`, how much alike the precisions of a super-class are.
    :param Tensor prior: a, shape ``(D,)``.
    """

    arg_constraints = {"shape": constraints.positive, "prior": constraints.positive}
    support = constraints.independent(constraints.positive, 2)

    def __init__(self, groups: Tensor, num_groups: int, shape: Tensor, prior: Tensor) -> None:
        self.concentration, self.prior = shape[..., None, None], prior
        super().__init__(groups, num_groups, self.concentration * prior)

    def group_law(self, value: Tensor) -> Gamma:
        """q given the precisions of its classes, shape ``(..., num_groups, D)``."""
        total = sums_by_group(value, self.groups, self.num_groups)
        number = sums_by_group(torch.ones_like(value), self.groups, self.num_groups)
        return Gamma(
            self.prior + self.concentration * number, self.prior + self.concentration * total
        )

    def log_prob(self, value: Tensor) -> Tensor:
        after = self.group_law(value)
        prior, shape = self.prior, self.concentration
        groups = prior * prior.log() - prior.lgamma()
        groups = groups + after.concentration.lgamma() - after.concentration * after.rate.log()
        rows = shape * shape.log() - shape.lgamma() + (shape - 1.0) * value.log()
        return self._broadcast(groups.sum((-2, -1)) + rows.sum((-2, -1)))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))[:-2]
        with torch.no_grad():
            full = self.prior.expand(*shape, self.num_groups, -1)
            rate = self.concentration * self._of_rows(Gamma(full, full).sample())
            return Gamma(self.concentration, rate).sample()


class SharedNormal(_Shared):
    r"""Means of classes, the means of their super-classes summed out.

    .. math::

        p(\mu) = \prod_{s, d} \int N(m; 0, c_d^{-1}) \prod_{k \in s} N(\mu_{kd}; m, p_{kd}^{-1}) \, dm

    :param Tensor groups: the super-class of every class, shape ``(..., K)``.
    :param int num_groups: how many there may be.
    :param Tensor precision: p, of the means about that of their super-class, shape ``(..., K, D)``.
    :param Tensor prior: c, of the means of super-classes, shape ``(D,)``.
    """

    arg_constraints = {
        "precision": constraints.independent(constraints.positive, 2),
        "prior": constraints.positive,
    }
    support = constraints.independent(constraints.real, 2)

    def __init__(self, groups: Tensor, num_groups: int, precision: Tensor, prior: Tensor) -> None:
        self.precision, self.prior = precision, prior
        super().__init__(groups, num_groups, precision)

    def group_law(self, value: Tensor) -> Normal:
        """m given the means of its classes, shape ``(..., num_groups, D)``."""
        total = self.prior + sums_by_group(self.precision, self.groups, self.num_groups)
        pull = sums_by_group(self.precision * value, self.groups, self.num_groups)
        return Normal(pull / total, total.rsqrt())

    def log_prob(self, value: Tensor) -> Tensor:
        after = self.group_law(value)
        # Completing the square: what m explains of the squares of its classes.
        groups = self.prior.log() / 2 + after.scale.log() + (after.loc / after.scale).square() / 2
        rows = (self.precision / (2.0 * math.pi)).log() - self.precision * value.square()
        return self._broadcast(groups.sum((-2, -1)) + rows.sum((-2, -1)) / 2)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))[:-2]
        with torch.no_grad():
            scale = self.prior.rsqrt().expand(*shape, self.num_groups, -1)
            means = self._of_rows(Normal(torch.zeros_like(scale), scale).sample())
            return Normal(means, self.precision.rsqrt()).sample()
