# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Gaussian mixtures against closed forms of one normal, quadrature and draws."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pyro_ebm.predictive import GaussianMixture, crps_from_samples
from pyro_ebm.predictive.spread import _by_integral, _by_pairs, half_spread
from tests.infer.reference import Z_LIMIT, z_score


def random_mixture(num: int = 4, batch: tuple[int, ...] = (3, 2)) -> GaussianMixture:
    means = torch.randn(num, *batch, dtype=torch.float64) * 2.0
    stds = 0.3 + torch.rand(num, *batch, dtype=torch.float64)
    return GaussianMixture(means, stds, torch.rand_like(means).softmax(0))


def by_torch(mixture: GaussianMixture) -> MixtureSameFamily:
    means, stds, weights = (
        t.expand(mixture.means.shape).movedim(0, -1)
        for t in (mixture.means, mixture.stds, mixture.weights)
    )
    return MixtureSameFamily(Categorical(probs=weights), Normal(means, stds))


def integrate(function: object, low: float, high: float, panels: int = 200) -> float:
    """Gauss-Legendre quadrature in panels."""
    nodes, weights = np.polynomial.legendre.leggauss(10)
    edges = np.linspace(low, high, panels + 1)
    half = (edges[1:] - edges[:-1]) / 2
    x = (edges[:-1] + half)[:, None] + half[:, None] * nodes
    return float((function(torch.as_tensor(x)).numpy() * half[:, None] * weights).sum())  # type: ignore[operator]


def crps_by_quadrature(mixture: GaussianMixture, y: float) -> float:
    """The definition, for a mixture without a batch shape."""
    below = integrate(lambda t: mixture.cdf(t).square(), -30.0, y)
    return below + integrate(lambda t: (1.0 - mixture.cdf(t)).square(), y, 30.0)


