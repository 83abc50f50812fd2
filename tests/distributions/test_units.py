# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Unit families against direct sums and quadrature."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_ebm.distributions import units
from tests import brute_force
from tests.distributions.families import (
    ALL_FAMILIES,
    CONTINUOUS,
    DISCRETE,
    FAMILIES,
    FINITE,
    TOTAL_COUNT,
    random_unit,
    some_states,
    to_layer,
    uniform,
)

TOLERANCE = 1e-9
every_family = pytest.mark.parametrize("family", list(ALL_FAMILIES))
simple_family = pytest.mark.parametrize("family", list(FAMILIES))
discrete = pytest.mark.parametrize("family", DISCRETE)
finite = pytest.mark.parametrize("family", FINITE)


def close(got: torch.Tensor, expected: object) -> None:
    expected = np.real(np.asarray(expected))
    np.testing.assert_allclose(got.detach().numpy(), expected, atol=TOLERANCE, rtol=TOLERANCE)


def fields(unit: units.Unit, count: int = 4) -> torch.Tensor:
    return uniform((count, unit.size), -1.5, 1.5)


def states(unit: units.Unit, count: int = 5) -> torch.Tensor:
    return torch.from_numpy(some_states(to_layer(unit), count))


@every_family
def test_energy_log_partition_and_mean(family):
    unit = random_unit(family)
    layer, x, t = to_layer(unit), states(unit), fields(unit)
    close(unit.energy(x), brute_force.layer_energy(layer, x.numpy()))
    close(unit.log_partition(t), [brute_force.log_partition(layer, f) for f in t.numpy()])
    close(unit.mean(t), [brute_force.mean(layer, f) for f in t.numpy()])
    nothing = np.zeros(unit.size)
    close(unit.log_partition(), brute_force.log_partition(layer, nothing))
    close(unit.mean(), brute_force.mean(layer, nothing))


@every_family
def test_natural_form(family):
    """u(x) = -b'x + r(x) + C with r free of b, and Gamma(t) = A(b + t) - C."""
    unit = random_unit(family)
    x, t = states(unit), fields(unit)
    rest = unit.neutral().energy(x)
    natural = -(x * unit.natural_bias).sum(-1) + rest + unit.energy_constant
    close(unit.energy(x), natural.numpy())
    natural = unit.natural_log_partition(unit.natural_bias + t) - unit.energy_constant
    close(unit.log_partition(t), natural.numpy())
    assert torch.equal(unit.theta(None), unit.natural_bias)
    assert torch.equal(unit.theta(t), unit.natural_bias + t)


@every_family
def test_batch_shapes_broadcast(family):
    unit = random_unit(family, (2, 3))
    assert unit.batch_shape == (2, 3)
    x, t = states(random_unit(family), 5)[:, None, None], fields(unit, 3)
    energy, gamma, mean = unit.energy(x), unit.log_partition(t), unit.mean(t)
    assert energy.shape == (len(x), 2, 3) and gamma.shape == (2, 3)
    assert mean.shape == (2, 3, unit.size)
    layer = to_layer(unit, (1, 2))
    close(energy[:, 1, 2], brute_force.layer_energy(layer, x[:, 0, 0].numpy()))
    close(gamma[1, 2], brute_force.log_partition(layer, t[2].numpy()))
    close(mean[1, 2], brute_force.mean(layer, t[2].numpy()))


@pytest.mark.parametrize("family", CONTINUOUS)
def test_scalar_precision_broadcasts(family):
    first = uniform((2,), -1, 1)
    plain = FAMILIES[family](first, 1.5)
    full = FAMILIES[family](first, torch.full((2,), 1.5, dtype=torch.float64))
    x, t = states(full), fields(full)
    assert plain.size == 2 and plain.precision.dtype == torch.float64
    for method, argument in (("energy", x), ("log_partition", t), ("mean", t)):
        close(getattr(plain, method)(argument), getattr(full, method)(argument).numpy())
    close(plain.log_partition(), full.log_partition().numpy())
    mask = torch.tensor([True, False])
    close(plain.select(mask).precision, [1.5])
    tilted, constant = plain.tilt(t[0])
    expected, expected_constant = full.tilt(t[0])
    close(tilted.energy(x), expected.energy(x).numpy())
    close(constant, expected_constant.numpy())


