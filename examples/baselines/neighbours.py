# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Missing bits of rows from the rows of a training set that agree best on what is seen."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

__all__ = ["CLIP", "log_scores", "nearest", "neighbour_rates", "share_of_ones"]

#: A marginal probability of 0 or 1 would make a single surprise infinitely bad.
CLIP = 1e-3
#: Numbers of neighbours that are tried.
_NUMBERS = (1, 3, 10, 30, 100, 300)


def log_scores(truth: Tensor, rates: Tensor) -> Tensor:
    """Log-probability of a missing bit by itself, mean over the bits of a row, shape ``(N,)``.

    :param Tensor truth: bits, shape ``(N, missing)``.
    :param Tensor rates: probabilities of a one, which are kept within ``CLIP`` of 0 and 1.
    """
    p = rates.double().clamp(CLIP, 1.0 - CLIP)
    return -binary_cross_entropy(p, truth.double(), reduction="none").mean(-1)


def nearest(train: Tensor, rows: Tensor, mask: Tensor, count: int) -> Tensor:
    """Rows of the training set that agree best on the seen bits.

    :param Tensor train: bits, shape ``(rows, V)``.
    :param Tensor rows: bits, shape ``(N, V)``, read where the mask is True.
    :param Tensor mask: True where a bit is seen, shape ``(V,)``.
    :param int count: how many.
    :returns: their numbers, best first, shape ``(N, count)``.
    """
    seen, found = train[:, mask], []
    ones = seen.sum(-1)
    for chunk in rows[:, mask].split(250):
        # Of bits a and b, |a - b| = a + b - 2ab; a is the same for all candidates.
        distance = ones - 2.0 * chunk @ seen.T
        found.append(distance.topk(count, largest=False).indices)
    return torch.cat(found)


def share_of_ones(train: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    """Share of ones of the missing bits, shrunk to their means as by one more neighbour.

    :param Tensor index: numbers of neighbours, shape ``(N, count)``.
    :returns: shape ``(N, missing)``.
    """
    missing = train[:, ~mask]
    total = torch.stack([missing[neighbours].sum(0) for neighbours in index])
    return (total + missing.mean(0)) / (index.shape[1] + 1)


def neighbour_rates(
    train: Tensor, rows: Tensor, mask: Tensor, held_out: int
) -> tuple[dict[str, Tensor], int]:
    """Probabilities of the missing bits by their means, by the nearest row, and by several.

    The number of neighbours, and the probability that the nearest one is wrong, are those of the last
    ``held_out`` training rows among the others.

    :returns: probabilities by name, and the number of neighbours.
    :raises ValueError: if the training set is not larger than what is held out.
    """
    if not 0 < held_out < len(train):
        raise ValueError(f"held_out must be in [1, {len(train) - 1}], got {held_out}")
    rest, choice = train[:-held_out], train[-held_out:]
    numbers = [k for k in _NUMBERS if k <= len(rest)]
    index, truth = nearest(rest, choice, mask, numbers[-1]), choice[:, ~mask]
    scores = [log_scores(truth, share_of_ones(rest, index[:, :k], mask)).mean() for k in numbers]
    best = numbers[int(torch.stack(scores).argmax())]
    wrong = (rest[:, ~mask][index[:, 0]] != truth).double().mean()
    index = nearest(train, rows, mask, best)
    first = train[:, ~mask][index[:, 0]].double()
    return {
        "pixel means": train[:, ~mask].double().mean(0).expand(len(rows), -1),
        "nearest neighbour": first * (1.0 - wrong) + (1.0 - first) * wrong,
        "nearest neighbours": share_of_ones(train, index, mask),
    }, best
