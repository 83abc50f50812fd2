# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Machines clamped to rows with masks of their own: every constant is kept."""

import numpy as np
import pytest
import torch

from pyro_ebm.distributions import RBM, units
from pyro_ebm.distributions.observed_rows import ObservedRows
from pyro_ebm.distributions.row_clamp import hidden_log_weight
from pyro_ebm.infer import exact_log_partition, observed_log_likelihood
from tests import brute_force
from tests.distributions.families import (
    ALL_PAIRS,
    UNBOUNDED,
    batch_indices,
    flat_tensors,
    random_rbm,
    some_states,
    to_machine,
    uniform,
)
from tests.infer.missing.reference import log_density, log_density_alone, rows_of

every_pair = pytest.mark.parametrize("pair", ALL_PAIRS, ids="-".join)
COUNT = 4


@every_pair
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_the_joint_density_is_that_of_the_rows_times_decoupled_units(pair, batched):
    """At every state: exp(-F) of the missing entries, times the law of the decoupled ones alone."""
    rbm = random_rbm(pair, offsets=True, batched=batched)
    value, observed = rows_of(rbm, COUNT)
    lift = (COUNT, *(1,) * len(rbm.batch_shape), -1)
    clamped = rbm.clamp_rows(observed.reshape(lift), value.reshape(lift))
    assert clamped.batch_shape == (COUNT, *rbm.batch_shape)
    assert clamped.event_shape == rbm.event_shape
    layer = to_machine(rbm, (0,) * len(rbm.batch_shape)).visible
    x = torch.from_numpy(some_states(layer, 2))
    got = -clamped.free_energy(x.reshape(2, 1, *lift[1:]))
    for index in batch_indices(rbm.batch_shape):
        machine = to_machine(rbm, index)
        layer = machine.visible
        for row in range(COUNT):
            mask = observed[row].numpy()
            full = torch.where(observed[row], value[row], x).numpy()
            expected = -brute_force.free_energy(machine, full).real
            expected += [log_density_alone(layer, own, mask) for own in x.numpy()]
            np.testing.assert_allclose(
                got[(slice(None), row, *index)], expected, atol=1e-9, rtol=1e-9
            )


#: log Z needs a finite layer, or a quadrature over two layers of two units (tested with the likelihood).
FINITE_PAIRS = [pair for pair in ALL_PAIRS if not set(pair) <= set(UNBOUNDED)]


@pytest.mark.parametrize("pair", FINITE_PAIRS[::3], ids="-".join)
def test_log_partition_is_that_of_the_missing_entries(pair):
    rbm = random_rbm(pair, offsets=True)
    value, observed = rows_of(rbm, 3)
    got = exact_log_partition(rbm.clamp_rows(observed, value))
    for row in range(3):
        expected = log_density(to_machine(rbm), value[row].numpy(), observed[row].numpy()).real
        assert abs(got[row].item() - expected) < 1e-8
    # A row that misses everything leaves the machine, one that misses nothing a free energy.
    assert abs(got[0] - exact_log_partition(rbm)) < 1e-9
    assert abs(got[1] + rbm.free_energy(value[1])) < 1e-9


