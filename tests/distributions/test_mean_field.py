# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Mean field: its bound, its fixed points, who converges when, and that no row knows of the others."""

import warnings

import numpy as np
import pytest
import torch

from pyro_ebm.distributions import DBM, RBM, MeanFieldSolver, MeanFieldWarning, units
from pyro_ebm.distributions import mean_field as implementation
from pyro_ebm.infer import exact_log_partition
from tests import deep_machines
from tests.deep_machines import random_dbm, to_deep
from tests.distributions.families import some_states, to_layer

MACHINES: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "bits": (("bernoulli",) * 3, (4, 3, 3)),
    "spins": (("ising", "ising", "ising"), (4, 3, 3)),
    "groups": (("bernoulli", "categorical", "bernoulli", "multinomial"), (3, 1, 2, 1)),
    "gaussian": (("bernoulli", "gaussian", "ising"), (3, 1, 2)),
    "gaussian-twice": (("ising", "gaussian", "bernoulli", "gaussian"), (2, 1, 2, 1)),
    "relu": (("gaussian", "bernoulli", "relu"), (2, 2, 1)),
    "depth-4": (("bernoulli",) * 5, (3, 2, 2, 2, 3)),
}
every_machine = pytest.mark.parametrize("name", MACHINES)
ways = pytest.mark.parametrize(
    "options",
    [{}, {"accelerate": False}, {"damping": 0.5}, {"damping": 0.7, "accelerate": False}],
    ids=["accelerated", "plain", "damped", "plain-damped"],
)


def make(name: str, scale: float = 1.5) -> tuple[DBM, torch.Tensor]:
    """A machine and some visible states."""
    families, sizes = MACHINES[name]
    continuous = {"gaussian", "relu"} & set(families)
    dbm = random_dbm(families, sizes, offsets=True, scale=1.0 if continuous else scale)
    rows = some_states(to_layer(dbm.units[0]), 4)
    return dbm, torch.from_numpy(np.resize(rows, (4, rows.shape[1])))


