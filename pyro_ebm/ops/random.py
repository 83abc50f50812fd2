# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Draws of unit states from their natural parameters ("fields"), the inner loop of every sampler.

Random numbers, not matrix products, are what a Gibbs sweep on a CPU spends its time on if one is
careless: ``torch.bernoulli`` costs 16 ns a unit, as much as the product that it follows. The functions
here cost 2.5 ns (figures in ``docs/source/performance.rst``).
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

__all__ = [
    "bernoulli",
    "bernoulli_from_logits",
    "bernoulli_from_uniform_",
    "categorical_from_logits",
    "multinomial_from_logits",
    "truncated_normal",
    "uniform",
]


def bernoulli(probs: Tensor, generator: Generator | None = None) -> Tensor:
    r"""Independent bits with ``P(1) = probs``.

    Each unit compares a uniform number with its probability. On a CPU and in float32 that number has
    24 bits, as ``torch.rand`` has, of which the upper 16 are the unit's own and the lower 8 are
    shared by its row: the law of each unit is the same, rows (chains) are independent, and the
    covariance of two units of one row is at most :math:`\mathrm{Cov}(T_i, T_j) 2^{-32} \le 2^{-34}`,
    where :math:`T = \lceil 2^{16} p - \delta \rceil` with the shared :math:`\delta \in [0, 1)` takes two
    neighbouring values. That is less than the rounding of p itself.

    :param Tensor probs: probabilities, any shape with at least one axis. Not changed.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :returns: zeros and ones of the shape and dtype of ``probs``.
    """
    noise = uniform(probs.shape, probs, generator)
    return torch.lt(noise, probs, out=noise)


def uniform(shape: Sequence[int], like: Tensor, generator: Generator | None = None) -> Tensor:
    """Uniform numbers in [0, 1) for :func:`bernoulli`, which says how they depend on each other.

    :param shape: their shape; the last axis is that of the units.
    :param Tensor like: gives dtype and device.
    :param torch.Generator generator: the source of random bits; the global one if None.
    """
    noise = torch.empty(shape, dtype=like.dtype, device=like.device)
    if like.device.type == "cpu" and like.dtype == torch.float32:
        _fill_16_bit_uniform(noise, generator)
        return noise
    return noise.uniform_(generator=generator)


def bernoulli_from_logits(
    logits: Tensor, generator: Generator | None = None, *, values: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """Independent two-valued draws with ``P(second value) = sigmoid(logits)``, see :func:`bernoulli`.

    :param Tensor logits: log-odds, any shape with at least one axis. Not changed.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :param values: the two values.
    """
    return _two_values(bernoulli(torch.sigmoid(logits), generator), values)


def bernoulli_from_uniform_(
    logits: Tensor, noise: Tensor, *, values: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """:func:`bernoulli_from_logits` with random numbers drawn ahead, overwriting both arguments.

    :param Tensor logits: log-odds.
    :param Tensor noise: numbers from :func:`uniform` of the same shape, used only once; they become
        the result.
    :param values: the two values.
    """
    return _two_values(torch.lt(noise, logits.sigmoid_(), out=noise), values)


def _two_values(bits: Tensor, values: tuple[float, float]) -> Tensor:
    low, high = values
    return bits if (low, high) == (0.0, 1.0) else bits.mul_(high - low).add_(low)


def _fill_16_bit_uniform(out: Tensor, generator: Generator | None) -> None:
    """Write ``(k + delta) / 2^16``, k of 16 bits per unit and delta of 8 bits per row, all exact."""
    n = out.numel()
    bits = torch.empty((n + 3) // 4, dtype=torch.int64, device=out.device)
    bits.random_(-(2**63), None, generator=generator)
    out.copy_(bits.view(torch.int16)[:n].view(out.shape))
    delta = torch.empty((*out.shape[:-1], 1), device=out.device).random_(
        0, 256, generator=generator
    )
    # int16 is centred at zero. Sums of 16 + 8 bits are exact in float32, so out < 1 always.
    shift = delta.div_(2.0**24).add_(0.5)
    torch.add(shift, out, alpha=2.0**-16, out=out)


def categorical_from_logits(logits: Tensor, generator: Generator | None = None) -> Tensor:
    """One-hot draws along the last axis.

    :param Tensor logits: unnormalised log-probabilities, shape ``(..., K)``.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :returns: one-hot rows of the dtype of ``logits``.
    """
    cdf = torch.softmax(logits, -1).cumsum(-1)
    # A uniform number below the last entry of the cdf, which rounding can leave at 1 - eps.
    shape = (*cdf.shape[:-1], 1)
    u = torch.rand(shape, dtype=cdf.dtype, device=cdf.device, generator=generator) * cdf[..., -1:]
    index = (cdf <= u).sum(-1, keepdim=True)
    index.clamp_(max=logits.shape[-1] - 1)
    return torch.zeros_like(cdf).scatter_(-1, index, 1.0)


def multinomial_from_logits(
    logits: Tensor, total_count: int, generator: Generator | None = None
) -> Tensor:
    """Counts of ``total_count`` independent categorical draws along the last axis.

    :param Tensor logits: unnormalised log-probabilities, shape ``(..., K)``.
    :param int total_count: number of draws, at least 1.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :returns: counts of the dtype of ``logits``, summing to ``total_count``.
    """
    probs = torch.softmax(logits, -1).reshape(-1, logits.shape[-1])
    index = torch.multinomial(probs, total_count, replacement=True, generator=generator)
    ones = torch.ones((), dtype=probs.dtype, device=probs.device).expand(index.shape)
    return torch.zeros_like(probs).scatter_add_(-1, index, ones).reshape(logits.shape)


def truncated_normal(alpha: Tensor, generator: Generator | None = None) -> Tensor:
    r"""Draws of a unit normal with location ``alpha``, truncated to ``[0, inf)``, by inversion.

    :param Tensor alpha: location, any shape.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :returns: a tensor like ``alpha``, non-negative.
    """
    a = alpha.double()
    u = torch.rand(a.shape, dtype=a.dtype, device=a.device, generator=generator)
    u = u.clamp_(min=torch.finfo(a.dtype).tiny)
    # Survival of the untruncated deviate z = x - alpha: uniform on (0, sf(-alpha)) given x > 0.
    far = a < -5.0
    near = torch.where(far, torch.zeros_like(a), a)
    x_near = near - torch.special.ndtri(u * torch.special.ndtr(near))
    bound = torch.where(far, -a, torch.full_like(a, 5.0))
    return (
        torch.where(far, _far_tail_excess(bound, u.log()), x_near).clamp_(min=0.0).to(alpha.dtype)
    )


def _far_tail_excess(bound: Tensor, log_u: Tensor) -> Tensor:
    """Solve ``log sf(bound + x) = log sf(bound) + log_u`` for x by Newton's method."""
    target = torch.special.log_ndtr(-bound) + log_u
    z = (bound.square() - 2.0 * log_u).sqrt()
    for _ in range(4):
        hazard = math.sqrt(2.0 / math.pi) / torch.special.erfcx(z / math.sqrt(2.0))
        z = z + (torch.special.log_ndtr(-z) - target) / hazard
    return z - bound
