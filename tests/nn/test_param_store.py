# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Modules that are only looked at do not stand in the way of those that are trained."""

import pyro
import pytest
import torch
from pyro.infer import SVI

from pyro_ebm import nn
from pyro_ebm.infer import ContrastiveDivergence

ROWS = torch.ones(5, 4)


@pytest.fixture(autouse=True)
def empty_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def look_at_rbm(module: nn.RBM) -> None:
    module()
    module.visible()
    module.init_from_data(ROWS)


def look_at_nbm(module: nn.NeuralBoltzmannMachine) -> None:
    module.condition(torch.eye(2))
    module.init_from_data(ROWS, torch.ones(5, 2), num_steps=2)
    module.visible_unit(torch.eye(2))


def test_calls_outside_of_programs_enter_nothing():
    look_at_rbm(nn.RBM(4, 3))
    look_at_nbm(nn.NeuralBoltzmannMachine(2, 4, 3, "bernoulli"))
    assert not list(pyro.get_param_store())


def test_values_of_others_stay():
    pyro.param("weight", torch.zeros(2))
    look_at_rbm(nn.RBM(4, 3))
    assert torch.equal(pyro.param("weight"), torch.zeros(2))


def test_svi_trains_the_module_of_the_model():
    first, second = nn.RBM(4, 3, seed=0), nn.RBM(4, 3, seed=1)
    look_at_rbm(first)

    def model():
        machine = second()
        with pyro.plate("rows", len(ROWS)):
            pyro.sample("v", machine, obs=ROWS)

    before = [module.weight.detach().clone() for module in (first, second)]
    optimizer = pyro.optim.Adam({"lr": 0.01})
    SVI(model, lambda: None, optimizer, loss=ContrastiveDivergence()).step()
    assert torch.equal(first.weight, before[0])
    assert not torch.equal(second.weight, before[1])
