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


@pytest.mark.parametrize("depth", ["trunk", "trunk.0", "weight"])
def test_parameters_without_gradient_stay_so(depth):
    """Pyro's store would switch the gradients of all parameters on that it is given."""
    module = nn.NeuralBoltzmannMachine(2, 4, 3, "bernoulli", trunk_sizes=(5, 4), seed=0)
    module.get_submodule(depth).requires_grad_(False)
    before = {name: p.requires_grad for name, p in module.named_parameters()}
    fixed = {name: p.clone() for name, p in module.named_parameters() if not before[name]}
    assert 0 < len(fixed) < len(before)
    look_at_nbm(module)
    module.condition(torch.eye(2)).free_energy(torch.ones(4)).sum().backward()
    assert {name: p.requires_grad for name, p in module.named_parameters()} == before
    assert all(torch.equal(module.get_parameter(name), p) for name, p in fixed.items())
    assert all(module.get_parameter(name).grad is None for name in fixed)
    rbm = nn.RBM(4, 3)
    rbm.visible.requires_grad_(False)
    look_at_rbm(rbm)
    assert rbm.weight.requires_grad and not rbm.visible.bias.requires_grad
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
