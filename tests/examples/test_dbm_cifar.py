# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The CIFAR-10 recipes: maps of images and patches against loops, and all stages on synthetic images."""

import importlib
import json
from pathlib import Path

import pytest
import torch

import pyro_ebm
from pyro_ebm import nn

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def load(monkeypatch):
    """Programs as modules; they find each other in their own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def fitted(data, contrast=False, whiten=True, num_dropped=10):
    images = data.synthetic_images(4, seed=0, num_train=200, num_others=20)
    return images, data.Preprocessing.fit(
        images.pixels["train"],
        contrast=contrast,
        num_dropped=num_dropped,
        whiten=whiten,
        regularization=0.1,
    )


# --- rows -----------------------------------------------------------------------------------------


def test_every_split_is_smoothed(load):
    """The reference package standardised validation and test images without smoothing them."""
    images, preprocessing = fitted(load("cifar_data"), whiten=False)
    train = images.pixels["train"].flatten(1).double() / 255.0
    vh = torch.linalg.svd(train - train.mean(0), full_matrices=False)[2]
    for split in ("train", "validation", "test"):
        rows = preprocessing(images.pixels[split])
        levels = rows.double() @ preprocessing.back.double()
        assert float((levels @ vh[-10:].T).abs().max()) < 1e-5
        assert float((levels @ vh[:-10].T).abs().max()) > 0.1
    rows = preprocessing(images.pixels["train"])
    close(rows.mean(0), torch.zeros(48), 1e-4)
    close(rows.std(0, correction=0), torch.ones(48), 1e-4)


@pytest.mark.parametrize("contrast", [False, True], ids=["plain", "contrast"])
def test_whitened_rows_and_the_way_back(load, contrast):
    data = load("cifar_data")
    images, preprocessing = fitted(data, contrast=contrast)
    rows = preprocessing(images.pixels["train"]).double()
    values = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0))
    # Ten directions are gone; the others have variances below one, the largest nearly one.
    assert float(values[:10].abs().max()) < 1e-6 < float(values[10]) and 0.5 < values[-1] < 1.0
    levels = data._levels(images.pixels["test"], contrast)
    if contrast:
        close(levels.mean(1), torch.zeros(20), 1e-5)
        spread = (images.pixels["test"].flatten(1).double() / 255.0).var(1, correction=0)
        close(levels.square().mean(1).double(), spread / (spread + 0.04**2), 1e-5)
    smooth = levels - preprocessing.mean
    back = preprocessing(images.pixels["test"]) @ preprocessing.back
    projection = preprocessing.matrix @ preprocessing.back
    close(projection @ projection, projection, 1e-3)
    close(back, smooth @ projection, 1e-3)
    pixels = preprocessing.to_pixels(preprocessing(images.pixels["test"]))
    assert float(pixels.min()) >= 0.0 and float(pixels.max()) <= 1.0
    if not contrast:
        close(pixels, (back + preprocessing.mean).clamp(0.0, 1.0), 1e-5)


def test_the_map_is_a_file(load, tmp_path):
    images, preprocessing = fitted(load("cifar_data"), contrast=True)
    preprocessing.save(tmp_path / "map.safetensors")
    again = type(preprocessing).load(tmp_path / "map.safetensors")
    assert torch.equal(again(images.pixels["test"]), preprocessing(images.pixels["test"]))


def test_directions_are_what_a_unit_adds_to_the_levels(load):
    images, preprocessing = fitted(load("cifar_data"))
    rows = preprocessing(images.pixels["test"])
    weight = torch.randn(48, 2, generator=torch.Generator().manual_seed(0)) / 100
    moved = (rows + weight[:, 1]) @ preprocessing.back - rows @ preprocessing.back
    close(moved[0], preprocessing.directions(weight)[:, 1], 1e-4)


def test_augmented_rows(load):
    data = load("cifar_data")
    images, preprocessing = fitted(data)
    plain, labels = data.training_rows(images, preprocessing, "none", torch.float32)
    for augment, times in (("mirrors", 2), ("shifts", 10)):
        rows, classes = data.training_rows(images, preprocessing, augment, torch.float16)
        assert rows.dtype == torch.float16 and rows.shape == (200 * times, 48)
        close(rows[:200].float(), plain, 1e-2)
        assert torch.equal(classes, labels.repeat(times))


def test_pooled_rows_are_means_of_blocks(load):
    rows = torch.rand(5, 3 * 8 * 8, generator=torch.Generator().manual_seed(0))
    pooled = load("cifar_data").pool_rows(rows, (3, 8, 8), 4).reshape(5, 3, 2, 2)
    images = rows.reshape(5, 3, 8, 8)
    close(pooled[:, 1, 0, 1], images[:, 1, :4, 4:].mean((1, 2)), 1e-6)


# --- patches --------------------------------------------------------------------------------------


def test_the_patches_of_an_image(load):
    positions = load("dbm_cifar").patch_positions((3, 32, 32))
    assert len(positions) == 25 and {len(p) for p in positions.values()} == {192}
    image = torch.arange(3072).reshape(3, 32, 32)
    assert torch.equal(positions["patch_05"], image[:, 8:16, 8:16].flatten())
    assert torch.equal(positions["patch_16"], image[:, 4:12, 4:12].flatten())
    assert torch.equal(positions["patch_24"], image[:, 20:28, 20:28].flatten())
    covered = torch.cat(list(positions.values())).bincount(minlength=3072).reshape(3, 32, 32)
    assert bool((covered[:, 4:28, 4:28] == 2).all()) and int(covered.sum()) == 25 * 192


@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
def test_the_small_machine_on_the_whole_image(load, centered):
    """Hidden units see the same, and add to all pixels of a block what they added to its mean."""
    rbm = nn.RBM(
        12, 5, "gaussian", centered=centered, weight_scale=1.0, seed=0, dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(9, 3 * 8 * 8, generator=generator, dtype=torch.float64)
    pooled = torch.nn.functional.avg_pool2d(rows.reshape(9, 3, 8, 8), 4).flatten(1)
    rbm.init_from_data(3.0 * pooled, hidden_activation=0.2)
    large = load("dbm_cifar").enlarged(rbm, (3, 8, 8))
    dist, image = rbm().detach(), large().detach()
    close(image.hidden_given(rows).mean, dist.hidden_given(pooled).mean)
    h = torch.bernoulli(torch.full((9, 5), 0.5, dtype=torch.float64), generator=generator)
    small = dist.visible_given(h).mean.reshape(9, 3, 2, 2)
    expected = small.repeat_interleave(4, 2).repeat_interleave(4, 3).flatten(1)
    close(image.visible_given(h).mean, expected)


# --- classifiers ----------------------------------------------------------------------------------


def test_rectified_layers_start_normalised(load):
    finetuning = load("cifar_finetuning")
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(500, 6, generator=generator)
    layers = [finetuning.RectifiedLayer.glorot(*s, generator=generator) for s in ((6, 8), (8, 4))]
    before = layers[0].preactivation(rows).detach()
    finetuning.normalize(layers, rows)
    first = layers[0].preactivation(rows).detach()
    close(first, (before - before.mean(0)) / before.std(0, correction=0), 1e-4)
    second = layers[1].preactivation(first.clamp(min=0.0)).detach()
    close(second.mean(0), torch.zeros(4), 1e-4)
    close(second.std(0, correction=0), torch.ones(4), 1e-4)
    close(layers[1](layers[0](rows)).detach(), second.clamp(min=0.0), 1e-5)


def test_the_lowest_layer_of_machines(load):
    lowest = load("cifar_finetuning").lowest_layer
    rbm = nn.RBM(6, 4, "gaussian", centered=True, weight_scale=1.0, seed=0, dtype=torch.float64)
    rows = torch.rand(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rbm.init_from_data(rows, hidden_activation=0.1)
    weight, bias = lowest(rbm)
    close(torch.sigmoid(rows @ weight + bias), rbm().detach().hidden_given(rows).mean)
    dbm = nn.DBM(6, [4, 3], visible="gaussian", centered=True, seed=0, dtype=torch.float64)
    dbm.init_from_rbm(rbm, upper_scale=0.5, seed=1)
    weight, bias = lowest(dbm)
    top = dbm.offsets[2].expand(20, -1)
    close(torch.sigmoid(rows @ weight + bias), dbm().detach().layer_given(1, [rows, top]).mean)


# --- all stages -----------------------------------------------------------------------------------


def run(program, *arguments):
    run = program.Run(program.parse(["--smoke", *map(str, arguments)]))
    run.run(program.STAGES)
    return json.loads((run.folder / "report.json").read_text())


def test_smoke_of_whole_images(load, tmp_path, capsys):
    program = load("dbm_cifar_naive")
    report = run(program, "--output", tmp_path)
    assert list(report)[:4] == ["data", "grbm", "mrbm", "dbm"]
    history = report["grbm"]["history"]
    # Hidden units explain what mean pixels do not.
    error = [record["reconstruction_error"] for record in history]
    assert error[-1] < 0.75 * error[0] and report["grbm"]["epochs"] == 12
    for start in ("grbm", "random"):
        # A quarter of the images is in every class.
        assert report[f"finetune_{start}_none"]["accuracy"]["test"] > 0.8
    dbm = pyro_ebm.load(tmp_path / "dbm.safetensors")
    assert dbm.sizes == (192, 60, 12)
    assert [layer.family for layer in dbm.layers] == ["gaussian", "bernoulli", "multinomial"]
    assert all(bool(torch.isfinite(p).all()) for p in dbm.parameters())
    names = ("images", "grbm_filters", "mrbm_filters", "dbm_layer2_filters", "dbm_samples")
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in names)


def test_a_stage_goes_on_where_it_was(load, tmp_path, capsys):
    program = load("dbm_cifar_naive")
    common = ("--seed", "1")
    stages = ("--stage", "data", "grbm")
    run(program, "--output", tmp_path / "whole", *common, *stages)
    # No time at all: one epoch, and then on with the rest.
    with pytest.raises(SystemExit, match="grbm: 1 of 12 epochs"):
        run(program, "--output", tmp_path / "parts", *common, *stages, "--max-minutes", "1e-9")
    report = run(program, "--output", tmp_path / "parts", *common, "--stage", "grbm")
    assert report["grbm"]["epochs_of_this_run"] == 11
    one, two = (pyro_ebm.load(tmp_path / n / "grbm.safetensors") for n in ("whole", "parts"))
    assert torch.equal(one.weight, two.weight)
    with pytest.raises(SystemExit, match="was begun with --noise-share"):
        run(
            program,
            "--output",
            tmp_path / "parts",
            *common,
            "--noise-share",
            "1",
            *stages[:1],
            "grbm",
        )
    with pytest.raises(SystemExit, match="run the stage that makes it first"):
        run(program, "--output", tmp_path / "empty", *common, "--stage", "dbm")


@pytest.mark.slow
def test_smoke_of_patches(load, tmp_path, capsys):
    program = load("dbm_cifar")
    report = run(program, "--output", tmp_path)
    patches = [name for name in report if name.startswith("patch_")]
    assert len(patches) == 26 and report["grbm"]["epochs"] > 0
    grbm = pyro_ebm.load(tmp_path / "grbm.safetensors")
    assert grbm.weight.shape == (192, 26 * 6)
    assert pyro_ebm.load(tmp_path / "dbm.safetensors").sizes == (192, 156, 12)
    assert report["finetune_grbm_shifts"]["accuracy"]["test"] > 0.6
    assert (tmp_path / "patch_small_filters.png").exists()
