# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Estimates of different machines, put together along a batch axis."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.infer.log_partition import LogPartitionBracket, LogPartitionEstimate
from pyro_ebm.infer.log_partition.bracket import sides_of

__all__ = ["as_estimates", "join_brackets", "join_estimates"]

#: Settings that are results, with numbers of each machine.
_RESULTS = ("seed", "seconds", "bracket", "forward", "reverse", "mixing")


def join_estimates(parts: Sequence[LogPartitionEstimate]) -> LogPartitionEstimate:
    """One estimate of the machines of all parts, which were obtained in the same way.

    Settings that differ from part to part stand in a list ``"chunks"``, in the order of the machines.

    :param parts: at least one, each of one batch axis.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    settings = {name: v for name, v in first.settings.items() if name not in _RESULTS}
    if "seconds" in first.settings:
        settings["seconds"] = round(sum(part.settings["seconds"] for part in parts), 3)
    settings["chunks"] = [
        {"size": len(part.value)}
        | {n: part.settings[n] for n in _RESULTS if n != "seconds" and n in part.settings}
        for part in parts
    ]

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    weights = [part.log_weights for part in parts if part.log_weights is not None]
    return LogPartitionEstimate(
        cat("value"),
        cat("std_error"),
        cat("lower"),
        cat("upper"),
        cat("ess"),
        torch.cat(weights, 1) if len(weights) == len(parts) else None,
        settings,
        tuple(dict.fromkeys(text for part in parts for text in part.flags)),
        first.side,
    )


def join_brackets(
    parts: Sequence[LogPartitionBracket],
) -> tuple[LogPartitionEstimate, LogPartitionEstimate]:
    """Both sides of the brackets of all parts."""
    forward = join_estimates([part.forward for part in parts])
    return forward, join_estimates([part.reverse for part in parts])


def as_estimates(log_partition: Any, size: int, name: str = "U") -> list[LogPartitionEstimate]:
    """Log Z of some machines as estimates: one, or for a bracket that from below and that from above.

    Plain numbers are estimates without an error.

    :param log_partition: an estimate, a bracket, a tensor or numbers, of shape ``(size,)``.
    :param int size: number of machines.
    :param str name: what the size is called in a message.
    :raises ValueError: if the shape is another one or a number is NaN.
    """
    estimates = sides_of(log_partition)
    for estimate in estimates:
        if estimate.value.shape != (size,):
            raise ValueError(
                f"log_partition must have shape ({size},), one for each of the {name}, got "
                f"{tuple(estimate.value.shape)}"
            )
        if not bool(torch.isfinite(estimate.value).all()):
            raise ValueError("log_partition must be finite")
    return estimates
