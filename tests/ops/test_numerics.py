# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Stable elementary functions against scipy and longer arithmetic."""

import math

import numpy as np
import pytest
import torch
from scipy import special

from pyro_ebm.ops.numerics import (
    effective_sample_size,
    log_2cosh_sum,
    log_erfcx,
    log_mean_exp,
    log_mean_exp_error,
    softplus_step,
    softplus_step_sum,
    softplus_sum,
    truncated_normal_mean,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


def rtol(dtype: torch.dtype) -> float:
    return 2e-6 if dtype == torch.float32 else 1e-13


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


def log_2cosh(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, -x)


SUMS = pytest.mark.parametrize(
    ("function", "term", "slope"),
    [(softplus_sum, softplus, special.expit), (log_2cosh_sum, log_2cosh, np.tanh)],
    ids=["softplus", "log_2cosh"],
)


@SUMS
@DTYPES
def test_sums_over_units(function, term, slope, dtype):
    # Without a gradient, float64 and up to 1000 units take the product of all factors.
    for size in (1, 3, 1000, 1001, 5000):
        x = 4 * torch.randn(6, size, dtype=dtype)
        kept = x.clone()
        expected = term(x.double().numpy()).sum(-1)
        for argument in (x, kept.clone().requires_grad_()):
            got = function(argument)
            # log(1 + e^x) keeps an absolute, not a relative, precision where it is tiny.
            np.testing.assert_allclose(
                got.detach().numpy(), expected, rtol=rtol(dtype), atol=rtol(dtype)
            )
        (gradient,) = torch.autograd.grad(got.sum(), argument)
        np.testing.assert_allclose(gradient.numpy(), slope(kept.numpy()), atol=2 * rtol(dtype))
        with torch.no_grad():
            again = function(argument).numpy()
            np.testing.assert_allclose(again, expected, rtol=rtol(dtype), atol=rtol(dtype))
        assert torch.equal(x, kept)  # not changed in place
    assert function(torch.zeros(2, 0, dtype=dtype)).tolist() == [0.0, 0.0]


@SUMS
@DTYPES
def test_sums_over_units_at_the_extremes(function, term, slope, dtype):
    x = torch.tensor([-1e30, -1e4, -3.0, -1e-8, 0.0, 0.5, 20.0, 1e4], dtype=dtype).unsqueeze(-1)
    expected = term(x[:, 0].double().numpy())
    np.testing.assert_allclose(function(x).numpy(), expected, rtol=rtol(dtype), atol=1e-300)
    # All factors at their largest at once, and none at all.
    for value in (0.0, 800.0, -800.0):
        many = torch.full((1000,), value, dtype=dtype)
        expected = 1000 * float(term(np.array(value)))
        assert function(many).item() == pytest.approx(expected, rel=1e-6, abs=1e-30)
    x = torch.tensor([-1e4, -1.0, 0.0, 2.0], dtype=dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(function(x), x)
    np.testing.assert_allclose(gradient.numpy(), slope(x.detach().numpy()), rtol=rtol(dtype))


@DTYPES
def test_log_erfcx(dtype):
    x = torch.tensor([-1e4, -27.0, -9.5, -9.0, -1.0, -1e-7, 0.0, 1e-7, 1.0, 9.0, 1e4], dtype=dtype)
    exact = x.double().numpy()
    # log erfcx(x) = x^2 + log erfc(x), and erfc(x) is 2 to all digits below -6.
    expected = np.where(exact < -6, exact**2 + math.log(2), np.log(special.erfcx(exact.clip(-6))))
    np.testing.assert_allclose(
        log_erfcx(x).numpy(), expected, rtol=3 * rtol(dtype), atol=rtol(dtype)
    )
    x.requires_grad_()
    (slope,) = torch.autograd.grad(log_erfcx(x).sum(), x)
    assert bool(torch.isfinite(slope).all())
    erfcx = special.erfcx(exact.clip(-6))
    expected = 2 * exact - 2 / math.sqrt(math.pi) / erfcx * (exact > -6)
    slack = {"rtol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-11}
    np.testing.assert_allclose(slope.numpy(), expected, **slack)


def test_log_erfcx_gradcheck():
    x = torch.tensor([-8.0, -1.0, -1e-3, 1e-3, 2.0, 12.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(log_erfcx, x.requires_grad_())


@pytest.mark.parametrize("a", [-1e4, -30.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize(("beta", "beta_next"), [(0.0, 1.0), (0.3, 0.3001), (0.999, 1.0)])
def test_softplus_step(a, beta, beta_next):
    exact = np.longdouble(a)
    expected = np.logaddexp(0, beta_next * exact) - np.logaddexp(0, beta * exact)
    for dtype, tolerance in ((torch.float32, 3e-4), (torch.float64, 1e-9)):
        x = torch.tensor([a], dtype=dtype)
        got = softplus_step(x, beta, beta_next).item()
        assert torch.equal(x, torch.tensor([a], dtype=dtype))  # not changed in place
        step = float(torch.tensor(beta_next - beta, dtype=dtype))
        assert got == pytest.approx(float(expected), rel=tolerance, abs=1e-7 * step)


@pytest.mark.parametrize("alpha", [-1e4, -100.0, -31.0, -30.0, -29.9, -5.0, 0.0, 3.0, 40.0])
@DTYPES
def test_truncated_normal_mean(alpha, dtype):
    a = np.longdouble(alpha)
    if alpha <= -100:  # continued fraction of Mills' ratio: alpha + 1 / ratio, 60 terms deep
        tail = -a
        for k in range(60, 0, -1):
            tail = -a + k / tail
        expected = float(tail + a)
    else:
        ratio = math.sqrt(math.pi / 2) * special.erfcx(-alpha / math.sqrt(2))
        expected = alpha + (0.0 if math.isinf(ratio) else 1 / ratio)
    got = truncated_normal_mean(torch.tensor([alpha], dtype=dtype))
    assert got.dtype == dtype and got.item() > 0
    assert got.item() == pytest.approx(expected, rel=1e-6 if dtype == torch.float32 else 5e-11)


def test_truncated_normal_mean_is_continuous_at_the_series():
    a = torch.tensor([-30.0 - 1e-9, -30.0 + 1e-9], dtype=torch.float64)
    below, above = truncated_normal_mean(a).tolist()
    assert below == pytest.approx(above, rel=1e-10)
    assert torch.autograd.gradcheck(truncated_normal_mean, (a[:1] - 1).requires_grad_())


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_log_mean_exp_and_error(shift):
    log_w = torch.randn(50, 3, dtype=torch.float64)
    w = log_w.exp().numpy()
    got = log_mean_exp(log_w + shift, 0)
    np.testing.assert_allclose(got.numpy(), np.log(w.mean(0)) + shift, rtol=1e-12, atol=1e-10)
    # The jackknife by its definition: leave each one out.
    left_out = np.stack([np.log(np.delete(w, i, 0).mean(0)) for i in range(50)])
    expected = np.sqrt(49 / 50 * ((left_out - left_out.mean(0)) ** 2).sum(0))
    error = log_mean_exp_error(log_w + shift, 0)
    np.testing.assert_allclose(error.numpy(), expected, rtol=1e-7)
    np.testing.assert_allclose(
        log_mean_exp_error((log_w + shift).T, 1).numpy(), expected, rtol=1e-7
    )
    ess = effective_sample_size(log_w + shift, 0)
    np.testing.assert_allclose(ess.numpy(), w.sum(0) ** 2 / (w**2).sum(0), rtol=1e-9)


def test_weights_at_the_extremes():
    assert log_mean_exp_error(torch.zeros(1, 2)).tolist() == [math.inf, math.inf]
    assert log_mean_exp_error(torch.zeros(7)).item() == pytest.approx(0.0, abs=1e-6)
    dominated = torch.tensor([0.0, -1e4, -1e4], dtype=torch.float64)
    assert effective_sample_size(dominated).item() == pytest.approx(1.0)
    assert math.isfinite(log_mean_exp_error(dominated).item())
    assert effective_sample_size(torch.zeros(7)).item() == pytest.approx(7.0)


@pytest.mark.parametrize(("beta", "beta_next"), [(0.0, 1.0), (1.0, 0.0), (0.5, 0.4)])
def test_softplus_step_of_strong_fields(beta, beta_next):
    """Both directions stay finite in float32 where exp(a) overflows: reverse annealing needs it."""
    a = torch.tensor([-1e4, -200.0, 0.0, 200.0, 1e4])
    expected = torch.nn.functional.softplus(a.double() * beta_next) - torch.nn.functional.softplus(
        a.double() * beta
    )
    got = softplus_step(a, beta, beta_next).double()
    assert torch.allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("units", [1, 99, 100, 101, 350])
@DTYPES
def test_softplus_step_sum(units, dtype):
    """Inverse temperatures that differ between rows, in both directions, also for strong fields."""
    a = torch.randn(7, 4, units, dtype=torch.float64) * torch.logspace(-2, 3, 7).view(-1, 1, 1)
    beta = torch.tensor([0.0, 0.3, 1.0, 0.5], dtype=torch.float64).view(-1, 1)
    beta_next = torch.tensor([0.4, 0.3, 0.0, 0.5001], dtype=torch.float64).view(-1, 1)
    a, beta, beta_next = (x.to(dtype) for x in (a, beta, beta_next))
    kept = a.clone()
    exact = [x.double() for x in (a, beta, beta_next)]
    zero = torch.zeros((), dtype=torch.float64)
    ends = (torch.logaddexp(zero, b * exact[0]) for b in exact[1:])
    expected = (-next(ends) + next(ends)).sum(-1)
    got = softplus_step_sum(a, beta, beta_next)
    assert got.dtype == dtype and torch.equal(a, kept)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=10 * tolerance)
    assert (got[:, 1] == 0).all()


def test_softplus_step_sum_of_numbers():
    a = torch.randn(3, 5, dtype=torch.float64)
    expected = softplus_step(a, 0.2, 0.7).sum(-1)
    torch.testing.assert_close(softplus_step_sum(a, 0.2, 0.7), expected)
    torch.testing.assert_close(softplus_step_sum(a, 0.2, torch.tensor([0.7])), expected)


def test_second_derivative_of_log_2cosh_at_zero():
    """sech^2(0) = 1: the curvature of a free energy at the mean of its layer."""
    x = torch.tensor([0.0, 0.7, -3.0], dtype=torch.float64, requires_grad=True)
    hessian = torch.autograd.functional.hessian(log_2cosh_sum, x).diagonal()
    torch.testing.assert_close(hessian, 1.0 / torch.cosh(x.detach()).square(), rtol=1e-12, atol=0.0)
