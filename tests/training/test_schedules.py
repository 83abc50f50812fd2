# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Options that change from epoch to epoch, and what the optimiser does with them."""

from dataclasses import replace

import pytest
import torch

from pyro_ebm import nn
from pyro_ebm.training import Trainer, TrainerConfig
from pyro_ebm.training.config_checks import SCHEDULERS
from pyro_ebm.training.gradient import ContrastiveGradient
from pyro_ebm.training.schedules import value_at
from tests.training.machines import assert_same_state, some_bits, state_of

GRADIENT = 0.25


@pytest.fixture
def steps(monkeypatch):
    """Constant gradients; the parameters before every step, and the options that it has."""
    seen = []

    def gradient(this, batch, rows):
        seen.append((state_of(this.module), this.phase.num_steps))
        for parameter in this.module.parameters():
            parameter.grad = torch.full_like(parameter, GRADIENT)

    monkeypatch.setattr(ContrastiveGradient, "__call__", gradient)
    return seen


def fit(module, **options):
    """One step an epoch."""
    config = TrainerConfig(**{"batch_size": 8, "seed": 0, "progress": False, **options})
    trainer = Trainer(module, config)
    trainer.fit(some_bits(8))
    return trainer


def moves(steps, module, name="weight"):
    """How far a parameter moved in every step."""
    path = torch.stack(
        [state[name].flatten()[0] for state, _ in steps] + [module.state_dict()[name].flatten()[0]]
    )
    return (path[1:] - path[:-1]).tolist()


def test_lists_and_functions_count_from_0_and_hold_on(steps):
    rates = [0.1, 0.3, 0.2]
    by_list = nn.RBM(6, 3, seed=0, dtype=torch.float64)
    fit(by_list, num_epochs=5, learning_rate=rates, num_steps=[1, 4])
    expected = [-GRADIENT * rate for rate in (0.1, 0.3, 0.2, 0.2, 0.2)]
    assert moves(steps, by_list) == pytest.approx(expected, rel=1e-9)
    assert [num_steps for _, num_steps in steps] == [1, 4, 4, 4, 4]
    steps.clear()
    by_function = nn.RBM(6, 3, seed=0, dtype=torch.float64)
    fit(by_function, num_epochs=5, learning_rate=lambda epoch: rates[min(epoch, 2)])
    assert_same_state(by_list, by_function)


def test_a_list_times_a_fall_to_zero(steps):
    module = nn.RBM(6, 3, seed=0, dtype=torch.float64)
    fit(module, num_epochs=4, learning_rate=[0.1, 0.2], learning_rate_schedule="linear")
    expected = [0.1, 0.2 * 0.75, 0.2 * 0.5, 0.2 * 0.25]
    assert moves(steps, module) == pytest.approx([-GRADIENT * x for x in expected], rel=1e-9)


def test_momentum_by_epoch(steps):
    """True momentum: the velocity does not hold the learning rate."""
    module = nn.RBM(6, 3, seed=0, dtype=torch.float64)
    fit(module, num_epochs=3, learning_rate=0.1, momentum=[0.2, 0.5, 0.9])
    velocity, expected = 0.0, []
    for momentum in (0.2, 0.5, 0.9):
        velocity = momentum * velocity + GRADIENT
        expected.append(-0.1 * velocity)
    assert moves(steps, module) == pytest.approx(expected, rel=1e-9)


