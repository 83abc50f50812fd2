# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A neural Boltzmann machine as a module of torch and Pyro, and as a file."""

import copy
import io
import itertools
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import ConditionalDistribution
from pyro.infer import SVI, Predictive
from pyro.nn import PyroModule, PyroSample
from torch import Tensor

import pyro_ebm
from pyro_ebm import nn
from pyro_ebm.infer import ContrastiveDivergence, exact_log_partition
from pyro_ebm.nn import ModelFileError
from tests.nn.conditional import PAIR_IDS, PAIRS, VISIBLE, make_nbm, some_contexts

every_visible = pytest.mark.parametrize("visible", VISIBLE)


def outcome(nbm: nn.NeuralBoltzmannMachine, dtype: torch.dtype = torch.float64) -> Tensor:
    """What a model says about fixed states: it tells whether two models are the same."""
    machine = nbm.condition(some_contexts(4).to(dtype))
    y = torch.eye(machine.event_shape[0], dtype=dtype)[:2].unsqueeze(1)
    return machine.free_energy(y).detach()


def assert_same(a: nn.NeuralBoltzmannMachine, b: nn.NeuralBoltzmannMachine) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    dtype = next(iter(first.values())).dtype
    assert torch.equal(outcome(a, dtype), outcome(b, dtype))


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS, ids=PAIR_IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_files_give_the_same_model(pair, dtype, tmp_path):
    nbm = make_nbm(*pair, dtype=dtype)
    pyro_ebm.save(nbm, tmp_path / "model.safetensors")
    state = torch.get_rng_state()
    loaded = pyro_ebm.load(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert type(loaded) is nn.NeuralBoltzmannMachine and loaded.config() == nbm.config()
    assert loaded.dtype == dtype
    assert_same(loaded, nbm)
    names = [dict(m.named_parameters()).keys() for m in (loaded, nbm)]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    "options",
    [
        {"trunk_sizes": (5, 4), "hidden_sizes": ()},
        {"hidden_bias": False, "centered": False, "scale_weight": False},
        {"weight": "basis", "weight_options": {"num_bases": 3}, "seed": None},
    ],
    ids=str,
)
def test_files_keep_all_options(options, tmp_path):
    nbm = make_nbm("bernoulli", **options)
    nbm.init_from_data(torch.ones(5, 3), torch.zeros(5, 3), num_steps=3)
    pyro_ebm.save(nbm, tmp_path / "model.safetensors")
    loaded = pyro_ebm.load(tmp_path)
    assert loaded.config() == nbm.config()
    assert_same(loaded, nbm)


