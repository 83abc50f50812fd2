# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The conditional distributions that Pyro has no class for, and their supports."""

import copy
import math

import numpy as np
import pyro
import pytest
import torch
from scipy import integrate, stats

from pyro_ebm.distributions.conditionals import FlatOneHotCategorical, RectifiedNormal, Spin
from pyro_ebm.distributions.constraints import counts, flat_one_hot, spin
from tests.distributions.families import uniform
from tests.distributions.laws import ALPHA, z_test

MAKE = {
    "spin": lambda batch: Spin(uniform(batch, -1, 1)),
    "one-hot": lambda batch: FlatOneHotCategorical(uniform((*batch, 2, 3), -1, 1)),
    "rectified": lambda batch: RectifiedNormal(uniform(batch, -1, 1), uniform(batch, 0.5, 2)),
}
every_one = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


@every_one
@pytest.mark.parametrize("batch", [(), (2,), (3, 2)], ids=str)
def test_shapes(make, batch):
    d = make(batch)
    value = d.sample((5,))
    assert d.batch_shape == batch and value.shape == d.shape((5,))
    assert d.log_prob(value).shape == (5, *batch)
    assert d.mean.shape == d.variance.shape == d.shape(())
    assert d.support.event_dim == d.event_dim
    assert d.support.check(value).shape == (5, *batch) and bool(d.support.check(value).all())
    assert not value.requires_grad and not d.has_rsample
    shapes = {name: getattr(d, name).shape for name in d.arg_constraints}
    assert type(d).infer_shapes(**shapes) == (d.batch_shape, d.event_shape)


@every_one
def test_expand(make):
    d = make((2,))
    larger = d.expand((3, 2))
    assert type(larger) is type(d) and larger.batch_shape == (3, 2)
    value = d.sample()
    assert torch.equal(larger.log_prob(value), d.log_prob(value).expand(3, 2))
    assert larger.sample((4,)).shape == (4, 3, 2, *d.event_shape)
    for name in d.arg_constraints:  # no copies
        assert getattr(larger, name).data_ptr() == getattr(d, name).data_ptr()
    with pytest.raises(RuntimeError):
        d.expand((3,))


@every_one
def test_expanded_copies_validate_as_the_original(make):
    outside = torch.full(make(()).shape(()), -0.5, dtype=torch.float64)
    for d in (make((2,)), make((2,)).expand((3, 2))):
        with pytest.raises(ValueError, match="support"):
            d.log_prob(outside)
    with pyro.validation_enabled(False):
        make((2,)).expand((3, 2)).log_prob(outside)


@every_one
def test_parameters_are_validated(make):
    d = make((2,))
    arguments = {name: getattr(d, name).clone() for name in d.arg_constraints}
    for name in arguments:
        bad = {**arguments, name: torch.full_like(arguments[name], math.nan)}
        with pytest.raises(ValueError, match=name):
            type(d)(**bad)
        assert type(d)(**bad, validate_args=False).batch_shape == (2,)


@every_one
def test_moments_of_samples(make):
    d = make((3,))
    samples = d.sample((200_000,)).reshape(200_000, -1).numpy()
    mean = d.mean.flatten().numpy()
    second = d.variance.flatten().numpy() + mean**2
    assert z_test(samples, mean, second) > ALPHA
    fourth = (samples**4).mean(0)
    assert z_test(samples**2, second, np.maximum(fourth, second**2 + 1e-12)) > ALPHA


@every_one
def test_copies_and_plates(make):
    d = make(())
    value = d.sample()
    assert torch.equal(copy.deepcopy(d).log_prob(value), d.log_prob(value))
    with pyro.plate("rows", 3):
        assert pyro.sample("x", d).shape == (3, *d.event_shape)


def test_spin_by_definition():
    field = torch.tensor([-300.0, -0.7, 0.0, 2.0, 300.0], dtype=torch.float64)
    d = Spin(field)
    values = d.enumerate_support()
    assert values.shape == (2, 5) and d.enumerate_support(expand=False).shape == (2, 1)
    log_prob = d.log_prob(values).numpy()
    for i, f in enumerate(field.tolist()):
        log_z = np.logaddexp(f, -f)
        np.testing.assert_allclose(log_prob[:, i], [-f - log_z, f - log_z], atol=1e-12)
    p = np.exp(log_prob)
    np.testing.assert_allclose(d.mean.numpy(), p[1] - p[0], atol=1e-12)
    np.testing.assert_allclose(d.variance.numpy(), 1 - (p[1] - p[0]) ** 2, atol=1e-12)
    # Scalar batch shapes, and fields beyond which a spin is certain.
    assert Spin(torch.tensor(1e4)).sample().item() == 1.0
    assert set(Spin(torch.tensor(-1e4)).sample((100,)).tolist()) == {-1.0}