def test_weight_decay_by_epoch_is_of_the_weights_alone(steps):
    module = nn.RBM(6, 3, seed=0, dtype=torch.float64)
    fit(module, num_epochs=2, learning_rate=0.1, weight_decay=[0.0, 2.0])
    before = steps[1][0]["weight"].flatten()[0].item()
    expected = [-0.1 * GRADIENT, -0.1 * (GRADIENT + 2.0 * before)]
    assert moves(steps, module) == pytest.approx(expected, rel=1e-9)
    assert moves(steps, module, "hidden.bias") == pytest.approx([-0.1 * GRADIENT] * 2, rel=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_decoupled_weight_decay(steps, optimizer):
    """W shrinks by rate times decay, whatever the optimiser makes of the gradient."""
    plain, decayed = (nn.RBM(6, 3, seed=0, dtype=torch.float64) for _ in range(2))
    options = {"optimizer": optimizer, "learning_rate": 0.1, "num_epochs": 1}
    fit(plain, **options)
    start = steps[0][0]["weight"]
    fit(decayed, **options, weight_decay=0.5, decoupled_weight_decay=True)
    torch.testing.assert_close(
        decayed.weight.detach(), plain.weight.detach() - 0.1 * 0.5 * start, rtol=0, atol=1e-15
    )
    assert torch.equal(decayed.hidden.bias, plain.hidden.bias)


@pytest.mark.parametrize(
    ("name", "options", "rates"),
    [
        ("StepLR", {"step_size": 2, "gamma": 0.1}, [0.1, 0.1, 0.01, 0.01]),
        ("ExponentialLR", {"gamma": 0.5}, [0.1, 0.05, 0.025, 0.0125]),
        ("MultiStepLR", {"milestones": [1, 3]}, [0.1, 0.01, 0.01, 0.001]),
    ],
)
def test_schedules_of_torch(steps, name, options, rates):
    module = nn.RBM(6, 3, seed=0, dtype=torch.float64)
    fit(
        module,
        num_epochs=4,
        learning_rate=0.1,
        learning_rate_schedule=name,
        schedule_options=options,
    )
    assert moves(steps, module) == pytest.approx([-GRADIENT * x for x in rates], rel=1e-9)


TORCH_SCHEDULES = {
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [1, 3]},
    "ExponentialLR": {"gamma": 0.5},
    "PolynomialLR": {"total_iters": 4},
    "LinearLR": {"total_iters": 4},
    "ConstantLR": {"total_iters": 2},
    "CosineAnnealingLR": {"T_max": 4},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
}


def test_every_schedule_of_torch_is_tried():
    assert set(TORCH_SCHEDULES) == set(SCHEDULERS) - {"ReduceLROnPlateau"}


@pytest.mark.parametrize("name", TORCH_SCHEDULES)
@pytest.mark.parametrize("done", [1, 2, 3])
def test_schedules_of_torch_resume(name, done, tmp_path):
    options = {"learning_rate_schedule": name, "schedule_options": TORCH_SCHEDULES[name], "seed": 0}
    options |= {"num_epochs": 5, "progress": False, "persistent": True, "averaging": 0.5}
    whole, part = nn.RBM(6, 3, seed=0), nn.RBM(6, 3, seed=0)
    data = some_bits(30)
    Trainer(whole, TrainerConfig(**options)).fit(data)
    path = tmp_path / "run.safetensors"
    Trainer(part, TrainerConfig(**{**options, "num_epochs": done, "checkpoint": path})).fit(data)
    resumed = Trainer.from_checkpoint(path, num_epochs=5)
    resumed.fit(data)
    assert_same_state(resumed.module, whole)


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({}, [0.025, 0.0125]),
        ({"learning_rate": 0.01}, [0.01, 0.005]),
        ({"schedule_options": {"gamma": 0.1}}, [0.1, 0.01]),
        ({"learning_rate_schedule": "constant", "schedule_options": {}}, [0.1, 0.1]),
    ],
    ids=str,
)
def test_another_schedule_starts_anew(changes, rates, steps, tmp_path):
    path = tmp_path / "run.safetensors"
    module = nn.RBM(6, 3, seed=0, dtype=torch.float64)
    schedule = {"learning_rate_schedule": "ExponentialLR", "schedule_options": {"gamma": 0.5}}
    fit(module, num_epochs=2, learning_rate=0.1, checkpoint=path, **schedule)
    steps.clear()
    trainer = Trainer.from_checkpoint(path, num_epochs=4, **changes)
    trainer.fit(some_bits(8))
    assert moves(steps, trainer.module) == pytest.approx([-GRADIENT * x for x in rates], rel=1e-9)


def test_another_optimiser_starts_anew(steps, tmp_path):
    path = tmp_path / "run.safetensors"
    module = nn.RBM(6, 3, seed=0, dtype=torch.float64)
    fit(module, num_epochs=2, momentum=0.9, checkpoint=path)
    steps.clear()
    trainer = Trainer.from_checkpoint(path, num_epochs=3, optimizer="adam", momentum=0.0)
    trainer.fit(some_bits(8))
    # The first step of Adam is the rate, whatever the gradient.
    assert moves(steps, trainer.module) == pytest.approx([-0.05], rel=1e-6)