@finite
def test_states_are_all_states(family):
    unit = random_unit(family, num_units=3)
    expected, _ = brute_force.points(to_layer(unit))
    got = unit.states(0, unit.num_states)
    assert unit.is_discrete and unit.num_states == len(expected)
    assert got.dtype == torch.float64 and got.shape == expected.shape
    assert set(map(tuple, got.tolist())) == set(map(tuple, expected.tolist()))
    # A range in the middle is that range of the whole.
    assert torch.equal(unit.states(2, 5), got[2:5])
    assert bool(unit.support.check(got).all())


@discrete
def test_unit_states(family):
    unit = random_unit(family)
    width = unit.size // unit.num_units
    one, _ = brute_force.points(to_layer(random_unit(family, num_units=1)))
    if family == "categorical":
        one = np.eye(3)
    got = unit.unit_states()
    assert got.shape == (len(one), width) and got.dtype == torch.float64
    assert set(map(tuple, got.tolist())) == set(map(tuple, one.tolist()))


def test_multinomial_of_one_category_is_constant():
    unit = units.Multinomial(torch.zeros(1), 3)
    assert unit.states(0, unit.num_states).tolist() == [[3.0]]


@pytest.mark.parametrize("family", [*CONTINUOUS, "low_rank"])
def test_continuous_units_are_not_enumerated(family):
    unit = random_unit(family)
    assert unit.num_states is None and not unit.is_discrete
    with pytest.raises(
        ValueError, match=f"{ALL_FAMILIES[family].__name__} units cannot be enumerated"
    ):
        unit.states(0, 1)
    with pytest.raises(ValueError, match="no finite set of states"):
        unit.unit_states()


INSIDE = {
    "bernoulli": [0.002, 0.4, 0.998],
    "ising": [-0.99, 0.3, 0.99],
    "categorical": [0.2, 0.3, 0.5, 0.01, 0.01, 0.98],
    "multinomial": [0.3, 0.9, 1.8],
    "gaussian": [-5.0, 3.0],
    "relu": [0.3, 4.0],
    "mixed": [0.3, -0.5, 4.0],
    "labels": [0.4, 0.2, 0.3, 0.5, 0.01, 0.01, 0.98],
    "low_rank": [-5.0, 3.0],
}


@every_family
def test_from_mean_matches_the_mean(family):
    unit = random_unit(family)
    mean = torch.tensor(INSIDE[family], dtype=torch.float64)
    got = unit.from_mean(mean)
    close(got.mean(), mean.numpy())
    assert type(got) is type(unit)
    if family in CONTINUOUS:
        assert torch.equal(got.precision, unit.precision)
    # It sets the mean of every element of a batch.
    means = torch.stack([mean, got.mean() * 0.5 + 0.5 * mean])
    close(unit.from_mean(means).mean(), means.numpy())


@pytest.mark.parametrize(
    ("family", "border", "expected"),
    [
        ("bernoulli", [0.0, 0.5, 1.0], [1e-3, 0.5, 1 - 1e-3]),
        ("ising", [-1.0, 0.0, 1.0], [-1 + 2e-3, 0.0, 1 - 2e-3]),
        ("categorical", [0.0, 0.0, 1.0] * 2, [1e-3 / 1.002, 1e-3 / 1.002, 1 / 1.002] * 2),
        ("multinomial", [0.0, 0.0, 3.0], [3e-3 / 1.002, 3e-3 / 1.002, 3 / 1.002]),
        ("relu", [0.0, 1.0], None),
    ],
)
def test_from_mean_moves_the_border_inside(family, border, expected):
    unit = random_unit(family)
    got = unit.from_mean(torch.tensor(border, dtype=torch.float64))
    assert bool(torch.isfinite(got.natural_bias).all())
    if expected is None:
        expected = [0.05 / unit.precision[0].sqrt(), 1.0]
    close(got.mean(), expected)


