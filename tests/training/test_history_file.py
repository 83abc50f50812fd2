# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The history as a file: complete after every epoch, whatever happens between."""

import csv
import json
import math
from pathlib import Path

import pytest

from pyro_ebm import nn
from pyro_ebm.infer.log_partition import serialization
from pyro_ebm.training import Callback, HistoryFile, Trainer, TrainerConfig
from pyro_ebm.training.gradient import ContrastiveGradient
from tests.training.machines import assert_same_state, interrupt_at, some_bits

DATA = some_bits(60)


def make_trainer(**options) -> Trainer:
    defaults = {"num_epochs": 4, "batch_size": 20, "seed": 5, "progress": False}
    return Trainer(nn.RBM(6, 4, seed=0), TrainerConfig(**{**defaults, **options}))


def read(path: Path) -> list[dict]:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_the_file_is_the_history(suffix, tmp_path):
    path = tmp_path / "runs" / f"history{suffix}"
    trainer = make_trainer(metrics=["weight_norm", "hidden_units"], metrics_every=2)
    trainer.fit(DATA, callbacks=[HistoryFile(path)])
    assert read(path) == trainer.history
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_columns_of_a_table(tmp_path):
    """A column for every metric, in the order of their first epoch, empty where there is none."""
    path = tmp_path / "history.csv"
    options = {"weight_norm": {"every": 2}}
    trainer = make_trainer(num_epochs=2, metrics=["weight_norm"], metrics_options=options)
    trainer.fit(DATA, callbacks=[HistoryFile(path)])
    header, first, second = path.read_text().splitlines()
    assert header == "epoch,seconds,weight_norm"
    assert first == f"1,{trainer.history[0]['seconds']},"
    # All digits, not those of a display.
    assert second.split(",")[2] == repr(trainer.history[1]["weight_norm"])


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_resumed_run_goes_on_without_duplicates(suffix, tmp_path, monkeypatch):
    """The checkpoint is older than the file: epochs that are done again stand there once."""
    path, last = tmp_path / f"history{suffix}", tmp_path / "last.safetensors"
    options = {"checkpoint": last, "checkpoint_every": 2}
    callbacks = [HistoryFile(path)]
    with interrupt_at(10, ContrastiveGradient, monkeypatch):
        make_trainer(**options).fit(DATA, callbacks=callbacks)
    assert [record["epoch"] for record in read(path)] == [1, 2, 3]
    trainer = Trainer.from_checkpoint(last)
    assert trainer.epoch == 2
    trainer.fit(DATA, callbacks=callbacks)
    assert [record["epoch"] for record in read(path)] == [1, 2, 3, 4]
    assert read(path) == trainer.history
    whole = make_trainer()
    whole.fit(DATA)
    assert_same_state(whole.module, trainer.module)


def test_the_file_is_there_after_every_epoch_and_has_what_others_add(tmp_path):
    path = tmp_path / "history.json"
    seen = []

    class Own(Callback):
        def on_epoch_end(self, trainer, record):
            record["own"] = 0.5 * trainer.epoch
            seen.append(len(read(path)) if path.exists() else 0)

    make_trainer().fit(DATA, callbacks=[HistoryFile(path), Own()])
    assert seen == [1, 2, 3, 4]
    # The file of an epoch lacks what comes later; that of the run does not.
    assert [record["own"] for record in read(path)] == [0.5, 1.0, 1.5, 2.0]


def test_numbers_that_are_none(tmp_path):
    class Own(Callback):
        def on_epoch_end(self, trainer, record):
            record |= {"nan": math.nan, "inf": math.inf, "word": "a,b"}

    files = [HistoryFile(tmp_path / "h.json"), HistoryFile(tmp_path / "h.CSV")]
    make_trainer(num_epochs=1).fit(DATA, callbacks=[Own(), *files])
    (record,) = json.loads((tmp_path / "h.json").read_text())
    assert record["nan"] is None and record["inf"] == "Infinity" and record["word"] == "a,b"
    with (tmp_path / "h.CSV").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["nan"], row["inf"], row["word"]) == ("nan", "inf", "a,b")


def test_a_failed_write_leaves_the_last_file(tmp_path, monkeypatch):
    path = tmp_path / "history.csv"
    original, calls = serialization.os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise OSError("disk full")
        original(source, target)

    monkeypatch.setattr(serialization.os, "replace", failing)
    with pytest.raises(OSError, match="disk full"):
        make_trainer().fit(DATA, callbacks=[HistoryFile(path)])
    assert [record["epoch"] for record in read(path)] == [1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"path must end in one of \('.csv', '.json'\), got 'h.txt'"
    ):
        HistoryFile("h.txt")
