# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The main job on a GPU gives the same numbers as on a CPU. Skipped where there is none."""

import pyro
import pytest
import torch
from pyro.infer import SVI

from pyro_ebm import nn
from pyro_ebm.distributions import RBM, BernoulliRBM, GibbsSweep, units
from pyro_ebm.infer import (
    BlockGibbs,
    ContrastiveDivergence,
    VectorizedMCMC,
    bracket_log_partition,
    exact_log_partition,
)
from pyro_ebm.training import Trainer, TrainerConfig

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
FAMILIES = {
    "bernoulli": lambda: units.Bernoulli(torch.randn(6)),
    "ising": lambda: units.Ising(torch.randn(6)),
    "categorical": lambda: units.Categorical(torch.randn(2, 3)),
    "multinomial": lambda: units.Multinomial(torch.randn(6), 3),
    "gaussian": lambda: units.Gaussian(torch.randn(6), torch.rand(6) + 0.5),
    "relu": lambda: units.ReLU(torch.randn(6), torch.rand(6) + 0.5),
}


@pytest.mark.parametrize("visible", FAMILIES)
def test_sweeps_keep_the_law(visible):
    """Chains from exact samples stay there: means of the visible units, |z| below 6."""
    torch.manual_seed(0)
    unit = FAMILIES[visible]()
    rbm = RBM(unit, units.Bernoulli(torch.randn(4)), 0.3 * torch.randn(unit.size, 4))
    exact = rbm.sample((200_000,))
    moved = GibbsSweep(rbm.to(CUDA)).run(exact.to(CUDA), 3).cpu()
    error = exact.std(0) * (2 / len(exact)) ** 0.5
    assert ((moved.mean(0) - exact.mean(0)) / error).abs().max() < 6


def test_log_partition_agrees_with_the_cpu():
    torch.manual_seed(0)
    rbm = BernoulliRBM(torch.randn(20, 10), torch.randn(20), torch.randn(10))
    on_gpu = rbm.to(CUDA)
    exact = exact_log_partition(rbm)
    assert torch.allclose(exact_log_partition(on_gpu).cpu(), exact, atol=1e-6)
    bracket = bracket_log_partition(on_gpu, num_temperatures=2000, seed=0)
    assert bracket.lower.cpu() - 0.1 < exact < bracket.upper.cpu() + 0.1


def test_training_and_sampling():
    data = torch.bernoulli(torch.full((500, 20), 0.3))
    module = nn.RBM(20, 8, seed=0, device=CUDA, centered=True).init_from_data(data)
    config = TrainerConfig(num_epochs=3, persistent=True, seed=0, progress=False)
    history = Trainer(module, config).fit(data)
    assert len(history) == 3 and module.weight.is_cuda
    mcmc = VectorizedMCMC(BlockGibbs(module()), 20, 10, num_chains=50, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["v"].shape == (1000, 20)


def test_svi():
    data = torch.bernoulli(torch.full((100, 6), 0.3)).to(CUDA)
    module = nn.RBM(6, 4, seed=0, device=CUDA)

    def model() -> None:
        machine = module()
        with pyro.plate("rows", len(data)):
            pyro.sample("v", machine, obs=data)

    loss = ContrastiveDivergence(persistent=True)
    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.01}), loss=loss)
    for _ in range(3):
        svi.step()
    assert loss.chains["v"].is_cuda
