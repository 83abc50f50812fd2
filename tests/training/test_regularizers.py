# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Values and gradients of the penalties; what dropout and DropConnect leave of a machine."""

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import BernoulliRBM
from pyro_ebm.training import Trainer, TrainerConfig, negative_phase
from pyro_ebm.training import gradient as gradient_module
from pyro_ebm.training.gradient import ContrastiveGradient
from pyro_ebm.training.regularizers import (
    Sparsity,
    keep_mask,
    restore_max_norm,
    weight_penalty,
)
from tests.training.machines import make_module, random_module, some_bits, state_of

centred_or_not = pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])


def gradients(module: nn.RBM, batch: Tensor, **options) -> dict[str, Tensor]:
    """Gradients of one update, with the same random bits whatever the options."""
    generator = torch.Generator().manual_seed(0)
    ContrastiveGradient(module, TrainerConfig(**options), generator)(batch)
    return {name: p.grad.clone() for name, p in module.named_parameters()}


# --- penalties of the weights -------------------------------------------------------------------


def test_the_weight_penalty_and_its_gradient():
    weight = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    value = weight_penalty(weight, 0.3, 0.2)
    assert value.item() == pytest.approx(0.3 * 3.5 + 0.1 * 5.25)
    (gradient,) = torch.autograd.grad(value, weight)
    torch.testing.assert_close(gradient, 0.3 * weight.sign() + 0.2 * weight)