@pytest.mark.parametrize("alpha", [-1000.0, -35.0, -20.0, -5.0, -1.0, 0.0, 1.5, 6.0, 30.0])
@pytest.mark.parametrize("scale", [0.4, 2.0])
def test_rectified_normal_by_definition(alpha, scale):
    # In z = (x - peak) / width the density is of order one, wherever its mass lies.
    width = scale / max(1.0, -alpha)
    peak = max(0.0, alpha * scale)

    def density(z: float) -> float:
        x = peak + z * width
        return math.exp(alpha * (x - peak) / scale - 0.5 * (x * x - peak * peak) / scale**2)

    low = -min(peak / width, 12.0)

    def moment(power: int) -> float:
        def integrand(z: float) -> float:
            return density(z) * z**power

        return integrate.quad(integrand, low, 40, epsabs=1e-13, epsrel=1e-11)[0]

    total, first, second = (moment(power) for power in range(3))
    loc = torch.tensor(alpha * scale, dtype=torch.float64)
    d = RectifiedNormal(loc, torch.tensor(scale, dtype=torch.float64))
    mean = first / total
    assert d.mean.item() == pytest.approx(peak + width * mean, rel=1e-9)
    variance = width**2 * (second / total - mean**2)
    assert d.variance.item() == pytest.approx(variance, rel=1e-7)
    for z in (0.0, 0.5, 3.0):
        expected = math.log(density(z) / (total * width))
        value = torch.tensor(peak + z * width, dtype=torch.float64)
        assert d.log_prob(value).item() == pytest.approx(expected, abs=1e-9, rel=1e-9)


def test_rectified_normal_float32_log_prob_of_a_far_location():
    # alpha z - z^2 / 2 and the normaliser are 5e5 each here; their difference is of order one.
    d = RectifiedNormal(torch.tensor(1000.0), torch.tensor(1.0))
    assert d.log_prob(torch.tensor(1000.5)).item() == pytest.approx(-0.125 - 0.918939, abs=1e-3)


def test_rectified_normal_samples_follow_its_law():
    d = RectifiedNormal(torch.tensor(-0.8).double(), torch.tensor(1.7).double())
    law = stats.truncnorm(0.8 / 1.7, np.inf, loc=-0.8, scale=1.7)
    assert stats.kstest(d.sample((50_000,)).numpy(), law.cdf).pvalue > ALPHA


def test_rectified_normal_log_prob_gradients():
    # At alpha = 0 two formulas meet: each element takes the gradient of exactly one of them.
    loc = torch.tensor([-40.0, -1.0, 0.0, 1e-9, 2.0], dtype=torch.float64).requires_grad_()
    scale = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.7], dtype=torch.float64).requires_grad_()
    x = torch.tensor([0.01, 0.3, 1.0, 2.0, 0.2], dtype=torch.float64).requires_grad_()
    gradients = torch.autograd.grad(RectifiedNormal(loc, scale).log_prob(x).sum(), (loc, x))
    mean = RectifiedNormal(loc, scale).mean.detach()
    precision = scale.detach() ** -2
    torch.testing.assert_close(gradients[0], (x.detach() - mean) * precision)
    torch.testing.assert_close(gradients[1], (loc - x).detach() * precision)


def test_flat_one_hot_by_definition():
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]], dtype=torch.float64)
    d = FlatOneHotCategorical(logits)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(d.mean.numpy(), p.ravel(), atol=1e-12)
    np.testing.assert_allclose(d.variance.numpy(), (p * (1 - p)).ravel(), atol=1e-12)
    total = 0.0
    for i in range(3):
        for j in range(3):
            value = torch.zeros(6, dtype=torch.float64)
            value[i] = value[3 + j] = 1.0
            got = d.log_prob(value).exp().item()
            assert got == pytest.approx(p[0, i] * p[1, j], abs=1e-12)
            total += got
    assert total == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("constraint", "inside", "outside"),
    [
        (spin, [-1.0, 1.0], [0.0, 0.5, 2.0, math.nan, math.inf]),
        (flat_one_hot(2), [[1.0, 0.0, 0.0, 1.0]], [[1.0, 1.0, 0.0, 0.0], [0.5, 0.5, 1.0, 0.0]]),
        (counts(3), [[3.0, 0.0], [1.0, 2.0]], [[1.0, 1.0], [4.0, -1.0], [1.5, 1.5]]),
    ],
    ids=repr,
)
def test_constraints(constraint, inside, outside):
    assert bool(constraint.check(torch.tensor(inside)).all())
    assert not bool(constraint.check(torch.tensor(outside)).any())
    assert constraint.is_discrete
    assert constraint.check(torch.tensor(inside)).dim() == torch.tensor(inside).dim() - (
        constraint.event_dim
    )


def test_constraint_names():
    assert repr(flat_one_hot(3)) == "flat_one_hot(num_states=3)"
    assert repr(counts(5)) == "counts(total_count=5)"
