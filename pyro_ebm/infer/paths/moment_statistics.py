# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Moments of a machine: exact by enumeration, or from samples."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.distributions.enumeration import enumerable_side, state_chunks

__all__ = ["Moments", "base_moments", "enumerated_moments", "moments_of", "sampled_moments"]

#: Rows that :func:`sampled_moments` sums in the machine's own precision.
_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Moments:
    """Expectations of what the biases and the weight multiply, float64.

    :param Tensor visible: E[v], shape ``batch_shape + (V,)``.
    :param Tensor hidden: E[h], shape ``batch_shape + (H,)``.
    :param Tensor product: E[v h'], shape ``batch_shape + (V, H)``.
    """

    visible: Tensor
    hidden: Tensor
    product: Tensor

    @property
    def transposed(self) -> "Moments":
        """The same with the two layers exchanged."""
        return Moments(self.hidden, self.visible, self.product.mT)

    def mix(self, other: "Moments", share: float | Tensor) -> "Moments":
        """``(1 - share)`` of these and ``share`` of the others; a tensor has the batch shape."""
        part = torch.as_tensor(share, dtype=self.visible.dtype, device=self.visible.device)
        column = part.unsqueeze(-1)
        return Moments(
            torch.lerp(self.visible, other.visible, column),
            torch.lerp(self.hidden, other.hidden, column),
            torch.lerp(self.product, other.product, column.unsqueeze(-1)),
        )

    def to(self, like: Tensor | torch.dtype) -> "Moments":
        """The same of another type (and device, for a tensor)."""
        return Moments(self.visible.to(like), self.hidden.to(like), self.product.to(like))

    def dot(self, visible_bias: Tensor, hidden_bias: Tensor, weight: Tensor) -> Tensor:
        """Inner product with natural parameters, shape ``batch_shape``."""
        linear = (self.visible * visible_bias).sum(-1) + (self.hidden * hidden_bias).sum(-1)
        return linear + (self.product * weight).sum((-2, -1))


def base_moments(machine: RBM) -> Moments:
    """Exact moments of a machine without weights and offsets."""
    exact, batch = machine.to(dtype=torch.float64), machine.parameter_batch_shape
    visible = exact.visible.mean().expand(*batch, exact.visible.size)
    hidden = exact.hidden.mean().expand(*batch, exact.hidden.size)
    return Moments(visible, hidden, visible.unsqueeze(-1) * hidden.unsqueeze(-2))


@torch.no_grad()
def enumerated_moments(machine: RBM) -> tuple[Moments, Tensor]:
    """Moments and log Z of a machine without offsets, one layer of which is finite.

    :returns: the moments, and log Z without the constants of the energy (those of clamping and of
        Gaussian units), shape ``batch_shape``.
    """
    side = enumerable_side(machine)
    if side is None:
        raise ValueError("neither layer of the machine is finite")
    moments, log_z = _enumerate(side.to(dtype=torch.float64))
    return (moments if side is machine else moments.transposed), log_z


def _enumerate(side: RBM) -> tuple[Moments, Tensor]:
    """Sums over the states of the visible layer, chunk by chunk."""
    batch, layer = side.parameter_batch_shape, side.visible
    form, lift = side.canonical(), (1,) * len(batch)
    shape = (*batch, layer.size)
    total: Moments | None = None
    log_z = form.weight.new_full(batch, -math.inf)
    sweep = GibbsSweep(side)
    for states in state_chunks(layer, side.hidden.size * math.prod(batch)):
        x = states.reshape(-1, *lift, layer.size).expand(-1, *shape)
        theta = sweep.hidden_theta(x)
        log_p = side.hidden.natural_log_partition(theta) - layer.energy(x) + layer.energy_constant
        log_sum = log_p.logsumexp(0)
        p = torch.exp(log_p - log_sum).unsqueeze(-1)
        mean = side.hidden.natural_mean(theta)
        product = torch.einsum("s...v,s...h->...vh", p * x, mean)
        part = Moments((p * x).sum(0), (p * mean).sum(0), product)
        share = torch.sigmoid(log_sum - log_z)
        log_z = torch.logaddexp(log_z, log_sum)
        total = part if total is None else total.mix(part, share)
    assert total is not None
    return total, log_z


def moments_of(v: Tensor, hidden_mean: Tensor) -> Moments:
    """Averages over states and the conditional means of their hidden units, in their own dtype.

    :param Tensor v: visible states, shape ``(rows,) + batch_shape + (V,)``.
    :param Tensor hidden_mean: hidden means, shape ``(rows,) + batch_shape + (H,)``.
    """
    product = torch.einsum("s...v,s...h->...vh", v, hidden_mean) / len(v)
    return Moments(v.mean(0), hidden_mean.mean(0), product)


@torch.no_grad()
def sampled_moments(machine: RBM, v: Tensor) -> Moments:
    """Averages over samples of the visible layer, with the hidden layer's conditional means.

    :param RBM machine: the machine, with or without offsets.
    :param Tensor v: samples, shape ``(samples,) + batch_shape + (V,)``.
    """
    sweep = GibbsSweep(machine)
    total: Moments | None = None
    count = 0
    for rows in v.split(_CHUNK_ROWS):
        mean = machine.hidden.natural_mean(sweep.hidden_theta(rows))
        part = moments_of(rows, mean).to(torch.float64)
        count += len(rows)
        total = part if total is None else total.mix(part, len(rows) / count)
    assert total is not None
    return total