def test_networks_of_ones_own_are_not_written(tmp_path):
    for options in (
        {"networks": {"loc": torch.nn.Linear(3, 2)}},
        {"trunk": torch.nn.Identity(), "num_features": 3},
    ):
        nbm = nn.NeuralBoltzmannMachine(3, 2, 2, **options)
        with pytest.raises(
            TypeError, match=r"networks \['(loc|trunk)'\] were given to this module"
        ):
            pyro_ebm.save(nbm, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
    # Its own code and its state make it again.
    buffer = io.BytesIO()
    torch.save(nbm.state_dict(), buffer)
    again = nn.NeuralBoltzmannMachine(3, 2, 2, **options, seed=5)
    again.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert_same(again.double(), nbm.double())


def test_a_file_that_does_not_fit(tmp_path):
    path = tmp_path / "model.safetensors"
    nbm = make_nbm("gaussian")
    config = {**nbm.config(), "num_hidden": 4}
    tensors = nbm.state_dict()
    nn.serialization.write_tensors(
        path, tensors, {"model": {"class": "NeuralBoltzmannMachine", "config": config}}
    )
    with pytest.raises(ModelFileError, match="tensors do not fit the configuration"):
        pyro_ebm.load(path)
    config = {**nbm.config(), "visible": "cauchy"}
    nn.serialization.write_tensors(
        path, tensors, {"model": {"class": "NeuralBoltzmannMachine", "config": config}}
    )
    with pytest.raises(ModelFileError, match="not a model of this package"):
        pyro_ebm.load(path)


def test_the_configuration_is_a_copy():
    nbm = make_nbm("mixed")
    nbm.config()["visible_options"]["blocks"].clear()
    assert len(nbm.config()["visible_options"]["blocks"]) == 3


# --- torch ----------------------------------------------------------------------------------------


@every_visible
def test_copies_and_pickles(visible):
    nbm = make_nbm(visible)
    nbm.condition(some_contexts(2))
    for other in (copy.deepcopy(nbm), pickle.loads(pickle.dumps(nbm))):
        assert_same(other, nbm)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        assert not torch.equal(outcome(other), outcome(nbm))


@pytest.mark.parametrize("visible", ["gaussian", "bernoulli", "mixed"])
def test_seeds_and_types(visible):
    state = torch.get_rng_state()
    models = [
        nn.NeuralBoltzmannMachine(
            3,
            5,
            2,
            visible,
            seed=seed,
            visible_options=VISIBLE["mixed"][2] if visible == "mixed" else {},
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    first, same, other = (outcome(m, torch.float32) for m in models)
    assert torch.equal(first, same) and not torch.equal(first, other)
    nbm = models[0].double()
    assert nbm.dtype == torch.float64 and nbm.device == torch.device("cpu")
    torch.testing.assert_close(outcome(nbm), first.double(), rtol=1e-4, atol=1e-4)
    assert nbm.to("cpu") is nbm
    # The type of the device without memory: everything moves, buffers included.
    assert {t.device.type for t in nbm.to("meta").state_dict().values()} == {"meta"}


def test_gradients_reach_every_network():
    for visible in VISIBLE:
        nbm = make_nbm(visible, trunk_sizes=(4,))
        machine = nbm.condition(some_contexts(4))
        y = machine.sample()
        loss = -machine.normalize(exact_log_partition(machine)).log_prob(y).mean()
        loss.backward()
        for name, group in nbm.parameter_groups().items():
            assert any(p.grad is not None and p.grad.any() for p in group), name


# --- Pyro -----------------------------------------------------------------------------------------


def normalized(nbm: nn.NeuralBoltzmannMachine, x: Tensor):
    machine = nbm.condition(x)
    return machine.normalize(exact_log_partition(machine))


def test_a_conditional_distribution_in_a_model():
    nbm, x = make_nbm("ising"), some_contexts(6)
    assert isinstance(nbm, ConditionalDistribution) and isinstance(nbm, PyroModule)
    y = normalized(nbm, x).sample()

    def model(y: Tensor | None = None) -> Tensor:
        with pyro.plate("rows", 6):
            return pyro.sample("y", normalized(nbm, x), obs=y)

    trace = poutine.trace(model).get_trace(y)
    expected = torch.stack([normalized(nbm, x[i]).log_prob(y[i]) for i in range(6)]).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    parameters = {n for n, site in trace.nodes.items() if site["type"] == "param"}
    assert parameters == dict(nbm.named_parameters()).keys()
    draws = Predictive(model, num_samples=7)()["y"]
    assert draws.shape == (7, 6, 3)


@pytest.mark.parametrize("visible", ["gaussian", "bernoulli", "mixed"])
def test_stochastic_variational_inference_trains_it(visible):
    nbm, x = make_nbm(visible), some_contexts(40)
    with torch.no_grad():
        y = make_nbm(visible, seed=9).condition(x).sample()

    def model() -> None:
        pyro.module("nbm", nbm)
        with pyro.plate("rows", 40):
            pyro.sample("y", nbm.condition(x), obs=y)

    def score() -> float:
        return normalized(nbm, x).log_prob(y).mean().item()

    before = score()
    loss = ContrastiveDivergence(num_steps=5)
    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.02}), loss)
    for _ in range(60):
        svi.step()
    assert score() > before + 0.1
    names = {name.removeprefix("nbm$$$") for name in pyro.get_param_store()}
    assert dict(nbm.named_parameters()).keys() <= names


def test_a_start_from_data_leaves_the_parameter_store_alone():
    nbm = make_nbm("bernoulli")
    nbm.condition(some_contexts(2))
    # Outside of a Pyro program nothing is entered there.
    assert not list(pyro.get_param_store())
    poutine.trace(lambda: nbm.condition(some_contexts(2))).get_trace()
    before = dict(pyro.get_param_store().items())
    nbm.init_from_data(torch.ones(5, 3), torch.zeros(5, 3), num_steps=2)
    after = dict(pyro.get_param_store().items())
    assert before.keys() == after.keys() == dict(nbm.named_parameters()).keys()
    assert all(value is nbm.get_parameter(name) for name, value in after.items())


