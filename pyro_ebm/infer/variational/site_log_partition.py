# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log Z of the machines at the sites of a model, and what their errors come to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.infer.log_partition import LogPartitionEstimate

__all__ = ["SiteLogPartition", "join_sites", "midpoint_error", "side_error"]


@dataclass(frozen=True)
class SiteLogPartition:
    """Log Z of a site's machines, and how often it counts in the likelihood of all rows.

    :param str name: the site.
    :param sides: estimates of batch shape ``(machines,)``: one, or that from below and that from above.
    :param Tensor counts: by how much the sum over rows falls for a nat of every log Z, shape ``(machines,)``.
    """

    name: str
    sides: tuple[LogPartitionEstimate, ...]
    counts: Tensor

    def shift(self, side: int) -> Tensor:
        """What the sum over rows gains by one side's log Z in the place of the midpoint."""
        middle = torch.stack([s.value for s in self.sides]).mean(0)
        return (self.counts * (middle - self.sides[side].value)).sum()


def side_error(sites: Sequence[SiteLogPartition], side: int, name: str) -> Tensor:
    """An error of the sum over rows with the log Z of one side.

    :param sites: log Z by site, at least one.
    :param int side: which of a site's estimates: 0 or -1.
    :param str name: ``"std_error"``, or the end of the interval that the error leads to.
    """
    return _error([(site.sides[side], site.counts) for site in sites], name)


def midpoint_error(sites: Sequence[SiteLogPartition]) -> Tensor:
    """Standard error of the sum over rows where log Z is the mean of the sides, which are independent."""
    parts = [(side, site.counts / len(site.sides)) for site in sites for side in site.sides]
    return _error(parts, "std_error")


def _error(parts: list[tuple[LogPartitionEstimate, Tensor]], name: str) -> Tensor:
    """Root of the sum of squares of the errors of all machines.

    The same numbers are one estimate, at one site or at several: its error counts as often as they do.
    """
    keys = torch.cat([torch.stack([e.value, e.std_error, e.lower, e.upper], -1) for e, _ in parts])
    unique, index = torch.unique(keys, dim=0, return_inverse=True)
    own = torch.cat([counts for _, counts in parts])
    counts = torch.zeros_like(unique[:, 0]).index_add(0, index, own)
    value, std_error, lower, upper = unique.unbind(-1)
    ends = {"std_error": std_error, "lower": value - lower, "upper": upper - value}
    # A machine that does not count does not, even if its error is infinite.
    return torch.where(counts != 0.0, counts * ends[name], 0.0).square().sum().sqrt()


def join_sites(parts: Sequence[Sequence[SiteLogPartition]]) -> list[SiteLogPartition]:
    """The sites of several batches of rows, which have the same names in the same order."""
    return [
        SiteLogPartition(
            same[0].name,
            tuple(_cat(sides) for sides in zip(*(site.sides for site in same), strict=True)),
            torch.cat([site.counts for site in same]),
        )
        for same in zip(*parts, strict=True)
    ]


def _cat(sides: Sequence[LogPartitionEstimate]) -> LogPartitionEstimate:
    """Estimates of several batches as one, without weights."""
    numbers: dict[str, Any] = {
        name: torch.cat([getattr(side, name) for side in sides])
        for name in ("value", "std_error", "lower", "upper", "ess")
    }
    flags = tuple(dict.fromkeys(text for side in sides for text in side.flags))
    return replace(sides[0], **numbers, log_weights=None, flags=flags)
