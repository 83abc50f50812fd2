# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""log Z and likelihoods of deep machines against brute force over all layers."""

import json
import math

import pytest
import torch

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer import (
    bracket_log_partition,
    deep_log_likelihood,
    estimate_log_partition,
    exact_log_partition,
    log_likelihood,
    raise_log_likelihood,
    tempering_log_partition,
)
from tests import deep_machines
from tests.deep_machines import random_dbm, to_deep

MACHINES = {
    "one layer": (("bernoulli", "ising"), (4, 3)),
    "bits": (("bernoulli", "bernoulli", "bernoulli"), (4, 3, 3)),
    "spins and groups": (("ising", "categorical", "bernoulli"), (3, 2, 3)),
    "three layers": (("bernoulli", "ising", "bernoulli", "categorical"), (3, 3, 2, 2)),
    "four layers": (("bernoulli",) * 5, (3, 2, 2, 2, 2)),
}
every_machine = pytest.mark.parametrize("name", list(MACHINES))
deep = pytest.mark.parametrize("name", [name for name in MACHINES if name != "one layer"])


def make(name: str, scale: float = 1.5) -> tuple[DBM, torch.Tensor, torch.Tensor, float]:
    """A machine, all visible states, their log p*(v) and log Z, both by brute force."""
    torch.manual_seed(0)
    dbm = random_dbm(*MACHINES[name], offsets=True, scale=scale)
    v = dbm.units[0].states(0, dbm.units[0].num_states).double()
    machine = to_deep(dbm)
    exact = torch.from_numpy(deep_machines.log_p_star(machine, v.numpy()).real)
    return dbm, v, exact, float(deep_machines.log_partition(machine).real)


# --- log Z ----------------------------------------------------------------------------------------


@every_machine
def test_log_z_by_enumeration(name):
    dbm, _, exact, log_z = make(name)
    assert abs(exact_log_partition(dbm).item() - log_z) < 1e-9
    assert abs(torch.logsumexp(exact, 0).item() - log_z) < 1e-9


def test_the_gradient_of_the_exact_log_z_is_that_of_means():
    dbm, _, _, _ = make("three layers")
    leaves = [w.clone().requires_grad_() for w in dbm.weights]
    machine = DBM(dbm.units, leaves, offsets=dbm.offsets)
    gradients = torch.autograd.grad(exact_log_partition(machine), leaves)
    states, p = deep_machines.joint(to_deep(dbm))
    for number, gradient in enumerate(gradients):
        below, above = torch.as_tensor(states[number]), torch.as_tensor(states[number + 1])
        axes = tuple(a for a in range(p.ndim) if a not in (number, number + 1))
        pair = torch.as_tensor(p.sum(axes))
        below, above = below - dbm.offsets[number], above - dbm.offsets[number + 1]
        torch.testing.assert_close(gradient, below.T @ pair @ above, rtol=0, atol=1e-9)


@every_machine
@pytest.mark.parametrize("side", ["even", "odd"])
def test_both_sides_of_annealing_hold_log_z(name, side):
    """From below and from above, with the layers of either side summed out."""
    dbm, _, _, log_z = make(name)
    for method in ("ais", "reverse-ais"):
        found = estimate_log_partition(
            dbm, method, num_chains=2000, num_temperatures=20, side=side, seed=0
        )
        assert abs(found.value.item() - log_z) < 6 * found.std_error.item()
        assert found.settings["side"] == side
        assert found.settings["summed_out"] == [
            layer for layer in range(dbm.depth + 1) if layer % 2 == (side == "even")
        ]


def test_means_of_data_are_a_base_of_the_visible_layer():
    dbm, _, _, log_z = make("bits")
    base = torch.tensor([0.2, 0.5, 0.7, 0.9]).double()
    found = estimate_log_partition(dbm, num_chains=2000, num_temperatures=20, base=base, seed=0)
    assert abs(found.value.item() - log_z) < 6 * found.std_error.item()
    with pytest.raises(ValueError, match="side"):
        estimate_log_partition(dbm, base=base, side="odd")


def test_brackets_and_tempering_take_deep_machines():
    dbm, _, _, log_z = make("four layers")
    bracket = bracket_log_partition(dbm, num_chains=500, num_temperatures=30, seed=0)
    assert bracket.lower - 0.5 < log_z < bracket.upper + 0.5
    found = tempering_log_partition(dbm, num_chains=200, num_samples=100, seed=0)
    assert abs(found.value.item() - log_z) < 6 * found.std_error.item()


def test_one_hidden_layer_gives_the_numbers_of_the_rbm():
    dbm, v, _, log_z = make("one layer")
    rbm = RBM(
        *dbm.units,
        dbm.weights[0],
        visible_offset=dbm.offsets[0],
        hidden_offset=dbm.offsets[1],
    )
    options = {"num_chains": 20, "num_temperatures": 10, "seed": 3}
    pair = [estimate_log_partition(machine, **options).log_weights for machine in (dbm, rbm)]
    assert torch.equal(*pair)
    assert torch.equal(log_likelihood(dbm, v, log_z), log_likelihood(rbm, v, log_z))
    pair = [
        raise_log_likelihood(m, v, num_rows=5, num_temperatures=5, seed=1).row_values
        for m in (dbm, rbm)
    ]
    assert torch.equal(*pair)


@pytest.mark.parametrize("function", [exact_log_partition, estimate_log_partition])
def test_something_else_is_refused(function):
    with pytest.raises(TypeError, match="DBM"):
        function(torch.zeros(3))


