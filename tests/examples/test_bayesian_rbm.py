# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The posterior of the example's program at toy size against quadrature, its numbers against plain sums."""

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from pyro_ebm.infer import Exchange, VectorizedMCMC
from tests.infer.bayesian.small_programs import chain_z
from tests.infer.reference import Z_LIMIT


@pytest.fixture
def example(load: Any) -> ModuleType:
    return load("bayesian_rbm")


def test_smoke(example: ModuleType, tmp_path: Path, data_dir: Path) -> None:
    options = example.parse(["--smoke", "--output", str(tmp_path)])
    options.nuts_draws, options.nuts_warmup, options.draws, options.warmup = 8, 2, 10, 5
    options.held_out, options.optimizer_steps = 50, 10
    example.main(options)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["settings"]["rows"] == options.rows
    assert set(report["held_out"]) == {
        "posterior predictive",
        "mode given the scale",
        "maximum likelihood",
    }
    for name in ("posteriors.png", "predictive.png"):
        assert (tmp_path / name).stat().st_size > 1000


def toy_quadrature(rows: Tensor) -> dict[str, float]:
    """One bit and one spin: means under the posterior of scale, weight and bias, on a grid."""
    log_scale = torch.linspace(-3.5, 3.0, 161, dtype=torch.float64)
    weight, bias = (torch.linspace(-9.0, 9.0, 161, dtype=torch.float64) for _ in range(2))
    s, w, b = torch.meshgrid(log_scale.exp(), weight, bias, indexing="ij")
    log_p = (
        -2.0 * (s.log() + 0.35).square() - (w / s).square() / 2 - s.log() - (b / 2.0).square() / 2
    )
    on = b + torch.log(2.0 * torch.cosh(w)) - math.log(2.0)
    log_p = log_p + rows.sum() * on - len(rows) * torch.nn.functional.softplus(on)
    p = torch.softmax(log_p.flatten(), 0).reshape(s.shape)
    return {
        "scale": float((p * s).sum()),
        "square": float((p * w.square()).sum()),
        "bias": float((p * b).sum()),
    }


def test_posterior_of_the_model(example: ModuleType) -> None:
    rows = torch.tensor([[1.0], [1.0], [0.0], [1.0]]).double()
    kernel = Exchange(example.model, init_scale=1.0, num_steps=3)
    mcmc = VectorizedMCMC(kernel, 40, 60, num_chains=150, disable_progbar=True)
    mcmc.run(rows, 1)
    draws = mcmc.get_samples(group_by_chain=True)
    expected = toy_quadrature(rows)
    assert chain_z(draws["scale"], expected["scale"], lambda x: x) < Z_LIMIT
    assert chain_z(draws["bias"], expected["bias"], lambda x: x) < Z_LIMIT
    assert (
        chain_z(draws["weight"], expected["square"], lambda x: x.square().sum((-1, -2))) < Z_LIMIT
    )


def test_the_model_with_log_z_is_normalised(example: ModuleType) -> None:
    """Probabilities of all data sets of one row add up to one, given the parameters."""
    values = {
        "scale": torch.tensor(0.7).double(),
        "weight": torch.randn(3, 2).double(),
        "bias": torch.randn(3).double(),
    }
    conditioned = pyro.poutine.condition(example.model, data=values)
    total = 0.0
    for row in torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 3):
        trace = pyro.poutine.trace(conditioned).get_trace(row.unsqueeze(0), 2, exact=True)
        trace.compute_log_prob()
        total += float(trace.nodes["v"]["log_prob"].exp().sum())
    assert total == pytest.approx(1.0, abs=1e-9)


def test_functions_of_the_parameters(example: ModuleType) -> None:
    """Against sums over all states of both layers."""
    draws = {
        "weight": torch.randn(2, 4, 3, 2).double(),
        "bias": torch.randn(2, 4, 3).double(),
        "scale": torch.ones(2, 4).double(),
    }
    numbers = example.functions(draws)
    v = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 3)
    h = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 2)
    joint = (v @ draws["bias"][1, 2])[:, None] + v @ draws["weight"][1, 2] @ h.T
    assert float(numbers["log Z"][1, 2]) == pytest.approx(float(joint.logsumexp((0, 1))), rel=1e-9)
    p = joint.logsumexp(1).softmax(0)
    mean, second = p @ v, v.T @ (p[:, None] * v)
    covariance = second - mean[:, None] * mean
    assert float(numbers["p[2]"][1, 2]) == pytest.approx(float(mean[2]), rel=1e-9)
    expected = covariance[0, 2] / (covariance[0, 0] * covariance[2, 2]).sqrt()
    assert float(numbers["r[0,2]"][1, 2]) == pytest.approx(float(expected), rel=1e-9)
    log_p = example.log_probabilities(draws, v)
    assert log_p.shape == (8, 2, 4)
    torch.testing.assert_close(log_p[:, 1, 2], p.log(), rtol=1e-9, atol=1e-9)


def test_shares(example: ModuleType) -> None:
    rows = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert example.shares(rows).tolist() == [0.25, 0.5, 0.25]


def test_thresholds_are_those_of_the_rows_to_learn_from(example: ModuleType) -> None:
    """Of two rows one at most is above their mean, whatever the other images are."""
    rows, held_out = example.small_images(2, 50, 3, seed=0)
    assert rows.shape == (2, 9) and held_out.shape == (50, 9)
    assert rows.sum(0).max() == 1.0
