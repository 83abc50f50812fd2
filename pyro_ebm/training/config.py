# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Options of a training run."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["LEARNING_RATE_SCHEDULES", "OPTIMIZERS", "TrainerConfig"]

OPTIMIZERS = ("sgd", "adam", "adamw")
LEARNING_RATE_SCHEDULES = ("constant", "linear", "cosine")
CHAIN_STARTS = ("data", "prior")
NEGATIVE_PHASES = ("gibbs", "tempering", "exact")
NEGATIVE_SIDES = ("auto", "visible", "hidden")
_GROUP_OPTIONS = {"learning_rate", "weight_decay"}


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Options of :class:`~pyro_ebm.training.Trainer`.

    :param int num_epochs: passes over the data.
    :param int batch_size: rows per update.
    :param float learning_rate: step size of the optimiser.
    :param int num_steps: Gibbs sweeps per update (the k of CD-k and PCD-k).
    :param bool persistent: whether chains go on from update to update (PCD) or start at the data (CD).
    :param int num_chains: chains of the model's side; ``batch_size`` if None. With CD they start at
        randomly chosen rows of the batch. For a conditional model, chains of every context; if None 20
        where they are persistent, one a row where they start at the data, and where they start at the
        "prior" as many as a context of the batch has rows on average, rounded up; the chains of a
        context have the weight of its rows.
    :param int seed: seed of all random numbers of the run; drawn from the global generator if None.
    :param str optimizer: "sgd", "adam" or "adamw".
    :param float momentum: momentum of "sgd".
    :param float weight_decay: decay of the weights (not of the biases): added to the gradient, except
        by "adamw", which decouples it.
    :param str learning_rate_schedule: "constant", or "linear" or "cosine" to fall to zero over the run.
    :param float averaging: decay of an exponential moving average of the parameters, such as 0.999,
        which :attr:`Trainer.averaged <pyro_ebm.training.Trainer.averaged>` gives; 0 for none.
    :param float gradient_clip: largest norm of the gradient; None for no limit.
    :param groups: ``learning_rate`` and ``weight_decay`` of single networks of a conditional model, by
        their names, such as ``{"weight": {"weight_decay": 1.0}}``. Without an entry a network has
        ``learning_rate`` and no decay, except "weight", which has ``weight_decay``.
    :param str chain_start: where chains of a conditional model start: "data", or "prior", the hidden
        layer without its couplings (for Gaussian units the paper's start at the mean).
    :param str negative_phase: of a conditional model: "gibbs"; "tempering" (of persistent chains); or
        "exact", the gradient of the exact log Z, for layers that can be enumerated.
    :param str negative_side: whether negatives of a conditional model are "visible" or "hidden" states;
        "auto" for hidden ones where visible units are Gaussian, which has less variance.
    :param int num_replicas: levels of "tempering".
    :param bool binarize: whether the data are rates in [0, 1] from which new bits (or spins) are drawn
        at each visit.
    :param float noise_std: standard deviation of noise that is added to the data at each visit.
    :param float offset_rate: rate at which hidden offsets of a centred module follow the hidden means.
    :param int metrics_rows: rows of training and validation data that metrics are computed on.
    :param str checkpoint: file that receives a checkpoint, None for none.
    :param int checkpoint_every: epochs between checkpoints; the last epoch always writes one.
    :param bool progress: whether to show a progress bar.
    :raises ValueError: for an impossible value, or one that has no effect, naming the option.
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
    averaging: float = 0.0
    gradient_clip: float | None = None
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict, hash=False)
    chain_start: str = "data"
    negative_phase: str = "gibbs"
    negative_side: str = "auto"
    num_replicas: int = 10
    binarize: bool = False
    noise_std: float = 0.0
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
        for name, choices in (
            ("learning_rate_schedule", LEARNING_RATE_SCHEDULES),
            ("chain_start", CHAIN_STARTS),
            ("negative_phase", NEGATIVE_PHASES),
            ("negative_side", NEGATIVE_SIDES),
        ):
            self._check(name, choices.__contains__, f"one of {choices}")
        self._check("averaging", lambda x: _is_number(x) and 0 <= x < 1, "a number in [0, 1)")
        valid = "None or a finite number > 0"
        self._check("gradient_clip", lambda x: x is None or (_is_number(x) and x > 0), valid)
        self._check("noise_std", lambda x: _is_number(x) and x >= 0, "a finite number >= 0")
        self._check("num_replicas", lambda x: _is_whole(x) and x >= 2, "a whole number >= 2")
        valid = f"a dictionary by network of numbers >= 0 by name, of {sorted(_GROUP_OPTIONS)}"
        self._check("groups", _are_groups, valid)
        if self.negative_phase == "tempering" and not self.persistent:
            raise ValueError("negative_phase='tempering' needs persistent=True")
        if self.negative_phase == "exact":
            for name, value in (
                ("persistent", False),
                ("num_chains", None),
                ("negative_side", "auto"),
            ):
                if getattr(self, name) != value:
                    raise ValueError(
                        f"{name} is an option of chains: negative_phase='exact' has none"
                    )
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
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["groups"] = {name: dict(options) for name, options in self.groups.items()}
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


def _are_groups(groups: Any) -> bool:
    return isinstance(groups, Mapping) and all(
        isinstance(options, Mapping)
        and set(options) <= _GROUP_OPTIONS
        and all(_is_number(value) and value >= 0 for value in options.values())
        for options in groups.values()
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or _is_whole(value)