def test_a_side_is_of_a_deep_machine():
    rbm = make("bits")[0].bipartite()
    with pytest.raises(ValueError, match="transpose"):
        estimate_log_partition(rbm, side="odd")
    with pytest.raises(ValueError, match="side must be one of"):
        estimate_log_partition(make("bits")[0], side="top")


# --- likelihoods of rows --------------------------------------------------------------------------


@every_machine
def test_exact_likelihoods(name):
    dbm, v, exact, log_z = make(name)
    found = deep_log_likelihood(dbm, v, log_z, "exact", chunk_rows=3)
    torch.testing.assert_close(found.rows, exact - log_z, rtol=0, atol=1e-9)
    assert abs(found.rows.exp().sum().item() - 1.0) < 1e-9
    torch.testing.assert_close(deep_log_likelihood(dbm, v, log_z).rows, found.rows)


@deep
def test_mean_field_bounds_the_exact_likelihood(name):
    dbm, v, exact, log_z = make(name)
    bound = log_likelihood(dbm, v, log_z)
    torch.testing.assert_close(bound, deep_log_likelihood(dbm, v, log_z, "mean-field").rows)
    assert bool((bound <= exact - log_z + 1e-12).all()) and bool(
        (exact - log_z - bound > 1e-3).any()
    )


@deep
@pytest.mark.parametrize("method", ["importance", "ais"])
def test_weights_are_unbiased(method, name):
    """The mean weight of a row is p*(v), within 6 standard errors of its logarithm."""
    dbm, v, exact, log_z = make(name)
    found = deep_log_likelihood(dbm, v, log_z, method, num_samples=4000, num_temperatures=5, seed=0)
    deviation = (found.rows - (exact - log_z)).abs() / found.row_errors
    assert bool((found.row_errors > 0).all()) and deviation.max().item() < 6
    mean_error = (found.value - (exact - log_z).mean()).abs() / found.density_error
    assert mean_error.item() < 6


@deep
@pytest.mark.filterwarnings("ignore::pyro_ebm.infer.LogPartitionWarning")
def test_bounds_grow_tighter(name):
    """Mean field, a few draws, many draws, annealing: each mean is nearer to the exact one."""
    dbm, v, exact, log_z = make(name, scale=3.0)
    options = {"seed": 0}
    means = [
        deep_log_likelihood(dbm, v, log_z, "mean-field").value,
        deep_log_likelihood(dbm, v, log_z, "importance", num_samples=300, **options).value,
        deep_log_likelihood(
            dbm, v, log_z, "ais", num_samples=300, num_temperatures=50, **options
        ).value,
    ]
    truth = (exact - log_z).mean()
    gaps = [(truth - mean).item() for mean in means]
    assert gaps[0] > gaps[1] > -0.05 and abs(gaps[2]) < max(abs(gaps[1]), 0.02)


@deep
def test_raise_is_conservative_and_close(name):
    dbm, v, exact, log_z = make(name)
    rows = v.repeat(4, 1)
    found = raise_log_likelihood(
        dbm, rows, num_rows=None, num_chains=400, num_temperatures=100, seed=0
    )
    truth = (exact - log_z).mean().item()
    # The annealing model comes to the machine from below, in the mean over the machine's own law ...
    p = (exact - log_z).exp()
    own = (p * (found.row_values.reshape(4, -1).mean(0) - (exact - log_z))).sum().item()
    error = found.row_errors.max().item()
    assert own < 6 * error
    # ... and every row is close with many temperatures.
    assert abs(found.value.item() - truth) < 0.05


def test_raise_of_few_temperatures_is_too_low():
    dbm, v, exact, log_z = make("bits", scale=4.0)
    p = (exact - log_z).exp()
    values = [
        raise_log_likelihood(dbm, v, num_rows=None, num_chains=2000, num_temperatures=n, seed=0)
        for n in (1, 30)
    ]
    means = [(p * (found.row_values - (exact - log_z))).sum().item() for found in values]
    assert means[0] < means[1] - 0.01 < 0.02


def test_a_bracket_of_log_z_gives_both_sides():
    dbm, v, exact, log_z = make("bits")
    bracket = bracket_log_partition(dbm, num_chains=500, num_temperatures=50, seed=0)
    found = deep_log_likelihood(dbm, v, bracket, "exact")
    assert found.lower < (exact - log_z).mean() < found.upper
    assert found.optimistic == exact.mean() - bracket.forward.value
    assert found.pessimistic == exact.mean() - bracket.reverse.value
    report = json.loads(json.dumps(found.to_dict()))
    assert report["settings"]["method"] == "exact" and math.isfinite(report["lower"])
    assert "by exact" in str(found)
    one = deep_log_likelihood(dbm, v, bracket.reverse, "mean-field")
    assert one.side == "below" and "a lower bound" in str(one)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"method": "variational"}, "method"),
        ({"num_samples": 1}, "num_samples"),
        ({"num_temperatures": 0}, "num_temperatures"),
        ({"chunk_rows": 0}, "chunk_rows"),
        ({"data": torch.zeros(3, 5)}, "data"),
        ({"data": torch.full((3, 4), 0.5)}, "data"),
        ({"log_partition": math.nan}, "NaN|finite"),
        ({"log_partition": torch.zeros(2)}, "log_partition|scalar|one machine"),
        ({"method": "exact", "max_states": 2}, "max_states"),
    ],
)
def test_impossible_options(changes, match):
    dbm, v, _, log_z = make("bits")
    arguments = {"data": v, "log_partition": log_z, **changes}
    with pytest.raises(ValueError, match=match):
        deep_log_likelihood(dbm, **arguments)
