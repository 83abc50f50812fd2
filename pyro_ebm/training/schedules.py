# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Options that change from epoch to epoch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Schedule", "check", "is_number", "is_whole", "tabulate", "value_at"]

#: A number for the whole run, one number an epoch, or a function of the epoch (the first is 0).
Schedule = float | Sequence[float] | Callable[[int], float]


def tabulate(
    name: str, schedule: Any, num_epochs: int, valid: Callable[[Any], bool], expected: str
) -> Any:
    """A schedule as a number or a tuple of numbers, which a file can hold.

    :param str name: the option, for messages.
    :param schedule: a number, a list by epoch, or a function of the epoch.
    :param int num_epochs: epochs for which a function is asked.
    :param valid: whether a single number is possible.
    :param str expected: the same in words.
    :raises ValueError: if a number is impossible, or a list is empty.
    """
    if callable(schedule):
        values = [schedule(epoch) for epoch in range(num_epochs)] or [schedule(0)]
    elif isinstance(schedule, list | tuple):
        values = list(schedule)
    else:
        check(name, schedule, valid, f"{expected}, a list of such or a function")
        return schedule
    if not values:
        raise ValueError(f"{name} must have at least one value, got an empty list")
    for epoch, value in enumerate(values):
        check(f"{name} of epoch {epoch}", value, valid, expected)
    # A list of zeros is no option at all.
    return values[0] if len(set(values)) == 1 else tuple(values)


def value_at(schedule: Any, epoch: int) -> Any:
    """The value of a tabulated schedule; the last one holds on.

    :param schedule: what :func:`tabulate` gave.
    :param int epoch: epochs that are done.

    >>> from pyro_ebm.training.schedules import value_at
    >>> [value_at((0.5, 0.9), epoch) for epoch in range(3)]
    [0.5, 0.9, 0.9]
    >>> value_at(0.1, 7)
    0.1
    """
    if isinstance(schedule, tuple):
        return schedule[min(epoch, len(schedule) - 1)]
    return schedule


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return (isinstance(value, float) and math.isfinite(value)) or is_whole(value)


def check(name: str, value: Any, valid: Callable[[Any], bool], expected: str) -> None:
    """Refuse a value.

    :raises ValueError: if it is not valid, or of a type that cannot be asked.
    """
    try:
        good = bool(valid(value))
    except TypeError:
        good = False
    if not good:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
