# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The distributions of a neural Boltzmann machine are those of the energies that it documents."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM
from pyro_ebm.infer import exact_log_partition
from tests import brute_force
from tests.distributions.families import some_states
from tests.nn.conditional import (
    PAIR_IDS,
    PAIRS,
    VISIBLE,
    make_nbm,
    some_contexts,
    to_machine,
)

every_pair = pytest.mark.parametrize("pair", PAIRS, ids=PAIR_IDS)


def log_prob(machine: RBM, y: Tensor) -> Tensor:
    return machine.normalize(exact_log_partition(machine)).log_prob(y)


def assert_is_the_definition(nbm: nn.NeuralBoltzmannMachine, context: Tensor) -> None:
    """log Z, log p and conditionals at every context, against sums over the energy."""
    machine = nbm.condition(context)
    assert machine.batch_shape == context.shape[:-1]
    log_z = exact_log_partition(machine)
    for index in itertools.product(*(range(n) for n in context.shape[:-1])):
        brute = to_machine(nbm, context[index])
        v, weights = brute_force.points(brute.visible)
        expected = brute_force.log_sum(-brute_force.free_energy(brute, v)[None], weights)[0].real
        assert log_z[index].item() == pytest.approx(expected, abs=1e-9)
        y = some_states(brute.visible)
        states = torch.as_tensor(y).reshape(-1, *(1,) * (context.dim() - 1), y.shape[1])
        free_energy = brute_force.free_energy(brute, y).real
        got = log_prob(machine, states)[(slice(None), *index)].detach()
        np.testing.assert_allclose(got, -free_energy - expected, rtol=0, atol=1e-9)
        hidden = machine.hidden.mean(machine.hidden_field(states))[(slice(None), *index)].detach()
        np.testing.assert_allclose(hidden, brute_force.hidden_mean(brute, y), rtol=0, atol=1e-9)


@every_pair
def test_the_distribution_of_every_context_is_that_of_its_energy(pair):
    assert_is_the_definition(make_nbm(*pair), some_contexts(2, 2))


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_bias": False},
        {"centered": False},
        {"scale_weight": False},
        {"hidden_sizes": ()},
        {"hidden_sizes": (5, 4)},
        {"trunk_sizes": (5,)},
        {"trunk_sizes": (5, 4), "hidden_sizes": ()},
        {"weight": "constant"},
        {"weight": "basis", "weight_options": {"num_bases": 3}},
        {"weight": "factored", "weight_options": {"num_factors": 2}},
    ],
    ids=str,
)
@pytest.mark.parametrize("visible", ["gaussian", "bernoulli", "mixed"])
def test_options_of_the_networks(visible, options):
    assert_is_the_definition(make_nbm(visible, "ising", **options), some_contexts(2))


@pytest.mark.parametrize("shape", [(), (1,), (2, 1, 3)], ids=str)
def test_shapes(shape):
    nbm = make_nbm("ising")
    context = some_contexts(*shape)
    machine = nbm.condition(context)
    assert machine.batch_shape == shape and machine.event_shape == (3,)
    assert machine.sample((4,)).shape == (4, *shape, 3)
    assert torch.equal(nbm(context).weight, machine.weight)
    # Options are those of the distribution.
    assert nbm.condition(context, num_gibbs_steps=7).num_gibbs_steps == 7


@pytest.mark.parametrize("visible", ["gaussian", "ising-quadratic", "bernoulli-quadratic"])
@pytest.mark.parametrize("hidden", ["ising", "bernoulli"])
def test_the_energy_of_the_paper(visible, hidden):
    """(y - mu)'P(y - mu)/2 - (y - mu)'Wh - c'h, written out, with what the networks give."""
    nbm, x = make_nbm(visible, hidden), some_contexts()
    with torch.no_grad():
        mu, low = nbm.loc(x), math.log(1e-3)
        mu = {"g": mu, "i": mu.tanh(), "b": mu.sigmoid()}[visible[0]]
        raw = nbm.log_precision(x)
        softplus = torch.nn.functional.softplus
        precision = (low + softplus(raw - low) - softplus(raw + low)).exp()
        weight, bias = nbm.weight(x) / math.sqrt(len(mu)), nbm.hidden_bias(x)
    values = [-1.0, 1.0] if hidden == "ising" else [0.0, 1.0]
    h = torch.tensor(list(itertools.product(values, repeat=3)), dtype=torch.float64)

    def score(y: Tensor) -> Tensor:
        d = (y - mu).unsqueeze(-2)
        energy = 0.5 * (precision * d.square()).sum(-1) - (d @ weight @ h.mT).squeeze(-2) - h @ bias
        return torch.logsumexp(-energy, -1)

    machine = nbm.condition(x)
    if visible == "gaussian":
        y = torch.randn(6, 2, dtype=torch.float64)
        k = weight.mT @ (weight / precision.unsqueeze(-1))
        log_z = 0.5 * (2 * math.pi / precision).log().sum()
        log_z = log_z + torch.logsumexp(h @ bias + 0.5 * ((h @ k) * h).sum(-1), 0)
        assert exact_log_partition(machine).item() == pytest.approx(log_z.item(), abs=1e-10)
    else:
        low = -1.0 if visible.startswith("ising") else 0.0
        y = torch.tensor(list(itertools.product([low, 1.0], repeat=3)), dtype=torch.float64)
        # Constants of the quadratic form are no part of the distribution.
        log_z = torch.logsumexp(score(y), 0)
    expected = score(y) - log_z
    torch.testing.assert_close(log_prob(machine, y).detach(), expected, rtol=0, atol=1e-10)


