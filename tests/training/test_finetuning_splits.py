# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Stratified sets: exact counts, no row twice, reproducible."""

import pytest
import torch

from pyro_ebm.training.finetuning import labelled_subset, stratified_folds, stratified_split

COUNTS = [40, 35, 15, 10]
LABELS = torch.cat([torch.full((n,), k) for k, n in enumerate(COUNTS)])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def counts(rows):
    return LABELS[rows].bincount(minlength=4).tolist()


@pytest.mark.parametrize(
    "total, expected",
    # Shares 40, 35, 15 and 10 %: remainders decide what is left, the largest first.
    [(100, COUNTS), (20, [8, 7, 3, 2]), (50, [20, 18, 7, 5]), (7, [3, 2, 1, 1])],
)
def test_total(total, expected):
    chosen, others = stratified_split(LABELS, total, generator=generator())
    assert counts(chosen) == expected
    assert torch.cat([chosen, others]).sort().values.tolist() == list(range(100))


def test_num_per_class():
    chosen, others = stratified_split(LABELS, num_per_class=4, generator=generator())
    assert counts(chosen) == [4] * 4
    assert len(others) == 84


def test_reproducible_and_random():
    first, same, other = (
        stratified_split(LABELS, 20, generator=generator(seed))[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)
    # Every row of a class is as likely as another one: 8 of 40, in 2,000 sets.
    g, hits = generator(), torch.zeros(100)
    for _ in range(2000):
        hits[stratified_split(LABELS, 20, generator=g)[0]] += 1
    error = (2000 * 0.2 * 0.8) ** 0.5
    assert (hits - 400).abs().max() < 6 * error
    # In random order: not sorted by class.
    assert LABELS[first].diff().abs().sum() > 3


def test_labelled_subset():
    train, validation = labelled_subset(LABELS, 40, 20, generator=generator())
    assert counts(train) == [8, 7, 3, 2] and counts(validation) == [8, 7, 3, 2]
    assert not set(train.tolist()) & set(validation.tolist())
    train, validation = labelled_subset(LABELS, 20, generator=generator())
    assert counts(train) == [8, 7, 3, 2] and len(validation) == 0


def test_folds():
    folds = stratified_folds(LABELS, 3, generator=generator())
    assert torch.cat(folds).sort().values.tolist() == list(range(100))
    by_fold = torch.tensor([counts(fold) for fold in folds])
    assert (by_fold.amax(0) - by_fold.amin(0)).max() <= 1
    assert sorted(map(len, folds)) == [33, 33, 34]


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda: stratified_split(LABELS), ValueError, "exactly one"),
        (lambda: stratified_split(LABELS, 10, num_per_class=1), ValueError, "exactly one"),
        (lambda: stratified_split(LABELS, 3), ValueError, "total must be in"),
        (lambda: stratified_split(LABELS, 101), ValueError, "total must be in"),
        (
            lambda: stratified_split(LABELS, num_per_class=11),
            ValueError,
            "num_per_class must be in",
        ),
        (lambda: stratified_split(LABELS.float(), 10), ValueError, "whole numbers"),
        (lambda: stratified_split([1, 2], 10), TypeError, "list"),
        (
            lambda: stratified_split(torch.tensor([0] * 99 + [1]), 2),
            ValueError,
            "leaves out a class of 1",
        ),
        (lambda: labelled_subset(LABELS, 10, 10), ValueError, "num_validation"),
        (lambda: stratified_folds(LABELS, 1), ValueError, "num_folds"),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()
