# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Principal components as the start of an RBM, against closed forms and sums over all states."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from examples.baselines import fit_ppca
from pyro_ebm import nn
from pyro_ebm.infer import exact_log_partition
from tests.training.machines import LAYERS, assert_same_state, make_module, state_of

every_family = pytest.mark.parametrize("family", LAYERS)
centred_or_not = pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
DOUBLE = {"dtype": torch.float64, "seed": 0}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def normal_rows(count: int = 300, size: int = 6) -> Tensor:
    """Rows whose covariance has the eigenvalues 16, 9, 4, 1, 0.5, ... along known directions."""
    directions = torch.linalg.qr(torch.randn(size, size).double()).Q
    deviations = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.7, 0.5]).double()[:size]
    return 1.0 + (torch.randn(count, size).double() * deviations) @ directions.T


def eigen(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors of the covariance by another route: singular values of the rows."""
    centred = (rows - rows.mean(0)).numpy()
    _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
    return singular**2 / len(rows), vectors.T


# --- Gaussian visible units ---------------------------------------------------------------------


@centred_or_not
@pytest.mark.parametrize("num_hidden", [1, 3, 5])
def test_two_gaussian_layers_are_probabilistic_principal_components(num_hidden, centered):
    rows = normal_rows()
    module = nn.RBM(6, num_hidden, "gaussian", "gaussian", centered=centered, **DOUBLE)
    assert module.init_from_components(rows) is module
    dist = module().detach().normalize(exact_log_partition(module().detach()))
    close(dist.log_prob(rows), fit_ppca(rows, num_hidden).log_prob(rows), 1e-8)


@pytest.mark.parametrize("hidden", ["bernoulli", "ising"])
@centred_or_not
def test_saturating_units_keep_the_mean_and_their_field_is_limited(hidden, centered):
    """Orthogonal components leave hidden units independent: means of v by enumeration."""
    rows = normal_rows()
    module = nn.RBM(6, 3, "gaussian", hidden, centered=centered, **DOUBLE)
    module.init_from_components(rows, max_field_std=0.8)
    dist = module()
    field = dist.hidden_field(rows) + dist.hidden.natural_bias
    # The field of every hidden unit is zero at the mean, and uncorrelated with that of others.
    close(field.mean(0).detach(), torch.zeros(3).double())
    covariance = torch.cov(field.detach().T, correction=0)
    close(covariance, torch.eye(3).double() * 0.64)
    states = dist.hidden.states(0, 8)
    weights = torch.softmax(-dist.transpose().free_energy(states), 0)
    close((weights @ dist.visible_given(states).mean).detach(), rows.mean(0))


def test_without_a_limit_weights_follow_the_formula():
    rows = normal_rows()
    module = nn.RBM(6, 3, "gaussian", "bernoulli", **DOUBLE)
    module.init_from_components(rows, max_field_std=1e9)
    values, vectors = eigen(rows)
    noise = values[3:].mean()
    close(module.visible.log_precision, torch.full((6,), -math.log(noise), dtype=torch.float64))
    norms = np.sqrt((1.0 / noise - 1.0 / values[:3]) * 4.0)
    expected = vectors[:, :3] * norms
    expected *= np.sign(expected[np.abs(expected).argmax(0), range(3)])
    close(module.weight.detach(), torch.tensor(expected), 1e-8)


def test_the_default_limit():
    rows = normal_rows()
    bits = nn.RBM(6, 2, "gaussian", "bernoulli", **DOUBLE).init_from_components(rows)
    deviations = ((rows - rows.mean(0)) @ bits.weight.detach()).square().mean(0).sqrt()
    close(deviations, torch.tensor([2.0, 2.0]).double())


# --- other families -----------------------------------------------------------------------------


def test_bits_get_the_components_of_their_correlations():
    rows = torch.bernoulli(torch.rand(200, 1).double().expand(200, 5) * 0.8 + 0.1)
    rows[:, 4] = 1.0  # a pixel that never changes
    module = nn.RBM(5, 4, centered=True, **DOUBLE).init_from_components(rows, max_field_std=1e9)
    mean = rows.mean(0)
    variance = mean * (1 - mean)
    variance[4] = 0.999 * 0.001
    values, vectors = eigen(rows / variance.sqrt())
    first = vectors[:, 0] * np.sign(vectors[np.abs(vectors[:, 0]).argmax(), 0])
    expected = torch.tensor(first) * 2.0 * math.sqrt(1.0 - 1.0 / values[0]) / variance.sqrt()
    close(module.weight.detach()[:, 0], expected, 1e-8)
    assert abs(module.weight[4, 0].item()) < 1e-12
    close(module.visible_offset, mean)
    close(module.hidden_offset, torch.full((4,), 0.5, dtype=torch.float64))


def rows_of(family: str) -> Tensor:
    """Forty rows of a layer of the family, with its own correlations."""
    dist = make_module((family, "ising"), weight_scale=1.0, seed=3)()
    if family in ("gaussian", "relu"):
        return torch.rand(40, 2).double()
    return dist.sample((40,), generator=torch.Generator().manual_seed(0))


@every_family
@pytest.mark.parametrize("hidden", LAYERS)
def test_every_family_has_no_field_at_the_mean(family, hidden):
    rows = rows_of(family)
    modules = [
        make_module((family, hidden), centered=centered).init_from_components(rows, seed=5)
        for centered in (False, True)
    ]
    assert all(bool(torch.isfinite(t).all()) for m in modules for t in m.state_dict().values())
    plain, centred = (module() for module in modules)
    mean = rows.mean(0)
    close(
        (plain.hidden.natural_bias + plain.hidden_field(mean)).detach(),
        centred.hidden.neutral().natural_bias.detach(),
    )
    # Centred or not it is the same machine.
    energies = [dist.free_energy(rows).detach() for dist in (plain, centred)]
    close(energies[0] - energies[0][0], energies[1] - energies[1][0])


# --- rank ---------------------------------------------------------------------------------------


def test_units_without_a_component_get_random_weights():
    rows = normal_rows(4, 6)  # rank 3
    module = nn.RBM(6, 20, "ising", weight_scale=0.3, seed=1)
    module.init_from_components((rows > 1.0).float() * 2 - 1, seed=2)
    again = nn.RBM(6, 20, "ising", weight_scale=0.3, seed=7)
    again.init_from_components((rows > 1.0).float() * 2 - 1, seed=2)
    assert torch.equal(module.weight, again.weight)
    expected = torch.empty(6, 20).normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    assert torch.equal(module.weight.detach()[:, 3:], expected[:, 3:])
    assert not torch.equal(module.weight.detach()[:, 0], expected[:, 0])


def test_components_of_few_rows_are_those_of_the_covariance():
    """With fewer rows than columns the smaller matrix is decomposed; the result is the same."""
    rows = normal_rows(5, 6)
    module = nn.RBM(6, 4, "gaussian", "gaussian", **DOUBLE).init_from_components(rows)
    repeated = nn.RBM(6, 4, "gaussian", "gaussian", **DOUBLE)
    repeated.init_from_components(rows.repeat(3, 1))
    close(module.weight.detach(), repeated.weight.detach(), 1e-7)
    assert bool((module.weight.abs().sum(0) > 0).all())


def test_white_rows_have_no_components():
    rows = torch.eye(4).double().repeat(2, 1) * 2.0
    rows[4:] *= -1.0
    module = nn.RBM(4, 3, "gaussian", "bernoulli", **DOUBLE)
    start = module.weight.detach().clone()
    module.init_from_components(rows, seed=0)
    assert torch.equal(module.weight.detach(), start)


def test_constant_rows_and_one_column():
    module = nn.RBM(3, 2, weight_scale=0.0).init_from_components(torch.ones(5, 3))
    assert not module.weight.any()
    single = nn.RBM(1, 2, "gaussian", "gaussian", **DOUBLE)
    rows = torch.tensor([[1.0], [3.0]]).double()
    single.init_from_components(rows)
    law = single().detach().normalize(exact_log_partition(single().detach()))
    expected = MultivariateNormal(torch.tensor([2.0]).double(), torch.ones(1, 1).double())
    # Only the random weights of units without a component set the two apart.
    close(law.log_prob(rows), expected.log_prob(rows), 1e-3)


def test_a_layer_of_two_families():
    module = nn.ClassificationRBM(4, 3, 2, visible="gaussian", centered=True, seed=0)
    x = torch.randn(50, 4)
    rows = module.join(x, (x[:, 0] > 0).long())
    module.init_from_components(rows, seed=0)
    assert torch.allclose(module.visible_offset, rows.mean(0))
    assert bool(torch.isfinite(module.weight).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": torch.zeros(5, 4)}, r"data must have shape \(rows >= 1, 3\), got \(5, 4\)"),
        ({"data": torch.zeros(1, 3)}, "at least 2 rows of data, got 1"),
        ({"data": torch.full((2, 3), math.nan)}, "data holds NaN"),
        ({"max_field_std": 0.0}, "max_field_std must be a positive number or None, got 0.0"),
        ({"max_field_std": math.nan}, "max_field_std must be a positive number"),
        ({"seed": -1}, "seed must be None or a whole number"),
    ],
)
def test_impossible_arguments_change_nothing(arguments, message):
    module = make_module(("bernoulli", "bernoulli"))
    before = state_of(module)
    with pytest.raises(ValueError, match=message):
        module.init_from_components(**{"data": torch.zeros(5, 3), **arguments})
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_the_type_is_that_of_the_module():
    rows = normal_rows()
    modules = [
        nn.RBM(6, 3, "gaussian", seed=0, dtype=dtype).init_from_components(rows)
        for dtype in (torch.float32, torch.float64)
    ]
    assert modules[0].weight.dtype == torch.float32 and modules[0].weight.requires_grad
    close(modules[0].weight.double().detach(), modules[1].weight.detach(), 1e-5)
    assert_same_state(
        modules[0], nn.RBM(6, 3, "gaussian", seed=0).init_from_components(rows.float())
    )
