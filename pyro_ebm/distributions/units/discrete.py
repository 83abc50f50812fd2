# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Discrete unit families: bits, spins, one-hot groups and counts."""

import math
from functools import lru_cache
from itertools import combinations
from typing import Any, Self

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import one_hot

from pyro_ebm.distributions.conditionals import FlatOneHotCategorical, Spin
from pyro_ebm.distributions.constraints import counts, flat_one_hot, spin
from pyro_ebm.distributions.units.base import Unit
from pyro_ebm.ops.numerics import log_2cosh_sum, softplus_step_sum, softplus_sum
from pyro_ebm.ops.random import (
    bernoulli_from_logits,
    bernoulli_from_uniform_,
    categorical_from_logits,
    multinomial_from_logits,
    uniform,
)

__all__ = ["Bernoulli", "Categorical", "Ising", "Multinomial"]

#: Base rates are kept this far from 0 and 1: a pixel that is never on must still be reachable.
_MIN_RATE = 1e-3


class _Linear(Unit):
    """Families whose only parameter is the natural bias, ``u(x) = -b'x + r(x)``."""

    parameter_constraints = {"bias": constraints.real}
    is_discrete = True
    bias: Tensor

    def __init__(self, bias: Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__({"bias": bias}, validate_args)

    @property
    def natural_bias(self) -> Tensor:
        return self.bias

    def energy(self, x: Tensor) -> Tensor:
        return -(x * self.natural_bias).sum(-1)

    def neutral(self) -> Self:
        return self.replace(bias=torch.zeros_like(self.bias))

    def interpolate(self, base: Self, beta: float) -> Self:
        return self.replace(bias=torch.lerp(base.bias, self.bias, beta))

    def tilt(self, field: Tensor) -> tuple[Self, Tensor]:
        return self.replace(bias=self.bias + field), field.new_zeros(())

    def select(self, mask: Tensor) -> Self:
        return self.replace(bias=self.bias[..., mask])

    def mean_parameters_gradient(self, x: Tensor) -> dict[str, Tensor]:
        return {"bias": x.mean(0).reshape(self.bias.shape)}

    def natural_log_partition_gradient(self, theta: Tensor, mean: Tensor) -> dict[str, Tensor]:
        return {"bias": mean.mean(0).reshape(self.bias.shape)}

    def log_partition_gradient(self, field: Tensor) -> dict[str, Tensor]:
        return {"bias": self.mean(field).mean(0).reshape(self.bias.shape)}


class Bernoulli(_Linear):
    r"""Bits :math:`x \in \{0, 1\}` with :math:`u(x) = -b^\top x`, mean sigmoid(b + t).

    :param Tensor bias: b, shape ``(..., n)``.
    """

    def __init__(self, bias: Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__(bias, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.boolean, 1)

    def natural_log_partition(self, theta: Tensor) -> Tensor:
        return softplus_sum(theta)

    def natural_log_partition_step(
        self, a: Tensor, beta: float | Tensor, beta_next: float | Tensor
    ) -> Tensor:
        return softplus_step_sum(a, beta, beta_next)

    def natural_mean(self, theta: Tensor) -> Tensor:
        return torch.sigmoid(theta)

    def natural_sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        return bernoulli_from_logits(theta, generator)

    def natural_noise(self, shape: Size, generator: Generator | None = None) -> Tensor:
        return uniform(shape, self.bias, generator)

    def natural_sample_from(self, theta: Tensor, noise: Tensor) -> Tensor:
        return bernoulli_from_uniform_(theta, noise)

    def natural_conditional(self, theta: Tensor) -> TorchDistribution:
        return dist.Bernoulli(logits=theta).to_event(1)

    def from_mean(self, mean: Tensor) -> Self:
        return self.replace(bias=torch.logit(mean.to(self.bias), eps=_MIN_RATE))

    @property
    def num_states(self) -> int:
        return 2**self.num_units

    def states(self, start: int, stop: int) -> Tensor:
        return _digits(start, stop, 2, self.num_units, self.device).to(self.dtype)

    def unit_states(self) -> Tensor:
        return self.bias.new_tensor([[0.0], [1.0]])


class Ising(_Linear):
    r"""Spins :math:`x \in \{-1, +1\}` with :math:`u(x) = -b^\top x`, mean tanh(b + t).

    :param Tensor bias: b, shape ``(..., n)``.
    """

    def __init__(self, bias: Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__(bias, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(spin, 1)

    def natural_log_partition(self, theta: Tensor) -> Tensor:
        return log_2cosh_sum(theta)

    def natural_log_partition_step(
        self, a: Tensor, beta: float | Tensor, beta_next: float | Tensor
    ) -> Tensor:
        # log 2cosh x = softplus(2x) - x
        steps = softplus_step_sum(2.0 * a, beta, beta_next)
        change = beta_next - beta
        return steps - (change[..., 0] if isinstance(change, Tensor) else change) * a.sum(-1)

    def natural_mean(self, theta: Tensor) -> Tensor:
        return torch.tanh(theta)

    def natural_sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        return bernoulli_from_logits(2.0 * theta, generator, values=(-1.0, 1.0))

    def natural_noise(self, shape: Size, generator: Generator | None = None) -> Tensor:
        return uniform(shape, self.bias, generator)

    def natural_sample_from(self, theta: Tensor, noise: Tensor) -> Tensor:
        return bernoulli_from_uniform_(theta.mul_(2.0), noise, values=(-1.0, 1.0))

    def natural_conditional(self, theta: Tensor) -> TorchDistribution:
        return Spin(theta).to_event(1)

    def from_mean(self, mean: Tensor) -> Self:
        rate = (mean.to(self.bias) + 1.0) / 2.0
        return self.replace(bias=torch.logit(rate, eps=_MIN_RATE) / 2.0)

    @property
    def num_states(self) -> int:
        return 2**self.num_units

    def states(self, start: int, stop: int) -> Tensor:
        bits = _digits(start, stop, 2, self.num_units, self.device).to(self.dtype)
        return 2.0 * bits - 1.0

    def unit_states(self) -> Tensor:
        return self.bias.new_tensor([[-1.0], [1.0]])


class Categorical(_Linear):
    r"""One-hot groups of K states with :math:`u(x) = -b^\top x`, mean softmax(b + t) per group.

    States are flattened: event entries ``K * i`` to ``K * i + K - 1`` are group i.

    :param Tensor bias: b, shape ``(..., n, K)``.
    """

    parameter_dim = 2

    def __init__(self, bias: Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__(bias, validate_args=validate_args)

    @property
    def cardinality(self) -> int:
        """Number K of states of a group."""
        return int(self.bias.shape[-1])

    def _groups(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.cardinality))

    @property
    def natural_bias(self) -> Tensor:
        return self.bias.flatten(-2)

    @property
    def support(self) -> constraints.Constraint:
        return flat_one_hot(self.cardinality)

    def natural_log_partition(self, theta: Tensor) -> Tensor:
        return self._groups(theta).logsumexp(-1).sum(-1)

    def natural_mean(self, theta: Tensor) -> Tensor:
        return torch.softmax(self._groups(theta), -1).flatten(-2)

    def natural_sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        return categorical_from_logits(self._groups(theta), generator).flatten(-2)

    def natural_conditional(self, theta: Tensor) -> TorchDistribution:
        return FlatOneHotCategorical(self._groups(theta))

    def from_mean(self, mean: Tensor) -> Self:
        rates = self._groups(mean.to(self.bias)).clamp(min=_MIN_RATE)
        return self.replace(bias=rates.log() - rates.sum(-1, keepdim=True).log())

    def tilt(self, field: Tensor) -> tuple[Self, Tensor]:
        return self.replace(bias=self.bias + self._groups(field)), field.new_zeros(())

    def select(self, mask: Tensor) -> Self:
        groups = mask.unflatten(-1, (-1, self.cardinality))
        if not bool((groups.all(-1) == groups.any(-1)).all()):
            raise ValueError(
                f"mask must take whole one-hot groups of {self.cardinality} entries; "
                "it divides at least one"
            )
        return self.replace(bias=self.bias[..., groups.all(-1), :])

    @property
    def num_states(self) -> int:
        return self.cardinality**self.num_units

    def states(self, start: int, stop: int) -> Tensor:
        digits = _digits(start, stop, self.cardinality, self.num_units, self.device)
        return one_hot(digits, self.cardinality).flatten(-2).to(self.dtype)

    def unit_states(self) -> Tensor:
        return torch.eye(self.cardinality, dtype=self.dtype, device=self.device)


class Multinomial(_Linear):
    r"""Counts of M draws from K states, :math:`u(x) = -b^\top x - \log(M! / \prod_k x_k!)`.

    The whole layer is one unit: the sum of M one-hot units that share their parameters (the
    replicated softmax of Salakhutdinov & Hinton, 2009). Mean M softmax(b + t).

    :param Tensor bias: b, shape ``(..., K)``.
    :param int total_count: M, at least 1.
    """

    def __init__(
        self, bias: Tensor, total_count: int, *, validate_args: bool | None = None
    ) -> None:
        try:
            whole = not isinstance(total_count, bool) and int(total_count) == total_count
        except (TypeError, ValueError, OverflowError):
            whole = False
        if not whole or total_count < 1:
            raise ValueError(f"total_count must be a whole number >= 1, got {total_count!r}")
        self.total_count = int(total_count)
        super().__init__(bias, validate_args=validate_args)

    def options(self) -> dict[str, Any]:
        return {"total_count": self.total_count}

    @property
    def num_units(self) -> int:
        return 1

    @property
    def support(self) -> constraints.Constraint:
        return counts(self.total_count)

    def energy(self, x: Tensor) -> Tensor:
        log_ways = math.lgamma(self.total_count + 1) - torch.lgamma(x + 1.0).sum(-1)
        return super().energy(x) - log_ways

    def natural_log_partition(self, theta: Tensor) -> Tensor:
        return self.total_count * theta.logsumexp(-1)

    def natural_mean(self, theta: Tensor) -> Tensor:
        return self.total_count * torch.softmax(theta, -1)

    def natural_sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        return multinomial_from_logits(theta, self.total_count, generator)

    def natural_conditional(self, theta: Tensor) -> TorchDistribution:
        return dist.Multinomial(total_count=self.total_count, logits=theta)

    def from_mean(self, mean: Tensor) -> Self:
        rates = (mean.to(self.bias) / self.total_count).clamp(min=_MIN_RATE)
        return self.replace(bias=rates.log() - rates.sum(-1, keepdim=True).log())

    def select(self, mask: Tensor) -> Self:
        if not bool(mask.all()):
            raise ValueError("mask must take all or none of a Multinomial layer: it is one unit")
        return self

    @property
    def num_states(self) -> int:
        return math.comb(self.total_count + self.size - 1, self.size - 1)

    def states(self, start: int, stop: int) -> Tensor:
        table = _compositions(self.total_count, self.size)
        return table[start:stop].to(self.bias)

    def unit_states(self) -> Tensor:
        return self.states(0, self.num_states)


def _digits(start: int, stop: int, base: int, count: int, device: torch.device) -> Tensor:
    """Digits of ``start .. stop - 1`` in a base, most significant first, shape (stop-start, count)."""
    index = torch.arange(start, stop, device=device).unsqueeze(-1)
    powers = torch.tensor([base**i for i in reversed(range(count))], device=device)
    return torch.div(index, powers, rounding_mode="floor") % base


@lru_cache(maxsize=8)
def _compositions(total: int, parts: int) -> Tensor:
    """All ways to write ``total`` as an ordered sum of ``parts`` non-negative integers."""
    bars = torch.tensor(list(combinations(range(total + parts - 1), parts - 1)), dtype=torch.int64)
    left = torch.cat([bars.new_full((len(bars), 1), -1), bars], dim=1)
    right = torch.cat([bars, bars.new_full((len(bars), 1), total + parts - 1)], dim=1)
    return right - left - 1
