# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What the training loop of an RBM does where entries of the data are missing."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.training.absent_gradient import AbsentExactGradient, AbsentGradient
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.exact_gradient import ExactGradient
from pyro_ebm.training.gradient import ContrastiveGradient
from pyro_ebm.training.marginal_gradient import MarginalGradient
from pyro_ebm.training.metrics import EpochMetrics, StepWatch
from pyro_ebm.training.training_data import TrainingData

__all__ = [
    "MaskedGradient",
    "incomplete_record",
    "make_absent_gradient",
    "observe",
    "restored",
    "visible_mean",
]

#: Gradients of an RBM, with or without missing entries.
MaskedGradient = ContrastiveGradient | ExactGradient | MarginalGradient

#: Entries of a chunk of data that is summed over.
_CHUNK_ENTRIES = 2**22


def make_absent_gradient(
    module: nn.RBM, config: TrainerConfig, generator: Generator
) -> AbsentGradient | AbsentExactGradient:
    """The gradient of ``missing="absent"``.

    :raises ValueError: for options or a module that cannot have absent units.
    """
    if config.negative_phase == "exact":
        return AbsentExactGradient(module, config)
    return AbsentGradient(module, config, generator)


def restored(gradient: Any, state: dict[str, Tensor], generator: Generator) -> Any:
    """The gradient that can take back the state of a checkpoint.

    :param gradient: that of complete rows.
    :param state: tensors by name.
    :param torch.Generator generator: the source of random bits of the run.
    """
    if isinstance(gradient, ContrastiveGradient | ExactGradient) and "completed" in state:
        return MarginalGradient(gradient, generator)
    return gradient


def observe(
    gradient: Any,
    train: TrainingData,
    states: Callable[[Tensor, Generator], Tensor],
    generator: Generator,
) -> Any:
    """The gradient that knows which entries of the data are missing.

    :param gradient: that of an RBM, of complete rows or of an earlier call.
    :param TrainingData train: the data.
    :param states: makes states of rows, of random bits.
    :param torch.Generator generator: the source of random bits of the run.
    :raises ValueError: if a run with missing entries goes on without ``observed``, or with other rows.
    """
    if isinstance(gradient, AbsentGradient | AbsentExactGradient):
        gradient.start(train.rows, train.observed)
        return gradient
    if not isinstance(gradient, MaskedGradient):
        return gradient
    if train.observed is None:
        if not isinstance(gradient, MarginalGradient):
            return gradient
        if gradient.is_restored:
            raise ValueError("observed must be given: rows of the run that goes on miss entries")
        return gradient.inner
    if not isinstance(gradient, MarginalGradient):
        gradient = MarginalGradient(gradient, generator)
    # A generator of its own, or a run that is resumed would draw more than the whole one.
    bits = Generator(device=train.rows.device).manual_seed(0)
    gradient.start(states(train.rows, bits), train.observed)
    return gradient


def visible_mean(train: TrainingData, dtype: torch.dtype, missing: str, spins: bool) -> Tensor:
    """Where the visible offset of a centred module belongs, shape ``(V,)``.

    The mean of the entries that are observed; where the others do not exist, that of states in which they
    are zero, as the hidden layer receives them.

    :param TrainingData train: the data.
    :param missing: the option of that name.
    :param bool spins: whether the rows are rates from which spins are drawn.
    """

    def states(rows: Tensor) -> Tensor:
        return 2.0 * rows.to(dtype) - 1.0 if spins else rows.to(dtype)

    if train.observed is None:
        return states(train.rows).mean(0)
    total = torch.zeros(train.rows.shape[1], dtype=dtype, device=train.rows.device)
    size = max(1, _CHUNK_ENTRIES // train.rows.shape[1])
    for rows, mask in zip(train.rows.split(size), train.observed.split(size), strict=True):
        total += torch.where(mask, states(rows), 0.0).sum(0)
    if missing == "absent":
        return total / len(train.rows)
    count = train.observed.sum(0)
    # What nobody has seen has the placeholders' mean.
    return torch.where(count > 0, total / count.clamp(min=1), states(train.rows).mean(0))


@torch.no_grad()
def incomplete_record(
    metrics: EpochMetrics,
    gradient: Any,
    epoch: int,
    rows: dict[str, Tensor],
    observed: Tensor,
    watch: StepWatch | None,
) -> dict[str, Any]:
    """The metrics after an epoch, see :meth:`~pyro_ebm.training.metrics.EpochMetrics.record`.

    Those of the completed training rows; where missing units do not exist, of the units that rows have. Free
    energies of the latter lack a log Z of every row's own: they say little but for the same rows.

    :param EpochMetrics metrics: computes them.
    :param gradient: what :func:`observe` gave.
    :param int epoch: its number, from 1.
    :param rows: states by split.
    :param Tensor observed: what is observed of the training data.
    :param StepWatch watch: what was seen of the updates.
    """
    train = rows["train"]
    observed = observed[: len(train)]
    if isinstance(gradient, MarginalGradient) and gradient.completed is not None:
        completed = gradient.completed[: len(train)].to(train)
        rows = rows | {"train": torch.where(observed, train, completed)}
        return metrics.record(epoch, rows, {}, gradient.chains, watch)
    zeros = torch.where(observed, train, 0.0)
    record = metrics.record(epoch, {"train": zeros}, {}, None, watch)
    if "reconstruction_error" in record:
        dist = gradient.module()
        mean = dist.hidden.mean(dist.hidden_field(zeros))
        error = torch.where(observed, train - dist.visible.mean(dist.visible_field(mean)), 0.0)
        total = error.square().sum() / observed.sum().clamp(min=1)
        record["reconstruction_error"] = total.item()
    return record
