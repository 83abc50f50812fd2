# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Which epoch was the best by a metric, and for how long there has been no better one."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["MONITOR_MODES", "Best", "best_epoch"]

MONITOR_MODES = ("min", "max")


@dataclass(frozen=True)
class Best:
    """The best epoch so far.

    :param int epoch: its number; None if the metric was never a finite number.
    :param float value: its value.
    :param int waited: values of the metric that came after it and were not better.
    """

    epoch: int | None = None
    value: float | None = None
    waited: int = 0


def best_epoch(
    history: Iterable[Mapping[str, Any]], key: str, mode: str = "min", min_delta: float = 0.0
) -> Best:
    """The best epoch of a history by a metric.

    A value is better if it is by more than ``min_delta`` below (or above) the best one before it; what is not
    finite is never better. Records without the metric don't count. The result is a function of the history
    alone, so that a run that is resumed stops where one that was never interrupted stops.

    :param history: records of epochs.
    :param str key: of the metric.
    :param str mode: "min" if small values are good, "max" if large ones are.
    :param float min_delta: smallest difference that counts.
    :raises ValueError: if a value is no number.

    >>> from pyro_ebm.training.monitor import best_epoch
    >>> history = [{"epoch": i + 1, "loss": loss} for i, loss in enumerate([3.0, 1.0, float("nan"), 2.0])]
    >>> best_epoch(history, "loss")
    Best(epoch=2, value=1.0, waited=2)
    """
    best = Best()
    sign = 1.0 if mode == "min" else -1.0
    for record in history:
        if key not in record:
            continue
        value = record[key]
        if not isinstance(value, int | float):
            raise ValueError(f"monitor={key!r} is no number in epoch {record['epoch']}: {value!r}")
        better = best.value is None or sign * value < sign * best.value - min_delta
        if math.isfinite(value) and better:
            best = Best(int(record["epoch"]), float(value))
        else:
            best = Best(best.epoch, best.value, best.waited + 1)
    return best
