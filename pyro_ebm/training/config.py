# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Options of a training run."""

import math
import os
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["LEARNING_RATE_SCHEDULES", "OPTIMIZERS", "TrainerConfig"]

OPTIMIZERS = ("sgd", "adam", "adamw")
LEARNING_RATE_SCHEDULES = ("constant", "linear")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Options of :class:`~pyro_ebm.training.Trainer`.

    :param int num_epochs: passes over the data.
    :param int batch_size: rows per update.
    :param float learning_rate: step size of the optimiser.
    :param int num_steps: Gibbs sweeps per update (the k of CD-k and PCD-k).
    :param bool persistent: whether chains go on from update to update (PCD) or start at the data (CD).
    :param int num_chains: chains of the model's side; ``batch_size`` if None. With CD they start at
        randomly chosen rows of the batch.
    :param int seed: seed of all random numbers of the run; drawn from the global generator if None.
    :param str optimizer: "sgd", "adam" or "adamw".
    :param float momentum: momentum of "sgd".
    :param float weight_decay: decay of the weights (not of the biases): added to the gradient, except
        by "adamw", which decouples it.
    :param str learning_rate_schedule: "constant", or "linear" to fall to zero over the run.
    :param bool binarize: whether the data are rates in [0, 1] from which new bits are drawn at each
        visit.
    :param float offset_rate: rate at which hidden offsets of a centred module follow the hidden means.
    :param int metrics_rows: rows of training and validation data that metrics are computed on.
    :param str checkpoint: file that receives a checkpoint, None for none.
    :param int checkpoint_every: epochs between checkpoints; the last epoch always writes one.
    :param bool progress: whether to show a progress bar.
    :raises ValueError: for an impossible value, naming the option.
    """

    num_epochs: int = 10
    batch_size: int = 100
    learning_rate: float = 0.05
    num_steps: int = 1
    persistent: bool = False
    num_chains: int | None = None
    seed: int | None = None
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    learning_rate_schedule: str = "constant"
    binarize: bool = False
    offset_rate: float = 0.01
    metrics_rows: int = 1000
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_steps", "metrics_rows", "checkpoint_every"):
            self._check(name, lambda x: _is_whole(x) and x >= 1, "a whole number >= 1")
        self._check("num_epochs", lambda x: _is_whole(x) and x >= 0, "a whole number >= 0")
        valid = "None or a whole number >= 1"
        self._check("num_chains", lambda x: x is None or (_is_whole(x) and x >= 1), valid)
        valid = "None or a whole number in [0, 2^64)"
        self._check("seed", lambda x: x is None or (_is_whole(x) and 0 <= x < 2**64), valid)
        self._check("learning_rate", lambda x: _is_number(x) and x > 0, "a finite number > 0")
        self._check("momentum", lambda x: _is_number(x) and 0 <= x < 1, "a number in [0, 1)")
        self._check("weight_decay", lambda x: _is_number(x) and x >= 0, "a finite number >= 0")
        self._check("offset_rate", lambda x: _is_number(x) and 0 <= x <= 1, "a number in [0, 1]")
        for name in ("persistent", "binarize", "progress"):
            self._check(name, lambda x: isinstance(x, bool), "True or False")
        paths = (type(None), str, os.PathLike)
        self._check("checkpoint", lambda x: isinstance(x, paths), "None or a path")
        self._check("optimizer", lambda x: x in OPTIMIZERS, f"one of {OPTIMIZERS}")
        schedules = LEARNING_RATE_SCHEDULES
        self._check("learning_rate_schedule", lambda x: x in schedules, f"one of {schedules}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is an option of 'sgd', not of {self.optimizer!r}")

    def _check(self, name: str, valid: Any, expected: str) -> None:
        value = getattr(self, name)
        try:
            good = bool(valid(value))
        except TypeError:
            good = False
        if not good:
            raise ValueError(f"{name} must be {expected}, got {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON types."""
        values = asdict(self)
        if self.checkpoint is not None:
            values["checkpoint"] = os.fspath(self.checkpoint)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainerConfig":
        """The options that :meth:`to_dict` wrote.

        :raises ValueError: for unknown names.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown training options {unknown}")
        return cls(**values)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or _is_whole(value)
