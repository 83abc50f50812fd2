# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Preconditioned gradients against Fisher informations by autograd over all states, and invariances."""

import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.training import Trainer, TrainerConfig
from pyro_ebm.training.diagonal_fisher import DiagonalFisher
from pyro_ebm.training.exact_gradient import ExactGradient
from pyro_ebm.training.gradient import ContrastiveGradient
from pyro_ebm.training.natural_gradient import (
    EnumeratedFisher,
    SampledFisher,
    is_cheap_to_enumerate,
    sampled_natural_gradient,
)
from pyro_ebm.training.phase_statistics import Statistics
from pyro_ebm.training.preconditioning import make_preconditioner
from pyro_ebm.training.scores import Scores
from pyro_ebm.training.standardization import Standardization
from tests.distributions.families import PAIR_IDS, PAIRS
from tests.training.machines import assert_same_state, make_module, random_module, some_bits

BITS = ("bernoulli", "bernoulli")
#: Pairs whose visible layer can be enumerated.
FINITE = [p for p in PAIRS if p[0] not in ("gaussian", "relu")]
LIMIT = 6.0
CHAINS = 11


def trained(module: nn.RBM) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def score_by_autograd(module: nn.RBM, v: Tensor) -> dict[str, Tensor]:
    """-dF/dtheta of every row, row by row."""
    rows = [
        torch.autograd.grad(-module().free_energy(row), list(trained(module).values())) for row in v
    ]
    stacked = map(torch.stack, zip(*rows, strict=True))
    return dict(zip(trained(module), stacked, strict=True))


def flatten(rows: dict[str, Tensor], names) -> Tensor:
    return torch.cat([rows[n].flatten(1) for n in names], 1)


def all_states(module: nn.RBM) -> tuple[Tensor, Tensor]:
    """The visible states and their probabilities."""
    dist = module()
    v = dist.visible.states(0, dist.visible.num_states)
    with torch.no_grad():
        return v, torch.softmax(-dist.free_energy(v), 0)


def fisher_by_autograd(module: nn.RBM) -> Tensor:
    v, p = all_states(module)
    rows = flatten(score_by_autograd(module, v), trained(module))
    centred = rows - p @ rows
    return centred.T @ (p.unsqueeze(-1) * centred)


def hidden_theta(module: nn.RBM, v: Tensor) -> Tensor:
    dist = module()
    with torch.no_grad():
        return dist.hidden.natural_bias + dist.hidden_field(v)


def scores(module: nn.RBM, v: Tensor) -> Scores:
    return Scores.of(module, module(), v, hidden_theta(module, v))


def statistics(module: nn.RBM, v: Tensor) -> Statistics:
    theta = hidden_theta(module, v)
    return Statistics(v, theta, module().hidden.natural_mean(theta).detach())


def some_states(module: nn.RBM, count: int = CHAINS) -> Tensor:
    with torch.no_grad():
        unit = module.visible()
        return unit.sample(torch.linspace(-1, 1, unit.size).to(module.weight).expand(count, -1))


def set_gradient(module: nn.RBM) -> Tensor:
    """A random gradient of everything that is trained; returns it flattened."""
    for p in trained(module).values():
        p.grad = torch.randn_like(p)
    return flat_gradient(module).clone()


def flat_gradient(module: nn.RBM) -> Tensor:
    return torch.cat([p.grad.flatten() for p in trained(module).values()])


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS, ids=PAIR_IDS)
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
def test_scores_are_those_of_autograd(pair, centered):
    module = random_module(pair, centered=centered, learn_precision=True)
    v = some_states(module)
    expected = score_by_autograd(module, v)
    made = scores(module, v)
    dense = made.dense()
    assert dense.keys() == expected.keys()
    for name, value in expected.items():
        close(dense[name], value)
    rows = flatten(expected, expected)
    close(made.gram(), rows @ rows.T)
    set_gradient(module)
    gradient = {n: p.grad for n, p in trained(module).items()}
    close(made.dot(gradient), rows @ flat_gradient(module))
    coefficients = torch.linspace(-1, 2, len(v)).double()
    combined = made.combine(coefficients)
    close(torch.cat([combined[n].flatten() for n in expected]), coefficients @ rows)
    for name, value in made.variance().items():
        close(value, expected[name].var(0, correction=0))


def test_what_is_not_trained_has_no_score():
    module = random_module(BITS)
    module.weight.requires_grad_(False)
    module.visible.bias.requires_grad_(False)
    made = scores(module, some_states(module))
    assert list(made.dense()) == list(made.variance()) == ["hidden.bias"]
    assert made.gram().shape == (CHAINS, CHAINS)


