# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Gaussian units with correlations of low rank."""

import math
from typing import Any, Self

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Tensor
from torch.distributions import constraints

from pyro_ebm.distributions.units.base import Unit
from pyro_ebm.ops.linear import apply_weight

__all__ = ["LowRankGaussian"]


class LowRankGaussian(Unit):
    r"""One real vector with correlated entries, :math:`u(x) = (x - m)^\top \Sigma^{-1} (x - m) / 2` where

    .. math:: \Sigma = P^{-1} + F F^\top, \qquad
              A(\theta) = \tfrac12 \theta^\top \Sigma\, \theta
                          + \tfrac12 (n \log 2\pi + \log\det \Sigma),

    with a diagonal P and a factor F of few columns (the form of factor analysis, as in
    :class:`pyro.distributions.LowRankMultivariateNormal`). The mean under a field is
    :math:`m + \Sigma t`. The whole layer is one unit.

    Means and draws cost 2 n r multiply-adds each, without a factorisation; energies and log-partitions
    need the Cholesky factor of the r x r capacitance matrix :math:`I + F^\top P F`. No n x n matrix is made.

    Mixtures of such layers (:meth:`interpolate`) have low rank only where both have the same P and F, as
    :meth:`neutral` and :meth:`from_mean` give them.

    :param Tensor loc: m, shape ``(..., n)``.
    :param Tensor precision: the diagonal of P, positive, shape ``(..., n)``.
    :param Tensor cov_factor: F, shape ``(..., n, r)`` with r at least 1.

    >>> import torch
    >>> from pyro_ebm.distributions import units
    >>> unit = units.LowRankGaussian(torch.zeros(3), torch.ones(3), torch.tensor([[1.0], [2.0], [0.0]]))
    >>> unit.mean(torch.tensor([1.0, 0.0, 0.0]))
    tensor([2., 2., 0.])
    """

    parameter_constraints = {
        "loc": constraints.real,
        "precision": constraints.positive,
        "cov_factor": constraints.real,
    }
    is_discrete = False
    is_gaussian = True
    loc: Tensor
    precision: Tensor
    cov_factor: Tensor

    def __init__(
        self,
        loc: Tensor,
        precision: Tensor,
        cov_factor: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        shape = tuple(cov_factor.shape) if isinstance(cov_factor, Tensor) else None
        if shape is None or len(shape) < 2 or shape[-1] < 1:
            got = type(cov_factor).__name__ if shape is None else f"shape {shape}"
            raise ValueError(
                f"LowRankGaussian: cov_factor must be a tensor (..., n, r) with r >= 1, got {got}"
            )
        parameters = {"loc": loc, "precision": precision, "cov_factor": cov_factor}
        super().__init__(parameters, validate_args)
        if cov_factor.shape[-2] != self.size:
            raise ValueError(
                f"LowRankGaussian: cov_factor of shape {shape} must have a row for each of the "
                f"{self.size} entries of loc and precision"
            )

    def parameter_event_dim(self, name: str) -> int:
        return 2 if name == "cov_factor" else 1

    def signature(self) -> tuple[Any, ...]:
        return *super().signature(), self.rank

    @property
    def num_units(self) -> int:
        return 1

    @property
    def rank(self) -> int:
        """Number r of columns of the factor."""
        return int(self.cov_factor.shape[-1])

    # --- products with the covariance and its inverse ------------------------------------------

    def _factor(self, x: Tensor) -> Tensor:
        """F in the type of the product with x: float64 fields of a float32 layer are exact ones."""
        return self.cov_factor.to(torch.promote_types(x.dtype, self.cov_factor.dtype))

    def _times_covariance(self, x: Tensor) -> Tensor:
        factor = self._factor(x)
        along = apply_weight(x.to(factor), factor)
        return x / self.precision + apply_weight(along, factor.mT)

    def _capacitance_root(self, factor: Tensor) -> Tensor:
        """Cholesky factor of I + F'PF."""
        scaled = factor * torch.atleast_1d(self.precision).sqrt().unsqueeze(-1)
        identity = torch.eye(self.rank, dtype=factor.dtype, device=factor.device)
        return torch.linalg.cholesky(identity + scaled.mT @ scaled)

    def _correction(self, factor: Tensor) -> Tensor:
        """PF L^-T with L the Cholesky factor of the capacitance matrix: C with Sigma^-1 = P - C C'."""
        root = self._capacitance_root(factor)
        scaled = factor * torch.atleast_1d(self.precision).unsqueeze(-1)
        return torch.linalg.solve_triangular(root, scaled.mT, upper=False).mT

    def _quadratic(self, x: Tensor) -> Tensor:
        """x' Sigma^-1 x."""
        correction = self._correction(self._factor(x))
        along = apply_weight(x.to(correction), correction)
        return (self.precision * x.square()).sum(-1) - along.square().sum(-1)

    def _log_volume(self, like: Tensor) -> Tensor:
        """(n log 2 pi + log det Sigma) / 2."""
        root = self._capacitance_root(self._factor(like))
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        single = 0.5 * (2.0 * math.pi / self.precision).log()
        return log_det + single.expand(*self.batch_shape, self.size).sum(-1)

    def covariance_root(self, weight: Tensor) -> Tensor:
        scaled = weight * torch.atleast_1d(self.precision).rsqrt().unsqueeze(-1)
        along = self.cov_factor.mT @ weight
        batch = torch.broadcast_shapes(scaled.shape[:-2], along.shape[:-2])
        return torch.cat([part.expand(*batch, *part.shape[-2:]) for part in (scaled, along)], -2)

    # --- the family ---------------------------------------------------------------------------

    @property
    def natural_bias(self) -> Tensor:
        correction = self._correction(self.cov_factor)
        along = apply_weight(self.loc, correction)
        return self.precision * self.loc - apply_weight(along, correction.mT)

    @property
    def energy_constant(self) -> Tensor:
        return 0.5 * self._quadratic(self.loc)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * self._quadratic(x - self.loc)

    def natural_log_partition(self, theta: Tensor) -> Tensor:
        quadratic = (theta * self._times_covariance(theta)).sum(-1)
        return 0.5 * quadratic + self._log_volume(theta)

    def natural_log_partition_step(
        self, a: Tensor, beta: float | Tensor, beta_next: float | Tensor
    ) -> Tensor:
        # The volume is the same at both ends.
        change = (beta_next - beta) * (beta_next + beta)
        quadratic = 0.5 * (a * self._times_covariance(a)).sum(-1)
        return quadratic * (change[..., 0] if isinstance(change, Tensor) else change)

    def log_partition(self, field: Tensor | None = None) -> Tensor:
        # Written in the field itself: with a small covariance A(b + t) - C would cancel.
        if field is None:
            return self._log_volume(self.loc)
        mean = self.loc + 0.5 * self._times_covariance(field)
        return (field * mean).sum(-1) + self._log_volume(field)

    def natural_mean(self, theta: Tensor) -> Tensor:
        return self._times_covariance(theta)

    def natural_sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        factor = self._factor(theta)
        # With the batch axes of all parameters, so that no number serves two elements.
        batch = torch.broadcast_shapes(theta.shape[:-1], self.batch_shape)
        theta = theta.to(factor).expand(*batch, self.size)
        along = apply_weight(theta, factor)
        along = along + torch.empty_like(along).normal_(generator=generator)
        mean = theta / self.precision + apply_weight(along, factor.mT)
        noise = torch.empty_like(mean, memory_format=torch.contiguous_format)
        noise.normal_(generator=generator)
        return torch.addcmul(mean, noise, self.precision.rsqrt())

    def natural_conditional(self, theta: Tensor) -> TorchDistribution:
        mean = self.natural_mean(theta)
        diagonal = self.precision.reciprocal().expand(*self.precision.shape[:-1], self.size)
        return dist.LowRankMultivariateNormal(mean, self.cov_factor, diagonal)

    def from_mean(self, mean: Tensor) -> Self:
        return self.replace(loc=mean.to(self.loc))

    def neutral(self) -> Self:
        return self.replace(loc=torch.zeros_like(self.loc))

    def interpolate(self, base: Self, beta: float) -> Self:
        for name in ("precision", "cov_factor"):
            own, other = getattr(self, name), getattr(base, name)
            if not (own is other or _equal(own, other)):
                raise ValueError(
                    f"LowRankGaussian: the two layers to interpolate differ in {name}, and a mixture "
                    "of two covariances has no low rank; use the same precision and cov_factor"
                )
        return self.replace(loc=torch.lerp(base.loc, self.loc, beta))

    def tilt(self, field: Tensor) -> tuple[Self, Tensor]:
        shift = self._times_covariance(field)
        constant = -(field * (self.loc + 0.5 * shift)).sum(-1)
        return self.replace(loc=self.loc + shift), constant

    def select(self, mask: Tensor) -> Self:
        if not bool(mask.all()):
            raise ValueError(
                "mask must take all or none of a LowRankGaussian layer: it is one unit"
            )
        return self


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, up to broadcasting."""
    try:
        a, b = torch.broadcast_tensors(a, b)
    except RuntimeError:
        return False
    return torch.equal(a, b)
