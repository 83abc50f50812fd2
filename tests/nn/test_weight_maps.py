# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""How weights depend on features: formulas, shapes, sizes, ranks."""

import pytest
import torch

from pyro_ebm.nn.weight_maps import (
    WEIGHT_MAPS,
    BasisWeight,
    ConstantWeight,
    FactoredWeight,
    FullWeight,
)

FEATURES, VISIBLE, HIDDEN = 3, 5, 4


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("name", WEIGHT_MAPS)
@pytest.mark.parametrize("shape", [(), (2,), (2, 1, 6)], ids=str)
def test_shapes(name, shape):
    make, options = WEIGHT_MAPS[name]
    weight = make(FEATURES, VISIBLE, HIDDEN, **options)(torch.randn(*shape, FEATURES))
    # A constant broadcasts, and takes no memory for every context.
    batch = () if name == "constant" else shape
    assert weight.shape == (*batch, VISIBLE, HIDDEN) and weight.requires_grad


def num_parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_full():
    module, x = FullWeight(FEATURES, VISIBLE, HIDDEN), torch.randn(2, FEATURES)
    table = module.linear.weight.unflatten(0, (VISIBLE, HIDDEN))
    expected = torch.einsum("ijf,nf->nij", table, x) + module.linear.bias.unflatten(0, (5, 4))
    torch.testing.assert_close(module(x), expected)
    assert num_parameters(module) == VISIBLE * HIDDEN * (FEATURES + 1)


def test_constant():
    module = ConstantWeight(FEATURES, VISIBLE, HIDDEN)
    assert torch.equal(module(torch.randn(2, 6, FEATURES)), module.matrix)
    assert num_parameters(module) == VISIBLE * HIDDEN


def test_basis():
    module, x = BasisWeight(FEATURES, VISIBLE, HIDDEN, num_bases=3), torch.randn(2, FEATURES)
    gates = (x @ module.gate.weight.T + module.gate.bias).exp()
    gates = gates / gates.sum(-1, keepdim=True)
    bases = module.bases.weight.T.unflatten(-1, (VISIBLE, HIDDEN))
    expected = module.bases.bias.unflatten(0, (VISIBLE, HIDDEN)) + torch.einsum(
        "nk,kij->nij", gates, bases
    )
    torch.testing.assert_close(module(x), expected)
    assert num_parameters(module) == 3 * (FEATURES + 1) + VISIBLE * HIDDEN * 4


def test_factored():
    module, x = FactoredWeight(FEATURES, VISIBLE, HIDDEN, num_factors=2), torch.randn(6, FEATURES)
    gates = x @ module.gate.weight.T + module.gate.bias
    expected = torch.einsum("if,jf,nf->nij", module.visible, module.hidden, gates)
    torch.testing.assert_close(module(x), expected)
    assert torch.linalg.matrix_rank(module(x)).max() == 2
    assert num_parameters(module) == 2 * (VISIBLE + HIDDEN + FEATURES + 1)


@pytest.mark.parametrize("name", WEIGHT_MAPS)
def test_no_map_starts_at_zero_or_far_away(name):
    """Weights that start at zero would stay there: hidden units would all learn the same."""
    make, options = WEIGHT_MAPS[name]
    torch.manual_seed(0)
    weight = make(10, 200, 30, **options)(torch.eye(10))
    assert 0.05 < weight.std() < 1.0
