# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The module that owns an RBM's parameters."""

import copy
import json

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.nn.unit_parameters import FAMILIES
from tests import brute_force
from tests.distributions.families import PAIR_IDS, PAIRS, some_states
from tests.training.machines import (
    LAYERS,
    assert_same_state,
    make_module,
    random_module,
    state_of,
    to_machine,
)

every_family = pytest.mark.parametrize("family", LAYERS)
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=PAIR_IDS)
centred_or_not = pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])

#: Names and shapes of the tensors of a layer with the sizes of LAYERS.
TENSORS = {
    "bernoulli": {"bias": (3,)},
    "ising": {"bias": (3,)},
    "categorical": {"bias": (2, 3)},
    "multinomial": {"bias": (3,)},
    "gaussian": {"loc": (2,), "log_precision": (2,)},
    "relu": {"bias": (2,), "log_precision": (2,)},
}


def expected_shapes(pair: tuple[str, str], centered: bool) -> dict[str, tuple[int, ...]]:
    num_visible, num_hidden = LAYERS[pair[0]][0], LAYERS[pair[1]][0]
    shapes = {"weight": (num_visible, num_hidden)}
    if centered:
        shapes |= {"visible_offset": (num_visible,), "hidden_offset": (num_hidden,)}
    for side, family in zip(("visible", "hidden"), pair, strict=True):
        shapes |= {f"{side}.{name}": shape for name, shape in TENSORS[family].items()}
    return shapes


# --- tensors ------------------------------------------------------------------------------------


@every_pair
@centred_or_not
def test_state_dict_has_the_documented_names(pair, centered):
    module = make_module(pair, centered=centered)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == expected_shapes(pair, centered)


@pytest.mark.parametrize("family", ["gaussian", "relu"])
@pytest.mark.parametrize("learnt", [False, True], ids=["fixed", "learnt"])
def test_precision_is_a_parameter_only_if_it_is_learnt(family, learnt):
    module = make_module((family, "bernoulli"), learn_precision=learnt)
    # A call registers the parameters with Pyro, which asks for the gradient of all that it sees.
    module()
    assert ("visible.log_precision" in dict(module.named_parameters())) == learnt
    assert module.visible.log_precision.requires_grad == learnt
    assert module().visible.parameters["precision"].requires_grad == learnt


def test_initial_weights_have_the_scale_and_the_seed():
    module = nn.RBM(200, 300, weight_scale=0.5, seed=1)
    # 60,000 normal entries: the standard deviation is right to 0.3 %, six errors are 1.8 %.
    assert module.weight.std().item() == pytest.approx(0.5, rel=0.018)
    assert abs(module.weight.mean().item()) < 6 * 0.5 / 60_000**0.5
    state = torch.get_rng_state()
    assert torch.equal(nn.RBM(200, 300, weight_scale=0.5, seed=1).weight, module.weight)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(nn.RBM(200, 300, weight_scale=0.5, seed=2).weight, module.weight)
    torch.manual_seed(5)
    unseeded = nn.RBM(4, 3).weight
    torch.manual_seed(5)
    assert torch.equal(nn.RBM(4, 3).weight, unseeded)
    assert nn.RBM(4, 3, weight_scale=0.0).weight.abs().max() == 0


