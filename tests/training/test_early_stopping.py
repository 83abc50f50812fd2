# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The best epoch by a metric: when a run ends, what it keeps, and that resuming changes none of it."""

from pathlib import Path

import pytest
import torch

import pyro_ebm
from pyro_ebm import nn
from pyro_ebm.training import Callback, Trainer, TrainerConfig
from pyro_ebm.training.gradient import ContrastiveGradient
from pyro_ebm.training.monitor import Best, best_epoch
from pyro_ebm.training.plateau import ReduceLROnPlateau
from tests.training.machines import assert_same_state, interrupt_at, some_bits

NAN, INF = float("nan"), float("inf")
DATA = some_bits(60)
VALIDATION = some_bits(30, seed=1)


class Losses(Callback):
    """Adds given numbers to the records, by epoch."""

    def __init__(self, values, key: str = "loss") -> None:
        self.values, self.key = values, key

    def on_epoch_end(self, trainer, record):
        record[self.key] = self.values[trainer.epoch - 1]


def make_trainer(**options) -> Trainer:
    defaults = {"num_epochs": 8, "batch_size": 20, "seed": 5, "progress": False}
    return Trainer(nn.RBM(6, 4, seed=0, centered=True), TrainerConfig(**{**defaults, **options}))


# --- which epoch is the best --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options", "best"),
    [
        ([], {}, Best()),
        ([3.0, 1.0, 2.0, 1.0], {}, Best(2, 1.0, 2)),
        ([3.0, 1.0, 2.0, 4.0], {"mode": "max"}, Best(4, 4.0, 0)),
        ([3.0, 2.5, 2.0, 1.5], {"min_delta": 0.6}, Best(3, 2.0, 1)),
        ([-3.0, -2.5, -2.0], {"mode": "max", "min_delta": 0.6}, Best(3, -2.0, 0)),
        ([NAN, NAN], {}, Best(None, None, 2)),
        ([NAN, 1.0, NAN, 0.0, NAN], {}, Best(4, 0.0, 1)),
        ([-INF, 1.0, INF], {}, Best(2, 1.0, 1)),
        ([INF, 1, 2], {"mode": "max"}, Best(3, 2.0, 0)),
        ([2.0, None, 1.0, None], {}, Best(3, 1.0, 0)),
    ],
    ids=str,
)
def test_best_epoch(values, options, best):
    """None stands for a record without the metric."""
    history = [
        {"epoch": i + 1} | ({} if value is None else {"loss": value})
        for i, value in enumerate(values)
    ]
    assert best_epoch(history, "loss", **options) == best


def test_what_is_monitored_is_a_number():
    with pytest.raises(ValueError, match="monitor='loss' is no number in epoch 1: 'low'"):
        best_epoch([{"epoch": 1, "loss": "low"}], "loss")


# --- the end of a run ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options", "epochs", "best"),
    [
        ([5, 4, 4, 4, 1, 1, 1, 1], {"patience": 2}, 4, 2),
        ([5, 4, 4, 3, 4, 4, 4, 1], {"patience": 3}, 7, 4),
        ([5, 4, 4, 4, 1, 1, 1, 1], {"patience": 4}, 8, 5),
        ([5, 4, 4, 4, 4, 4, 4, 4], {}, 8, 2),
        ([1, 2, 3, 3, 3, 4, 4, 4], {"patience": 2, "monitor_mode": "max"}, 5, 3),
        ([5, 4, 3, 2, 1, 1, 1, 1], {"patience": 2, "min_delta": 1.5}, 7, 5),
        ([NAN] * 8, {"patience": 3}, 3, None),
    ],
    ids=str,
)
def test_a_run_ends_when_nothing_improves(values, options, epochs, best, tmp_path):
    path = tmp_path / "last.safetensors"
    trainer = make_trainer(monitor="loss", checkpoint=path, checkpoint_every=100, **options)
    trainer.fit(DATA, callbacks=[Losses(values)])
    assert trainer.epoch == epochs == len(trainer.history)
    assert trainer.best_epoch == best
    # The last epoch of a run that was stopped writes its checkpoint; resumed, it stays where it is.
    again = Trainer.from_checkpoint(path)
    again.fit(DATA, callbacks=[Losses(values)])
    assert again.epoch == epochs and again.best_epoch == best
    # With more patience it goes on.
    more = Trainer.from_checkpoint(path, patience=100)
    more.fit(DATA, callbacks=[Losses(values)])
    assert more.epoch == 8


