# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The example of image patches: its data by slicing, its numbers by enumeration."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

import pyro_ebm
from pyro_ebm import nn
from pyro_ebm.datasets import Dataset, Whitening
from pyro_ebm.infer import exact_log_partition

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def example(monkeypatch):
    """The program and its data as modules; they find each other in their own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return [importlib.import_module(f"examples.{name}") for name in ("grbm_patches", "patch_data")]


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --- data ---------------------------------------------------------------------------------------


def test_patches_are_windows_of_the_images(example):
    images = torch.arange(2 * 3 * 6 * 5).reshape(2, 3, 6, 5).float()
    patches = example[1].cut_patches(images, 2, 500, generator()).reshape(-1, 3, 2, 2)
    windows = {
        tuple(images[n, :, i : i + 2, j : j + 2].flatten().tolist())
        for n in range(2)
        for i in range(5)
        for j in range(4)
    }
    assert {tuple(p.flatten().tolist()) for p in patches} == windows


def test_pixels_are_spread_over_their_byte(example):
    grey = np.arange(16, dtype=np.uint8).reshape(1, 4, 4).repeat(50, 0)
    colour = np.stack([grey, grey, grey], 1)
    labels = np.zeros(50, dtype=np.int64)
    one = Dataset("grey", grey, labels, grey, labels, max_value=16)
    pixels = example[1].to_pixels(one, "train", False, generator())
    assert pixels.shape == (50, 1, 4, 4)
    assert torch.equal((pixels.squeeze(1) * 17).floor(), torch.tensor(grey).float())
    three = Dataset("colour", colour, labels, colour, labels, max_value=255)
    assert example[1].to_pixels(three, "test", True, generator()).shape == (50, 3, 4, 4)
    mean = example[1].to_pixels(three, "test", False, generator())
    assert mean.shape == (50, 1, 4, 4) and 0.0 < mean.min() and mean.max() < 17 / 256


def test_whitening_in_blocks_goes_block_by_block_and_back(example):
    images = torch.rand(7, 3, 5, 9, dtype=torch.float64, generator=generator())
    rows = torch.rand(50, 12, dtype=torch.float64, generator=generator())
    blocks = example[1].BlockWhitening(Whitening.fit(rows), (3, 2, 2))
    crop = blocks.crop(images)
    assert torch.equal(crop, images[:, :, :4, :8])
    white = blocks(crop)
    first = white.reshape(7, 3, 4, 8)[:, :, 2:4, 6:8].flatten(1)
    close(first, blocks.whitening(crop[:, :, 2:4, 6:8].flatten(1)))
    close(blocks.inverse(white, (3, 4, 8)), crop.flatten(1))


def test_the_normal_law(example):
    rows = torch.randn(100, 4, dtype=torch.float64, generator=generator()).cumsum(1)
    law = MultivariateNormal(rows.mean(0), torch.cov(rows.T, correction=0))
    close(example[1].gaussian_log_prob(rows, rows[:5]), law.log_prob(rows[:5]))


# --- the machine --------------------------------------------------------------------------------


@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
def test_rarity_is_the_odds_of_a_single_unit(example, centered):
    rbm = nn.RBM(3, 4, "gaussian", weight_scale=1.0, seed=0, dtype=torch.float64, centered=centered)
    rbm.init_from_data(torch.rand(20, 3, generator=generator()) * 3)
    loc = rbm.visible.loc.detach().clone()
    example[0].set_rarity(rbm, 0.02)
    states = torch.cat([torch.zeros(1, 4), torch.eye(4)]).double()
    log_odds = -rbm().detach().transpose().free_energy(states)
    close((log_odds[1:] - log_odds[0]).exp(), torch.full((4,), 0.02, dtype=torch.float64))
    # Without hidden units the layer is that of the data.
    close(rbm().visible_given(torch.zeros(4).double()).mean.detach(), loc)


def test_smoke(tmp_path):
    command = [sys.executable, ROOT / "examples" / "grbm_patches.py", "--smoke", "--paste"]
    command += ["--paste-epochs", "1", "--no-progress", "--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    rbm = pyro_ebm.load(tmp_path / "model.safetensors")
    exact = exact_log_partition(rbm().detach()).item()
    low, high = (report["log_partition"][name] for name in ("lower", "upper"))
    # Two intervals of 95 %; a tenth of a nat is beyond their doubt.
    assert low - 0.1 < exact < high + 0.1 and high - low < 0.5
    likelihood = report["log_likelihood"]
    assert likelihood["lower"] <= likelihood["value"] <= likelihood["upper"]
    # Whitened rows: the normal law is close to the standard one.
    assert abs(report["gaussian_log_likelihood"] + 16 * 1.4189) < 1.5
    assert report["gain"] > -0.5
    # Four blocks, independent of each other: a whole image is worth four patches.
    pasted = report["paste"]["pasted"]
    assert report["paste"]["num_blocks"] == 4
    width = pasted["log_likelihood"]["upper"] - pasted["log_likelihood"]["lower"]
    assert width == pytest.approx(4 * (high - low))
    assert set(report["paste"]) == {"image_shape", "num_blocks", "pasted", "trained"}
    for name in ("filters.png", "patches.png", "pixels.png", "images.png"):
        assert (tmp_path / name).stat().st_size > 10_000
