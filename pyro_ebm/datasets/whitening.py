# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Rows with the covariance taken out, and the way back."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Whitening"]


@dataclass(frozen=True, eq=False)
class Whitening:
    r"""An affine map of rows after which they have mean zero and, without regularisation, the identity
    as their covariance; it has an exact inverse.

    "Zero-phase" whitening (ZCA), :math:`z = (C + \epsilon I)^{-1/2} (x - \bar x)` with the symmetric root of
    the covariance C, is of all whitenings the one that changes rows least, so that whitened patches of
    images still look like patches. Log-densities of z are in other units than those of x:
    :math:`\log p(x) = \log p(z) - \tfrac12 \log \det (C + \epsilon I)`, see :attr:`log_abs_det`.

    **References**

    [1] *The "independent components" of natural scenes are edge filters*, Anthony Bell, Terrence
    Sejnowski (1997)

    :param Tensor mean: mean of the rows, shape ``(D,)``.
    :param Tensor matrix: :math:`(C + \epsilon I)^{-1/2}`, shape ``(D, D)``.
    :param Tensor inverse_matrix: :math:`(C + \epsilon I)^{1/2}`, shape ``(D, D)``.
    :param float log_abs_det: log of the determinant of ``matrix``.

    >>> import torch
    >>> from pyro_ebm.datasets import Whitening
    >>> rows = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) @ torch.rand(3, 3)
    >>> whitening = Whitening.fit(rows)
    >>> bool(torch.allclose(torch.cov(whitening(rows).T, correction=0), torch.eye(3), atol=1e-4))
    True
    >>> bool(torch.allclose(whitening.inverse(whitening(rows)), rows, atol=1e-5))
    True
    """

    mean: Tensor
    matrix: Tensor
    inverse_matrix: Tensor
    log_abs_det: float

    @classmethod
    def fit(cls, rows: Tensor, regularization: float = 0.0) -> "Whitening":
        r"""The whitening of some rows.

        :param Tensor rows: shape ``(N, D)``, floating point.
        :param float regularization: :math:`\epsilon`, added to the eigenvalues of the covariance: it keeps
            directions in which the rows hardly vary, mostly noise, from being blown up.
        :raises TypeError: if rows are no floating-point tensor.
        :raises ValueError: if they have a wrong shape, hold NaN, or do not vary in some direction while
            there is no regularisation.
        """
        if not isinstance(rows, Tensor) or not rows.is_floating_point():
            raise TypeError(f"rows: expected a floating-point tensor; got {_kind(rows)}")
        if rows.dim() != 2 or len(rows) < 2:
            raise ValueError(f"rows: expected shape (N >= 2, D); got {tuple(rows.shape)}")
        if not bool(torch.isfinite(rows).all()):
            raise ValueError("rows: expected finite values; got NaN or infinite ones")
        if not 0.0 <= regularization < math.inf:
            raise ValueError(f"regularization: expected a number >= 0; got {regularization!r}")
        exact = rows.double()
        mean = exact.mean(0)
        values, vectors = torch.linalg.eigh(
            torch.cov(exact.T, correction=0).reshape(2 * (rows.shape[1],))
        )
        scale = values.clamp(min=0.0) + regularization
        if bool((scale <= 1e-12 * scale.max()).any()) or not bool(scale.max() > 0.0):
            raise ValueError(
                "rows: expected variance in every direction; got a singular covariance "
                "(remove constant columns, or give a regularization)"
            )
        return cls(
            mean.to(rows),
            ((vectors * scale.rsqrt()) @ vectors.T).to(rows),
            ((vectors * scale.sqrt()) @ vectors.T).to(rows),
            -0.5 * float(scale.log().sum()),
        )

    def __call__(self, rows: Tensor) -> Tensor:
        """Whitened rows, shape ``(..., D)``."""
        self._check(rows)
        return (rows - self.mean) @ self.matrix

    def inverse(self, rows: Tensor) -> Tensor:
        """The rows that were whitened, shape ``(..., D)``."""
        self._check(rows)
        return rows @ self.inverse_matrix + self.mean

    def _check(self, rows: Tensor) -> None:
        size = len(self.mean)
        if rows.dim() == 0 or rows.shape[-1] != size:
            raise ValueError(f"rows: expected shape (..., {size}); got {tuple(rows.shape)}")


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
