# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The program of classes from one image: its parts, and a run. The model: ``test_hierarchical_model.py``."""

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm import nn

F64 = torch.float64


def test_projection(load: Any) -> None:
    """White within the classes on average; what was left out of the features is at its mean."""
    torch.manual_seed(0)
    mix = torch.randn(6, 6, dtype=F64)
    labels = torch.arange(3).repeat_interleave(50)
    rows = torch.randn(150, 6, dtype=F64) @ mix + 3.0 * torch.randn(3, 6, dtype=F64)[labels]
    Projection = load("hierarchical_data").Projection
    full = Projection(rows, labels, 6, ridge=0.0)
    within = torch.stack([torch.cov(full(rows[labels == k]).T) for k in range(3)]).mean(0)
    torch.testing.assert_close(within, torch.eye(6, dtype=F64))
    torch.testing.assert_close(full.inverse(full(rows)), rows)
    part = Projection(rows, labels, 2)
    torch.testing.assert_close(part(part.inverse(part(rows))), part(rows))
    _, vectors = torch.linalg.eigh(torch.cov(rows.T))
    principal = (rows - rows.mean(0)) @ vectors[:, -2:] @ vectors[:, -2:].T + rows.mean(0)
    torch.testing.assert_close(part.inverse(part(rows)), principal)
    with pytest.raises(ValueError, match="dim must be from 1 to the 6"):
        Projection(rows, labels, 7)
    with pytest.raises(ValueError, match="less than 4 axes"):
        Projection(principal, labels, 4)


def test_every_class_is_new_once(load: Any) -> None:
    splits = load("hierarchical_data").make_splits((range(10), range(10, 20)), 3, 0)
    assert sorted(k for split in splits for k in split.new) == list(range(20))
    for split in splits:
        assert sorted((*split.base, *split.new)) == list(range(20))
        assert 3 <= sum(k < 10 for k in split.new) <= 4
    assert splits != load("hierarchical_data").make_splits((range(10), range(10, 20)), 3, 1)


def test_the_machine_sees_base_classes_only(load: Any, monkeypatch: Any, tmp_path: Path) -> None:
    data = load("hierarchical_data")
    seen: list[Tensor] = []

    class Trained:
        averaged = nn.DBM(64, [3, 2], seed=0)

    def train_dbm(rows: Tensor, options: Any) -> tuple[Any, dict[str, Any]]:
        seen.append(rows)
        return Trained, {}

    monkeypatch.setattr(data, "train_dbm", train_dbm)
    images = data.load_images(["digits"], 30, 10, 0)
    assert images.train.shape == (300, 64) and images.test.shape == (100, 64)
    images.train[:, 0] = images.train_labels.float()
    options = load("hierarchical_deep").parse(["--smoke"])
    split = data.Split((0, 2, 3), (1,))
    data.machine_of(split, images, options, tmp_path / "split_0")
    assert seen[0].shape == (90, 64) and set(seen[0][:, 0].tolist()) == {0.0, 2.0, 3.0}
    options.skip_training = True
    assert data.machine_of(split, images, options, tmp_path / "split_0").sizes == (64, 3, 2)


def test_machines_of_other_images_are_refused(load: Any, monkeypatch: Any, tmp_path: Path) -> None:
    data, one_of_them = load("hierarchical_data"), tmp_path / "split_0"
    trained = argparse.Namespace(averaged=nn.DBM(64, [3, 2], seed=0))
    monkeypatch.setattr(data, "train_dbm", lambda rows, options: (trained, {}))
    images, split = data.load_images(["digits"], 30, 10, 0), data.Split((0, 2, 3), (1,))
    options = load("hierarchical_deep").parse(["--smoke"])
    data.machine_of(split, images, options, one_of_them)
    options.skip_training = True
    data.machine_of(split, images, options, one_of_them)
    with pytest.raises(SystemExit, match=r"base_classes = \[0, 2, 3\], now it is \[0, 1, 2\]"):
        data.machine_of(data.Split((0, 1, 2), (3,)), images, options, one_of_them)
    for name, value in (("data", ["mnist"]), ("per_class", 31), ("seed", 5)):
        other = argparse.Namespace(**{**vars(options), name: value})
        with pytest.raises(SystemExit, match=f"was trained with {name} = "):
            data.machine_of(split, images, other, one_of_them)
    (one_of_them / "trained_on.json").unlink()
    with pytest.raises(SystemExit, match=r"trained_on\.json is missing"):
        data.machine_of(split, images, options, one_of_them)


