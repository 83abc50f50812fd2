# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""How good are the samples of each class?"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm.diagnostics.tables import markdown_table, significant, text_table
from pyro_ebm.distances.pooled import check_rows
from pyro_ebm.predictive.class_quality import ClassQuality, compare_with_real
from pyro_ebm.predictive.estimates import Estimate, proportion_estimate

__all__ = ["Classifier", "SampleReport", "rows_by_class", "sample_report"]

#: Rows ``(n, V)`` to labels ``(n,)``, or to scores ``(n, classes)`` of which the largest counts.
Classifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SampleReport:
    """Quality of samples, class by class; ``print`` it.

    :param dict classes: :class:`ClassQuality` by class.
    :param accuracy: share of all samples that the classifier puts into their class, None without one.
    :param accuracy_real: the same of all held-out rows.
    :param dict settings: how it was computed.
    """

    classes: dict[int, ClassQuality]
    accuracy: Estimate | None
    accuracy_real: Estimate | None
    settings: dict[str, Any]

    def means(self) -> dict[str, float | None]:
        """The numbers of the table, averaged over classes; accuracies are those of all rows."""
        rows = [quality.numbers() for quality in self.classes.values()]
        means: dict[str, float | None] = {}
        for name in rows[0]:
            values = [value for row in rows if (value := row[name]) is not None]
            means[name] = math.fsum(values) / len(values) if values else None
        overall = {"accuracy": self.accuracy, "accuracy_real": self.accuracy_real}
        return means | {n: None if e is None else e.value for n, e in overall.items()}

    def to_dict(self) -> dict[str, Any]:
        """All numbers for a report; JSON types only."""
        overall = {"accuracy": self.accuracy, "accuracy_real": self.accuracy_real}
        return {
            **{name: None if e is None else e.to_dict() for name, e in overall.items()},
            "means": self.means(),
            "classes": {str(name): quality.to_dict() for name, quality in self.classes.items()},
            "settings": dict(self.settings),
        }

    def _table(self) -> tuple[list[str], list[list[str]]]:
        named = {str(name): quality.numbers() for name, quality in self.classes.items()}
        named["all"] = self.means()
        header = ["class", *(name.replace("_", " ") for name in named["all"])]
        rows = [[n, *(significant(x) for x in row.values())] for n, row in named.items()]
        return header, rows

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return markdown_table(*self._table())

    def __str__(self) -> str:
        return text_table(*self._table())


