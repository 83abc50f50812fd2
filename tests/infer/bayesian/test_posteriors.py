# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Warm-up, adaptation and chains as users run them, against quadrature and NUTS with exact log Z."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_ebm.distributions import BernoulliRBM
from pyro_ebm.infer import (
    BlockGibbs,
    Exchange,
    Gibbs,
    PseudoMarginal,
    VectorizedMCMC,
    exact_log_partition,
)
from pyro_ebm.ops.chains import effective_sample_size
from tests.infer.bayesian.small_programs import chain_z, machine, program, quadrature
from tests.infer.reference import Z_LIMIT

NUM_CHAINS = 100


@pytest.fixture
def data() -> Tensor:
    return machine(torch.tensor(1.2).double(), torch.tensor(0.3).double()).sample((12,))


@pytest.mark.parametrize(
    "kernel", [Exchange(program), PseudoMarginal(program, num_bridges=2)], ids=["exchange", "pm"]
)
def test_against_quadrature(kernel: Any, data: Tensor) -> None:
    """Means and variances; the errors are those between chains."""
    mcmc = VectorizedMCMC(kernel, 70, 90, num_chains=NUM_CHAINS, disable_progbar=True)
    mcmc.run(data)
    draws = mcmc.get_samples(group_by_chain=True)
    for name, (mean, variance) in quadrature(data).items():
        assert chain_z(draws[name], mean, lambda x: x) < Z_LIMIT
        assert chain_z(draws[name], variance, lambda x, m=mean: (x - m).square()) < Z_LIMIT
    rate = mcmc.diagnostics()["acceptance rate"]["chain 0"]
    assert rate.shape == (NUM_CHAINS,) and 0.1 < rate.mean() < 0.5
    # The posterior without log Z is another one.
    wrong = quadrature(data, with_z=False)["coupling"][0]
    assert chain_z(draws["coupling"], wrong, lambda x: x) > Z_LIMIT


def test_nuts_with_exact_log_z(data: Tensor) -> None:
    mcmc = MCMC(NUTS(program, max_tree_depth=4), 50, 25, disable_progbar=True)
    mcmc.run(data, exact=True)
    draws = mcmc.get_samples()
    for name, (mean, _) in quadrature(data).items():
        x = draws[name]
        size = 0.5 * float(effective_sample_size(x[None]))
        assert abs(float(x.mean()) - mean) < Z_LIMIT * float(x.std()) / math.sqrt(size)


def test_an_attached_log_z_counts(data: Tensor) -> None:
    """The random walk of a model with exact log Z is plain Metropolis, and says so."""
    with pytest.warns(UserWarning, match="no machine without log Z"):
        mcmc = VectorizedMCMC(Exchange(program), 60, 80, num_chains=80, disable_progbar=True)
        mcmc.run(data, exact=True)
    draws = mcmc.get_samples(group_by_chain=True)
    mean, _ = quadrature(data)["coupling"]
    assert chain_z(draws["coupling"], mean, lambda x: x) < Z_LIMIT


def test_within_a_compound_kernel() -> None:
    """The rows of the machine are seen through noise: block Gibbs draws them, exchange its coupling."""
    seen = torch.tensor([[1.1, 0.2, 0.8], [0.1, 0.9, -0.3]]).double()

    def model() -> None:
        coupling = pyro.sample("coupling", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("rows", 2):
            v = pyro.sample("v", machine(coupling, torch.zeros(()).double()))
            pyro.sample("seen", dist.Normal(v, 0.7).to_event(1), obs=seen)

    kernel = Gibbs([(BlockGibbs(model), ["v"]), (Exchange(model, init_scale=1.5), None)])
    mcmc = MCMC(kernel, 150, 30, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()
    grid = torch.linspace(-6.0, 6.0, 1001, dtype=torch.float64)
    rbm = machine(grid, torch.zeros_like(grid))
    states = rbm.visible.states(0, 8)
    log_p = -rbm.free_energy(states[:, None]) - exact_log_partition(rbm)
    log_y = dist.Normal(states[:, None], 0.7).to_event(1).log_prob(seen)
    log_q = (log_p[:, None] + log_y[..., None]).logsumexp(0).sum(0) - grid.square() / 2
    expected = float((torch.softmax(log_q, 0) * grid).sum())
    x = draws["coupling"]
    size = 0.5 * float(effective_sample_size(x[None]))
    assert abs(float(x.mean()) - expected) < Z_LIMIT * float(x.std()) / math.sqrt(size)
    assert "coupling.acceptance rate" in mcmc.diagnostics()


@pytest.mark.slow
def test_all_parameters_of_a_machine() -> None:
    """Five visible and three hidden units, 200 rows: exchange against NUTS, in the moments of the machine."""
    truth = BernoulliRBM(
        torch.randn(5, 3).double(), torch.zeros(5).double(), torch.zeros(3).double()
    )
    data = truth.sample((200,))

    def model(exact: bool = False) -> None:
        def normal(name: str, *shape: int) -> Tensor:
            prior = dist.Normal(torch.zeros(()).double(), 1.0).expand(shape)
            return pyro.sample(name, prior.to_event(len(shape)))

        rbm = BernoulliRBM(normal("weight", 5, 3), normal("visible", 5), normal("hidden", 3))
        with pyro.plate("rows", 200):
            pyro.sample("v", rbm.normalize(exact_log_partition(rbm)) if exact else rbm, obs=data)

    def moments(draws: dict[str, Tensor]) -> Tensor:
        """Probabilities of all states of the visible layer, on which hidden units may be swapped."""
        rbm = BernoulliRBM(draws["weight"], draws["visible"], draws["hidden"])
        states = rbm.visible.states(0, 32).reshape(32, *(1,) * len(rbm.batch_shape), 5)
        return torch.softmax(-rbm.free_energy(states), 0).movedim(0, -1)

    nuts = MCMC(NUTS(model, max_tree_depth=6), 250, 100, disable_progbar=True)
    nuts.run(exact=True)
    expected = moments(nuts.get_samples())
    size = 0.5 * effective_sample_size(expected[None]).clamp(max=250)
    vectorized = VectorizedMCMC(Exchange(model), 1500, 2000, num_chains=20, disable_progbar=True)
    vectorized.run()
    got = moments(vectorized.get_samples(group_by_chain=True)).mean(1)
    error = (expected.var(0) / size + got.var(0) / len(got)).sqrt()
    assert float(((got.mean(0) - expected.mean(0)) / error).abs().max()) < Z_LIMIT