def test_without_a_hidden_bias_the_density_is_symmetric():
    """p(mu + d | x) = p(mu - d | x), a limit of the paper's model that the hidden bias removes."""
    x = some_contexts(4)
    d = torch.randn(4, 2, dtype=torch.float64)
    symmetric = make_nbm("gaussian", "ising", hidden_bias=False)
    skewed = make_nbm("gaussian", "ising")
    gaps = []
    for nbm in (symmetric, skewed):
        machine = nbm.condition(x)
        mu = nbm.loc(x)
        gap = log_prob(machine, mu + d) - log_prob(machine, mu - d)
        gaps.append(gap.abs().min().item())
        gaps.append(gap.abs().max().item())
    assert gaps[1] < 1e-12 and gaps[2] > 1e-3
    assert not hasattr(symmetric, "hidden_bias")
    # Exact moments: E[y | x] = mu(x).
    draws = symmetric.condition(x).sample((20_000,))
    error = 6 * draws.std(0) / math.sqrt(20_000)
    assert ((draws.mean(0) - symmetric.loc(x)).abs() < error).all()


# --- precisions -----------------------------------------------------------------------------------


def constant_precision(value: float, **options) -> tuple[nn.NeuralBoltzmannMachine, Tensor]:
    """A model whose log P is a number that can be differentiated, and its precision."""
    nbm = make_nbm("gaussian", hidden_sizes=(), visible_options=options)
    with torch.no_grad():
        nbm.log_precision.weight.zero_()
        nbm.log_precision.bias.fill_(value)
    return nbm, nbm.condition(some_contexts()).visible.precision


@pytest.mark.parametrize("value", [-60.0, -7.0, -6.9, 0.0, 6.9, 7.0, 60.0])
def test_a_soft_bound_keeps_its_gradient(value):
    nbm, precision = constant_precision(value)
    assert bool(((precision >= 1e-3) & (precision <= 1e3)).all())
    precision.log().sum().backward()
    slope = nbm.log_precision.bias.grad
    assert (slope > 0).all()
    if abs(value) > 20:
        expected = math.exp(-abs(value)) * (1e3 - 1e-3)
        torch.testing.assert_close(slope, torch.full_like(slope, expected), rtol=1e-12, atol=0)
    if abs(value) < 1:
        assert precision.detach() == pytest.approx(math.exp(value), rel=1e-6)


@pytest.mark.parametrize(
    ("value", "expected"), [(-9.0, 1e-3), (-2.0, math.exp(-2)), (3.0, math.exp(3)), (9.0, 1e3)]
)
def test_a_hard_bound_is_that_of_the_paper(value, expected):
    nbm, precision = constant_precision(value, bound="hard")
    assert precision.detach() == pytest.approx(expected, rel=1e-12)
    precision.log().sum().backward()
    assert (nbm.log_precision.bias.grad == (1.0 if abs(value) < 6 else 0.0)).all()


def test_other_bounds():
    for bound in ("soft", "hard"):
        options = {"min_precision": 0.5, "max_precision": 2, "bound": bound}
        assert constant_precision(50.0, **options)[1].detach() == pytest.approx(2.0)
        assert constant_precision(-50.0, **options)[1].detach() == pytest.approx(0.5)


# --- centring -------------------------------------------------------------------------------------


