# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Gradients of deep machines: enumeration, autograd of the bound, and those of an RBM at depth 1."""

import pytest
import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import DBM
from pyro_ebm.training import Trainer, TrainerConfig
from pyro_ebm.training.deep_exact_gradient import DeepExactGradient
from pyro_ebm.training.deep_gradient import DeepGradient
from pyro_ebm.training.gradient import ContrastiveGradient
from tests.training.deep import STACKS, all_states, even_states, log_weights, random_deep

CENTERED = pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
#: So that mean field stands still: its bound is then stationary, and the gradient that of a maximum.
CONVERGED = {"mean_field_updates": 2000, "mean_field_tolerance": 1e-13}
FINITE = [name for name in STACKS if name != "gaussian"]


class GivenStates:
    """A phase whose states are given."""

    def __init__(self, states: Tensor) -> None:
        self.states = states
        self.reads_rows = False
        self.chains = None

    def __call__(self, machine, sweep, batch, theta, keep):
        return self.states, sweep.hidden_theta(self.states), keep


def rows_of(module: nn.DBM, count: int = 7) -> Tensor:
    generator = Generator().manual_seed(1)
    with torch.no_grad():
        unit = module()
        return unit.units[0].sample(torch.zeros(count, module.sizes[0]).double(), generator)


def gradients(module: nn.DBM | nn.RBM) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def assert_close(first: dict, second: dict, tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=tolerance, msg=name)


