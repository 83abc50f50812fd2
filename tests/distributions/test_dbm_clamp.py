# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Clamped deep machines keep every constant: log Z of the rest is the sum over what is free."""

import copy
import pickle

import numpy as np
import pytest
import torch

from pyro_ebm.distributions import DBM
from pyro_ebm.infer import exact_log_partition
from tests import deep_machines
from tests.deep_machines import random_dbm, to_deep
from tests.distributions import laws
from tests.distributions.families import some_states, to_layer

LAYERS = ("labels", "ising", "bernoulli", "categorical")
UNITS = 3  # 7, 3, 3 and 6 entries


def machine(batched: bool = False, offsets: bool = True) -> DBM:
    families = ("bernoulli", *LAYERS[1:]) if batched else LAYERS
    return random_dbm(families, UNITS, offsets=offsets, batched=batched)


def states_of(dbm: DBM, count: int = 3) -> list[torch.Tensor]:
    found = [some_states(to_layer(unit, ()), count) for unit in dbm.units]
    return [torch.from_numpy(np.resize(x, (count, x.shape[1]))) for x in found]


def entries(size: int, *which: int) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(which)] = True
    return mask


#: Which entries of which layers are fixed; the visible layer is a bit and two groups of three labels.
MASKS = {
    "visible": {0: entries(7, 0)},
    "labels": {0: entries(7, 1, 2, 3)},
    "hidden": {1: entries(3, 1)},
    "neighbours": {0: entries(7, 0), 1: entries(3, 0, 2)},
    "three neighbours": {1: entries(3, 0), 2: entries(3, 1, 2), 3: entries(6, 3, 4, 5)},
    "apart": {0: entries(7, 0), 2: entries(3, 0)},
    "first": {0: ~entries(7)},
    "last": {3: ~entries(6)},
    "both ends": {0: ~entries(7), 3: ~entries(6)},
    "first and beside": {0: ~entries(7), 1: entries(3, 2)},
    "every layer": {0: entries(7, 0), 1: entries(3, 0), 2: entries(3, 2), 3: ~entries(6)},
}


def fixed(masks: dict[int, torch.Tensor], states: list[torch.Tensor], row: int = 0):
    return {n: (mask.numpy(), states[n][row].numpy()) for n, mask in masks.items()}


@pytest.mark.parametrize("which", MASKS)
@pytest.mark.parametrize("offsets", [False, True], ids=["plain", "offsets"])
def test_log_partition_of_what_is_free(which, offsets):
    dbm, masks = machine(offsets=offsets), MASKS[which]
    brute, states = to_deep(dbm), states_of(dbm)
    clamped = dbm.clamp(masks, {n: states[n] for n in masks})
    whole = [n for n, mask in masks.items() if bool(mask.all())]
    assert clamped.batch_shape == (3,) and clamped.depth == dbm.depth - len(whole)
    log_z = exact_log_partition(clamped.bipartite())
    for row in range(3):
        expected = deep_machines.log_partition(brute, fixed(masks, states, row)).real
        assert log_z[row].item() == pytest.approx(expected, abs=1e-9)
        # One value for all.
        one = dbm.clamp(masks, {n: states[n][row] for n in masks})
        assert one.batch_shape == ()
        assert exact_log_partition(one.bipartite()).item() == pytest.approx(expected, abs=1e-9)
    # Energies of joint states are those of the whole machine.
    free = [
        x[:, ~masks[n]] if n in masks else x
        for n, x in enumerate(states)
        if n not in masks or not bool(masks[n].all())
    ]
    torch.testing.assert_close(clamped.energy(free), dbm.energy(states), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "families", [("gaussian", "bernoulli", "relu"), ("mixed", "ising", "ising")]
)
def test_continuous_units(families):
    dbm = random_dbm(families, (2, 2, 1), offsets=True)
    states = states_of(dbm)
    masks = {0: entries(2, 1), 1: entries(2, 0)}
    clamped = dbm.clamp(masks, {n: states[n] for n in masks})
    log_z = exact_log_partition(clamped.bipartite())
    for row in range(3):
        expected = deep_machines.log_partition(to_deep(dbm), fixed(masks, states, row)).real
        assert log_z[row].item() == pytest.approx(expected, abs=1e-9)


