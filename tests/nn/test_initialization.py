# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Data statistics, arrays and other machines as the start of an RBM, against closed forms and sums."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from tests import brute_force
from tests.distributions.families import CONTINUOUS, DISCRETE, PAIR_IDS, PAIRS, some_states, uniform
from tests.training.machines import (
    LAYERS,
    assert_same_state,
    make_module,
    random_module,
    state_of,
    to_machine,
)

every_pair = pytest.mark.parametrize("pair", PAIRS, ids=PAIR_IDS)
every_family = pytest.mark.parametrize("family", LAYERS)
centred_or_not = pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def unchanged(module: nn.RBM, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def relative_free_energy(module: nn.RBM, v: Tensor) -> Tensor:
    """Free energies up to the constant that normalisation removes."""
    free_energy = module().free_energy(v).detach()
    return free_energy - free_energy[0]


def states_of(module: nn.RBM, count: int = 8) -> Tensor:
    return torch.as_tensor(some_states(to_machine(module).visible, count))


def rows_for(family: str, count: int = 40) -> Tensor:
    """Rows of the family whose first unit never changes."""
    column = torch.arange(count, dtype=torch.float64)
    if family in ("bernoulli", "ising"):
        bits = torch.stack([column < 0, column % 4 == 0, column % 5 < 3], 1).double()
        return bits if family == "bernoulli" else 2.0 * bits - 1.0
    if family == "categorical":
        first = torch.zeros(count, dtype=torch.int64)
        groups = torch.stack([first, column.long() % 3 % 2], 1)
        return torch.nn.functional.one_hot(groups, 3).flatten(1).double()
    if family == "multinomial":
        return torch.stack([3.0 - column % 2, column % 2, 0.0 * column], 1)
    return torch.stack([torch.full_like(column, 2.0), column / 10.0], 1)


# --- data statistics ----------------------------------------------------------------------------


def log_odds(rate: float) -> float:
    rate = min(max(rate, 1e-3), 1.0 - 1e-3)
    return float(np.log(rate / (1.0 - rate)))


def expected_bias(family: str, data: np.ndarray) -> list[float]:
    """Natural biases of the layer alone, from the definition of each family."""
    mean = data.mean(0)
    if family == "bernoulli":
        return [log_odds(m) for m in mean]
    if family == "ising":
        return [log_odds((1.0 + m) / 2.0) / 2.0 for m in mean]
    # A bias of groups is a log-rate; rates below the smallest one are lifted to it and all rescaled.
    groups = mean.reshape(-1, 3) / (3 if family == "multinomial" else 1)
    rates = np.maximum(groups, 1e-3)
    return list(np.log(rates / rates.sum(1, keepdims=True)).flatten())


@pytest.mark.parametrize("family", DISCRETE)
@centred_or_not
def test_biases_of_discrete_units_from_data(family, centered):
    data = rows_for(family)
    module = make_module((family, "bernoulli"), centered=centered).init_from_data(data)
    expected = torch.tensor(expected_bias(family, data.numpy()), dtype=torch.float64)
    close(module().visible.natural_bias.detach(), expected, 1e-12)
    assert bool(torch.isfinite(expected).all())


@centred_or_not
def test_gaussian_units_from_data(centered):
    data = rows_for("gaussian")
    module = make_module(("gaussian", "ising"), centered=centered).init_from_data(data)
    deviation = data[:, 1] - data[:, 1].sum() / 40
    expected = torch.stack([torch.tensor(1e3).double(), 40 / deviation.square().sum()])
    close(module().visible.parameters["precision"].detach(), expected)
    close(module.visible.loc.detach(), data.sum(0) / 40)


def test_rectified_units_from_data():
    """The mean is that of the quadrature; a precision is not taken from data."""
    module = make_module(("relu", "ising"), weight_scale=0.0).init_from_data(rows_for("relu"))
    layer = to_machine(module).visible
    close(brute_force.mean(layer, np.zeros(2)), np.array([2.0, 1.95]), 1e-8)
    assert torch.equal(module.visible.log_precision, torch.zeros(2).double())


@every_pair
@centred_or_not
def test_hidden_activation_is_the_mean_at_the_mean_of_the_data(pair, centered):
    module = random_module(pair, centered=centered)
    size, _ = LAYERS[pair[1]]
    target = {"categorical": [0.2, 0.3, 0.5] * 2, "multinomial": [0.5, 1.0, 1.5]}
    activation = torch.tensor(target.get(pair[1], [0.1, 0.3, 0.2][:size])).double()
    data = rows_for(pair[0])
    assert module.init_from_data(data, hidden_activation=activation) is module
    # Hidden units under the field of the mean, with the energy of the brute force.
    machine = to_machine(module)
    field = (data.mean(0).numpy() - machine.visible_offset) @ machine.weight
    close(torch.tensor(brute_force.mean(machine.hidden, field)), activation, 1e-6)
    if centered:
        close(module.hidden_offset, activation, 1e-6)
        close(module.visible_offset, data.mean(0))


def test_hidden_bias_is_the_logit_of_the_activation():
    module = make_module(("bernoulli", "bernoulli"), weight_scale=0.3)
    data = rows_for("bernoulli")
    module.init_from_data(data, 0.1)
    expected = np.log(0.1 / 0.9) - data.mean(0) @ module.weight.detach()
    close(module.hidden.bias.detach(), expected)
    close(
        module.visible.bias.detach(),
        torch.tensor(expected_bias("bernoulli", data.numpy()), dtype=torch.float64),
    )


@pytest.mark.parametrize(
    ("family", "activation", "message"),
    [
        ("bernoulli", 0.0, "must be a mean of bernoulli units, got 0; .* set to is 0.001"),
        ("bernoulli", 1.5, "must be a mean of bernoulli units, got 1.5"),
        ("ising", -1.0, "must be a mean of ising units"),
        ("categorical", 0.1, "must be a mean of categorical units"),
        ("relu", -0.1, "must be a mean of relu units"),
        ("bernoulli", [0.1, 0.2], r"must be a number or have shape \(3,\), got shape \(2,\)"),
        ("bernoulli", float("nan"), "hidden_activation holds NaN"),
    ],
)
def test_impossible_activations_change_nothing(family, activation, message):
    module = random_module(("bernoulli", family), centered=True)
    before = state_of(module)
    with pytest.raises(ValueError, match=message):
        module.init_from_data(rows_for("bernoulli"), hidden_activation=activation)
    assert unchanged(module, before)


# --- arrays -------------------------------------------------------------------------------------


def arrays_for(pair: tuple[str, str]) -> dict[str, np.ndarray]:
    """Random parameters of a machine without offsets."""
    plain = random_module(pair)
    arrays = {"weight": plain.weight.detach().numpy()}
    for side, family in zip(("visible", "hidden"), pair, strict=True):
        layer = getattr(plain, side)
        bias = layer.loc if family == "gaussian" else layer.bias
        arrays[f"{side}_bias"] = bias.detach().numpy()
        if family in CONTINUOUS:
            arrays[f"{side}_precision"] = layer.log_precision.exp().numpy()
    return arrays


@every_pair
@centred_or_not
def test_arrays_are_those_of_a_machine_without_offsets(pair, centered):
    arrays = arrays_for(pair)
    module = random_module(pair, centered=centered)
    offsets = {name: t.clone() for name, t in module.state_dict().items() if "offset" in name}
    assert module.init_from_arrays(**arrays) is module
    # The same energy written down for the arrays, without offsets.
    plain = make_module(pair).init_from_arrays(**arrays)
    for side in ("visible", "hidden"):
        layer = getattr(to_machine(plain), side).parameters
        given = [
            arrays[f"{side}_{name}"] for name in ("bias", "precision") if f"{side}_{name}" in arrays
        ]
        close([torch.tensor(x) for x in layer.values()], [torch.tensor(x) for x in given], 1e-14)
    v = states_of(module)
    machine = to_machine(plain)
    assert not machine.visible_offset.any() and not machine.hidden_offset.any()
    expected = torch.as_tensor(brute_force.free_energy(machine, v.numpy()).real)
    close(relative_free_energy(module, v), expected - expected[0], 1e-7)
    close(relative_free_energy(module, v), relative_free_energy(plain, v), 1e-11)
    assert all(torch.equal(module.state_dict()[name], o) for name, o in offsets.items())


def test_arrays_about_the_offsets_are_stored_as_they_are():
    module = random_module(("bernoulli", "gaussian"), centered=True)
    arrays = arrays_for(("bernoulli", "gaussian"))
    module.init_from_arrays(**arrays, about_offsets=True)
    for name, stored in (
        ("weight", module.weight),
        ("visible_bias", module.visible.bias),
        ("hidden_bias", module.hidden.loc),
    ):
        assert torch.equal(stored.detach(), torch.as_tensor(arrays[name]))


def test_what_is_not_given_stays():
    module = random_module(("gaussian", "bernoulli"), centered=True)
    before = state_of(module)
    module.init_from_arrays(weight=np.ones((2, 3), dtype=np.float32))
    assert torch.equal(module.weight, torch.ones(2, 3).double())
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name != "weight")
    module.init_from_arrays(hidden_bias=[1.0, 2.0, 3.0])
    pull = module.visible_offset @ torch.ones(2, 3).double()
    close(module.hidden.bias.detach(), torch.tensor([1.0, 2.0, 3.0]).double() + pull)
    assert torch.equal(module.visible.loc, before["visible.loc"])


