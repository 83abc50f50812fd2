# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Samples of one class against the real rows of that class."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm.distances import (
    AdversarialAccuracy,
    TwoSampleDistance,
    adversarial_accuracy,
    energy_distance,
    maximum_mean_discrepancy,
)
from pyro_ebm.distances.pooled import PooledSamples
from pyro_ebm.predictive.estimates import Estimate, finite_or_none, proportion_estimate

__all__ = ["ClassQuality", "compare_with_real", "copy_share", "nearest_distances", "random_part"]

#: Entries of the table of distances that are computed at once: 32 MiB in float64.
_CHUNK_ENTRIES = 2**22
#: Share of the held-out rows that is nearer to training data than what counts as a copy.
_COPY_QUANTILE = 0.05
#: Distances that differ by less than this part of the largest one are equal: the difference is rounding.
_TIE = 1e-6


@dataclass(frozen=True)
class ClassQuality:
    """Quality of the samples of one class; "real" rows are held-out ones of the same class.

    :param accuracy: share of the samples that the classifier puts into the class, an :class:`Estimate`;
        None without a classifier.
    :param accuracy_real: the same of the real rows, which good samples reach and not exceed.
    :param TwoSampleDistance mmd: squared maximum mean discrepancy from the real rows.
    :param TwoSampleDistance energy: energy distance from the real rows.
    :param float variance_ratio: total variance of the samples over that of the real rows; below 1 the
        samples lack variety.
    :param float nearest_sample: mean distance of a sample to the nearest other one.
    :param float nearest_real: mean distance of a real row to the nearest other one, among as many.
    :param float train_distance: mean distance of a sample to the nearest training row.
    :param float train_distance_real: mean distance of a real row to the nearest training row.
    :param Estimate copies: share of the samples that are nearer to a training row than 95 % of the real
        rows are, the mean of the probabilities that randomised conformal p-values [1] are at most 0.05.
        Its expectation is 0.05 if samples are distributed as real rows, however many distances are equal
        (as those of discrete rows are), and it is larger if the model has memorised training data (or
        draws only the most typical rows). Where a share r > 0.05 of the real rows equals some training
        row it cannot be more than 0.05 / r, which is reached by samples that all do. The standard error
        takes the distances of the real rows as known.
    :param AdversarialAccuracy adversarial_train: of the samples against training rows.
    :param AdversarialAccuracy adversarial_real: of the samples against real rows.
    :param int num_samples: number of samples that were compared.
    :param int num_real: number of real rows that they were compared with.

    **References**

    [1] *Algorithmic Learning in a Random World*, Vladimir Vovk, Alexander Gammerman, Glenn Shafer (2005)
    """

    accuracy: Estimate | None
    accuracy_real: Estimate | None
    mmd: TwoSampleDistance
    energy: TwoSampleDistance
    variance_ratio: float
    nearest_sample: float
    nearest_real: float
    train_distance: float
    train_distance_real: float
    copies: Estimate
    adversarial_train: AdversarialAccuracy
    adversarial_real: AdversarialAccuracy
    num_samples: int
    num_real: int

    @property
    def nearest_ratio(self) -> float:
        """Distance to the nearest other row, of samples over that of real rows; below 1 samples repeat."""
        return _ratio(self.nearest_sample, self.nearest_real)

    @property
    def train_ratio(self) -> float:
        """Distance to the training data, of samples over that of real rows; far below 1 they are copies."""
        return _ratio(self.train_distance, self.train_distance_real)

    @property
    def privacy_loss(self) -> float:
        """Adversarial accuracy against real rows less that against training rows, 0 without copies."""
        return self.adversarial_real.value - self.adversarial_train.value

    def numbers(self) -> dict[str, float | None]:
        """The single numbers of the table, None where there is none."""
        names = ("variance_ratio", "nearest_ratio", "train_ratio", "privacy_loss")
        accuracies = {
            name: None if score is None else score.value
            for name, score in (("accuracy", self.accuracy), ("accuracy_real", self.accuracy_real))
        }
        return {
            **accuracies,
            "mmd": self.mmd.value,
            "energy": self.energy.value,
            **{name: finite_or_none(getattr(self, name)) for name in names},
            "copies": self.copies.value,
        }

    def to_dict(self) -> dict[str, Any]:
        """All numbers for a report; JSON types only."""
        result: dict[str, Any] = self.numbers()
        for name in ("accuracy", "accuracy_real", "copies", "mmd", "energy"):
            part = getattr(self, name)
            result[name] = None if part is None else part.to_dict()
        for name in ("adversarial_train", "adversarial_real"):
            result[name] = getattr(self, name).to_dict()
        names = ("nearest_sample", "nearest_real", "train_distance", "train_distance_real")
        result |= {name: getattr(self, name) for name in names}
        return result | {"num_samples": self.num_samples, "num_real": self.num_real}


