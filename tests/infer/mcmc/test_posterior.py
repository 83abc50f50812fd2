# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Block Gibbs over the one latent machine of a Pyro model, against enumeration."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, Predictive
from torch import Tensor

from pyro_ebm.distributions import RBM, GaussianBernoulliRBM, units
from pyro_ebm.infer import BlockGibbs, VectorizedMCMC, exact_log_partition
from pyro_ebm.infer.mcmc.posterior import rbm_posterior

Z_BOUND = 6.0
VISIBLE = {
    "bernoulli": lambda: units.Bernoulli(torch.randn(4)),
    "ising": lambda: units.Ising(torch.randn(4)),
    "categorical": lambda: units.Categorical(torch.randn(2, 3)),
    "multinomial": lambda: units.Multinomial(torch.randn(3), 4),
}


def make_prior(family: str) -> RBM:
    torch.manual_seed(0)
    visible = VISIBLE[family]()
    return RBM(
        visible,
        units.Bernoulli(torch.randn(3)),
        torch.randn(visible.size, 3),
        visible_offset=torch.rand(visible.size),
        hidden_offset=torch.rand(3),
    )


def noisy_log_prob(v: Tensor, observed: Tensor) -> Tensor:
    """A likelihood whose logarithm is linear in the states, though its mean is not."""
    return (observed * v * 0.9).sum(-1) - 0.3 * v.sum(-1)


def make_model(prior: RBM, observed: Tensor):
    def model() -> None:
        with pyro.plate("images", len(observed)):
            v = pyro.sample("clean", prior)
            pyro.factor("noise", noisy_log_prob(v, observed))

    return model


@pytest.mark.parametrize("family", VISIBLE)
def test_posterior_is_the_exact_one(family):
    prior = make_prior(family)
    observed = torch.randn(2, prior.visible.size)
    site, posterior = rbm_posterior(make_model(prior, observed))
    assert site == "clean" and posterior.batch_shape == (2,)
    states = prior.visible.states(0, prior.visible.num_states).unsqueeze(1)
    expected = torch.log_softmax(prior.log_prob(states) + noisy_log_prob(states, observed), 0)
    got = posterior.normalize(exact_log_partition(posterior)).log_prob(states)
    assert torch.allclose(got, expected, atol=1e-4)


def test_tilt_keeps_constants():
    prior = make_prior("bernoulli").to(dtype=torch.float64)
    field = torch.randn(5, 4, dtype=torch.float64)
    v = prior.sample((5,))
    expected = prior.log_prob(v) + (field * v).sum(-1)
    assert torch.allclose(prior.tilt(field).log_prob(v), expected, atol=1e-12)
    gaussian = GaussianBernoulliRBM(
        torch.randn(4, 2), torch.randn(4), torch.ones(4), torch.zeros(2)
    )
    v, field = torch.randn(5, 4), field.float()
    tilted = gaussian.tilt(field)
    assert torch.allclose(tilted.log_prob(v), gaussian.log_prob(v) + (field * v).sum(-1), atol=1e-4)
    with pytest.raises(ValueError, match="field must have shape"):
        prior.tilt(torch.zeros(3))


def flipped_pixels(prior: RBM, observed: Tensor, rate: float):
    """Bits seen through a channel that flips some: nonlinear in v as a formula, linear on bits."""

    def model() -> None:
        with pyro.plate("images", len(observed)):
            v = pyro.sample("clean", prior)
            probs = rate + (1.0 - 2.0 * rate) * v
            pyro.sample("seen", dist.Bernoulli(probs).to_event(1), obs=observed)

    return model


@pytest.mark.parametrize("driver", ["mcmc", "vectorized"])
def test_chains_of_a_model_have_the_exact_means(driver):
    prior = make_prior("bernoulli")
    observed = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]])
    model = flipped_pixels(prior, observed, 0.15)
    pyro.set_rng_seed(1)
    if driver == "mcmc":
        mcmc = MCMC(BlockGibbs(model, num_steps=3), 3000, 100, disable_progbar=True)
        mcmc.run()
        draws, size = mcmc.get_samples()["clean"], mcmc.diagnostics()["clean"]["n_eff"]
    else:
        run = VectorizedMCMC(BlockGibbs(model), 30, 60, num_chains=1000, disable_progbar=True)
        run.run()
        draws, size = run.get_samples()["clean"], run.diagnostics()["clean"]["n_eff"]
    states = prior.visible.states(0, 16).unsqueeze(1)
    channel = dist.Bernoulli(0.15 + 0.7 * states).to_event(1).log_prob(observed)
    weights = torch.softmax(prior.log_prob(states) + channel, 0)
    exact = (weights.unsqueeze(-1) * states).sum(0)
    assert draws.shape[1:] == (2, 4)
    error = (exact * (1 - exact) / size).sqrt()
    assert ((draws.mean(0) - exact) / error).abs().max() < Z_BOUND
    # The data move the posterior: against the prior's mean the same check fails.
    prior_mean = prior.sample((5000,)).mean(0)
    assert ((draws.mean(0) - prior_mean) / error).abs().max() > Z_BOUND


def test_start_of_a_model_is_checked_when_its_target_is_known():
    prior = make_prior("bernoulli")
    model = flipped_pixels(prior, torch.ones(2, 4), 0.1)
    good = {"clean": torch.ones(2, 4)}
    mcmc = MCMC(BlockGibbs(model), 5, 0, initial_params=good, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["clean"].shape == (5, 2, 4)
    bad = MCMC(BlockGibbs(model), 5, 0, initial_params={"v": torch.ones(4)}, disable_progbar=True)
    with pytest.raises(ValueError, match="initial_params must hold 'clean'"):
        bad.run()
    with pytest.raises(RuntimeError, match="after setup"):
        _ = BlockGibbs(model).target


def test_predictive_takes_the_draws():
    prior = make_prior("bernoulli")
    model = flipped_pixels(prior, torch.ones(2, 4), 0.1)
    mcmc = MCMC(BlockGibbs(model), 20, 5, disable_progbar=True)
    mcmc.run()
    unseen = pyro.poutine.uncondition(model)
    predicted = Predictive(unseen, posterior_samples=mcmc.get_samples())()
    assert predicted["seen"].shape == (20, 2, 4)


PRIOR = make_prior("bernoulli")


def two_latents() -> None:
    pyro.sample("v", PRIOR)
    pyro.sample("scale", dist.LogNormal(0.0, 1.0))


def no_machine() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))


def continuous() -> None:
    pyro.sample(
        "y", GaussianBernoulliRBM(torch.ones(2, 2), torch.zeros(2), torch.ones(2), torch.zeros(2))
    )


def quadratic() -> None:
    v = pyro.sample("v", PRIOR)
    pyro.factor("pair", 2.0 * v[..., 0] * v[..., 1])


def mixing_rows() -> None:
    with pyro.plate("rows", 3):
        v = pyro.sample("v", PRIOR)
    pyro.factor("sum", v.sum())


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (two_latents, r"the latent sites are \['v', 'scale'\]"),
        (no_machine, r"the latent sites are \['x'\]"),
        (continuous, "use HMC or NUTS"),
        (quadratic, "not linear in the states"),
        (mixing_rows, "mixes rows"),
    ],
)
def test_other_models_are_refused(model, match):
    with pytest.raises(ValueError, match=match):
        BlockGibbs(model).setup(0)
