# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Factor analysis by expectation maximisation, and probabilistic principal components in closed form."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

__all__ = ["FactorAnalysis", "fit_factor_analysis", "fit_ppca"]

#: Smallest variance of the noise: the largest precision of a neural Boltzmann machine is 1e3.
MIN_VARIANCE = 1e-3


@dataclass(frozen=True)
class FactorAnalysis:
    r"""Normal rows with covariance :math:`L L^\top + \Psi`, :math:`\Psi` diagonal.

    :param Tensor loc: mean, shape ``(V,)``.
    :param Tensor loadings: L, shape ``(V, r)``.
    :param Tensor noise: diagonal of :math:`\Psi`, shape ``(V,)``.
    :param bool isotropic: whether all noise variances are one parameter.
    """

    loc: Tensor
    loadings: Tensor
    noise: Tensor
    isotropic: bool = False

    @property
    def num_parameters(self) -> int:
        """Free parameters; rotations of the factors are none."""
        size, rank = self.loadings.shape
        noise = 1 if self.isotropic else size
        return size + size * rank - rank * (rank - 1) // 2 + noise

    def log_prob(self, y: Tensor) -> Tensor:
        """Log-density of rows, shape ``(rows,)``, by Woodbury's identity in float64."""
        d = y.to(self.loadings) - self.loc
        scaled = self.loadings / self.noise.unsqueeze(-1)
        root = torch.linalg.cholesky(_capacitance(self.loadings, scaled))
        along = torch.linalg.solve_triangular(root, (d @ scaled).T, upper=False)
        square = (d.square() / self.noise).sum(-1) - along.square().sum(0)
        log_det = self.noise.log().sum() + 2.0 * root.diagonal().log().sum()
        return -0.5 * (square + log_det + len(self.loc) * math.log(2.0 * math.pi))

    def sample(self, count: int, generator: Generator | None = None) -> Tensor:
        """Rows of the model, shape ``(count, V)``."""
        size, rank = self.loadings.shape
        draws = self.loc.new_empty(count, rank + size).normal_(generator=generator)
        factors, noise = draws.split([rank, size], -1)
        return self.loc + factors @ self.loadings.T + noise * self.noise.sqrt()


def _capacitance(loadings: Tensor, scaled: Tensor) -> Tensor:
    """I + L' Psi^-1 L."""
    eye = torch.eye(loadings.shape[-1], dtype=loadings.dtype, device=loadings.device)
    return eye + loadings.T @ scaled


def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    y = y.double()
    loc = y.mean(0)
    d = y - loc
    return loc, d.T @ d / len(y)


def _check_rank(num_factors: int, size: int) -> None:
    if not 0 < num_factors < size:
        raise ValueError(f"num_factors must be in 1 .. {size - 1}, got {num_factors}")


def fit_ppca(y: Tensor, num_factors: int, min_variance: float = MIN_VARIANCE) -> FactorAnalysis:
    """Probabilistic principal components: the maximum of the likelihood with isotropic noise, from the
    eigenvalues of the covariance (Tipping and Bishop, 1999).

    :param Tensor y: rows, shape ``(rows, V)``.
    :param int num_factors: r, less than V.
    :param float min_variance: the least variance of the noise.
    :raises ValueError: for an impossible number of factors.
    """
    _check_rank(num_factors, y.shape[1])
    loc, covariance = _moments(y)
    return _ppca(loc, covariance, num_factors, min_variance)


def _ppca(loc: Tensor, covariance: Tensor, num_factors: int, min_variance: float) -> FactorAnalysis:
    values, vectors = torch.linalg.eigh(covariance)
    noise = values[:-num_factors].mean().clamp(min=min_variance)
    scale = (values[-num_factors:] - noise).clamp(min=0.0).sqrt()
    return FactorAnalysis(loc, vectors[:, -num_factors:] * scale, noise.expand(len(loc)), True)


def fit_factor_analysis(
    y: Tensor,
    num_factors: int,
    num_steps: int = 200,
    tolerance: float = 1e-4,
    min_variance: float = MIN_VARIANCE,
) -> FactorAnalysis:
    """Factor analysis by expectation maximisation from the principal components (Rubin and Thayer, 1982).

    A step needs the covariance of the rows only. The likelihood never falls, also with the noise
    held above its bound, as the best noise of every unit is separate given the loadings.

    :param Tensor y: rows, shape ``(rows, V)``.
    :param int num_factors: r, less than V.
    :param int num_steps: steps at most.
    :param float tolerance: change of the mean log-likelihood, in nats per ten steps, to stop at.
    :param float min_variance: the least variance of the noise.
    :raises ValueError: for an impossible number of factors.
    """
    _check_rank(num_factors, y.shape[1])
    loc, covariance = _moments(y)
    start = _ppca(loc, covariance, num_factors, min_variance)
    loadings, noise = start.loadings, start.noise.clone()
    before = -math.inf
    for step in range(num_steps):
        loadings, noise, value = _em_step(covariance, loadings, noise, min_variance)
        if step % 10 == 9:
            if value - before < tolerance:
                break
            before = value
    return FactorAnalysis(loc, loadings, noise)


def _em_step(
    covariance: Tensor, loadings: Tensor, noise: Tensor, min_variance: float
) -> tuple[Tensor, Tensor, float]:
    """New loadings and noise, and the mean log-likelihood (without 2 pi) before the step."""
    scaled = loadings / noise.unsqueeze(-1)
    root = torch.linalg.cholesky(_capacitance(loadings, scaled))
    posterior = torch.cholesky_inverse(root)
    # Regression of the factors on a row, and the moments that it gives: E[d f'] and E[f f'].
    cross = covariance @ (scaled @ posterior)
    second = posterior + posterior @ scaled.T @ cross
    new = torch.linalg.solve(second, cross.T).T
    new_noise = (covariance.diagonal() - (new * cross).sum(-1)).clamp(min=min_variance)
    # tr(Sigma^-1 S) = tr(Psi^-1 S) - tr(M^-1 L' Psi^-1 S Psi^-1 L)
    trace = (covariance.diagonal() / noise).sum() - (scaled * cross).sum()
    log_det = noise.log().sum() + 2.0 * root.diagonal().log().sum()
    return new, new_noise, float(-0.5 * (trace + log_det))
