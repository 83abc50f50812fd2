# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The reduced machine has the law of the layer beside a Gaussian one, constants included."""

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM, reduced_machine, units
from pyro_ebm.infer import exact_log_partition
from tests.distributions.families import uniform

OTHERS = ["ising", "bernoulli", "categorical", "multinomial", "relu", "gaussian"]


def other_layer(family: str, batch: tuple[int, ...] = ()) -> units.Unit:
    if family == "categorical":
        return units.Categorical(uniform((*batch, 2, 3), -1, 1))
    if family == "multinomial":
        return units.Multinomial(uniform((*batch, 4), -1, 1), 3)
    bias = uniform((*batch, 5), -1, 1)
    if family in ("relu", "gaussian"):
        cls = units.ReLU if family == "relu" else units.Gaussian
        return cls(bias, uniform((*batch, 5), 20.0, 30.0))
    return (units.Ising if family == "ising" else units.Bernoulli)(bias)


def machine(family: str, num_gaussian: int, singular: bool = False, low_rank: bool = False) -> RBM:
    """Batches (2, 1) and (3,) in different parameters; a visible Gaussian layer."""
    hidden = other_layer(family, (2, 1))
    weight = uniform((2, 1, num_gaussian, hidden.size), -1, 1)
    if singular:
        weight[..., 1] = 2.0 * weight[..., 0]
        weight[1, 0] = 0.0
    loc, precision = uniform((3, num_gaussian), -1, 1), uniform((num_gaussian,), 0.5, 2.0)
    visible: units.Unit = units.Gaussian(loc, precision)
    if low_rank:
        visible = units.LowRankGaussian(loc, precision, uniform((num_gaussian, 2), -1, 1))
    return RBM(
        visible,
        hidden,
        weight,
        visible_offset=uniform((3, num_gaussian), -1, 1),
        hidden_offset=uniform((hidden.size,), -1, 1),
    )


def some_states(rbm: RBM) -> Tensor:
    if rbm.hidden.num_states is not None:
        return rbm.hidden.states(0, rbm.hidden.num_states)
    return uniform((7, rbm.hidden.size), 0.0, 2.0)


@pytest.mark.parametrize("low_rank", [False, True], ids=["diagonal", "low rank"])
@pytest.mark.parametrize("singular", [False, True], ids=["regular", "singular"])
@pytest.mark.parametrize("num_gaussian", [2, 9])
@pytest.mark.parametrize("family", OTHERS)
def test_same_free_energy(family: str, num_gaussian: int, singular: bool, low_rank: bool) -> None:
    torch.manual_seed(0)
    rbm = machine(family, num_gaussian, singular, low_rank)
    states = some_states(rbm)[:, None, None]
    expected = rbm.transpose().free_energy(states)
    for dist in (rbm, rbm.transpose()) if family != "gaussian" else (rbm,):
        for offset in (None, uniform((2, 1, rbm.hidden.size), -1, 1)):
            small = reduced_machine(dist, offset)
            rows = num_gaussian + 2 * low_rank
            assert small.weight.shape[-1] == min(rows, rbm.hidden.size)
            assert small.batch_shape == rbm.batch_shape == (2, 3)
            torch.testing.assert_close(small.free_energy(states), expected, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("singular", [False, True], ids=["regular", "singular"])
@pytest.mark.parametrize("num_gaussian", [2, 9])
@pytest.mark.parametrize("family", ["ising", "bernoulli", "categorical", "multinomial"])
def test_log_z_and_its_gradient(family: str, num_gaussian: int, singular: bool) -> None:
    torch.manual_seed(1)
    rbm = machine(family, num_gaussian, singular)
    leaves = [parameter.requires_grad_() for parameter in rbm.parameters()]
    expected = exact_log_partition(rbm)
    value = exact_log_partition(reduced_machine(rbm, torch.full((rbm.hidden.size,), 0.3).double()))
    torch.testing.assert_close(value, expected, rtol=0.0, atol=1e-9)
    weights = torch.rand_like(value)
    for got, want in zip(
        torch.autograd.grad((weights * value).sum(), leaves),
        torch.autograd.grad((weights * expected).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0.0, atol=1e-9)


def test_expanded_clamped_and_normalised_machines() -> None:
    torch.manual_seed(2)
    rbm = machine("ising", 9)
    expanded = reduced_machine(rbm.expand((4, 2, 3)).normalize(torch.tensor(1.5)))
    assert expanded.batch_shape == (4, 2, 3) and expanded.log_partition == 1.5
    mask = torch.zeros(9, dtype=torch.bool)
    mask[[0, 4]] = True
    clamped = rbm.clamp(mask, uniform((9,), -1, 1))
    torch.testing.assert_close(
        exact_log_partition(reduced_machine(clamped)), exact_log_partition(clamped)
    )


def test_large_precisions_lose_nothing_in_float32() -> None:
    """784 units of precision 1000 and mean 1: terms of the canonical form are 4e5, their sum is small."""
    torch.manual_seed(3)
    weight = 3.0 * torch.randn(784, 5)
    visible = units.Gaussian(torch.ones(784), torch.full((784,), 1000.0))
    rbm = RBM(visible, units.Ising(torch.zeros(5)), weight, visible_offset=torch.ones(784))
    small = reduced_machine(rbm)
    assert small.weight.dtype == torch.float32
    expected = exact_log_partition(rbm.to(dtype=torch.float64))
    torch.testing.assert_close(exact_log_partition(small), expected, rtol=1e-6, atol=0.0)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="Bernoulli-Bernoulli machine has no Gaussian layer"):
        reduced_machine(BernoulliRBM(torch.zeros(4, 3), torch.zeros(4), torch.zeros(3)))
    with pytest.raises(TypeError, match="dist must be an RBM, got Tensor"):
        reduced_machine(torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"offset must have shape \(\.\.\., 5\), got \(4,\)"):
        reduced_machine(machine("ising", 9), torch.zeros(4))
