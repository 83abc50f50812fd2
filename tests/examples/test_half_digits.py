# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Completion of half-seen images: what is exact against enumeration, the baselines against plain loops."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from examples.baselines.neighbours import nearest, neighbour_rates, share_of_ones
from pyro_ebm import datasets, nn
from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.distributions.units import Bernoulli

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def half_digits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module: it finds its neighbours in its own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("examples.half_digits")


def machine() -> RBM:
    """Six bits, four of them hidden, with offsets."""
    torch.manual_seed(3)
    return RBM(
        Bernoulli(torch.randn(6).double()),
        Bernoulli(torch.randn(4).double()),
        torch.randn(6, 4).double(),
        visible_offset=torch.rand(6).double(),
        hidden_offset=torch.rand(4).double(),
    )


MASK = torch.tensor([True, False, True, False, False, True])


def conditional(rbm: RBM, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All states of the missing bits and their probabilities given the seen ones, by Bayes' rule."""
    free = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 3)
    whole = image.expand(len(free), -1).clone()
    whole[:, ~MASK] = free
    return free, torch.softmax(-rbm.free_energy(whole), 0)


def test_exact_law(half_digits: Any) -> None:
    rbm, images = machine(), torch.bernoulli(torch.full((5, 6), 0.5)).double()
    marginals, joint = half_digits.exact_conditional(rbm, MASK, images)
    for image, rates, log_prob in zip(images, marginals, joint, strict=True):
        states, p = conditional(rbm, image)
        torch.testing.assert_close(rates, p @ states, rtol=1e-9, atol=1e-12)
        own = (states == image[~MASK]).all(-1)
        torch.testing.assert_close(log_prob, p[own].log().squeeze(), rtol=1e-9, atol=1e-9)


def test_chains_meet_the_exact_law(half_digits: Any) -> None:
    rbm, images = machine(), torch.bernoulli(torch.full((5, 6), 0.5)).double()
    options = half_digits.parse([])
    options.chains, options.steps, options.replicas = 400, 40, 3
    exact, _ = half_digits.exact_conditional(rbm, MASK, images)
    rates, last, frames = half_digits.by_gibbs(rbm, MASK, images, options, num_frames=6)
    assert rates.shape == last.shape == (400, 5, 3) and frames.shape == (6, 5, 3)
    check = half_digits.check_chains(rates, exact)
    assert check["max_z"] < 6.0 and check["rms_z"] < 2.0 and check["max_error"] < 0.05
    tempered, _ = half_digits.by_tempering(rbm, MASK, images, options)
    check = half_digits.check_chains(tempered, exact)
    assert check["max_z"] < 6.0 and check["rms_z"] < 2.0 and check["max_error"] < 0.15
    # A chain that is wrong by a tenth does not pass.
    assert half_digits.check_chains(rates + 0.1, exact)["rms_z"] > 6.0


@pytest.mark.parametrize("half", ["left", "right", "top", "bottom", "random"])
def test_masks(half_digits: Any, half: str) -> None:
    mask = half_digits.seen_mask(half, (4, 6)).reshape(4, 6)
    assert mask.sum() == 12
    region = {"left": mask[:, :3], "right": mask[:, 3:], "top": mask[:2], "bottom": mask[2:]}
    if half != "random":
        assert bool(region[half].all())
    else:
        assert not torch.equal(mask, half_digits.seen_mask(half, (4, 6), seed=1).reshape(4, 6))
    with pytest.raises(ValueError, match="half must be one of"):
        half_digits.seen_mask("middle", (4, 6))


def test_neighbours() -> None:
    train = torch.bernoulli(torch.full((60, 6), 0.5))
    rows = torch.bernoulli(torch.full((7, 6), 0.5))
    found = nearest(train, rows, MASK, 4)
    for row, index in zip(rows, found, strict=True):
        distance = (train[:, MASK] - row[MASK]).abs().sum(-1)
        expected = distance.sort().values[:4]
        torch.testing.assert_close(distance[index], expected)
    expected = (train[found][:, :, ~MASK].sum(1) + train[:, ~MASK].mean(0)) / 5.0
    torch.testing.assert_close(share_of_ones(train, found, MASK), expected)