def test_one_normal() -> None:
    mean, std = torch.tensor([0.5, -2.0]).double(), torch.tensor([0.7, 3.0]).double()
    normal = GaussianMixture.normal(mean, std)
    y = torch.linspace(-4, 4, 9, dtype=torch.float64).unsqueeze(-1)
    reference = Normal(mean, std)
    torch.testing.assert_close(normal.log_prob(y), reference.log_prob(y), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(normal.cdf(y), reference.cdf(y), rtol=1e-12, atol=1e-12)
    p = torch.tensor([0.01, 0.5, 0.999]).double().unsqueeze(-1)
    torch.testing.assert_close(normal.quantile(p), reference.icdf(p), rtol=1e-11, atol=1e-11)
    z = (y - mean) / std
    density = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)
    closed = std * (z * (2 * reference.cdf(y) - 1) + 2 * density - 1 / math.sqrt(math.pi))
    torch.testing.assert_close(normal.crps(y), closed, rtol=1e-12, atol=1e-12)
    assert torch.equal(normal.mean, mean)
    torch.testing.assert_close(normal.variance, std.square(), rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("entries", [1, 7, 2**20])
def test_against_torch(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_ebm.predictive.mixture._CHUNK_ENTRIES", entries)
    mixture = random_mixture()
    reference = by_torch(mixture)
    for y in (torch.randn(5, 3, 2).double(), torch.randn(2).double(), torch.tensor(0.3)):
        y64 = y.double()
        torch.testing.assert_close(mixture.log_prob(y), reference.log_prob(y64), rtol=1e-12, atol=0)
        torch.testing.assert_close(mixture.cdf(y), reference.cdf(y64), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(mixture.mean, reference.mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(mixture.variance, reference.variance, rtol=1e-12, atol=1e-14)


def test_shared_parameters_broadcast() -> None:
    """One std or weight for all components or entries is the same as copies of it."""
    means = torch.randn(5, 3, 2, dtype=torch.float64)
    stds, weights = torch.rand(2).double() + 0.5, torch.rand(5, 3, 1).double().softmax(0)
    short = GaussianMixture(means, stds, weights)
    full = GaussianMixture(means, stds.expand(5, 3, 2).clone(), weights.expand(5, 3, 2).clone())
    y = torch.randn(3, 2, dtype=torch.float64)
    for name in ("log_prob", "cdf", "crps"):
        torch.testing.assert_close(getattr(short, name)(y), getattr(full, name)(y))
    equal = GaussianMixture(means, stds)
    torch.testing.assert_close(equal.mean, means.mean(0))
    torch.testing.assert_close(equal[1].crps(y[1]), equal.crps(y)[1])
    torch.testing.assert_close(short[:, 0].cdf(y[:, 0]), short.cdf(y)[:, 0])


@pytest.mark.parametrize("entries", [1, 9, 2**20])
def test_crps_is_the_integral(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_ebm.predictive.spread._CHUNK_ENTRIES", entries)
    mixture = random_mixture(5, (3,))
    y = torch.tensor([-3.0, 0.2, 8.0], dtype=torch.float64)
    expected = [crps_by_quadrature(mixture[i], y[i].item()) for i in range(3)]
    assert mixture.crps(y).tolist() == pytest.approx(expected, abs=1e-10)


def test_both_ways_to_the_spread() -> None:
    means = torch.randn(300, 4, dtype=torch.float64) * torch.tensor([0.0, 1.0, 3.0, 5.0])
    stds = (0.5 + torch.rand(300, 4)).double()
    weights = torch.rand(300, 4).double().softmax(0)
    low, high = (means - 8.5 * stds).amin(0), (means + 8.5 * stds).amax(0)
    points = int(((high - low) / (stds.amin(0) / 2.0)).max()) + 2
    assert points < 300
    pairs = _by_pairs(means, stds, weights)
    integral = _by_integral(means, stds, weights, low, high, points)
    torch.testing.assert_close(integral, pairs, rtol=1e-12, atol=1e-12)
    assert torch.equal(half_spread(means, stds, weights), integral)


def test_quantile_inverts() -> None:
    mixture = random_mixture(6)
    p = torch.tensor([1e-6, 0.1, 0.5, 0.9, 1 - 1e-6]).double().reshape(5, 1, 1)
    torch.testing.assert_close(
        mixture.cdf(mixture.quantile(p)), p.expand(5, 3, 2), rtol=1e-9, atol=0.0
    )
    assert (mixture.quantile(0.0) == -math.inf).all() and (mixture.quantile(1.0) == math.inf).all()
    lower, upper = mixture.interval(0.8)
    inside = mixture.cdf(upper) - mixture.cdf(lower)
    torch.testing.assert_close(inside, torch.full_like(inside, 0.8), rtol=1e-12, atol=0.0)
    single = GaussianMixture(torch.randn(9, 4), torch.tensor(0.2))
    middle = single.cdf(single.quantile(0.25))
    torch.testing.assert_close(middle, torch.full((4,), 0.25), rtol=1e-5, atol=0.0)


def test_quantile_between_far_modes() -> None:
    """Where the density is zero to rounding, Newton's step goes nowhere."""
    far = GaussianMixture(
        torch.tensor([[-40.0], [0.0], [1e3]]).double(), torch.tensor(0.5).double()
    )
    p = torch.linspace(0.001, 0.999, 101).double().unsqueeze(-1)
    y = far.quantile(p)
    torch.testing.assert_close(far.cdf(y), p, rtol=1e-9, atol=0.0)
    assert (y.diff(dim=0) > 0.0).all()
    # A quantile at the step itself may be anywhere in the gap.
    edge = far.quantile(1.0 / 3.0).item()
    assert -37.0 < edge < -3.0
    one = GaussianMixture.normal(torch.tensor([1e8]).double(), torch.tensor([1e-3]).double())
    assert one.quantile(0.975).item() == pytest.approx(1e8 + 1.959963984540e-3, abs=1e-7)


def test_draws() -> None:
    mixture = random_mixture(3, (2,))
    generator = torch.Generator().manual_seed(1)
    draws = mixture.sample((20_000,), generator=generator)
    assert draws.shape == (20_000, 2)
    for i in range(2):
        assert abs(z_score(draws[:, i], mixture.mean[i].item())) < Z_LIMIT
        square = (draws[:, i] - mixture.mean[i]).square()
        assert abs(z_score(square, mixture.variance[i].item())) < Z_LIMIT
        below = (draws[:, i] < mixture.mean[i]).double()
        assert abs(z_score(below, mixture.cdf(mixture.mean)[i].item())) < Z_LIMIT
    again = mixture.sample((20_000,), generator=generator.manual_seed(1))
    assert torch.equal(draws, again)
    assert mixture.sample().shape == (2,) and mixture.sample(3).shape == (3, 2)


def test_crps_of_draws_estimates_it() -> None:
    mixture = random_mixture(3, ())
    y = torch.tensor(0.7, dtype=torch.float64)
    draws = mixture.sample((6, 20_000), generator=torch.Generator().manual_seed(0))
    scores = crps_from_samples(draws, y.expand(20_000))
    assert abs(z_score(scores, mixture.crps(y).item())) < Z_LIMIT
    # The score of the empirical distribution is larger by E|X - X'| / 2 S.
    plain = crps_from_samples(draws, y.expand(20_000), fair=False)
    spread = half_spread(
        mixture.means.unsqueeze(-1), mixture.stds.unsqueeze(-1), mixture.weights.unsqueeze(-1)
    )
    assert abs(z_score(plain, mixture.crps(y).item() + spread.item() / 6)) < Z_LIMIT


def test_weights_of_zero() -> None:
    means, stds = torch.tensor([-1.0, 0.5, 4.0]).double(), torch.ones(3).double()
    weights = torch.tensor([0.25, 0.75, 0.0], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0.3, 4.0, 90.0], dtype=torch.float64)
    mixture = GaussianMixture(means, stds, weights)
    two = GaussianMixture(means[:2], stds[:2], weights[:2])
    torch.testing.assert_close(mixture.log_prob(y), two.log_prob(y))
    (got,) = torch.autograd.grad(mixture.log_prob(y).sum(), weights)
    (expected,) = torch.autograd.grad(two.log_prob(y).sum(), weights)
    torch.testing.assert_close(got, expected)


def test_float32_quantile_is_the_rounded_one() -> None:
    mixture = random_mixture(5, (50,))
    single = GaussianMixture(mixture.means.float(), mixture.stds.float(), mixture.weights.float())
    same = GaussianMixture(single.means.double(), single.stds.double(), single.weights.double())
    for p in (1e-9, 0.3, 1.0 - 1e-9):
        got = single.quantile(torch.tensor(p, dtype=torch.float64))
        assert got.dtype == torch.float32 and torch.equal(got, same.quantile(p).float())


def test_spread_is_computed_once_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture, y, calls = random_mixture(4, (2,)), torch.randn(9, 2).double(), []
    expected = mixture.crps(y)

    def spy(*arguments: Tensor) -> Tensor:
        calls.append(len(arguments))
        return half_spread(*arguments)

    monkeypatch.setattr("pyro_ebm.predictive.mixture.half_spread", spy)
    monkeypatch.setattr("pyro_ebm.predictive.mixture._CHUNK_ENTRIES", 8)
    torch.testing.assert_close(mixture.crps(y), expected)
    assert len(calls) == 2


def test_gradients() -> None:
    def scores(means: Tensor, stds: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        mixture = GaussianMixture(means, stds, logits.softmax(0))
        return torch.stack([mixture.log_prob(y), mixture.cdf(y), mixture.crps(y)])

    tensors = [torch.rand(3, 2).double() + 0.5 for _ in range(3)] + [torch.randn(2).double()]
    assert torch.autograd.gradcheck(scores, [t.requires_grad_() for t in tensors])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.tensor(1.0), torch.tensor(1.0)), "means must be"),
        ((torch.ones(2, 3).long(), torch.tensor(1.0)), "means must be"),
        ((torch.full((2, 3), math.nan), torch.tensor(1.0)), "means must be finite"),
        ((torch.ones(2, 3), torch.tensor(0.0)), "stds must be positive"),
        ((torch.ones(2, 3), torch.tensor(math.nan)), "stds must be positive"),
        ((torch.ones(2, 3), torch.ones(4)), "stds of shape"),
        ((torch.ones(2, 3), torch.ones(3), torch.ones(2, 3)), "sum to one"),
        ((torch.ones(2, 3), torch.ones(3), torch.tensor([[2.0], [-1.0]])), "not be negative"),
    ],
)
def test_bad_input(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


def test_bad_values() -> None:
    mixture = random_mixture()
    with pytest.raises(ValueError, match="do not broadcast with the batch shape"):
        mixture.cdf(torch.ones(4))
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\]"):
        mixture.quantile(1.5)
    with pytest.raises(TypeError, match="stds must be a tensor"):
        GaussianMixture(torch.ones(2, 3), 1.0)  # type: ignore[arg-type]
    assert mixture.cdf(torch.empty(0, 3, 2)).shape == (0, 3, 2)