@simple_family
def test_neutral(family):
    unit = random_unit(family)
    neutral = unit.neutral()
    layer = to_layer(neutral)
    assert torch.equal(neutral.natural_bias, torch.zeros(unit.size, dtype=torch.float64))
    x, _ = brute_force.points(layer, 5)
    energy = brute_force.layer_energy(layer, x).real
    if family in CONTINUOUS:
        assert torch.equal(neutral.precision, unit.precision)
        expected = (x**2 * unit.precision.numpy()).sum(1) / 2
    elif family == "multinomial":  # uniform over sequences of draws
        fact = [math.prod(math.factorial(int(c)) for c in row) for row in x]
        expected = [math.log(f / math.factorial(TOTAL_COUNT)) for f in fact]
    else:
        expected = np.zeros(len(x))
    np.testing.assert_allclose(energy, expected, atol=1e-12)


@every_family
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_interpolate(family, beta):
    unit, base = random_unit(family), random_unit(family)
    if family == "low_rank":  # mixtures of two covariances have no low rank
        base = unit.replace(loc=base.loc)
    x = states(unit)
    between = unit.interpolate(base, beta)
    expected = (1 - beta) * base.energy(x) + beta * unit.energy(x)
    difference = between.energy(x) - expected
    close(difference, np.full(len(x), difference[0].item()))
    if beta in (0.0, 1.0):
        close(difference, np.zeros(len(x)))
    # The constant is exactly what the log-partitions say of the geometric path.
    layer = to_layer(between)
    nothing = np.zeros(unit.size)
    close(between.log_partition(), brute_force.log_partition(layer, nothing))


@every_family
def test_tilt(family):
    unit = random_unit(family)
    x, t = states(unit), fields(unit, 1)[0]
    tilted, constant = unit.tilt(t)
    # u'(x) = u(x) - t'x - C', so that Gamma(t) = Gamma'(0) - C'.
    close(tilted.energy(x), (unit.energy(x) - x @ t - constant).numpy())
    close(tilted.log_partition() - constant, unit.log_partition(t).numpy())
    batch, constants = unit.tilt(torch.stack([t, -t]))
    assert batch.batch_shape == (2,)
    close(batch.energy(x[:, None])[:, 0], tilted.energy(x).numpy())
    close(constants.expand(2)[0], constant.numpy())


@simple_family
def test_select_splits_the_energy(family):
    unit = random_unit(family, (2,), num_units=3)
    x = states(random_unit(family))
    mask = torch.zeros(unit.size, dtype=torch.bool)
    mask[: 3 if family in ("categorical", "multinomial") else 1] = True
    part = unit.select(mask)
    assert part.size == int(mask.sum()) and part.batch_shape == (2,)
    energy = part.energy(x[:, None, mask])
    if family != "multinomial":
        energy = energy + unit.select(~mask).energy(x[:, None, ~mask])
    close(energy, unit.energy(x[:, None]).numpy())


def test_select_refuses_to_divide_a_unit():
    with pytest.raises(ValueError, match="whole one-hot groups of 3"):
        random_unit("categorical").select(torch.tensor([1, 1, 0, 0, 0, 0], dtype=torch.bool))
    with pytest.raises(ValueError, match="all or none of a Multinomial"):
        random_unit("multinomial").select(torch.tensor([1, 1, 0], dtype=torch.bool))


