# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The trainer's gradient of a conditional model is that of its exact likelihood, context by context."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import GibbsSweep
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.ops.grouping import group_blocks
from pyro_ebm.training import TrainerConfig
from pyro_ebm.training.conditional_gradient import MAX_FIXED_CONTEXTS, ConditionalGradient
from tests import brute_force
from tests.nn.conditional import PAIR_IDS, PAIRS, make_nbm, some_contexts, to_machine

Gradients = dict[str, Tensor]

#: Independent repetitions of a gradient, from which its standard error is taken. A t of 59 degrees of
#: freedom is beyond 6 with probability 1e-7.
REPETITIONS = 60
LIMIT = 6.0


def some_data(
    nbm: nn.NeuralBoltzmannMachine, num_contexts: int, rows: int
) -> tuple[Tensor, Tensor]:
    """Rows in random order with contexts that repeat, of states that the model does not expect."""
    contexts = some_contexts(num_contexts)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(5))
    x = contexts[order % num_contexts]
    with torch.no_grad():
        # States of other contexts.
        y = nbm.condition(x.flip(0)).sample()
    return y, x


def make_gradient(
    nbm: nn.NeuralBoltzmannMachine, context: Tensor, seed: int = 0, **options
) -> ConditionalGradient:
    generator = torch.Generator().manual_seed(seed)
    gradient = ConditionalGradient(nbm, TrainerConfig(**options), generator)
    gradient.start(context)
    return gradient


def run(
    gradient: ConditionalGradient,
    nbm: nn.NeuralBoltzmannMachine,
    y: Tensor,
    rows: Tensor | None = None,
) -> Gradients:
    gradient(y, torch.arange(len(y)) if rows is None else rows)
    return {name: p.grad.clone() for name, p in nbm.named_parameters()}


def differentiate(nbm: nn.NeuralBoltzmannMachine, value: Tensor) -> Gradients:
    names, parameters = zip(*nbm.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, parameters), strict=True))


def exact_gradient(nbm: nn.NeuralBoltzmannMachine, y: Tensor, x: Tensor) -> Gradients:
    """Gradient of the mean negative log-likelihood, with a machine for every row."""
    machine = nbm.condition(x)
    loss = -machine.normalize(exact_log_partition(machine)).log_prob(y).mean()
    return differentiate(nbm, loss)


def assert_close(got: Gradients, expected: Gradients, tolerance: float = 1e-9) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=tolerance, msg=name)


def assert_unbiased(draw: Callable[[int], Gradients], expected: Gradients) -> None:
    """Gradients of many seeds have the expected one as their mean."""
    draws = [draw(seed) for seed in range(REPETITIONS)]
    for name, value in expected.items():
        table = torch.stack([d[name] for d in draws])
        # A gradient that cannot vary must be right to rounding.
        error = (table.std(0) / math.sqrt(REPETITIONS)).clamp(min=1e-11)
        t = ((table.mean(0) - value) / error).abs().max().item()
        assert t < LIMIT, f"{name}: {t:.1f} standard errors from the exact gradient"


# --- without chains ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS, ids=PAIR_IDS)
@pytest.mark.parametrize("num_contexts", [5, MAX_FIXED_CONTEXTS + 8], ids=["repeated", "many"])
def test_the_exact_negative_phase_is_the_gradient_of_the_likelihood(pair, num_contexts):
    nbm = make_nbm(*pair)
    y, x = some_data(nbm, num_contexts, 60)
    gradient = make_gradient(nbm, x, negative_phase="exact")
    # A batch of some of the rows: some of the contexts have none.
    rows = torch.tensor([3, 17, 18, 21, 44, 2, 59])
    assert len(torch.unique(x[rows], dim=0)) < num_contexts
    assert_close(run(gradient, nbm, y[rows], rows), exact_gradient(nbm, y[rows], x[rows]))
    # Whatever an earlier batch left in .grad.
    assert_close(run(gradient, nbm, y), exact_gradient(nbm, y, x))
    assert gradient.chains is None and gradient.state() == {}


