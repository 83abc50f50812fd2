# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Runs that are killed, stopped or fed in parts, and objects that look at them."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_ebm
from pyro_ebm import nn
from pyro_ebm.training import Callback, Trainer, TrainerConfig
from tests.training.machines import assert_same_state, some_bits

#: Everything that has a state of its own: chains, fast weights, sparsity, average, schedule, momentum.
PROGRAM = """
import sys
from pathlib import Path
import torch
import pyro_ebm
from pyro_ebm import nn
from pyro_ebm.training import Trainer, TrainerConfig

path = Path(sys.argv[1])
data = torch.bernoulli(torch.full((2000, 12), 0.3), generator=torch.Generator().manual_seed(0))
if path.exists():
    trainer = Trainer.from_checkpoint(path)
else:
    config = TrainerConfig(
        num_epochs=20, batch_size=10, persistent=True, num_chains=10, momentum=[0.5, 0.9], averaging=0.99,
        learning_rate=0.01, learning_rate_schedule="cosine", sparsity_cost=0.1, fast_rate=0.01,
        dropout=0.2, preconditioner="standardize", seed=0, progress=False, checkpoint=path,
    )
    trainer = Trainer(nn.RBM(12, 8, centered=True, seed=0), config)
trainer.fit(data)
pyro_ebm.save(trainer.module, path.with_name("model.safetensors"))
pyro_ebm.save(trainer.averaged, path.with_name("average.safetensors"))
"""


def _start(path: Path) -> "subprocess.Popen[bytes]":
    path.parent.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)])


def test_a_killed_run_ends_in_the_same_bytes(tmp_path):
    """SIGKILL at random moments while epochs are done and files are written; then it goes on."""
    whole, killed = tmp_path / "whole" / "run.safetensors", tmp_path / "killed" / "run.safetensors"
    assert _start(whole).wait() == 0
    moments = random.Random(0)
    kills = 0
    for _ in range(3):
        process = _start(killed)
        before = killed.stat().st_mtime_ns if killed.exists() else 0
        # Wait for a first epoch of this process, so that the run gets on.
        while process.poll() is None and not (
            killed.exists() and killed.stat().st_mtime_ns > before
        ):
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.2))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        # Whatever the moment was, the file is whole.
        assert 1 <= Trainer.from_checkpoint(killed).epoch <= 20
    assert kills >= 1
    assert _start(killed).wait() == 0
    for name in ("model.safetensors", "average.safetensors"):
        assert (killed.parent / name).read_bytes() == (whole.parent / name).read_bytes()
    assert pyro_ebm.load(whole.parent / "model.safetensors").weight.abs().max() > 0.05


class Recorder(Callback):
    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[Any] = []
        self.stop_at = stop_at

    def on_fit_start(self, trainer):
        self.calls.append(("start", trainer.epoch))

    def on_epoch_end(self, trainer, record):
        assert record is trainer.history[-1]
        record["seen"] = trainer.epoch
        self.calls.append(record["epoch"])
        if trainer.epoch == self.stop_at:
            trainer.stop()

    def on_fit_end(self, trainer):
        self.calls.append(("end", trainer.epoch))


def config(**options: Any) -> TrainerConfig:
    return TrainerConfig(
        **{"num_epochs": 4, "seed": 0, "progress": False, "persistent": True, **options}
    )


def test_callbacks_are_called_and_may_add_to_the_record(tmp_path):
    path = tmp_path / "run.safetensors"
    recorder = Recorder()
    trainer = Trainer(nn.RBM(6, 3, seed=0), config(checkpoint=path))
    trainer.fit(some_bits(20), callbacks=[recorder])
    assert recorder.calls == [("start", 0), 1, 2, 3, 4, ("end", 4)]
    assert [record["seen"] for record in Trainer.from_checkpoint(path).history] == [1, 2, 3, 4]
    plain = Trainer(nn.RBM(6, 3, seed=0), config())
    plain.fit(some_bits(20))
    assert_same_state(plain.module, trainer.module)


def test_a_stopped_run_goes_on(tmp_path):
    path = tmp_path / "run.safetensors"
    trainer = Trainer(nn.RBM(6, 3, seed=0), config(checkpoint=path, checkpoint_every=100))
    assert len(trainer.fit(some_bits(20), callbacks=[Recorder(stop_at=2)])) == 2
    # The checkpoint of the last epoch is written when it is stopped too.
    resumed = Trainer.from_checkpoint(path)
    assert resumed.epoch == 2
    assert len(resumed.fit(some_bits(20))) == 4
    # And so does the trainer itself.
    assert len(trainer.fit(some_bits(20))) == 4
    assert_same_state(resumed.module, trainer.module)


def test_parts_of_the_data():
    """One pass a call, whatever num_epochs is; the whole data in every call is a fit."""
    data = some_bits(40)
    whole, parts = nn.RBM(6, 3, seed=0), nn.RBM(6, 3, seed=0)
    Trainer(whole, config()).fit(data)
    trainer = Trainer(parts, config())
    records = [trainer.partial_fit(data) for _ in range(4)]
    assert_same_state(whole, parts)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4] and trainer.history == records
    before = parts.weight.detach().clone()
    chains = trainer.chains
    assert trainer.partial_fit(data[:7])["epoch"] == 5
    assert not torch.equal(parts.weight, before)
    assert trainer.chains.shape == chains.shape and not torch.equal(trainer.chains, chains)


def test_parts_of_the_data_are_checked():
    trainer = Trainer(nn.RBM(6, 3, seed=0), config())
    with pytest.raises(ValueError, match=r"data must have shape \(rows >= 1, 6\)"):
        trainer.partial_fit(torch.zeros(3, 5))
    assert trainer.epoch == 0 and trainer.history == []
