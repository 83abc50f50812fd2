# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The collaborative filtering program: its data, its baselines and a run in seconds."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_ebm
from pyro_ebm.infer import predict_absent

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module: it finds its neighbours in its own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("examples.collaborative_filtering")


def test_ratings_have_the_law_that_they_say(program: Any) -> None:
    truth, ratings, p = program.make_ratings(500, 100, density=0.1, selection=1.0, seed=0)
    torch.testing.assert_close(p.sum(-1), torch.ones(500, 100))
    assert abs(len(ratings) / 50_000 - 0.1) < 0.01
    known = p[ratings.user, ratings.item]
    hits = torch.bincount(ratings.value, minlength=5)
    error = (known * (1 - known)).sum(0).sqrt()
    assert bool(((hits - known.sum(0)).abs() < 6 * error).all())
    # What is liked is rated more often.
    stars = torch.arange(5.0)
    assert (known @ stars).mean() > (p @ stars).mean() + 0.2
    rows, mask = ratings.one_hot(), ratings.mask()
    assert rows.dtype == torch.uint8 and rows.shape == mask.shape == (500, 500)
    assert rows.sum() == len(ratings) and mask.sum() == 5 * len(ratings)
    parts = ratings.split(0.1, 0.2, generator=torch.Generator().manual_seed(0))
    assert sum(map(len, parts)) == len(ratings)
    pairs = torch.cat([part.user * 100 + part.item for part in parts])
    assert len(pairs.unique()) == len(ratings)
    assert truth.quality.shape == (100,)


def test_the_true_model_by_importance_sampling(program: Any) -> None:
    """A user of one rating: p(r2 | r1) by the draws of another generator, without weights."""
    truth, _, _ = program.make_ratings(50, 3, rank=1, seed=1)
    one = torch.tensor([0])
    known = program.Ratings(one, one, torch.tensor([4]), 1, 3)
    ask = torch.tensor([0, 0]), torch.tensor([1, 2])
    found = truth.predict(known, *ask, 40_000, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(9)
    p = truth.probabilities(truth.scores(*truth.draw_users(200_000, generator)))
    expected = (p[:, 0, 4, None, None] * p[:, 1:]).mean(0) / p[:, 0, 4].mean()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.02)


def test_baselines_are_least_squares(program: Any) -> None:
    _, ratings, _ = program.make_ratings(60, 20, density=0.3, seed=0)
    ratings_module = importlib.import_module("baselines.ratings")
    model = ratings_module.fit_biases(ratings, ridge=2.0, num_sweeps=200)
    user, item = model.user.clone().requires_grad_(), model.item.clone().requires_grad_()
    rest = ratings.value - model.mean - user[ratings.user] - item[ratings.item]
    (rest.square().sum() + 2.0 * (user.square().sum() + item.square().sum())).backward()
    assert max(user.grad.abs().max(), item.grad.abs().max()) < 1e-2
    factors = ratings_module.fit_als(ratings, 2, 3.0, num_sweeps=100)
    p, q = factors.user.clone().requires_grad_(), factors.item.clone().requires_grad_()
    rest = ratings.value - factors.biases.expected(ratings.user, ratings.item)
    rest = rest - (p[ratings.user] * q[ratings.item]).sum(-1)
    (rest.square().sum() + 3.0 * (p.square().sum() + q.square().sum())).backward()
    assert max(p.grad.abs().max(), q.grad.abs().max()) < 5e-2
    shares = ratings_module.item_probabilities(ratings, 5)
    torch.testing.assert_close(shares.sum(-1), torch.ones(20))
    bins = program.normal_bins(torch.tensor([2.0]), 0.8)
    assert math.isclose(bins.sum().item(), 1.0, abs_tol=1e-5) and bins[0].argmax() == 2


def test_smoke(program: Any, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples" / "collaborative_filtering.py", "--smoke"]
    command += ["--no-progress", "--output", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    results = report["results"]
    assert len(results) == 8
    # The truth knows the users; the true model, which does not, is the floor of all others.
    assert results["truth"]["nll"] < results["true model"]["nll"]
    for name, row in results.items():
        if name not in ("truth", "true model"):
            assert results["true model"]["nll"] < row["nll"] < math.log(5) + 0.1, name
    items = results["item counts"]
    for name in ("absent RBM", "marginal RBM"):
        assert results[name]["nll"] < items["nll"] - 0.02, name
        assert results[name]["rmse"] < items["rmse"] - 0.03, name
    assert (tmp_path / "calibration.png").stat().st_size > 10_000
    # The report is about the machine that was written.
    options = program.parse(["--smoke"])
    data = program.Data(options)
    module = pyro_ebm.load(tmp_path / "absent.safetensors")
    asked = data.test.user, data.test.item
    p = predict_absent(module(), data.rows, data.observed, *asked)
    nll = program.scores(p, data.test.value)["nll"]
    assert math.isclose(nll, results["absent RBM"]["nll"], rel_tol=1e-4)
