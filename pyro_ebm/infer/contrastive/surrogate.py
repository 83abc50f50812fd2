# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""An energy-based site that is normalised by a surrogate of log Z."""

import copy
from collections.abc import Callable
from typing import Any, Self

from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_ebm.distributions import EnergyBased

__all__ = ["SurrogateNormalized"]


class SurrogateNormalized(TorchDistribution):
    """What the loss puts in the place of an energy-based distribution.

    The negative phase needs the site's value, where contrastive divergence starts its chains, and
    that is known only when the log-probability is asked for. It is computed once and shared by all
    copies that plates make.

    :param EnergyBased base: the unnormalised distribution.
    :param log_partition: called once with a value; gives log Z of the parameters' batch shape. None if the
        log-probability is the distribution's own, with the log Z that is attached to it.
    :param str refusal: why the distribution is not to be drawn from; None if it may be.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        base: EnergyBased,
        log_partition: Callable[[Tensor], Tensor] | None,
        refusal: str | None = None,
    ) -> None:
        self.base = base
        self._refusal = refusal
        self._compute = log_partition
        self._cache: list[Tensor] = []
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        new = copy.copy(self)
        new.base = self.base.expand(batch_shape)
        new._batch_shape = Size(batch_shape)
        return new

    @property
    def support(self) -> constraints.Constraint | None:
        return self.base.support

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return self.base.has_enumerate_support

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self.base.enumerate_support(expand)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        if self._refusal is not None:
            raise ValueError(self._refusal)
        return self.base.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._compute is None:
            return self.base.log_prob(value)
        if not self._cache:
            self._cache.append(self._compute(value))
        return self.base.normalized_log_prob(value, self._cache[0])
