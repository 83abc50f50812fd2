# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Boltzmann machines as parts of Pyro programs, each against exact numbers."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.enum import config_enumerate
from torch import Tensor

from pyro_ebm.distributions import BernoulliRBM, GaussianBernoulliRBM, UnnormalizedGradientError
from pyro_ebm.infer import ContrastiveDivergence, exact_log_partition

Z_BOUND = 6.0


@pytest.fixture
def prior() -> BernoulliRBM:
    torch.manual_seed(0)
    return BernoulliRBM(torch.randn(3, 2), torch.randn(3), torch.randn(2))


LOADING = torch.tensor([[1.0, -0.5], [0.3, 0.8], [-1.2, 0.4]])


def likelihood(z: Tensor, x: Tensor) -> Tensor:
    return dist.Normal(z @ LOADING, 0.7).to_event(1).log_prob(x)


def posterior_weights(prior: BernoulliRBM, x: Tensor) -> tuple[Tensor, Tensor]:
    """All states of the prior and their posterior probabilities given one observation."""
    states = prior.visible.states(0, 8)
    with torch.no_grad():
        log_w = -prior.free_energy(states) + likelihood(states, x)
    return states, torch.softmax(log_w, 0)


def test_enumerated_prior_gives_the_exact_evidence(prior):
    """A 3-unit RBM as the prior of an enumerated model: evidence and its gradient are exact."""
    x = torch.tensor([[0.5, 1.0], [-1.0, 0.2], [0.1, -0.4]])

    @config_enumerate
    def model() -> None:
        weight = pyro.param("weight", prior.weight)
        rbm = BernoulliRBM(weight, prior.visible.bias, prior.hidden.bias)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", rbm)
            pyro.sample("x", dist.Normal(z @ LOADING, 0.7).to_event(1), obs=x)

    loss = ContrastiveDivergence(elbo=TraceEnum_ELBO(max_plate_nesting=1))
    value = loss.loss_and_grads(model, lambda: None)
    weight = prior.weight.clone().requires_grad_()
    states = prior.visible.states(0, 8)
    rbm = BernoulliRBM(weight, prior.visible.bias, prior.hidden.bias)
    log_p = -rbm.free_energy(states) - (-rbm.free_energy(states)).logsumexp(0)
    evidence = (log_p[:, None] + likelihood(states[:, None], x)).logsumexp(0).sum()
    (expected,) = torch.autograd.grad(-evidence, weight)
    assert value == pytest.approx(-evidence.item(), rel=1e-5)
    got = dict(pyro.get_param_store().named_parameters())["weight"].grad
    assert torch.allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO])
def test_latent_prior_under_a_guide(prior, elbo):
    """Gradient of the prior's parameters, E_q of d log p(z), against its exact value."""
    x = torch.tensor([0.5, 1.0])
    q = torch.tensor([0.2, 0.6, 0.9])
    num_particles = 40_000

    def model() -> None:
        bias = pyro.param("bias", prior.visible.bias)
        z = pyro.sample("z", BernoulliRBM(prior.weight, bias, prior.hidden.bias))
        pyro.sample("x", dist.Normal(z @ LOADING, 0.7).to_event(1), obs=x)

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(q).to_event(1))

    loss = ContrastiveDivergence(
        num_steps=40,
        elbo=elbo(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=0),
    )
    loss.loss_and_grads(model, guide)
    states = prior.visible.states(0, 8)
    p = torch.softmax(-prior.free_energy(states), 0)
    expected = p @ states - q
    error = math.sqrt(0.5 / num_particles)
    got = dict(pyro.get_param_store().named_parameters())["bias"].grad
    assert ((got - expected) / error).abs().max() < Z_BOUND


