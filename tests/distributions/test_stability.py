# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Large fields in float32, and gradients at the joints of piecewise formulas."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special

from pyro_ebm.distributions import BernoulliRBM, units
from tests.distributions.families import DISCRETE, FAMILIES, TOTAL_COUNT, layer_shape


@pytest.mark.parametrize("family", DISCRETE)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_discrete_units_in_fields_of_10_000(family, sign):
    bias = torch.zeros(layer_shape(family)).requires_grad_()
    options = {"total_count": TOTAL_COUNT} if family == "multinomial" else {}
    unit = FAMILIES[family](bias, **options)
    field = torch.zeros(unit.size)
    field[0] = sign * 1e4
    gamma = unit.log_partition(field)
    exact = FAMILIES[family](bias.detach().double(), **options).log_partition(field.double())
    assert gamma.item() == pytest.approx(exact.item(), rel=1e-6)
    # With one dominant state Gamma is its weight, in every family.
    if sign > 0:
        scale = TOTAL_COUNT if family == "multinomial" else 1
        assert gamma.item() == pytest.approx(scale * 1e4, rel=1e-3)
    gamma.backward()
    assert bool(torch.isfinite(bias.grad).all())
    torch.testing.assert_close(bias.grad.flatten(), unit.mean(field).detach())
    log_prob = unit.conditional(field).log_prob(unit.states(0, unit.num_states))
    assert bool(torch.isfinite(log_prob).all())
    assert log_prob.exp().sum().item() == pytest.approx(1.0, abs=1e-4)
    assert bool(unit.support.check(unit.sample(field)).all())


Z_VALUES = [-1e3, -100.0, -30.1, -29.9, -9.5, -9.0, -1.0, 0.0, 1.0, 9.0, 9.5, 30.0, 1e3]


def relu_log_partition(z: float, precision: float) -> float:
    """scipy's log of the integral of exp(z x - g x^2 / 2) over x >= 0."""
    alpha = z / math.sqrt(precision)
    if alpha < -30:  # substitute y = |z| x, so that the integrand is of order one
        value, _ = integrate.quad(lambda y: math.exp(-y - y * y / (2 * alpha**2)), 0, 60)
        return math.log(value) - math.log(-z)
    return 0.5 * math.log(2 * math.pi / precision) + alpha**2 / 2 + special.log_ndtr(alpha)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("precision", [1.0, 0.5])
def test_relu_log_partition(dtype, precision):
    z = torch.tensor(Z_VALUES, dtype=dtype).unsqueeze(-1).requires_grad_()
    unit = units.ReLU(torch.zeros(1, dtype=dtype), torch.full((1,), precision, dtype=dtype))
    gamma = unit.log_partition(z)
    assert bool(torch.isfinite(gamma).all())
    expected = [relu_log_partition(float(value), precision) for value in Z_VALUES]
    rtol = 3e-6 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(gamma.detach().numpy(), expected, rtol=rtol, atol=rtol)
    (gradient,) = torch.autograd.grad(gamma.sum(), z)
    assert bool(torch.isfinite(gradient).all())
    mean = unit.mean(z.detach())
    assert bool((mean > 0).all())
    rtol = 2e-6 if dtype == torch.float32 else 1e-7
    np.testing.assert_allclose(gradient.numpy(), mean.numpy(), rtol=rtol)


def test_relu_gradients_are_smooth_across_the_joint_at_zero():
    # torch.where evaluates both branches: a branch outside of its domain would give NaN gradients.
    z = torch.tensor([[-1e-9], [0.0], [1e-9], [-1e4], [1e4]], dtype=torch.float64)
    z.requires_grad_()
    unit = units.ReLU(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    (slope,) = torch.autograd.grad(unit.log_partition(z).sum(), z, create_graph=True)
    at_zero = math.sqrt(2 / math.pi)
    np.testing.assert_allclose(slope[:3, 0].detach().numpy(), at_zero, rtol=1e-8)
    assert slope[4].item() == pytest.approx(1e4)
    (curvature,) = torch.autograd.grad(slope.sum(), z)
    np.testing.assert_allclose(curvature[:3, 0].numpy(), 1 - 2 / math.pi, rtol=1e-6)


def test_relu_mean_has_a_gradient_on_both_sides_of_the_series():
    z = torch.tensor([-1e4, -30.001, -29.999, 0.0, 50.0], dtype=torch.float64)
    unit = units.ReLU(torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64))
    z.requires_grad_()
    (slope,) = torch.autograd.grad(unit.mean(z).sum(), z)
    variance = unit.conditional(z.detach()).variance
    np.testing.assert_allclose(slope.numpy(), variance.numpy(), rtol=1e-5)


def test_gaussian_units_of_precision_1000():
    # A(b + t) - C would cancel: both are of order 1e5 here, their difference of order one.
    loc, precision = torch.tensor([10.0, -20.0]), torch.full((2,), 1000.0)
    field = torch.tensor([3.0, -40.0])
    exact = units.Gaussian(loc.double(), precision.double())
    unit = units.Gaussian(loc.clone().requires_grad_(), precision)
    gamma = unit.log_partition(field)
    assert gamma.item() == pytest.approx(exact.log_partition(field.double()).item(), rel=1e-6)
    gamma.backward()
    torch.testing.assert_close(unit.loc.grad, field)
    x = loc + torch.tensor([0.03, -0.01])
    assert unit.energy(x).item() == pytest.approx(exact.energy(x.double()).item(), rel=1e-4)
    tilted, constant = unit.tilt(field)
    _, exact_constant = exact.tilt(field.double())
    assert constant.item() == pytest.approx(exact_constant.item(), rel=1e-6)
    assert tilted.loc[0].item() == pytest.approx(10.003, rel=1e-6)


def test_free_energy_of_a_saturated_machine_is_finite():
    weight = torch.full((4, 3), 5e3).requires_grad_()
    rbm = BernoulliRBM(weight, torch.zeros(4), torch.zeros(3))
    free = rbm.free_energy(torch.ones(4))
    assert free.item() == pytest.approx(-6e4)
    free.backward()
    torch.testing.assert_close(weight.grad, -torch.ones(4, 3))