def test_chains_change_with_their_options(tmp_path):
    path = tmp_path / "run.safetensors"
    fit(nn.RBM(6, 3, seed=0), num_epochs=1, persistent=True, num_chains=20, checkpoint=path)
    with pytest.raises(ValueError, match="has 20 persistent chains: num_chains must be that"):
        Trainer.from_checkpoint(path, num_epochs=2, num_chains=50)
    cd = Trainer.from_checkpoint(path, num_epochs=2, persistent=False, chain_start="noise")
    cd.fit(some_bits(8))
    assert cd.chains is None


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("SGD", {"nesterov": True}),
        ("RMSprop", {"alpha": 0.9, "centered": True}),
        ("adagrad", {}),
        ("nadam", {"betas": [0.8, 0.99]}),
        ("Rprop", {}),
        ("adadelta", {"rho": 0.8}),
    ],
)
def test_optimisers_of_torch(steps, optimizer, options):
    """The steps are those of torch's optimiser with the same arguments, by hand."""
    module = nn.RBM(6, 3, seed=0, dtype=torch.float64)
    momentum = {"momentum": 0.5} if optimizer in ("SGD", "RMSprop") else {}
    fit(
        module,
        num_epochs=3,
        learning_rate=0.1,
        optimizer=optimizer,
        optimizer_options=options,
        **momentum,
    )
    by_hand = torch.nn.Parameter(steps[0][0]["weight"].clone())
    kinds = {name.lower(): kind for name, kind in vars(torch.optim).items()}
    arguments = {n: tuple(v) if isinstance(v, list) else v for n, v in options.items()}
    reference = kinds[optimizer.lower()]([by_hand], lr=0.1, **arguments, **momentum)
    for _ in range(3):
        by_hand.grad = torch.full_like(by_hand, GRADIENT)
        reference.step()
    torch.testing.assert_close(module.weight.detach(), by_hand.detach(), rtol=0, atol=1e-15)


def test_schedules_change_at_resume(tmp_path):
    path = tmp_path / "run.safetensors"
    config = TrainerConfig(
        num_epochs=2,
        learning_rate=[0.1, 0.2],
        momentum=[0.5],
        seed=0,
        progress=False,
        checkpoint=path,
    )
    Trainer(nn.RBM(6, 3, seed=0), config).fit(some_bits(30))
    trainer = Trainer.from_checkpoint(path)
    assert trainer.config.learning_rate == (0.1, 0.2) and trainer.config.momentum == 0.5
    changed = Trainer.from_checkpoint(path, num_epochs=4, learning_rate=[0.1, 0.2, 0.05], l1=0.1)
    assert value_at(changed.config.learning_rate, 3) == 0.05 and changed.config.l1 == 0.1
    assert len(changed.fit(some_bits(30))) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": []}, "learning_rate must have at least one value, got an empty list"),
        (
            {"learning_rate": [0.1, 0.0]},
            "learning_rate of epoch 1 must be a finite number > 0, got 0.0",
        ),
        ({"num_steps": [1, 2.5]}, r"num_steps of epoch 1 must be a whole number >= 1, got 2\.5"),
        ({"l1": lambda epoch: -1.0}, "l1 of epoch 0 must be a finite number >= 0"),
        ({"optimizer": "rprop", "weight_decay": 0.1}, "weight_decay is no option of 'rprop'"),
        (
            {"optimizer": "adam", "optimizer_options": {"alpha": 1}},
            "optimizer_options of 'adam' are",
        ),
        (
            {"optimizer": "sgd", "optimizer_options": {"nesterov": True}},
            "optimizer_options of 'sgd'",
        ),
        (
            {"optimizer_options": {"weight_decay": 0.1}},
            "which is the option weight_decay of its own",
        ),
        ({"schedule_options": {"gamma": 0.5}}, "schedule_options are of torch's schedules"),
        (
            {"learning_rate_schedule": "StepLR", "learning_rate": [0.1, 0.2]},
            "learning_rate by epoch and learning_rate_schedule='StepLR' exclude each other",
        ),
        ({"preconditioner": "standardize", "optimizer": "adam"}, "'standardize' has no effect"),
        ({"fast_rate": 0.1}, "fast_rate is an option of persistent chains"),
        ({"chain_start": "noise", "persistent": True}, "chain_start='noise' has no effect"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**options)


def test_impossible_options_of_a_schedule_of_torch():
    with pytest.raises(
        ValueError, match=r"schedule_options \{'steps': 2\} are impossible for 'StepLR'"
    ):
        TrainerConfig(learning_rate_schedule="StepLR", schedule_options={"steps": 2})


def test_a_function_is_kept_as_its_values():
    config = TrainerConfig(num_epochs=3, learning_rate=lambda epoch: 1.0 / (1 + epoch))
    assert config.learning_rate == (1.0, 0.5, 1.0 / 3.0)
    assert replace(config, num_epochs=9).learning_rate == config.learning_rate
