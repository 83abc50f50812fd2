# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What one step of the trainer does: batches, bits, optimisers, rates, offsets."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.training import Trainer, TrainerConfig
from pyro_ebm.training.gradient import ContrastiveGradient
from tests.training.machines import make_module, random_module, some_bits, state_of

#: Gradients and hidden mean that the fake below returns at every step.
GRADIENT, HIDDEN_MEAN = 0.25, 0.75


class Recorder:
    """Stands in for the gradient: constant gradients, and a record of what came and what was."""

    def __init__(self, monkeypatch, scale: float = GRADIENT) -> None:
        self.batches: list[Tensor] = []
        self.states: list[dict[str, Tensor]] = []
        self.signs = 0

        def gradient(this: ContrastiveGradient, batch: Tensor, rows: Tensor) -> None:
            self.batches.append(batch.clone())
            self.states.append(state_of(this.module))
            for parameter in this.module.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.full_like(parameter, scale)
            this.hidden_mean = torch.full_like(this.module.hidden().mean(), HIDDEN_MEAN).detach()

        monkeypatch.setattr(ContrastiveGradient, "__call__", gradient)


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    return Recorder(monkeypatch)


def fit(module: nn.RBM, data: Tensor, **options) -> Trainer:
    config = TrainerConfig(**{"num_epochs": 1, "seed": 0, "progress": False, **options})
    trainer = Trainer(module, config)
    trainer.fit(data)
    return trainer


def path_of(name: str, recorder: Recorder, module: nn.RBM) -> Tensor:
    """All values that a parameter went through."""
    return torch.stack([s[name] for s in recorder.states] + [module.state_dict()[name]])


# --- the step -----------------------------------------------------------------------------------


@pytest.mark.parametrize("persistent", [False, True], ids=["cd", "pcd"])
def test_a_step_of_sgd_is_the_contrastive_gradient(persistent):
    """The trainer's step is minus the rate times the gradient that the same random bits give."""
    module = random_module(("bernoulli", "bernoulli"))
    twin = make_module(("bernoulli", "bernoulli"))
    twin.load_state_dict(module.state_dict())
    data = some_bits(8, 3).double()
    trainer = fit(module, data, batch_size=8, learning_rate=0.5, persistent=persistent, seed=4)
    generator = torch.Generator().manual_seed(4)
    order = torch.randperm(8, generator=generator)
    ContrastiveGradient(
        twin, TrainerConfig(persistent=persistent, batch_size=len(data)), generator
    )(data[order])
    for name, parameter in twin.named_parameters():
        expected = parameter.detach() - 0.5 * parameter.grad
        torch.testing.assert_close(module.state_dict()[name], expected, rtol=0, atol=1e-14)
        assert parameter.grad.abs().max() > 1e-3
    assert (trainer.chains is not None) == persistent


def expected_sgd(start: Tensor, steps: int, rate: float) -> Tensor:
    return start - rate * GRADIENT * torch.arange(steps + 1.0).double().reshape(-1, 1, 1)


def test_sgd(recorder):
    module = make_module(("bernoulli", "bernoulli"))
    fit(module, some_bits(12, 3), batch_size=4, learning_rate=0.2)
    path = path_of("weight", recorder, module)
    torch.testing.assert_close(path, expected_sgd(path[0], 3, 0.2))


def test_momentum(recorder):
    module = make_module(("bernoulli", "bernoulli"))
    fit(module, some_bits(12, 3), batch_size=3, learning_rate=0.2, momentum=0.9)
    steps = path_of("visible.bias", recorder, module).diff(dim=0)
    velocity = torch.tensor([1, 1.9, 1 + 0.9 * 1.9, 1 + 0.9 * (1 + 0.9 * 1.9)]).double()
    torch.testing.assert_close(steps[:, 0], -0.2 * GRADIENT * velocity)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam(optimizer, recorder):
    """With a constant gradient every step of Adam is the rate itself."""
    module = make_module(("bernoulli", "bernoulli"))
    fit(module, some_bits(12, 3), batch_size=4, learning_rate=0.01, optimizer=optimizer)
    for name in ("weight", "hidden.bias"):
        steps = path_of(name, recorder, module).diff(dim=0)
        torch.testing.assert_close(steps, torch.full_like(steps, -0.01), rtol=1e-6, atol=0)


