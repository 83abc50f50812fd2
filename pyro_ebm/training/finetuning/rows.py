# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Labelled rows that a classifier is trained or validated on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm.ops.random import bernoulli
from pyro_ebm.training.finetuning.classifier import FeedForwardClassifier
from pyro_ebm.training.finetuning.config import FineTuneConfig

__all__ = ["LabelledRows"]


@dataclass(frozen=True)
class LabelledRows:
    """Rows, classes and extra inputs on the device of the classifier.

    :param Tensor x: shape ``(rows, V)``, of the dtype that they came in.
    :param Tensor y: int64, shape ``(rows,)``.
    :param Tensor extra: extra inputs, computed once; None without.
    """

    x: Tensor
    y: Tensor
    extra: Tensor | None

    @classmethod
    def check(
        cls, suffix: str, classifier: FeedForwardClassifier, config: FineTuneConfig, x: Any, y: Any
    ) -> "LabelledRows":
        """The rows of a run.

        :param str suffix: what follows "x" and "y" in messages.
        :raises TypeError: if something is no tensor.
        :raises ValueError: for wrong shapes, NaN, or labels out of range.
        """
        for name, value in ((f"x{suffix}", x), (f"y{suffix}", y)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if x.dim() != 2 or x.shape[1] != classifier.num_visible or len(x) == 0:
            raise ValueError(
                f"x{suffix} must have shape (rows >= 1, {classifier.num_visible}), "
                f"got {tuple(x.shape)}"
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"x{suffix} holds NaN or infinite values")
        if config.binarize and not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError(f"x{suffix} must be in [0, 1], which binarize=True needs")
        _check_classes(f"y{suffix}", y, len(x), classifier.num_classes)
        weight = classifier.head.weight
        x = x.to(weight.device)
        parts = [classifier.extra(rows.to(weight.dtype)) for rows in x.split(8192)]
        made = [part for part in parts if part is not None]
        extra = torch.cat(made) if made else None
        return cls(x, y.to(weight.device, torch.int64), extra)

    def batch(
        self, rows: Tensor, config: FineTuneConfig, dtype: torch.dtype, generator: Generator
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Inputs with new noise, extra inputs and classes of some rows."""
        x = self.x[rows].to(dtype)
        if config.binarize:
            x = bernoulli(x, generator)
        if config.noise_std:
            x = x + config.noise_std * torch.empty_like(x).normal_(generator=generator)
        return x, None if self.extra is None else self.extra[rows], self.y[rows]


def _check_classes(name: str, y: Tensor, num_rows: int, num_classes: int) -> None:
    if y.shape != (num_rows,) or y.dtype.is_floating_point or y.dtype == torch.bool:
        raise ValueError(
            f"{name} must be whole numbers of shape ({num_rows},), got {y.dtype} of shape "
            f"{tuple(y.shape)}"
        )
    if int(y.min()) < 0 or int(y.max()) >= num_classes:
        raise ValueError(
            f"{name} must be in [0, {num_classes}), got {int(y.min())} to {int(y.max())}"
        )