def test_two_models_do_not_share_their_parameters():
    a, b = make_nbm("bernoulli", seed=1), make_nbm("bernoulli", seed=2)
    first, second = outcome(a), outcome(b)
    assert torch.equal(outcome(a), first) and torch.equal(outcome(b), second)
    assert not torch.equal(first, second)


def random_weight(layer: torch.nn.Module) -> None:
    """Make the weight of a linear layer random."""
    shape = layer.weight.shape
    layer.weight = PyroSample(dist.Normal(torch.zeros(shape, dtype=torch.float64), 1.0).to_event(2))


def test_a_model_without_parameters_has_a_type_and_a_device():
    nbm = make_nbm("gaussian", hidden_sizes=(), dtype=torch.float64)
    names = nbm.state_dict().keys()
    assert not any("reference" in name for name in names)
    layers = [part for part in nbm.modules() if isinstance(part, torch.nn.Linear)]
    for layer in layers:
        random_weight(layer)
        layer.bias = PyroSample(dist.Normal(torch.zeros_like(layer.bias.detach()), 1.0).to_event(1))
    assert not list(nbm.parameters())
    assert nbm.dtype == torch.float64 and nbm.device == torch.device("cpu")
    assert nbm.condition(torch.eye(3)).weight.dtype == torch.float64
    assert nbm.float().dtype == torch.float32 and nbm.to("meta").device.type == "meta"


def test_centring_needs_weights_that_are_not_random():
    """A copy of a random network would be another centre at every call."""
    network = PyroModule[torch.nn.Linear](3, 3, dtype=torch.float64)
    random_weight(network)
    message = r"networks of the visible layer have random weights \['networks\.bias\.weight'\]"
    with pytest.raises(ValueError, match=message + ".* give centered=False"):
        make_nbm("bernoulli", networks={"bias": network})
    nbm = make_nbm("bernoulli", networks={"bias": network}, centered=False)
    with pytest.raises(ValueError, match=message):
        nbm.init_from_data(torch.ones(5, 3), torch.zeros(5, 3))
    # Weights that become random later leave the centre where it is.
    nbm = make_nbm("bernoulli", hidden_sizes=())
    before = nbm.condition(some_contexts(2)).visible_offset
    random_weight(nbm.bias)
    assert torch.equal(nbm.condition(some_contexts(2)).visible_offset, before)


@pytest.mark.parametrize("place", ["bias", "weight"])
def test_random_weights_are_drawn_once(place):
    """A Bayesian network inside: the site is in the trace, and condition() draws it one time."""
    nbm = make_nbm("bernoulli")
    layer = nbm.bias[0] if place == "bias" else nbm.weight.linear
    shape = layer.weight.shape
    prior = dist.Normal(torch.zeros(shape, dtype=torch.float64), 1.0).to_event(2)
    layer.weight = PyroSample(prior)
    x = some_contexts(5)
    y = torch.ones(5, 3, dtype=torch.float64)

    def model() -> None:
        # Outside of the plate, as with every network of Pyro: its weights are those of all rows.
        machine = normalized(nbm, x)
        with pyro.plate("rows", 5):
            pyro.sample("y", machine, obs=y)

    trace = poutine.trace(model).get_trace()
    site = "bias.0.weight" if place == "bias" else "weight.linear.weight"
    assert trace.nodes[site]["type"] == "sample"
    assert [n for n, s in trace.nodes.items() if s["type"] == "sample"].count(site) == 1
    # Given the draw, the model is the one with these weights.
    value = trace.nodes[site]["value"]
    plain = make_nbm("bernoulli")
    plain.get_parameter(site).data.copy_(value)
    expected = normalized(plain, x).log_prob(y).sum() + prior.log_prob(value)
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    # Every call draws anew.
    pairs = itertools.pairwise(nbm.condition(x).free_energy(y).detach() for _ in range(3))
    assert not any(torch.equal(a, b) for a, b in pairs)