def large(scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[DBM, torch.Tensor]:
    """A machine whose rows take very different numbers of updates."""
    dbm = random_dbm(("bernoulli", "ising", "bernoulli", "ising"), 30, offsets=True, scale=scale)
    v = torch.bernoulli(torch.full((40, 30), 0.5)).to(dtype)
    return dbm.to(dtype), v


def fields(dbm: DBM, found, row: int) -> list[np.ndarray]:
    """The fields of q of a row, for brute force."""
    pairs = zip(found.thetas, dbm.units[1:], strict=True)
    return [(theta[row] - unit.natural_bias).numpy() for theta, unit in pairs]


# --- the bound ----------------------------------------------------------------------------------


@every_machine
def test_the_bound_is_that_of_its_means(name):
    """Whether it has converged or not: E_q[-E] + H(q) by a sum over all joint states."""
    dbm, v = make(name)
    machine = to_deep(dbm)
    for updates in (1, 2, 7):
        found = dbm.mean_field(v, max_updates=updates, tolerance=0.0)
        for row in range(4):
            expected = deep_machines.bound(machine, v[row].numpy(), fields(dbm, found, row))
            assert found.bound[row].item() == pytest.approx(expected, abs=1e-9)
        for mean, theta, unit in zip(found.means, found.thetas, dbm.units[1:], strict=True):
            assert torch.equal(mean, unit.natural_mean(theta))


def accepted_bounds(dbm: DBM, v: torch.Tensor, monkeypatch, **options) -> torch.Tensor:
    """The bound of the states that were accepted at every update, evaluated anew, and that of the result."""
    states = []
    update = MeanFieldSolver._update

    def recorded(self, state, *args):
        update(self, state, *args)
        states.append(state.image - state.step)

    monkeypatch.setattr(MeanFieldSolver, "_update", recorded)
    solver = MeanFieldSolver(dbm.posterior(v).bipartite())
    theta = solver.start(torch.zeros(len(v), solver._weight.shape[1], dtype=v.dtype))
    # A tolerance that no row reaches: none leaves.
    found = solver.solve(theta, tolerance=-1.0, **options)
    return torch.stack([solver.evaluate(x)[0] for x in states] + [found.bound])


@every_machine
@ways
def test_the_bound_never_falls(name, options, monkeypatch):
    dbm, v = make(name)
    bounds = accepted_bounds(dbm, v, monkeypatch, max_updates=25, **options)
    assert bounds.shape[0] > 5
    assert bool((bounds[1:] - bounds[:-1] >= -1e-12 * bounds[:-1].abs()).all())
    exact = torch.from_numpy(deep_machines.log_p_star(to_deep(dbm), v.numpy()).real)
    assert bool((bounds <= exact + 1e-12).all())


@ways
def test_the_bound_never_falls_where_weights_are_large(options, monkeypatch):
    dbm, v = large(scale=6.0)
    bounds = accepted_bounds(dbm, v, monkeypatch, max_updates=60, **options)
    assert bool((bounds[1:] - bounds[:-1] >= -1e-11 * bounds[:-1].abs()).all())


# --- fixed points -------------------------------------------------------------------------------


@every_machine
@ways
def test_the_fixed_point_is_that_of_plain_mean_field(name, options):
    """Rows that have converged stay where layer after layer of the definition's updates takes them."""
    dbm, v = make(name, scale=1.0)
    found = dbm.mean_field(v, tolerance=1e-12, **options)
    assert bool(found.converged.all()) and bool((found.residual <= 1e-12).all())
    machine = to_deep(dbm)
    for row in range(2):
        start = [mean[row].numpy() for mean in found.means]
        again, _ = deep_machines.mean_field(machine, v[row].numpy(), start, 1)
        for got, expected in zip(start, again, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-9)
        # From the middle of every layer plain updates come to the same place: couplings are weak.
        middle = [unit.neutral().mean().numpy() for unit in dbm.units[1:]]
        far, _ = deep_machines.mean_field(machine, v[row].numpy(), middle, 60)
        for got, expected in zip(start, far, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_updates_are_those_of_the_definition():
    """Without acceleration: x_1 and x_3 given the start, then x_2, and so on."""
    dbm, v = make("groups")
    start = [unit.neutral().mean().expand(4, -1) for unit in dbm.units[1:]]
    for updates in (1, 2, 3):
        found = dbm.mean_field(v, start=start, max_updates=updates, tolerance=0.0, accelerate=False)
        for row in range(4):
            arrays = [mean[row].numpy() for mean in start]
            machine = to_deep(dbm)
            # The result is one half-update of the odd layers further, with the even ones at their optimum.
            expected, _ = deep_machines.mean_field(machine, v[row].numpy(), arrays, updates + 1)
            for got, mean in zip(found.means, expected, strict=True):
                np.testing.assert_allclose(got[row].numpy(), mean, atol=1e-9)


def test_damping_goes_a_part_of_the_way():
    dbm, v = make("bits")
    whole = dbm.mean_field(v, max_updates=1, tolerance=0.0)
    half = dbm.mean_field(v, max_updates=1, tolerance=0.0, damping=0.5)
    start = dbm.mean_field(v, max_updates=1, tolerance=0.0, damping=1 - 1e-12)
    expected = 0.5 * (whole.thetas[0] + start.thetas[0])
    torch.testing.assert_close(half.thetas[0], expected, rtol=0, atol=1e-9)
    # The residual is that of the whole way, so that a tolerance means the same.
    torch.testing.assert_close(half.residual, whole.residual, rtol=0, atol=1e-12)


def test_acceleration_saves_updates():
    """Slow rows: spins of one sign that pull each other, just below where the field becomes unstable."""
    n = 12
    weight = torch.full((n, n), 0.965 / n, dtype=torch.float64)
    zeros = torch.zeros(n, dtype=torch.float64)
    dbm = DBM([units.Ising(zeros)] * 3, [0.02 * weight, weight])
    v = torch.ones(n, dtype=torch.float64)
    plain = dbm.mean_field(v, accelerate=False, tolerance=1e-9, max_updates=5000)
    fast = dbm.mean_field(v, tolerance=1e-9, max_updates=5000)
    assert bool(plain.converged & fast.converged)
    torch.testing.assert_close(fast.bound, plain.bound, rtol=0, atol=1e-10)
    assert fast.num_updates <= 0.4 * plain.num_updates


def test_independent_layers_are_exact_at_once():
    dbm, v = make("bits")
    dbm = DBM(dbm.units, [dbm.weights[0], torch.zeros_like(dbm.weights[1])])
    found = dbm.mean_field(v)
    exact = deep_machines.log_p_star(to_deep(dbm), v.numpy()).real
    np.testing.assert_allclose(found.bound.numpy(), exact, atol=1e-12)
    assert bool((found.num_updates == 1).all()) and bool(found.converged.all())


# --- rows ---------------------------------------------------------------------------------------


def test_converged_rows_leave_the_products(monkeypatch):
    dbm, v = large()
    rows = []
    affine = implementation._affine

    def counted(x, weight, bias):
        rows.append(len(x))
        return affine(x, weight, bias)

    monkeypatch.setattr(implementation, "_affine", counted)
    found = dbm.mean_field(v, tolerance=1e-8)
    updates = found.num_updates
    assert bool(found.converged.all()) and int(updates.max()) >= int(updates.min()) + 10
    # Two products an update, one for the start, one for the result and one for its gradient.
    assert sum(rows) == 2 * int(updates.sum()) + 3 * 40
    with torch.no_grad():
        rows.clear()
        dbm.mean_field(v, tolerance=1e-8)
        assert sum(rows) == 2 * int(updates.sum()) + 2 * 40


@ways
def test_a_row_does_not_know_of_the_others(options):
    dbm, v = large(scale=2.0)
    options = {"max_updates": 30, **options}
    together = dbm.mean_field(v, **options)
    assert 0 < int(together.converged.sum()) < 40 or options.get("damping")
    for part in (v[:1], v[17:29], v.flip(0)):
        alone = dbm.mean_field(part, **options)
        index = [next(i for i in range(40) if torch.equal(v[i], row)) for row in part]
        assert torch.equal(alone.num_updates, together.num_updates[index])
        assert torch.equal(alone.converged, together.converged[index])
        for got, expected in zip(
            (alone.bound, alone.residual, *alone.thetas),
            (together.bound, together.residual, *together.thetas),
            strict=True,
        ):
            torch.testing.assert_close(got, expected[index], rtol=0, atol=1e-9)


def bistable() -> DBM:
    """Two hidden layers that are both up or both down; the visible layer has a say in which."""
    n = 8
    layers = [units.Bernoulli(torch.zeros(2, dtype=torch.float64))]
    layers += [units.Ising(torch.zeros(n, dtype=torch.float64)) for _ in range(2)]
    pull = torch.tensor([[0.5], [-0.5]], dtype=torch.float64).expand(2, n)
    return DBM(layers, [pull, torch.full((n, n), 2.5 / n, dtype=torch.float64)])


def test_a_stale_start_is_worse():
    """The package that this one set out from starts a batch at the means of the batch before it, whatever its
    rows are: a row then stays in the optimum of another one. Here every row starts at its own."""
    dbm = bistable()
    up, down = torch.eye(2, dtype=torch.float64)
    exact = torch.from_numpy(
        np.array([exact_log_partition(dbm.posterior(v).bipartite()).item() for v in (up, down)])
    )
    own = dbm.mean_field(torch.stack([up, down]))
    assert own.means[1][0].mean() > 0.9 and own.means[1][1].mean() < -0.9
    assert bool((exact - own.bound < 0.3).all())
    for row, v in enumerate((up, down)):
        stale = [mean[1 - row] for mean in own.means]
        found = dbm.mean_field(v, start=stale, max_updates=1000)
        assert bool(found.converged)  # even without a cap it never leaves
        assert found.bound < own.bound[row] - 5.0
    # In one batch, one after the other or in turns: no row sees another.
    batch = torch.stack([up, down, up, down, down])
    found = dbm.mean_field(batch)
    torch.testing.assert_close(found.bound, own.bound[[0, 1, 0, 1, 1]], rtol=0, atol=1e-12)
    dbm.mean_field(up)
    assert dbm.mean_field(down).bound == pytest.approx(own.bound[1].item(), abs=1e-12)


def test_a_start_is_used():
    dbm, v = make("depth-4", scale=1.0)
    found = dbm.mean_field(v, tolerance=1e-10)
    again = dbm.mean_field(v, start=found.means, tolerance=1e-8)
    assert bool((again.num_updates == 1).all())
    torch.testing.assert_close(again.bound, found.bound, rtol=0, atol=1e-10)
    # One row's means have a row's shape.
    one = dbm.mean_field(v[0], start=[mean[0] for mean in found.means], tolerance=1e-8)
    assert one.bound.shape == () and one.num_updates == 1


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (0,), (2, 0), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_any_leading_shape(batch, depth):
    dbm = random_dbm(
        ("bernoulli", "ising", "bernoulli", "ising")[: depth + 1], (3, 3, 2, 2)[: depth + 1]
    )
    v = torch.bernoulli(torch.full((*batch, 3), 0.5)).double()
    found = dbm.mean_field(v)
    for x in (found.bound, found.residual, found.converged, found.num_updates):
        assert x.shape == batch
    assert found.converged.dtype == torch.bool and found.num_updates.dtype == torch.int64
    for x, theta, size in zip(found.means, found.thetas, dbm.sizes[1:], strict=True):
        assert x.shape == (*batch, size) == theta.shape
    assert dbm.free_energy(v).shape == batch
    if v.numel():  # torch's checks of supports take no empty tensors
        flat = torch.stack([dbm.log_prob(row) for row in v.reshape(-1, 3)])
        torch.testing.assert_close(dbm.log_prob(v).flatten(), flat, rtol=0, atol=1e-9)


def test_grey_levels():
    """Means of visible bits are inputs of mean field: its bound is linear in them."""
    dbm, _ = make("bits")
    grey = torch.rand(5, 4, dtype=torch.float64)
    found = dbm.mean_field(grey)
    for row in range(5):
        expected = deep_machines.bound(to_deep(dbm), grey[row].numpy(), fields(dbm, found, row))
        assert found.bound[row].item() == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="support"):
        dbm.log_prob(grey)


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_saturated_weights(dtype):
    """Weights of 50 times the size: all is finite, rows converge, and the bound is that of its means."""
    torch.manual_seed(2)
    dbm, v = large(scale=50.0, dtype=dtype)
    found = dbm.mean_field(v)
    assert bool(found.converged.all()) and int(found.num_updates.max()) < 200
    for x in (found.bound, *found.means, *found.thetas):
        assert bool(torch.isfinite(x).all()) and x.dtype == dtype
    plain = dbm.mean_field(v, start=found.means, accelerate=False)
    torch.testing.assert_close(plain.bound, found.bound, rtol=1e-5, atol=0)


def test_single_precision_converges_to_the_same():
    dbm, v = large()
    single = dbm.to(torch.float32).mean_field(v.float())
    assert bool(single.converged.all())
    double = dbm.mean_field(v)
    torch.testing.assert_close(single.bound.double(), double.bound, rtol=2e-6, atol=0)


def test_rounding_cannot_hold_a_row_up():
    """A plain step whose bound is lower by rounding must not be refused: it would be tried again for ever.
    Here constants make the bound zero, so that all of its digits are those of large terms that cancel."""
    dbm, v = large(dtype=torch.float32)
    for row in v[:5]:
        zero = dbm._like(dbm.units, dbm.weights, dbm._offsets, dbm.mean_field(row).bound)
        for accelerate in (True, False):
            found = zero.mean_field(row, max_updates=300, accelerate=accelerate)
            assert bool(found.converged) and found.bound.abs() < 1e-2


def test_nan_is_named_where_arguments_are_checked():
    dbm, v = make("bits")
    v[2, 1] = torch.nan
    with pytest.raises(ValueError, match="v must be finite, got NaN or infinity in 1 of 4 rows"):
        dbm.mean_field(v)
    with pytest.raises(ValueError, match="support"):
        dbm.log_prob(v)
    trusting = DBM(dbm.units, dbm.weights, validate_args=False)
    found = trusting.mean_field(v, max_updates=50)
    assert found.converged.tolist() == [True, True, False, True]
    assert bool(found.bound[2].isnan()) and not bool(found.bound[[0, 1, 3]].isnan().any())
    clean = trusting.mean_field(v[[0, 1, 3]], max_updates=50)
    torch.testing.assert_close(found.bound[[0, 1, 3]], clean.bound, rtol=0, atol=1e-12)


# --- reports ------------------------------------------------------------------------------------


def test_rows_that_do_not_converge_are_reported():
    dbm, v = large(scale=2.0)
    short = DBM(dbm.units, dbm.weights, offsets=dbm._offsets, max_mean_field_updates=3)
    with pytest.warns(MeanFieldWarning, match=r"of 40 rows still move by up to .* after 3 updates"):
        found = short.mean_field(v)
    assert not bool(found.converged.all()) and bool((found.residual > 1e-5).any())
    assert torch.equal(found.converged, found.residual <= 1e-5)
    with pytest.warns(MeanFieldWarning, match="bound holds but is not the best one"):
        short.log_prob(v)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = dbm.mean_field(v, max_updates=3)  # who says how many is not warned
        dbm.mean_field(v)
        short.mean_field(v, tolerance=100.0)
    assert torch.equal(asked.bound, found.bound) and bool((asked.num_updates == 3).all())


def test_the_residual_is_the_last_change():
    dbm, v = make("bits")
    a, b = (dbm.mean_field(v, max_updates=n, tolerance=0.0, accelerate=False) for n in (4, 5))
    change = (b.thetas[0] - a.thetas[0]).abs().amax(-1)
    torch.testing.assert_close(b.residual, change, rtol=0, atol=1e-12)


BAD = [
    (ValueError, {"v": torch.zeros(2, 5)}, r"v must have shape \(..., 4\), got \(2, 5\)"),
    (TypeError, {"v": [0.0] * 4}, "v must be a tensor, got list"),
    (ValueError, {"max_updates": 0}, "max_updates must be a whole number >= 1, got 0"),
    (ValueError, {"max_updates": 2.5}, "max_updates must be a whole number >= 1, got 2.5"),
    (ValueError, {"max_updates": True}, "max_updates must be a whole number >= 1, got True"),
    (ValueError, {"tolerance": -1e-3}, "tolerance must be a number >= 0, got -0.001"),
    (ValueError, {"tolerance": float("nan")}, "tolerance must be a number >= 0, got nan"),
    (ValueError, {"damping": 1.0}, r"damping must be a number in \[0, 1\), got 1.0"),
    (ValueError, {"damping": -0.1}, r"damping must be a number in \[0, 1\), got -0.1"),
    (ValueError, {"start": [torch.zeros(4, 3)]}, "start must be means of 2 layers, got 1"),
    (
        ValueError,
        {"start": [torch.zeros(4, 3), torch.zeros(3, 3)]},
        r"start\[1\] must have shape \(..., 3\) for 4 rows, got \(3, 3\)",
    ),
    (
        ValueError,
        {"start": [torch.zeros(4, 3), torch.full((4, 3), torch.nan)]},
        r"start\[1\] must be finite",
    ),
]


@pytest.mark.parametrize(("error", "arguments", "message"), BAD)
def test_bad_arguments_are_named(error, arguments, message):
    dbm, v = make("bits")
    with pytest.raises(error, match=message):
        dbm.mean_field(**{"v": v, **arguments})


def test_machines_with_batched_parameters_are_refused():
    dbm = random_dbm(("bernoulli",) * 3, 3, batched=True)
    with pytest.raises(ValueError, match=r"parameters have no batch shape, got \(2, 3\)"):
        dbm.log_prob(torch.zeros(3, dtype=torch.float64))
    rbm = RBM(units.Ising(torch.zeros(2)), units.Ising(torch.zeros(2)), torch.zeros(4, 2, 2))
    with pytest.raises(ValueError, match="weight has no batch shape"):
        MeanFieldSolver(rbm)


def test_the_solver_bounds_log_z_of_an_rbm():
    dbm = random_dbm(("ising", "bernoulli"), 4, offsets=True)
    solver = MeanFieldSolver(dbm.bipartite())
    start = solver.start(torch.full((1, 4), 0.5, dtype=torch.float64))
    found = solver.solve(start, max_updates=500, tolerance=1e-10)
    log_z = exact_log_partition(dbm.bipartite())
    assert bool(found.converged) and 0.0 < (log_z - found.bound).item() < 2.0
