# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The building blocks of the networks: perceptrons, soft bounds, frozen modules."""

import copy
import math

import numpy as np
import pytest
import torch
from pyro.nn import PyroModule

from pyro_ebm.nn.networks import freeze, mlp, soft_clamp


@pytest.mark.parametrize("sizes", [(), (5,), (5, 4)], ids=str)
def test_a_perceptron_is_its_formula(sizes):
    network = mlp(3, sizes, 2)
    x = torch.randn(7, 3)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert [m.out_features for m in layers] == [*sizes, 2]
    expected = x
    for i, layer in enumerate(layers):
        expected = expected @ layer.weight.T + layer.bias
        expected = expected.relu() if i < len(sizes) else expected
    torch.testing.assert_close(network(x), expected)
    assert all(isinstance(m, PyroModule) for m in network.modules())


BOUNDS = [(-2.0, 3.0), (-math.log(1e3), math.log(1e3)), (0.5, 0.6)]


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_soft_clamp_is_its_formula(low, high):
    x = torch.linspace(-30, 30, 301, dtype=torch.float64, requires_grad=True)
    value = soft_clamp(x, low, high)
    y = x.detach().numpy()
    expected = low + np.logaddexp(0, y - low) - np.logaddexp(0, y - high)
    np.testing.assert_allclose(value.detach(), expected, rtol=0, atol=1e-12)
    value.sum().backward()
    # The logistic functions of both ends, whose difference is written so that it does not cancel.
    slope = 1 / (1 + np.exp(-y + low)) * (1 - np.exp(low - high)) / (1 + np.exp(y - high))
    np.testing.assert_allclose(x.grad, slope, rtol=1e-8)


@pytest.mark.parametrize(("low", "high"), BOUNDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_soft_clamp_can_always_come_back(low, high, dtype):
    """Up to 60 beyond the bounds, and at the middle, where the two halves of the formula meet."""
    places = [low - 60, low - 20, low, (low + high) / 2, high, high + 20, high + 60]
    x = torch.tensor(places, dtype=dtype, requires_grad=True)
    value = soft_clamp(x, low, high)
    assert bool(((value >= low - 1e-6) & (value <= high + 1e-6)).all())
    assert bool((value.diff() >= 0).all())
    value.sum().backward()
    assert bool((x.grad > 0).all())
    torch.testing.assert_close(x.grad, x.grad.flip(0), rtol=1e-4, atol=0)


def test_soft_clamp_takes_derivatives_of_any_order():
    x = torch.tensor([-4.0, -0.3, 0.5, 0.7, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: soft_clamp(x, -1.0, 2.0), x)
    assert torch.autograd.gradgradcheck(lambda x: soft_clamp(x, -1.0, 2.0), x)


def test_frozen_modules_have_the_same_values_and_no_parameters():
    network = mlp(3, (4,), 2)
    frozen = freeze(copy.deepcopy(network))
    x = torch.randn(5, 3)
    assert torch.equal(frozen(x), network(x)) and not frozen(x).requires_grad
    assert list(frozen.parameters()) == [] and len(list(network.parameters())) == 4
    assert frozen.state_dict().keys() == network.state_dict().keys()
    with torch.no_grad():
        network[0].weight.zero_()
    assert frozen[0].weight.any()
    assert frozen.double()[0].weight.dtype == torch.float64
