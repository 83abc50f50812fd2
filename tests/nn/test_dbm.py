# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The module that owns a deep machine's parameters."""

import copy
import json

import pyro
import pytest
import torch
from pyro import poutine

import pyro_ebm
from pyro_ebm import nn
from pyro_ebm.distributions import DBM, UnnormalizedGradientError
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.training import Trainer, TrainerConfig

centred_or_not = pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
OPTIONS = [{}, {"num_states": 3}, {"learn_precision": True}]


def make(centered: bool = False, **options) -> nn.DBM:
    """Bits below spins, one-hot groups and rectified units."""
    given = {"hidden_options": OPTIONS, "seed": 3, "weight_scale": 0.3, "dtype": torch.float64}
    hidden = ["ising", "categorical", "gaussian"]
    return nn.DBM(4, [3, 6, 2], hidden=hidden, centered=centered, **{**given, **options})


@torch.no_grad()
def random_module(centered: bool = True) -> nn.DBM:
    module = make(centered)
    for name, tensor in module.state_dict().items():
        tensor.uniform_(-0.5, 0.5) if "log" in name else tensor.uniform_(-0.7, 0.7)
    return module


def test_names_shapes_and_layers():
    module = make(centered=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == {
        "offset_0": (4,),
        "offset_1": (3,),
        "offset_2": (6,),
        "offset_3": (2,),
        "layers.0.bias": (4,),
        "layers.1.bias": (3,),
        "layers.2.bias": (2, 3),
        "layers.3.loc": (2,),
        "layers.3.log_precision": (2,),
        "weights.0": (4, 3),
        "weights.1": (3, 6),
        "weights.2": (6, 2),
    }
    assert {name for name, _ in module.named_parameters()} == {
        name for name in shapes if not name.startswith("offset")
    }
    assert module.sizes == (4, 3, 6, 2) and module.depth == 3
    assert module.visible is module.layers[0] and len(module.offsets) == 4
    assert make().offsets == () and "offset_0" not in make().state_dict()


@centred_or_not
def test_the_distribution_has_the_parameters(centered):
    module = random_module(centered)
    dbm = module(num_gibbs_steps=7, mean_field_tolerance=1e-3, max_mean_field_updates=59)
    assert isinstance(dbm, DBM) and dbm.sizes == module.sizes
    assert (dbm.num_gibbs_steps, dbm.mean_field_tolerance, dbm.max_mean_field_updates) == (
        7,
        1e-3,
        59,
    )
    assert all(a is b for a, b in zip(dbm.weights, module.weights, strict=True))
    assert (dbm._offsets is not None) == centered
    states = [layer().sample().double() for layer in module.layers]
    expected = sum(layer().energy(x) for layer, x in zip(module.layers, states, strict=True))
    offsets = module.offsets or [torch.zeros(n) for n in module.sizes]
    low = [x - o for x, o in zip(states, offsets, strict=True)]
    for number, weight in enumerate(module.weights):
        expected = expected - low[number] @ weight @ low[number + 1]
    torch.testing.assert_close(dbm.energy(states), expected, rtol=0, atol=1e-12)
    with pytest.raises(UnnormalizedGradientError):
        dbm.log_prob(states[0])
    # A gradient reaches every parameter.
    exact = dbm.normalize(exact_log_partition(dbm.bipartite()))
    exact.log_prob(dbm.sample((5,))).sum().backward()
    assert all(bool(p.grad.abs().max() > 0) for p in module.parameters())


@centred_or_not
def test_config_and_files_make_an_equal_module(centered, tmp_path):
    module = random_module(centered)
    config = json.loads(json.dumps(module.config()))
    assert nn.DBM(**config, dtype=torch.float64).config() == module.config()
    again = nn.DBM(**{**make(centered).config()}, dtype=torch.float64)
    for a, b in zip(again.state_dict().values(), make(centered).state_dict().values(), strict=True):
        assert torch.equal(a, b)  # the seed is part of it
    config["hidden_options"][1]["num_states"] = 99
    assert module.config()["hidden_options"][1] == {"num_states": 3}
    pyro_ebm.save(module, tmp_path / "dbm.safetensors")
    loaded = pyro_ebm.load(tmp_path / "dbm.safetensors")
    assert isinstance(loaded, nn.DBM) and loaded.config() == module.config()
    for name, tensor in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    clone = copy.deepcopy(module)
    with torch.no_grad():
        clone.weights[0].add_(1.0)
    assert torch.equal(loaded.weights[0], module.weights[0])


def test_hidden_layers_of_one_family_and_seeds():
    module = nn.DBM(5, (4, 3), hidden="ising", visible="gaussian", seed=1)
    assert [layer.family for layer in module.layers] == ["gaussian", "ising", "ising"]
    assert module.config()["hidden"] == ["ising", "ising"]
    same, other = (nn.DBM(5, [4, 3], hidden="ising", visible="gaussian", seed=s) for s in (1, 2))
    assert torch.equal(same.weights[1], module.weights[1])
    assert not torch.equal(other.weights[1], module.weights[1])
    assert nn.DBM(5, [4], seed=1).depth == 1
    state = torch.get_rng_state()
    nn.DBM(5, [4, 3], seed=1)
    assert torch.equal(state, torch.get_rng_state())
    scaled = nn.DBM(300, [300, 300], weight_scale=0.2, seed=0)
    assert all(abs(w.std().item() - 0.2) < 0.01 for w in scaled.weights)
    centred = nn.DBM(5, [4, 3], centered=True)
    assert [o.unique().tolist() for o in centred.offsets] == [[0.0], [0.5], [0.5]]


@centred_or_not
def test_init_from_data(centered):
    module = make(centered, weight_scale=0.0)
    data = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    assert module.init_from_data(data) is module
    rates = module.visible().mean().detach()
    torch.testing.assert_close(rates, torch.tensor([0.999, 0.5, 0.5, 0.001]).double())
    if centered:
        assert torch.equal(module.offsets[0], data.double().mean(0))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.zeros(5, 3), ValueError, r"data must have shape \(rows >= 1, 4\), got \(5, 3\)"),
        (torch.zeros(4), ValueError, r"got \(4,\)"),
        (torch.zeros(0, 4), ValueError, r"got \(0, 4\)"),
        (torch.full((2, 4), torch.nan), ValueError, "data holds NaN or infinite values"),
        ([[0.0] * 4], TypeError, "data must be a tensor, got list"),
    ],
)
def test_init_from_bad_data(data, error, message):
    module = make(centered=True)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(error, match=message):
        module.init_from_data(data)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