#: Weights after one step at the rate 0.1 with decay 0.5.
DECAYED: dict[str, Callable[[Tensor], Tensor]] = {
    "sgd": lambda w: w - 0.1 * (GRADIENT + 0.5 * w),
    # Adam divides by the size of the gradient, decay included: only the sign is left at first.
    "adam": lambda w: w - 0.1 * torch.sign(GRADIENT + 0.5 * w),
    "adamw": lambda w: w * (1 - 0.1 * 0.5) - 0.1,
}


@pytest.mark.parametrize("optimizer", DECAYED)
def test_weight_decay_is_of_the_weights_alone(optimizer, recorder):
    module = random_module(("gaussian", "relu"), learn_precision=True)
    with torch.no_grad():
        module.weight.mul_(4.0)
    before, data = state_of(module), torch.zeros(4, 2)
    options = {"optimizer": optimizer, "learning_rate": 0.1}
    fit(module, data, weight_decay=0.5, **options)
    expected = DECAYED[optimizer](before["weight"])
    torch.testing.assert_close(module.weight.detach(), expected, rtol=1e-6, atol=1e-6)
    size = 1.0 if optimizer.startswith("adam") else GRADIENT
    for name in ("visible.loc", "visible.log_precision", "hidden.bias", "hidden.log_precision"):
        torch.testing.assert_close(module.state_dict()[name], before[name] - 0.1 * size)


def test_a_fixed_precision_stays(monkeypatch):
    module = random_module(("gaussian", "relu"), learn_precision=False)
    module.init_from_data(torch.randn(50, 2).double())
    before = state_of(module)
    fit(module, torch.randn(50, 2), weight_decay=0.1, learning_rate=0.2, batch_size=10)
    assert torch.equal(module.visible.log_precision, before["visible.log_precision"])
    assert torch.equal(module.hidden.log_precision, before["hidden.log_precision"])
    assert not torch.equal(module.visible.loc, before["visible.loc"])


# --- the rate -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.6] * 6),
        ("linear", [0.6 * (1 - i / 6) for i in range(6)]),
        ("cosine", [0.3 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]),
    ],
)
def test_the_rate_of_every_step(schedule, rates, recorder):
    """Two epochs of three batches, the last of them partial, on the whole run's way to zero."""
    module = make_module(("bernoulli", "bernoulli"))
    options = {"num_epochs": 2, "batch_size": 4, "learning_rate": 0.6}
    fit(module, some_bits(10, 3), learning_rate_schedule=schedule, **options)
    steps = path_of("weight", recorder, module).diff(dim=0)[:, 0, 0]
    expected = -GRADIENT * torch.tensor(rates, dtype=torch.float64)
    torch.testing.assert_close(steps, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("clip", [None, 1e9, 0.6], ids=str)
def test_the_gradient_is_cut_to_its_largest_norm(clip, recorder):
    """All parameters together: 15 entries of 1/4 have the norm 0.97."""
    module = make_module(("bernoulli", "bernoulli"))
    fit(module, some_bits(4, 3), batch_size=4, learning_rate=1.0, gradient_clip=clip)
    norm = GRADIENT * math.sqrt(15)
    size = GRADIENT * (0.6 / norm if clip == 0.6 else 1.0)
    for name in ("weight", "visible.bias", "hidden.bias"):
        steps = path_of(name, recorder, module).diff(dim=0)
        # torch divides by the norm plus 1e-6.
        torch.testing.assert_close(steps, torch.full_like(steps, -size), rtol=2e-6, atol=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_average_forgets_exponentially(optimizer, recorder):
    """It starts at the parameters after the first step, and offsets are averaged with the biases."""
    module = random_module(("bernoulli", "bernoulli"), centered=True)
    options = {"optimizer": optimizer, "learning_rate": 0.3, "offset_rate": 0.5}
    trainer = fit(module, some_bits(12, 3), batch_size=3, averaging=0.8, **options)
    averaged = trainer.averaged.state_dict()
    assert trainer.averaged is not module and averaged.keys() == module.state_dict().keys()
    for name in averaged:
        values = path_of(name, recorder, module)[1:]
        expected = values[0]
        for value in values[1:]:
            expected = 0.8 * expected + 0.2 * value
        torch.testing.assert_close(averaged[name], expected, rtol=1e-12, atol=1e-12)
    assert not torch.equal(averaged["weight"], module.weight)


def test_averaging_changes_nothing_but_the_average():
    results = []
    for averaging in (0.0, 0.9):
        module = nn.RBM(6, 3, seed=0, centered=True)
        trainer = fit(module, some_bits(30), batch_size=8, averaging=averaging, persistent=True)
        results.append(state_of(module))
        assert (trainer.averaged is module) == (averaging == 0.0)
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


# --- the rows -----------------------------------------------------------------------------------


def test_every_epoch_sees_every_row_once_in_a_new_order(recorder):
    data = torch.arange(10.0).reshape(10, 1).expand(10, 2)
    fit(make_module(("gaussian", "bernoulli")), data, batch_size=4, num_epochs=2)
    assert [len(b) for b in recorder.batches] == [4, 4, 2] * 2
    orders = torch.cat(recorder.batches)[:, 0].reshape(2, 10)
    assert torch.equal(orders.sort().values, data[:, 0].double().expand(2, 10))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], data[:, 0].double())