@pytest.mark.parametrize(
    "options",
    [
        {"trunk_sizes": (4,)},
        {"weight": "constant"},
        {"weight": "factored", "weight_options": {"num_factors": 2}},
        {"hidden_bias": False},
        {"centered": False},
        {"dtype": torch.float32},
    ],
    ids=str,
)
def test_every_kind_of_network_gets_its_gradient(options):
    nbm = make_nbm("bernoulli", **options)
    x = some_contexts(20).to(nbm.dtype)
    y = nbm.condition(x.flip(0)).sample()
    gradient = make_gradient(nbm, x, negative_phase="exact")
    tolerance = 1e-9 if nbm.dtype == torch.float64 else 1e-5
    assert_close(run(gradient, nbm, y), exact_gradient(nbm, y, x), tolerance)


@pytest.mark.parametrize("counts", [(1,), (1, 1, 1), (7, 1, 4)], ids=str)
def test_rows_that_share_a_context_count_as_often_as_they_are(counts):
    nbm = make_nbm("ising")
    x = some_contexts(len(counts)).repeat_interleave(torch.tensor(counts), 0)
    y = nbm.condition(x.flip(0)).sample()
    gradient = make_gradient(nbm, x, negative_phase="exact")
    assert_close(run(gradient, nbm, y), exact_gradient(nbm, y, x))


# --- persistent chains ------------------------------------------------------------------------------


def equilibrium(
    gradient: ConditionalGradient, nbm: nn.NeuralBoltzmannMachine, x: Tensor, chains: int
) -> Tensor:
    """Exact draws for every context, in the order in which chains are kept."""
    machine = nbm.condition(torch.unique(x, dim=0)).detach()
    side = machine.transpose() if gradient.in_hidden else machine
    return side.sample((chains,))


@pytest.mark.parametrize("side", ["visible", "hidden"])
@pytest.mark.parametrize(
    "pair",
    [
        ("gaussian", "ising"),
        ("gaussian", "bernoulli"),
        ("low-rank", "ising"),
        ("ising", "ising"),
        ("bernoulli-quadratic", "categorical"),
        ("categorical", "bernoulli"),
        ("multinomial", "ising"),
        ("mixed", "ising"),
    ],
    ids="-".join,
)
def test_chains_in_equilibrium_give_the_gradient_of_the_likelihood(pair, side):
    nbm = make_nbm(*pair)
    y, x = some_data(nbm, 3, 12)
    options = {"persistent": True, "num_chains": 50, "num_steps": 2, "negative_side": side}

    def draw(seed: int) -> Gradients:
        gradient = make_gradient(nbm, x, seed, **options)
        torch.manual_seed(seed)
        gradient.chains = equilibrium(gradient, nbm, x, 50)
        return run(gradient, nbm, y)

    assert_unbiased(draw, exact_gradient(nbm, y, x))


def test_many_contexts_have_chains_of_their_own():
    nbm = make_nbm("gaussian")
    y, x = some_data(nbm, MAX_FIXED_CONTEXTS + 5, 60)

    def draw(seed: int) -> Gradients:
        gradient = make_gradient(nbm, x, seed, persistent=True, num_chains=20)
        torch.manual_seed(seed)
        gradient.chains = equilibrium(gradient, nbm, x, 20)
        return run(gradient, nbm, y[:40], torch.arange(40))

    assert_unbiased(draw, exact_gradient(nbm, y[:40], x[:40]))


def test_a_wrong_context_of_the_chains_is_seen():
    """The tests above would notice chains that belong to each other's contexts."""
    nbm = make_nbm("ising")
    y, x = some_data(nbm, 3, 12)

    def draw(seed: int) -> Gradients:
        gradient = make_gradient(nbm, x, seed, persistent=True, num_chains=50)
        torch.manual_seed(seed)
        gradient.chains = equilibrium(gradient, nbm, x, 50).roll(1, 1)
        return run(gradient, nbm, y)

    with pytest.raises(AssertionError, match="standard errors"):
        assert_unbiased(draw, exact_gradient(nbm, y, x))


