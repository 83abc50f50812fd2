# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A run that is interrupted and resumed ends where one that was never interrupted ends."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import pyro_ebm
from pyro_ebm import nn
from pyro_ebm.nn import ModelFileError
from pyro_ebm.training import Trainer, TrainerConfig, TrainingDivergedError
from pyro_ebm.training.gradient import ContrastiveGradient
from tests.training.machines import assert_same_state, interrupt_at, random_module, some_bits

NUM_EPOCHS = 4
DATA = some_bits(110)
VALIDATION = some_bits(30, seed=1)
BATCHES = 3

METHODS = {"cd": {}, "pcd": {"persistent": True}, "cd-chains": {"num_chains": 17}}
OPTIMIZERS = {
    "sgd": {"learning_rate": 0.1},
    "momentum": {"learning_rate": 0.05, "momentum": 0.9},
    "adam": {"learning_rate": 0.01, "optimizer": "adam"},
    "adamw": {"learning_rate": 0.01, "optimizer": "adamw", "weight_decay": 0.1},
    "averaged": {"learning_rate": 0.1, "averaging": 0.8, "gradient_clip": 0.3},
}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "run" / "checkpoint.safetensors"


def make_trainer(path: Path | None, module: nn.RBM | None = None, **options) -> Trainer:
    config = {
        "num_epochs": NUM_EPOCHS,
        "batch_size": 40,
        "learning_rate_schedule": "linear",
        "seed": 5,
        "checkpoint": path,
        "progress": False,
    }
    module = nn.RBM(6, 4, seed=0, centered=True) if module is None else module
    return Trainer(module, TrainerConfig(**{**config, **options}))


def fit_until(step: int, trainer: Trainer, data, validation, monkeypatch) -> None:
    """Run until Ctrl-C arrives at the given step."""
    with interrupt_at(step, ContrastiveGradient, monkeypatch):
        trainer.fit(data, validation)


