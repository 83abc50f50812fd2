# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Clamped machines keep every constant: ``clamped.log_prob(free) == log_prob(full)``."""

import copy
import pickle

import numpy as np
import pytest
import torch

from pyro_ebm.distributions import RBM, units
from tests import brute_force
from tests.distributions.families import (
    ALL_FAMILIES,
    ALL_PAIRS,
    batch_indices,
    random_rbm,
    some_states,
    to_machine,
)

# A Multinomial or low-rank layer is one unit, so it cannot be clamped in part.
CLAMPABLE = [pair for pair in ALL_PAIRS if pair[0] not in ("multinomial", "low_rank")]
every_pair = pytest.mark.parametrize("pair", CLAMPABLE, ids="-".join)


def clamp_mask(rbm: RBM) -> torch.Tensor:
    mask = torch.zeros(rbm.visible.size, dtype=torch.bool)
    if rbm.visible.size == 6:
        mask[3:] = True  # the second one-hot group
    elif rbm.visible.size == 7:
        mask[1:4] = True  # one of the labels beside a bit
    else:
        mask[0] = mask[2:] = True
    return mask


@every_pair
@pytest.mark.parametrize("offsets", [False, True], ids=["plain", "offsets"])
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"])
def test_clamped_log_prob_is_the_full_one(pair, offsets, batched):
    rbm = random_rbm(pair, offsets=offsets, batched=batched)
    mask = clamp_mask(rbm)
    rows = some_states(to_machine(rbm, (0,) * len(rbm.batch_shape)).visible, 4)
    v = torch.from_numpy(rows).reshape(len(rows), *(1,) * len(rbm.batch_shape), -1)
    # One clamped value for all, and one a row: the value's batch becomes part of the machine's.
    for value in (v[1], v):
        full = torch.where(mask, value, v)
        clamped = rbm.clamp(mask, value)
        assert clamped.event_shape == (int((~mask).sum()),)
        batch = torch.broadcast_shapes(value.shape[:-1], rbm.batch_shape)
        assert clamped.batch_shape == batch
        got = clamped.log_prob(full[..., ~mask])
        for index in batch_indices(rbm.batch_shape):
            states = full.reshape(len(rows), -1).numpy()
            expected = -brute_force.free_energy(to_machine(rbm, index), states).real
            np.testing.assert_allclose(got[(slice(None), *index)], expected, atol=1e-9, rtol=1e-9)
        # Joint energies and conditionals of the rest are those of the full machine.
        h = rbm.hidden_given(full).sample()
        energy = clamped.energy(full[..., ~mask], h)
        torch.testing.assert_close(energy, rbm.energy(full, h), atol=1e-9, rtol=1e-9)
        hidden = clamped.hidden_given(full[..., ~mask]).mean
        torch.testing.assert_close(hidden, rbm.hidden_given(full).mean, atol=1e-9, rtol=1e-9)
        visible = clamped.visible_given(h).mean
        expected = rbm.visible_given(h).mean[..., ~mask]
        # Blocks of a mixed layer that are left need not have its batch shape.
        visible = visible.expand(expected.shape)
        torch.testing.assert_close(visible, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("hidden", list(ALL_FAMILIES))
def test_clamped_machines_can_be_turned_cast_clamped_and_copied(hidden):
    rbm = random_rbm(("bernoulli", hidden), offsets=True)
    v = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    first = torch.tensor([True, False, False])
    clamped = rbm.clamp(first, v)
    twice = clamped.clamp(torch.tensor([False, True]), v[1:])
    expected = rbm.log_prob(v)
    torch.testing.assert_close(twice.log_prob(v[1:2]), expected, atol=1e-9, rtol=1e-9)
    for same in (
        clamped.transpose().transpose(),
        clamped.to(torch.float64),
        copy.deepcopy(clamped),
        pickle.loads(pickle.dumps(clamped)),
    ):
        torch.testing.assert_close(same.log_prob(v[1:]), expected, atol=1e-9, rtol=1e-9)
    h = rbm.hidden_given(v).sample()
    form = clamped.canonical()
    negative = (
        (form.visible_bias * v[1:]).sum()
        + (form.hidden_bias * h).sum()
        + v[1:] @ form.weight @ h
        + form.constant
        - clamped.hidden.neutral().energy(h)
    )
    torch.testing.assert_close(negative, -rbm.energy(v, h), atol=1e-9, rtol=1e-9)


def test_nothing_clamped_drops_only_log_partition():
    rbm = random_rbm(("bernoulli", "bernoulli")).normalize(1.0)
    v = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    clamped = rbm.clamp(torch.zeros(3, dtype=torch.bool), v)
    assert clamped.log_partition is None
    torch.testing.assert_close(clamped.log_prob(v), rbm.log_prob(v) + 1.0)


def test_log_partition_is_dropped_and_validation_kept():
    rbm = random_rbm(("bernoulli", "gaussian")).normalize(1.0)
    mask, v = torch.tensor([True, False, False]), torch.ones(3, dtype=torch.float64)
    clamped = rbm.clamp(mask, v)
    assert clamped.log_partition is None
    with pytest.raises(ValueError, match="support"):
        clamped.log_prob(torch.full((2,), 0.5, dtype=torch.float64))


def test_values_at_free_units_are_not_read():
    rbm = random_rbm(("bernoulli", "bernoulli"))
    mask = torch.tensor([True, False, False])
    value = torch.tensor([1.0, torch.nan, 7.0], dtype=torch.float64)
    free = torch.tensor([0.0, 1.0], dtype=torch.float64)
    full = torch.cat([value[:1], free])
    torch.testing.assert_close(rbm.clamp(mask, value).log_prob(free), rbm.log_prob(full))


def test_gradients_flow_through_the_constant():
    rbm = random_rbm(("gaussian", "gaussian"), offsets=True)
    weight = rbm.weight.clone().requires_grad_()
    model = RBM(
        rbm.visible,
        rbm.hidden,
        weight,
        visible_offset=rbm.visible_offset,
        hidden_offset=rbm.hidden_offset,
    )
    v = torch.tensor([0.7, -0.2], dtype=torch.float64)
    clamped = model.clamp(torch.tensor([True, False]), v)
    (got,) = torch.autograd.grad(clamped.free_energy(v[1:]), weight)
    (expected,) = torch.autograd.grad(model.free_energy(v), weight)
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)