@pytest.mark.parametrize("pair", ALL_PAIRS[::3], ids="-".join)
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_weights_of_hidden_states(pair, batched):
    """The free energy of the clamped machine's other side, and its gradients."""
    rbm = random_rbm(pair, offsets=True, batched=batched)
    value, observed = rows_of(rbm, COUNT)
    lift = (COUNT, *(1,) * len(rbm.batch_shape), -1)
    value, observed = value.reshape(lift), observed.reshape(lift)
    tensors = list(flat_tensors(rbm).values())
    for tensor in tensors:
        tensor.requires_grad_()
    h = rbm.hidden.sample(torch.zeros(2, COUNT, *rbm.batch_shape, rbm.hidden.size).double())
    expected = -rbm.clamp_rows(observed, value).transpose().free_energy(h)
    got = hidden_log_weight(rbm, ObservedRows(rbm, value, observed), h)
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)
    for have, want in zip(
        torch.autograd.grad(got.sum(), tensors, allow_unused=True),
        torch.autograd.grad(expected.sum(), tensors, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(have, want, atol=1e-9, rtol=1e-9)


def test_one_mask_of_all_rows_repeats_no_weight():
    rbm = random_rbm(("bernoulli", "ising"))
    mask = torch.tensor([True, False, False])
    clamped = rbm.clamp_rows(mask, torch.zeros(5, 3))
    assert clamped.weight.shape == rbm.weight.shape and clamped.batch_shape == (5,)
    reference = rbm.clamp(mask, torch.zeros(5, 3))
    torch.testing.assert_close(exact_log_partition(clamped), exact_log_partition(reference))


def mixed_rbm() -> RBM:
    layer = units.Mixed(
        [
            units.Gaussian(uniform((2,), -1, 1), uniform((), 0.8, 2.0)),
            units.Categorical(uniform((2, 3), -1, 1)),
            units.LowRankGaussian(
                uniform((2,), -1, 1), uniform((2,), 0.8, 2.0), uniform((2, 1), -1, 1)
            ),
            units.Bernoulli(uniform((1,), -1, 1)),
        ]
    )
    return RBM(
        layer,
        units.Ising(uniform((3,), -1, 1)),
        uniform((11, 3), -0.7, 0.7),
        visible_offset=uniform((11,), -1, 1),
    )


def test_mixed_layers_block_by_block():
    rbm = mixed_rbm()
    v = rbm.sample()
    # Entry, group, correlated pair, bit: each alone, and pairs of them.
    spans = [slice(0, 1), slice(2, 5), slice(8, 10), slice(10, 11)]
    observed = torch.zeros(6, 11, dtype=torch.bool)
    for row, chosen in enumerate([(0,), (1,), (2,), (3,), (0, 2), (1, 2, 3)]):
        for i in chosen:
            observed[row, spans[i]] = True
    clamped = rbm.clamp_rows(observed, torch.where(observed, v, torch.nan))
    got = exact_log_partition(clamped)
    for row in range(6):
        expected = exact_log_partition(rbm.clamp(observed[row], v))
        torch.testing.assert_close(got[row], expected, atol=1e-9, rtol=1e-9)
    with pytest.raises(ValueError, match="all 2 entries of a LowRankGaussian layer or none"):
        rbm.clamp_rows(torch.arange(11) == 8, v)
    with pytest.raises(ValueError, match="all 3 entries of a Categorical one-hot group or none"):
        rbm.clamp_rows(torch.arange(11) == 3, v)


def test_a_layer_that_is_one_unit_is_never_taken_in_part():
    layer = mixed_rbm().visible
    rbm = RBM(layer, units.Ising(torch.zeros(3).double()), torch.zeros(11, 3).double())
    rbm._validate_args = False
    with pytest.raises(ValueError, match="all 2 entries of a LowRankGaussian layer or none"):
        rbm.clamp_rows(torch.arange(11) == 8, torch.zeros(11))
    with pytest.raises(ValueError, match="not done"):
        observed_log_likelihood(rbm, torch.zeros(11), torch.arange(11) == 8)
    # What is only wrong is not looked at.
    rbm.clamp_rows(torch.arange(11) == 0, torch.full((11,), torch.nan))


@pytest.mark.parametrize("pair", ALL_PAIRS[::4], ids="-".join)
def test_missing_values_never_leak(pair):
    rbm = random_rbm(pair, offsets=True)
    value, observed = rows_of(rbm, COUNT)
    weight = rbm.weight.clone().requires_grad_()
    rbm.weight = weight

    def gradients(filled: torch.Tensor) -> tuple[torch.Tensor, ...]:
        filled = filled.clone().requires_grad_()
        clamped = rbm.clamp_rows(observed, filled)
        x = torch.zeros(rbm.visible.size, dtype=torch.float64)
        return torch.autograd.grad(clamped.free_energy(x).sum(), [weight, filled])

    for got, expected in zip(gradients(value), gradients(value.nan_to_num(7.0)), strict=True):
        assert torch.isfinite(got).all()
        assert torch.equal(got, expected)


def test_attributes_follow_the_machine():
    rbm = random_rbm(("bernoulli", "gaussian")).normalize(1.0).expand((4, 1))
    rbm.num_gibbs_steps = 7
    clamped = rbm.clamp_rows(torch.tensor([True, False, False]), torch.ones(3))
    assert clamped.log_partition is None
    assert clamped.batch_shape == (4, 1) and clamped.num_gibbs_steps == 7
    assert clamped.sample((2,)).shape == (2, 4, 1, 3)
    turned = rbm.transpose().clamp_rows(torch.tensor([True, False]), torch.zeros(2))
    assert turned.batch_shape == (4, 1)
    clamped_twice = clamped.clamp_rows(torch.tensor([False, True, False]), torch.ones(3))
    both = rbm.clamp_rows(torch.tensor([True, True, False]), torch.ones(3))
    torch.testing.assert_close(exact_log_partition(clamped_twice), exact_log_partition(both))


BITS = torch.zeros(3)
BAD = [
    ((torch.zeros(3), BITS), "observed must be boolean, got torch.float32"),
    ((torch.zeros(2).bool(), BITS), r"observed must be a tensor of shape .*3\), got \(2,\)"),
    ((torch.zeros(3).bool(), torch.zeros(2)), r"value must be a tensor of shape .*got \(2,\)"),
    ((torch.zeros(3).bool(), 0.0), "value must be a tensor .* got 0.0"),
    ((torch.zeros(2, 3).bool(), torch.zeros(4, 3)), "do not broadcast"),
    ((torch.ones(3).bool(), torch.full((3,), torch.nan)), "value is NaN at an observed entry"),
    ((torch.ones(3).bool(), torch.full((3,), 0.5)), "outside of the support at 3 of 3 observed"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_rbm(("bernoulli", "bernoulli")).clamp_rows(*arguments)


def test_rows_must_fit_the_batch_shape():
    rbm = random_rbm(("bernoulli", "bernoulli"), batched=True)
    with pytest.raises(ValueError, match=r"rows of shape \(4,\) do not broadcast .* \(2, 3\)"):
        rbm.clamp_rows(torch.zeros(4, 3).bool(), torch.zeros(4, 3))


@pytest.mark.parametrize("family", ["categorical", "multinomial"])
def test_units_of_several_entries_are_observed_whole(family):
    rbm = random_rbm((family, "ising"))
    mask = torch.arange(rbm.visible.size) == 1
    with pytest.raises(ValueError, match=r"all 3 entries .* or none"):
        rbm.clamp_rows(mask, torch.zeros(rbm.visible.size))
