# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Deep machines of many depths and families against sums (and quadrature) over all layers."""

import numpy as np
import pytest
import torch

from pyro_ebm.distributions import DBM, RBM, units
from pyro_ebm.infer import exact_log_partition
from tests import brute_force, deep_machines
from tests.deep_machines import random_dbm, to_deep
from tests.distributions import laws
from tests.distributions.families import batch_indices, some_states, to_layer

#: Families by layer and units of each, by name. One side of every one can be enumerated.
MACHINES: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "depth-1": (("bernoulli", "ising"), (3, 3)),
    "depth-2": (("bernoulli", "bernoulli", "bernoulli"), (4, 3, 3)),
    "families": (("bernoulli", "categorical", "ising"), (3, 2, 2)),
    "depth-3": (("multinomial", "bernoulli", "categorical", "ising"), (3, 2, 1, 2)),
    "depth-4": (("bernoulli",) * 5, (3, 2, 2, 2, 3)),
    "gaussian-visible": (("gaussian", "bernoulli", "ising"), (2, 2, 2)),
    "gaussian-hidden": (("bernoulli", "gaussian", "ising"), (3, 1, 2)),
    "gaussian-twice": (("ising", "gaussian", "bernoulli", "gaussian"), (2, 1, 2, 1)),
    "relu": (("relu", "bernoulli", "gaussian", "labels"), (1, 2, 1, 1)),
    "mixed": (("low_rank", "bernoulli", "mixed"), (1, 2, 1)),
}
every_machine = pytest.mark.parametrize("name", MACHINES)
offsets_or_not = pytest.mark.parametrize("offsets", [False, True], ids=["plain", "offsets"])
DISCRETE = ["depth-1", "depth-2", "families", "depth-3", "depth-4"]


def make(name: str, *, offsets: bool = True, batched: bool = False, scale: float = 1.0) -> DBM:
    return random_dbm(*MACHINES[name], offsets=offsets, batched=batched, scale=scale)


def rows_of(dbm: DBM, count: int = 3) -> list[torch.Tensor]:
    """Some states of every layer, inside their supports."""
    index = (0,) * len(dbm.batch_shape)
    found = [some_states(to_layer(unit, index), count) for unit in dbm.units]
    return [torch.from_numpy(np.resize(x, (count, x.shape[1]))) for x in found]


def close(got: torch.Tensor, expected: object) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(got.detach().numpy(), expected.real, atol=1e-9, rtol=1e-9)


# --- energies and sums --------------------------------------------------------------------------


@every_machine
@offsets_or_not
def test_energies_and_sums(name, offsets):
    dbm = make(name, offsets=offsets)
    machine = to_deep(dbm)
    states = rows_of(dbm)
    arrays = [x.numpy() for x in states]
    close(dbm.energy(states), deep_machines.energy(machine, arrays))
    close(exact_log_partition(dbm.bipartite()), deep_machines.log_partition(machine))
    close(dbm.even_log_prob(states[0::2]), deep_machines.even_log_prob(machine, arrays[0::2]))
    exact = deep_machines.log_p_star(machine, arrays[0]).real
    if dbm.depth == 1:
        close(dbm.log_prob(states[0]), exact)
        return
    close(exact_log_partition(dbm.posterior(states[0]).bipartite()), exact)
    assert bool((dbm.log_prob(states[0]) <= torch.from_numpy(exact) + 1e-12).all())


@pytest.mark.parametrize("name", DISCRETE)
def test_batched_parameters(name):
    dbm = make(name, batched=True)
    assert dbm.batch_shape == (2, 3) == dbm.parameter_batch_shape == dbm.bipartite().batch_shape
    states = rows_of(dbm)
    columns = [x.reshape(3, 1, 1, -1) for x in states]
    log_z, energy = exact_log_partition(dbm.bipartite()), dbm.energy(columns)
    even = dbm.even_log_prob(columns[0::2])
    for index in batch_indices(dbm.batch_shape):
        machine = to_deep(dbm, index)
        arrays = [x.numpy() for x in states]
        close(log_z[index], deep_machines.log_partition(machine))
        close(energy[:, *index], deep_machines.energy(machine, arrays))
        close(even[:, *index], deep_machines.even_log_prob(machine, arrays[0::2]))
    assert dbm.sample((5,)).shape == (5, 2, 3, dbm.sizes[0])
    assert [x.shape for x in dbm.sample_even((5,))] == [(5, 2, 3, n) for n in dbm.sizes[0::2]]


