# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Every pair of families against brute force, with and without offsets and batch shapes."""

import numpy as np
import pytest
import torch

from pyro_ebm.distributions import RBM, GibbsSweep
from tests import brute_force
from tests.distributions.families import (
    ALL_PAIR_IDS,
    ALL_PAIRS,
    batch_indices,
    flat_tensors,
    own_dim,
    position,
    random_rbm,
    some_states,
    to_machine,
)

TOLERANCE = 1e-9

pytestmark = [
    pytest.mark.parametrize("pair", ALL_PAIRS, ids=ALL_PAIR_IDS),
    pytest.mark.parametrize("offsets", [False, True], ids=["plain", "offsets"]),
    pytest.mark.parametrize("batched", [False, True], ids=["single", "batched"]),
]


def close(got: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(
        got.detach().numpy(), np.real(expected), atol=TOLERANCE, rtol=TOLERANCE
    )


def column(states: np.ndarray, batch: torch.Size) -> torch.Tensor:
    """States as (rows, 1, ..., 1, size), which broadcasts with the batch shape."""
    return torch.from_numpy(states).reshape(len(states), *(1,) * len(batch), -1)


def test_energies_and_conditionals(pair, offsets, batched):
    rbm = random_rbm(pair, offsets=offsets, batched=batched)
    assert rbm.batch_shape == ((2, 3) if batched else ())
    machine = to_machine(rbm, (0,) * len(rbm.batch_shape))
    v, h = some_states(machine.visible), some_states(machine.hidden, 3)
    v_t = column(v, rbm.batch_shape).expand(-1, *rbm.batch_shape, -1)
    h_t = column(h, rbm.batch_shape).expand(-1, *rbm.batch_shape, -1)
    free = rbm.free_energy(v_t)
    log_prob = rbm.log_prob(v_t)
    energy = rbm.energy(v_t.unsqueeze(1), h_t)
    hidden, visible = rbm.hidden_given(v_t), rbm.visible_given(h_t)
    assert hidden.event_dim == visible.event_dim == 1
    assert hidden.event_shape == (rbm.hidden.size,) and visible.event_shape == (rbm.visible.size,)
    h_log_prob = rbm.hidden_given(v_t.unsqueeze(1)).log_prob(h_t)
    v_log_prob = rbm.visible_given(h_t.unsqueeze(1)).log_prob(v_t)
    for index in batch_indices(rbm.batch_shape):
        machine = to_machine(rbm, index)
        turned = machine.swapped()
        here = (slice(None), *index)
        pairs = (slice(None), slice(None), *index)
        expected = brute_force.free_energy(machine, v)
        close(free[here], expected)
        close(log_prob[here], -expected)
        close(energy[pairs], brute_force.energy(machine, v, h))
        close(hidden.mean[here], brute_force.hidden_mean(machine, v))
        close(visible.mean[here], brute_force.hidden_mean(turned, h))
        close(h_log_prob[pairs], brute_force.hidden_log_prob(machine, v, h))
        close(v_log_prob[pairs], brute_force.hidden_log_prob(turned, h, v))
    # Samples of the conditionals lie in the support and have the shape of the batch.
    for conditional, unit, rows in ((hidden, rbm.hidden, len(v)), (visible, rbm.visible, len(h))):
        draws = conditional.sample((5,))
        assert draws.shape == (5, rows, *rbm.batch_shape, unit.size)
        assert bool(unit.support.check(draws).all())
        assert bool(conditional.support.check(draws).all())


def test_transpose(pair, offsets, batched):
    rbm = random_rbm(pair, offsets=offsets, batched=batched)
    turned = rbm.transpose()
    assert turned.batch_shape == rbm.batch_shape and turned.event_shape == (rbm.hidden.size,)
    h = some_states(to_machine(rbm, (0,) * len(rbm.batch_shape)).hidden)
    free = turned.free_energy(column(h, rbm.batch_shape))
    for index in batch_indices(rbm.batch_shape):
        machine = to_machine(rbm, index).swapped()
        close(free[(slice(None), *index)], brute_force.free_energy(machine, h))


def test_canonical_form(pair, offsets, batched):
    # -E = b'v + c'h + v'Wh - r_v(v) - r_h(h) + K, where r is the energy of the family at b = 0.
    rbm = random_rbm(pair, offsets=offsets, batched=batched)
    form = rbm.canonical()
    v = some_states(to_machine(rbm, (0,) * len(rbm.batch_shape)).visible, 3)
    h = some_states(to_machine(rbm, (0,) * len(rbm.batch_shape)).hidden, 3)
    v_t, h_t = column(v, rbm.batch_shape), column(h, rbm.batch_shape)
    negative = (
        (form.visible_bias * v_t).sum(-1)
        + (form.hidden_bias * h_t).sum(-1)
        + ((v_t.unsqueeze(-2) @ form.weight).squeeze(-2) * h_t).sum(-1)
        + form.constant
        - rbm.visible.neutral().energy(v_t)
        - rbm.hidden.neutral().energy(h_t)
    )
    for index in batch_indices(rbm.batch_shape):
        expected = -np.diagonal(brute_force.energy(to_machine(rbm, index), v, h))
        close(negative[(slice(None), *index)], expected)


def test_sweep_free_energy(pair, offsets, batched):
    """The chain's own free energy, from the natural parameter that it carries along."""
    rbm = random_rbm(pair, offsets=offsets, batched=batched)
    v = column(some_states(to_machine(rbm, (0,) * len(rbm.batch_shape)).visible), rbm.batch_shape)
    sweep = GibbsSweep(rbm)
    close(sweep.free_energy(v, sweep.hidden_theta(v)), rbm.free_energy(v).numpy())
    conditional = rbm.hidden.natural_mean(sweep.hidden_theta(v))
    close(conditional, rbm.hidden_given(v).mean.numpy())
    h = rbm.hidden_given(v).sample()
    close(rbm.visible.natural_mean(sweep.visible_theta(h)), rbm.visible_given(h).mean.numpy())


def learnable(rbm: RBM) -> RBM:
    def leaf(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().clone().requires_grad_()

    return RBM(
        rbm.visible.map(leaf),
        rbm.hidden.map(leaf),
        leaf(rbm.weight),
        visible_offset=None if rbm._visible_offset is None else leaf(rbm.visible_offset),
        hidden_offset=None if rbm._hidden_offset is None else leaf(rbm.hidden_offset),
    )


def test_gradients(pair, offsets, batched):
    # One hidden unit in the batched case: six machines are to be integrated.
    num_hidden = 1 if batched else 2
    rbm = learnable(random_rbm(pair, offsets=offsets, batched=batched, num_hidden=num_hidden))
    machine = to_machine(rbm, (0,) * len(rbm.batch_shape))
    v = some_states(machine.visible, 2)
    v_t = column(v, rbm.batch_shape).requires_grad_()
    tensors = flat_tensors(rbm)
    # Rows get unequal weights, so that no error can cancel in the sum.
    rows = torch.tensor([1.0, -0.7], dtype=torch.float64).reshape(2, *(1,) * len(rbm.batch_shape))
    total = (rbm.free_energy(v_t) * rows).sum()
    gradients = torch.autograd.grad(total, [*tensors.values(), v_t])
    expected = {name: np.zeros(tensor.shape) for name, tensor in tensors.items()}
    expected_v = np.zeros(v.shape)
    scale = rows.flatten().numpy()
    for index in batch_indices(rbm.batch_shape):
        machine = to_machine(rbm, index)
        for name, tensor in tensors.items():

            def loss(value, machine=machine, name=name):
                changed = brute_force.with_parameter(machine, name, value)
                return (brute_force.free_energy(changed, v) * scale).sum()

            there = position(tensor, index, own_dim(rbm, name))
            present = brute_force.parameters(machine)[name]
            expected[name][there] += brute_force.derivative(loss, present)
        if machine.visible.family != "multinomial":  # log x! has no derivative at the states
            expected_v += brute_force.derivative(
                lambda x, machine=machine: (brute_force.free_energy(machine, x) * scale).sum(), v
            )
    for (name, tensor), gradient in zip(tensors.items(), gradients, strict=False):
        np.testing.assert_allclose(
            gradient.numpy(), expected[name], atol=TOLERANCE, rtol=TOLERANCE, err_msg=name
        )
        assert gradient.shape == tensor.shape
    if machine.visible.family != "multinomial":
        close(gradients[-1].reshape(v.shape), expected_v)