def test_negatives_are_hidden_where_that_has_less_variance():
    """For Gaussian units: nothing at all is left of the noise of mu, and less of that of W and P.

    That of the hidden bias alone grows, as h takes the place of E[h | y].
    """
    nbm = make_nbm("gaussian", "ising")
    y, x = some_data(nbm, 3, 12)
    spread: dict[str, Gradients] = {}
    for side in ("visible", "hidden"):
        draws = []
        for seed in range(REPETITIONS):
            gradient = make_gradient(
                nbm, x, seed, persistent=True, num_chains=20, negative_side=side
            )
            torch.manual_seed(seed)
            gradient.chains = equilibrium(gradient, nbm, x, 20)
            draws.append(run(gradient, nbm, y))
        spread[side] = {name: torch.stack([d[name] for d in draws]).std(0) for name in draws[0]}
    for name, visible in spread["visible"].items():
        hidden = spread["hidden"][name]
        if name.startswith("loc"):
            assert hidden.max() < 1e-12 < visible.max()
        elif not name.startswith("hidden_bias"):
            assert hidden.mean() < visible.mean(), name
    auto = {
        visible: make_gradient(make_nbm(visible), x).in_hidden
        for visible in ("gaussian", "low-rank", "ising", "bernoulli-quadratic", "mixed")
    }
    assert auto == dict(zip(auto, (True, True, False, False, False), strict=True))


@pytest.mark.parametrize(("num_chains", "expected"), [(None, 20), (7, 7)])
@pytest.mark.parametrize("side", ["visible", "hidden"])
@pytest.mark.parametrize("num_contexts", [4, MAX_FIXED_CONTEXTS + 1], ids=["few", "many"])
def test_chains_have_a_place_for_every_context(num_chains, expected, side, num_contexts):
    nbm = make_nbm("categorical", "ising")
    y, x = some_data(nbm, num_contexts, 2 * num_contexts)
    gradient = make_gradient(
        nbm, x, persistent=True, num_chains=num_chains, negative_side=side, num_steps=3
    )
    run(gradient, nbm, y)
    machine = nbm.condition(torch.unique(x, dim=0))
    machine = machine.transpose() if side == "hidden" else machine
    assert gradient.chains.shape == (expected, num_contexts, machine.event_shape[0])
    assert bool(machine.support.check(gradient.chains).all())


def test_contexts_that_arrive_later_start_their_chains_then():
    nbm = make_nbm("bernoulli")
    num_contexts = MAX_FIXED_CONTEXTS + 8
    y, x = some_data(nbm, num_contexts, num_contexts)
    gradient = make_gradient(nbm, x, persistent=True, num_chains=6)
    place = torch.unique(x, dim=0, return_inverse=True)[1]
    first, second = torch.arange(10), torch.arange(5, 20)
    run(gradient, nbm, y[first], first)
    begun = torch.zeros(num_contexts, dtype=torch.bool)
    begun[place[first]] = True
    assert torch.equal(~gradient.chains.isnan().any(-1).any(0), begun)
    before = gradient.chains.clone()
    gradients = run(gradient, nbm, y[second], second)
    assert all(bool(torch.isfinite(g).all()) for g in gradients.values())
    begun[place[second]] = True
    assert torch.equal(~gradient.chains.isnan().any(-1).any(0), begun)
    # Contexts of the first batch alone stay where they were; others move on.
    idle = place[first[:5]]
    assert torch.equal(gradient.chains[:, idle], before[:, idle])
    assert not torch.equal(gradient.chains[:, place[first[5:]]], before[:, place[first[5:]]])


@pytest.mark.parametrize("visible", ["ising", "gaussian", "categorical"])
def test_contexts_without_rows_in_the_first_batch(visible):
    """With few contexts all chains move at every update, those without data too."""
    nbm = make_nbm(visible)
    y, x = some_data(nbm, 4, 40)
    gradient = make_gradient(nbm, x, persistent=True, num_chains=5)
    place = torch.unique(x, dim=0, return_inverse=True)[1]
    rows = torch.arange(40)[place == 2]
    gradients = run(gradient, nbm, y[rows], rows)
    assert all(bool(torch.isfinite(g).all()) for g in gradients.values())
    machine = nbm.condition(torch.unique(x, dim=0))
    machine = machine.transpose() if gradient.in_hidden else machine
    assert bool(machine.support.check(gradient.chains).all())
    before = gradient.chains.clone()
    for _ in range(10):
        run(gradient, nbm, y[rows], rows)
    assert bool((gradient.chains != before).any(-1).any(0).all())


