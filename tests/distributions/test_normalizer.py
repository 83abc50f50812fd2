# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Attaching log Z, and the guard against training on an unnormalised log-probability."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyro_ebm.distributions import (
    RBM,
    BernoulliRBM,
    GaussianBernoulliRBM,
    UnnormalizedGradientError,
    units,
)
from tests.distributions.families import flat_tensors, random_rbm


def bits(*batch: int, **kwargs) -> BernoulliRBM:
    return BernoulliRBM(torch.zeros(*batch, 4, 3), torch.zeros(4), torch.zeros(3), **kwargs)


@pytest.mark.parametrize(
    "value",
    [
        2.5,
        3,
        torch.tensor(2.5),
        torch.tensor(2.5, dtype=torch.float64),
        np.float64(2.5),
        SimpleNamespace(value=torch.tensor(2.5)),
        SimpleNamespace(value=2.5),
    ],
    ids=["float", "int", "tensor", "float64", "numpy", "estimate", "estimate-float"],
)
def test_normalize_accepts(value):
    d = bits()
    number = float(getattr(value, "value", value))
    normalised = d.normalize(value)
    assert normalised.log_partition.dtype == torch.float32
    v = torch.ones(4)
    assert (d.log_prob(v) - normalised.log_prob(v)).item() == pytest.approx(number)
    assert d.log_partition is None and type(normalised) is BernoulliRBM
    assert bits(log_partition=value).log_partition.item() == pytest.approx(number)
    assert normalised.normalize(None).log_partition is None


def test_probabilities_sum_to_one():
    d = random_rbm(("bernoulli", "relu"), batched=True, offsets=True)
    states = d.enumerate_support()
    log_z = torch.logsumexp(d.log_prob(states), 0)
    assert log_z.shape == (2, 3)
    total = d.normalize(log_z).log_prob(states).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(2, 3, dtype=torch.float64))


def test_log_partition_broadcasts_to_the_batch():
    log_z = torch.tensor([[1.0], [2.0]])
    d = bits(2, 3)
    v = torch.ones(4)
    torch.testing.assert_close(
        d.log_prob(v) - d.normalize(log_z).log_prob(v), log_z.expand(2, 3), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("shape", [(4,), (5, 2, 3), (2, 1, 1, 1)])
def test_wrong_shapes_of_log_partition(batch, shape):
    message = rf"log_partition of shape \({shape[0]},.*batch shape \("
    with pytest.raises(ValueError, match=message):
        bits(*batch).normalize(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        bits(*batch, log_partition=torch.zeros(shape))


def test_nan_is_refused():
    with pytest.raises(ValueError, match="log_partition is NaN"):
        bits().normalize(math.nan)
    with pytest.raises(ValueError, match="log_partition is NaN"):
        bits(2).normalize(torch.tensor([0.0, math.nan]))


def learnable(name: str) -> RBM:
    """A Gaussian-Bernoulli machine with offsets of which one tensor requires a gradient."""
    rbm = random_rbm(("gaussian", "bernoulli"), offsets=True)
    flat_tensors(rbm)[name].requires_grad_()
    return rbm


NAMES = [
    "weight",
    "visible.loc",
    "visible.precision",
    "hidden.bias",
    "visible_offset",
    "hidden_offset",
]


@pytest.mark.parametrize("name", NAMES)
def test_guard_refuses_every_learnable_parameter(name):
    d = learnable(name)
    v = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(UnnormalizedGradientError, match=r"RBM.log_prob\(\).*log Z is not attached"):
        d.log_prob(v)
    for attached in (1.0, torch.tensor(1.0)):
        with pytest.raises(UnnormalizedGradientError, match="attached log Z is a constant"):
            d.normalize(attached).log_prob(v)
    with pytest.raises(UnnormalizedGradientError):
        d.expand((3,)).log_prob(v)
    with pytest.raises(UnnormalizedGradientError):
        d.transpose().log_prob(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(UnnormalizedGradientError):
        d.clamp(torch.tensor([True, False]), v).log_prob(v[1:])


def test_guard_names_the_ways_out():
    with pytest.raises(UnnormalizedGradientError) as caught:
        learnable("weight").log_prob(torch.zeros(2, dtype=torch.float64))
    for way in ("ContrastiveDivergence", "exact_log_partition", "free_energy", "no_grad"):
        assert way in str(caught.value)
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize("name", NAMES)
def test_guard_lets_pass(name):
    d = learnable(name)
    v = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        assert not d.log_prob(v).requires_grad
    log_z = flat_tensors(d)[name].sum()
    for normalised in (d.normalize(log_z), d.normalize(log_z).expand((3,))):
        result = normalised.log_prob(v)
        assert result.requires_grad
        (gradient,) = torch.autograd.grad(result.mean(), flat_tensors(d)[name])
        assert bool(torch.isfinite(gradient).all())
    assert d.free_energy(v).requires_grad  # the building block is never guarded


def test_guard_ignores_gradients_of_the_value():
    """HMC and Langevin differentiate by the value: no log Z is needed for that."""
    d = random_rbm(("gaussian", "bernoulli"), offsets=True)
    v = torch.zeros(2, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(d.log_prob(v), v)
    (expected,) = torch.autograd.grad(-d.free_energy(v), v)
    assert torch.equal(gradient, expected)


def test_the_differentiable_log_partition_makes_the_gradient_right():
    bias = torch.tensor([0.3, -1.0]).requires_grad_()
    d = BernoulliRBM(torch.zeros(2, 1), bias, torch.zeros(1))
    log_z = torch.logsumexp(-d.free_energy(d.enumerate_support()), 0)
    v = torch.tensor([1.0, 0.0])
    (gradient,) = torch.autograd.grad(d.normalize(log_z).log_prob(v), bias)
    torch.testing.assert_close(gradient, v - torch.sigmoid(bias.detach()))


def test_sampling_a_learnable_machine_needs_no_guard():
    weight = torch.zeros(3, 2).requires_grad_()
    d = GaussianBernoulliRBM(weight, torch.zeros(3), torch.ones(3), torch.zeros(2))
    assert not d.sample((2,)).requires_grad
    big = RBM(units.Gaussian(torch.zeros(3), 1.0), units.Gaussian(torch.zeros(2), 1.0), weight)
    assert not big.sample((2,)).requires_grad
