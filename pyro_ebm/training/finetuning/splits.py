# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Which labels are used: splits with the same share of every class."""

import torch
from torch import Generator, Tensor

__all__ = ["labelled_subset", "stratified_folds", "stratified_split"]


def stratified_split(
    labels: Tensor,
    total: int | None = None,
    *,
    num_per_class: int | None = None,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Divide rows at random into a set with every class in its share, and the others.

    Of ``total`` rows a class gets its share in ``labels``, rounded so that the counts add up: those with the
    largest remainders are rounded up.

    :param Tensor labels: the class of every row, whole numbers, shape ``(rows,)``.
    :param int total: rows of the set. Give this or ``num_per_class``.
    :param int num_per_class: rows of every class.
    :param torch.Generator generator: random numbers, on the CPU; the global ones if None.
    :returns: numbers of the rows of the set and of the others, each in random order.
    :raises ValueError: if there are not so many rows, or a class would be left out of the set.

    >>> import torch
    >>> from pyro_ebm.training.finetuning import stratified_split
    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> chosen, others = stratified_split(labels, 3, generator=torch.Generator().manual_seed(0))
    >>> labels[chosen].sort().values, len(others)
    (tensor([0, 0, 1]), 3)
    """
    labels = _check_labels(labels)
    classes, counts = labels.unique(return_counts=True)
    wanted = _counts(counts, total, num_per_class)
    order = torch.randperm(len(labels), generator=generator)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in zip(classes, wanted.tolist(), strict=True):
        # The first rows of the class in a random order of all rows.
        chosen[order[labels[order] == label][:count]] = True
    in_order = chosen[order]
    return order[in_order], order[~in_order]


def labelled_subset(
    labels: Tensor, total: int, num_validation: int = 0, *, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Rows whose labels are known, as training and validation rows, both stratified.

    :param Tensor labels: the class of every row, shape ``(rows,)``.
    :param int total: labels that are known, validation rows included.
    :param int num_validation: how many of them are for validation.
    :param torch.Generator generator: random numbers, on the CPU; the global ones if None.
    :returns: numbers of ``total - num_validation`` training rows and of the validation rows.
    :raises ValueError: for impossible numbers, or if a class would be left out of either.

    >>> import torch
    >>> from pyro_ebm.training.finetuning import labelled_subset
    >>> train, validation = labelled_subset(torch.arange(100) % 10, 50, 10)
    >>> len(train), len(validation)
    (40, 10)
    """
    if not isinstance(num_validation, int) or not 0 <= num_validation < total:
        raise ValueError(f"num_validation must be in [0, {total}), got {num_validation!r}")
    labels = _check_labels(labels)
    known, _ = stratified_split(labels, total, generator=generator)
    if num_validation == 0:
        return known, known[:0]
    validation, train = stratified_split(labels[known], num_validation, generator=generator)
    return known[train], known[validation]


def stratified_folds(
    labels: Tensor, num_folds: int, *, generator: Generator | None = None
) -> list[Tensor]:
    """Divide rows at random into folds whose counts of every class differ by one at most.

    :param Tensor labels: the class of every row, shape ``(rows,)``.
    :param int num_folds: number of folds.
    :param torch.Generator generator: random numbers, on the CPU; the global ones if None.
    :returns: numbers of the rows of every fold.
    :raises ValueError: if ``num_folds`` is below 2 or above the number of rows.
    """
    labels = _check_labels(labels)
    if not isinstance(num_folds, int) or not 2 <= num_folds <= len(labels):
        raise ValueError(f"num_folds must be in [2, {len(labels)}], got {num_folds!r}")
    order = torch.randperm(len(labels), generator=generator)
    # Sorted by class and dealt like cards: of folds, too, the sizes differ by one at most.
    order = order[labels[order].argsort(stable=True)]
    return [order[fold::num_folds] for fold in range(num_folds)]


def _counts(counts: Tensor, total: int | None, num_per_class: int | None) -> Tensor:
    """How many rows of every class."""
    if (total is None) == (num_per_class is None):
        raise ValueError(
            "give exactly one of total and num_per_class, got "
            f"total={total!r}, num_per_class={num_per_class!r}"
        )
    smallest, size = int(counts.min()), int(counts.sum())
    if num_per_class is not None:
        if not 1 <= num_per_class <= smallest:
            raise ValueError(
                f"num_per_class must be in [1, {smallest}], the rows of the smallest class, "
                f"got {num_per_class!r}"
            )
        return torch.full_like(counts, num_per_class)
    assert total is not None
    if not len(counts) <= total <= size:
        raise ValueError(
            f"total must be in [{len(counts)}, {size}], from one row of every class to all rows, "
            f"got {total!r}"
        )
    wanted = counts * total // size
    remainder = counts * total % size
    missing = total - int(wanted.sum())
    wanted[remainder.argsort(descending=True, stable=True)[:missing]] += 1
    if int(wanted.min()) == 0:
        raise ValueError(
            f"total={total} leaves out a class of {smallest} of {size} rows; take more"
        )
    return wanted


def _check_labels(labels: Tensor) -> Tensor:
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
    if labels.dim() != 1 or len(labels) == 0 or labels.dtype.is_floating_point:
        raise ValueError(
            f"labels must be whole numbers of shape (rows >= 1,), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    return labels.cpu()