# --- offsets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [[0], [1], [2], [3], [0, 1, 2, 3]], ids=str)
@torch.no_grad()
def test_shifted_offsets_keep_the_distribution(which):
    module = random_module()
    v = module().sample((6,))
    steps = [
        torch.randn(n, dtype=torch.float64) if i in which else None
        for i, n in enumerate(module.sizes)
    ]

    def probabilities() -> torch.Tensor:
        dbm = module()
        log_z = exact_log_partition(dbm.bipartite())
        return exact_log_partition(dbm.posterior(v).bipartite()) - log_z

    before, offsets = probabilities(), [o.clone() for o in module.offsets]
    module.shift_offsets(steps)
    torch.testing.assert_close(probabilities(), before, rtol=0, atol=1e-9)
    for old, new, step in zip(offsets, module.offsets, steps, strict=True):
        assert torch.equal(new, old if step is None else old + step)


def test_wrong_steps_change_nothing():
    module = random_module()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="no offsets; make it with centered=True"):
        make().shift_offsets([None] * 4)
    with pytest.raises(ValueError, match="steps must be those of 4 layers, got 2"):
        module.shift_offsets([None, None])
    with pytest.raises(ValueError, match=r"steps\[2\] must have shape \(6,\), got \(5,\)"):
        module.shift_offsets([torch.ones(4).double(), None, torch.ones(5).double(), None])
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


# --- Pyro and training --------------------------------------------------------------------------


def test_pyro_module_and_sites():
    module = random_module()
    data = module().sample((6,))

    def model():
        pyro.module("dbm", module)
        dbm = module()
        log_z = exact_log_partition(dbm.bipartite())
        with pyro.plate("rows", 6):
            pyro.sample("v", dbm.normalize(log_z), obs=data)

    trace = poutine.trace(model).get_trace()
    own = {name for name, _ in module.named_parameters()}
    assert {f"dbm$$${name}" for name in own} <= set(trace.nodes)
    assert {name.removeprefix("dbm$$$") for name in pyro.get_param_store().keys()} == own
    trace.log_prob_sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@torch.no_grad()
def test_two_machines_in_one_program():
    """Pyro's store finds parameters by name: neither machine may come out with those of the other."""
    modules = [nn.DBM(4, [4, 4], weight_scale=1.0, seed=seed) for seed in (0, 1)]
    expected = [[p.clone() for p in module.parameters()] for module in modules]

    def model():
        return [pyro.module(name, m)() for name, m in zip("ab", modules, strict=True)]

    for _ in range(2):
        poutine.trace(model).get_trace()
        for module, tensors in zip(modules, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(module.parameters(), tensors, strict=True))


def test_a_call_outside_of_a_program_leaves_the_store_alone():
    make()()
    assert len(pyro.get_param_store()) == 0


def test_a_few_steps_of_training():
    module = nn.DBM(4, [3, 2], centered=True, seed=0)
    before = copy.deepcopy(module.state_dict())
    data = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).repeat(10, 1)
    config = TrainerConfig(num_epochs=2, batch_size=10, persistent=True, progress=False, seed=0)
    Trainer(module, config).fit(data)
    changed = {name for name, t in module.state_dict().items() if not torch.equal(t, before[name])}
    assert {"weights.0", "weights.1", "layers.2.bias", "offset_2"} <= changed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_visible": 0}, "num_visible must be a whole number >= 1, got 0"),
        ({"num_hidden": []}, r"num_hidden must be a list of sizes, at least one, got \[\]"),
        ({"num_hidden": 5}, "num_hidden must be a list of sizes, at least one, got 5"),
        ({"num_hidden": [4, 2.0]}, r"num_hidden\[1\] must be a whole number >= 1, got 2.0"),
        (
            {"hidden": ["ising"]},
            r"hidden must be one for all or a list for 2 layers, got \['ising'\]",
        ),
        ({"hidden": "Ising"}, "unknown unit family 'Ising'"),
        ({"hidden_options": [{}]}, r"hidden_options must be one for all or a list for 2 layers"),
        ({"hidden_options": {"k": 1}}, r"unknown options of 'bernoulli' units: \['k'\]"),
        ({"visible": "categorical"}, r"'categorical' units need the options \['num_states'\]"),
        ({"centered": 1}, "centered must be a bool, got 1"),
        ({"weight_scale": float("nan")}, "weight_scale must be a number >= 0, got nan"),
        ({"seed": -1}, "seed must be None or a whole number"),
        ({"dtype": torch.int64}, "dtype must be a floating-point type"),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        nn.DBM(**{"num_visible": 6, "num_hidden": [4, 3], **arguments})
