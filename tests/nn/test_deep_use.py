# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Features and reconstructions of a deep machine."""

import pytest
import torch

from pyro_ebm import nn
from tests.distributions.families import uniform


@pytest.fixture
def module() -> nn.DBM:
    torch.manual_seed(0)
    module = nn.DBM(5, [4, 3], centered=True, dtype=torch.float64)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(uniform(tuple(tensor.shape), -0.7, 0.7))
    return module


def test_features_are_a_fixed_point(module):
    v = uniform((6, 5), 0, 1)
    options = {"tolerance": 1e-13, "max_updates": 5000}
    first, second = (module.transform(v, layer, **options) for layer in (1, 2))
    w1, w2 = module.weights
    o0, o1, o2 = module.offsets
    b0, b1, b2 = (layer().natural_bias for layer in module.layers)
    expected = torch.sigmoid(b1 + (v - o0) @ w1 + (second - o2) @ w2.T)
    torch.testing.assert_close(first, expected.detach(), rtol=1e-10, atol=1e-10)
    expected = torch.sigmoid(b2 + (first - o1) @ w2)
    torch.testing.assert_close(second, expected.detach(), rtol=1e-10, atol=1e-10)
    expected = torch.sigmoid(b0 + (first - o1) @ w1.T).detach()
    torch.testing.assert_close(module.reconstruct(v, **options), expected)
    assert torch.equal(module.transform(v, **options), second)
    assert torch.equal(module.transform(v, -2, **options), first)


def test_nothing_random_and_nothing_that_stays(module):
    v = uniform((6, 5), 0, 1).float()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    state = torch.get_rng_state()
    first = module.transform(v)
    assert torch.equal(first, module.transform(v)) and not first.requires_grad
    assert torch.equal(module.reconstruct(v), module.reconstruct(v))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())


@pytest.mark.parametrize("layer", [0, 3, -3])
def test_layers_that_there_are_not(module, layer):
    with pytest.raises(ValueError, match="layer must be"):
        module.transform(torch.ones(2, 5), layer)


def test_shapes_that_do_not_fit(module):
    for method in (module.transform, module.reconstruct):
        with pytest.raises(ValueError, match="v must have shape"):
            method(torch.ones(2, 4))


@pytest.mark.parametrize("centered", [False, True])
def test_upper_layers_keep_their_biases_when_the_lowest_becomes_an_rbm(centered):
    """Also where couplings were large and offsets change."""
    module = nn.DBM(5, [4, 3], centered=True, weight_scale=1.0, seed=0, dtype=torch.float64)
    rbm = nn.RBM(5, 4, centered=centered, weight_scale=1.0, seed=1, dtype=torch.float64)
    if centered:
        rbm.shift_offsets(torch.full((5,), 0.3).double(), torch.full((4,), 0.4).double())
    with torch.no_grad():
        before = module().bipartite().canonical().visible_bias[5:]
        module.init_from_rbm(rbm, upper_scale=0.0)
        after = module().bipartite().canonical().visible_bias[5:]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)


def test_tied_machines_of_a_stack_are_untied():
    machines = [
        nn.TiedRBM(5, 4, visible_copies=2, centered=True, weight_scale=1.0, seed=0),
        nn.TiedRBM(4, 3, hidden_copies=2, centered=True, weight_scale=1.0, seed=1),
    ]
    tied, plain = (nn.DBM(5, [4, 3], centered=True) for _ in range(2))
    tied.init_from_rbms(machines)
    plain.init_from_rbms([machine.untied() for machine in machines])
    for a, b in zip(tied.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)
