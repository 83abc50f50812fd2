# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Products with batched weights against torch's own broadcasting product."""

import pytest
import torch

from pyro_ebm.ops.linear import affine, apply_weight, chain_axes

CASES = [
    ((3,), ()),
    ((5, 3), ()),
    ((3,), (2,)),
    ((2, 3), (2,)),
    ((5, 1, 3), (2,)),
    ((5, 2, 3), (1,)),
    ((6, 4, 2, 3), (4, 1)),
    ((6, 1, 1, 3), (4, 2)),
    ((6, 4, 2, 3), (1, 2)),
    ((4, 7, 2, 3), (4, 1, 2)),
    ((2, 3), (4, 1)),
    ((0, 3), ()),
    ((0, 2, 3), (2,)),
]


@pytest.mark.parametrize(("x_shape", "batch"), CASES, ids=str)
def test_apply_weight_and_affine(x_shape, batch):
    x = torch.randn(x_shape, dtype=torch.float64).requires_grad_()
    weight = torch.randn(*batch, 3, 4, dtype=torch.float64).requires_grad_()
    expected = torch.matmul(x.unsqueeze(-2), weight).squeeze(-2)
    got = apply_weight(x, weight)
    torch.testing.assert_close(got, expected)
    transposed = apply_weight(x, weight.mT.contiguous().mT)  # any strides
    torch.testing.assert_close(transposed, expected)
    seed = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(got, (x, weight), seed),
        torch.autograd.grad(expected, (x, weight), seed),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
    for bias_shape in ((4,), (*batch, 4)):
        bias = torch.randn(bias_shape, dtype=torch.float64)
        torch.testing.assert_close(affine(x, weight, bias), expected + bias)


def test_affine_with_a_batched_bias_and_one_weight():
    x, weight = torch.randn(5, 2, 3), torch.randn(3, 4)
    bias = torch.randn(2, 4)
    torch.testing.assert_close(affine(x, weight, bias), x @ weight + bias)


def test_shapes_that_do_not_broadcast():
    with pytest.raises(RuntimeError):
        apply_weight(torch.zeros(5, 3), torch.zeros(2, 3, 4))


@pytest.mark.parametrize(
    ("full", "batch", "expected"),
    [
        ((7, 2, 3), (2, 3), ([1, 2], [0])),
        ((7, 2, 3), (1, 3), ([2], [0, 1])),
        ((7, 2, 3), (), ([], [0, 1, 2])),
        ((2,), (2,), ([0], [])),
        ((7, 2, 3), (7, 1, 1), ([0], [1, 2])),
    ],
)
def test_chain_axes(full, batch, expected):
    assert chain_axes(full, batch) == expected