def assert_same_run(resumed: Trainer, whole: Trainer) -> None:
    assert_same_state(resumed.module, whole.module)
    assert_same_state(resumed.averaged, whole.averaged)
    assert resumed.epoch == whole.epoch == NUM_EPOCHS
    if whole.chains is None:
        assert resumed.chains is None
    else:
        assert torch.equal(resumed.chains, whole.chains)
    for ours, theirs in zip(resumed.history, whole.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("binarize", [False, True], ids=["bits", "rates"])
@pytest.mark.parametrize("extra_steps", [0, 2], ids=["between-epochs", "mid-epoch"])
def test_resumed_equals_uninterrupted(method, optimizer, binarize, extra_steps, path, monkeypatch):
    options = {**METHODS[method], **OPTIMIZERS[optimizer], "binarize": binarize}
    data = DATA * 0.8 + 0.1 if binarize else DATA
    whole = make_trainer(None, **options)
    whole.fit(data, VALIDATION)
    trainer = make_trainer(path, **options)
    fit_until(2 * BATCHES + extra_steps, trainer, data, VALIDATION, monkeypatch)
    # Whatever happened between, the global generator has no part in it.
    torch.manual_seed(123)
    resumed = Trainer.from_checkpoint(path)
    assert resumed.epoch == 2 and len(resumed.history) == 2
    assert resumed.config.to_dict() == trainer.config.to_dict()
    resumed.fit(data, VALIDATION)
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("family", ["categorical", "multinomial", "gaussian", "relu", "ising"])
def test_resumed_equals_uninterrupted_for_other_families(family, path, monkeypatch):
    """In float64, with learnt precisions."""
    options = {"persistent": True, "momentum": 0.5, "learning_rate": 0.02}

    def module() -> nn.RBM:
        torch.manual_seed(0)
        return random_module((family, "bernoulli"), centered=True, learn_precision=True)

    data = module()().sample((110,))
    whole = make_trainer(None, module(), **options)
    whole.fit(data)
    fit_until(2 * BATCHES, make_trainer(path, module(), **options), data, None, monkeypatch)
    resumed = Trainer.from_checkpoint(path)
    resumed.fit(data)
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("lost", ["optimizer.0.momentum_buffer", "training.chains"])
def test_every_part_of_the_state_matters(lost, path, monkeypatch):
    """Without its momentum or its chains a resumed run ends elsewhere: the tests above see it."""
    options = {"persistent": True, "momentum": 0.9}
    whole = make_trainer(None, **options)
    whole.fit(DATA)
    fit_until(2 * BATCHES, make_trainer(path, **options), DATA, None, monkeypatch)
    header, tensors = contents(path)
    del tensors[lost]
    safetensors.torch.save_file(tensors, path, metadata=header)
    resumed = Trainer.from_checkpoint(path)
    resumed.fit(DATA)
    assert not torch.equal(resumed.module.weight, whole.module.weight)


def test_the_optimizer_and_the_generator_come_back(path):
    trainer = make_trainer(path, momentum=0.9, persistent=True, num_epochs=2)
    trainer.fit(DATA)
    again = Trainer.from_checkpoint(path)
    assert torch.equal(again._generator.get_state(), trainer._generator.get_state())
    ours, theirs = (t._optimization.optimizer.state_dict() for t in (again, trainer))
    assert ours["param_groups"][0]["momentum"] == 0.9
    assert ours["state"].keys() == theirs["state"].keys() == {0, 1, 2}
    for index, state in theirs["state"].items():
        assert torch.equal(ours["state"][index]["momentum_buffer"], state["momentum_buffer"])


def test_options_can_change(path):
    make_trainer(path, num_epochs=2).fit(DATA)
    trainer = Trainer.from_checkpoint(path, num_epochs=3, learning_rate=0.01, device="cpu")
    assert trainer.config.num_epochs == 3 and trainer.config.learning_rate == 0.01
    assert len(trainer.fit(DATA)) == 3
    # The last epoch was written over the old file, whose path is part of the configuration.
    assert Trainer.from_checkpoint(path).epoch == 3
    with pytest.raises(ValueError, match="num_epochs must be"):
        Trainer.from_checkpoint(path, num_epochs=-1)
    with pytest.raises(TypeError, match="epochs"):
        Trainer.from_checkpoint(path, epochs=3)


def test_nothing_left_to_do(path):
    trainer = make_trainer(path, num_epochs=2)
    trainer.fit(DATA)
    again = Trainer.from_checkpoint(path)
    assert again.fit(DATA) == trainer.history
    assert_same_state(again.module, trainer.module)


@pytest.mark.parametrize(
    ("every", "written"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (10, [5])], ids=str
)
def test_checkpoints_are_written_when_due(every, written, path, monkeypatch):
    epochs = []
    from pyro_ebm.training import trainer as module

    original = module.write_checkpoint

    def recording(where, checkpoint):
        epochs.append(checkpoint.epoch)
        original(where, checkpoint)

    monkeypatch.setattr(module, "write_checkpoint", recording)
    make_trainer(path, num_epochs=5, checkpoint_every=every).fit(DATA)
    assert epochs == written
    assert Trainer.from_checkpoint(path).epoch == 5
    assert sorted(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_last_checkpoint(path, monkeypatch):
    original = safetensors.torch.save_file
    calls = []

    def failing(tensors, filename, metadata=None):
        calls.append(filename)
        if len(calls) == 3:
            Path(filename).write_bytes(b"half")
            raise OSError("disk full")
        original(tensors, filename, metadata=metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", failing)
    with pytest.raises(OSError, match="disk full"):
        make_trainer(path).fit(DATA)
    assert sorted(path.parent.iterdir()) == [path]
    assert Trainer.from_checkpoint(path).epoch == 2


# --- damaged checkpoints ------------------------------------------------------------------------


def contents(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}


@pytest.fixture
def checkpoint(path) -> Path:
    make_trainer(path, num_epochs=1, momentum=0.5, persistent=True).fit(DATA)
    return path


def test_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model file at .*none\.safetensors"):
        Trainer.from_checkpoint(tmp_path / "none.safetensors")


def test_a_model_file_is_no_checkpoint(path):
    pyro_ebm.save(nn.RBM(6, 4), path)
    message = r"checkpoint\.safetensors holds a model, but not the state of a training run"
    with pytest.raises(ModelFileError, match=message):
        Trainer.from_checkpoint(path)


@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.99])
def test_truncated_checkpoint(checkpoint, kept):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ModelFileError, match=r"checkpoint\.safetensors is no readable"):
        Trainer.from_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["weight", "visible.bias", "hidden_offset", "training.generator"])
