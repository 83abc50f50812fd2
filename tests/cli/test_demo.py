# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from matplotlib.image import imread

import pyro_ebm
from pyro_ebm import datasets
from pyro_ebm.cli.completion import CompletionOptions, complete, upper_half
from pyro_ebm.cli.sampling import read_chains
from pyro_ebm.infer import exact_log_partition

PICTURES = ("samples.png", "filters.png", "energy.png", "completions.png", "history.png")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    from click.testing import CliRunner

    from pyro_ebm.cli.app import app

    folder = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    result = CliRunner().invoke(app, ["demo", "--quick", "--quiet", "--output", str(folder)])
    assert result.exit_code == 0, result.output
    return folder, result.output


@pytest.fixture(scope="module")
def report(demo: tuple[Path, str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((demo[0] / "report.json").read_text())
    return result


def test_files(demo: tuple[Path, str]) -> None:
    folder, output = demo
    for name in PICTURES:
        picture = imread(folder / name)
        assert min(picture.shape[:2]) > 100 and picture.std() > 0.02
    assert pyro_ebm.load(folder)().event_shape == (64,)
    assert pyro_ebm.load(folder / "hidden16").weight.shape == (64, 16)
    assert read_chains(folder / "chains.nc").v.shape[0] >= 4
    assert "R-hat" in output and "log p(test)" in output and "log Z exact" in output


def test_estimates_agree_with_the_exact_value(
    demo: tuple[Path, str], report: dict[str, Any]
) -> None:
    model = report["models"]["16 hidden units"]
    log_z = model["evaluation"]["log_partition"]
    with torch.no_grad():
        exact = exact_log_partition(pyro_ebm.load(demo[0] / "hidden16")()).item()
    assert log_z["exact"]["value"] == pytest.approx(exact, abs=1e-9)
    for side in ("forward", "reverse"):
        estimate = log_z["bracket"][side]
        assert abs(estimate["value"] - exact) < 4 * estimate["std_error"] + 1e-4
        error = model["exact_comparison"][f"{side}_error"]
        assert error == pytest.approx(estimate["value"] - exact)
    assert report["models"]["32 hidden units"]["evaluation"]["log_partition"]["exact"] is None


def test_report(demo: tuple[Path, str], report: dict[str, Any]) -> None:
    folder, _ = demo
    text = (folder / "report.md").read_text()
    for name, model in report["models"].items():
        assert f"## {name}" in text
        section = text.split(f"## {name}")[1].split("\n## ")[0]
        match = re.search(r"per image, test \| (-[\d.]+) \| (-[\d.]+) to (-[\d.]+) \|", section)
        assert match is not None
        value, low, high = (float(x) for x in match.groups())
        assert low < value < high
        likelihood = model["evaluation"]["log_likelihood"]["test"]
        assert value == pytest.approx(likelihood["value"], abs=1e-3)
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (folder / name).is_file()
    assert "optimistic" in text and "seed" in text and "torch" in text
    assert "nan" not in text.lower().split()
    seconds = re.search(r"took (\d+) s", text)
    assert seconds is not None and float(seconds[1]) == pytest.approx(report["seconds"], abs=1)


def test_again_into_the_same_folder(demo: tuple[Path, str], invoke: Callable[..., Result]) -> None:
    folder, _ = demo
    before = pyro_ebm.load(folder).weight.clone()
    invoke("demo", "--quick", "--quiet", "--output", folder)
    assert torch.equal(pyro_ebm.load(folder).weight, before)
    for command in ("info", "plot"):
        invoke(command, folder)


def test_folder_of_others(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    assert "photo.jpg" in fails("demo", "--quick", "--output", tmp_path)
    assert (tmp_path / "photo.jpg").exists()


def test_completion_marginals_are_exact_ones() -> None:
    """A machine small enough to sum: means of the missing pixels given the seen ones."""
    module = pyro_ebm.nn.RBM(6, 3, seed=0, weight_scale=1.0, centered=True)
    mask = upper_half((2, 3))
    assert mask.tolist() == [True] * 3 + [False] * 3
    images = torch.tensor([[1.0, 0, 1, 0, 1, 1], [0, 0, 1, 1, 0, 0]])
    options = CompletionOptions(num_images=2, num_chains=400, warmup=20, num_sweeps=100)
    result = complete(module, images, images, mask, options)
    with torch.no_grad():
        clamped = module().clamp(mask, images)
        states = clamped.enumerate_support(expand=False)
        p = torch.softmax(clamped.log_prob(states), 0)
        exact = (p.unsqueeze(-1) * states).sum(0)
    torch.testing.assert_close(result.mean[:, 3:], exact, atol=0.01, rtol=0)
    assert torch.equal(result.mean[:, :3], images[:, :3])
    assert torch.equal(result.samples[..., :3], images[:, :3].expand(400, 2, 3))
    picked = torch.where(images[:, 3:] > 0.5, exact, 1 - exact).log().mean()
    value = result.result["model"]["log_prob_per_pixel"]["value"]
    assert value == pytest.approx(picked.item(), abs=0.02)


def test_upper_half_of_colour_images() -> None:
    mask = upper_half((3, 4, 2)).reshape(3, 4, 2)
    assert bool(mask[:, :2].all()) and not bool(mask[:, 2:].any())


def test_completion_needs_bits() -> None:
    module = pyro_ebm.nn.RBM(4, 2, visible="gaussian", seed=0)
    rows = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="Bernoulli"):
        complete(module, rows, rows, upper_half((2, 2)), CompletionOptions())


@pytest.mark.slow
def test_whole_demo_beats_independent_pixels(tmp_path: Path, invoke: Callable[..., Result]) -> None:
    invoke("demo", "--quiet", "--output", tmp_path / "demo")
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    data = datasets.load("digits")
    rate = data.train().mean(0).clamp(1e-3, 1 - 1e-3)
    test = data.binarized("test", seed=0)
    independent = (test * rate.log() + (1 - test) * (1 - rate).log()).sum(-1).mean().item()
    for model in report["models"].values():
        got = model["evaluation"]["log_likelihood"]["test"]["value"]
        assert got > independent + 3.5
    chains = report["models"]["100 hidden units"]["chains"]
    assert chains["energy"]["r_hat_max"] < 1.02 and chains["v"]["r_hat_max"] < 1.05
    gain = report["completion"]["gain"]["log_prob_per_pixel"]
    assert gain["value"] > 5 * gain["std_error"]
    assert report["seconds"] < 180