def test_arrays_of_groups_may_be_flat():
    bias = uniform((2, 3), -1, 1)
    module = make_module(("categorical", "bernoulli"))
    flat = make_module(("categorical", "bernoulli")).init_from_arrays(visible_bias=bias.flatten())
    assert_same_state(module.init_from_arrays(visible_bias=bias), flat)


def test_arrays_of_a_layer_of_two_families():
    options = {"visible": "gaussian", "seed": 0, "dtype": torch.float64, "centered": True}
    module = nn.ClassificationRBM(2, 3, 2, **options)
    bias, precision = uniform((4,), -1, 1), uniform((4,), 1, 2)
    module.init_from_arrays(visible_bias=bias, visible_precision=precision, about_offsets=True)
    assert torch.equal(module.visible.inputs.loc.detach(), bias[:2])
    assert torch.equal(module.visible.labels.bias.detach()[0], bias[2:])
    close(module.visible.inputs.log_precision.exp(), precision[:2])


def test_arrays_take_the_type_of_the_module():
    module = nn.RBM(2, 2, seed=0).init_from_arrays(np.ones((2, 2)), hidden_bias=np.array([1, 2]))
    assert module.weight.dtype == module.hidden.bias.dtype == torch.float32
    assert all(p.requires_grad and p.is_leaf for p in module.parameters())
    leaf = torch.ones(2, 2, requires_grad=True)
    module.init_from_arrays(leaf)
    assert module.weight.grad_fn is None


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"weight": np.ones((3, 2))}, ValueError, r"weight must have shape \(2, 3\), got \(3, 2\)"),
        (
            {"visible_bias": np.ones(3)},
            ValueError,
            r"visible_bias must have shape \(2,\), got \(3,\)",
        ),
        ({"hidden_bias": np.ones((1, 3))}, ValueError, r"hidden_bias must have shape \(3,\)"),
        ({"hidden_bias": [0.0, np.nan, 0.0]}, ValueError, "hidden_bias holds NaN or infinite"),
        ({"weight": np.ones((2, 3), dtype=bool)}, TypeError, "weight must hold real numbers"),
        ({"weight": np.ones((2, 3)) * 1j}, TypeError, "weight must hold real numbers"),
        ({"weight": "W"}, TypeError, "weight must be a tensor, an array or a number, got str"),
        (
            {"visible_precision": [1.0, 0.0]},
            ValueError,
            "visible_precision must be positive, got 0.0",
        ),
        ({"hidden_precision": np.ones(3)}, ValueError, "the hidden layer is Bernoulli"),
        ({"about_offsets": True}, ValueError, "make it with centered=True"),
    ],
)
def test_impossible_arrays_change_nothing(arrays, error, message):
    module = random_module(("gaussian", "bernoulli"))
    before = state_of(module)
    with pytest.raises(error, match=message):
        module.init_from_arrays(**{"visible_bias": np.ones(2), **arrays})
    assert unchanged(module, before)