def episode(module: Any, memory: bool) -> Any:
    """Six training rows on a line, of classes 0 and 1 (new) and 2, and test rows near them."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    rest = torch.tensor([4, 5]) if memory else torch.tensor([], dtype=torch.long)
    classes = (0, 1, 2) if memory else (0, 1)
    support = torch.tensor([[0, 1], [2, 3]])
    return module.Episode(support, rest, labels, classes, torch.tensor([0, 1, 2]))


def test_baselines(load: Any) -> None:
    module = load("hierarchical_one_shot")
    train = torch.tensor([[0.0], [1.0], [4.0], [8.0], [20.0], [22.0]])
    space = module.Space(train, torch.tensor([[0.5], [7.0], [21.5]]))
    near = module.nearest_image(space, episode(module, True))
    expected = torch.tensor([[0.25, 12.25, 380.25], [36.0, 1.0, 169.0], [420.25, 182.25, 0.25]])
    torch.testing.assert_close(near, -expected)
    mean = module.nearest_mean(space, episode(module, False))
    expected = torch.tensor([[0.0, 30.25], [42.25, 1.0], [441.0, 240.25]])
    torch.testing.assert_close(mean, -expected)
    # The mean of a base class is that of all its images, in the memory or not.
    forgetful = dataclasses.replace(episode(module, True), memory=torch.tensor([5]))
    mean = module.nearest_mean(space, forgetful)
    torch.testing.assert_close(mean[:, 2], -torch.tensor([20.5, 14.0, 0.5]).square())
    for memory in (True, False):
        score = module.logistic(space, episode(module, memory))
        assert score.argmax(1).tolist() == ([0, 1, 2] if memory else [0, 1, 1])


def test_scores(load: Any) -> None:
    """Areas under the curve by counting pairs."""
    module = load("hierarchical_one_shot")
    torch.manual_seed(0)
    own, truth = episode(module, True), torch.tensor([0, 1, 2, 2, 1, 0, 0, 1])
    score = torch.randn(8, 3)
    got = module.episode_scores(score, truth, own)
    hits = score.argmax(1) == truth
    assert got["accuracy"] == hits.double().mean()
    assert got["accuracy_new"] == hits[truth < 2].double().mean()
    assert got["accuracy_base"] == hits[truth == 2].double().mean()
    areas = []
    for k in (0, 1):
        ahead = [score[n, k] - max(score[n, j] for j in range(3) if j != k) for n in range(8)]
        pairs = itertools.product((truth == k).nonzero()[:, 0], (truth != k).nonzero()[:, 0])
        areas.append(torch.tensor([float(ahead[i] > ahead[j]) for i, j in pairs]).mean())
    assert abs(got["auroc"] - sum(areas) / 2) < 1e-6


def test_summary(load: Any) -> None:
    values = [{"accuracy": v} for v in (0.2, 0.4, 0.9)]
    reference = [{"accuracy": v} for v in (0.5, 0.7, 1.2)]
    got = load("hierarchical_one_shot").summary(values, [0, 0, 1], reference)["accuracy"]
    assert abs(got["mean"] - 0.5) < 1e-12 and got["by_split"] == pytest.approx([0.3, 0.9])
    assert got["std_error"] == pytest.approx((0.13 / 3) ** 0.5)
    assert got["reference_ahead"] == pytest.approx(0.3)
    assert got["reference_ahead_error"] == pytest.approx(0.0, abs=1e-12)


def test_images_given_the_top_layer(load: Any) -> None:
    """Chains of a clamped machine against all of its states; 6 standard errors."""
    torch.manual_seed(0)
    module = nn.DBM(4, [3, 2], centered=True, dtype=F64)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data.normal_(0.0, 0.8)
    dbm = module().detach()
    top = torch.tensor([1.0, 0.0], dtype=F64)
    states = [
        torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=F64) for n in (4, 3)
    ]
    v, h = states[0].repeat_interleave(8, 0), states[1].repeat(16, 1)
    energy = dbm.energy([v, h, top.expand(len(v), 2)])
    expected = (-energy).softmax(0) @ v
    got = load("hierarchical_pictures").images_of(dbm, top.expand(4000, 2), 30)
    error = got.std(0) / len(got) ** 0.5
    assert ((got.mean(0) - expected).abs() < 6.0 * error).all() and (error < 0.01).all()


def test_membership(load: Any) -> None:
    """New classes beside one of two super-classes join the base classes of it, and the rest is new."""
    program, model = load("hierarchical_deep"), load("hierarchical_model")
    draws = {
        "strength": torch.ones(2, 1, dtype=F64),
        "spread": torch.full((2, 1), 0.05, dtype=F64),
        "shape": torch.full((2,), 5.0, dtype=F64),
        "sticks": torch.full((2, 2), 0.5, dtype=F64),
    }
    centre = torch.tensor([[[-6.0], [6.0], [0.0]]] * 2, dtype=F64)
    groups = torch.tensor([[0, 1, 1]] * 2)
    tree = model.Tree(draws, centre, torch.ones(2, 3, 1, dtype=F64), groups)
    support = model.Statistics(
        torch.ones(2, dtype=F64),
        torch.tensor([[6.0], [-6.0]], dtype=F64),
        torch.zeros(2, 1, dtype=F64),
    )
    got = program.membership(tree, support, 2)
    assert got.shape == (2, 4)
    assert torch.equal(got[:, 1], got[:, 2]) and (got[0, 1:3] > 0.7).all() and got[1, 0] > 0.7
    total = got[:, 0] + got[:, 1] + got[:, 3]
    torch.testing.assert_close(total, torch.ones(2, dtype=F64))


def test_impossible_options(load: Any) -> None:
    with pytest.raises(SystemExit, match="two layers"):
        load("hierarchical_deep").parse(["--hidden", "5"])
    with pytest.raises(SystemExit, match="no --checkpoint of all"):
        load("hierarchical_deep").parse(["--checkpoint", "file"])


def test_smoke(load: Any, tmp_path: Path) -> None:
    program = load("hierarchical_deep")
    report = program.main(["--smoke", "--output", str(tmp_path)])
    assert json.loads((tmp_path / "report.json").read_text())["results"] == report["results"]
    assert set(report["results"]) == {
        f"{task}, {shots} shot" for task in ("new", "all") for shots in (1, 5)
    }
    for task, methods in report["results"].items():
        chance = 0.25 if task.startswith("new") else 0.1
        assert methods[program.TREE]["accuracy"]["mean"] > 1.3 * chance, task
        assert 0.5 < methods[program.TREE]["auroc"]["mean"] <= 1.0
        assert methods[program.TREE]["accuracy"]["reference_ahead"] == 0.0
    tree = report["splits"][0]["trees"][program.TREE]
    assert sorted(name for group in tree["super_classes"] for name in group) == [
        "0", "2", "3", "6", "8", "9",
    ]  # fmt: skip
    for name in ("split_0/tree.png", "split_0/new_classes.png", "accuracy_1_shot.png"):
        assert (tmp_path / name).stat().st_size > 8_000
