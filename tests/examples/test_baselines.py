# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The models that the examples compare with, against closed forms and quadrature."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, MultivariateNormal, Normal
from torch.nn.functional import one_hot

from examples.baselines import (
    ClassModels,
    ConditionalVAE,
    FactorAnalysis,
    MixtureDensityNetwork,
    class_posterior,
    fit_cvae,
    fit_factor_analysis,
    fit_independent,
    fit_mdn,
    fit_ppca,
    log_evidence,
)
from examples.baselines.cvae import nbm_parameters
from pyro_ebm import nn


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def normal_rows(count, size, rank=3):
    """Rows with correlated entries, in float64."""
    mix = torch.randn(rank, size, dtype=torch.float64)
    noise = torch.rand(size, dtype=torch.float64) + 0.3
    rows = torch.randn(count, rank, dtype=torch.float64) @ mix
    return rows + noise * torch.randn(count, size, dtype=torch.float64) + 1.0


# --- independent units --------------------------------------------------------------------------


def test_independent_bits_and_spins():
    bits = torch.bernoulli(torch.full((50, 6), 0.3, dtype=torch.float64))
    model = fit_independent(bits, "bernoulli")
    rate = (bits.sum(0) + 1.0) / 52.0
    close(model.log_prob(bits), Bernoulli(rate).log_prob(bits).sum(-1))
    spins = fit_independent(2.0 * bits - 1.0, "ising")
    close(spins.log_prob(2.0 * bits - 1.0), model.log_prob(bits))


def test_independent_normals_have_bounded_precision():
    y = torch.randn(50, 3, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 1e3])
    model = fit_independent(y, "gaussian")
    std = torch.tensor([1e3, y[:, 1].var(correction=0).reciprocal(), 1e-3]).double().rsqrt()
    close(model.log_prob(y), Normal(y.mean(0), std).log_prob(y).sum(-1), 1e-6)
    assert model.num_parameters == 6


def test_unknown_family():
    with pytest.raises(ValueError, match="family must be"):
        fit_independent(torch.zeros(2, 2), "poisson")
    with pytest.raises(ValueError, match="family must be"):
        ConditionalVAE(2, 3, 4, "poisson")


def test_bayes_rule():
    y, labels = normal_rows(60, 2), torch.arange(60) % 3
    models = ClassModels.fit(lambda rows: fit_independent(rows, "gaussian"), y, labels)
    log_prob, prior = models.log_prob(y), torch.tensor([0.5, 0.3, 0.2]).double()
    joint = log_prob.exp() * prior
    close(log_evidence(log_prob, prior.log()).exp(), joint.sum(-1))
    close(class_posterior(log_prob, prior.log()), joint / joint.sum(-1, keepdim=True))
    assert models.num_parameters == 12


# --- factor analysis ----------------------------------------------------------------------------


def test_density_of_factor_analysis():
    loadings, noise = torch.randn(5, 2).double(), torch.rand(5).double() + 0.1
    model = FactorAnalysis(torch.randn(5).double(), loadings, noise)
    y = torch.randn(7, 5, dtype=torch.float64)
    law = MultivariateNormal(model.loc, loadings @ loadings.T + noise.diag())
    close(model.log_prob(y), law.log_prob(y))
    draws = model.sample(200_000)
    close(torch.cov(draws.T), law.covariance_matrix, 0.05)


@pytest.mark.parametrize("fit", [fit_ppca, fit_factor_analysis])
def test_with_all_factors_it_is_the_normal_law_of_the_rows(fit):
    y = normal_rows(300, 5)
    law = MultivariateNormal(y.mean(0), torch.cov(y.T, correction=0))
    close(fit(y, 4).log_prob(y), law.log_prob(y), 1e-7)


def test_expectation_maximisation_rises_to_a_stationary_point():
    y = normal_rows(2000, 6, rank=2)
    values = [fit_factor_analysis(y, 2, steps, 0.0).log_prob(y).mean() for steps in (0, 1, 2, 50)]
    assert all(b > a for a, b in itertools.pairwise(values))
    model = fit_factor_analysis(y, 2, 3000, 0.0)
    leaves = [p.clone().requires_grad_() for p in (model.loc, model.loadings, model.noise)]
    grads = torch.autograd.grad(FactorAnalysis(*leaves).log_prob(y).mean(), leaves)
    assert max(g.abs().max().item() for g in grads) < 1e-6


def test_a_constant_unit_has_the_least_noise():
    y = normal_rows(200, 5)
    y[:, 2] = 0.5
    model = fit_factor_analysis(y, 2)
    assert model.noise[2].item() == pytest.approx(1e-3)
    assert bool(torch.isfinite(model.log_prob(y)).all())


