# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Classes from one image or a few: the hierarchical prior against other classifiers, in random episodes.

Every method gives a score to each row and class. The one of the greatest score is what it says, and how far a
class is ahead of the others ranks the rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hierarchical_model import Statistics, Tree
from hierarchical_new_class import NewClasses, base_log_density
from torch import Generator, Tensor

__all__ = ["METHODS", "Episode", "Space", "episode_scores", "summary"]


@dataclass(frozen=True)
class Space:
    """Images as vectors: those that examples are taken from, those that are asked for."""

    train: Tensor
    test: Tensor


@dataclass(frozen=True)
class Episode:
    """Examples of the new classes, and who else there is.

    :param Tensor support: rows of examples, ``shots`` of each new class, shape ``(K, shots)``.
    :param Tensor memory: rows of those images of base classes that methods without statistics keep, empty
        where new classes are only to be told from each other.
    :param Tensor labels: classes of all training rows.
    :param classes: what can be answered, new classes first.
    :param Tensor asked: rows of the test images.
    """

    support: Tensor
    memory: Tensor
    labels: Tensor
    classes: tuple[int, ...]
    asked: Tensor

    @property
    def new(self) -> tuple[int, ...]:
        """The new classes."""
        return self.classes[: len(self.support)]

    @property
    def known(self) -> Tensor:
        """The rows of examples and of the memory."""
        return torch.cat([self.support.flatten(), self.memory])


def draw_support(labels: Tensor, new: tuple[int, ...], shots: int, generator: Generator) -> Tensor:
    """Rows of random examples, shape ``(K, shots)``."""
    chosen = []
    for k in new:
        rows = (labels == k).nonzero()[:, 0]
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:shots]])
    return torch.stack(chosen)


# --- methods --------------------------------------------------------------------------------------


def nearest_image(space: Space, episode: Episode) -> Tensor:
    """Minus the squared distance to the nearest known image of each class."""
    known = episode.known
    distance = torch.cdist(space.test[episode.asked], space.train[known]).square()
    labels = episode.labels[known]
    return torch.stack([-distance[:, labels == k].amin(1) for k in episode.classes], 1)


def nearest_mean(space: Space, episode: Episode) -> Tensor:
    """Minus the squared distance to the mean of each class: of the examples of a new one, of all training
    images of a base class, since a mean is all that is to be kept of them."""
    new = space.train[episode.support].mean(1)
    base = [space.train[episode.labels == k].mean(0) for k in episode.classes[len(new) :]]
    means = torch.stack([*new, *base])
    return -torch.cdist(space.test[episode.asked], means).square()


def logistic(space: Space, episode: Episode) -> Tensor:
    """A new softmax layer on the features, every class with the same weight; the penalty of its weights is
    scikit-learn's, C = 1."""
    from sklearn.linear_model import LogisticRegression

    known, labels = space.train[episode.known].numpy(), episode.labels[episode.known].numpy()
    classifier = LogisticRegression(class_weight="balanced", max_iter=10_000)
    classifier.fit(known, labels)
    score = torch.as_tensor(classifier.decision_function(space.test[episode.asked].numpy()))
    if score.dim() == 1:
        score = torch.stack([-score, score], 1)
    columns = [list(classifier.classes_).index(k) for k in episode.classes]
    return score[:, columns]


def hierarchical(tree: Tree, base: tuple[int, ...], space: Space, episode: Episode) -> Tensor:
    """log p(row | class, all images) with the posterior of the tree summed out.

    :param base: the classes of the tree.
    """
    rows = space.test[episode.asked]
    support = episode.support
    data = Statistics.of(
        space.train[support.flatten()], episode.labels[support.flatten()], episode.new
    )
    parts = []
    columns = [base.index(k) for k in episode.classes[len(support) :]]
    for draw in range(len(tree.groups)):
        new = NewClasses(tree, draw, data).log_density(rows)
        parts.append(torch.cat([new, base_log_density(tree, draw, rows)[:, columns]], 1))
    return torch.stack(parts).logsumexp(0) - np.log(len(parts))


#: Methods of one space by name; the hierarchical ones have a tree too.
METHODS: dict[str, tuple[Callable[[Space, Episode], Tensor], str]] = {
    "nearest image, pixels": (nearest_image, "pixels"),
    "nearest image, features": (nearest_image, "features"),
    "nearest image, whitened": (nearest_image, "whitened"),
    "nearest image, whitened pixels": (nearest_image, "whitened pixels"),
    "nearest mean, features": (nearest_mean, "features"),
    "nearest mean, whitened": (nearest_mean, "whitened"),
    "nearest mean, whitened pixels": (nearest_mean, "whitened pixels"),
    "softmax, features": (logistic, "features"),
    "softmax, whitened": (logistic, "whitened"),
}


# --- what they reach ------------------------------------------------------------------------------


def episode_scores(score: Tensor, truth: Tensor, episode: Episode) -> dict[str, float]:
    """Accuracy, and the area under the curve of each new class against all other rows.

    :param Tensor score: shape ``(rows, classes)``.
    :param Tensor truth: the classes of the rows.
    """
    from sklearn.metrics import roc_auc_score

    order = torch.tensor(episode.classes)
    hits = order[score.argmax(1)] == truth
    is_new = torch.isin(truth, torch.tensor(episode.new))
    areas = []
    for column, k in enumerate(episode.new):
        others = torch.cat([score[:, :column], score[:, column + 1 :]], 1)
        ahead = score[:, column] - others.amax(1)
        areas.append(roc_auc_score((truth == k).numpy(), ahead.numpy()))
    result = {
        "accuracy": hits.double().mean().item(),
        "accuracy_new": hits[is_new].double().mean().item(),
        "auroc": float(np.mean(areas)),
    }
    if not bool(is_new.all()):
        result["accuracy_base"] = hits[~is_new].double().mean().item()
    return result


def summary(
    values: list[dict[str, float]], splits: list[int], reference: list[dict[str, float]]
) -> dict[str, Any]:
    """Means over episodes with standard errors, means by split, and how far ahead of it the reference is.

    :param values: of a method, episode by episode.
    :param splits: the split of each episode.
    :param reference: of another method, in the same episodes.
    """
    result: dict[str, Any] = {}
    number = np.array(splits)
    for name in values[0]:
        own = np.array([value[name] for value in values])
        gain = np.array([value[name] for value in reference]) - own
        result[name] = {
            "mean": float(own.mean()),
            "std_error": _error(own),
            "by_split": [float(own[number == s].mean()) for s in sorted(set(splits))],
            "reference_ahead": float(gain.mean()),
            "reference_ahead_error": _error(gain),
        }
    return result


def _error(values: Any) -> float:
    if len(values) < 2:
        return float("nan")
    return float(values.std(ddof=1) / len(values) ** 0.5)