@every_family
def test_initial_offsets(family):
    """Zero at the visible layer, which data will set; the mean without weights at the hidden one."""
    module = make_module(("bernoulli", family), centered=True)
    layer = to_machine(module).hidden
    expected = brute_force.mean(layer, np.zeros(module.weight.shape[1]))
    assert torch.equal(module.visible_offset, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(module.hidden_offset, torch.as_tensor(expected))


def test_dtype_and_device_of_every_tensor():
    module = make_module(("gaussian", "relu"), centered=True, dtype=torch.float64)
    assert {t.dtype for t in module.state_dict().values()} == {torch.float64}
    assert module().sample((2,)).dtype == torch.float64
    assert {t.dtype for t in module.float().state_dict().values()} == {torch.float32}
    assert module().sample((2,)).dtype == torch.float32
    assert {t.dtype for t in module.to(torch.float64).state_dict().values()} == {torch.float64}
    assert nn.RBM(2, 2).weight.dtype == torch.get_default_dtype()
    assert nn.RBM(2, 2, device="cpu").weight.device.type == "cpu"
    # "meta" is a device that every machine has.
    assert {t.device.type for t in module.to("meta").state_dict().values()} == {"meta"}


# --- the distribution ---------------------------------------------------------------------------


@every_pair
@centred_or_not
def test_forward_gives_the_machine_of_the_stored_tensors(pair, centered):
    module = random_module(pair, centered=centered, learn_precision=True)
    machine = to_machine(module)
    v = some_states(machine.visible)
    dist = module()
    got = dist.free_energy(torch.as_tensor(v)).detach()
    expected = torch.as_tensor(brute_force.free_energy(machine, v).real)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
    assert {p for p in dist.parameters() if p.requires_grad}
    assert dist.event_shape == module.weight.shape[:1] and dist.batch_shape == ()


def test_options_reach_the_distribution():
    module = nn.RBM(4, 3, seed=0)
    assert module(num_gibbs_steps=7).num_gibbs_steps == 7
    assert module(log_partition=2.0).log_partition == 2.0
    with pytest.raises(TypeError, match="bogus"):
        module(bogus=1)


def test_gradients_reach_the_parameters():
    module = random_module(("gaussian", "relu"), centered=True, learn_precision=True)
    value = module().free_energy(torch.ones(3, 2, dtype=torch.float64)).sum()
    value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@every_pair
@pytest.mark.parametrize("learnt", [False, True], ids=["fixed", "learnt"])
def test_parameters_are_param_sites_of_a_model(pair, learnt):
    module = make_module(pair, centered=True, learn_precision=learnt)
    trace = poutine.trace(lambda: pyro.sample("v", module())).get_trace()
    sites = {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "param"}
    assert set(sites) == set(dict(module.named_parameters()))
    for name, parameter in module.named_parameters():
        assert sites[name] is parameter
    offsets_and_fixed = set(module.state_dict()) - set(sites)
    assert offsets_and_fixed == set(dict(module.named_buffers()))


def test_names_of_a_nested_module():
    class Model(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.RBM(3, 2, seed=0)
            self.right = nn.RBM(4, 2, seed=0)

        def forward(self) -> Tensor:
            pyro.sample("w", self.right())
            return pyro.sample("v", self.left())

    trace = poutine.trace(Model()).get_trace()
    sites = {name for name, site in trace.nodes.items() if site["type"] == "param"}
    names = ("weight", "visible.bias", "hidden.bias")
    assert sites == {f"{side}.{name}" for side in ("left", "right") for name in names}


# --- copies -------------------------------------------------------------------------------------


@every_family
@centred_or_not
def test_config_makes_an_equal_module(family, centered):
    module = make_module((family, "relu"), centered=centered, learn_precision=True, seed=7)
    config = json.loads(json.dumps(module.config()))
    again = nn.RBM(**config, dtype=torch.float64)
    assert again.config() == module.config()
    # A seed is part of the configuration, so that even the initial weights are the same.
    assert_same_state(again, module)
    assert dict(again.named_parameters()).keys() == dict(module.named_parameters()).keys()


def test_config_is_a_copy():
    module = make_module(("categorical", "bernoulli"))
    module.config()["visible_options"]["num_states"] = 99
    assert module.config()["visible_options"] == {"num_states": 3}


def test_deep_copy_shares_nothing():
    module = random_module(("gaussian", "relu"), centered=True, learn_precision=True)
    module()
    clone = copy.deepcopy(module)
    assert_same_state(clone, module)
    before = state_of(module)
    with torch.no_grad():
        for tensor in clone.state_dict().values():
            tensor.add_(1.0)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert torch.equal(clone().weight, module().weight + 1.0)


# --- initialisation from data -------------------------------------------------------------------


def data_for(family: str) -> tuple[Tensor, Tensor]:
    """Rows with extreme columns, and the mean that the layer should get from them."""
    column = torch.arange(50.0, dtype=torch.float64)
    if family == "bernoulli":
        data = torch.stack([column < 20, column < 0, column < 50], 1).double()
        return data, torch.tensor([0.4, 0.001, 0.999]).double()
    if family == "ising":
        data = 2.0 * torch.stack([column < 20, column < 0, column < 50], 1).double() - 1.0
        return data, torch.tensor([-0.2, -0.998, 0.998]).double()
    if family == "categorical":
        first = torch.nn.functional.one_hot((column >= 20).long(), 3)
        second = torch.nn.functional.one_hot((column.long()) % 3, 3)
        expected = torch.tensor([0.4, 0.6, 0.001, 0.34, 0.34, 0.32]).double()
        expected[:3] /= 1.001
        return torch.cat([first, second], 1).double(), expected
    if family == "multinomial":
        counts = torch.tensor([[3.0, 0.0, 0.0], [1.0, 2.0, 0.0]]).double()
        return counts, 3 * torch.tensor([2 / 3, 1 / 3, 0.001]).double() / 1.001
    if family == "gaussian":
        return torch.stack([column, 5 - 2 * column], 1), torch.tensor([24.5, -44.0]).double()
    return torch.stack([column / 10, column / 100], 1), torch.tensor([2.45, 0.245]).double()


@every_family
@centred_or_not
def test_init_from_data_sets_the_mean_without_weights(family, centered):
    module = make_module((family, "bernoulli"), centered=centered, weight_scale=0.0)
    data, expected = data_for(family)
    assert module.init_from_data(data) is module
    dist = module()
    mean = dist.visible_given(torch.zeros(3, dtype=torch.float64)).mean.detach()
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-6)
    if centered:
        torch.testing.assert_close(module.visible_offset, data.mean(0))


@pytest.mark.parametrize("learnt", [False, True], ids=["fixed", "learnt"])
def test_init_from_data_sets_the_precision_of_gaussian_units(learnt):
    module = make_module(("gaussian", "bernoulli"), learn_precision=learnt)
    data = torch.tensor([[1.0, 7.0], [3.0, 7.0], [5.0, 7.0], [7.0, 7.0]]).double()
    module.init_from_data(data)
    # Variance 5; a constant column has none, and gets the smallest that is believed.
    precision = module().visible.parameters["precision"].detach()
    torch.testing.assert_close(precision, torch.tensor([1 / 5, 1e3]).double())


def test_init_from_one_row():
    module = make_module(("gaussian", "bernoulli")).init_from_data(torch.tensor([[1.0, -2.0]]))
    assert torch.equal(module.visible.loc, torch.tensor([1.0, -2.0]).double())
    assert bool(torch.isfinite(module.visible.log_precision).all())


def test_init_from_data_takes_bytes_and_rates():
    bits = torch.tensor([[0, 1, 1], [0, 0, 1]], dtype=torch.uint8)
    module = make_module(("bernoulli", "bernoulli"))
    expected = make_module(("bernoulli", "bernoulli")).init_from_data(bits.double())
    assert_same_state(module.init_from_data(bits), expected)
    assert_same_state(module.init_from_data(bits.double().mean(0, keepdim=True)), expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(5, 4), r"data must have shape \(rows >= 1, 3\), got \(5, 4\)"),
        (torch.zeros(3), r"data must have shape \(rows >= 1, 3\), got \(3,\)"),
        (torch.zeros(0, 3), r"data must have shape \(rows >= 1, 3\), got \(0, 3\)"),
        (torch.tensor([[0.0, float("nan"), 1.0]]), "data holds NaN or infinite values"),
        (torch.tensor([[0.0, float("inf"), 1.0]]), "data holds NaN or infinite values"),
    ],
    ids=["columns", "vector", "empty", "nan", "inf"],
)
def test_init_from_bad_data(data, message):
    module = make_module(("bernoulli", "bernoulli"), centered=True)
    before = state_of(module)
    with pytest.raises(ValueError, match=message):
        module.init_from_data(data)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"visible": "bernouli"}, "unknown unit family 'bernouli'; choose from .*'bernoulli'"),
        ({"hidden": "Ising"}, "unknown unit family 'Ising'; choose from"),
        ({"visible_options": {"k": 2}}, r"unknown options of 'bernoulli' units: \['k'\]"),
        (
            {"hidden": "gaussian", "hidden_options": {"precision": 2}},
            r"unknown options of 'gaussian' units: \['precision'\]; known: \['learn_precision'\]",
        ),
        ({"visible": "categorical"}, r"'categorical' units need the options \['num_states'\]"),
        ({"hidden": "multinomial"}, r"'multinomial' units need the options \['total_count'\]"),
        (
            {"visible": "categorical", "visible_options": {"num_states": 5}},
            "6 entries are no whole number of groups of num_states=5",
        ),
        (
            {"visible": "categorical", "visible_options": {"num_states": 2.0}},
            "num_states must be a whole number >= 1, got 2.0",
        ),
        (
            {"visible": "multinomial", "visible_options": {"total_count": 0}},
            "total_count must be a whole number >= 1, got 0",
        ),
        (
            {"visible": "relu", "visible_options": {"learn_precision": "no"}},
            "learn_precision must be a bool, got 'no'",
        ),
        ({"num_visible": 0}, "num_visible must be a whole number >= 1, got 0"),
        ({"num_visible": 2.0}, "num_visible must be a whole number >= 1, got 2.0"),
        ({"num_hidden": -3}, "num_hidden must be a whole number >= 1, got -3"),
        ({"num_hidden": True}, "num_hidden must be a whole number >= 1, got True"),
        ({"centered": "no"}, "centered must be a bool, got 'no'"),
        ({"weight_scale": -0.1}, "weight_scale must be a number >= 0, got -0.1"),
        ({"weight_scale": float("nan")}, "weight_scale must be a number >= 0, got nan"),
        ({"weight_scale": float("inf")}, "weight_scale must be a number >= 0, got inf"),
        ({"seed": -1}, "seed must be None or a whole number"),
        ({"seed": 2**64}, "seed must be None or a whole number"),
        ({"seed": "x"}, "seed must be None or a whole number .*, got 'x'"),
        ({"dtype": torch.int64}, "dtype must be a floating-point type, got torch.int64"),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        nn.RBM(**{"num_visible": 6, "num_hidden": 4, **arguments})


def test_every_family_is_tested():
    """A new family must come into these tests."""
    assert set(LAYERS) == set(TENSORS) == set(FAMILIES)
