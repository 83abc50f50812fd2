# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""TensorBoard: what is in the event files, and that looking changes no run."""

import builtins
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_ebm import nn
from pyro_ebm.training import TensorBoardLogger, Trainer, TrainerConfig
from pyro_ebm.training.gradient import ContrastiveGradient
from pyro_ebm.training.tensorboard.pictures import (
    activation_map,
    chain_images,
    completion_images,
    filter_images,
    tile,
)
from tests.training.machines import assert_same_state, interrupt_at, random_module, some_bits

pytest.importorskip("tensorboard")

DATA = some_bits(60)
VALIDATION = some_bits(30, seed=1)
SHAPE = (2, 3)


def make_trainer(**options) -> Trainer:
    defaults = {"num_epochs": 2, "batch_size": 20, "seed": 5, "progress": False}
    return Trainer(nn.RBM(6, 4, seed=0, centered=True), TrainerConfig(**{**defaults, **options}))


def events(folder: Path, run: str = "train"):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sizes = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    return EventAccumulator(str(folder / run), size_guidance=sizes).Reload()


def image(folder: Path, tag: str, index: int = -1) -> np.ndarray:
    """A picture as levels in [0, 1], shape ``(height, width, channels)``."""
    from PIL import Image

    data = events(folder).Images(tag)[index].encoded_image_string
    return np.asarray(Image.open(io.BytesIO(data))) / 255


def logged(folder: Path, validation=VALIDATION, persistent=True, **options) -> Trainer:
    names = ["free_energy", "reconstruction_error", "ais_log_likelihood", "mmd"]
    config = {
        "metrics": names if persistent else names[:2],
        "metrics_options": {
            "ais_log_likelihood": {"num_temperatures": 50, "num_chains": 10, "every": 2}
        }
        if persistent
        else {},
        "persistent": persistent,
    }
    trainer = make_trainer(**config)
    logger = TensorBoardLogger(folder, **options)
    trainer.fit(DATA, validation, callbacks=[logger])
    return trainer


# --- the files ----------------------------------------------------------------------------------


def test_scalars_are_the_history(tmp_path):
    """Those of rows and chains have one tag in runs of their own."""
    trainer = logged(tmp_path, image_shape=SHAPE)
    runs = {"train", "validation", "chains"}
    assert {path.name for path in tmp_path.iterdir()} == runs
    found = {}
    for run in runs:
        accumulator = events(tmp_path, run)
        for tag in accumulator.Tags()["scalars"]:
            found[run, tag] = {e.step: e.value for e in accumulator.Scalars(tag)}
    keys = {
        ("train", "free_energy"): "free_energy_train",
        ("validation", "free_energy"): "free_energy_validation",
        ("chains", "free_energy"): "free_energy_chains",
        ("train", "reconstruction_error"): "reconstruction_error",
        ("validation", "reconstruction_error"): "reconstruction_error_validation",
        ("train", "ais_log_likelihood"): "ais_log_likelihood_train",
        ("validation", "ais_log_likelihood"): "ais_log_likelihood_validation",
        ("train", "ais_log_likelihood_std_error"): "ais_log_likelihood_std_error",
        ("train", "ais_log_partition"): "ais_log_partition",
        ("train", "ais_ess"): "ais_ess",
        ("train", "mmd"): "mmd",
        ("train", "seconds"): "seconds",
    }
    assert found.keys() == keys.keys()
    for place, key in keys.items():
        expected = {r["epoch"]: r[key] for r in trainer.history if key in r}
        assert found[place] == pytest.approx(expected, rel=1e-6), place
    assert list(found["train", "ais_ess"]) == [2]


def test_histograms(tmp_path):
    trainer = logged(tmp_path)
    accumulator = events(tmp_path)
    names = [name for name, _ in trainer.module.named_parameters()]
    expected = {f"{kind}/{name}" for kind in ("parameters", "gradients") for name in names}
    assert set(accumulator.Tags()["histograms"]) == expected | {"hidden_activations"}
    weight = trainer.module.weight.detach()
    last = accumulator.Histograms("parameters/weight")[-1]
    assert last.step == 2
    value = last.histogram_value
    assert (value.num, value.min, value.max) == (24, weight.min().item(), weight.max().item())
    assert value.sum == pytest.approx(weight.double().sum().item(), abs=1e-6)
    gradient = accumulator.Histograms("gradients/weight")[-1].histogram_value
    assert gradient.max == trainer.module.weight.grad.max().item()
    # 16 of the validation rows, 4 units.
    assert accumulator.Histograms("hidden_activations")[-1].histogram_value.num == 64