def test_checkpoint_without_a_tensor(checkpoint, name):
    header, tensors = contents(checkpoint)
    del tensors[name]
    safetensors.torch.save_file(tensors, checkpoint, metadata=header)
    with pytest.raises(ModelFileError, match=r"checkpoint\.safetensors"):
        Trainer.from_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("weight", (4, 6), torch.float32),
        ("weight", (6, 4), torch.int32),
        ("visible.bias", (7,), torch.float32),
        ("training.generator", (3,), torch.uint8),
        ("training.chains", (10, 5), torch.float32),
        ("training.chains", (10, 6), torch.int64),
        ("optimizer.0.momentum_buffer", (4, 6), torch.float32),
        ("optimizer.7.momentum_buffer", (6, 4), torch.float32),
        ("optimizer.x.momentum_buffer", (6, 4), torch.float32),
    ],
    ids=str,
)
def test_checkpoint_with_a_wrong_tensor(checkpoint, name, shape, dtype):
    header, tensors = contents(checkpoint)
    tensors[name] = torch.zeros(shape, dtype=dtype)
    safetensors.torch.save_file(tensors, checkpoint, metadata=header)
    with pytest.raises(ModelFileError, match=r"checkpoint\.safetensors"):
        Trainer.from_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", ...),
        ("model", {"class": "RBM"}),
        ("training", {"num_epochs": -1}),
        ("training", {"epochs": 1}),
        ("training", []),
        ("training", None),
        ("epoch", ...),
        ("epoch", "one"),
        ("epoch", -1),
        ("history", ...),
        ("history", 3),
        ("trained", 3),
        ("trained", ["weight", "bias"]),
    ],
    ids=str,
)
def test_checkpoint_with_wrong_metadata(checkpoint, name, value):
    header, tensors = contents(checkpoint)
    values = json.loads(header["pyro_ebm"])
    if value is ...:
        del values[name]
    else:
        values[name] = value
    metadata = {"pyro_ebm": json.dumps(values)}
    safetensors.torch.save_file(tensors, checkpoint, metadata=metadata)
    with pytest.raises(ModelFileError, match=r"checkpoint\.safetensors"):
        Trainer.from_checkpoint(checkpoint)


# --- divergence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bernoulli", "categorical", "multinomial", "gaussian", "relu"])
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
def test_divergence_is_an_error_and_the_last_checkpoint_stays(family, centered, path):
    module = random_module(
        (family, "bernoulli"), centered=centered, learn_precision=True, dtype=torch.float32
    )
    data = module().sample((110,))
    make_trainer(path, module, num_epochs=2, learning_rate=0.01).fit(data)
    good = path.read_bytes()
    saved = pyro_ebm.load(path)
    # Momentum adds the bounded gradients of bits up to infinity, within an epoch of 22 steps.
    changes = {"learning_rate": 1e38, "momentum": 0.9, "learning_rate_schedule": "constant"}
    trainer = Trainer.from_checkpoint(path, num_epochs=8, batch_size=5, **changes)
    with pytest.raises(TrainingDivergedError, match=r"no longer finite.*learning_rate") as e:
        trainer.fit(data)
    assert "1e+38" in str(e.value)
    assert path.read_bytes() == good and sorted(path.parent.iterdir()) == [path]
    again = Trainer.from_checkpoint(path, num_epochs=3, learning_rate=0.01)
    assert_same_state(again.module, saved)
    assert len(again.fit(data)) == 3


def test_other_errors_are_not_called_divergence(monkeypatch):
    def failing(self, *batch):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ContrastiveGradient, "__call__", failing)
    with pytest.raises(RuntimeError, match="out of memory") as error:
        make_trainer(None).fit(DATA)
    assert not isinstance(error.value, TrainingDivergedError)
