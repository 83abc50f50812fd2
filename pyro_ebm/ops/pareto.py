# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""How heavy the tail of importance weights is: the shape of a generalised Pareto distribution."""

import math

import torch
from torch import Tensor

__all__ = ["MIN_PARETO_WEIGHTS", "generalized_pareto_shape", "pareto_k", "pareto_k_error"]

#: Fewer weights leave fewer than five in the tail, to which nothing can be fitted.
MIN_PARETO_WEIGHTS = 25
#: The prior of the shape counts as much as this many observations, and stands at this value.
_PRIOR_COUNT, _PRIOR_SHAPE = 10.0, 0.5


def pareto_k(log_weights: Tensor, dim: int = 0, *, num_weights: int | None = None) -> Tensor:
    r"""Shape :math:`\hat k` of the upper tail of importance weights.

    A generalised Pareto distribution is fitted to the largest :math:`\min(n / 5, 3 \sqrt n)` of n
    weights. Moments of order :math:`1 / k` and above do not exist: with k below 1/2 the weights have
    a variance; up to 0.7 their mean can be trusted in practice; above 1 they have no mean that a
    sample could show [1]. With 100 weights the estimate is good to about 0.25.

    **References**

    [1] *Pareto smoothed importance sampling*, Aki Vehtari, Daniel Simpson, Andrew Gelman, Yuling Yao,
    Jonah Gabry (2024)

    :param Tensor log_weights: logarithms of independent weights along ``dim``.
    :param int dim: the axis of the weights.
    :param int num_weights: n, if only the largest weights are given: at least one more than the tail has.
    :raises ValueError: if too few of them are given.
    :returns: the shape without that axis, float64; minus infinity where all weights of the tail are
        the same, NaN for fewer than 25 weights.

    >>> import torch
    >>> from pyro_ebm.ops.pareto import pareto_k
    >>> uniform = torch.rand(4000, generator=torch.Generator().manual_seed(0)).double()
    >>> k = pareto_k(-0.8 * uniform.log())  # weights u^-0.8 have k = 0.8
    >>> bool((k - 0.8).abs() < 0.3)
    True
    """
    x = log_weights.double().movedim(dim, 0)
    n = len(x) if num_weights is None else num_weights
    if n < MIN_PARETO_WEIGHTS:
        return torch.full_like(x.new_zeros(x.shape[1:]), math.nan)
    num_tail = _num_tail(n)
    if not num_tail < len(x) <= n:
        raise ValueError(
            f"log_weights must hold the {num_tail + 1} largest of num_weights={n} weights, got {len(x)}"
        )
    top = torch.topk(x, num_tail + 1, dim=0).values
    # Relative to the threshold, which the common scale of the weights drops out of.
    excess = torch.exp(top[:-1] - top[:1]) - torch.exp(top[-1:] - top[:1])
    flat = excess[0] <= 0.0
    shape = generalized_pareto_shape(torch.where(flat, torch.ones_like(excess), excess))
    shape = (num_tail * shape + _PRIOR_COUNT * _PRIOR_SHAPE) / (num_tail + _PRIOR_COUNT)
    return torch.where(flat, torch.full_like(shape, -math.inf), shape)


def pareto_k_error(num_weights: int, k: float) -> float:
    r"""Standard error of :func:`pareto_k` where the shape is k.

    That of maximum likelihood with m weights in the tail, :math:`(1 + k) / \sqrt m`, shrunk by the prior.

    :param int num_weights: weights, at least 25; infinite for fewer.
    :param float k: the shape.
    """
    if num_weights < MIN_PARETO_WEIGHTS:
        return math.inf
    num_tail = _num_tail(num_weights)
    return (1.0 + k) * math.sqrt(num_tail) / (num_tail + _PRIOR_COUNT)


def _num_tail(num_weights: int) -> int:
    return min(num_weights // 5, math.ceil(3.0 * math.sqrt(num_weights)))


def generalized_pareto_shape(excess: Tensor) -> Tensor:
    r"""Shape k of a generalised Pareto distribution, :math:`P(X > x) = (1 + k x / \sigma)^{-1/k}`.

    The profile likelihood of :math:`\theta = -k / \sigma` is averaged over a grid that the data choose,
    which is as good as maximum likelihood and always has an answer [1].

    **References**

    [1] *A new and efficient estimation method for the generalized Pareto distribution*, Jin Zhang,
    Michael Stephens (2009)

    :param Tensor excess: non-negative draws along axis 0, none of them infinite, not all zero.
    :returns: of the shape without that axis.
    """
    n = len(excess)
    x = excess.sort(0).values
    num_grid = 30 + int(math.sqrt(n))
    rank = torch.arange(1, num_grid + 1, dtype=x.dtype, device=x.device)
    spread = (1.0 - torch.sqrt(num_grid / (rank - 0.5))).view(-1, *(1,) * (x.dim() - 1))
    tiny = torch.finfo(x.dtype).tiny
    quartile = x[max(int(n / 4 + 0.5), 1) - 1].clamp(min=1e-12 * x[-1].clamp(min=tiny))
    theta = 1.0 / x[-1] + spread / (3.0 * quartile)
    # Axis 0: grid; axis 1: draws.
    shape = torch.log1p(-theta.unsqueeze(1) * x).mean(1)
    log_likelihood = n * (torch.log(-theta / shape) - shape - 1.0)
    share = torch.softmax(log_likelihood.nan_to_num(nan=-math.inf), 0)
    best = (share * theta).sum(0)
    return torch.log1p(-best * x).mean(0)