def test_images_are_those_of_the_machine(tmp_path):
    trainer = logged(tmp_path, image_shape=SHAPE, num_filters=3, num_chains=5, num_rows=4)
    accumulator = events(tmp_path)
    assert set(accumulator.Tags()["images"]) == {"filters", "activations", "chains", "completions"}
    assert [e.step for e in accumulator.Images("filters")] == [1, 2]
    with torch.no_grad():
        dist, rows = trainer.module(), VALIDATION[:4]
        expected = {
            "filters": tile(filter_images(dist, 3), SHAPE),
            "activations": activation_map(dist, rows),
            "chains": tile(chain_images(dist, trainer.chains[:5]), SHAPE),
        }
    for tag, picture in expected.items():
        shown = image(tmp_path, tag)
        shown = shown[:, :, 0] if shown.ndim == 3 else shown
        np.testing.assert_allclose(shown, picture[0].numpy(), atol=1.01 / 255)
    shown = image(tmp_path, "completions")
    # Two lines of four tiles of 2 x 3 pixels; the upper pixel line of both is that of the rows.
    assert shown.shape[:2] == (2 * 3 + 1, 4 * 4 + 1)
    shown = shown[:, :, 0] if shown.ndim == 3 else shown
    for n, row in enumerate(rows.reshape(4, 2, 3).numpy()):
        columns = slice(1 + 4 * n, 4 + 4 * n)
        np.testing.assert_allclose(shown[1:3, columns], row, atol=1.01 / 255)
        np.testing.assert_allclose(shown[4, columns], row[0], atol=1.01 / 255)
        assert ((shown[5, columns] > 0) & (shown[5, columns] < 1)).all()


def test_pictures_every_few_epochs_and_without_a_shape(tmp_path):
    trainer = make_trainer(num_epochs=5)
    logger = TensorBoardLogger(tmp_path, every=2, histograms=False)
    trainer.fit(DATA, callbacks=[logger])
    accumulator = events(tmp_path)
    assert accumulator.Tags()["images"] == ["activations"]
    assert [e.step for e in accumulator.Images("activations")] == [2, 4]
    assert accumulator.Tags()["histograms"] == []
    assert [e.step for e in accumulator.Scalars("weight_norm")] == [1, 2, 3, 4, 5]
    # The rows of the training data, as there are no others.
    assert image(tmp_path, "activations").shape[:2] == (16, 4)