# --- the diagonal -------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", FINITE, ids="-".join)
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
def test_variances_over_all_states_are_the_diagonal_of_fisher(pair, centered):
    module = random_module(pair, centered=centered, learn_precision=True)
    v, p = all_states(module)
    variance = scores(module, v).variance(p)
    got = torch.cat([variance[n].flatten() for n in trained(module)])
    close(got, fisher_by_autograd(module).diagonal())


def test_chains_estimate_the_diagonal():
    """The mean of independent estimates, which are too small by the factor 1 - 1 / chains."""
    module = random_module(BITS, centered=True)
    draws = module().sample((40_000,)).split(100)
    estimates = torch.stack(
        [torch.cat([x.flatten() for x in scores(module, v).variance().values()]) for v in draws]
    )
    names = list(scores(module, draws[0]).variance())
    shapes = dict(
        zip(
            trained(module),
            fisher_by_autograd(module)
            .diagonal()
            .split([p.numel() for p in trained(module).values()]),
            strict=True,
        )
    )
    expected = torch.cat([shapes[n] for n in names]) * (1 - 1 / 100)
    error = estimates.std(0) / len(draws) ** 0.5
    assert ((estimates.mean(0) - expected).abs() < LIMIT * error).all()


def test_the_step_is_divided_by_a_moving_average():
    module = random_module(BITS)
    preconditioner = DiagonalFisher(module, rate=0.25, damping=0.5)
    first, second = some_states(module), some_states(module).flip(0).flip(-1)
    for number, v in enumerate((first, second)):
        before = set_gradient(module)
        preconditioner(module(), statistics(module, first), statistics(module, v))
        old = scores(module, first).variance()
        new = scores(module, v).variance()
        share = 0.25 * number
        variance = torch.cat(
            [((1 - share) * old[n] + share * new[n]).flatten() for n in trained(module)]
        )
        close(flat_gradient(module), before / (variance + 0.5))


# --- the exact natural gradient -----------------------------------------------------------------


@pytest.mark.parametrize("pair", FINITE, ids="-".join)
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
def test_the_enumerated_fisher_information(pair, centered):
    module = random_module(pair, centered=centered, learn_precision=True)
    preconditioner = EnumeratedFisher(module, damping=0.1)
    matrix, names = preconditioner.fisher(module())
    expected = fisher_by_autograd(module)
    order = torch.arange(len(expected)).split([p.numel() for p in trained(module).values()])
    place = dict(zip(trained(module), order, strict=True))
    index = torch.cat([place[n] for n in names])
    close(matrix, expected[index][:, index])
    gradient = set_gradient(module)
    preconditioner(module())
    damped = expected + 0.1 * torch.eye(len(expected), dtype=torch.float64)
    close(flat_gradient(module), torch.linalg.solve(damped, gradient))


def flipped(module: nn.RBM, unit: int) -> nn.RBM:
    """The same distribution of a machine whose bit has 1 where it had 0."""
    other = make_module(BITS)
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        other.hidden.bias += module.weight[unit]
        other.weight[unit] *= -1
        other.visible.bias[unit] *= -1
    return other


def centred(module: nn.RBM) -> nn.RBM:
    """The same distribution about offsets."""
    other = make_module(BITS, centered=True)
    with torch.no_grad():
        for name, p in module.named_parameters():
            other.get_parameter(name).copy_(p)
        # Made without offsets; shifting them leaves the distribution as it is.
        other.visible_offset.zero_()
        other.hidden_offset.zero_()
    other.shift_offsets(
        torch.tensor([0.3, 0.8, -0.4]).double(), torch.tensor([0.6, 0.1, 0.7]).double()
    )
    return other


def change_of_law(module: nn.RBM, data: Tensor, preconditioner: str) -> Tensor:
    """Change of every state's log-probability under a small step, over the size of the step."""
    step, before = 1e-6, None
    config = TrainerConfig(negative_phase="exact", preconditioner=preconditioner, damping=1e-9)
    ExactGradient(module, config)(data)
    states = module().visible.states(0, 8)
    for _ in range(2):
        with torch.no_grad():
            dist = module()
            log_p = -dist.free_energy(states) - exact_log_partition(dist)
        if before is None:
            before = log_p
            with torch.no_grad():
                for p in module.parameters():
                    p.sub_(p.grad, alpha=step)
    return (log_p - before) / step


