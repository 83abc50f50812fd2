# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Rows without the directions in which they vary least."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Smoothing"]

#: Rows that are taken to double precision at once.
_CHUNK_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Smoothing:
    r"""The projection of rows on the directions in which the rows that it was fitted on vary most.

    Of images, the directions of least variance are those of single pixels against their neighbours: noise
    that costs a model as many parameters as what is shown. With the singular value decomposition
    :math:`X - 1 \bar x^\top = U S V^\top` of the fitted rows, the result is
    :math:`\bar x + (x - \bar x) V_k V_k^\top` with the leading k columns of V. For these rows themselves
    that is the matrix with the smallest singular values set to zero (Eckart and Young, 1936); for **others**,
    such as test rows, it is the same map, so that all of them are of one kind.

    :param Tensor mean: mean of the rows, shape ``(D,)``.
    :param Tensor directions: :math:`V_k`, orthonormal columns, shape ``(D, k)``.

    >>> import torch
    >>> from pyro_ebm.datasets import Smoothing
    >>> rows = torch.tensor([[0.0, 0.1], [1.0, 0.9], [2.0, 2.1], [3.0, 2.9]])
    >>> smooth = Smoothing.fit(rows, num_dropped=1)(rows)
    >>> bool(torch.allclose(smooth.mean(0), rows.mean(0))), bool((smooth[1:] > smooth[:-1]).all())
    (True, True)
    """

    mean: Tensor
    directions: Tensor

    @classmethod
    def fit(cls, rows: Tensor, num_dropped: int) -> "Smoothing":
        """The projection that leaves out as many directions as asked for.

        :param Tensor rows: shape ``(N, D)``, floating point.
        :param int num_dropped: number of directions left out, from 0 to D - 1.
        :raises TypeError: if rows are no floating-point tensor.
        :raises ValueError: if they have a wrong shape or hold NaN, or for an impossible number.
        """
        if not isinstance(rows, Tensor) or not rows.is_floating_point():
            kind = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(f"rows: expected a floating-point tensor; got {kind}")
        if rows.dim() != 2 or 0 in rows.shape:
            raise ValueError(f"rows: expected shape (N >= 1, D >= 1); got {tuple(rows.shape)}")
        if not bool(torch.isfinite(rows).all()):
            raise ValueError("rows: expected finite values; got NaN or infinite ones")
        size = rows.shape[1]
        whole = isinstance(num_dropped, int) and not isinstance(num_dropped, bool)
        if not whole or not 0 <= num_dropped < size:
            raise ValueError(f"num_dropped: expected 0 to {size - 1}; got {num_dropped!r}")
        # Squares of singular values lose half of the digits: hence double precision.
        chunks = rows.split(_CHUNK_ROWS)
        mean = torch.stack([part.double().sum(0) for part in chunks]).sum(0) / len(rows)
        scatter = torch.zeros(size, size, dtype=torch.float64, device=rows.device)
        for part in chunks:
            centred = part.double() - mean
            scatter.addmm_(centred.T, centred)
        # Eigenvalues come in ascending order.
        directions = torch.linalg.eigh(scatter).eigenvectors[:, num_dropped:]
        return cls(mean.to(rows), directions.to(rows).contiguous())

    def __call__(self, rows: Tensor) -> Tensor:
        """Smooth rows, shape ``(..., D)``.

        :raises ValueError: for rows of another length.
        """
        size = len(self.mean)
        if rows.dim() == 0 or rows.shape[-1] != size:
            raise ValueError(f"rows: expected shape (..., {size}); got {tuple(rows.shape)}")
        return (rows - self.mean) @ self.directions @ self.directions.T + self.mean