@pytest.mark.parametrize("binarize", [False, True], ids=["bits", "rates"])
def test_looking_changes_nothing(binarize, tmp_path):
    """With every picture the run ends in the same bits, chains and generator as without."""
    options = {"persistent": True, "binarize": binarize, "momentum": 0.5}
    plain, watched = make_trainer(**options), make_trainer(**options)
    plain.fit(DATA, VALIDATION)
    state = torch.get_rng_state()
    watched.fit(DATA, VALIDATION, callbacks=[TensorBoardLogger(tmp_path, image_shape=SHAPE)])
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_state(plain.module, watched.module)
    assert torch.equal(plain.chains, watched.chains)
    assert torch.equal(plain._generator.get_state(), watched._generator.get_state())
    for ours, theirs in zip(plain.history, watched.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_a_resumed_run_goes_on_in_the_folder(tmp_path, monkeypatch):
    """Killed in the fourth epoch, with a checkpoint of the second: epoch 3 is written once."""
    folder, path = tmp_path / "events", tmp_path / "last.safetensors"
    options = {"num_epochs": 5, "checkpoint": path, "checkpoint_every": 2, "learning_rate": 1.0}
    with interrupt_at(10, ContrastiveGradient, monkeypatch):
        make_trainer(**options).fit(DATA, callbacks=[TensorBoardLogger(folder)])
    trainer = Trainer.from_checkpoint(path, metrics=["weight_norm"])
    assert trainer.epoch == 2
    trainer.fit(DATA, callbacks=[TensorBoardLogger(folder)])
    seen = [(e.step, e.value) for e in events(folder).Scalars("weight_norm")]
    expected = [(r["epoch"], pytest.approx(r["weight_norm"])) for r in trainer.history]
    assert seen == expected


def test_conditional_models_have_numbers_only(tmp_path):
    nbm = nn.NeuralBoltzmannMachine(1, 6, 2, visible="bernoulli", seed=0)
    trainer = Trainer(nbm, TrainerConfig(num_epochs=1, batch_size=20, seed=0, progress=False))
    x = (torch.arange(60) % 2.0).unsqueeze(1)
    trainer.fit(DATA, context=x, callbacks=[TensorBoardLogger(tmp_path)])
    tags = events(tmp_path).Tags()
    assert "free_energy" in tags["scalars"] and tags["images"] == []
    assert any(tag.startswith("gradients/") for tag in tags["histograms"])
    logger = TensorBoardLogger(tmp_path, images=["activations"])
    with pytest.raises(ValueError, match="images has 'activations', which is of an RBM"):
        trainer.fit(DATA, context=x, callbacks=[logger])


# --- pictures -----------------------------------------------------------------------------------


def test_tiles():
    pictures = torch.tensor([[0.0, 0.1, 0.2], [0.3, 0.4, 0.6]])
    line = [0.5] * 9
    expected = [line, [0.5, 0.0, 0.1, 0.2, 0.5, 0.3, 0.4, 0.6, 0.5], line]
    torch.testing.assert_close(tile(pictures, (1, 3), 2), torch.tensor([expected]))
    colours = tile(torch.arange(6.0).unsqueeze(0) / 6, (3, 1, 2))
    assert colours.shape == (3, 3, 4)
    torch.testing.assert_close(colours[:, 1, 1:3], torch.tensor([[0, 1], [2, 3], [4, 5]]) / 6)


@torch.no_grad()
def test_pictures_of_other_families():
    """Spins are shown from -1 to 1, real numbers on their own scale; zero weights are mid-grey."""
    dist = random_module(("ising", "gaussian"), centered=True)()
    rows = dist.sample((5,))
    generator = torch.Generator().manual_seed(0)
    pictures = completion_images(dist, rows, torch.tensor([True, False, True]), generator)
    torch.testing.assert_close(pictures[:5], (rows + 1) / 2)
    torch.testing.assert_close(pictures[5:, [0, 2]], pictures[:5, [0, 2]])
    levels = activation_map(dist, rows)
    assert levels.min() == 0 and levels.max() == 1
    filters = filter_images(dist, 2)
    order = dist.weight.norm(dim=0).argsort(descending=True)
    torch.testing.assert_close((filters - 0.5) * 2 * dist.weight.abs().max(), dist.weight.T[order])
    assert (filter_images(nn.RBM(4, 2, weight_scale=0.0)(), 2) == 0.5).all()


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be a whole number >= 1, got 0"),
        ({"num_chains": 2.0}, "num_chains must be a whole number"),
        ({"images": "filters"}, "images must be a list of names out of"),
        ({"images": ["filter"]}, "images must be names out of .*'completions'.*, got 'filter'"),
        ({"images": ["filters"]}, "images has 'filters', which needs image_shape"),
        ({"image_shape": (2,)}, "image_shape must be"),
        ({"image_shape": (2, 2, 3)}, "image_shape must be"),
        ({"image_shape": (2, -3)}, "image_shape must be"),
    ],
    ids=str,
)
def test_impossible_options(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        TensorBoardLogger(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (2, 2)}, r"image_shape \(2, 2\) has 4 entries, the visible layer 6"),
        ({"rows": torch.zeros(2, 5)}, r"rows must be visible states of shape \(rows >= 1, 6\)"),
        ({"rows": torch.full((2, 6), 0.5)}, "rows must be visible states"),
        ({"given": torch.zeros(6)}, r"given must be boolean of shape \(6,\), got torch.float32"),
        (
            {"image_shape": (2, 3), "images": ["chains"]},
            "images has 'chains', which needs persistent=True",
        ),
    ],
    ids=str,
)
def test_options_that_do_not_fit_the_run(options, message, tmp_path):
    trainer = make_trainer()
    with pytest.raises(ValueError, match=message):
        trainer.fit(DATA, callbacks=[TensorBoardLogger(tmp_path, **options)])
    assert trainer.epoch == 0


def test_without_tensorboard(monkeypatch, tmp_path):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'pyro-ebm\[tensorboard\]'"):
        TensorBoardLogger(tmp_path)