def test_the_natural_step_does_not_depend_on_the_parameters():
    """Fisher is singular (15 parameters, 7 free probabilities), but gradients lie in its range."""
    module = random_module(BITS)
    data = some_bits(40, 3).double()
    for other, turn in ((centred(module), None), (flipped(module, 1), 1)):
        rows, order = data, torch.arange(8)
        if turn is not None:
            rows = data.clone()
            rows[:, turn] = 1 - rows[:, turn]
            states = module().visible.states(0, 8).clone()
            states[:, turn] = 1 - states[:, turn]
            place = torch.tensor([4.0, 2.0, 1.0]).double()
            own = module().visible.states(0, 8) @ place
            order = torch.stack([(own == x).nonzero()[0, 0] for x in states @ place])
        changes = {}
        for kind in ("natural", "none"):
            ours, theirs = make_module(BITS), make_module(BITS, centered=other.centered)
            ours.load_state_dict(module.state_dict())
            theirs.load_state_dict(other.state_dict())
            a = change_of_law(ours, data, kind)
            b = change_of_law(theirs, rows, kind)[order]
            changes[kind] = ((a - b).abs().max() / a.abs().max()).item()
        assert changes["natural"] < 1e-3
        assert changes["none"] > 0.05


def test_maximum_likelihood_by_natural_gradient_is_fast():
    """In 100 steps to where the plain gradient is not."""
    data = some_bits(500, 4)
    likelihood = {}
    for kind, rate in (("natural", 0.3), ("none", 0.3)):
        module = nn.RBM(4, 3, seed=0, dtype=torch.float64)
        config = TrainerConfig(
            num_epochs=100,
            batch_size=500,
            learning_rate=rate,
            negative_phase="exact",
            preconditioner=kind,
            damping=1e-3,
            seed=0,
            progress=False,
        )
        Trainer(module, config).fit(data)
        dist = module().normalize(exact_log_partition(module()))
        likelihood[kind] = dist.log_prob(data.double()).mean().item()
    assert likelihood["natural"] > likelihood["none"] + 1e-4


# --- the natural gradient of samples ------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS, ids=PAIR_IDS)
@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_the_span_of_samples_gives_the_dense_solution(pair, damping):
    module = random_module(pair, centered=True, learn_precision=True)
    v = some_states(module)
    rows = flatten(score_by_autograd(module, v), trained(module))
    rows = rows - rows.mean(0)
    gradient = set_gradient(module)
    identity = torch.eye(rows.shape[1], dtype=torch.float64)
    expected = torch.linalg.solve(rows.T @ rows / len(v) + damping * identity, gradient)
    SampledFisher(module, damping)(module(), statistics(module, v), statistics(module, v))
    close(flat_gradient(module), expected)


def test_many_samples_give_the_exact_direction():
    module = random_module(BITS)
    gradient = set_gradient(module)
    matrix = fisher_by_autograd(module)
    damped = matrix + 0.05 * torch.eye(len(matrix), dtype=torch.float64)
    exact = torch.linalg.solve(damped, gradient)
    named = {n: p.grad for n, p in trained(module).items()}
    results = []
    for v in module().sample((8000,)).split(400):
        direction = sampled_natural_gradient(scores(module, v), named, 0.05)
        results.append(torch.cat([direction[n].flatten() for n in named]))
    table = torch.stack(results)
    error = table.std(0) / len(table) ** 0.5
    # The inverse of an estimate has a bias of the order of 1 / chains.
    assert ((table.mean(0) - exact).abs() < LIMIT * error + 0.02 * exact.abs().max()).all()
    assert (error < 0.1 * exact.abs().max()).all()


@pytest.mark.parametrize("kind", [DiagonalFisher, EnumeratedFisher, SampledFisher])
def test_with_much_damping_the_direction_is_that_of_the_gradient(kind):
    module = random_module(BITS)
    gradient = set_gradient(module)
    options = (0.01, 1e9) if kind is DiagonalFisher else (1e9,)
    phase = statistics(module, some_states(module))
    kind(module, *options)(module(), phase, phase)
    close(flat_gradient(module) * 1e9, gradient, 1e-6)


# --- standardising ------------------------------------------------------------------------------


