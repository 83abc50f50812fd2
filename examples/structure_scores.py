# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""How well edges are found, for ``structure_learning.py``; and neighbourhood selection, the usual way."""

import importlib
import itertools
import math
from typing import Any

import numpy as np
import torch
from potts_models import pairs
from torch import Tensor
from torch.nn.functional import one_hot

#: Inverse penalties of the neighbourhood selection, weak ones last.
PENALTIES = np.logspace(-2.5, 1.5, 13)
#: liblinear penalises intercepts too, but divides their penalty by this: biases are as good as free.
_INTERCEPT_SCALING = 100.0


def edge_scores(score: Tensor, chosen: Tensor, truth: Tensor) -> dict[str, float]:
    """Area under the ROC curve of a score, and F1 of a choice, of one graph.

    :param Tensor score: larger where an edge is likelier, shape ``(pairs,)``.
    :param Tensor chosen: which pairs are called edges.
    :param Tensor truth: which are.
    """
    positive, negative = score[truth.bool()].double(), score[~truth.bool()].double()
    difference = positive.unsqueeze(-1) - negative
    area = (difference > 0).double().mean() + 0.5 * (difference == 0).double().mean()
    hits = (chosen.bool() & truth.bool()).sum().item()
    return {
        "auc": area.item(),
        "f1": 2.0 * hits / max(1.0, (chosen.bool().sum() + truth.bool().sum()).item()),
    }


def over_sets(scores: list[dict[str, float]]) -> dict[str, float]:
    """Means over data sets with their standard errors."""
    result = {}
    for name in scores[0]:
        values = torch.tensor([s[name] for s in scores], dtype=torch.float64)
        result[name] = values.mean().item()
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        result[f"{name}_std_error"] = error
    return result


def neighbourhood_selection(
    x: Tensor, num_states: int, *, intercept: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Edges by L1-penalised logistic regressions of every spin on all others (Pradeep Ravikumar, Martin
    Wainwright, John Lafferty, *High-dimensional Ising model selection using l1-regularized logistic
    regression*, 2010), with the penalty of the smallest BIC.

    Of more than two states, every pair of states has its rows: given that a spin is in state a or b, the
    log-odds are :math:`\sum_j K_{ij} ([x_j = a] - [x_j = b])`.

    :param Tensor x: states of one data set, shape ``(n, p)``.
    :param int num_states: q.
    :param bool intercept: whether spins have biases (of two states).
    :returns: a score, the weaker of both penalties at which a pair's weights appear, and within these the
        weights themselves; and the pairs that have a weight in both regressions. Shapes ``(pairs,)``.
    """
    num_spins = x.shape[1]
    paths = np.zeros((len(PENALTIES), num_spins, num_spins))
    criteria = np.zeros(len(PENALTIES))
    for i in range(num_spins):
        features, target = _regression(x, i, num_states)
        others = [j for j in range(num_spins) if j != i]
        for k, penalty in enumerate(PENALTIES):
            if len(np.unique(target)) < 2:
                continue
            model = _regress(features, target, penalty, intercept)
            paths[k, i, others] = model.coef_[0]
            sign = 2.0 * target - 1.0
            loss = np.logaddexp(0.0, -sign * model.decision_function(features)).sum()
            criteria[k] += 2.0 * loss + np.count_nonzero(model.coef_) * math.log(len(x))
    return _score(paths), _choice(paths[criteria.argmin()])


def _regress(features: Any, target: Any, penalty: float, intercept: bool) -> Any:
    """A logistic regression with an L1 penalty of the weights, next to none of the intercept."""
    linear = importlib.import_module("sklearn.linear_model")
    model = linear.LogisticRegression(
        l1_ratio=1.0,
        C=penalty,
        solver="liblinear",
        fit_intercept=intercept,
        intercept_scaling=_INTERCEPT_SCALING,
        max_iter=5000,
        random_state=0,
    )
    return model.fit(features, target)


def _regression(x: Tensor, i: int, num_states: int) -> tuple[Any, Any]:
    """Features and target of the regressions of spin i, those of all pairs of states below each other."""
    states = one_hot(x, num_states).double()
    features, targets = [], []
    for a, b in itertools.combinations(range(num_states), 2):
        rows = (x[:, i] == a) | (x[:, i] == b)
        difference = states[rows][..., a] - states[rows][..., b]
        features.append(torch.cat([difference[:, :i], difference[:, i + 1 :]], 1))
        targets.append(x[rows, i] == a)
    return torch.cat(features).numpy(), torch.cat(targets).double().numpy()


def _score(paths: Any) -> Tensor:
    """Order of appearance along the path, and the weights where the penalty is weakest to break ties."""
    first, second = pairs(paths.shape[1]).numpy()
    both = np.minimum(np.abs(paths[:, first, second]), np.abs(paths[:, second, first]))
    ties = both[-1] / (1.0 + both[-1].max())
    return torch.from_numpy((both > 0.0).sum(0) + ties)


def _choice(weights: Any) -> Tensor:
    first, second = pairs(len(weights)).numpy()
    return torch.from_numpy((weights[first, second] != 0.0) & (weights[second, first] != 0.0))
