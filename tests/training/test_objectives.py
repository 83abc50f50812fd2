# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Every way to estimate the gradient of an RBM has the gradient of the likelihood as its mean, or what
its documentation says instead."""

import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.training import Trainer, TrainerConfig
from pyro_ebm.training.exact_gradient import ExactGradient
from pyro_ebm.training.fast_weights import FastWeights
from pyro_ebm.training.gradient import ContrastiveGradient
from tests.distributions.families import CONTINUOUS, PAIR_IDS, PAIRS
from tests.training.machines import make_module, random_module, some_bits
from tests.training.test_gradient_of_likelihood import exact_gradient, learnt, other_data

#: A t of 99 degrees of freedom is beyond 8 with probability 2e-12; the file looks at about 300 entries.
REPETITIONS, T_BOUND = 100, 8.0
centred_or_not = pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
ENUMERABLE = [
    (pair, name)
    for pair, name in zip(PAIRS, PAIR_IDS, strict=True)
    if not set(pair) <= set(CONTINUOUS)
]


def grads(module: nn.RBM) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in learnt(module).items()}


def assert_mean_is_exact(module: nn.RBM, **options) -> None:
    """Over independent repetitions, with chains that forget their start."""
    data = other_data(module, 40)
    expected = exact_gradient(module, data)
    draws: dict[str, list[Tensor]] = {name: [] for name in expected}
    generator = torch.Generator().manual_seed(0)
    for _ in range(REPETITIONS):
        ContrastiveGradient(module, TrainerConfig(**options), generator)(data)
        for name, gradient in grads(module).items():
            draws[name].append(gradient)
    for name, rows in draws.items():
        table = torch.stack(rows)
        error = (table.std(0) / REPETITIONS**0.5).clamp(min=1e-11)
        t = ((table.mean(0) - expected[name]) / error).abs().max().item()
        assert t < T_BOUND, f"{name}: {t:.1f} standard errors from the exact gradient"


def mixing_module(centered: bool) -> nn.RBM:
    """Weak couplings: thirty sweeps are independent draws."""
    return random_module(("bernoulli", "bernoulli"), centered=centered)


@centred_or_not
@pytest.mark.parametrize(
    "options",
    [
        {"chain_start": "noise", "num_steps": 30, "num_chains": 200},
        {"positive_hidden": "sample", "num_steps": 30, "num_chains": 200},
        {"negative_hidden": "sample", "num_steps": 30, "num_chains": 200},
        {"persistent": True, "num_chains": 200, "num_steps": 30},
        {
            "persistent": True,
            "negative_phase": "tempering",
            "num_replicas": 3,
            "num_chains": 200,
            "num_steps": 30,
        },
    ],
    ids=lambda o: "-".join(str(v) for v in o.values()),
)
def test_the_mean_is_the_gradient_of_the_likelihood(options, centered):
    assert_mean_is_exact(mixing_module(centered), **options)


def test_the_test_sees_another_gradient():
    """CD-1 from data that the machine does not explain is far from the likelihood's gradient."""
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean_is_exact(mixing_module(False), num_steps=1, num_chains=200)


@pytest.mark.parametrize("pair", [p for p, _ in ENUMERABLE], ids=[n for _, n in ENUMERABLE])
@centred_or_not
def test_exact_maximum_likelihood(pair, centered):
    module = random_module(pair, centered=centered)
    data = other_data(module)
    expected = exact_gradient(module, data)
    gradient = ExactGradient(module, TrainerConfig(negative_phase="exact"))
    gradient(data.flip(0)[:3])  # what an earlier call left must not matter
    gradient(data)
    for name, value in grads(module).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)


def test_exact_maximum_likelihood_reaches_the_data():
    """The trained machine has the data's law as far as three hidden units can have it."""
    data = some_bits(500, 4)
    module = nn.RBM(4, 3, seed=0, centered=True, dtype=torch.float64)
    config = TrainerConfig(
        num_epochs=300,
        batch_size=500,
        learning_rate=0.5,
        negative_phase="exact",
        seed=0,
        progress=False,
    )
    trainer = Trainer(module, config)
    trainer.fit(data)
    assert max(p.grad.abs().max().item() for p in module.parameters()) < 0.01
    assert trainer.chains is None


@pytest.mark.parametrize(
    "options", [{"dropout": 0.5}, {"chain_start": "noise"}, {"sparsity_cost": 1.0}], ids=str
)
def test_exact_maximum_likelihood_has_no_chains(options):
    with pytest.raises(ValueError, match=f"{min(options)} is no option of negative_phase='exact'"):
        Trainer(nn.RBM(6, 2), TrainerConfig(negative_phase="exact", **options))


def test_layers_that_cannot_be_enumerated():
    with pytest.raises(ValueError, match="states, more than max_states"):
        Trainer(nn.RBM(100, 100), TrainerConfig(negative_phase="exact"))


# --- means in the place of samples --------------------------------------------------------------