def test_a_batch_larger_than_the_data(recorder):
    fit(make_module(("bernoulli", "bernoulli")), some_bits(5, 3), batch_size=100)
    assert [len(b) for b in recorder.batches] == [5]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float64], ids=str)
@pytest.mark.parametrize("binarize", [False, True], ids=["bits", "rates"])
def test_data_of_any_type_give_the_same_run(dtype, binarize):
    results = []
    for data in (some_bits(30).float(), some_bits(30).to(dtype)):
        module = nn.RBM(6, 3, seed=0, centered=True)
        fit(module, data, batch_size=8, binarize=binarize)
        results.append(state_of(module))
        assert data.dtype in (torch.float32, dtype)
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


@pytest.mark.parametrize("persistent", [False, True], ids=["cd", "pcd"])
@pytest.mark.parametrize("num_chains", [None, 3, 40])
def test_number_of_chains(persistent, num_chains, monkeypatch):
    sizes = []
    original = ContrastiveGradient._negative_phase

    def recording(self, *args):
        phase = original(self, *args)
        sizes.append(len(phase[0]))
        return phase

    monkeypatch.setattr(ContrastiveGradient, "_negative_phase", recording)
    options = {"persistent": persistent, "num_chains": num_chains}
    trainer = fit(nn.RBM(6, 3, seed=0), some_bits(20), batch_size=8, **options)
    # With CD every row of a batch starts a chain; persistent chains stay as many as they are.
    default = [8, 8, 8] if persistent else [8, 8, 4]
    assert sizes == (default if num_chains is None else [num_chains] * 3)
    assert (None if trainer.chains is None else len(trainer.chains)) == (
        (num_chains or 8) if persistent else None
    )


def test_number_of_steps(monkeypatch):
    from pyro_ebm.distributions import GibbsSweep

    calls = []
    original = GibbsSweep.step_from_theta

    def counting(self, theta):
        calls.append(len(theta))
        return original(self, theta)

    monkeypatch.setattr(GibbsSweep, "step_from_theta", counting)
    fit(nn.RBM(6, 3, seed=0), some_bits(20), batch_size=10, num_steps=3)
    assert calls == [10] * 6


# --- bits from rates ----------------------------------------------------------------------------


def test_binarize_draws_new_bits_of_the_given_rates_at_every_visit(recorder):
    rates = torch.tensor([0.0, 0.03, 0.3, 0.5, 0.9, 1.0]).expand(1000, 6)
    fit(nn.RBM(6, 3, seed=0), rates, binarize=True, num_epochs=5, batch_size=1000)
    bits = torch.stack(recorder.batches)
    assert bits.shape == (5, 1000, 6) and bool(((bits == 0) | (bits == 1)).all())
    assert bits[..., 0].sum() == 0 and bits[..., 5].sum() == 5000
    # Independent visits: the bit of a row at rate 1/2 agrees between epochs half of the time.
    agree = (bits[1:, :, 3] == bits[:-1, :, 3]).float().mean().item()
    assert abs(agree - 0.5) < 6 * math.sqrt(0.25 / 4000)
    for i, rate in enumerate(rates[0].tolist()):
        error = 6 * math.sqrt(rate * (1 - rate) / 5000)
        assert abs(bits[..., i].mean().item() - rate) <= error


def test_binarize_draws_spins_where_units_are_spins(recorder):
    """P(+1) is the given rate: the same random numbers give the same states as for bits."""
    rates = torch.tensor([0.0, 0.1, 0.5, 1.0]).expand(500, 4)
    for family in ("bernoulli", "ising"):
        fit(nn.RBM(4, 3, family, seed=0), rates, binarize=True, batch_size=500)
    bits, spins = recorder.batches
    assert torch.equal(spins, 2 * bits - 1)
    assert abs(bits[:, 1].mean().item() - 0.1) < 6 * math.sqrt(0.09 / 500)