@pytest.mark.parametrize(("l1", "decay"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_a_step_follows_the_gradient_of_the_penalty(l1, decay):
    """One step of SGD with and without the penalty differ by the rate times its gradient."""
    data = some_bits(8, 3).double()
    results = []
    first = random_module(("bernoulli", "bernoulli"))
    for options in ({}, {"l1": l1, "weight_decay": decay}):
        module = deepcopy(first)
        start = module.weight.detach().clone().requires_grad_()
        config = TrainerConfig(
            num_epochs=1, batch_size=8, learning_rate=0.1, seed=0, progress=False, **options
        )
        Trainer(module, config).fit(data)
        results.append(state_of(module))
    (gradient,) = torch.autograd.grad(weight_penalty(start, l1, decay), start)
    plain, penalised = results
    torch.testing.assert_close(
        penalised["weight"], plain["weight"] - 0.1 * gradient, rtol=0, atol=1e-14
    )
    # Biases are not penalised.
    assert torch.equal(penalised["hidden.bias"], plain["hidden.bias"])


def test_max_norm_is_a_projection():
    weight = torch.tensor([[3.0, 0.3, 0.0], [4.0, 0.4, 0.0]], dtype=torch.float64)
    restore_max_norm(weight, 2.0)
    expected = torch.tensor([[1.2, 0.3, 0.0], [1.6, 0.4, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(weight, expected, rtol=1e-12, atol=0)


def test_max_norm_holds_after_training():
    module = nn.RBM(6, 4, seed=0, weight_scale=3.0)
    config = TrainerConfig(num_epochs=1, seed=0, progress=False, max_norm=0.5, learning_rate=1.0)
    Trainer(module, config).fit(some_bits(50))
    norms = module.weight.norm(dim=0)
    assert norms.max() <= 0.5 * (1 + 1e-6) and norms.max() > 0.49


# --- sparsity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bernoulli", "ising"])
@centred_or_not
def test_without_damping_it_is_the_gradient_of_the_penalty(family, centered):
    """By autograd through the mean hidden state of the batch, for every parameter."""
    module = random_module(("bernoulli", family), centered=centered)
    batch = some_bits(7, 3).double()
    sparse = {"sparsity_target": 0.2, "sparsity_cost": 0.7, "sparsity_damping": 0.0}
    plain, penalised = gradients(module, batch), gradients(module, batch, **sparse)
    dist = module()
    mean = dist.hidden.mean(dist.hidden_field(batch))
    q = (0.5 * (1 + mean) if family == "ising" else mean).mean(0)
    value = (0.2 * (0.2 / q).log() + 0.8 * (0.8 / (1 - q)).log()).sum()
    torch.testing.assert_close(Sparsity(0.2, 0.0, family).penalty(q), value)
    expected = torch.autograd.grad(
        0.7 * value, [*dict(module.named_parameters()).values()], allow_unused=True
    )
    for (name, _), gradient in zip(module.named_parameters(), expected, strict=True):
        gradient = torch.zeros_like(plain[name]) if gradient is None else gradient
        torch.testing.assert_close(penalised[name] - plain[name], gradient, rtol=0, atol=1e-13)


def test_dropout_leaves_the_gradient_of_the_penalty_alone():
    """The penalty is of the whole layer's means, whatever is left out of the likelihood."""
    module = random_module(("bernoulli", "bernoulli"), centered=True)
    batch = some_bits(7, 3).double()
    sparse = {"sparsity_target": 0.2, "sparsity_cost": 0.7, "sparsity_damping": 0.0}
    plain, with_it = gradients(module, batch), gradients(module, batch, **sparse)
    dropped = gradients(module, batch, dropout=0.5)
    both = gradients(module, batch, dropout=0.5, **sparse)
    for name in plain:
        torch.testing.assert_close(
            both[name] - dropped[name], with_it[name] - plain[name], rtol=0, atol=1e-13
        )


def test_the_moving_average_has_no_bias():
    sparsity = Sparsity(0.1, 0.9, "bernoulli")
    assert sparsity.rate is None
    batches = [torch.full((4, 2), rate, dtype=torch.float64) for rate in (0.5, 0.3, 0.3)]
    for batch in batches:
        sparsity.correction(batch, 1.0)
    weights = torch.tensor([0.9**2, 0.9, 1.0], dtype=torch.float64)
    expected = (weights * torch.tensor([0.5, 0.3, 0.3])).sum() / weights.sum()
    torch.testing.assert_close(sparsity.rate, expected.expand(2), rtol=1e-7, atol=0)
    # One batch is its own average from the start.
    first = Sparsity(0.1, 0.9, "bernoulli")
    first.correction(batches[0], 1.0)
    torch.testing.assert_close(first.rate, torch.full((2,), 0.5, dtype=torch.float64))


def test_units_become_as_rare_as_asked_for():
    data = some_bits(400)
    rates = {}
    for cost in (0.0, 3.0):
        module = nn.RBM(6, 8, seed=0)
        config = TrainerConfig(
            num_epochs=60,
            batch_size=50,
            seed=0,
            progress=False,
            sparsity_target=0.1,
            sparsity_cost=cost,
        )
        Trainer(module, config).fit(data)
        dist = module()
        rates[cost] = dist.hidden.mean(dist.hidden_field(data)).mean(0)
    assert rates[0.0].min() > 0.3
    assert rates[3.0].max() < 0.15 and rates[3.0].min() > 0.05


# --- dropout and DropConnect --------------------------------------------------------------------


def test_masks_have_their_rate():
    mask = keep_mask(torch.Size((200, 500)), 0.3, torch.zeros(1), torch.Generator().manual_seed(0))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    # A share of 100,000 draws: six standard errors.
    assert abs(mask.mean().item() - 0.7) < 6 * math.sqrt(0.21 / 1e5)


def thinned_free_energy(module: nn.RBM, v: Tensor, keep: Tensor, connected: Tensor) -> Tensor:
    """-log sum_h exp(-E) where the sum is over units that stay, by enumeration of the hidden bits."""
    dist = module()
    count = module.weight.shape[1]
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=v.dtype)] * count)
    field = (v - dist.visible_offset) @ (module.weight * connected)
    # Of a unit that is left out neither the coupling nor the state counts.
    on = keep.unsqueeze(-2) * bits
    coupling = (field * keep).unsqueeze(-2) * (bits - dist.hidden_offset)
    score = (on * module.hidden.bias + coupling).sum(-1)
    copies = 2.0 ** (count - keep.sum(-1))
    return -(v @ module.visible.bias) - (score.logsumexp(-1) - copies.log())


@centred_or_not
@pytest.mark.parametrize("kind", ["dropout", "dropconnect"])
def test_the_gradient_is_that_of_the_machine_that_is_left(kind, centered, monkeypatch):
    """Given the masks, a difference of free energies of thinned machines, to rounding."""
    module = random_module(("bernoulli", "bernoulli"), centered=centered)
    batch, negative = some_bits(5, 3).double(), some_bits(5, 3, seed=1).double()
    masks = []

    def fixed(shape, drop, like, generator):
        assert drop == 0.4
        generator = torch.Generator().manual_seed(len(masks))
        masks.append(keep_mask(shape, drop, like, generator))
        return masks[-1]

    class Frozen(ContrastiveGradient):
        def _negative_phase(self, dist, sweep, batch, theta, keep):
            return negative, sweep.hidden_theta(negative), keep

    monkeypatch.setattr(gradient_module, "keep_mask", fixed)
    Frozen(module, TrainerConfig(**{kind: 0.4}))(batch)
    assert len(masks) == 1 and 0 < masks[0].mean() < 1
    ones = torch.ones_like(module.weight), torch.ones(5, 3, dtype=torch.float64)
    keep, connected = (masks[0], ones[0]) if kind == "dropout" else (ones[1], masks[0])
    value = (
        thinned_free_energy(module, batch, keep, connected).mean()
        - thinned_free_energy(module, negative, keep, connected).mean()
    )
    parameters = dict(module.named_parameters())
    for name, gradient in zip(
        parameters, torch.autograd.grad(value, [*parameters.values()]), strict=True
    ):
        torch.testing.assert_close(parameters[name].grad, gradient, rtol=0, atol=1e-13)


@centred_or_not
@pytest.mark.parametrize("kind", ["dropout", "dropconnect"])
def test_chains_are_those_of_the_machine_that_is_left(kind, centered, monkeypatch):
    """The same units or weights left out in every row: the law is that of a smaller machine."""
    module = make_module(("bernoulli", "bernoulli"), centered=centered)
    with torch.no_grad():
        module.weight.copy_(2.0 * torch.tensor([[1, -1, 1], [1, 1, -1], [-1, 1, 1]]))
        module.visible.bias.copy_(torch.tensor([-0.5, -1.0, 0.0]))
        if centered:
            module.visible_offset.fill_(0.4)
            module.hidden_offset.fill_(0.6)
    stays = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)

    def fixed(shape, drop, like, generator):
        return stays.expand(shape).clone()

    for part in (gradient_module, negative_phase):
        monkeypatch.setattr(part, "keep_mask", fixed)
    config = TrainerConfig(num_steps=30, persistent=True, num_chains=20_000, **{kind: 0.5})
    gradient = ContrastiveGradient(module, config, torch.Generator().manual_seed(0))
    gradient(some_bits(5, 3).double())
    offset = module().visible_offset, module().hidden_offset
    weight = module.weight * stays
    left = BernoulliRBM(
        weight,
        module.visible.bias - weight @ offset[1],
        module.hidden.bias - offset[0] @ weight,
    )
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    p = (-left.free_energy(states)).softmax(0)
    index = (gradient.chains @ torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)).long()
    share = torch.bincount(index, minlength=8) / 20_000
    z = (share - p).abs() / (p * (1 - p) / 20_000).sqrt()
    assert z.max() < 6
    # The whole machine has another law.
    whole = (-module().free_energy(states)).softmax(0)
    assert ((share - whole).abs() / (whole * (1 - whole) / 20_000).sqrt()).max() > 20


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"negative_hidden": "sample"}], ids=str)
def test_layers_with_other_parameters_than_biases(options):
    with pytest.raises(ValueError, match=f"{min(options)} is no option of 'gaussian' hidden units"):
        Trainer(nn.RBM(6, 2, hidden="gaussian"), TrainerConfig(**options))


def test_sparsity_is_of_bits_and_spins():
    with pytest.raises(ValueError, match="sparsity_cost is an option of hidden bits or spins"):
        Trainer(nn.RBM(6, 2, hidden="relu"), TrainerConfig(sparsity_cost=0.1))
