# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Two samples in one set of points: distances in chunks, and labels for permutation tests."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

__all__ = ["PooledSamples", "p_value", "permuted_labels"]

#: Entries of the table of distances that are computed at once: 32 MiB in float64.
_CHUNK_ENTRIES = 2**22
#: Whole numbers up to here are exact in float32.
_EXACT_FLOAT32 = 2**24
#: Rows that the median distance is taken over.
_MEDIAN_ROWS = 1000


class PooledSamples:
    """The rows of two samples, x first, and the distances between all of them.

    Bits, spins and counts stay in float32, where sums of their products are exact; everything else
    is centred and computed in float64, since squared distances are small differences of large
    numbers.

    :param Tensor x: shape ``(n, V)``.
    :param Tensor y: shape ``(m, V)``.
    :raises ValueError: for other shapes, fewer than two rows, or values that are not finite.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        check_rows("x", x)
        check_rows("y", y)
        if x.shape[1] != y.shape[1]:
            raise ValueError(
                f"x and y must have the same units, got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        self.sizes = (len(x), len(y))
        rows = torch.cat([x.detach().double(), y.detach().to(x.device).double()])
        self._low, self._high = rows.min(), rows.max()
        # At most two different values, such as bits.
        self._two_valued = bool(((rows == self._low) | (rows == self._high)).all())
        largest = rows.abs().max().square() * rows.shape[1]
        whole = bool((rows == rows.round()).all()) and bool(4.0 * largest < _EXACT_FLOAT32)
        self.rows = rows.float() if whole else rows - rows.mean(0)

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows whose distances to all rows fit into bounded memory."""
        size = max(1, _CHUNK_ENTRIES // len(self))
        for start in range(0, len(self), size):
            yield start, min(start + size, len(self))

    def squared(self, start: int, stop: int) -> Tensor:
        """Squared Euclidean distances of some rows to all, shape ``(stop - start, n + m)``."""
        squared = _squared_distances(self.rows[start:stop], self.rows)
        own = torch.arange(start, stop, device=squared.device)
        squared[own - start, own] = 0.0
        return squared

    def hamming(self, start: int, stop: int) -> Tensor:
        """Numbers of entries in which some rows differ from all rows."""
        return self._hamming(self.rows[start:stop], self.rows)

    def _hamming(self, a: Tensor, b: Tensor) -> Tensor:
        if not self._two_valued:
            return torch.cdist(a, b, p=0.0)
        step = (self._high - self._low).square().clamp(min=torch.finfo(torch.float64).tiny)
        return (_squared_distances(a, b).double() / step).round_()

    def median(self, metric: str) -> float:
        """Median distance between different rows (of at most a thousand of them), never zero."""
        size = min(len(self), _MEDIAN_ROWS)
        rows = self.rows[torch.linspace(0, len(self) - 1, size, device=self.rows.device).long()]
        if metric == "hamming":
            distances = self._hamming(rows, rows)
        else:
            distances = _squared_distances(rows, rows).sqrt_()
        i, j = torch.triu_indices(size, size, 1, device=rows.device)
        values = distances[i, j].double()
        return values.median().item() or values.mean().item() or 1.0


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    products = a @ b.T
    squared = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2.0 * products
    return squared.clamp_(min=0.0)


def check_rows(name: str, x: Tensor) -> None:
    """Refuse what is no sample of at least two rows of finite numbers."""
    if x.dim() != 2 or len(x) < 2 or x.shape[1] < 1:
        raise ValueError(f"{name} must have shape (samples >= 2, units), got {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinite values")


def permuted_labels(
    pooled: PooledSamples, num_permutations: int, generator: Generator | None
) -> Tensor:
    """Which rows count as x: as given in the first column, at random in the others.

    :returns: zeros and ones, shape ``(n + m, 1 + num_permutations)``, float64.
    """
    if num_permutations < 0:
        raise ValueError(f"num_permutations must be at least 0, got {num_permutations}")
    n, device = pooled.sizes[0], pooled.rows.device
    labels = torch.zeros(len(pooled), 1 + num_permutations, dtype=torch.float64, device=device)
    labels[:n, 0] = 1.0
    for i in range(num_permutations):
        order = torch.randperm(len(pooled), generator=generator, device=_device(generator))
        labels[order[:n].to(device), 1 + i] = 1.0
    return labels


def _device(generator: Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def p_value(statistics: Tensor) -> float | None:
    """Share of the permutations, the given labels among them, whose statistic is as large."""
    if len(statistics) < 2:
        return None
    # Equal up to rounding is equal: discrete samples often permute into the same statistic.
    tolerance = 1e-12 * statistics.abs().max()
    return float((statistics >= statistics[0] - tolerance).double().mean())
