# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Stable elementary functions: logarithms of sums, means and tails."""

import math

import torch
from torch import Tensor

__all__ = [
    "effective_sample_size",
    "log_2cosh_sum",
    "log_erfcx",
    "log_mean_exp",
    "log_mean_exp_error",
    "softplus_step",
    "softplus_step_sum",
    "softplus_sum",
    "student_quantile",
    "truncated_normal_mean",
]

_LOG_2 = math.log(2.0)


#: A product of this many factors in (1, 2] stays below the largest float64, 2^1024.
_MAX_FACTORS = 1000


def softplus_sum(x: Tensor) -> Tensor:
    """``softplus(x).sum(-1)``, twice as fast in float64 where no gradient is wanted."""
    if _wants_product(x):
        return x.clamp(min=0.0).sum(-1) + _log1p_exp_sum(x.abs().neg_())
    return torch.nn.functional.softplus(x).sum(-1)


def log_2cosh_sum(x: Tensor) -> Tensor:
    """``log(2 cosh(x)).sum(-1)``, finite for every finite x."""
    if x.requires_grad and torch.is_grad_enabled():
        # Without abs, whose second derivative at zero is wrong; the double is finite below 1e38.
        return (torch.nn.functional.softplus(2.0 * x, threshold=40.0) - x).sum(-1)
    magnitude = x.abs()
    if _wants_product(x):
        return magnitude.sum(-1) + _log1p_exp_sum(magnitude.mul(-2.0))
    return (magnitude + torch.nn.functional.softplus(-2.0 * magnitude)).sum(-1)


def _wants_product(x: Tensor) -> bool:
    no_gradient = not (x.requires_grad and torch.is_grad_enabled())
    return no_gradient and x.dtype == torch.float64 and x.shape[-1] <= _MAX_FACTORS


def _log1p_exp_sum(x: Tensor) -> Tensor:
    """``log(1 + exp(x)).sum(-1)`` for x <= 0 as one logarithm of a product; overwrites x."""
    return x.exp_().add_(1.0).prod(-1).log_()


def softplus_step(a: Tensor, beta: float, beta_next: float) -> Tensor:
    r"""``softplus(beta_next * a) - softplus(beta * a)`` without the cancellation.

    .. math:: \delta \max(a, 0) + \log\bigl(1 + \sigma(-\beta |a|) (e^{-\delta |a|} - 1)\bigr),
              \qquad \delta = \beta' - \beta

    In float32 the naive difference of two sums over 500 units loses 1e-4 at every temperature.
    """
    if beta_next < beta:  # the exponential would grow, and overflow for strong fields
        return softplus_step(a, beta_next, beta).neg_()
    delta = beta_next - beta
    magnitude = a.abs()
    change = torch.expm1(magnitude * -delta)
    change.mul_(torch.sigmoid(magnitude.mul_(-beta))).log1p_()
    return torch.add(change, a.clamp(min=0.0), alpha=delta)


#: Products of this many factors in [1/2, 2] stay inside the range of float32.
_RATIO_FACTORS = 100


def softplus_step_sum(a: Tensor, beta: float | Tensor, beta_next: float | Tensor) -> Tensor:
    r"""``(softplus(beta_next * a) - softplus(beta * a)).sum(-1)``, see :func:`softplus_step`.

    Inverse temperatures that are tensors differ between rows, as between the levels of a ladder. Then

    .. math:: \sum_j \delta \max(a_j, 0) + \log \prod_j \frac{1 + e^{-\beta' |a_j|}}{1 + e^{-\beta |a_j|}}

    takes less than half of the time, right to 1e-5 in float32: enough to accept or reject with.

    :param Tensor a: any shape.
    :param beta: a number >= 0, or a tensor that broadcasts to the shape of ``a`` and has a last axis
        of size 1.
    :param beta_next: the same.
    """
    if not isinstance(beta, Tensor) and not isinstance(beta_next, Tensor):
        return softplus_step(a, beta, beta_next).sum(-1)
    beta, beta_next = (
        torch.as_tensor(b, dtype=a.dtype, device=a.device) for b in (beta, beta_next)
    )
    magnitude = a.abs()
    ratio = torch.mul(magnitude, -beta_next).exp_().add_(1.0)
    ratio.div_(magnitude.mul_(-beta).exp_().add_(1.0))
    change = _products(ratio).log_().sum(-1)
    delta = beta_next - beta
    return torch.addcmul(change, delta[..., 0] if delta.dim() else delta, a.clamp(min=0.0).sum(-1))