def test_predictive_draws_from_the_machine(prior):
    def model() -> None:
        with pyro.plate("rows", 4):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ LOADING, 0.7).to_event(1))

    draws = Predictive(model, num_samples=5000, parallel=True)()
    assert draws["z"].shape == (5000, 4, 3) and draws["x"].shape == (5000, 4, 2)
    states = prior.visible.states(0, 8)
    mean = torch.softmax(-prior.free_energy(states), 0) @ states
    error = (mean * (1 - mean) / 20_000).sqrt()
    assert ((draws["z"].mean((0, 1)) - mean) / error).abs().max() < Z_BOUND


def test_condition_and_replay(prior):
    z = torch.tensor([1.0, 0.0, 1.0])

    def model() -> Tensor:
        return pyro.sample("z", prior)

    trace = poutine.trace(poutine.condition(model, data={"z": z})).get_trace()
    assert torch.allclose(trace.log_prob_sum(), prior.log_prob(z))
    drawn = poutine.trace(model).get_trace()
    again = poutine.trace(poutine.replay(model, trace=drawn)).get_trace()
    assert torch.equal(again.nodes["z"]["value"], drawn.nodes["z"]["value"])
    assert torch.equal(poutine.block(poutine.do(model, data={"z": z}))(), z)


@pytest.mark.parametrize("subsample_size", [None, 5])
def test_plates_scale_the_log_probability(prior, subsample_size):
    data = prior.sample((20,))

    def model() -> None:
        with pyro.plate("rows", 20, subsample_size=subsample_size) as index:
            pyro.sample("z", prior, obs=data[index])

    trace = poutine.trace(model).get_trace()
    rows = trace.nodes["rows"]["value"]
    expected = prior.log_prob(data[rows]).sum() * (20 / len(rows))
    assert torch.allclose(trace.log_prob_sum(), expected)


def exact_gaussian_posterior(rbm: GaussianBernoulliRBM, x: Tensor, noise: float) -> Tensor:
    """E[y | x] for y ~ RBM, x ~ N(y, noise^2): a mixture of Gaussians over the hidden states."""
    h = rbm.hidden.states(0, 2**rbm.hidden.size)
    precision = rbm.precision
    prior_mean = rbm.loc + h @ rbm.weight.T / precision
    # Weight of component h in the prior: integrate y out of exp(-E(y, h)).
    field = h @ rbm.weight.T
    log_w = h @ rbm.hidden_bias + (field * rbm.loc + field.square() / (2 * precision)).sum(-1)
    spread = (1 / precision + noise**2).sqrt()
    log_w = log_w + dist.Normal(prior_mean, spread).log_prob(x).sum(-1)
    total = precision + 1 / noise**2
    mean = (precision * prior_mean + x / noise**2) / total
    return torch.softmax(log_w, 0) @ mean


def test_gaussian_machine_as_a_latent_under_nuts():
    rbm = GaussianBernoulliRBM(
        torch.tensor([[1.0, -0.6], [0.5, 0.9]]),
        torch.tensor([0.2, -0.3]),
        torch.tensor([1.0, 2.0]),
        torch.tensor([-0.2, 0.3]),
    )
    x = torch.tensor([1.0, -0.4])

    def model() -> None:
        y = pyro.sample("y", rbm)
        pyro.sample("x", dist.Normal(y, 0.8).to_event(1), obs=x)

    pyro.set_rng_seed(1)
    mcmc = MCMC(NUTS(model), num_samples=1500, warmup_steps=200, disable_progbar=True)
    mcmc.run()
    y = mcmc.get_samples()["y"]
    size = mcmc.diagnostics()["y"]["n_eff"]
    error = y.std(0) / size.sqrt()
    exact = exact_gaussian_posterior(rbm, x, 0.8)
    assert ((y.mean(0) - exact) / error).abs().max() < Z_BOUND
    # The prior's mean is far away, so that agreement is not by accident.
    assert (exact - x).abs().max() > 5 * error.max()