def test_two_continuous_neighbours():
    dbm = random_dbm(("bernoulli", "gaussian", "relu"), (2, 1, 1), offsets=True)
    machine, states = to_deep(dbm), rows_of(dbm)
    arrays = [x.numpy() for x in states]
    close(dbm.energy(states), deep_machines.energy(machine, arrays))
    close(dbm.even_log_prob(states[0::2]), deep_machines.even_log_prob(machine, arrays[0::2]))
    dbm.check_normalizable()
    wide = DBM(dbm.units, [dbm.weights[0], 50 * dbm.weights[1]])
    with pytest.raises(ValueError, match="not normalisable"):
        wide.check_normalizable()


def test_states_are_joined_and_split():
    dbm = make("depth-4")
    states = [torch.arange(float(n)).expand(2, n) for n in dbm.sizes]
    joined = dbm.join_even(states[0::2])
    assert joined.dtype == torch.float64 and joined.shape == (2, 8)
    assert torch.equal(joined[0].long(), torch.tensor([0, 1, 2, 0, 1, 0, 1, 2]))
    for part, x in zip(dbm.split_even(joined), states[0::2], strict=True):
        assert torch.equal(part, x.double())
    odd = torch.cat(states[1::2], -1)
    assert all(torch.equal(*pair) for pair in zip(dbm.split_odd(odd), states[1::2], strict=True))
    # One row for all rows of the others.
    assert dbm.join_even([states[0], states[2][0], states[4]]).shape == (2, 8)


# --- conditionals -------------------------------------------------------------------------------


@every_machine
@offsets_or_not
def test_a_layer_given_its_neighbours(name, offsets):
    dbm = make(name, offsets=offsets)
    machine, states = to_deep(dbm), rows_of(dbm)
    for layer in range(dbm.depth + 1):
        beside = [n for n in (layer - 1, layer + 1) if 0 <= n <= dbm.depth]
        neighbours = [states[n] for n in beside]
        field, found = dbm.field(layer, neighbours), dbm.layer_given(layer, neighbours)
        for row in range(3):
            arrays = [x[row].numpy() for x in states]
            close(field[row], deep_machines.field(machine, arrays, layer))
            fixed = {n: (None, x) for n, x in enumerate(arrays) if n != layer}
            x, p = deep_machines.marginal(machine, layer, fixed)
            np.testing.assert_allclose(found.mean[row].numpy(), p @ x, atol=1e-9)
            if layer and dbm.units[layer].is_discrete:
                close(
                    found.log_prob(torch.from_numpy(x)[:, None].expand(-1, 3, -1))[:, row],
                    np.log(p),
                )


@every_machine
def test_the_posterior_is_a_machine(name):
    dbm = make(name)
    v = rows_of(dbm)[0]
    if dbm.depth == 1:
        with pytest.raises(ValueError, match=r"less than two layers.*see layer_given\(\)"):
            dbm.posterior(v)
        return
    machine, posterior = to_deep(dbm), dbm.posterior(v)
    assert posterior.depth == dbm.depth - 1 and posterior.batch_shape == (3,)
    assert posterior.sizes == dbm.sizes[1:]
    hidden = rows_of(dbm)[1:]
    close(posterior.energy(hidden), dbm.energy([v, *hidden]))
    # Its law: probabilities of the lowest hidden layer of the second row.
    x, p = deep_machines.marginal(machine, 1, {0: (None, v[1].numpy())})
    if dbm.units[1].is_discrete and posterior.depth == 1:
        one = dbm.posterior(v[1])
        exact = one.normalize(exact_log_partition(one.bipartite()))
        close(exact.log_prob(torch.from_numpy(x)).exp(), p)


