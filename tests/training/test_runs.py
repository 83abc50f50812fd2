# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Whole runs: what is recorded, what is shown, and that watching changes nothing."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.training import Trainer, TrainerConfig
from tests import brute_force
from tests.training.machines import assert_same_state, random_module, some_bits, to_machine

DATA = some_bits(130)


def run(
    module: nn.RBM | None = None,
    validation: Tensor | None = None,
    data: Tensor = DATA,
    **options,
) -> Trainer:
    options = {"num_epochs": 2, "batch_size": 50, "seed": 3, "progress": False, **options}
    module = nn.RBM(6, 4, seed=0, centered=True) if module is None else module
    trainer = Trainer(module, TrainerConfig(**options))
    trainer.fit(data, validation)
    return trainer


def without_seconds(trainer: Trainer) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in trainer.history]


# --- metrics ------------------------------------------------------------------------------------


def direct_metrics(module: nn.RBM, train: Tensor, held_out: Tensor, chains: Tensor) -> dict:
    """The metrics from the definition of the energy, state by state."""
    machine = to_machine(module)

    def free_energy(v: Tensor) -> float:
        return float(brute_force.free_energy(machine, v.double().numpy()).real.mean())

    v = train.double().numpy()
    fields = (brute_force.hidden_mean(machine, v) - machine.hidden_offset) @ machine.weight.T
    means = np.stack([brute_force.mean(machine.visible, field) for field in fields])
    return {
        "reconstruction_error": ((v - means) ** 2).mean(),
        "free_energy_train": free_energy(train),
        "free_energy_validation": free_energy(held_out),
        "free_energy_gap": free_energy(held_out) - free_energy(train),
        "free_energy_chains": free_energy(chains),
        "weight_norm": (machine.weight**2).sum() ** 0.5,
    }


@pytest.mark.parametrize("pair", [("bernoulli", "relu"), ("gaussian", "ising")], ids="-".join)
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
def test_metrics_are_what_they_say(pair, centered):
    module = random_module(pair, centered=centered)
    with torch.no_grad():
        data = module().sample((60,))
    train, held_out = data[:40], data[40:]
    trainer = Trainer(
        module,
        TrainerConfig(
            num_epochs=1, batch_size=20, persistent=True, metrics_rows=15, seed=0, progress=False
        ),
    )
    (record,) = trainer.fit(train, held_out)
    expected = direct_metrics(module, train[:15], held_out[:15], trainer.chains)
    assert record.pop("epoch") == 1 and record.pop("seconds") >= 0
    assert record.keys() == expected.keys()
    assert record == pytest.approx(expected, rel=1e-7, abs=1e-7)


def test_metrics_of_rates_are_of_bits():
    """With binarize=True the metrics are those of one fixed draw of the rows."""
    rates = torch.full((200, 6), 0.5)
    module = nn.RBM(6, 2, weight_scale=0.0)
    trainer = run(module, data=rates, binarize=True, learning_rate=1e-9, num_epochs=3)
    errors = [record["reconstruction_error"] for record in trainer.history]
    # Bits are 1/2 away from their mean, rates would be 0; the same bits are drawn at every epoch.
    assert errors == pytest.approx([0.25] * 3, rel=1e-5)


def test_which_metrics_there_are():
    always = {"epoch", "reconstruction_error", "free_energy_train", "weight_norm", "seconds"}
    validated = {"free_energy_validation", "free_energy_gap"}
    assert run().history[0].keys() == always
    assert run(persistent=True).history[0].keys() == always | {"free_energy_chains"}
    assert run(None, DATA[:20]).history[0].keys() == always | validated


def test_history_is_a_record_an_epoch():
    trainer = run(num_epochs=3)
    assert [record["epoch"] for record in trainer.history] == [1, 2, 3]
    assert trainer.epoch == 3
    assert json.loads(json.dumps(trainer.history)) == trainer.history
    # A second call has nothing left to do.
    assert trainer.fit(DATA) is trainer.history and len(trainer.history) == 3


def test_zero_epochs_change_nothing():
    module = nn.RBM(6, 4, seed=0)
    assert run(module, num_epochs=0).history == []
    assert_same_state(module, nn.RBM(6, 4, seed=0))


@pytest.mark.parametrize("persistent", [False, True], ids=["cd", "pcd"])
@pytest.mark.parametrize("binarize", [False, True], ids=["bits", "rates"])
@pytest.mark.parametrize(
    "watch",
    [{"validation": DATA[:9]}, {"metrics_rows": 7}, {"validation": DATA, "metrics_rows": 1}],
    ids=["validation", "rows", "both"],
)
def test_watching_changes_nothing(watch, binarize, persistent):
    options = {"persistent": persistent, "binarize": binarize}
    plain, watched = run(**options), run(**options, **watch)
    assert_same_state(plain.module, watched.module)
    if persistent:
        assert torch.equal(plain.chains, watched.chains)
    assert without_seconds(plain) != without_seconds(watched)


# --- random numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("persistent", [False, True], ids=["cd", "pcd"])
@pytest.mark.parametrize("binarize", [False, True], ids=["bits", "rates"])
def test_a_run_depends_on_its_seed_alone(binarize, persistent):
    options = {"persistent": persistent, "binarize": binarize, "num_chains": 30}
    first = run(**options)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = run(**options)
    assert_same_state(first.module, second.module)
    assert without_seconds(first) == without_seconds(second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(run(**options, seed=4).module.weight, first.module.weight)


def test_without_a_seed_one_is_drawn_and_kept():
    torch.manual_seed(1)
    first = run(seed=None)
    other = run(seed=None)
    torch.manual_seed(1)
    again = run(seed=None)
    assert_same_state(first.module, again.module)
    assert first.config.seed == again.config.seed != other.config.seed
    assert not torch.equal(first.module.weight, other.module.weight)
    assert_same_state(run(seed=first.config.seed).module, first.module)


def test_data_are_not_changed():
    data = DATA.clone()
    run(data=data, persistent=True)
    assert torch.equal(data, DATA)


# --- progress -----------------------------------------------------------------------------------


def test_progress_is_shown_only_if_asked_for(capfd):
    quiet = run(num_epochs=2)
    out, err = capfd.readouterr()
    assert out == "" and err == ""
    shown = run(num_epochs=2, progress=True, validation=DATA[:30])
    out, err = capfd.readouterr()
    assert out == ""
    assert "epoch 2/2" in err and "6/6" in err
    assert f"reconstruction_error={shown.history[-1]['reconstruction_error']:.4g}" in err
    assert f"free_energy_gap={shown.history[-1]['free_energy_gap']:.4g}" in err
    assert_same_state(quiet.module, shown.module)