# --- contrastive divergence -------------------------------------------------------------------------


def matrices(nbm: nn.NeuralBoltzmannMachine, x: Tensor) -> tuple[np.ndarray, ...]:
    """States of both layers of one machine, p(h | v), p(v | h), and the law of h without couplings."""
    machine = to_machine(nbm, x)
    v, h, joint = brute_force.joint(machine)
    prior = np.exp(-brute_force.layer_energy(machine.hidden, h).real)
    to_hidden = joint / joint.sum(1, keepdims=True)
    return v, h, to_hidden, (joint / joint.sum(0)).T, prior / prior.sum()


def expected_cd(
    nbm: nn.NeuralBoltzmannMachine, y: Tensor, x: Tensor, *, side: str, start: str, num_steps: int
) -> Gradients:
    """The mean gradient of CD-k, from the exact law of its chains after k sweeps."""
    contexts, place, counts = torch.unique(x, dim=0, return_inverse=True, return_counts=True)
    loss = nbm.condition(x).free_energy(y).mean()
    # The start of the prior is the first half of a sweep, as in the paper.
    num_steps -= start == "prior"
    for u, context in enumerate(contexts):
        v, h, to_hidden, to_visible, prior = matrices(nbm, context)
        machine = to_machine(nbm, context)
        rows = y[place == u].numpy()
        exponent = -brute_force.energy(machine, rows, h).real
        given_rows = np.exp(exponent - exponent.max(-1, keepdims=True))
        given_rows /= given_rows.sum(-1, keepdims=True)
        # Chains from the data draw h given y first; those of the prior draw it without couplings.
        law = given_rows.mean(0) if start == "data" else prior
        if side == "hidden":
            for _ in range(num_steps):
                law = law @ to_visible @ to_hidden
            states, module = h, nbm.condition(context).transpose()
        else:
            # A start at visible states: v itself, or v given the first h, before the sweeps.
            steps = num_steps if start == "data" else num_steps + 1
            for _ in range(steps - 1):
                law = law @ to_visible @ to_hidden
            law, states, module = law @ to_visible, v, nbm.condition(context)
        free_energy = module.free_energy(torch.as_tensor(states))
        loss = loss - counts[u].item() / len(y) * (torch.as_tensor(law) * free_energy).sum()
    return differentiate(nbm, loss)