@centred_or_not
def test_a_chain_of_means_is_mean_field(centered):
    """No randomness at all: k steps of the fixed-point equations, by hand."""
    module = random_module(("bernoulli", "bernoulli"), centered=centered)
    batch = some_bits(6, 3).double()
    config = TrainerConfig(num_steps=2, chain_hidden="mean", chain_visible="mean")
    ContrastiveGradient(module, config)(batch)
    dist, v = module(), batch
    for _ in range(2):
        v = dist.visible.mean(dist.visible_field(dist.hidden.mean(dist.hidden_field(v))))
    offsets = dist.visible_offset, dist.hidden_offset

    def statistic(x):
        h = dist.hidden.mean(dist.hidden_field(x))
        return (x - offsets[0]).T @ (h - offsets[1]) / len(x)

    torch.testing.assert_close(
        module.weight.grad, statistic(v) - statistic(batch), rtol=0, atol=1e-13
    )
    torch.testing.assert_close(module.visible.bias.grad, (v - batch).mean(0), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("place", "constant"),
    [("chain_visible", "visible"), ("chain_hidden", "hidden")],
)
def test_means_stand_where_they_are_asked_for(place, constant):
    """A layer without couplings beside it has one mean: the states of the chain say which layer had means."""
    module = nn.RBM(3, 3, dtype=torch.float64, weight_scale=0.0)
    config = TrainerConfig(**{place: "mean"}, persistent=True, num_chains=50)
    gradient = ContrastiveGradient(module, config, torch.Generator().manual_seed(0))
    gradient(some_bits(5, 3).double())
    half = torch.full_like(gradient.chains, 0.5)
    assert torch.equal(gradient.chains, half) == (constant == "visible")


# --- fast weights -------------------------------------------------------------------------------


@centred_or_not
def test_fast_weights_are_added_to_the_machine_of_the_chains(centered):
    module = random_module(("bernoulli", "bernoulli"), centered=centered)
    fast = FastWeights(0.5)
    assert fast.add_to(module()) is not None
    fast.rate = 0.1
    weights = [torch.randn(3, 3).double() for _ in range(2)]
    fields = [(torch.randn(3).double(), torch.randn(3).double()) for _ in range(2)]
    for weight, (visible, hidden) in zip(weights, fields, strict=True):
        module.weight.grad = weight
        fast.follow(module, visible, hidden)
    dist, moved = module(), fast.add_to(module())
    expected = [
        -0.1 * (0.5 * a + b)
        for a, b in zip(*[(w, *f) for w, f in zip(weights, fields, strict=True)], strict=True)
    ]
    torch.testing.assert_close(moved.weight - dist.weight, expected[0])
    v, h = some_bits(4, 3).double(), some_bits(4, 3, seed=1).double()
    centred = (v - dist.visible_offset, h - dist.hidden_offset)
    change = (centred[0] @ expected[0] * centred[1]).sum(-1) + v @ expected[1] + h @ expected[2]
    # The energy differs by a constant, which tilting drops.
    difference = dist.energy(v, h) - moved.energy(v, h) - change
    torch.testing.assert_close(difference, difference[:1].expand(4), rtol=0, atol=1e-12)


def test_a_fast_rate_of_almost_nothing_is_pcd():
    data = some_bits(60)
    results = []
    for options in ({}, {"fast_rate": 1e-12}):
        module = nn.RBM(6, 3, seed=0, dtype=torch.float64)
        config = TrainerConfig(num_epochs=2, persistent=True, seed=0, progress=False, **options)
        Trainer(module, config).fit(data)
        results.append(module.weight.detach())
    torch.testing.assert_close(*results, rtol=0, atol=1e-9)


def test_fast_weights_follow_the_gradient_and_decay():
    module = random_module(("bernoulli", "bernoulli"), centered=True)
    config = TrainerConfig(persistent=True, fast_rate=0.2, fast_decay=0.5)
    gradient = ContrastiveGradient(module, config, torch.Generator().manual_seed(0))
    batch = some_bits(6, 3).double()
    gradient(batch)
    first = gradient.state()["fast.weight"].clone()
    torch.testing.assert_close(first, -0.2 * module.weight.grad)
    gradient(batch)
    torch.testing.assert_close(
        gradient.state()["fast.weight"], 0.5 * first - 0.2 * module.weight.grad
    )


def test_fast_chains_visit_more_modes():
    """Two modes that block Gibbs does not leave: chains with fast weights cross, plain ones do not."""
    module = make_module(("bernoulli", "bernoulli"))
    with torch.no_grad():
        module.weight.fill_(6.0)
        module.visible.bias.fill_(-9.0)
        module.hidden.bias.fill_(-9.0)
    crossings = []
    for options in ({}, {"fast_rate": 2.0, "fast_decay": 0.95}):
        config = TrainerConfig(persistent=True, num_chains=200, **options)
        gradient = ContrastiveGradient(module, config, torch.Generator().manual_seed(0))
        batch = torch.tensor([[0.0] * 3, [1.0] * 3], dtype=torch.float64)
        gradient.phase.chains = torch.ones(200, 3, dtype=torch.float64)
        for _ in range(30):
            gradient(batch)
        crossings.append((gradient.chains.sum(-1) < 1.5).double().mean().item())
    assert crossings[0] < 0.1 and crossings[1] > 0.2