def sample_report(
    samples: Mapping[int, Tensor],
    train: Mapping[int, Tensor],
    test: Mapping[int, Tensor],
    *,
    classifier: Classifier | None = None,
    num_permutations: int = 0,
    max_rows: int = 1000,
    generator: Generator | None = None,
) -> SampleReport:
    r"""Compare samples of each class with real rows of that class, in four ways.

    - **Right class**: how often a classifier that was trained on real rows recognises them [1], against
      the same share of held-out rows. The classifier must not be the model's own.
    - **Distribution**: squared maximum mean discrepancy and energy distance from held-out rows.
    - **Variety**: total variance, and the distance of samples to the nearest other sample, both over the
      same of held-out rows.
    - **Memory**: distance of samples to the nearest training row against that of held-out rows [2], and
      adversarial accuracy against training and held-out rows [3]. A model that has copied training rows is
      nearer to them than real rows are.

    Distances are Euclidean, in the units of the rows. A classifier sees all rows; distances are computed
    from at most ``max_rows`` samples and held-out rows a class, and all training rows.

    **References**

    [1] *How good is my GAN?*, Konstantin Shmelkov, Cordelia Schmid, Karteek Alahari (2018)

    [2] *A Non-Parametric Test to Detect Data-Copying in Generative Models*, Casey Meehan, Kamalika
    Chaudhuri, Sanjoy Dasgupta (2020)

    [3] *Generation and evaluation of privacy preserving synthetic health data*, Andrew Yale, Saloni Dash,
    Ritik Dutta, Isabelle Guyon, Adrien Pavao, Kristin Bennett (2020)

    :param samples: independent samples by class, each of shape ``(n >= 2, V)``; see
        :func:`rows_by_class`.
    :param train: the rows that the model was trained on, by class; every class of ``samples``.
    :param test: held-out rows by class; every class of ``samples``.
    :param classifier: rows ``(n, V)`` to labels ``(n,)``, or to scores ``(n, classes)`` of which the
        largest counts.
    :param int num_permutations: random relabellings for p-values of the two distances; 0 for none.
    :param int max_rows: samples and held-out rows of a class that distances are computed from.
    :param torch.Generator generator: the source of randomness; the global one if None.
    :raises ValueError: for wrong shapes, values that are not finite, classes without real rows, or
        impossible options.

    >>> import torch
    >>> rows = {0: torch.randn(300, 2), 1: torch.randn(300, 2) + 4.0}
    >>> samples, train, test = ({k: x[i::3] for k, x in rows.items()} for i in range(3))
    >>> report = sample_report(samples, train, test, classifier=lambda x: (x.mean(-1) > 2.0).long())
    >>> report.accuracy.value > 0.9, 0.5 < report.means()["variance_ratio"] < 2.0
    (True, True)
    """
    _check(samples, train, test, max_rows)
    options: dict[str, Any] = {
        "num_permutations": num_permutations,
        "max_rows": max_rows,
    }
    classes, hits, hits_real = {}, [], []
    for name, rows in samples.items():
        accuracy, accuracy_real = None, None
        if classifier is not None:
            hits.append((_hits(classifier, rows, name), len(rows)))
            hits_real.append((_hits(classifier, test[name], name), len(test[name])))
            accuracy, accuracy_real = (proportion_estimate(*h[-1]) for h in (hits, hits_real))
        compared = compare_with_real(rows, train[name], test[name], **options, generator=generator)
        classes[name] = ClassQuality(accuracy=accuracy, accuracy_real=accuracy_real, **compared)
    return SampleReport(classes, _overall(hits), _overall(hits_real), options)


def rows_by_class(rows: Tensor, labels: Tensor) -> dict[int, Tensor]:
    """Rows by their labels, in the order of the labels.

    :param Tensor rows: shape ``(n, V)``.
    :param Tensor labels: whole numbers, shape ``(n,)``.
    :raises ValueError: for other shapes or labels.
    """
    if rows.dim() != 2 or labels.shape != rows.shape[:1]:
        raise ValueError(
            f"rows and labels must have shapes (n, V) and (n,), got {tuple(rows.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be whole numbers, got {labels.dtype}")
    labels = labels.to(rows.device)
    return {int(name): rows[labels == name] for name in labels.unique().tolist()}


def _check(
    samples: Mapping[int, Tensor],
    train: Mapping[int, Tensor],
    test: Mapping[int, Tensor],
    max_rows: int,
) -> None:
    if not samples:
        raise ValueError("samples must hold at least one class, got none")
    if max_rows < 2:
        raise ValueError(f"max_rows must be at least 2, got {max_rows}")
    for name in samples:
        for which, rows in (("samples", samples), ("train", train), ("test", test)):
            if name not in rows:
                raise ValueError(f"{which} must hold rows of class {name!r}, got {sorted(rows)}")
            check_rows(f"{which}[{name!r}]", rows[name])
            if rows[name].shape[1] != samples[name].shape[1]:
                raise ValueError(
                    f"{which}[{name!r}] must have {samples[name].shape[1]} units as the samples, "
                    f"got {tuple(rows[name].shape)}"
                )


def _hits(classifier: Classifier, rows: Tensor, name: int) -> int:
    """Number of rows that the classifier puts into the class."""
    with torch.no_grad():
        labels = classifier(rows)
    if labels.dim() == 2:
        labels = labels.argmax(-1)
    if labels.shape != rows.shape[:1]:
        raise ValueError(
            f"classifier must give labels ({len(rows)},) or scores ({len(rows)}, classes), "
            f"got {tuple(labels.shape)}"
        )
    return int((labels == name).sum())


def _overall(hits: list[tuple[int, int]]) -> Estimate | None:
    if not hits:
        return None
    return proportion_estimate(sum(k for k, _ in hits), sum(n for _, n in hits))