def standardised_gradient(
    module: nn.RBM, data: Tensor, scales: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """Gradient of -log p(data) by the parameters of units of mean 0 and variance 1, all states summed.

    The energy is written in these units and their own parameters, and differentiated.
    """
    state = {n: t.clone() for n, t in module.state_dict().items()}
    sigma_v, sigma_h = scales
    tilde = {
        "weight": state["weight"] * sigma_v.unsqueeze(-1) * sigma_h,
        "visible.bias": state["visible.bias"] * sigma_v,
        "hidden.bias": state["hidden.bias"] * sigma_h,
    }
    leaves = {n: t.requires_grad_() for n, t in tilde.items()}
    values = torch.tensor([-1.0, 1.0] if module.hidden.family == "ising" else [0.0, 1.0])
    h = torch.cartesian_prod(*[values.double()] * 3)
    every = module().visible.states(0, module().visible.num_states)

    def log_weight(v: Tensor) -> Tensor:
        x = (v - state["visible_offset"]) / sigma_v
        y = (h - state["hidden_offset"]) / sigma_h
        pairs = (x @ leaves["weight"]) @ y.T + (x @ leaves["visible.bias"]).unsqueeze(-1)
        return torch.logsumexp(pairs + y @ leaves["hidden.bias"], -1)

    loss = torch.logsumexp(log_weight(every), 0) - log_weight(data).mean()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("hidden", ["bernoulli", "ising"])
def test_standardising_is_the_gradient_of_standard_units(hidden):
    """A step of the standard machine, carried over to the stored parameters."""
    module = random_module(("bernoulli", hidden), centered=True)
    data, damping = some_bits(30, 3).double(), 0.05
    preconditioner = Standardization(module, 0.01, damping)
    loss = module().free_energy(data).mean() + exact_log_partition(module())
    for p, g in zip(
        module.parameters(), torch.autograd.grad(loss, list(module.parameters())), strict=True
    ):
        p.grad = g
    phase = statistics(module, data)
    preconditioner(module(), phase, phase)
    mean = phase.h.mean(0)
    variance = 1 - mean**2 if hidden == "ising" else mean * (1 - mean)
    scales = (data.var(0, correction=0) + damping).sqrt(), (variance + damping).sqrt()
    expected = standardised_gradient(module, data, scales)
    close(module.weight.grad, expected["weight"] / (scales[0].unsqueeze(-1) * scales[1]))
    close(module.visible.bias.grad, expected["visible.bias"] / scales[0])
    close(module.hidden.bias.grad, expected["hidden.bias"] / scales[1])


def test_moving_variances_change_no_probability():
    module = random_module(BITS, centered=True)
    states = module().visible.states(0, 8)
    before = module().free_energy(states).detach().clone()
    preconditioner = Standardization(module, 0.5, 0.01)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    for seed in range(3):
        phase = statistics(module, some_bits(20, 3, seed).double())
        preconditioner(module(), phase, phase)
    assert torch.equal(module().free_energy(states), before)
    assert all(p.grad.abs().max() == 0 for p in module.parameters())


@pytest.mark.parametrize("preconditioner", ["standardize", "diagonal", "natural"])
def test_pixels_that_never_change(preconditioner):
    """Steps are finite, and what can be learnt is."""
    generator = torch.Generator().manual_seed(0)
    data = torch.zeros(400, 8)
    # Four copies of a fair bit between pixels that are always off, and always on.
    data[:, 2:6] = torch.bernoulli(torch.full((400, 1), 0.5), generator=generator)
    data[:, 6:] = 1.0
    module = nn.RBM(8, 4, seed=0, centered=True, dtype=torch.float64).init_from_data(data)
    start = likelihood(module, data)
    config = TrainerConfig(
        num_epochs=30,
        batch_size=50,
        learning_rate=0.02,
        persistent=True,
        preconditioner=preconditioner,
        damping=0.05,
        seed=0,
        progress=False,
    )
    Trainer(module, config).fit(data)
    assert all(p.isfinite().all() for p in module.parameters())
    # One bit is 0.69; a layer without couplings has 2.8.
    assert start < -2.7 and likelihood(module, data) > -1.2


def likelihood(module: nn.RBM, data: Tensor) -> float:
    with torch.no_grad():
        dist = module()
        return (-dist.free_energy(data.double()) - exact_log_partition(dist)).mean().item()


# --- in a run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preconditioner", ["standardize", "diagonal", "natural"])
def test_a_resumed_run_is_the_same(preconditioner, tmp_path):
    data = some_bits(60)
    options = {
        "num_epochs": 3,
        "batch_size": 20,
        "persistent": True,
        "preconditioner": preconditioner,
        "seed": 2,
        "progress": False,
    }
    whole = Trainer(nn.RBM(6, 4, seed=0, centered=True), TrainerConfig(**options))
    whole.fit(data)
    path = tmp_path / "checkpoint.safetensors"
    config = TrainerConfig(**{**options, "num_epochs": 1}, checkpoint=path)
    Trainer(nn.RBM(6, 4, seed=0, centered=True), config).fit(data)
    resumed = Trainer.from_checkpoint(path, num_epochs=3)
    resumed.fit(data)
    assert_same_state(resumed.module, whole.module)
    assert torch.equal(resumed.chains, whole.chains)


def test_which_fisher_information_is_taken():
    def kind(module: nn.RBM, **options) -> type:
        config = TrainerConfig(preconditioner="natural", persistent=True, **options)
        return type(make_preconditioner(module, config))

    assert kind(nn.RBM(6, 4)) is EnumeratedFisher
    assert kind(nn.RBM(64, 4)) is SampledFisher
    assert kind(nn.RBM(6, 4, "gaussian")) is SampledFisher
    assert is_cheap_to_enumerate(nn.RBM(10, 10)) and not is_cheap_to_enumerate(nn.RBM(20, 20))


def test_a_restored_variance_must_fit():
    module = nn.RBM(6, 4)
    with pytest.raises(ValueError, match=r"fisher.weight of shape \(4, 6\), the parameter has"):
        DiagonalFisher(module, 0.1, 0.1).restore({"fisher.weight": torch.ones(4, 6)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "has no effect beside 'adam'"),
        ({"dropout": 0.5}, "dropout and preconditioner"),
        ({"dropconnect": 0.5}, "dropconnect and preconditioner"),
        ({"chain_visible": "mean"}, "chain_visible and preconditioner"),
        ({"num_chains": 1}, "needs num_chains of at least 2"),
    ],
    ids=str,
)
@pytest.mark.parametrize("preconditioner", ["diagonal", "natural"])
def test_options_that_exclude_each_other(preconditioner, options, message):
    with pytest.raises(ValueError, match=message):
        Trainer(nn.RBM(6, 4), TrainerConfig(preconditioner=preconditioner, **options))