def bound_gradient(module: nn.DBM, batch: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Autograd of log Z by the definition of the energy, less the bound from entropies of the layers."""
    dist = module(validate_args=False)
    found = dist.mean_field(batch, max_updates=5000, tolerance=1e-14)
    log_z = log_weights(dist, all_states(dist)).logsumexp(0)
    # E_q[-E] + H(q) state by state, for a q that is held.
    tables = [unit.states(0, unit.num_states) for unit in dist.units[1:]]
    bounds = []
    for row in range(len(batch)):
        states = [torch.zeros(0)]
        log_q = torch.zeros(1, dtype=torch.float64)
        index = torch.cartesian_prod(*(torch.arange(len(t)) for t in tables)).reshape(
            -1, len(tables)
        )
        states = [table[index[:, k]] for k, table in enumerate(tables)]
        log_q = torch.zeros(len(index), dtype=torch.float64)
        for k, (unit, theta) in enumerate(zip(dist.units[1:], found.thetas, strict=True)):
            own = (
                tables[k] @ (theta[row] - unit.natural_bias).detach()
                - unit.energy(tables[k]).detach()
            )
            log_q = log_q + own.log_softmax(0)[index[:, k]]
        visible = batch[row].expand(len(index), -1)
        weights = log_weights(dist, [visible, *states])
        bounds.append((log_q.exp() * (weights - log_q)).sum())
    loss = log_z - torch.stack(bounds).mean()
    parameters = dict(module.named_parameters())
    found_gradients = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, found_gradients, strict=True)), loss


@CENTERED
@pytest.mark.parametrize("name", FINITE)
def test_exact_gradient_is_that_of_the_definition(name, centered):
    module = random_deep(name, centered=centered)
    batch = rows_of(module)
    expected, _ = bound_gradient(module, batch)
    config = TrainerConfig(negative_phase="exact", **CONVERGED)
    DeepExactGradient(module, config)(batch)
    assert_close(gradients(module), expected, 1e-9)


@CENTERED
@pytest.mark.parametrize("name", FINITE)
def test_chains_in_equilibrium_give_the_exact_gradient(name, centered, monkeypatch):
    """The average over all states of the even layers, each with its probability."""
    module = random_deep(name, centered=centered)
    batch = rows_of(module)
    DeepExactGradient(module, TrainerConfig(negative_phase="exact", **CONVERGED))(batch)
    expected = gradients(module)
    states, probabilities = even_states(module())
    # The same for every state.
    found = module(validate_args=False).mean_field(batch, max_updates=2000, tolerance=1e-13)
    monkeypatch.setattr(DBM, "mean_field", lambda *_, **options: found)
    gradient = DeepGradient(module, TrainerConfig(persistent=True, **CONVERGED))
    total = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
    for state, probability in zip(states, probabilities, strict=True):
        gradient.phase = GivenStates(state.unsqueeze(0))
        gradient(batch)
        for n, one in gradients(module).items():
            total[n] += probability * one
    assert_close(total, {n: expected[n] for n in total}, 1e-9)


@CENTERED
def test_many_chains_give_the_exact_gradient(centered):
    """Gaussian visible units, learnt precisions: the average of chains within six of its errors."""
    module = random_deep("gaussian", centered=centered, scale=0.4)
    batch = rows_of(module)
    config = TrainerConfig(negative_phase="exact", **CONVERGED)
    DeepExactGradient(module, config)(batch)
    expected = gradients(module)
    options = {"persistent": True, "num_chains": 2000, "num_steps": 20, **CONVERGED}
    gradient = DeepGradient(module, TrainerConfig(**options), Generator().manual_seed(0))
    found = []
    for _ in range(20):
        gradient.phase.chains = None
        gradient(batch)
        found.append(gradients(module))
    for name in expected:
        draws = torch.stack([f[name] for f in found])
        # 20 averages of 2000 chains each: the limit of Student's t with 19 degrees is 7.2 at 1e-6.
        error = draws.std(0) / len(draws) ** 0.5
        assert bool(((draws.mean(0) - expected[name]).abs() < 8 * error + 1e-9).all()), name


# --- depth 1 --------------------------------------------------------------------------------------


def pair(dtype, centered: bool, visible: str = "bernoulli") -> tuple[nn.RBM, nn.DBM]:
    """The same machine as an RBM and as a DBM."""
    options = {"centered": centered, "dtype": dtype, "seed": 3, "weight_scale": 0.5}
    rbm, dbm = nn.RBM(6, 4, visible, **options), nn.DBM(6, [4], visible, **options)
    with torch.no_grad():
        rbm.visible().parameters[min(rbm.visible().parameters)].uniform_(-1, 1)
        rbm.hidden.bias.uniform_(-1, 1)
        for own, theirs in ((dbm.layers[0], rbm.visible), (dbm.layers[1], rbm.hidden)):
            own.load_state_dict(theirs.state_dict())
        dbm.weights[0].copy_(rbm.weight)
        if centered:
            rbm.visible_offset.uniform_(0, 1)
            rbm.hidden_offset.uniform_(0, 1)
            dbm.offsets[0].copy_(rbm.visible_offset)
            dbm.offsets[1].copy_(rbm.hidden_offset)
    return rbm, dbm


def as_rbm(named: dict[str, Tensor]) -> dict[str, Tensor]:
    places = {"layers.0": "visible", "layers.1": "hidden", "weights.0": "weight"}
    places |= {"offset_0": "visible_offset", "offset_1": "hidden_offset"}
    renamed = {}
    for name, value in named.items():
        prefix = next(p for p in places if name.startswith(p))
        renamed[places[prefix] + name.removeprefix(prefix)] = value
    return renamed


OF_DEPTH_1 = {
    "pcd": {"persistent": True},
    "pcd-data": {"persistent": True, "persistent_start": "data", "num_chains": 9},
    "cd": {"num_steps": 3},
    "cd-chains": {"num_chains": 5},
    "noise": {"chain_start": "noise"},
    "tempering": {"persistent": True, "negative_phase": "tempering", "num_replicas": 3},
    "sparse": {"persistent": True, "sparsity_cost": 0.3},
    "exact": {"negative_phase": "exact"},
}


@CENTERED
@pytest.mark.parametrize("method", OF_DEPTH_1)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_depth_1_is_the_gradient_of_an_rbm(method, centered, dtype, tolerance):
    """The same chains, from the same random bits, over several batches."""
    rbm, dbm = pair(dtype, centered)
    found = []
    for module in (rbm, dbm):
        trainer = Trainer(module, TrainerConfig(seed=0, progress=False, **OF_DEPTH_1[method]))
        gradient = trainer._gradient
        for seed in range(3):
            batch = torch.bernoulli(
                torch.full((7, 6), 0.4), generator=Generator().manual_seed(seed)
            )
            gradient(batch.to(dtype))
        found.append((gradients(module), gradient.chains))
    (first, chains), (second, deep_chains) = found
    assert_close(as_rbm(second), first, tolerance)
    assert chains is deep_chains is None or torch.equal(chains, deep_chains)


@CENTERED
@pytest.mark.parametrize("method", ["pcd", "cd", "sparse", "tempering"])
def test_a_run_of_depth_1_is_that_of_an_rbm(method, centered):
    """Offsets, the average, decay, clipping and the norm of columns included."""
    rbm, dbm = pair(torch.float64, centered)
    data = torch.bernoulli(torch.full((60, 6), 0.4), generator=Generator().manual_seed(0))
    options = {"num_epochs": 2, "batch_size": 20, "seed": 0, "progress": False, "momentum": 0.5}
    options |= {"l1": 1e-3, "weight_decay": 1e-3, "max_norm": 1.0, "gradient_clip": 0.5}
    options |= {"averaging": 0.8, "learning_rate": [0.2, 0.1], **OF_DEPTH_1[method]}
    trainers = [Trainer(module, TrainerConfig(**options)) for module in (rbm, dbm)]
    for trainer in trainers:
        trainer.fit(data)
    assert_close(as_rbm(dbm.state_dict()), dict(rbm.state_dict()), 1e-12)
    shallow, deep = (dict(trainer.averaged.state_dict()) for trainer in trainers)
    assert_close(as_rbm(deep), shallow, 1e-12)
    for ours, theirs in zip(trainers[1].history, trainers[0].history, strict=True):
        del ours["seconds"], theirs["seconds"]
        assert ours == pytest.approx(theirs, abs=1e-9)


def test_gaussian_rbm_of_depth_1():
    rbm, dbm = pair(torch.float64, True, "gaussian")
    batch = torch.randn(7, 6, dtype=torch.float64)
    for module, kind in ((rbm, ContrastiveGradient), (dbm, DeepGradient)):
        kind(module, TrainerConfig(persistent=True), Generator().manual_seed(0))(batch)
    assert_close(as_rbm(gradients(dbm)), gradients(rbm), 1e-12)


# --- sparsity ---------------------------------------------------------------------------------------


@CENTERED
def test_sparsity_is_differentiated_with_the_neighbours_held(centered):
    """Autograd of the penalties of two layers whose means are functions of the means beside them."""
    module = random_deep("3", centered=centered)
    with torch.no_grad():
        batch = module().units[0].sample(torch.zeros(9, 3).double(), Generator().manual_seed(1))
    layers = [{"sparsity_cost": 0.4, "sparsity_target": 0.2}, {}, {"sparsity_cost": 0.7}]
    plain = TrainerConfig(persistent=True, **CONVERGED)
    sparse = TrainerConfig(persistent=True, layers=layers, sparsity_damping=0.0, **CONVERGED)
    found = []
    for config in (plain, sparse):
        gradient = DeepGradient(module, config, Generator().manual_seed(0))
        gradient(batch)
        found.append(gradients(module))
    dist = module(validate_args=False)
    means = [m.detach() for m in dist.mean_field(batch, max_updates=5000, tolerance=1e-14).means]
    beside = [batch, *means]
    first = dist.units[1].mean(dist.field(1, [beside[0], beside[2]])).mean(0)
    third = dist.units[3].mean(dist.field(3, [beside[2]])).mean(0)
    loss = 0.0
    for q, cost, t in ((first, 0.4, 0.2), ((1 + third) / 2, 0.7, 0.1)):
        divergence = t * (t / q).log() + (1 - t) * ((1 - t) / (1 - q)).log()
        loss = loss + cost * divergence.sum()
    parameters = dict(module.named_parameters())
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for (name, parameter), own in zip(parameters.items(), grads, strict=True):
        expected = torch.zeros_like(parameter) if own is None else own
        torch.testing.assert_close(found[1][name] - found[0][name], expected, rtol=0, atol=1e-9)


def test_two_sparse_neighbours():
    """The product of two corrections has no place in the gradient of either penalty."""
    module = random_deep("2")
    batch = rows_of(module)
    changes = {}
    for name, costs in {
        "none": (0, 0),
        "low": (0.5, 0),
        "high": (0, 0.5),
        "both": (0.5, 0.5),
    }.items():
        layers = [{"sparsity_cost": cost} for cost in costs]
        config = TrainerConfig(persistent=True, layers=layers, **CONVERGED)
        DeepGradient(module, config, Generator().manual_seed(0))(batch)
        changes[name] = gradients(module)
    for name in changes["none"]:
        none, low, high, both = (changes[key][name] for key in ("none", "low", "high", "both"))
        torch.testing.assert_close(both - none, (low - none) + (high - none), rtol=0, atol=1e-12)
    assert not torch.equal(changes["both"]["weights.1"], changes["low"]["weights.1"])