@pytest.mark.parametrize("visible", ["ising", "bernoulli", "categorical", "multinomial"])
def test_centring_excludes_no_distribution(visible):
    """What the offset takes from the hidden units, their bias can give back."""
    options = {"hidden_sizes": (), "num_context": 3}
    plain = make_nbm(visible, centered=False, **options)
    centred = make_nbm(visible, centered=True, **options)
    x = torch.eye(3, dtype=torch.float64)
    assert plain.offset is None and not plain.condition(x).visible_offset.any()
    machine = centred.condition(x)
    mean = machine.visible_offset
    assert mean.abs().min() > 0 and not mean.requires_grad
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(centred.get_parameter(name))
        shift = (machine.weight.mT @ mean.unsqueeze(-1)).squeeze(-1)
        plain.hidden_bias.weight.sub_(shift.mT)
    y = plain.condition(x).sample((5,))
    torch.testing.assert_close(log_prob(plain.condition(x), y), log_prob(machine, y))


@pytest.mark.parametrize("visible", VISIBLE)
def test_offsets_are_never_trained(visible):
    nbm = make_nbm(visible)
    names = {name.split(".")[0] for name, _ in nbm.named_parameters()}
    assert names == set(nbm.network_names)
    own = visible in ("gaussian", "low-rank") or VISIBLE[visible][2].get("form") == "quadratic"
    assert (nbm.offset is None) == own
    groups = nbm.parameter_groups()
    grouped = [p for group in groups.values() for p in group]
    assert {id(p) for p in grouped} == {id(p) for p in nbm.parameters()}


class Normalized(torch.nn.Sequential):
    """A network that has other values in training mode than in evaluation mode."""

    def __init__(self, *, rate: float = 0.5) -> None:
        kwargs = {"dtype": torch.float64}
        first, last = torch.nn.Linear(3, 8, **kwargs), torch.nn.Linear(8, 3, **kwargs)
        super().__init__(
            first, torch.nn.BatchNorm1d(8, **kwargs), torch.nn.Dropout(rate), torch.nn.ReLU(), last
        )


def test_the_centre_is_that_of_evaluation_mode():
    """Units that are dropped at random, and statistics of batches, do not move the energy."""
    x = some_contexts(6)
    y = (some_contexts(40) > 0).double()
    nbm = make_nbm("bernoulli", networks={"bias": Normalized()})
    nbm.init_from_data(y, some_contexts(40), num_steps=5)
    expected = nbm.eval().condition(x).visible.mean().detach()
    nbm.train()
    for _ in range(2):
        torch.testing.assert_close(nbm.condition(x).visible_offset, expected, rtol=0, atol=1e-12)
    assert nbm.bias.training and not any(part.training for part in nbm.offset.modules())
    # It goes on so in a copy, and before there are data.
    assert not copy.deepcopy(nbm).train().offset.networks["bias"][2].training
    plain = make_nbm("bernoulli", networks={"bias": Normalized()})
    assert torch.equal(plain(x).visible_offset, plain(x).visible_offset)


# --- the start --------------------------------------------------------------------------------------


def one_hot_data(rows: int = 900) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    label = torch.arange(rows) % 3
    return label, torch.randn(rows, 6, generator=generator, dtype=torch.float64)