def test_batched_machines_and_values():
    dbm = machine(batched=True)
    masks = {0: entries(3, 0, 2), 2: entries(3, 1)}
    states = [torch.from_numpy(x) for x in (np.eye(3)[:2], np.eye(3)[1:])]
    value = {0: states[0].reshape(2, 1, 1, 3), 2: states[1].reshape(2, 1, 1, 3)}
    clamped = dbm.clamp(masks, value)
    assert clamped.batch_shape == (2, 2, 3) == clamped.parameter_batch_shape
    log_z = exact_log_partition(clamped.bipartite())
    for row, i, j in ((0, 0, 0), (1, 1, 2), (0, 1, 1)):
        brute = to_deep(dbm, (i, j))
        given = {n: (masks[n].numpy(), value[n][row, 0, 0].numpy()) for n in masks}
        expected = deep_machines.log_partition(brute, given).real
        assert log_z[row, i, j].item() == pytest.approx(expected, abs=1e-9)


def test_completions_have_the_conditional_probabilities():
    """Half of the visible layer given the other half and a bit of the top."""
    dbm = random_dbm(("bernoulli", "ising", "bernoulli"), (4, 3, 3), offsets=True)
    masks = {0: entries(4, 0, 1), 2: entries(3, 1)}
    states = states_of(dbm)
    clamped = dbm.clamp(masks, {n: states[n][0] for n in masks})
    x, p = deep_machines.marginal(to_deep(dbm), 0, fixed(masks, states))
    free = torch.from_numpy(x[:, 2:])
    # log p*(free) of every completion, exactly, by the posterior of the layers above.
    log_p = exact_log_partition(clamped.posterior(free).bipartite())
    log_p = log_p - exact_log_partition(clamped.bipartite())
    np.testing.assert_allclose(log_p.exp().numpy(), p, atol=1e-12)
    draws = clamped.sample((40_000,))
    counts = np.bincount(laws.state_index(x[:, 2:], draws.numpy()), minlength=len(x))
    assert laws.chi_square(counts, p) > laws.ALPHA
    # Differences of log Z are log-probabilities of what was clamped.
    log_z = exact_log_partition(dbm.bipartite())
    whole, joint = deep_machines.joint(to_deep(dbm))
    agree = [
        (x == states[n][0].numpy())[:, masks[n].numpy()].all(1) if n in masks else slice(None)
        for n, x in enumerate(whole)
    ]
    probability = joint[agree[0]][:, :, agree[2]].sum()
    got = (exact_log_partition(clamped.bipartite()) - log_z).exp().item()
    assert got == pytest.approx(probability, abs=1e-12)


def test_the_bound_of_a_clamped_machine_is_below_the_exact_value():
    dbm = machine()
    states = states_of(dbm)
    masks = {1: entries(3, 0), 3: ~entries(6)}
    clamped = dbm.clamp(masks, {n: states[n][0] for n in masks})
    exact = exact_log_partition(clamped.posterior(states[0]).bipartite())
    gap = exact - clamped.log_prob(states[0])
    assert bool((gap >= -1e-12).all()) and bool((gap < 1.0).all())


def test_clamping_twice_copying_and_casting():
    dbm = machine()
    states = states_of(dbm)
    once = dbm.clamp({0: entries(7, 0), 2: entries(3, 1, 2)}, {0: states[0], 2: states[2]})
    first = dbm.clamp({2: entries(3, 1, 2)}, {2: states[2]}).clamp(entries(7, 0), states[0])
    expected = exact_log_partition(once.bipartite())
    for same in (
        first,
        once.to(torch.float64),
        once.detach(),
        copy.deepcopy(once),
        pickle.loads(pickle.dumps(once)),
    ):
        assert same.batch_shape == (3,)
        got = exact_log_partition(same.bipartite())
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_gradients_flow_through_constants():
    dbm = machine()
    tensors = [w.requires_grad_() for w in dbm.weights] + list(dbm._offsets)
    states = states_of(dbm.detach())
    [o.requires_grad_() for o in dbm._offsets]
    masks = {
        0: ~entries(7),
        1: entries(3, 0, 1),
        2: entries(3, 1),
        3: ~entries(6),
    }
    clamped = dbm.clamp(masks, {n: states[n] for n in masks})
    got = torch.autograd.grad(
        clamped.energy([states[1][:, 2:], states[2][:, [0, 2]]]).sum(), tensors
    )
    expected = torch.autograd.grad(dbm.energy(states).sum(), tensors)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_nothing_clamped_costs_nothing_and_takes_the_batch():
    dbm = machine().normalize(1.0)
    states = states_of(dbm)
    clamped = dbm.clamp({0: entries(7), 2: entries(3)}, {0: states[0], 2: states[2]})
    assert clamped.batch_shape == (3,) and clamped.log_partition is None
    assert clamped.weights[1] is dbm.weights[1] and clamped.units[2] is dbm.units[2]
    assert clamped._constant is None
    assert torch.equal(clamped.log_prob(states[0]), dbm.log_prob(states[0]) + 1.0)


