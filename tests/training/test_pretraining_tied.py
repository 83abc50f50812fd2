# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Machines with tied copies of a layer are the machines that have these copies one after the other."""

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.distributions.units.joined import join_units
from pyro_ebm.distributions.units.tied import TiedCopies
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.nn.tied_rbm import TiedRBM
from pyro_ebm.training import TrainerConfig
from pyro_ebm.training.gradient import ContrastiveGradient
from pyro_ebm.training.pretraining import TiedTrainer
from tests.distributions.families import FAMILIES, random_unit, uniform
from tests.training.machines import LAYERS, some_bits

#: Families of which two layers one after the other are one layer of the family or a mixed one.
EXPLICIT = ["bernoulli", "ising", "categorical", "gaussian", "relu", "multinomial"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def tied_module(visible="bernoulli", hidden="bernoulli", copies=(2, 1), **options) -> TiedRBM:
    """A module with random parameters and offsets."""
    sizes = [LAYERS[visible][0], LAYERS[hidden][0]]
    module = TiedRBM(
        *sizes,
        visible,
        hidden,
        visible_options=LAYERS[visible][1],
        hidden_options=LAYERS[hidden][1],
        visible_copies=copies[0],
        hidden_copies=copies[1],
        dtype=torch.float64,
        **options,
    )
    for name, tensor in module.state_dict().items():
        bound = 0.25 if name == "weight" else 0.8
        tensor.copy_(uniform(tuple(tensor.shape), 0.0 if "precision" in name else -bound, bound))
    return module


def explicit(module: TiedRBM) -> RBM:
    """The machine of all copies one after the other, without offsets."""
    num_v, num_h = module.visible_copies, module.hidden_copies
    form = module().canonical()
    visible, hidden = module.visible(), module.hidden()
    visible = visible.tilt(form.visible_bias - visible.natural_bias)[0]
    hidden = hidden.tilt(form.hidden_bias - hidden.natural_bias)[0]
    return RBM(
        join_units([visible] * num_v),
        join_units([hidden] * num_h),
        module.weight.repeat(num_v, num_h),
    )


def some_states(module: TiedRBM, rows: int = 5) -> Tensor:
    with torch.no_grad():
        unit = module.visible()
        return unit.sample(uniform((rows, unit.size), -1, 1))


# --- the distribution ---------------------------------------------------------------------------


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("family", EXPLICIT)
def test_machine_of_two_visible_copies(family, centered):
    module = tied_module(family, centered=centered)
    whole, v = explicit(module), some_states(module)
    dist, pair = module(), torch.cat([v, v], -1)
    close(dist.hidden.mean(dist.hidden_field(2 * v)), whole.hidden.mean(whole.hidden_field(pair)))
    # Free energies differ by the one constant that offsets make.
    constant = (dist.free_energy(2 * v) - whole.free_energy(pair)).detach()
    close(constant, constant[0].expand(5))
    if not centered:
        close(constant, torch.zeros(5).double())
    # Given h, every copy is what it would be alone.
    h = dist.hidden.sample(dist.hidden_field(2 * v).detach())
    mean = whole.visible.mean(whole.visible_field(h))
    size = module.visible().size
    close(dist.visible.mean(dist.visible_field(h)), mean[:, :size] + mean[:, size:])
    close(mean[:, :size], mean[:, size:])


def test_only_the_input_is_doubled():
    """The paper's conditionals, written out: no bias is doubled."""
    module = tied_module()
    dist, v = module(), some_bits(6, 3).double()
    weight, b, c = module.weight, module.visible.bias, module.hidden.bias
    theta = GibbsSweep(dist).hidden_theta(2 * v)
    close(torch.sigmoid(theta), torch.sigmoid(c + 2 * v @ weight).detach())
    h = some_bits(6, 3, seed=1).double()
    close(dist.visible.mean(dist.visible_field(h)), 2 * torch.sigmoid(b + h @ weight.T))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 3])
def test_sums_of_draws(family, count):
    unit = random_unit(family)
    tied = TiedCopies(unit, count)
    theta = unit.natural_bias + uniform((unit.size,), -1, 1)
    draws = tied.natural_sample(theta.expand(20_000, -1), torch.Generator().manual_seed(1))
    error = draws.std(0) / len(draws) ** 0.5
    mean = tied.natural_mean(theta)
    close(mean, count * unit.natural_mean(theta))
    assert ((draws.mean(0) - mean).abs() < 6 * error + 1e-12).all()
    # The variance of a sum is the derivative of its mean.
    variance = torch.autograd.functional.jacobian(tied.natural_mean, theta).diagonal()
    spread = (draws - mean).square()
    assert ((spread.mean(0) - variance).abs() < 6 * spread.std(0) / len(draws) ** 0.5 + 1e-12).all()


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("copies", [(2, 1), (3, 1), (1, 2), (2, 2)])
def test_untied_has_the_weights_and_biases(copies, centered):
    module = tied_module(copies=copies, centered=centered)
    plain = module.untied()
    got, expected = plain().canonical(), module().canonical()
    close(got.weight, expected.weight)
    close(got.visible_bias, expected.visible_bias)
    close(got.hidden_bias, expected.hidden_bias)
    if centered:
        close(copies[0] * plain.visible_offset, module.visible_offset)
        close(copies[1] * plain.hidden_offset, module.hidden_offset)


