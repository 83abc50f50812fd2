# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A layer of independent units as a distribution that small sites can be enumerated with."""

import copy
from typing import Any, Self

from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_ebm.distributions.rbm import MAX_ENUMERATED_STATES
from pyro_ebm.distributions.units import Unit

__all__ = ["LayerDistribution"]


class LayerDistribution(TorchDistribution):
    r"""The distribution :math:`q(x) = e^{-u(x) - \Gamma(0)}` of a layer of units, one event of its entries.

    It is the layer's own Pyro distribution, with the states of the whole layer to enumerate: those of
    Pyro's are of single units, which an event of several can't be made of in one axis.

    :param Unit unit: the layer.

    >>> import torch
    >>> from pyro_ebm.distributions import units
    >>> from pyro_ebm.infer.variational.layer_distribution import LayerDistribution
    >>> bits = LayerDistribution(units.Bernoulli(torch.zeros(2)))
    >>> bits.log_prob(bits.enumerate_support()).exp()
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, unit: Unit, *, validate_args: bool | None = None) -> None:
        self.unit = unit
        self._base = unit.conditional()
        super().__init__(unit.batch_shape, Size((unit.size,)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        new = copy.copy(self)
        new._batch_shape = Size(batch_shape)
        new._base = self._base.expand(new._batch_shape)
        return new

    @property
    def support(self) -> constraints.Constraint:
        """Support of the layer."""
        return self.unit.support

    @property
    def mean(self) -> Tensor:
        """Mean state."""
        return self.unit.mean().expand(self.batch_shape + self.event_shape)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws have a gradient: those of Gaussian layers."""
        return bool(self._base.has_rsample)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._base.sample(Size(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._base.rsample(Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._base.log_prob(value)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Whether the layer has few enough states for parallel enumeration."""
        num_states = self.unit.num_states
        return num_states is not None and num_states <= MAX_ENUMERATED_STATES

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All states, shape ``(num_states,) + batch_shape (or ones) + (size,)``.

        :raises NotImplementedError: if the layer is continuous or has too many states.
        """
        num_states = self.unit.num_states
        if num_states is None or not self.has_enumerate_support:
            raise NotImplementedError(
                f"only layers of at most {MAX_ENUMERATED_STATES} states are enumerated, this one has "
                f"{'infinitely many' if num_states is None else num_states}"
            )
        states = self.unit.states(0, num_states)
        states = states.reshape((num_states,) + (1,) * len(self.batch_shape) + (-1,))
        return states.expand((-1, *self.batch_shape, -1)) if expand else states