def test_expanded_batches_stay():
    dbm = machine().expand((4, 3))
    states = states_of(dbm)
    assert dbm.clamp(entries(7, 0), states[0][0]).batch_shape == (4, 3)
    assert dbm.posterior(states[0]).batch_shape == (4, 3)
    assert dbm.tilt(torch.zeros(7)).batch_shape == (4, 3)
    assert dbm.clamp(entries(7, 0), states[0]).sample().shape == (4, 3, 6)


def test_free_values_are_not_read_and_options_stay():
    dbm = random_dbm(("bernoulli", "bernoulli", "bernoulli"), 3)
    dbm = DBM(dbm.units, dbm.weights, num_gibbs_steps=7, mean_field_tolerance=1e-3)
    value = torch.tensor([1.0, torch.nan, 7.0], dtype=torch.float64)
    clamped = dbm.clamp(entries(3, 0), value)
    assert clamped.num_gibbs_steps == 7 and clamped.mean_field_tolerance == 1e-3
    with pytest.raises(ValueError, match="support"):
        clamped.log_prob(torch.full((2,), 0.5, dtype=torch.float64))


BITS = ("bernoulli", "bernoulli", "categorical")
BAD = [
    (TypeError, [True], torch.ones(3), "mask must be a tensor or a dictionary .* got list"),
    (TypeError, {0: entries(3, 0)}, 1.0, "value must be a tensor or a dictionary .* got float"),
    (ValueError, entries(3, 0), {1: torch.ones(3)}, r"same layers, got \[0\] and \[1\]"),
    (ValueError, {3: entries(3, 0)}, {3: torch.ones(3)}, r"layers are 0 to 2, got masks of \[3\]"),
    (ValueError, {-1: entries(3, 0)}, {-1: torch.ones(3)}, r"got masks of \[-1\]"),
    (ValueError, {"v": entries(3)}, {"v": torch.ones(3)}, r"got masks of \['v'\]"),
    (ValueError, torch.ones(3), torch.ones(3), r"mask of layer 0 must be boolean of shape \(3,\)"),
    (ValueError, {1: entries(7, 0)}, {1: torch.ones(3)}, r"mask of layer 1 must be boolean"),
    (ValueError, {1: [True]}, {1: torch.ones(3)}, r"mask of layer 1 .* got \[True\]"),
    (
        ValueError,
        entries(3, 0),
        torch.ones(2),
        r"value of layer 0 must have shape .*float32 \(2,\)",
    ),
    (ValueError, {0: entries(3, 0)}, {0: 1.0}, "value of layer 0 must have shape .* got 1.0"),
    (
        ValueError,
        entries(3, 0),
        torch.full((3,), torch.nan),
        "value of layer 0 is NaN at a clamped",
    ),
    (ValueError, entries(3, 0), torch.full((3,), 0.5), "value of layer 0 is outside of .*Boolean"),
    (ValueError, {2: entries(6, 0)}, {2: torch.eye(6)[0]}, "mask must take whole one-hot groups"),
    (
        ValueError,
        {1: entries(3, 0, 1, 2)},
        {1: torch.ones(3)},
        "all units of layer 1: what is left",
    ),
    (
        ValueError,
        {0: entries(3, 0, 1, 2), 2: ~entries(6)},
        {0: torch.ones(3), 2: torch.tensor([1.0, 0, 0, 0, 1, 0])},
        r"less than two layers.*layer_given\(\)",
    ),
    (
        ValueError,
        {0: entries(3, 0), 2: entries(6, 0, 1, 2)},
        {0: torch.ones(4, 3), 2: torch.eye(6)[[0, 1, 2]]},
        "do not broadcast",
    ),
]


@pytest.mark.parametrize(("error", "mask", "value", "message"), BAD)
def test_bad_arguments_are_named(error, mask, value, message):
    with pytest.raises(error, match=message):
        random_dbm(BITS, (3, 3, 2)).clamp(mask, value)