def test_machines_that_have_no_preconditioner():
    def make(module: nn.RBM, **options) -> None:
        Trainer(module, TrainerConfig(**options))

    exact = {"negative_phase": "exact", "preconditioner": "natural"}
    with pytest.raises(ValueError, match="at most 1048576 states, got 2097152"):
        make(nn.RBM(21, 2), **exact)
    with pytest.raises(ValueError, match="got infinitely many"):
        make(nn.RBM(3, 2, "gaussian"), **exact)
    with pytest.raises(ValueError, match="at most 3000 parameters, got 4212"):
        make(nn.RBM(10, 382), **exact)
    for name in ("diagonal", "standardize"):
        with pytest.raises(ValueError, match="preconditioner is no option of negative_phase='ex"):
            make(nn.RBM(6, 2, centered=True), negative_phase="exact", preconditioner=name)
    with pytest.raises(ValueError, match="not for visible units with labels"):
        make(nn.ClassificationRBM(6, 4, 3), preconditioner="diagonal")
    frozen = nn.RBM(6, 4)
    frozen.requires_grad_(False)
    with pytest.raises(ValueError, match="at least one parameter that is trained"):
        make_preconditioner(frozen, TrainerConfig(preconditioner="natural"))
    with pytest.raises(ValueError, match="needs a module with centered=True"):
        make(nn.RBM(6, 4), preconditioner="standardize")
    with pytest.raises(ValueError, match="hidden bits or spins, not for 'gaussian'"):
        make(nn.RBM(6, 4, "bernoulli", "gaussian", centered=True), preconditioner="standardize")


def test_a_call_preconditions_the_gradient_of_contrastive_divergence():
    """The same random numbers with and without."""
    results = {}
    for name in ("none", "natural"):
        module = random_module(BITS) if name == "none" else results["module"]
        results["module"] = module
        generator = torch.Generator().manual_seed(3)
        config = TrainerConfig(preconditioner=name, persistent=True, damping=0.1)
        ContrastiveGradient(module, config, generator)(some_bits(20, 3).double())
        results[name] = flat_gradient(module).clone()
    matrix = fisher_by_autograd(results["module"])
    damped = matrix + 0.1 * torch.eye(len(matrix), dtype=torch.float64)
    close(results["natural"], torch.linalg.solve(damped, results["none"]))