def independent_law(visible: str) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts of three classes, states that differ between them, and their class means."""
    label, noise = one_hot_data()
    shift = torch.tensor([[-1.0, 0.2, 0.9, 0, 1, -1]]).double() * (label - 1.0).unsqueeze(-1) * 0.7
    rows = noise * 0.5 + shift
    if visible.startswith("gaussian"):
        y = rows[:, :2] * torch.tensor([1.0, 3.0])
    elif visible.startswith("ising"):
        y = rows[:, :3].sign()
    elif visible.startswith("bernoulli"):
        y = (rows[:, :3] > 0).double()
    elif visible == "categorical":
        y = (
            torch.nn.functional.one_hot(rows.unflatten(-1, (2, 3)).argmax(-1), 3)
            .flatten(1)
            .double()
        )
    else:
        picks = rows.unflatten(-1, (2, 3)).argmax(-1)
        y = torch.nn.functional.one_hot(picks, 3).sum(1).double()
    x = torch.eye(3, dtype=torch.float64)
    means = torch.stack([y[label == k].mean(0) for k in range(3)])
    return x[label], y, means


@pytest.mark.parametrize(
    "visible",
    [
        "gaussian",
        "ising",
        "bernoulli",
        "ising-quadratic",
        "bernoulli-quadratic",
        "categorical",
        "multinomial",
    ],
)
def test_init_from_data_is_the_likelihood_of_independent_units(visible):
    """With one-hot contexts the maximum is known: means (and variances) of every class."""
    x, y, means = independent_law(visible)
    nbm = make_nbm(visible, hidden_sizes=())
    assert nbm.init_from_data(y, x, num_steps=400, learning_rate=0.1, seed=0) is nbm
    machine = nbm.condition(torch.eye(3, dtype=torch.float64))
    mean = machine.visible.mean().detach()
    torch.testing.assert_close(mean, means, rtol=0, atol=1e-3)
    if visible == "gaussian":
        variance = torch.stack([y[k::3].var(0, correction=0) for k in range(3)])
        torch.testing.assert_close(1 / machine.visible.precision, variance, rtol=1e-3, atol=0)
    if nbm.offset is not None:
        # The couplings are centred at these means, and stay there when the networks move on.
        torch.testing.assert_close(machine.visible_offset, mean, rtol=0, atol=1e-12)
        with torch.no_grad():
            for parameter in nbm.parameters():
                parameter.add_(0.1)
        moved = nbm.condition(torch.eye(3, dtype=torch.float64))
        torch.testing.assert_close(moved.visible_offset, mean, rtol=0, atol=1e-12)


def test_init_from_data_leaves_the_couplings_alone():
    x, y, _ = independent_law("bernoulli")
    nbm = make_nbm("bernoulli")
    before = {n: p.clone() for n, p in nbm.named_parameters()}
    state = torch.get_rng_state()
    nbm.init_from_data(y, x, num_steps=3, batch_size=50, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    changed = {n.split(".")[0] for n, p in nbm.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"bias"}
    assert all(p.grad is None for p in nbm.parameters())
    again = make_nbm("bernoulli").init_from_data(y, x, num_steps=3, batch_size=50, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(nbm.parameters(), again.parameters(), strict=True))
    other = make_nbm("bernoulli").init_from_data(y, x, num_steps=3, batch_size=50, seed=2)
    assert not torch.equal(other.bias[-1].bias, nbm.bias[-1].bias)


def test_init_from_data_trains_a_shared_trunk_and_takes_bytes():
    x, y, means = independent_law("bernoulli")
    nbm = make_nbm("bernoulli", trunk_sizes=(8,), hidden_sizes=(), dtype=torch.float32)
    nbm.init_from_data(y.to(torch.uint8), x.to(torch.int64), num_steps=400, learning_rate=0.03)
    machine = nbm.condition(torch.eye(3))
    torch.testing.assert_close(machine.visible.mean().detach().double(), means, rtol=0, atol=5e-3)
    torch.testing.assert_close(machine.visible_offset, machine.visible.mean().detach())


# --- networks of one's own --------------------------------------------------------------------------


def test_given_networks_are_used():
    mu = torch.nn.Linear(3, 2, dtype=torch.float64)
    weight = torch.nn.Sequential(
        torch.nn.Linear(3, 6, dtype=torch.float64), torch.nn.Unflatten(-1, (2, 3))
    )
    nbm = make_nbm("gaussian", networks={"loc": mu, "weight": weight})
    x = some_contexts(4)
    machine = nbm.condition(x)
    assert nbm.loc is mu
    assert torch.equal(machine.visible.loc, mu(x)) and torch.equal(machine.visible_offset, mu(x))
    torch.testing.assert_close(machine.weight, weight(x) / math.sqrt(2))
    assert {id(p) for p in mu.parameters()} <= {id(p) for p in nbm.parameters()}


def test_a_given_trunk_feeds_every_network():
    class Trunk(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x * self.scale, x.square()], -1)

    trunk = Trunk()
    nbm = make_nbm("bernoulli", trunk=trunk, num_features=6)
    x = some_contexts(2)
    machine = nbm.condition(x)
    torch.testing.assert_close(machine.visible.bias, nbm.bias(trunk(x)))
    torch.testing.assert_close(machine.hidden.bias, nbm.hidden_bias(trunk(x)))
    assert nbm.parameter_groups()["trunk"] == [trunk.scale]
    machine.free_energy(torch.ones(2, 3, dtype=torch.float64)).sum().backward()
    assert trunk.scale.grad.abs() > 0


# --- refusals ---------------------------------------------------------------------------------------


def build(num_context=3, num_visible=4, num_hidden=2, visible="gaussian", **options):
    return nn.NeuralBoltzmannMachine(num_context, num_visible, num_hidden, visible, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_context": 0}, "num_context must be a whole number >= 1, got 0"),
        ({"num_visible": 2.0}, r"num_visible must be a whole number >= 1, got 2\.0"),
        ({"num_hidden": True}, "num_hidden must be a whole number >= 1, got True"),
        ({"visible": "relu"}, "unknown unit family 'relu'; choose from"),
        ({"hidden": "gaussian"}, "hidden must be 'ising', 'bernoulli' or 'categorical', got 'gau"),
        ({"hidden_sizes": (0,)}, "hidden_sizes must be a list of whole numbers"),
        ({"hidden_sizes": 32}, "hidden_sizes must be a list of whole numbers"),
        ({"trunk_sizes": [2.5]}, "trunk_sizes must be a list of whole numbers"),
        ({"hidden_bias": 0}, "hidden_bias must be a bool"),
        ({"scale_weight": None}, "scale_weight must be a bool"),
        ({"centered": "no"}, "centered must be a bool"),
        ({"weight": "low-rank"}, r"weight must be one of \['basis', 'constant', 'factored', 'full"),
        ({"weight_options": {"num_bases": 2}}, r"unknown options \['num_bases'\] of weight='full'"),
        ({"weight": "basis", "weight_options": {"num_bases": 0}}, "num_bases must be a whole"),
        ({"visible_options": {"rank": 2}}, r"unknown options \['rank'\] of _Gaussian"),
        ({"visible_options": {"min_precision": 0}}, "0 < min_precision < max_precision must hold"),
        ({"visible_options": {"min_precision": 2, "max_precision": 1}}, "0 < min_precision < max"),
        ({"visible_options": {"max_precision": math.inf}}, "0 < min_precision < max_precision"),
        ({"visible_options": {"bound": "none"}}, "bound must be 'soft' or 'hard', got 'none'"),
        ({"visible": "ising", "visible_options": {"form": "cubic"}}, "form must be 'natural' or"),
        ({"visible": "ising", "visible_options": {"bounded_loc": 1}}, "bounded_loc must be a bool"),
        ({"visible": "categorical"}, "num_states must be a whole number >= 1, got None"),
        (
            {"visible": "categorical", "visible_options": {"num_states": 3}},
            "4 entries are no whole number of groups of num_states=3",
        ),
        ({"visible": "multinomial"}, "total_count must be a whole number >= 1, got None"),
        ({"visible": "low-rank-gaussian"}, "rank must be a whole number >= 1, got None"),
        ({"visible": "mixed"}, "blocks must be a list of"),
        ({"visible": "mixed", "visible_options": {"blocks": []}}, "blocks must be a list of"),
        (
            {"visible": "mixed", "visible_options": {"blocks": [{"family": "ising"}]}},
            "blocks must be a list of",
        ),
        (
            {"visible": "mixed", "visible_options": {"blocks": [{"family": "ising", "size": 3}]}},
            "the blocks have 3 entries, but the layer has 4",
        ),
        (
            {"networks": {"bias": torch.nn.Identity()}},
            r"unknown networks \['bias'\]; this model has",
        ),
        ({"num_features": 3}, "num_features is an option of a given trunk"),
        ({"trunk": torch.nn.Identity()}, "trunk needs num_features, a whole number >= 1, got None"),
        (
            {"trunk": torch.nn.Identity(), "num_features": 3, "trunk_sizes": (2,)},
            "give trunk or trunk_sizes, not both",
        ),
        ({"seed": -1}, "seed must be None or a whole number"),
        ({"dtype": torch.int64}, "dtype must be a floating-point type"),
    ],
    ids=str,
)
def test_impossible_models(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize("options", [{"networks": {"loc": abs}}, {"trunk": abs, "num_features": 3}])
def test_networks_are_modules(options):
    with pytest.raises(TypeError, match=r"network '(loc|trunk)' must be a torch\.nn\.Module, got"):
        build(**options)


@pytest.mark.parametrize(
    ("name", "network", "message"),
    [
        (
            "loc",
            torch.nn.Linear(3, 5),
            r"network 'loc' must give shape \(\.\.\., 4\), got \(2, 5\)",
        ),
        (
            "weight",
            torch.nn.Linear(3, 8),
            r"'weight' must give shape \(\.\.\., 4, 2\), got \(2, 8\)",
        ),
    ],
)
def test_what_networks_give_is_checked(name, network, message):
    nbm = build(networks={name: network})
    with pytest.raises(ValueError, match=message):
        nbm.condition(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (torch.zeros(2, 4), r"context must have shape \(\.\.\., 3\), got \(2, 4\)"),
        (torch.tensor(1.0), r"context must be a tensor of shape \(\.\.\., n\)"),
        ([0.0, 1.0, 0.0], "context must be a tensor"),
        (torch.tensor([0.0, math.nan, 1.0]), "context holds NaN or infinite values"),
        (torch.tensor([0.0, math.inf, 1.0]), "context holds NaN or infinite values"),
    ],
    ids=str,
)
def test_bad_contexts(context, message):
    with pytest.raises(ValueError, match=message):
        build().condition(context)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64, torch.float16], ids=str)
def test_contexts_of_any_type(dtype):
    nbm = build(seed=0)
    machine = nbm(torch.eye(3, dtype=dtype))
    assert machine.weight.dtype == torch.float32
    assert torch.equal(machine.weight, nbm(torch.eye(3)).weight)
    with pytest.raises(ValueError, match=r"context must hold real numbers, got torch\.complex64"):
        nbm(torch.eye(3, dtype=torch.complex64))


def test_contexts_on_another_device():
    with pytest.raises(ValueError, match="context is on meta, but the model on cpu"):
        build().condition(torch.zeros(2, 3, device="meta"))


def test_init_from_data_takes_tensors():
    nbm = build()
    with pytest.raises(TypeError, match="data must be a tensor, got ndarray"):
        nbm.init_from_data(np.zeros((5, 4)), torch.zeros(5, 3))
    with pytest.raises(TypeError, match="context must be a tensor, got ndarray"):
        nbm.init_from_data(torch.zeros(5, 4), np.zeros((5, 3)))
    with pytest.raises(TypeError, match="data must be a tensor, got list"):
        nn.RBM(2, 2).init_from_data([[0.0, 1.0]])


@pytest.mark.parametrize(
    ("visible", "row"),
    [
        ("ising", [0.0, 1.5, 0.0]),
        ("bernoulli", [0.0, -0.1, 1.0]),
        ("categorical", [0.0, 0, 1, 2, 0, -1]),
        ("categorical", [0.0, 0, 1, 0.5, 0, 0]),
        ("multinomial", [0.0, 0, 3]),
        ("multinomial", [0.0, 1, 0]),
        ("multinomial", [-1.0, 1, 2]),
        ("mixed", [0.5, 9.0, 0, 0, 1.1]),
        ("mixed", [0.5, 9.0, 0.5, 0.5, 0.5]),
    ],
)
def test_init_from_data_refuses_what_are_no_means_of_states(visible, row):
    nbm = make_nbm(visible)
    bad = torch.tensor([row], dtype=torch.float64)
    family = VISIBLE[visible][0]
    with pytest.raises(ValueError, match=f"1 of 1 rows that are no states, .* of '{family}' units"):
        nbm.init_from_data(bad, torch.zeros(1, 3))
    # Means of states, such as grey levels, are welcome.
    with torch.no_grad():
        mean = make_nbm(visible, seed=4).visible_unit(torch.zeros(1, 3)).mean().float()
    nbm.init_from_data(mean, torch.zeros(1, 3), num_steps=1)


@pytest.mark.parametrize(
    ("data", "context", "options", "message"),
    [
        ((5, 3), (5, 3), {}, r"data must have shape \(rows >= 1, 2\), got \(5, 3\)"),
        ((0, 2), (0, 3), {}, r"data must have shape \(rows >= 1, 2\), got \(0, 2\)"),
        ((5, 2), (5, 2), {}, r"context must have shape \(rows >= 1, 3\), got \(5, 2\)"),
        ((5, 2), (4, 3), {}, "data has 5 rows, but context has 4"),
        ((5, 2), (5, 3), {"num_steps": -1}, "num_steps >= 0, batch_size >= 1 and learning_rate"),
        ((5, 2), (5, 3), {"batch_size": 0}, "num_steps >= 0, batch_size >= 1 and learning_rate"),
        ((5, 2), (5, 3), {"learning_rate": 0.0}, "num_steps >= 0, batch_size >= 1 and learning"),
    ],
    ids=str,
)
def test_init_from_data_refuses(data, context, options, message):
    nbm = make_nbm("gaussian")
    with pytest.raises(ValueError, match=message):
        nbm.init_from_data(torch.zeros(data), torch.zeros(context), **options)
    with pytest.raises(ValueError, match="data holds NaN"):
        nbm.init_from_data(torch.full((2, 2), math.nan), torch.zeros(2, 3))
