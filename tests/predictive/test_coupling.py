# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The spectrum of the coupling against direct eigenvalues, and what it promises."""

import json
import math

import pytest
import torch

from pyro_ebm.distributions import RBM, units
from pyro_ebm.predictive import coupling_spectrum
from tests.distributions.families import PAIR_IDS, PAIRS, random_rbm
from tests.predictive.machines import gaussian_ising, scaled_to

FACTORS = {"ising": 1.0, "bernoulli": 0.25, "categorical": 0.5, "multinomial": 1.5}


@pytest.mark.parametrize("sizes", [(5, 3), (3, 5), (4, 4)])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_direct_eigenvalues(sizes: tuple[int, int], batch: tuple[int, ...]) -> None:
    dist = gaussian_ising(batch, *sizes)
    precision = dist.visible.parameters["precision"]
    coupling = dist.weight.mT @ torch.diag_embed(1.0 / precision) @ dist.weight
    expected = torch.linalg.eigvalsh(coupling).flip(-1)
    spectrum = coupling_spectrum(dist)
    torch.testing.assert_close(spectrum.eigenvalues, expected, rtol=1e-10, atol=1e-10)
    assert spectrum.lambda_max.shape == batch
    assert torch.equal(spectrum.one_mode, expected[..., 0] < 1.0)
    assert torch.equal(spectrum.num_strong, (expected >= 1.0).sum(-1))


@pytest.mark.parametrize("pair", PAIRS, ids=PAIR_IDS)
def test_every_pair(pair: tuple[str, str]) -> None:
    dist = random_rbm(pair, batched=True)

    def largest(family: str, unit: units.Unit) -> torch.Tensor:
        if family in FACTORS:
            return torch.full((unit.size,), FACTORS[family], dtype=torch.float64)
        return 1.0 / unit.parameters["precision"]

    rows, columns = (largest(f, u) for f, u in zip(pair, (dist.visible, dist.hidden), strict=True))
    scaled = rows.sqrt().unsqueeze(-1) * dist.weight * columns.sqrt().unsqueeze(-2)
    expected = torch.linalg.matrix_norm(scaled, ord=2).square()
    ours = coupling_spectrum(dist).lambda_max
    torch.testing.assert_close(ours, expected.expand(ours.shape), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FACTORS)
def test_no_conditional_covariance_is_larger(family: str) -> None:
    """The factor bounds the covariance of the layer under any field, and is reached."""
    dist = random_rbm(("gaussian", family))
    reached = 0.0
    for theta in [torch.zeros(dist.hidden.size).double(), *torch.randn(20, dist.hidden.size) * 3]:
        theta = theta.double()
        if family in ("categorical", "multinomial") and theta.any():
            # Two states with all of the probability.
            theta = theta + torch.tensor([20.0, 20.0, -20.0]).repeat(len(theta) // 3)
            theta[0::3] = theta[1::3]
        covariance = torch.autograd.functional.jacobian(dist.hidden.natural_mean, theta)
        largest = torch.linalg.eigvalsh(covariance)[-1].item()
        assert largest <= FACTORS[family] + 1e-12
        reached = max(reached, largest)
    assert reached == pytest.approx(FACTORS[family], rel=1e-6)


@pytest.mark.parametrize("largest", [0.9, 1.2])
def test_one_mode_below_one(largest: float) -> None:
    """Without hidden bias the centre of a Gaussian-Ising machine is a mode if and only if lambda < 1."""
    dist = scaled_to(gaussian_ising((4,), 3, 4, bias=0.0), largest)
    assert coupling_spectrum(dist).lambda_max.tolist() == pytest.approx([largest] * 4)
    for i in range(4):
        one = RBM(
            units.Gaussian(dist.visible_offset[i], dist.visible.parameters["precision"][i]),
            units.Ising(torch.zeros(4).double()),
            dist.weight[i],
            visible_offset=dist.visible_offset[i],
        )
        # Beside the centre, as automatic second derivatives of |x| are wrong at 0.
        hessian = torch.autograd.functional.hessian(one.free_energy, dist.visible_offset[i] + 1e-5)
        smallest = torch.linalg.eigvalsh(hessian)[0].item()
        assert (smallest > 0.0) == (largest < 1.0)


def test_mixed_layers() -> None:
    visible = units.Mixed(
        [
            units.Gaussian(torch.zeros(2).double(), torch.tensor([2.0, 4.0]).double()),
            units.Bernoulli(torch.zeros(3).double()),
        ]
    )
    weight = torch.randn(5, 4, dtype=torch.float64)
    dist = RBM(visible, units.Ising(torch.zeros(4).double()), weight)
    scale = torch.tensor([0.5, 0.25, 0.25, 0.25, 0.25]).double()
    expected = torch.linalg.eigvalsh(weight.T @ (scale.unsqueeze(-1) * weight))[-1]
    assert coupling_spectrum(dist).lambda_max.item() == pytest.approx(expected.item())


def test_expanded_and_report() -> None:
    dist = scaled_to(gaussian_ising(()), 2.25)
    spectrum = coupling_spectrum(dist.expand((2, 3)).to(dtype=torch.float32))
    assert spectrum.lambda_max.shape == (2, 3)
    numbers = json.loads(json.dumps(spectrum.to_dict()))
    assert numbers["share_one_mode"] == 0.0
    assert math.isclose(numbers["lambda_max"][1][2], 2.25, rel_tol=1e-5)
    assert "6 machines" in str(spectrum) and "2.25" in str(coupling_spectrum(dist))
    with pytest.raises(TypeError, match="dist must be an RBM"):
        coupling_spectrum(torch.zeros(2, 2))  # type: ignore[arg-type]
