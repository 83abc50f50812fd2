# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Several copies of a layer that share their parameters and weights, seen as one layer."""

from collections.abc import Callable
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Size, Tensor
from torch.distributions import constraints

from pyro_ebm.distributions.units.base import Unit

__all__ = ["TiedCopies"]


class TiedCopies(Unit):
    r"""The sum :math:`s = x^{(1)} + \dots + x^{(n)}` of n copies of a layer that share everything.

    A machine in which n copies of a layer have one weight W in common depends on them only by their sum, as
    :math:`\sum_k x^{(k)\top} W h = s^\top W h`. Given h the copies are independent of each other, so that
    s has n times the log-partition and n times the mean of a copy. This makes a machine with tied copies
    [1] one of the usual size: bits become counts of at most n.

    States are sums, from which the copies' own energies do not follow. :meth:`energy` is that of n copies in
    the same state s / n, which is the energy of every way to make s for families without a base measure
    (bits, spins, one-hot groups), and for clamped data in all others. Gradients by biases and locations are
    exact; a precision cannot be learnt from sums.

    **References**

    [1] *Deep Boltzmann machines*, Ruslan Salakhutdinov, Geoffrey Hinton (2009), section 3.1

    :param Unit unit: one copy.
    :param int count: n, at least 1.
    :raises ValueError: for another number.

    >>> import torch
    >>> from pyro_ebm.distributions.units import Bernoulli
    >>> from pyro_ebm.distributions.units.tied import TiedCopies
    >>> pair = TiedCopies(Bernoulli(torch.zeros(3)), 2)
    >>> pair.mean(), pair.log_partition()  # two bits a unit
    (tensor([1., 1., 1.]), tensor(4.1589))
    """

    parameter_constraints = {}

    def __init__(self, unit: Unit, count: int) -> None:
        # Not that of the base class, which asks for parameters of its own.
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"count must be a whole number >= 1, got {count!r}")
        self.unit = unit
        self.count = count
        self.is_discrete = unit.is_discrete

    # --- what it is made of -------------------------------------------------------------------

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self.unit.parameters

    def parameter_event_dim(self, name: str) -> int:
        return self.unit.parameter_event_dim(name)

    @property
    def batch_shape(self) -> Size:
        return self.unit.batch_shape

    @property
    def num_units(self) -> int:
        return self.unit.num_units

    @property
    def size(self) -> int:
        return self.unit.size

    def _of(self, unit: Unit) -> Self:
        return type(self)(unit, self.count)

    def replace(self, **parameters: Tensor) -> Self:
        return self._of(self.unit.replace(**parameters))

    def map_whole(self, function: Callable[[Tensor, int], Tensor]) -> Self:
        return self._of(self.unit.map_whole(function))

    def signature(self) -> tuple[Any, ...]:
        return type(self).__name__, self.count, *self.unit.signature()

    # --- the family ---------------------------------------------------------------------------

    @property
    def natural_bias(self) -> Tensor:
        return self.unit.natural_bias

    @property
    def energy_constant(self) -> Tensor:
        return self.count * self.unit.energy_constant

    @property
    def support(self) -> constraints.Constraint:
        """Sums of states; only that they are real is checked."""
        return constraints.independent(constraints.real, 1)

    def energy(self, x: Tensor) -> Tensor:
        return self.count * self.unit.energy(x / self.count)

    def natural_log_partition(self, theta: Tensor) -> Tensor:
        return self.count * self.unit.natural_log_partition(theta)

    def natural_mean(self, theta: Tensor) -> Tensor:
        return self.count * self.unit.natural_mean(theta)

    def natural_sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        total = self.unit.natural_sample(theta, generator)
        for _ in range(self.count - 1):
            total = total + self.unit.natural_sample(theta, generator)
        return total

    def natural_conditional(self, theta: Tensor) -> TorchDistribution:
        raise NotImplementedError("sums of tied copies have no Pyro distribution")

    def from_mean(self, mean: Tensor) -> Self:
        return self._of(self.unit.from_mean(mean / self.count))

    def neutral(self) -> Self:
        return self._of(self.unit.neutral())

    def interpolate(self, base: Self, beta: float) -> Self:
        return self._of(self.unit.interpolate(base.unit, beta))

    def tilt(self, field: Tensor) -> tuple[Self, Tensor]:
        unit, constant = self.unit.tilt(field)
        return self._of(unit), self.count * constant

    def select(self, mask: Tensor) -> Self:
        return self._of(self.unit.select(mask))

    def covariance_root(self, weight: Tensor) -> Tensor | None:
        # The sum of n copies has n times the covariance of one.
        root = self.unit.covariance_root(weight)
        return None if root is None else root * self.count**0.5

    # --- gradients ----------------------------------------------------------------------------

    def mean_parameters_gradient(self, x: Tensor) -> dict[str, Tensor]:
        return self._times(self.unit.mean_parameters_gradient(x / self.count))

    def natural_log_partition_gradient(self, theta: Tensor, mean: Tensor) -> dict[str, Tensor]:
        return self._times(self.unit.natural_log_partition_gradient(theta, mean / self.count))

    def log_partition_gradient(self, field: Tensor) -> dict[str, Tensor]:
        return self._times(self.unit.log_partition_gradient(field))

    def _times(self, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.mul(value, self.count) for name, value in gradient.items()}

    def __repr__(self) -> str:
        return f"TiedCopies({self.unit!r}, {self.count})"