def test_patience_counts_values_and_not_epochs():
    """A metric of every second epoch that never improves after its first value."""
    options = {"metrics": ["weight_norm"], "metrics_every": 2, "monitor": "weight_norm"}
    trainer = make_trainer(learning_rate=1.0, patience=2, **options)
    trainer.fit(DATA)
    norms = [r["weight_norm"] for r in trainer.history if "weight_norm" in r]
    assert norms[0] == min(norms) and len(norms) == 3
    assert trainer.epoch == 6 and trainer.best_epoch == 2


def test_without_a_monitor_there_is_no_best_epoch():
    trainer = make_trainer(num_epochs=1)
    trainer.fit(DATA)
    assert trainer.best_epoch is None


# --- best and last checkpoints ------------------------------------------------------------------


def test_the_best_checkpoint_is_that_of_the_best_epoch(tmp_path):
    best, last = tmp_path / "new" / "best.safetensors", tmp_path / "last.safetensors"
    losses = [5.0, 3.0, 4.0, NAN, 2.0, 6.0, 2.0, 7.0]
    options = {"monitor": "loss", "best_checkpoint": best, "checkpoint": last}
    trainer = make_trainer(**options)
    trainer.fit(DATA, callbacks=[Losses(losses)])
    assert trainer.best_epoch == 5
    reference = make_trainer(num_epochs=5)
    reference.fit(DATA)
    assert_same_state(pyro_ebm.load(best), reference.module)
    assert_same_state(pyro_ebm.load(last), trainer.module)
    kept = Trainer.from_checkpoint(best)
    assert kept.epoch == kept.best_epoch == 5
    assert sorted(p.name for p in best.parent.iterdir()) == ["best.safetensors"]


def test_the_best_checkpoint_goes_on_after_a_resume(tmp_path):
    best, last = tmp_path / "best.safetensors", tmp_path / "last.safetensors"
    losses = Losses([5.0, 3.0, 4.0, 4.0, 3.5, 2.0, 6.0, 7.0])
    options = {"monitor": "loss", "best_checkpoint": best, "checkpoint": last}
    make_trainer(num_epochs=4, **options).fit(DATA, callbacks=[losses])
    before = best.read_bytes()
    resumed = Trainer.from_checkpoint(last, num_epochs=5)
    resumed.fit(DATA, callbacks=[losses])
    # 3.5 is better than what the resumed part has seen, but not than the history.
    assert best.read_bytes() == before and resumed.best_epoch == 2
    resumed = Trainer.from_checkpoint(last, num_epochs=8)
    resumed.fit(DATA, callbacks=[losses])
    assert resumed.best_epoch == Trainer.from_checkpoint(best).epoch == 6


def test_a_killed_run_resumes_as_if_it_never_was(tmp_path, monkeypatch):
    """With patience, a plateau schedule, the best checkpoint and metrics of updates, killed in the
    middle of an epoch."""
    options = {
        "num_epochs": 30,
        "monitor": "free_energy_gap",
        "patience": 3,
        "metrics": ["free_energy_gap", "gradient_norm", "update_ratio", "mmd"],
        "persistent": True,
        "learning_rate": 1.0,
        "learning_rate_schedule": "ReduceLROnPlateau",
        "schedule_options": {"patience": 0, "factor": 0.5},
    }
    paths = {
        name: {
            "checkpoint": tmp_path / name / "last.safetensors",
            "best_checkpoint": tmp_path / name / "best.safetensors",
        }
        for name in ("whole", "killed")
    }
    whole = make_trainer(**options, **paths["whole"])
    whole.fit(DATA, VALIDATION)
    assert 4 < whole.epoch < 30
    for step in (4, 10):
        trainer = make_trainer(**options, **paths["killed"])
        with interrupt_at(step, ContrastiveGradient, monkeypatch):
            trainer.fit(DATA, VALIDATION)
        resumed = Trainer.from_checkpoint(paths["killed"]["checkpoint"])
        resumed.fit(DATA, VALIDATION)
        assert resumed.epoch == whole.epoch and resumed.best_epoch == whole.best_epoch
        assert_same_state(resumed.module, whole.module)
        assert torch.equal(resumed.chains, whole.chains)
        for ours, theirs in zip(resumed.history, whole.history, strict=True):
            assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
        best = [pyro_ebm.load(paths[name]["best_checkpoint"]) for name in paths]
        assert_same_state(*best)


# --- the learning rate --------------------------------------------------------------------------


def rate_of(trainer: Trainer) -> float:
    return trainer._optimization.optimizer.param_groups[0]["lr"]