def test_small_machine_is_summed_out_under_nuts(prior):
    """HMC over a continuous site sums the 3-unit prior out; compared with quadrature."""
    x = torch.tensor([0.9, 0.6])

    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        z = pyro.sample("z", prior, infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(z @ LOADING, scale.unsqueeze(-1)).to_event(1), obs=x)

    pyro.set_rng_seed(2)
    mcmc = MCMC(
        NUTS(model, max_plate_nesting=0), num_samples=1000, warmup_steps=200, disable_progbar=True
    )
    mcmc.run()
    draws = mcmc.get_samples()["scale"].log()
    grid = torch.linspace(-2.5, 2.5, 2001)
    states = prior.visible.states(0, 8)
    with torch.no_grad():
        log_p = -prior.free_energy(states)[:, None] + dist.Normal(
            (states @ LOADING)[:, None], grid.exp()[:, None]
        ).to_event(1).log_prob(x)
    log_w = log_p.logsumexp(0) + dist.Normal(0.0, 0.5).log_prob(grid)
    exact = (torch.softmax(log_w, 0) * grid).sum()
    size = mcmc.diagnostics()["scale"]["n_eff"]
    assert abs(draws.mean() - exact) / (draws.std() / size.sqrt()) < Z_BOUND


def test_hmc_over_the_parameters_of_an_unnormalised_site_is_refused(prior):
    data = prior.sample((10,))

    def model() -> None:
        bias = pyro.sample("bias", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", 10):
            pyro.sample("v", BernoulliRBM(prior.weight, bias, prior.hidden.bias), obs=data)

    mcmc = MCMC(NUTS(model), num_samples=5, warmup_steps=5, disable_progbar=True)
    with pytest.raises(UnnormalizedGradientError, match="exact_log_partition"):
        mcmc.run()


def test_hmc_over_the_parameters_with_an_exact_log_z_works(prior):
    """One bias of a normalised machine: posterior mean against quadrature."""
    data = prior.sample((10,))

    def normalized(bias: Tensor) -> BernoulliRBM:
        visible_bias = prior.visible.bias + bias.unsqueeze(-1) * torch.tensor([1.0, 0.0, 0.0])
        rbm = BernoulliRBM(prior.weight, visible_bias, prior.hidden.bias)
        return rbm.normalize(exact_log_partition(rbm))

    def model() -> None:
        bias = pyro.sample("bias", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", 10):
            pyro.sample("v", normalized(bias), obs=data)

    pyro.set_rng_seed(3)
    mcmc = MCMC(NUTS(model), num_samples=600, warmup_steps=150, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()["bias"]
    grid = torch.linspace(-8.0, 8.0, 801)
    with torch.no_grad():
        log_w = normalized(grid[:, None]).log_prob(data).sum(-1)
    log_w = log_w + dist.Normal(0.0, 2.0).log_prob(grid)
    exact = (torch.softmax(log_w, 0) * grid).sum()
    size = mcmc.diagnostics()["bias"]["n_eff"]
    assert abs(draws.mean() - exact) / (draws.std() / size.sqrt()) < Z_BOUND


def test_svi_with_a_fixed_prior_learns_the_rest(prior):
    """A fixed machine needs no chains; the likelihood's parameter is learnt with it enumerated."""
    torch.manual_seed(5)
    z = prior.sample((400,))
    x = z @ LOADING + 0.3 * torch.randn(400, 2) + 2.0

    @config_enumerate
    def model() -> None:
        shift = pyro.param("shift", torch.zeros(()))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ LOADING + shift, 0.3).to_event(1), obs=x)

    svi = SVI(
        model,
        lambda: None,
        pyro.optim.Adam({"lr": 0.1}),
        loss=ContrastiveDivergence(elbo=TraceEnum_ELBO(max_plate_nesting=1)),
    )
    for _ in range(100):
        svi.step()
    # 800 residuals of deviation 0.3: the shift is known to about 0.011.
    assert abs(pyro.param("shift").item() - 2.0) < 0.08