def test_expanded_batches_stay():
    rbm = random_rbm(("bernoulli", "bernoulli")).expand((4,))
    mask, v = torch.tensor([True, False, False]), torch.ones(3, dtype=torch.float64)
    assert rbm.clamp(mask, v).batch_shape == (4,)
    assert rbm.clamp(mask, v.expand(4, 3)).sample().shape == (4, 2)


def test_samples_of_a_clamped_machine_follow_the_conditional_law():
    rbm = random_rbm(("bernoulli", "gaussian"), offsets=True)
    mask, v = torch.tensor([False, True, False]), torch.tensor([0.0, 1.0, 0.0]).double()
    draws = rbm.clamp(mask, v).sample((200_000,))
    states = np.array([[0, 1, 0], [0, 1, 1], [1, 1, 0], [1, 1, 1]], dtype=float)
    free = brute_force.free_energy(to_machine(rbm), states).real
    p = np.exp(-free) / np.exp(-free).sum()
    counts = np.bincount((2 * draws[:, 0] + draws[:, 1]).long().numpy(), minlength=4)
    deviation = (counts - 200_000 * p) / np.sqrt(200_000 * p * (1 - p))
    assert np.abs(deviation).max() < 6


BAD = [
    (torch.tensor([1, 0, 0]), torch.ones(3), r"mask must be boolean of shape \(3,\), got .*int64"),
    (torch.tensor([True]), torch.ones(3), r"mask must be boolean .* got torch.bool \(1,\)"),
    (torch.ones(3).bool(), torch.ones(3), "mask clamps every visible unit"),
    (torch.tensor([True, False, False]), torch.ones(2), r"value must have shape .*3.* got \(2,\)"),
    (torch.tensor([True, False, False]), torch.full((3,), torch.nan), "value is NaN at a clamped"),
    (torch.tensor([True, False, False]), torch.full((3,), 0.5), "value is outside of .*Boolean"),
]


@pytest.mark.parametrize(("mask", "value", "message"), BAD)
def test_bad_arguments_are_named(mask, value, message):
    with pytest.raises(ValueError, match=message):
        random_rbm(("bernoulli", "bernoulli")).clamp(mask, value)


def test_one_unit_layers_are_clamped_whole():
    with pytest.raises(ValueError, match="whole one-hot groups"):
        rbm = random_rbm(("categorical", "ising"))
        rbm.clamp(torch.tensor([1, 0, 0, 0, 0, 0]).bool(), torch.zeros(6))
    with pytest.raises(ValueError, match="Multinomial"):
        rbm = random_rbm(("multinomial", "ising"))
        rbm.clamp(torch.tensor([True, False, False]), torch.tensor([3.0, 0.0, 0.0]))


def test_nothing_clamped_takes_the_batch_of_the_value():
    rbm = RBM(units.Bernoulli(torch.zeros(3)), units.Bernoulli(torch.zeros(2)), torch.ones(3, 2))
    clamped = rbm.clamp(torch.zeros(3, dtype=torch.bool), torch.zeros(5, 3))
    assert clamped.batch_shape == (5,)
    assert torch.equal(clamped.log_prob(torch.ones(3)), rbm.log_prob(torch.ones(5, 3)))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_states_of_any_dtype(dtype):
    rbm = RBM(units.Bernoulli(torch.randn(3)), units.Bernoulli(torch.randn(2)), torch.randn(3, 2))
    v, h = torch.tensor([1, 0, 1], dtype=dtype), torch.tensor([0, 1], dtype=dtype)
    assert torch.equal(rbm.log_prob(v), rbm.log_prob(v.float()))
    assert torch.equal(rbm.energy(v, h), rbm.energy(v.float(), h.float()))
    assert torch.equal(rbm.hidden_given(v).mean, rbm.hidden_given(v.float()).mean)
    assert torch.equal(rbm.visible_given(h).mean, rbm.visible_given(h.float()).mean)
    mask = torch.tensor([True, False, False])
    assert torch.equal(rbm.clamp(mask, v).weight, rbm.clamp(mask, v.float()).weight)