def test_baselines_choose_without_the_rows() -> None:
    """Rows that repeat the training set: the nearest is right, and one neighbour is best."""
    patterns = torch.bernoulli(torch.full((8, 12), 0.5))
    train, mask = patterns.repeat(40, 1), torch.arange(12) < 8
    rates, number = neighbour_rates(train, patterns, mask, held_out=20)
    assert number in (10, 30)  # shrinkage matters least where all forty copies agree
    torch.testing.assert_close(rates["nearest neighbour"], patterns[:, ~mask].double())
    torch.testing.assert_close(
        rates["pixel means"], patterns[:, ~mask].double().mean(0).expand(8, -1)
    )
    with pytest.raises(ValueError, match=r"held_out must be in \[1, 319\], got 320"):
        neighbour_rates(train, patterns, mask, held_out=320)


def test_scores(half_digits: Any) -> None:
    truth = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    rates = torch.tensor([[0.8, 0.4, 0.3, 0.0]])
    scores = half_digits.score(truth, rates)
    log = torch.tensor([0.8, 0.6, 0.3, 0.999]).double().log().mean()
    assert scores["wrong"].item() == 0.25
    torch.testing.assert_close(scores["log_score"][0], log, rtol=1e-6, atol=1e-6)
    assert scores["squared_error"].item() == pytest.approx((0.04 + 0.16 + 0.49) / 4)


def test_models_of_other_data(half_digits: Any, tmp_path: Path) -> None:
    from pyro_ebm import save

    data = datasets.load("digits")
    save(nn.RBM(9, 4, seed=0), tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match="RBM of 64 visible units"):
        half_digits.load_or_train(
            data, half_digits.parse(["--model", f"{tmp_path}/small.safetensors"])
        )
    save(nn.RBM(64, 4, visible="gaussian", seed=0), tmp_path / "real.safetensors")
    words = ["--data", "digits", "--model", f"{tmp_path}/real.safetensors"]
    with pytest.raises(ValueError, match="visible units must be Bernoulli"):
        half_digits.main(half_digits.parse(words))


def test_independent_bits_score_as_their_means(half_digits: Any) -> None:
    """A machine without weights knows the means only: all that it says is exact."""
    rates = torch.tensor([0.2, 0.9, 0.5, 0.7, 0.4, 0.1])
    rbm = BernoulliRBM(torch.zeros(6, 2), torch.logit(rates), torch.zeros(2))
    marginals, joint = half_digits.exact_conditional(rbm, MASK, torch.ones(1, 6))
    torch.testing.assert_close(marginals[0], rates[~MASK].double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(joint[0], rates[~MASK].double().log().sum(), rtol=1e-6, atol=1e-6)


def test_smoke(tmp_path: Path) -> None:
    command = [
        sys.executable,
        ROOT / "examples" / "half_digits.py",
        "--smoke",
        "--output",
        tmp_path,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "half_digits.json").read_text())
    result = report["halves"]["left"]
    scores = {name: row["log_score"]["value"] for name, row in result["scores"].items()}
    # It has learnt more than the means, which the nearest row alone is worse than.
    assert scores["gibbs"] > scores["pixel means"] > scores["nearest neighbour"]
    assert scores["gibbs"] == pytest.approx(scores["exact"], abs=0.005)
    # Independent chains err by one standard error: exact enumeration is the judge.
    assert 0.9 < result["check"]["gibbs"]["rms_z"] < 1.2
    assert 0.9 < result["check"]["tempering"]["rms_z"] < 1.3
    # Bits together are better predicted than one by one: they depend on each other.
    joint = result["joint_log_prob"]["value"] / result["missing"]
    assert scores["exact"] < joint < 0.0
    assert "left half seen, 32 bits missing" in done.stdout
    with Image.open(tmp_path / "left.gif") as film:
        assert film.n_frames == 8
    with Image.open(tmp_path / "left.png") as picture:
        assert picture.size[0] > 1000