class Rates(Callback):
    """The learning rate that every epoch had."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_epoch_end(self, trainer, record):
        self.seen.append(rate_of(trainer))


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_learning_rate_falls_on_a_plateau(mode):
    """Negative values: a relative threshold would call -1.9999 better than -2."""
    losses = [-1.0, -2.0, -1.9999, -1.9999, -3.0, -3.0, -3.0, -3.0]
    losses = losses if mode == "min" else [-loss for loss in losses]
    rates = Rates()
    trainer = make_trainer(
        monitor="loss",
        monitor_mode=mode,
        learning_rate=0.4,
        learning_rate_schedule="ReduceLROnPlateau",
        schedule_options={"patience": 1, "factor": 0.5},
    )
    trainer.fit(DATA, callbacks=[Losses(losses), rates])
    # Two values after the best one halve it: after epochs 4 and 7.
    assert rates.seen == [0.4] * 4 + [0.2] * 3 + [0.1]


def test_a_plateau_survives_a_resume(tmp_path):
    path = tmp_path / "last.safetensors"
    losses = Losses([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    options = {
        "monitor": "loss",
        "learning_rate_schedule": "ReduceLROnPlateau",
        "schedule_options": {"patience": 2},
    }
    whole = make_trainer(**options)
    whole.fit(DATA, callbacks=[losses])
    make_trainer(num_epochs=3, checkpoint=path, **options).fit(DATA, callbacks=[losses])
    resumed = Trainer.from_checkpoint(path, num_epochs=8)
    resumed.fit(DATA, callbacks=[losses])
    assert rate_of(resumed) == rate_of(whole) == pytest.approx(0.05 * 0.01)
    assert_same_state(resumed.module, whole.module)


def test_a_plateau_has_the_mode_of_the_monitor():
    options = {"monitor": "weight_norm", "learning_rate_schedule": "ReduceLROnPlateau"}
    for name in ("mode", "threshold_mode", "steps"):
        with pytest.raises(ValueError, match=f"schedule_options .* are impossible for .*{name}"):
            make_trainer(**options, schedule_options={name: "max"})
    scheduler = make_trainer(**options)._optimization.scheduler
    assert isinstance(scheduler, ReduceLROnPlateau) and scheduler.threshold_mode == "abs"


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 3}, "patience is an option of the metric that monitor names"),
        ({"min_delta": 0.1}, "min_delta is an option of the metric that monitor names"),
        ({"monitor_mode": "max"}, "monitor_mode is an option of the metric that monitor names"),
        ({"best_checkpoint": "x"}, "best_checkpoint is written where the metric that monitor"),
        (
            {"learning_rate_schedule": "ReduceLROnPlateau"},
            "learning_rate_schedule='ReduceLROnPlateau' needs monitor",
        ),
        (
            {"monitor": "dead_units", "metrics": ["weight_norm"]},
            r"monitor='dead_units' needs one of \['hidden_units'\] in metrics",
        ),
        ({"monitor": "free_energy_gap_std_error"}, r"needs one of \['free_energy_gap'\] in"),
        (
            {"monitor": "weight_norm", "checkpoint": "x", "best_checkpoint": Path("x")},
            "best_checkpoint and checkpoint must be different files",
        ),
    ],
    ids=str,
)
def test_options_without_effect(options, message):
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**options)


def test_a_metric_that_nothing_gives():
    trainer = make_trainer(monitor="loss")
    with pytest.raises(ValueError, match=r"monitor='loss' is no metric, .* 'weight_norm'\]"):
        trainer.fit(DATA)
    with pytest.raises(ValueError, match="monitor='loss' is not in the record of epoch 1, which"):
        trainer.fit(DATA, callbacks=[Losses([1.0], "lost")])
    with pytest.raises(ValueError, match="monitor='free_energy_gap' needs validation rows"):
        make_trainer(monitor="free_energy_gap").fit(DATA)


def test_a_partial_fit_looks_at_the_metric_too(tmp_path):
    """Parts of data that come one by one keep the best state; they don't end."""
    best = tmp_path / "best.safetensors"
    options = {"monitor": "weight_norm", "monitor_mode": "max", "patience": 1}
    trainer = make_trainer(best_checkpoint=best, learning_rate=1, **options)
    norms = [trainer.partial_fit(DATA)["weight_norm"] for _ in range(3)]
    assert norms[0] == max(norms)
    assert Trainer.from_checkpoint(best).epoch == trainer.best_epoch == 1