def test_tilted_layers():
    dbm = make("depth-3")
    states = rows_of(dbm)
    for layer, x in enumerate(states):
        field = torch.randn(2, 1, dbm.sizes[layer], dtype=torch.float64)
        tilted = dbm.tilt(field, layer)
        assert tilted.batch_shape == (2, 1) and tilted.log_partition is None
        close(tilted.energy(states), (dbm.energy(states) - (field * x).sum(-1)).numpy())
        twice = tilted.tilt(-field, layer)
        close(twice.energy(states), dbm.energy(states).expand(2, 3).numpy())
    gaussian = make("gaussian-twice")
    x, field = rows_of(gaussian), torch.tensor([0.7], dtype=torch.float64)
    close(gaussian.tilt(field, 3).energy(x), (gaussian.energy(x) - x[3] @ field).numpy())


# --- sampling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["families", "depth-3", "depth-4", "gaussian-hidden"])
def test_samples_follow_the_law(name):
    dbm = make(name)
    machine = to_deep(dbm)
    even = dbm.sample_even((40_000,), generator=torch.Generator().manual_seed(3))
    for number, draws in enumerate(even):
        x, p = deep_machines.marginal(machine, 2 * number)
        assert laws.layer_law(machine.layers[2 * number], x, p, draws.numpy()) > laws.ALPHA
    # Layers are drawn together: the joint law of the lowest two even layers.
    states, p = deep_machines.joint(machine)
    p = p.sum(tuple(n for n in range(len(states)) if n not in (0, 2)))
    cells = [laws.state_index(states[2 * n], even[n].numpy()) for n in (0, 1)]
    counts = np.bincount(cells[0] * len(states[2]) + cells[1], minlength=p.size)
    assert laws.chi_square(counts, p.flatten()) > laws.ALPHA
    v = dbm.sample((7,), generator=torch.Generator().manual_seed(3))
    assert v.shape == (7, dbm.sizes[0]) and bool(dbm.support.check(v).all())


def test_gibbs_samples_follow_the_law():
    """A machine that is too large on both sides to be enumerated, but small in effect."""
    torch.manual_seed(0)
    small = make("depth-2", scale=0.5)
    idle = [torch.zeros(20, dtype=torch.float64) for _ in range(3)]
    layers = [
        units.Bernoulli(torch.cat([u.natural_bias, z]))
        for u, z in zip(small.units, idle, strict=True)
    ]
    weights = [torch.nn.functional.pad(w, (0, 20, 0, 20)) for w in small.weights]
    offsets = [torch.cat([o, z]) for o, z in zip(small.offsets, idle, strict=True)]
    large = DBM(layers, weights, offsets=offsets, num_gibbs_steps=20)
    draws = large.sample((5000,))[:, :4]
    x, p = deep_machines.marginal(to_deep(small), 0)
    assert laws.chi_square(np.bincount(laws.state_index(x, draws.numpy())), p) > laws.ALPHA


# --- gradients ----------------------------------------------------------------------------------


def with_gradients(dbm: DBM) -> tuple[DBM, dict[str, torch.Tensor]]:
    """The machine whose tensors require gradients, and these by their flat names."""
    leaf = dbm._map(lambda x: x.clone().requires_grad_())
    return leaf, deep_machines.flat_tensors(leaf)


@every_machine
def test_gradients_of_the_exact_even_log_prob(name):
    dbm, tensors = with_gradients(make(name))
    states = rows_of(dbm.detach())[0::2]
    machine = to_deep(dbm)
    total = -dbm.bipartite().free_energy(dbm.join_even(states)).sum()
    gradients = torch.autograd.grad(total, list(tensors.values()))
    arrays = [x.numpy() for x in states]
    for (key, _), got in zip(tensors.items(), gradients, strict=True):

        def value(x: np.ndarray, key: str = key) -> complex:
            changed = deep_machines.with_parameter(machine, key, x)
            return deep_machines.even_log_prob(changed, arrays).sum()

        close(got, brute_force.derivative(value, deep_machines.parameters(machine)[key]))