@every_family
def test_parameter_gradients(family):
    unit = random_unit(family)
    layer, x, t = to_layer(unit), states(unit), fields(unit)
    of_energy, of_gamma = unit.mean_parameters_gradient(x), unit.log_partition_gradient(t)
    assert set(of_energy) == set(of_gamma) == set(unit.parameters)
    for name, value in layer.parameters.items():

        def changed(p, name=name):
            return replace(layer, parameters={**layer.parameters, name: p})

        expected = brute_force.derivative(
            lambda p: -brute_force.layer_energy(changed(p), x.numpy()).mean(), value
        )
        close(of_energy[name], expected)
        expected = brute_force.derivative(
            lambda p: np.mean([brute_force.log_partition(changed(p), f) for f in t.numpy()]), value
        )
        close(of_gamma[name], expected)


@every_family
def test_log_partition_step(family):
    unit, a = random_unit(family), fields(random_unit(family), 3)
    expected = unit.natural_log_partition(0.7 * a) - unit.natural_log_partition(0.2 * a)
    close(unit.natural_log_partition_step(a, 0.2, 0.7), expected.numpy())


@pytest.mark.parametrize("family", ["bernoulli", "ising"])
def test_log_partition_step_does_not_cancel_in_float32(family):
    # The difference of two float32 sums over 500 units is wrong by 1e-4 at every temperature.
    a = 20 * torch.randn(8, 500)
    unit = FAMILIES[family](torch.zeros(500))
    exact = FAMILIES[family](torch.zeros(500, dtype=torch.float64)).natural_log_partition_step(
        a.double(), 0.5, 0.5001
    )
    step = unit.natural_log_partition_step(a, 0.5, 0.5001)
    torch.testing.assert_close(step.double(), exact, rtol=2e-6, atol=2e-6)


@every_family
def test_sample_shape_support_and_dtype(family):
    unit = random_unit(family)
    t = fields(unit, 7)
    for dtype in (torch.float32, torch.float64):
        cast = unit.map(lambda p, dtype=dtype: p.to(dtype))
        assert cast.dtype == dtype
        draws = cast.sample(t.to(dtype).requires_grad_())
        assert draws.shape == t.shape and draws.dtype == dtype and not draws.requires_grad
        assert bool(cast.support.check(draws).all())
    assert unit.sample().shape == (unit.size,)
    twice = [unit.sample(t, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*twice)


@every_family
def test_replace_keeps_options(family):
    unit = random_unit(family)
    again = unit.map(lambda p: p.clone())
    assert again.options() == unit.options() and type(again) is type(unit)
    x = states(unit)
    assert torch.equal(again.energy(x), unit.energy(x))
    assert f"num_units={unit.num_units}" in repr(unit)


@simple_family
def test_nan_parameters_are_named(family):
    for name in random_unit(family).parameters:
        values = {n: p.clone() for n, p in random_unit(family).parameters.items()}
        values[name].view(-1)[0] = math.nan
        options = random_unit(family).options()
        with pytest.raises(ValueError, match=rf"{name} must be .*got values such as \[nan"):
            FAMILIES[family](**values, **options)
        assert FAMILIES[family](**values, **options, validate_args=False).size


@pytest.mark.parametrize("family", CONTINUOUS)
@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_precision_must_be_positive(family, bad):
    with pytest.raises(ValueError, match=rf"precision must be GreaterThan.*\[{bad}\]"):
        FAMILIES[family](torch.zeros(2), torch.tensor([1.0, bad]))


@pytest.mark.parametrize("bad", [0, -2, 1.5, True, "a", None, math.nan, math.inf])
def test_total_count_must_be_a_whole_number(bad):
    with pytest.raises(ValueError, match="total_count must be a whole number >= 1, got"):
        units.Multinomial(torch.zeros(3), bad)


def test_whole_numbers_of_other_types_are_counts():
    for count in (3.0, np.int64(3), torch.tensor(3)):
        assert units.Multinomial(torch.zeros(3), count).total_count == 3


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"loc \(2,\), precision \(3,\)"):
        units.Gaussian(torch.zeros(2), torch.ones(3))
    with pytest.raises(ValueError, match=r"bias needs at least 1 axes, got shape \(\)"):
        units.Bernoulli(torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"bias needs at least 2 axes, got shape \(3,\)"):
        units.Categorical(torch.zeros(3))