def test_impossible_number_of_factors():
    with pytest.raises(ValueError, match="num_factors"):
        fit_ppca(torch.randn(9, 3), 3)


# --- conditional VAE ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bernoulli", "gaussian"])
def test_the_autoencoder_is_as_large_as_the_machine(family):
    nbm = nn.NeuralBoltzmannMachine(10, 784, 16, family)
    expected = sum(p.numel() for p in nbm.parameters())
    assert nbm_parameters(10, 784, 16, family) == expected
    got = ConditionalVAE(10, 784, 16, family).num_parameters
    assert abs(got / expected - 1.0) < 0.01


@pytest.mark.parametrize("family", ["bernoulli", "ising", "gaussian"])
def test_the_bound_meets_quadrature(family):
    vae = ConditionalVAE(2, 4, 8, family, num_latent=1).double()
    y = torch.bernoulli(torch.full((3, 4), 0.5, dtype=torch.float64))
    if family == "ising":
        y = 2.0 * y - 1.0
    x = one_hot(torch.tensor([0, 1, 1]), 2).double()
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    z = torch.tensor(nodes).reshape(-1, 1, 1).expand(-1, 3, 1)
    log_weight = torch.tensor(weights / math.sqrt(2.0 * math.pi)).log().unsqueeze(-1)
    exact = torch.logsumexp(vae.likelihood(y, z, x) + log_weight, 0)
    draws = vae.log_weights(y, x, 100_000).sub(exact).exp()
    error = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - 1.0).abs() < 6.0 * error).all())
    close(vae.log_prob_bound(y, x, 4000), exact.detach(), 0.1)
    by_class = vae.class_log_prob_bound(y, 4000)
    close(by_class.gather(1, x.argmax(-1, keepdim=True)).squeeze(-1), exact.detach(), 0.1)


def test_the_autoencoder_learns_what_independent_units_cannot():
    """Six equal bits whose value is a coin flip: log 2 nats, and not 6 log 2."""
    bit = torch.bernoulli(torch.full((400, 1), 0.5))
    y, x = bit.expand(-1, 6).contiguous(), torch.ones(400, 1)
    vae = ConditionalVAE(1, 6, 16, num_latent=2)
    generator = torch.Generator().manual_seed(0)
    fit_cvae(vae, y, x, num_epochs=60, learning_rate=1e-2, generator=generator)
    assert vae.log_prob_bound(y, x, 256).mean() > -1.1
    assert fit_independent(y, "bernoulli").log_prob(y).mean() < -4.0
    draws = vae.sample(torch.ones(200, 1))
    assert draws.std(-1).mean() < 0.1


def test_every_family_trains_on_fresh_states():
    for family, options in (("ising", {"binarize": True}), ("gaussian", {"noise_std": 0.1})):
        vae = ConditionalVAE(2, 5, 4, family, num_latent=2)
        x = one_hot(torch.arange(20) % 2, 2).float()
        fit_cvae(vae, torch.rand(20, 5), x, num_epochs=1, batch_size=10, **options)
        assert vae.sample(x).shape == (20, 5)


# --- mixture density network ----------------------------------------------------------------------


def test_density_and_marginals_of_the_mixture():
    model = MixtureDensityNetwork(2, 3, 4).double()
    x, y = torch.randn(5, 2).double(), torch.randn(5, 3).double()
    log_weight, loc, std = model(x)
    component = Normal(loc, std).log_prob(y.unsqueeze(1)).sum(-1)
    close(model.log_prob(y, x).exp(), (log_weight + component).exp().sum(-1))
    cdf = (log_weight.exp().unsqueeze(-1) * Normal(loc, std).cdf(y.unsqueeze(1))).sum(1)
    marginals = model.marginals(x)
    assert marginals.batch_shape == (5, 3)
    close(marginals.cdf(y), cdf.detach())
    rows = model.sample(x.repeat(20_000, 1)).unflatten(0, (-1, 5))
    error = marginals.variance.sqrt() / len(rows) ** 0.5
    assert bool(((rows.mean(0) - marginals.mean).abs() < 6.0 * error).all())


def test_the_mixture_learns_two_modes():
    x = torch.rand(500, 1)
    sign = 2.0 * torch.randint(2, (500, 1)) - 1.0
    y = sign * (1.0 + x) + 0.1 * torch.randn(500, 1)
    generator = torch.Generator().manual_seed(0)
    values = [
        fit_mdn(MixtureDensityNetwork(1, 1, k), y, x, num_steps=300, generator=generator)
        .log_prob(y, x)
        .mean()
        .item()
        for k in (1, 2)
    ]
    # The truth has log 2 + (entropy of N(0, 0.1)) = 0.69 - 0.88 nats.
    assert values[1] == pytest.approx(0.19, abs=0.15)
    assert values[0] < -1.5