def test_noise_is_new_at_every_visit(recorder):
    data = torch.linspace(-2, 2, 2000).unsqueeze(-1).expand(2000, 2)
    module = make_module(("gaussian", "bernoulli"))
    fit(module, data, noise_std=0.5, num_epochs=3, batch_size=2000)
    order = torch.stack(recorder.batches)
    # Rows of one visit are known by their rank only: the noise is seen in sums, free of the order.
    assert len({round(b.sum().item(), 9) for b in recorder.batches}) == 3
    variance = order.var((0, 1), correction=0) - data[:, 0].var(correction=0)
    error = math.sqrt(2 / 6000) * 0.25 + 2 * 0.5 * 1.2 / math.sqrt(6000)
    assert ((variance - 0.25).abs() < 6 * error).all()
    # Noise of the two columns is independent.
    difference = order[..., 0] - order[..., 1]
    assert abs(difference.std().item() - 0.5 * math.sqrt(2)) < 6 * 0.5 * math.sqrt(2 / (2 * 6000))


def test_noise_std_zero_is_no_noise(recorder):
    data = torch.linspace(-2, 2, 30).reshape(15, 2)
    fit(make_module(("gaussian", "bernoulli")), data, noise_std=0.0)
    assert torch.equal(recorder.batches[0].sort(0).values, data.double())


def test_without_binarize_the_states_are_the_data(recorder):
    data = some_bits(50)
    fit(nn.RBM(6, 3, seed=0), data, batch_size=50)
    assert torch.equal(recorder.batches[0].sum(0), data.sum(0))


# --- centring -----------------------------------------------------------------------------------


def test_the_visible_offset_becomes_the_mean_and_the_law_stays(monkeypatch):
    recorder = Recorder(monkeypatch, scale=0.0)
    module = random_module(("bernoulli", "gaussian"), centered=True)
    v = torch.tensor([[0, 0, 0], [1, 0, 1], [1, 1, 1]]).double()
    before, hidden_offset = module().free_energy(v).detach(), module.hidden_offset.clone()
    data = some_bits(40, 3)
    fit(module, data, batch_size=20, offset_rate=0.1)
    torch.testing.assert_close(module.visible_offset, data.double().mean(0))
    # Two steps of a tenth of the way to the hidden mean.
    expected = 0.9**2 * hidden_offset + (1 - 0.9**2) * HIDDEN_MEAN
    torch.testing.assert_close(module.hidden_offset, expected)
    after = module().free_energy(v).detach()
    torch.testing.assert_close(after - after[0], before - before[0], rtol=0, atol=1e-10)
    assert len(recorder.batches) == 2


def test_offset_rate_zero_keeps_the_hidden_offset(recorder):
    module = random_module(("bernoulli", "bernoulli"), centered=True)
    before = module.hidden_offset.clone()
    fit(module, some_bits(40, 3), offset_rate=0.0)
    assert torch.equal(module.hidden_offset, before)


def test_spins_are_centred_at_their_mean():
    """With rates of 0.1 that spins are drawn from, the mean spin is -0.8."""
    module = nn.RBM(6, 3, visible="ising", centered=True, seed=0, dtype=torch.float64)
    fit(module, torch.full((20, 6), 0.1, dtype=torch.float64), binarize=True)
    torch.testing.assert_close(module.visible_offset, torch.full((6,), -0.8, dtype=torch.float64))


@pytest.mark.parametrize("missing", ["marginal", "absent"])
def test_spins_of_incomplete_rows_are_centred_at_their_mean(missing):
    """Where a unit is absent its state is zero, and not the spin of a rate of zero."""
    module = nn.RBM(6, 3, visible="ising", centered=True, seed=0, dtype=torch.float64)
    observed = torch.ones(20, 6, dtype=torch.bool)
    observed[:5, 0] = False
    config = TrainerConfig(num_epochs=1, seed=0, progress=False, binarize=True, missing=missing)
    rates = torch.full((20, 6), 0.1, dtype=torch.float64)
    Trainer(module, config).fit(rates, observed=observed)
    expected = torch.full((6,), -0.8, dtype=torch.float64)
    if missing == "absent":
        expected[0] *= 15 / 20
    torch.testing.assert_close(module.visible_offset, expected)
