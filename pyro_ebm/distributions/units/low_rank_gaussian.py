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
    need the Cholesky factor of the r x r capacitance matrix :math:`M = I + F^\top P F`, which is made in
    float64 (where the device has it). No n x n matrix is made. Energies are sums of squares,
    :math:`u = |P^{1/2} (d - F w)|^2 / 2 + |w|^2 / 2` with d = x - m and :math:`w = M^{-1} F^\top P d`.

    In float32 use the methods that take a field (:meth:`mean`, :meth:`sample`, :meth:`log_partition`), which
    are as accurate as those of :class:`Gaussian`. The natural parameter :math:`\Sigma^{-1} m + t` itself is
    ill-conditioned: its rounding moves means by an amount that grows with P, a few thousandths of a
    standard deviation for 784 pixels at P = 1000, and whole ones at a million. Sweeps that alternate
    layers go by it; collapsed ones (:class:`~pyro_ebm.distributions.CollapsedSweep`) do not.

    Observed in part, the layer has another covariance for every mask, which is not done: ``RBM.clamp``,
    ``clamp_rows``, ``impute`` and ``observed_log_likelihood`` take all of it or nothing and refuse the
    rest.

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
        if not isinstance(loc, Tensor):
            loc = torch.as_tensor(loc, dtype=cov_factor.dtype, device=cov_factor.device)
        if loc.dim() == 0 or loc.shape[-1] == 1:
            # One mean for all entries; products with the factor need it once an entry.
            loc = torch.atleast_1d(loc).expand(*loc.shape[:-1], shape[-2])
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
    def dtype(self) -> torch.dtype:
        # Without the algebra that a natural parameter takes.
        mixed = torch.promote_types(self.loc.dtype, self.precision.dtype)
        return torch.promote_types(mixed, self.cov_factor.dtype)

    @property
    def device(self) -> torch.device:
        return self.loc.device

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

    def _natural_mean(self, theta: Tensor, noise: Tensor | None = None) -> Tensor:
        """Sigma theta, with noise added to F' theta.

        The part of theta that gives the mean m is P (m - F w), large and all but orthogonal to F: its
        product with F is made in float64.
        """
        factor = self._factor(theta)
        along = apply_weight(_double(theta), _double(factor)).to(factor)
        if noise is not None:
            along = along + noise
        return theta / self.precision + apply_weight(along, factor.mT)

    def _capacitance_root(self, factor: Tensor) -> Tensor:
        """Cholesky factor of M = I + F'PF in float64: with a large precision the smallest eigenvalues
        of M are lost in float32."""
        scaled = _double(factor) * torch.atleast_1d(self.precision).sqrt().unsqueeze(-1)
        identity = torch.eye(self.rank, dtype=scaled.dtype, device=scaled.device)
        return torch.linalg.cholesky(identity + scaled.mT @ scaled)

    def _deviations(self, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """w = M^-1 F'P x, the mean of the r standard normal factors behind a deviation x from m, and
        what they leave of it, x - F w."""
        root = self._capacitance_root(factor)
        scaled = _double(factor) * torch.atleast_1d(self.precision).unsqueeze(-1)
        gain = torch.cholesky_solve(scaled.mT, root).to(factor)
        common = apply_weight(x.to(factor), gain.mT)
        return common, x - apply_weight(common, factor.mT)

    def _quadratic(self, x: Tensor) -> Tensor:
        """x' Sigma^-1 x, as |P^(1/2) (x - F w)|^2 + |w|^2: squares do not cancel."""
        common, single = self._deviations(x, self._factor(x))
        return (self.precision * single.square()).sum(-1) + common.square().sum(-1)

    def _log_volume(self, like: Tensor) -> Tensor:
        """(n log 2 pi + log det Sigma) / 2."""
        factor = self._factor(like)
        root = self._capacitance_root(factor)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1).to(factor)
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
        # P (m - F w) in float64, as F w is nearly all of what the factors can give of m.
        _, single = self._deviations(_double(self.loc), _double(self.cov_factor))
        return (self.precision * single).to(self.dtype)

    @property
    def energy_constant(self) -> Tensor:
        return 0.5 * self._quadratic(self.loc)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    def energy(self, x: Tensor) -> Tensor:
        return 0.5 * self._quadratic(x - self.loc)

    def natural_log_partition(self, theta: Tensor) -> Tensor:
        quadratic = (theta * self._natural_mean(theta)).sum(-1)
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
        return self._natural_mean(theta)

    def mean(self, field: Tensor | None = None) -> Tensor:
        # Not by way of theta: Sigma (Sigma^-1 m) has lost m where the precision is large.
        if field is None:
            return self.loc.expand(self._shape)
        return self.loc + self._times_covariance(field)

    def natural_sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        factor = self._factor(theta)
        # With the batch axes of all parameters, so that no number serves two elements.
        batch = torch.broadcast_shapes(theta.shape[:-1], self.batch_shape)
        theta = theta.to(factor).expand(*batch, self.size)
        common = theta.new_empty(*batch, self.rank).normal_(generator=generator)
        mean = self._natural_mean(theta, common)
        noise = torch.empty_like(mean, memory_format=torch.contiguous_format)
        noise.normal_(generator=generator)
        return torch.addcmul(mean, noise, self.precision.rsqrt())

    def sample(self, field: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        with torch.no_grad():
            if field is None:
                field = self.loc.new_zeros(self._shape)
            return self.loc + self.natural_sample(field, generator)

    def natural_conditional(self, theta: Tensor) -> TorchDistribution:
        return self._normal(self.natural_mean(theta))

    def conditional(self, field: Tensor | None = None) -> TorchDistribution:
        return self._normal(self.mean(field))

    def _normal(self, mean: Tensor) -> TorchDistribution:
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
                "mask must take all or none of a LowRankGaussian layer: it is one unit (given a part "
                "of it the rest has another covariance)"
            )
        return self


def _double(x: Tensor) -> Tensor:
    """x in float64, or as it is on devices that have none."""
    return x if x.device.type == "mps" else x.double()


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, up to broadcasting."""
    try:
        a, b = torch.broadcast_tensors(a, b)
    except RuntimeError:
        return False
    return torch.equal(a, b)