def test_module_from_its_configuration():
    module = tied_module("gaussian", "ising", (2, 3), centered=True)
    twin = TiedRBM(**module.config(), dtype=torch.float64)
    twin.load_state_dict(module.state_dict())
    s = 2 * some_states(module)
    close(twin().free_energy(s), module().free_energy(s), 0.0)


# --- the gradient -------------------------------------------------------------------------------


def gradient_of(module: TiedRBM, data: Tensor, states: Tensor) -> dict[str, Tensor]:
    """The trainer's gradient where the chains are in the given states."""
    gradient = ContrastiveGradient(module, TrainerConfig())
    gradient.phase = lambda dist, sweep, batch, theta, keep: (
        states,
        sweep.hidden_theta(states),
        keep,
    )
    gradient(data)
    return {name: p.grad.clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(
    "visible, hidden, copies",
    [
        *[(family, "bernoulli", (2, 1)) for family in ("bernoulli", "ising", "categorical")],
        ("bernoulli", "bernoulli", (3, 1)),
        *[("bernoulli", family, (1, 2)) for family in EXPLICIT],
        ("bernoulli", "ising", (2, 2)),
    ],
)
def test_gradient_is_that_of_the_explicit_machine(visible, hidden, copies, centered):
    """Chains in every state of all copies, with the exact probabilities of these states."""
    module = tied_module(visible, hidden, copies, centered=centered)
    v = some_states(module)
    n, size = copies[0], module.visible().size
    whole = explicit(module)
    states = whole.visible.states(0, whole.visible.num_states)
    log_z = exact_log_partition(whole)
    likelihood = whole.normalize(log_z).log_prob(v.repeat(1, n)).mean()
    parameters = dict(module.named_parameters())
    expected = torch.autograd.grad(-likelihood, list(parameters.values()))
    with torch.no_grad():
        p = (whole.log_prob(states) - log_z).exp()
        close(p.sum(), torch.ones(()).double())
        sums = states.reshape(-1, n, size).sum(1)
        total = {name: torch.zeros_like(x) for name, x in parameters.items()}
        for weight, s in zip(p, sums, strict=True):
            for name, part in gradient_of(module, n * v, s[None]).items():
                total[name] += weight * part
    for name, gradient in zip(parameters, expected, strict=True):
        close(total[name], gradient)
    assert total["weight"].abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gaussian", "relu"])
def test_gradients_of_sums_of_numbers(family):
    """The gradient by a bias is the sum over copies, which only their sum enters."""
    unit = random_unit(family)
    tied = TiedCopies(unit, 2)
    x, y = unit.sample(torch.zeros(4, 2)), unit.sample(torch.zeros(4, 2))
    name = "loc" if family == "gaussian" else "bias"
    expected = unit.mean_parameters_gradient(x)[name] + unit.mean_parameters_gradient(y)[name]
    close(tied.mean_parameters_gradient(x + y)[name], expected)


# --- the trainer --------------------------------------------------------------------------------


@pytest.mark.parametrize("persistent", [False, True])
def test_a_step_is_the_gradient_at_doubled_rows(persistent):
    module, twin = tied_module(), tied_module()
    twin.load_state_dict(module.state_dict())
    options = {"batch_size": 8, "learning_rate": 0.5, "persistent": persistent, "progress": False}
    config = TrainerConfig(num_epochs=1, seed=4, **options)
    data = some_bits(8, 3).double()
    trainer = TiedTrainer(module, config)
    trainer.fit(data)
    generator = torch.Generator().manual_seed(4)
    order = torch.randperm(8, generator=generator)
    ContrastiveGradient(twin, config, generator)(2 * data[order])
    for name, parameter in twin.named_parameters():
        close(module.state_dict()[name], parameter.detach() - 0.5 * parameter.grad, 1e-13)
    if persistent:
        assert trainer.chains.unique().tolist() == [0.0, 1.0, 2.0]


def test_copies_are_the_same_bits_and_offsets_are_at_their_sum():
    module = tied_module(centered=True)
    before = module().canonical()
    config = TrainerConfig(num_epochs=1, binarize=True, learning_rate=1e-9, offset_rate=0.0, seed=0)
    data = torch.rand(50, 3).double()
    trainer = TiedTrainer(module, config)
    trainer.fit(data)
    assert trainer.metric_rows["train"].unique().tolist() == [0.0, 2.0]
    close(module.visible_offset, 2 * data.mean(0))
    after = module().canonical()
    close(after.visible_bias, before.visible_bias, 1e-7)
    close(after.hidden_bias, before.hidden_bias, 1e-7)


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: TiedCopies(random_unit("ising"), 0), ValueError, "count"),
        (lambda: TiedRBM(3, 2, visible_copies=0), ValueError, "visible_copies"),
        (lambda: TiedRBM(3, 2, hidden_copies=1.5), ValueError, "hidden_copies"),
        (
            lambda: TiedRBM(
                3, 2, "gaussian", visible_options={"learn_precision": True}, visible_copies=2
            ),
            ValueError,
            "learn_precision",
        ),
        (
            lambda: TiedRBM(3, 2, visible_copies=2).init_from_data(torch.ones(2, 3), 0.1),
            ValueError,
            "hidden_activation",
        ),
        (lambda: TiedTrainer(None, TrainerConfig()), TypeError, "NoneType"),
        (
            lambda: TiedTrainer(TiedRBM(3, 2, hidden_copies=2), TrainerConfig(sparsity_cost=0.1)),
            ValueError,
            "sparsity_cost",
        ),
    ],
)
def test_refusals(make, error, match):
    with pytest.raises(error, match=match):
        make()