@every_machine
def test_gradients_of_the_bound(name):
    """Where mean field has converged, q is held: the gradient is that of the bound all the same."""
    dbm, tensors = with_gradients(make(name))
    v = rows_of(dbm.detach())[0].requires_grad_(name not in DISCRETE)
    tensors |= {"v": v} if v.requires_grad else {}
    options = {"max_mean_field_updates": 2000, "mean_field_tolerance": 1e-11}
    dbm = DBM(dbm.units, dbm.weights, offsets=dbm._offsets, **options)
    gradients = torch.autograd.grad(-dbm.free_energy(v).sum(), list(tensors.values()))
    for (key, tensor), got in zip(tensors.items(), gradients, strict=True):
        direction = torch.randn_like(tensor)
        values = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                tensor.add_(1e-5 * sign * direction)
                values.append(-dbm.free_energy(v).sum())
                tensor.sub_(1e-5 * sign * direction)
        expected = (values[0] - values[1]) / 2e-5
        assert abs((got * direction).sum() - expected) < 1e-7 * (1 + abs(expected)), key


# --- depth one is an RBM ------------------------------------------------------------------------


@offsets_or_not
@pytest.mark.parametrize("pair", [("bernoulli", "ising"), ("gaussian", "categorical")])
def test_depth_one_is_the_rbm_in_every_number(pair, offsets):
    dbm = random_dbm(pair, 3, offsets=offsets)
    given = {}
    if offsets:
        given = {"visible_offset": dbm.offsets[0], "hidden_offset": dbm.offsets[1]}
    rbm = RBM(*dbm.units, dbm.weights[0], **given)
    v, h = rows_of(dbm)
    pairs = [
        (dbm.energy([v, h]), rbm.energy(v, h)),
        (dbm.log_prob(v), rbm.log_prob(v)),
        (dbm.free_energy(v), rbm.free_energy(v)),
        (dbm.even_log_prob([v]), rbm.log_prob(v)),
        (dbm.layer_given(1, [v]).mean, rbm.hidden_given(v).mean),
        (dbm.layer_given(0, [h]).mean, rbm.visible_given(h).mean),
        (exact_log_partition(dbm.bipartite()), exact_log_partition(rbm)),
        (dbm.tilt(v[0]).log_prob(v), rbm.tilt(v[0]).log_prob(v)),
    ]
    mask = torch.zeros(dbm.sizes[0], dtype=torch.bool)
    mask[0] = True
    pairs.append(
        (dbm.clamp(mask, v).log_prob(v[:, ~mask]), rbm.clamp(mask, v).log_prob(v[:, ~mask]))
    )
    draws = [m.sample((50,), generator=torch.Generator().manual_seed(0)) for m in (dbm, rbm)]
    pairs.append(tuple(draws))
    assert all(torch.equal(got, expected) for got, expected in pairs)
    found = dbm.mean_field(v)
    assert bool(found.converged.all()) and torch.equal(found.bound, rbm.log_prob(v))
    torch.testing.assert_close(found.means[0], rbm.hidden_given(v).mean, rtol=0, atol=1e-12)


# --- refusals -----------------------------------------------------------------------------------

