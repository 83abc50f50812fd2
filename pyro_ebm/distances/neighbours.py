# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Nearest neighbours of samples among data and among themselves."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm.distances.pooled import PooledSamples, check_rows, p_value, permuted_labels

__all__ = ["AdversarialAccuracy", "adversarial_accuracy"]


@dataclass(frozen=True)
class AdversarialAccuracy:
    """How well nearest neighbours tell samples from data: 0.5 is ideal.

    :param float value: mean of the two terms. Near 1, the two are told apart; near 0, samples are
        copies of data.
    :param float truth: share of the data rows that are nearer to another data row than to any sample.
        Near 1, samples do not cover the data.
    :param float synthetic: share of the samples that are nearer to another sample than to any data
        row. Near 1, samples are unlike the data; near 0, each sits on a data row.
    :param p_value: share of random relabellings whose value is at least as far from that of equal
        distributions, None if none were drawn.
    :param dict settings: how it was computed.
    """

    value: float
    truth: float
    synthetic: float
    p_value: float | None
    settings: dict[str, Any]

    def __float__(self) -> float:
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """Numbers and settings for a report; JSON types only."""
        names = ("value", "truth", "synthetic", "p_value")
        return {n: getattr(self, n) for n in names} | {"settings": dict(self.settings)}

    def __str__(self) -> str:
        test = "" if self.p_value is None else f", p = {self.p_value:.3g}"
        return (
            f"adversarial accuracy = {self.value:.3f} (data {self.truth:.3f}, samples "
            f"{self.synthetic:.3f}; ideal 0.5{test}; {self.settings['num_samples']} rows of each)"
        )


def adversarial_accuracy(
    samples: Tensor,
    data: Tensor,
    *,
    num_permutations: int = 0,
    generator: Generator | None = None,
) -> AdversarialAccuracy:
    r"""Nearest-neighbour adversarial accuracy (:math:`\mathrm{AA}_{TS}`) of samples against data,

    .. math::
        \tfrac{1}{2} \Bigl( \tfrac{1}{n} \sum_i 1[d_{TS}(i) > d_{TT}(i)]
                          + \tfrac{1}{n} \sum_i 1[d_{ST}(i) > d_{SS}(i)] \Bigr),

    where :math:`d_{TS}(i)` is the Euclidean distance of the i-th data row to the nearest sample,
    :math:`d_{TT}(i)` to the nearest other data row, and so on. Distances between discrete rows are often
    equal; equal distances count one half, so that equal distributions still give 0.5 (for finite n,
    :math:`(n - 1) / (2n - 1)`).

    Compute it against training data and against held-out data: a model that memorises has a smaller
    value for the former, and the difference is the privacy loss of [1].

    The measure needs equal numbers of rows; of the larger set a random part is taken.

    **References**

    [1] *Generation and evaluation of privacy preserving synthetic health data*, Andrew Yale, Saloni Dash,
    Ritik Dutta, Isabelle Guyon, Adrien Pavao, Kristin Bennett (2020)

    :param Tensor samples: shape ``(n, V)``, of any dtype.
    :param Tensor data: shape ``(m, V)``.
    :param int num_permutations: random relabellings for a two-sided p-value, which assumes independent
        rows; 0 for none.
    :param torch.Generator generator: the source of relabellings and of the part that is taken; the global
        one if None.
    :raises ValueError: for wrong shapes or values that are not finite.

    >>> import torch
    >>> data = torch.randn(100, 5)
    >>> float(adversarial_accuracy(data.clone(), data))
    0.0
    """
    check_rows("samples", samples)
    check_rows("data", data)
    size = min(len(samples), len(data))
    pooled = PooledSamples(_part(data, size, generator), _part(samples, size, generator))
    labels = permuted_labels(pooled, num_permutations, generator)
    terms = torch.zeros(2, labels.shape[1], dtype=labels.dtype, device=labels.device)
    for start, stop in pooled.chunks():
        terms += _terms(pooled, labels, start, stop)
    terms /= size
    values = terms.mean(0)
    # Two-sided: both copies and strangers are unlike a second sample of the same distribution.
    deviation = (values - (size - 1) / (2 * size - 1)).abs()
    truth, synthetic = terms[:, 0].tolist()
    settings = {"num_samples": size, "num_permutations": num_permutations}
    return AdversarialAccuracy(values[0].item(), truth, synthetic, p_value(deviation), settings)


def _part(x: Tensor, size: int, generator: Generator | None) -> Tensor:
    if len(x) == size:
        return x
    device = torch.device("cpu") if generator is None else generator.device
    index = torch.randperm(len(x), generator=generator, device=device)[:size]
    return x[index.to(x.device)]


def _terms(pooled: PooledSamples, labels: Tensor, start: int, stop: int) -> Tensor:
    """Rows of a chunk whose nearest neighbour has their own label, for either label.

    Only the nearest neighbours matter, not their distance, so that one table of who is nearest to whom
    serves all labels.

    :returns: numbers of rows labelled 1 and 0, shape ``(2, labels.shape[1])``.
    """
    distances = pooled.squared(start, stop)
    rows = torch.arange(start, stop, device=distances.device)
    distances[rows - start, rows] = math.inf
    nearest = (distances == distances.amin(1, keepdim=True)).to(labels.dtype)
    ones = nearest @ labels
    zeros = nearest.sum(1, keepdim=True) - ones
    # Nearest neighbours of both labels: the distances are equal, which counts one half.
    votes = 0.5 * (1.0 + (ones > 0).to(labels.dtype) - (zeros > 0).to(labels.dtype))
    own = labels[start:stop]
    return torch.stack([(own * votes).sum(0), ((1.0 - own) * (1.0 - votes)).sum(0)])
