# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Fine-tuning with few or many labels, whose options are chosen with these labels alone."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.training.finetuning import (
    FeedForwardClassifier,
    FineTuneConfig,
    FineTuner,
    stratified_folds,
    stratified_split,
)

#: Makes a classifier from a seed, ``dropout`` and ``input_dropout``.
Make = Callable[..., FeedForwardClassifier]


@dataclass(frozen=True)
class Setting:
    """Options that are chosen for a number of labels and a start.

    :param int epochs: passes over the labelled rows, in which the rate falls to zero.
    :param int head_epochs: passes before them, in which the softmax layer alone is trained.
    :param int batch_size: rows per update.
    :param float learning_rate: step size of Adam.
    :param float factor: what it is multiplied by below the softmax layer.
    :param float weight_decay: decay of the weights.
    :param float dropout: of hidden units.
    :param float input_dropout: of inputs.
    :param float averaging: decay of the moving average of the weights.
    """

    epochs: int
    head_epochs: int = 0
    batch_size: int = 128
    learning_rate: float = 1e-3
    factor: float = 1.0
    weight_decay: float = 0.0
    dropout: float = 0.0
    input_dropout: float = 0.0
    averaging: float = 0.0


def product(base: Setting, **values: Sequence[Any]) -> list[Setting]:
    """Settings with every combination of some options."""
    return [
        replace(base, **dict(zip(values, combination, strict=True)))
        for combination in itertools.product(*values.values())
    ]


def fit(
    make: Make,
    setting: Setting,
    seed: int,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor] = (),  # type: ignore[assignment]
) -> tuple[FeedForwardClassifier, list[dict[str, Any]]]:
    """Train a new classifier; with validation rows its best epoch is kept."""
    classifier = make(seed=seed, dropout=setting.dropout, input_dropout=setting.input_dropout)
    common = {
        "batch_size": setting.batch_size,
        "learning_rate": setting.learning_rate,
        "weight_decay": setting.weight_decay,
        "patience": None,
        "seed": seed,
        "progress": False,
    }
    below = [setting.factor] * len(classifier.layers)
    if setting.head_epochs:
        config = FineTuneConfig(
            max_epochs=setting.head_epochs, rate_factors=[0.0] * len(below) + [1.0], **common
        )
        FineTuner(classifier, config).fit(*train)
    config = FineTuneConfig(
        max_epochs=setting.epochs,
        rate_factors=[*below, 1.0],
        learning_rate_schedule="cosine",
        averaging=setting.averaging,
        **common,
    )
    history = FineTuner(classifier, config).fit(*train, *validation)
    return classifier, history


def choose_and_fit(
    make: Make,
    settings: Sequence[Setting],
    x: Tensor,
    y: Tensor,
    *,
    num_folds: int,
    num_validation: int,
    refit: bool,
    seed: int,
) -> tuple[FeedForwardClassifier, dict[str, Any]]:
    """Choose a setting with the labelled rows alone, and train with it.

    :param Tensor x: labelled rows.
    :param int num_folds: folds of a cross-validation, 1 for one validation set.
    :param int num_validation: its rows.
    :param bool refit: whether all rows train the result, for the same number of epochs; without it the best
        epoch of the chosen setting on the validation set is the result.
    :returns: the classifier, and what was chosen and why.
    """
    generator = torch.Generator().manual_seed(seed)
    if num_folds > 1:
        held_out = stratified_folds(y, num_folds, generator=generator)
    else:
        held_out = [stratified_split(y, num_validation, generator=generator)[0]]
    need_scores = len(settings) > 1 or not refit
    runs, scores = [], []
    for setting in settings if need_scores else ():
        parts = []
        for rows in held_out:
            rest = torch.ones(len(y), dtype=torch.bool)
            rest[rows] = False
            # With folds the last epoch counts: what is trained on all rows can stop nowhere else.
            keep_best = () if num_folds > 1 else (x[rows], y[rows])
            classifier, _ = fit(make, setting, seed, (x[rest], y[rest]), keep_best)
            log_p = classifier.predict_log_proba(x[rows])
            right = (log_p.argmax(1) == y[rows]).sum().item()
            parts.append((right, log_p.gather(1, y[rows, None]).sum().item()))
        right, log_p_sum = (sum(column) for column in zip(*parts, strict=True))
        runs.append(classifier)
        # Of equal accuracies the larger likelihood decides.
        scores.append((right / sum(map(len, held_out)), log_p_sum / sum(map(len, held_out))))
    best = scores.index(max(scores)) if scores else 0
    report = {"setting": asdict(settings[best]), "validation_scores": scores}
    if refit or num_folds > 1:
        return fit(make, settings[best], seed, (x, y))[0], report
    return runs[best], report


def self_train(
    make: Make,
    classifier: FeedForwardClassifier,
    x: Tensor,
    y: Tensor,
    unlabelled: Tensor,
    *,
    rounds: int,
    seed: int,
) -> FeedForwardClassifier:
    """Let a classifier label other rows, and train anew with those that it is most certain of.

    Round r of R takes the share r / (R + 1) of the rows that it gives to every class, the most certain ones
    first, so that no class is left out. Labelled rows are repeated to be about a tenth of all.

    :param Tensor x: labelled rows, whose classes are y.
    :param Tensor unlabelled: rows whose classes are not known.
    :param int rounds: R.
    """
    setting = Setting(
        epochs=6,
        head_epochs=2,
        batch_size=64,
        factor=0.3,
        dropout=0.5,
        input_dropout=0.2,
        averaging=0.99,
    )
    for number in range(1, rounds + 1):
        certainty, said = classifier.predict_log_proba(unlabelled).max(1)
        parts = []
        for label in said.unique():
            rows = (said == label).nonzero()[:, 0]
            rows = rows[certainty[rows].argsort(descending=True)]
            parts.append(rows[: -(-len(rows) * number // (rounds + 1))])
        taken = torch.cat(parts)
        times = max(1, len(taken) // (9 * len(y)))
        rows = torch.cat([x.repeat(times, 1), unlabelled[taken]])
        classes = torch.cat([y.repeat(times), said[taken]])
        classifier, _ = fit(make, setting, seed, (rows, classes))
    return classifier
