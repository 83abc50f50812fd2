# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Training reaches the maximum of the likelihood, and learns real images."""

import pytest
import torch
from torch import Tensor

from pyro_ebm import datasets, nn
from pyro_ebm.distributions import BernoulliRBM
from pyro_ebm.infer import exact_log_partition, log_likelihood
from pyro_ebm.training import Trainer, TrainerConfig


def mean_log_prob(module: nn.RBM, data: Tensor) -> Tensor:
    dist = module()
    return dist.normalize(exact_log_partition(dist)).log_prob(data).mean()


def empirical_entropy(data: Tensor) -> float:
    _, counts = data.unique(dim=0, return_counts=True)
    p = counts.double() / counts.sum()
    return -(p * p.log()).sum().item()


@pytest.fixture(scope="module")
def small_data() -> Tensor:
    """Draws of a machine of 5 + 4 coupled bits, too rich for one hidden unit."""
    generator = torch.Generator().manual_seed(11)
    weight = 2.0 * torch.randn(5, 4, generator=generator, dtype=torch.float64)
    truth = BernoulliRBM(weight, -weight.sum(1) / 2, -weight.sum(0) / 2)
    return truth.sample((2000,), generator=generator)


def start(data: Tensor, centered: bool = False) -> nn.RBM:
    module = nn.RBM(5, 1, seed=1, weight_scale=0.1, dtype=torch.float64, centered=centered)
    return module.init_from_data(data)


@pytest.fixture(scope="module")
def best_kl(small_data) -> float:
    """KL(data || model) at the end of exact gradient ascent from the same start."""
    module = start(small_data)
    optimizer = torch.optim.LBFGS(
        module.parameters(),
        max_iter=1000,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -mean_log_prob(module, small_data)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert max(p.grad.abs().max().item() for p in module.parameters()) < 1e-4
    return -mean_log_prob(module, small_data).item() - empirical_entropy(small_data)


#: Nats that a run may be short of the optimum; the start is 0.54 short.
TOLERANCE = 0.003


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.5},
        {"learning_rate": 0.1, "momentum": 0.8},
        {"learning_rate": 0.03, "optimizer": "adam"},
    ],
    ids=["sgd", "momentum", "adam"],
)
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
def test_pcd_reaches_the_maximum_of_the_likelihood(options, centered, small_data, best_kl):
    module = start(small_data, centered)
    entropy = empirical_entropy(small_data)
    before = -mean_log_prob(module, small_data).item() - entropy
    config = TrainerConfig(
        num_epochs=150,
        batch_size=200,
        learning_rate_schedule="linear",
        persistent=True,
        num_chains=400,
        num_steps=2,
        metrics_rows=1,
        seed=0,
        progress=False,
        **options,
    )
    Trainer(module, config).fit(small_data)
    kl = -mean_log_prob(module, small_data).item() - entropy
    assert best_kl > 0.02, "a problem that the model solves perfectly would not show a bias"
    assert before - best_kl > 0.3
    assert abs(kl - best_kl) < TOLERANCE


@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
@pytest.mark.parametrize("persistent", [False, True], ids=["cd", "pcd"])
def test_learns_real_digits(persistent, centered):
    """The exact test log-likelihood rises by 1.5 nats and more over independent pixels."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    digits = datasets.load("digits")
    rates, test = digits.train(), digits.binarized("test", seed=0)
    module = nn.RBM(64, 12, seed=0, centered=centered).init_from_data(rates)

    def score() -> float:
        with torch.no_grad():
            return log_likelihood(module(), test, exact_log_partition(module())).mean().item()

    with torch.no_grad():
        module.weight.zero_()
        independent = score()
        module.weight.copy_(nn.RBM(64, 12, seed=0).weight)
    config = TrainerConfig(
        num_epochs=25,
        batch_size=50,
        learning_rate=0.1,
        persistent=persistent,
        binarize=True,
        seed=3,
        progress=False,
    )
    history = Trainer(module, config).fit(rates, digits.test())
    gain = score() - independent
    assert gain > (2.0 if persistent else 1.5), f"independent {independent:.2f}, gain {gain:.2f}"
    assert history[-1]["reconstruction_error"] < 0.9 * history[0]["reconstruction_error"]
