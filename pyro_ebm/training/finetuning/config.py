# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Options of fine-tuning."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pyro_ebm.training.config_checks import OPTIMIZERS
from pyro_ebm.training.schedules import check, is_number, is_whole

__all__ = ["FineTuneConfig"]

SCHEDULES = ("constant", "cosine", "plateau")
MONITORS = ("accuracy", "loss")


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    r"""Options of :class:`FineTuner`.

    :param int max_epochs: passes over the data, if nothing stops the run earlier.
    :param int batch_size: rows per update; the last batch of an epoch may be smaller.
    :param float learning_rate: step size of the optimiser.
    :param rate_factors: what the learning rate is multiplied by in every layer, from the bottom to the
        softmax layer, such as ``(0.1, 1.0)``; a layer with 0 stays as it is. All 1 if None.
    :param str optimizer: one of :mod:`torch.optim` by name.
    :param optimizer_options: its further arguments, such as ``{"momentum": 0.9}``.
    :param str learning_rate_schedule: "constant"; "cosine" to fall to zero over ``max_epochs``; or "plateau",
        to multiply the rate by ``plateau_factor`` after ``plateau_patience`` epochs without a better
        validation result.
    :param float plateau_factor: see there.
    :param int plateau_patience: see there.
    :param float weight_decay: decay of the weights (not of the biases) of all layers, as the optimiser
        does it: added to the gradient, except by "adamw", which decouples it.
    :param float label_smoothing: probability that the target gives to all classes alike.
    :param float averaging: decay of an exponential moving average of the weights (after t updates at most
        (1 + t) / (10 + t)), which is then what is validated, and the result; 0 for none.
    :param bool binarize: whether inputs are rates in [0, 1] from which new bits are drawn at each visit.
        Validation takes the rates.
    :param float noise_std: standard deviation of noise that is added to the inputs at each visit.
    :param str monitor: what the best epoch has best on the validation rows: "accuracy" (of equal ones the
        smaller loss decides) or "loss".
    :param int patience: epochs without a better validation result after which the run stops; None for
        ``max_epochs`` in any case.
    :param int seed: seed of the order of the rows, of dropout and of noise; drawn from the global
        generator if None.
    :param checkpoint: file that receives the state of the run after every epoch, None for none.
    :param bool progress: whether to show a progress bar.
    :raises ValueError: for an impossible value, naming the option.
    """

    max_epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    rate_factors: Sequence[float] | None = None
    optimizer: str = "adam"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    learning_rate_schedule: str = "constant"
    plateau_factor: float = 0.2
    plateau_patience: int = 6
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    averaging: float = 0.0
    binarize: bool = False
    noise_std: float = 0.0
    monitor: str = "accuracy"
    patience: int | None = 12
    seed: int | None = None
    checkpoint: str | os.PathLike[str] | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name, (valid, expected) in _CHECKS.items():
            check(name, getattr(self, name), valid, expected)
        if self.rate_factors is not None:
            object.__setattr__(self, "rate_factors", tuple(self.rate_factors))

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON types."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["optimizer_options"] = dict(self.optimizer_options)
        if self.rate_factors is not None:
            values["rate_factors"] = list(self.rate_factors)
        if self.checkpoint is not None:
            values["checkpoint"] = os.fspath(self.checkpoint)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FineTuneConfig":
        """The options that :meth:`to_dict` wrote.

        :raises ValueError: for unknown names.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown options of fine-tuning {unknown}")
        return cls(**values)


def _are_factors(value: Any) -> bool:
    return value is None or (
        isinstance(value, list | tuple)
        and len(value) >= 2
        and all(is_number(x) and x >= 0 for x in value)
        and any(x > 0 for x in value)
    )


_Check = tuple[Callable[[Any], bool], str]
_COUNT: _Check = (lambda x: is_whole(x) and x >= 1, "a whole number >= 1")
_NON_NEGATIVE: _Check = (lambda x: is_number(x) and x >= 0, "a finite number >= 0")
_BELOW_1: _Check = (lambda x: is_number(x) and 0 <= x < 1, "a number in [0, 1)")
_BOOL: _Check = (lambda x: isinstance(x, bool), "True or False")

_CHECKS: dict[str, _Check] = {
    "max_epochs": _COUNT,
    "batch_size": _COUNT,
    "learning_rate": (lambda x: is_number(x) and x > 0, "a finite number > 0"),
    "rate_factors": (
        _are_factors,
        "None or numbers >= 0, one for every layer and one for the softmax layer, not all 0",
    ),
    "optimizer": (
        lambda x: isinstance(x, str) and x.lower() in OPTIMIZERS,
        f"one of {tuple(sorted(OPTIMIZERS))}",
    ),
    "optimizer_options": (lambda x: isinstance(x, Mapping), "a dictionary by name"),
    "learning_rate_schedule": (SCHEDULES.__contains__, f"one of {SCHEDULES}"),
    "plateau_factor": (lambda x: is_number(x) and 0 < x < 1, "a number in (0, 1)"),
    "plateau_patience": _COUNT,
    "weight_decay": _NON_NEGATIVE,
    "label_smoothing": _BELOW_1,
    "averaging": _BELOW_1,
    "binarize": _BOOL,
    "noise_std": _NON_NEGATIVE,
    "monitor": (MONITORS.__contains__, f"one of {MONITORS}"),
    "patience": (lambda x: x is None or _COUNT[0](x), "None or a whole number >= 1"),
    "seed": (
        lambda x: x is None or (is_whole(x) and 0 <= x < 2**64),
        "None or a whole number in [0, 2^64)",
    ),
    "checkpoint": (lambda x: x is None or isinstance(x, str | os.PathLike), "None or a path"),
    "progress": _BOOL,
}
