# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log Z from below and from above."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.infer.log_partition.estimate import LogPartitionEstimate, LogPartitionWarning
from pyro_ebm.infer.log_partition.serialization import read_json, to_json, write_json

__all__ = ["LogPartitionBracket", "sides_of"]


@dataclass(frozen=True)
class LogPartitionBracket:
    """Estimates of the same log Z from both sides.

    :param LogPartitionEstimate forward: from below, by AIS.
    :param LogPartitionEstimate reverse: from above, by reverse AIS.
    """

    forward: LogPartitionEstimate
    reverse: LogPartitionEstimate

    def __post_init__(self) -> None:
        if bool(self.crossed.any()):
            warnings.warn(
                f"{self.flags[-1]}: at least one of the two runs is wrong about its error",
                LogPartitionWarning,
                stacklevel=3,
            )

    @property
    def value(self) -> Tensor:
        """Midpoint of the two estimates."""
        return 0.5 * (self.forward.value + self.reverse.value)

    @property
    def lower(self) -> Tensor:
        """Lower end: that of the forward interval (or of the reverse one, if that is lower)."""
        return torch.minimum(self.forward.lower, self.reverse.lower)

    @property
    def upper(self) -> Tensor:
        """Upper end: that of the reverse interval (or of the forward one, if that is higher)."""
        return torch.maximum(self.reverse.upper, self.forward.upper)

    @property
    def width(self) -> Tensor:
        """Length of the interval from the lower to the upper end."""
        return self.upper - self.lower

    @property
    def gap(self) -> Tensor:
        """Reverse minus forward estimate, the number to quote with either."""
        return self.reverse.value - self.forward.value

    @property
    def crossed(self) -> Tensor:
        """Whether the intervals contradict each other: the lower bound lies above the upper one."""
        return self.forward.lower > self.reverse.upper

    @property
    def flags(self) -> tuple[str, ...]:
        """What is suspicious about either side, and about the two together."""
        sides = (("below", self.forward), ("above", self.reverse))
        flags = [f"from {name}: {text}" for name, side in sides for text in side.flags]
        if bool(self.crossed.any()):
            excess = (self.forward.lower - self.reverse.upper).max().item()
            flags.append(f"the lower bound of log Z lies {excess:.3g} nats above the upper bound")
        return tuple(flags)

    @property
    def reliable(self) -> bool:
        """Whether nothing is suspicious, in any element of a batch."""
        return not self.flags

    def __getitem__(self, index: int | slice | tuple[int | slice, ...]) -> "LogPartitionBracket":
        """The bracket of some elements of the batch."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LogPartitionWarning)
            return LogPartitionBracket(self.forward[index], self.reverse[index])

    def to_dict(self) -> dict[str, Any]:
        """Numbers and settings of both sides for a report; JSON types only."""
        names = ("value", "lower", "upper", "gap")
        sides = {"forward": self.forward.to_dict(), "reverse": self.reverse.to_dict()}
        return {name: to_json(getattr(self, name)) for name in names} | sides

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LogPartitionBracket":
        """The bracket that :meth:`to_dict` was taken of, but for its weights.

        :raises ValueError: if a side is missing.
        """
        if not {"forward", "reverse"} <= set(data):
            raise ValueError(f"a bracket of log Z needs forward and reverse, got {sorted(data)}")
        sides = (LogPartitionEstimate.from_dict(data[name]) for name in ("forward", "reverse"))
        return cls(*sides)

    def save_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` to a file."""
        write_json(path, self.to_dict())

    @classmethod
    def load_json(cls, path: str | Path) -> "LogPartitionBracket":
        """Read what :meth:`save_json` wrote."""
        return cls.from_dict(read_json(path))

    def __str__(self) -> str:
        lines = [f"from below: {self.forward}", f"from above: {self.reverse}"]
        if not self.value.dim():
            lines.append(
                f"log Z in [{self.lower.item():.3f}, {self.upper.item():.3f}], "
                f"gap {self.gap.item():.3f}"
            )
        return "\n".join(lines)


def sides_of(log_partition: Any) -> list[LogPartitionEstimate]:
    """Log Z as estimates: one, or of a bracket that from below and that from above.

    :param log_partition: an estimate, a bracket, or numbers, which are estimates without an error.
    """
    if isinstance(log_partition, LogPartitionBracket):
        return [log_partition.forward, log_partition.reverse]
    if isinstance(log_partition, LogPartitionEstimate):
        return [log_partition]
    value = torch.as_tensor(log_partition, dtype=torch.float64).detach()
    settings: dict[str, Any] = {"method": "given"}
    return [LogPartitionEstimate.from_error(value, 0.0, settings, ess=None, warn=False)]