def compare_with_real(
    samples: Tensor,
    train: Tensor,
    real: Tensor,
    *,
    num_permutations: int,
    max_rows: int,
    generator: Generator | None,
) -> dict[str, Any]:
    """What :class:`ClassQuality` knows without a classifier, by name."""
    samples = random_part(samples, max_rows, generator)
    real = random_part(real, max_rows, generator)
    # Nearest neighbours get nearer with more rows, so that numbers of rows must agree.
    size = min(len(samples), len(real))
    fewer_samples = random_part(samples, size, generator)
    fewer_real = random_part(real, size, generator)
    to_train = nearest_distances(samples, train)[1]
    real_to_train = nearest_distances(real, train)[1]
    options: dict[str, Any] = {"num_permutations": num_permutations, "generator": generator}
    return {
        "mmd": maximum_mean_discrepancy(samples, real, **options),
        "energy": energy_distance(samples, real, **options),
        "variance_ratio": _ratio(_total_variance(samples), _total_variance(real)),
        "nearest_sample": nearest_distances(fewer_samples, real)[0].mean().item(),
        "nearest_real": nearest_distances(fewer_real, samples)[0].mean().item(),
        "train_distance": to_train.mean().item(),
        "train_distance_real": real_to_train.mean().item(),
        "copies": copy_share(to_train, real_to_train),
        # The same number of rows on both sides; training data has many more.
        "adversarial_train": adversarial_accuracy(
            fewer_samples, random_part(train, size, generator), generator=generator
        ),
        "adversarial_real": adversarial_accuracy(fewer_samples, fewer_real, generator=generator),
        "num_samples": len(samples),
        "num_real": len(real),
    }


def nearest_distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distances of every row of x to the nearest other row of x, and to the nearest of y.

    :param Tensor x: shape ``(n >= 2, V)``.
    :param Tensor y: shape ``(m >= 2, V)``.
    :returns: two tensors of shape ``(n,)``, float64.
    """
    pooled, n = PooledSamples(x, y), len(x)
    size = max(1, _CHUNK_ENTRIES // len(pooled))
    own, other = [], []
    for start in range(0, n, size):
        stop = min(start + size, n)
        squared = pooled.squared(start, stop)
        rows = torch.arange(start, stop, device=squared.device)
        squared[rows - start, rows] = math.inf
        own.append(squared[:, :n].amin(1))
        other.append(squared[:, n:].amin(1))
    return torch.cat(own).double().sqrt(), torch.cat(other).double().sqrt()


def copy_share(to_train: Tensor, real_to_train: Tensor) -> Estimate:
    r"""Share of samples that are nearer to the training data than nearly all real rows are.

    Among m real rows of which a are nearer than a sample and b as near, its randomised p-value is uniform
    on :math:`[a, a + b + 1] / (m + 1)`. What is averaged is its probability to be at most 0.05, so that
    the expectation over exchangeable rows is 0.05 exactly, with ties and for any m.

    :param Tensor to_train: distances of the samples, shape ``(n,)``.
    :param Tensor real_to_train: distances of the real rows, shape ``(m,)``.
    """
    step = _TIE * torch.maximum(to_train.max(), real_to_train.max())
    step = torch.where(step > 0.0, step, 1.0)
    own, real = (to_train / step).round(), (real_to_train / step).round().sort().values
    nearer = torch.searchsorted(real, own)
    equal = torch.searchsorted(real, own, right=True) - nearer
    probability = (_COPY_QUANTILE * (len(real) + 1) - nearer.double()) / (equal + 1)
    return proportion_estimate(probability.clamp(0.0, 1.0).sum().item(), len(own))


def random_part(rows: Tensor, size: int, generator: Generator | None) -> Tensor:
    """At most ``size`` of the rows, drawn without replacement."""
    if len(rows) <= size:
        return rows
    device = torch.device("cpu") if generator is None else generator.device
    index = torch.randperm(len(rows), generator=generator, device=device)[:size]
    return rows[index.to(rows.device)]


def _total_variance(rows: Tensor) -> float:
    return rows.double().var(0).sum().item()


def _ratio(x: float, y: float) -> float:
    return x / y if y > 0.0 else math.nan if x == 0.0 else math.inf
