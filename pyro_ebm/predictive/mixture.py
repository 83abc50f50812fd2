# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Gaussian mixtures of one dimension, one for every entry of a batch."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.predictive.spread import expected_distance, half_spread

__all__ = ["GaussianMixture"]

#: Entries (components times values) that are computed at once: 8 MiB in float64.
_CHUNK_ENTRIES = 2**20
#: Probability that the weights of a mixture may be away from one.
_TOLERANCE = 1e-4
#: Steps of the search for a quantile: as many as bisection needs in float64.
_MAX_STEPS = 64
#: Error of a sum over components, in units of the last place.
_ROUNDING = 16.0
_SQRT_2_PI = math.sqrt(2.0 * math.pi)


class GaussianMixture:
    r"""Predictive distributions :math:`F(y) = \sum_k w_k \Phi\bigl((y - m_k) / s_k\bigr)`.

    Every entry of ``batch_shape`` (rows and units, say) is a mixture of its own: the marginals of a
    predictive distribution, in a form in which they can be scored. :func:`marginal_mixture` makes one of
    a machine; a mixture density network gives means, standard deviations and weights, and a Gaussian
    regression is a mixture of one component (:meth:`normal`), so that all are judged by the same code.

    Methods are differentiable in y and in the parameters, but for :meth:`quantile` and :meth:`sample`.
    Values have a shape that broadcasts with ``batch_shape``, with any axes in front of it. Memory beside
    that of the parameters is bounded, for values without further axes.

    :param Tensor means: :math:`m_k`, shape ``(K,) + batch_shape``.
    :param Tensor stds: :math:`s_k`, positive, broadcasts to the shape of the means.
    :param Tensor weights: :math:`w_k`, not negative, sums to one over the first axis once it is broadcast
        to the shape of the means; equal weights if None.
    :raises ValueError: if shapes do not fit or values are impossible.

    >>> import torch
    >>> mixture = GaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.tensor(0.5))
    >>> mixture.batch_shape, mixture.mean, mixture.variance
    (torch.Size([1]), tensor([0.]), tensor([1.2500]))
    >>> mixture.cdf(torch.tensor([0.0])), mixture.interval(0.5)
    (tensor([0.5000]), (tensor([-1.0000]), tensor([1.0000])))
    """

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor | None = None) -> None:
        if means.dim() < 1 or len(means) < 1 or not means.is_floating_point():
            raise ValueError(
                "means must be floating-point numbers of shape (K >= 1, *batch), "
                f"got {means.dtype} {tuple(means.shape)}"
            )
        if weights is None:
            weights = means.new_full((1,) * means.dim(), 1.0 / len(means))
        self.means = means
        self.stds = _aligned("stds", stds, means)
        self.weights = _aligned("weights", weights, means)
        if not bool(torch.isfinite(means).all()):
            raise ValueError("means must be finite, got NaN or infinite values")
        if not bool(((self.stds > 0.0) & (self.stds < math.inf)).all()):
            raise ValueError("stds must be positive and finite, got other values or NaN")
        self._check_weights()

    @classmethod
    def normal(cls, mean: Tensor, std: Tensor) -> "GaussianMixture":
        """Normal distributions, mixtures of one component.

        :param Tensor mean: the mean, shape ``batch_shape``.
        :param Tensor std: the standard deviation, positive, broadcasts to the shape of the mean.
        """
        return cls(mean.unsqueeze(0), std)

    def _check_weights(self) -> None:
        if not bool((self.weights >= 0.0).all()):
            raise ValueError("weights must not be negative, got negative values or NaN")
        total = self.weights.sum(0)
        if len(self.weights) < self.num_components:
            total = total * self.num_components
        if not bool(((total - 1.0).abs() < _TOLERANCE).all()):
            low, high = total.min().item(), total.max().item()
            raise ValueError(
                f"weights must sum to one over the first axis, got {low:.6g} to {high:.6g}"
            )

    @property
    def batch_shape(self) -> Size:
        """Shape of the independent mixtures."""
        return self.means.shape[1:]

    @property
    def num_components(self) -> int:
        """Number K of components of each mixture."""
        return len(self.means)

    def __getitem__(self, index: Any) -> "GaussianMixture":
        """The mixtures at an index into ``batch_shape``."""
        parts = []
        for tensor in (self.means, self.stds, self.weights):
            full = tensor.expand(len(tensor), *self.batch_shape)
            parts.append(full[(slice(None), *(index if isinstance(index, tuple) else (index,)))])
        return GaussianMixture(*parts)

    # --- moments ------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        """Mean, shape ``batch_shape``."""
        return (self.weights * self.means).sum(0)

    @property
    def variance(self) -> Tensor:
        """Variance, shape ``batch_shape``."""
        # About the mean: the difference of two large squares would cancel.
        second = self.stds.square() + (self.means - self.mean).square()
        return (self.weights * second).sum(0)

    # --- functions of a value -----------------------------------------------------------------

    def log_prob(self, y: Tensor) -> Tensor:
        """Log-density of every value, shape ``broadcast(y.shape, batch_shape)``.

        A weight of exactly zero has the gradient zero.
        """
        return self._map(_log_prob, y)

    def cdf(self, y: Tensor) -> Tensor:
        """Distribution function. At an observation it is the probability integral transform (PIT),
        uniform on [0, 1] where the model is right, see :func:`pit_report`."""
        # Weights sum to one but for rounding.
        return self._map(_cdf, y).clamp(max=1.0)

    def crps(self, y: Tensor) -> Tensor:
        r"""Continuous ranked probability score of observations, smaller is better.

        .. math:: \mathrm{CRPS}(F, y) = \int \bigl(F(t) - 1[t \ge y]\bigr)^2 dt
                  = \mathrm{E}|X - y| - \tfrac{1}{2} \mathrm{E}|X - X'|

        It has the unit of y, is the absolute error for a point mass, and is strictly proper [1]. For a
        mixture both terms are closed forms [2], the second one a sum over pairs of components, or, where
        that is cheaper, an integral that is exact to rounding, see
        :mod:`pyro_ebm.predictive.spread`.

        **References**

        [1] *Strictly Proper Scoring Rules, Prediction, and Estimation*, Tilmann Gneiting, Adrian Raftery
        (2007)

        [2] *The continuous ranked probability score for circular variables and its application to
        mesoscale forecast ensemble verification*, Eric Grimit, Tilmann Gneiting, Veronica Berrocal,
        Nicholas Johnson (2006)

        [3] *Decomposition of the Continuous Ranked Probability Score for Ensemble Prediction Systems*,
        Hans Hersbach (2000)
        """

        return self._map(_distance, y, less=_half_spread)

    @torch.no_grad()
    def quantile(self, p: float | Tensor) -> Tensor:
        """Inverse of :meth:`cdf`, by bisection that Newton steps accelerate, in float64 to the last bits
        and then rounded to the dtype of the means.

        :param p: probabilities in [0, 1], of a shape that broadcasts with ``batch_shape``.
        :raises ValueError: if a probability is outside of [0, 1].
        """
        p = torch.as_tensor(p, dtype=torch.float64, device=self.means.device)
        if not bool(((p >= 0.0) & (p <= 1.0)).all()):
            raise ValueError("p must be in [0, 1], got other values or NaN")
        return self._map(_quantile, p).to(self.means.dtype)

    def interval(self, level: float | Tensor) -> tuple[Tensor, Tensor]:
        """Ends of the central interval that has probability ``level``."""
        level = torch.as_tensor(level, dtype=torch.float64, device=self.means.device)
        return self.quantile((1.0 - level) / 2.0), self.quantile((1.0 + level) / 2.0)

    @torch.no_grad()
    def sample(self, sample_shape: Any = (), *, generator: Generator | None = None) -> Tensor:
        """Draws of every mixture by itself (so that units are not drawn jointly), shape
        ``sample_shape + batch_shape``.

        :param sample_shape: shape of the draws of each mixture, or their number.
        :param torch.Generator generator: the source of random numbers; the global one if None.
        """
        shape = Size((sample_shape,) if isinstance(sample_shape, int) else sample_shape)
        means, stds, weights = (t.squeeze(1).expand(self._flat_shape) for t in self._part())
        index = torch.multinomial(weights.mT, shape.numel(), replacement=True, generator=generator)
        index = index.mT
        noise = torch.empty_like(means.gather(0, index)).normal_(generator=generator)
        draws = means.gather(0, index) + stds.gather(0, index) * noise
        return draws.reshape(shape + self.batch_shape)

    # --- chunks -------------------------------------------------------------------------------

    @property
    def _flat_shape(self) -> tuple[int, int]:
        return self.num_components, self.batch_shape.numel()

    def _part(self) -> "_Part":
        """All mixtures along one axis."""
        tensors = (self.means, self.stds, self.weights)
        return _Part(*(t.expand(len(t), *self.batch_shape).reshape(len(t), 1, -1) for t in tensors))

    def _map(
        self,
        function: Callable[["_Part", Tensor], Tensor],
        values: Tensor,
        less: Callable[["_Part"], Tensor] | None = None,
    ) -> Tensor:
        """A function of the mixtures and of values, ``(m, n)`` to ``(m, n)`` with n mixtures, in chunks.

        :param less: what is taken away, a function of the mixtures alone, to ``(n,)``.
        """
        full = self._full_shape(values)
        num_mixtures = self.batch_shape.numel()
        rows = values.expand(full).reshape(-1, num_mixtures)
        if rows.numel() == 0:
            return self.means.new_zeros(full)
        width = max(1, _CHUNK_ENTRIES // (self.num_components * len(rows)))
        height = max(1, _CHUNK_ENTRIES // (self.num_components * width))
        part, columns = self._part(), []
        for start in range(0, num_mixtures, width):
            chunk = slice(start, start + width)
            here = _Part(*(tensor[..., chunk] for tensor in part))
            column = torch.cat([function(here, y) for y in rows[:, chunk].split(height)])
            columns.append(column if less is None else column - less(here))
        return torch.cat(columns, -1).reshape(full)

    def _full_shape(self, values: Tensor) -> Size:
        try:
            full = torch.broadcast_shapes(values.shape, self.batch_shape)
        except RuntimeError:
            full = Size()
        if full[len(full) - len(self.batch_shape) :] != self.batch_shape:
            raise ValueError(
                f"values of shape {tuple(values.shape)} do not broadcast with the batch shape "
                f"{tuple(self.batch_shape)}"
            )
        return full

    def __repr__(self) -> str:
        return (
            f"GaussianMixture(num_components={self.num_components}, "
            f"batch_shape={tuple(self.batch_shape)})"
        )


class _Part(NamedTuple):
    """Parameters of n mixtures, each of shape ``(K, 1, n)`` or ``(1, 1, n)``."""

    means: Tensor
    stds: Tensor
    weights: Tensor


def _log_prob(part: _Part, y: Tensor) -> Tensor:
    z = (y.to(part.means.dtype) - part.means) / part.stds
    # The logarithm of zero has no derivative, and 0 * inf would be NaN.
    positive = part.weights > 0.0
    log_weights = torch.where(positive, torch.where(positive, part.weights, 1.0).log(), -math.inf)
    log_terms = log_weights - 0.5 * z.square() - part.stds.log()
    return torch.logsumexp(log_terms, 0) - 0.5 * math.log(2.0 * math.pi)


def _distance(part: _Part, y: Tensor) -> Tensor:
    mean = y.to(part.means.dtype) - part.means
    return (part.weights * expected_distance(mean, part.stds)).sum(0)


def _half_spread(part: _Part) -> Tensor:
    return half_spread(*(tensor.squeeze(1) for tensor in part))


def _cdf(part: _Part, y: Tensor) -> Tensor:
    y = y.to(part.means.dtype)
    return (part.weights * torch.special.ndtr((y - part.means) / part.stds)).sum(0)


def _quantile(part: _Part, p: Tensor) -> Tensor:
    part = _Part(*(tensor.double() for tensor in part))
    # At the smallest of the components' own quantiles no component is above p, so that the mixture is
    # not; at the largest none is below.
    own = part.means + part.stds * torch.special.ndtri(p)
    low, high = own.amin(0), own.amax(0)
    eps = torch.finfo(p.dtype).eps
    tolerance = 2.0 * eps * (high - low)
    x, step = 0.5 * (low + high), high - low
    for _ in range(_MAX_STEPS):
        z = (x - part.means) / part.stds
        excess = (part.weights * torch.special.ndtr(z)).sum(0) - p
        density = (part.weights / part.stds * torch.exp(-0.5 * z.square())).sum(0) / _SQRT_2_PI
        low, high = torch.where(excess < 0.0, x, low), torch.where(excess < 0.0, high, x)
        newton = x - excess / density
        # Newton's step where it stays in the bracket and is at most half of the last one.
        fast = (newton >= low) & (newton <= high) & (2.0 * excess.abs() <= step * density)
        following = torch.where(fast, newton, 0.5 * (low + high))
        # Right to rounding: another step would only follow the noise out of the bracket.
        following = torch.where(excess.abs() <= _ROUNDING * eps * p, x, following)
        x, step = following, (following - x).abs()
        # Not a number where the quantile is infinite.
        if not bool((step > tolerance).any()):
            break
    return x


def _aligned(name: str, tensor: Tensor, means: Tensor) -> Tensor:
    """A parameter with as many axes as the means."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    try:
        fits = torch.broadcast_shapes(tensor.shape, means.shape) == means.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} does not broadcast to the shape of the means, "
            f"{tuple(means.shape)}"
        )
    missing = means.dim() - tensor.dim()
    return tensor.reshape((1,) * missing + tuple(tensor.shape))
