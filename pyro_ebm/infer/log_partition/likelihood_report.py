# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What every mean log-likelihood with an estimated log Z says of itself, and how it is written."""

from typing import Any, ClassVar

from torch import Tensor

from pyro_ebm.infer.log_partition.serialization import to_json

__all__ = ["LikelihoodReport"]


class LikelihoodReport:
    """The base of results that have an optimistic and a pessimistic mean, and flags."""

    optimistic: Tensor
    pessimistic: Tensor
    flags: tuple[str, ...]
    #: Names of what :meth:`to_dict` holds, in its order.
    _reported: ClassVar[tuple[str, ...]]

    @property
    def reliable(self) -> bool:
        """Whether nothing is suspicious, neither about the rows nor about log Z."""
        return not self.flags

    @property
    def gap(self) -> Tensor:
        """Optimistic minus pessimistic mean, the number to quote beside either."""
        return self.optimistic - self.pessimistic

    def to_dict(self) -> dict[str, Any]:
        """Numbers and settings for a report, without those of single rows; JSON types only."""
        return {name: to_json(getattr(self, name)) for name in self._reported}