@pytest.mark.parametrize("start", ["data", "prior"])
@pytest.mark.parametrize(
    ("pair", "side", "num_chains"),
    [
        (("ising", "ising"), "visible", None),
        (("ising", "bernoulli"), "hidden", 40),
        (("ising-quadratic", "bernoulli"), "hidden", None),
        (("categorical", "ising"), "visible", 40),
        (("bernoulli", "categorical"), "hidden", None),
        (("gaussian", "ising"), "hidden", 40),
        (("gaussian", "ising"), "hidden", None),
        (("gaussian", "bernoulli"), "visible", 40),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_contrastive_divergence(pair, side, start, num_chains):
    """The mean over seeds is that of the exact law of chains after two sweeps."""
    nbm = make_nbm(*pair)
    y, x = some_data(nbm, 3, 40)
    options = {"num_steps": 2, "chain_start": start, "negative_side": side}
    expected = expected_cd(nbm, y, x, side=side, start=start, num_steps=2)

    def draw(seed: int) -> Gradients:
        gradient = make_gradient(nbm, x, seed, num_chains=num_chains, **options)
        gradients = run(gradient, nbm, y)
        assert gradient.chains is None
        return gradients

    assert_unbiased(draw, expected)


@pytest.mark.parametrize("side", ["visible", "hidden"])
@pytest.mark.parametrize(("start", "num_sweeps"), [("data", 3), ("prior", 2)])
def test_number_of_sweeps(side, start, num_sweeps, monkeypatch):
    """Chains of weak couplings forget their start too soon for an average to show one sweep more or less."""
    seen = []
    original = GibbsSweep.run

    def recorded(self, v, num_steps, **options):
        seen.append(num_steps)
        return original(self, v, num_steps, **options)

    monkeypatch.setattr(GibbsSweep, "run", recorded)
    nbm = make_nbm("ising")
    y, x = some_data(nbm, 3, 12)
    options = {"num_steps": 3, "chain_start": start, "negative_side": side}
    run(make_gradient(nbm, x, **options), nbm, y)
    assert seen == [num_sweeps]


def test_the_two_starts_differ():
    """CD-1 from the data and from the prior are not the same, nor is either the likelihood's gradient."""
    nbm = make_nbm("ising")
    y, x = some_data(nbm, 3, 40)
    data = expected_cd(nbm, y, x, side="hidden", start="data", num_steps=1)
    prior = expected_cd(nbm, y, x, side="hidden", start="prior", num_steps=1)
    exact = exact_gradient(nbm, y, x)
    for a, b in ((data, prior), (data, exact), (prior, exact)):
        assert max((a[name] - b[name]).abs().max() for name in a) > 0.01
    long = expected_cd(nbm, y, x, side="hidden", start="prior", num_steps=500)
    assert_close(long, exact, 1e-8)


# --- tempering --------------------------------------------------------------------------------------


def divided_nbm() -> nn.NeuralBoltzmannMachine:
    """Spins in two states far apart, of different weights in the two contexts."""
    nbm = nn.NeuralBoltzmannMachine(
        2, 3, 1, "ising", hidden_sizes=(), centered=False, scale_weight=False, dtype=torch.float64
    )
    with torch.no_grad():
        for parameter in nbm.parameters():
            parameter.zero_()
        nbm.weight.linear.bias.fill_(3.0)
        nbm.hidden_bias.weight.copy_(torch.tensor([[-0.5, 0.2]]))
    return nbm


@pytest.mark.parametrize("side", ["visible", "hidden"])
def test_tempering_reaches_the_law_where_gibbs_stays(side):
    nbm = divided_nbm()
    x = torch.eye(2, dtype=torch.float64)
    machine = nbm.condition(torch.unique(x, dim=0))
    sign = machine.transpose() if side == "hidden" else machine
    states = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * sign.event_shape[0]).double()
    states = states.reshape(-1, 1, sign.event_shape[0])
    p = sign.normalize(exact_log_partition(sign)).log_prob(states).exp().detach()
    expected = (p.unsqueeze(-1) * states).sum(0)
    means = {}
    for phase in ("gibbs", "tempering"):
        gradient = make_gradient(
            nbm,
            x,
            persistent=True,
            num_chains=1000,
            num_steps=60,
            negative_phase=phase,
            negative_side=side,
            num_replicas=5,
        )
        gradient.chains = torch.ones(1000, 2, sign.event_shape[0], dtype=torch.float64)
        run(gradient, nbm, torch.ones(2, 3, dtype=torch.float64))
        assert bool(sign.support.check(gradient.chains).all())
        means[phase] = gradient.chains.mean(0)
    error = ((1 - expected.square()) / 1000).sqrt()
    assert ((means["tempering"] - expected).abs() < LIMIT * error).all()
    assert ((means["gibbs"] - expected).abs() > LIMIT * error).all()


@pytest.mark.parametrize(
    "pair", [("gaussian", "ising"), ("ising", "bernoulli"), ("mixed", "ising")]
)
def test_tempering_gives_the_gradient_of_the_likelihood(pair):
    nbm = make_nbm(*pair)
    y, x = some_data(nbm, 2, 12)
    options = {"persistent": True, "num_chains": 200, "num_steps": 1, "num_replicas": 3}
    gradient = make_gradient(nbm, x, negative_phase="tempering", **options)
    run(gradient, nbm, y)
    state = gradient.state()
    assert {"chains"} < set(state) and all(isinstance(t, Tensor) for t in state.values())
    for _ in range(30):
        run(gradient, nbm, y)
    # Successive gradients are correlated: a chain of few steps apart is counted as one draw in four.
    draws = [run(gradient, nbm, y) for _ in range(120)]
    for name, value in exact_gradient(nbm, y, x).items():
        blocks = torch.stack([d[name] for d in draws]).unflatten(0, (20, 6)).mean(1)
        error = (blocks.std(0) / math.sqrt(20)).clamp(min=1e-11)
        # A t of 19 degrees of freedom is beyond 10 with probability 5e-9.
        assert ((blocks.mean(0) - value).abs() < 10 * error).all(), name


# --- refusals ---------------------------------------------------------------------------------------


def test_tempering_takes_few_contexts():
    x = some_contexts(MAX_FIXED_CONTEXTS + 1)
    options = {"negative_phase": "tempering", "persistent": True}
    with pytest.raises(ValueError, match="takes at most 32 distinct contexts, the data have 33"):
        make_gradient(make_nbm("ising"), x, **options)
    make_gradient(make_nbm("ising"), x[1:], **options)


def test_restored_chains_must_fit_the_contexts_and_the_side():
    nbm = make_nbm("categorical", "ising")
    y, x = some_data(nbm, 3, 6)
    gradient = make_gradient(nbm, x, persistent=True)
    run(gradient, nbm, y)
    again = ConditionalGradient(nbm, TrainerConfig(persistent=True), torch.Generator())
    again.restore(gradient.state())
    assert torch.equal(again.chains, gradient.chains)
    with pytest.raises(ValueError, match="the chains are those of 3 contexts, the data have 5"):
        again.start(some_contexts(5))
    with pytest.raises(ValueError, match="the chains are those of other contexts than the data"):
        again.start(x + 1.0)
    again.start(x.flip(0))
    options = TrainerConfig(persistent=True, negative_side="hidden")
    other = ConditionalGradient(nbm, options, torch.Generator())
    other.restore(gradient.state())
    with pytest.raises(
        ValueError, match=r"the chains are states of 6 entries, .* hidden layer has 3"
    ):
        other.start(x)


# --- contexts of very different frequency -----------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"persistent": True, "num_chains": 6}], ids=["cd", "pcd"])
def test_a_context_that_dominates_is_done_apart(options):
    """Parts of a batch by size of context: the same gradient, without a rectangle of mostly zeros."""
    nbm = make_nbm("gaussian", "ising")
    contexts = some_contexts(6)
    index = torch.tensor([0] * 50 + [1, 1, 2, 3, 4, 5])
    x = contexts[index]
    with torch.no_grad():
        y = nbm.condition(x.flip(0)).sample()
    blocks = group_blocks(index, max_padding=2, small=0)
    assert [len(block.rows) for block in blocks] == [52, 4]
    exact = make_gradient(nbm, x, negative_phase="exact")
    assert_close(run(exact, nbm, y), exact_gradient(nbm, y, x))
    gradient = make_gradient(nbm, x, **options)
    for _ in range(3):
        run(gradient, nbm, y)
    if options:
        assert gradient.chains.shape == (6, 6, 3) and bool(gradient.chains.isfinite().all())


def test_contexts_that_a_batch_left_out_start_later():
    """The first batch is done in parts and lacks a context; then one that takes all contexts at once."""
    nbm = make_nbm("ising")
    x = some_contexts(4)[torch.tensor([0] * 50 + [1, 2] + [3] * 30)]
    with torch.no_grad():
        y = nbm.condition(x).sample()
    gradient = make_gradient(nbm, x, persistent=True, num_chains=5)
    first, second = torch.arange(52), torch.tensor([0, 50, 51, 60, 61])
    run(gradient, nbm, y[first], first)
    # By the sorted contexts, exactly one has no chains yet.
    waiting = gradient.chains.isnan().all(0).all(-1)
    assert int(waiting.sum()) == 1
    run(gradient, nbm, y[second], second)
    assert bool(gradient.chains.isfinite().all())


def test_a_start_is_drawn_only_for_contexts_that_are_new(monkeypatch):
    nbm = make_nbm("ising")
    x = some_contexts(MAX_FIXED_CONTEXTS + 3)
    with torch.no_grad():
        y = nbm.condition(x).sample()
    starts = []
    original = ConditionalGradient._start
    monkeypatch.setattr(
        ConditionalGradient, "_start", lambda *args: starts.append(1) or original(*args)
    )
    gradient = make_gradient(nbm, x, persistent=True, num_chains=4)
    first, second = torch.arange(10), torch.arange(5, 15)
    for rows, expected in ((first, 1), (first, 1), (second, 2), (first, 2), (second, 2)):
        run(gradient, nbm, y[rows], rows)
        assert len(starts) == expected