def _products(x: Tensor) -> Tensor:
    """Products of at most :data:`_RATIO_FACTORS` neighbours along the last axis."""
    size = x.shape[-1]
    width = next(w for w in range(min(size, _RATIO_FACTORS), 0, -1) if size % w == 0)
    if width > 8 or width == size:
        return x.unflatten(-1, (-1, width)).prod(-1)
    return torch.stack([part.prod(-1) for part in x.split(_RATIO_FACTORS, -1)], -1)


def log_erfcx(x: Tensor) -> Tensor:
    r"""``log(exp(x^2) erfc(x))``, finite where ``erfcx`` itself overflows (x < -9 in float32)."""
    negative = x < 0
    # Both branches are evaluated inside their own domain, so that neither's gradient is NaN.
    # The derivative of erfcx cancels for large x; in float32 it would lose all digits at 1e3.
    above = torch.where(negative, torch.zeros_like(x), x)
    right = torch.special.erfcx(above.double()).log().to(x.dtype)
    below = torch.where(negative, x, torch.zeros_like(x))
    left = below.square() + _LOG_2 + torch.special.log_ndtr(-below * math.sqrt(2.0))
    return torch.where(negative, left, right)


def truncated_normal_mean(alpha: Tensor) -> Tensor:
    r"""Mean of a unit normal with location ``alpha``, truncated to ``[0, inf)``.

    .. math:: \alpha + \phi(\alpha) / \Phi(\alpha)

    Far in the tail the two terms cancel; there the asymptotic series in :math:`1/\alpha` is used.
    """
    a = alpha.double()
    tail = a < -30.0
    inside = torch.where(tail, torch.zeros_like(a), a)
    hazard = math.sqrt(2.0 / math.pi) * torch.exp(-log_erfcx(-inside / math.sqrt(2.0)))
    r = torch.where(tail, a, torch.full_like(a, -30.0)).reciprocal().square()
    series = r.sqrt() * (1.0 - 2.0 * r + 10.0 * r.square() - 74.0 * r**3 + 706.0 * r**4)
    return torch.where(tail, series, inside + hazard).to(alpha.dtype)


def log_mean_exp(x: Tensor, dim: int = 0) -> Tensor:
    """Logarithm of the mean of ``exp(x)`` along ``dim``."""
    return torch.logsumexp(x, dim) - math.log(x.shape[dim])


def log_mean_exp_error(log_weights: Tensor, dim: int = 0) -> Tensor:
    r"""Jackknife standard error of ``log_mean_exp(log_weights)``.

    :param Tensor log_weights: logarithms of independent weights along ``dim``.
    :returns: the standard error, infinite where fewer than two weights are given.
    """
    n = log_weights.shape[dim]
    if n < 2:
        return torch.full_like(log_weights.select(dim, 0), math.inf)
    share = torch.softmax(log_weights, dim)
    leave_one_out = torch.log1p(-share.clamp(max=1.0 - 1e-15))
    return ((n - 1) * leave_one_out.var(dim, unbiased=False)).sqrt()


def effective_sample_size(log_weights: Tensor, dim: int = 0) -> Tensor:
    r"""Kish's effective sample size of importance weights, ``(sum w)^2 / sum w^2``."""
    share = torch.softmax(log_weights, dim)
    return share.square().sum(dim).reciprocal()


#: 97.5 % quantiles where the series below is too far off.
_STUDENT_QUANTILES = {1.0: 12.706204736, 2.0: 4.302652730}


def student_quantile(degrees: float) -> float:
    """97.5 % quantile of Student's t (Cornish-Fisher series; 1 % off at 3 degrees)."""
    if degrees < 1.0:
        return float("inf")
    if degrees in _STUDENT_QUANTILES:
        return _STUDENT_QUANTILES[degrees]
    z, n = 1.959963984540054, degrees
    first = (z**3 + z) / 4.0
    second = (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0
    third = (3.0 * z**7 + 19.0 * z**5 + 17.0 * z**3 - 15.0 * z) / 384.0
    return z + first / n + second / n**2 + third / n**3
