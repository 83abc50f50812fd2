# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Marginals of machines against exact moments, quadrature of the density and draws."""

import math

import pytest
import torch

from pyro_ebm.distributions import RBM, BernoulliRBM, units
from pyro_ebm.infer import exact_log_partition, exact_moments
from pyro_ebm.predictive import GaussianMixture, coverage, marginal_mixture, pit_report
from tests.infer.reference import Z_LIMIT, z_scores
from tests.predictive.machines import gaussian_ising


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_moments_are_exact(batch: tuple[int, ...]) -> None:
    dist = gaussian_ising(batch)
    mixture, moments = marginal_mixture(dist), exact_moments(dist)
    assert mixture.batch_shape == (*batch, 2)
    torch.testing.assert_close(mixture.mean, moments.visible, rtol=1e-10, atol=1e-10)
    variance = moments.covariance.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(mixture.variance, variance, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("hidden", ["ising", "bernoulli"])
def test_density_is_that_of_the_machine(hidden: str) -> None:
    """One visible unit: its marginal is the machine itself."""
    dist = gaussian_ising((2,), num_visible=1)
    if hidden == "bernoulli":
        layer = units.Bernoulli(dist.hidden.natural_bias)
        dist = RBM(dist.visible, layer, dist.weight, hidden_offset=torch.rand(3).double())
    y = torch.linspace(-5, 5, 11, dtype=torch.float64).reshape(11, 1, 1)
    expected = dist.normalize(exact_log_partition(dist)).log_prob(y)
    ours = marginal_mixture(dist).log_prob(y).squeeze(-1)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_correlated_noise_has_its_variance() -> None:
    factor = torch.randn(3, 1, dtype=torch.float64)
    visible = units.LowRankGaussian(torch.zeros(3).double(), torch.ones(3).double(), factor)
    dist = RBM(visible, units.Ising(torch.rand(2).double()), torch.randn(3, 2).double())
    mixture, moments = marginal_mixture(dist), exact_moments(dist)
    torch.testing.assert_close(mixture.mean, moments.visible, rtol=1e-10, atol=1e-10)
    variance = moments.covariance.diagonal()
    torch.testing.assert_close(mixture.variance, variance, rtol=1e-10, atol=1e-10)


def test_given_draws_and_drawn_here() -> None:
    dist = gaussian_ising((3,), num_hidden=4)
    exact = marginal_mixture(dist)
    hidden = dist.transpose().sample((5000,))
    for mixture in (
        marginal_mixture(dist, hidden),
        marginal_mixture(dist, num_samples=5000, max_states=1),
    ):
        assert mixture.num_components == 5000
        z = z_scores(mixture.means.flatten(1), exact.mean.flatten())
        assert z.abs().max() < Z_LIMIT
        y = torch.zeros(3, 2, dtype=torch.float64)
        torch.testing.assert_close(mixture.crps(y), exact.crps(y), rtol=0.1, atol=0.02)
    generator = torch.Generator().manual_seed(5)
    first = marginal_mixture(dist, num_samples=7, max_states=1, generator=generator)
    again = marginal_mixture(dist, num_samples=7, max_states=1, generator=generator.manual_seed(5))
    assert torch.equal(first.means, again.means)


def test_expanded_machine() -> None:
    dist = gaussian_ising(())
    mixture = marginal_mixture(dist.expand((4,)))
    assert mixture.batch_shape == (4, 2)
    torch.testing.assert_close(mixture.mean[3], marginal_mixture(dist).mean)


def test_calibration_finds_a_missing_skew() -> None:
    """A machine with a hidden bias is skewed: a symmetric one with its mean and variance is found out."""
    num_rows = 3000
    mean = torch.randn(num_rows, 1, dtype=torch.float64)
    weight = torch.full((1, 2), 1.5, dtype=torch.float64)
    visible = units.Gaussian(mean, torch.full((1,), 2.0, dtype=torch.float64))
    dist = RBM(visible, units.Ising(torch.full((2,), 0.5).double()), weight, visible_offset=mean)
    y = dist.sample(generator=torch.Generator().manual_seed(2))
    model = marginal_mixture(dist)
    normal = GaussianMixture.normal(model.mean, model.variance.sqrt())
    assert pit_report(model.cdf(y)).p_value > 1e-6
    assert pit_report(normal.cdf(y)).p_value < 1e-6
    for level, share in zip((0.5, 0.9), coverage(model, y, (0.5, 0.9)).coverage, strict=True):
        assert abs(share.value - level) < Z_LIMIT * math.sqrt(level * (1 - level) / num_rows)
    gain = normal.crps(y) - model.crps(y)
    assert gain.mean() > 3.0 * gain.std() / math.sqrt(num_rows)


def test_bad_input() -> None:
    dist = gaussian_ising((3,))
    with pytest.raises(TypeError, match="dist must be an RBM"):
        marginal_mixture(torch.zeros(3))  # type: ignore[arg-type]
    bits = BernoulliRBM(torch.zeros(4, 3), torch.zeros(4), torch.zeros(3))
    with pytest.raises(ValueError, match="Gaussian visible units, got Bernoulli"):
        marginal_mixture(bits)
    for bad in (torch.ones(3), torch.ones(5, 2, 3), torch.ones(5, 3, 2), torch.ones(0, 3, 3)):
        with pytest.raises(ValueError, match=r"hidden must have shape \(draws >= 1"):
            marginal_mixture(dist, bad)
    with pytest.raises(ValueError, match="hidden must be in"):
        marginal_mixture(dist, torch.full((5, 3, 3), 0.5))
    with pytest.raises(ValueError, match="num_samples"):
        marginal_mixture(dist, num_samples=0)