BITS = [units.Bernoulli(torch.zeros(n)) for n in (3, 2, 4)]
WEIGHTS = [torch.zeros(3, 2), torch.zeros(2, 4)]
NAN = torch.tensor(float("nan"))
BAD_ARGUMENTS = [
    (TypeError, ([BITS[0], "x"], [WEIGHTS[0]]), {}, r"units\[1\] must be a .*Unit, got str"),
    (ValueError, (BITS[:1], []), {}, "units must be a visible and at least one hidden .* got 1"),
    (ValueError, (BITS, WEIGHTS[:1]), {}, "3 layers need 2 weights, got 1"),
    (TypeError, (BITS, [WEIGHTS[0], 3]), {}, r"weights\[1\] must be a tensor, got int"),
    (
        ValueError,
        (BITS, [WEIGHTS[0], torch.zeros(4, 2)]),
        {},
        r"weights\[1\] must have shape \(..., 2, 4\), got \(4, 2\)",
    ),
    (
        ValueError,
        (BITS, WEIGHTS),
        {"offsets": [torch.zeros(3)]},
        "offsets must be 3 vectors, got 1",
    ),
    (
        ValueError,
        (BITS, WEIGHTS),
        {"offsets": [torch.zeros(3), torch.zeros(3), torch.zeros(4)]},
        r"offsets\[1\] must have shape \(..., 2\), got \(3,\)",
    ),
    (ValueError, (BITS, [WEIGHTS[0], NAN.expand(2, 4)]), {}, r"weights\[1\] must be real, got NaN"),
    (
        ValueError,
        (BITS, WEIGHTS),
        {"offsets": [torch.zeros(3), NAN.expand(2), torch.zeros(4)]},
        r"offsets\[1\] must be real, got NaN",
    ),
    (
        ValueError,
        (BITS, [WEIGHTS[0].double(), WEIGHTS[1]]),
        {},
        r"units, weights and offsets must have one dtype, got .*float32.*float64",
    ),
    (
        ValueError,
        (BITS, [torch.zeros(5, 3, 2), torch.zeros(4, 2, 4)]),
        {},
        "batch shapes of units, weights and offsets do not broadcast",
    ),
    (ValueError, (BITS, WEIGHTS), {"num_gibbs_steps": 0}, "num_gibbs_steps must be at least 1"),
    (
        ValueError,
        (BITS, WEIGHTS),
        {"max_mean_field_updates": 0},
        "max_mean_field_updates must be a whole number >= 1, got 0",
    ),
    (
        ValueError,
        (BITS, WEIGHTS),
        {"mean_field_tolerance": -1.0},
        "mean_field_tolerance must be a number >= 0, got -1.0",
    ),
    (ValueError, (BITS, WEIGHTS), {"log_partition": torch.zeros(3)}, "log_partition of shape"),
]


@pytest.mark.parametrize(("error", "arguments", "options", "message"), BAD_ARGUMENTS)
def test_impossible_machines_are_named(error, arguments, options, message):
    with pytest.raises(error, match=message):
        DBM(*arguments, **options)


BAD_CALLS = [
    (lambda d: d.energy([torch.zeros(3)] * 2), "states must be those of 3 layers, got 2"),
    (
        lambda d: d.energy([torch.zeros(3), torch.zeros(2), torch.zeros(3)]),
        r"even states\[1\] must have shape \(..., 4\), got \(3,\)",
    ),
    (lambda d: d.join_even([torch.zeros(3)]), "states must be those of 2 layers, got 1"),
    (lambda d: d.field(1, [torch.zeros(3)]), "layer 1 has 2 neighbours, got 1"),
    (lambda d: d.field(3, [torch.zeros(4)]), "layer must be a whole number from 0 to 2, got 3"),
    (lambda d: d.layer_given(-1, [torch.zeros(2)]), "layer must be a whole number .*, got -1"),
    (
        lambda d: d.field(1, [torch.zeros(4), torch.zeros(3)]),
        r"neighbour of layer 1 must have shape \(..., 3\), that of layer 0, got \(4,\)",
    ),
    (lambda d: d.tilt(torch.zeros(3), 5), "layer must be a whole number from 0 to 2, got 5"),
    (lambda d: d.tilt(torch.zeros(3), 1), r"field must have shape \(..., 2\), got \(3,\)"),
]


@pytest.mark.parametrize(("call", "message"), BAD_CALLS)
def test_wrong_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(DBM(BITS, WEIGHTS))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_the_weight_of_both_sides_can_be_written_into_a_tensor(depth):
    dbm = random_dbm(("bernoulli",) * (depth + 1), [2, 3, 4, 5, 6, 7][: depth + 1], offsets=True)
    machine = dbm.bipartite()
    out = torch.zeros_like(machine.weight)
    for _ in range(2):
        again = dbm.bipartite(out=out)
        assert again.weight is out and torch.equal(out, machine.weight)
