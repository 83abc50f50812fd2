# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A model of every class, and what Bayes' rule makes of them."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["ClassModel", "ClassModels", "class_posterior", "log_evidence"]


class ClassModel(Protocol):
    """A density of y."""

    @property
    def num_parameters(self) -> int: ...

    def log_prob(self, y: Tensor) -> Tensor: ...


class ClassModels:
    """One model a class, each fitted to the rows of its class alone.

    :param models: the models, in the order of the labels.
    """

    def __init__(self, models: Sequence[ClassModel]) -> None:
        self.models = list(models)

    @classmethod
    def fit(cls, fit: Callable[[Tensor], ClassModel], y: Tensor, labels: Tensor) -> "ClassModels":
        """Fit a model to every class.

        :param fit: makes a model of rows of shape ``(rows, V)``.
        :param Tensor y: shape ``(rows, V)``.
        :param Tensor labels: whole numbers from 0, shape ``(rows,)``, every class at least once.
        """
        return cls([fit(y[labels == k]) for k in range(int(labels.max()) + 1)])

    @property
    def num_parameters(self) -> int:
        """Free parameters of all classes."""
        return sum(model.num_parameters for model in self.models)

    def log_prob(self, y: Tensor) -> Tensor:
        """log p(y | class) of every row and class, shape ``(rows, classes)``."""
        return torch.stack([model.log_prob(y) for model in self.models], -1)


def log_evidence(log_prob: Tensor, log_prior: Tensor) -> Tensor:
    """log p(y), shape ``(rows,)``.

    :param Tensor log_prob: log p(y | class), shape ``(rows, classes)``.
    :param Tensor log_prior: log p(class), shape ``(classes,)``.
    """
    return torch.logsumexp(log_prob + log_prior, -1)


def class_posterior(log_prob: Tensor, log_prior: Tensor) -> Tensor:
    """p(class | y) by Bayes' rule, shape ``(rows, classes)``, from the same as :func:`log_evidence`."""
    return torch.softmax(log_prob + log_prior, -1)
