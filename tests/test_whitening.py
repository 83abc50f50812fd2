# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Whitening: what it makes of a covariance, and the way back."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_ebm.datasets import Whitening


def rows(count: int = 200, size: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(size, size, dtype=torch.float64, generator=generator)
    return torch.randn(count, size, dtype=torch.float64, generator=generator) @ mix + 3.0


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_whitened_rows_have_the_identity_as_their_covariance():
    x = rows()
    z = Whitening.fit(x)(x)
    close(z.mean(0), torch.zeros(5).double())
    close(torch.cov(z.T, correction=0), torch.eye(5).double())


def test_the_map_is_the_symmetric_root():
    """It squares to the inverse covariance: no rotation, which is what sets ZCA apart."""
    x = rows()
    whitening = Whitening.fit(x, 0.3)
    close(whitening.matrix, whitening.matrix.T)
    covariance = torch.cov(x.T, correction=0) + 0.3 * torch.eye(5).double()
    close(whitening.matrix @ whitening.matrix @ covariance, torch.eye(5).double())
    assert bool((torch.linalg.eigvalsh(whitening.matrix) > 0).all())


@pytest.mark.parametrize("regularization", [0.0, 0.1, 10.0])
def test_the_inverse_is_exact(regularization):
    x = rows()
    whitening = Whitening.fit(x, regularization)
    close(whitening.inverse(whitening(x)), x)
    close(whitening(whitening.inverse(x)), x)
    one = x[0].reshape(1, 1, 5)
    close(whitening.inverse(whitening(one)), one)


@pytest.mark.parametrize("regularization", [0.0, 0.1])
def test_densities_in_both_units(regularization):
    x = rows()
    whitening = Whitening.fit(x, regularization)
    close(whitening.log_abs_det, torch.linalg.slogdet(whitening.matrix)[1].item())
    law = MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
    z = whitening(x)
    white = MultivariateNormal(z.mean(0), torch.cov(z.T, correction=0))
    close(white.log_prob(z) + whitening.log_abs_det, law.log_prob(x))


def test_type_and_constant_columns():
    x = rows().float()
    x[:, 2] = 1.0
    with pytest.raises(ValueError, match="rows: expected variance in every direction"):
        Whitening.fit(x)
    whitening = Whitening.fit(x, 0.01)
    assert whitening.matrix.dtype == torch.float32
    close(whitening.inverse(whitening(x)), x, 1e-4)


def test_one_column():
    whitening = Whitening.fit(torch.tensor([[1.0], [3.0]]))
    close(whitening(torch.tensor([[2.5]])), torch.tensor([[0.5]]), 1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rows": [[1.0]]}, TypeError, "expected a floating-point tensor; got list"),
        ({"rows": torch.ones(3, 2).int()}, TypeError, "got torch.int32"),
        ({"rows": torch.ones(3)}, ValueError, r"expected shape \(N >= 2, D\); got \(3,\)"),
        ({"rows": torch.ones(1, 3)}, ValueError, r"expected shape \(N >= 2, D\); got \(1, 3\)"),
        ({"rows": torch.full((3, 2), math.nan)}, ValueError, "expected finite values"),
        ({"rows": torch.ones(3, 2)}, ValueError, "expected variance in every direction"),
        ({"regularization": -1.0}, ValueError, "regularization: expected a number >= 0; got -1.0"),
    ],
)
def test_what_cannot_be_whitened(arguments, error, message):
    with pytest.raises(error, match=message):
        Whitening.fit(**{"rows": rows(), **arguments})


def test_rows_of_another_length():
    whitening = Whitening.fit(rows())
    for function in (whitening, whitening.inverse):
        with pytest.raises(ValueError, match=r"expected shape \(..., 5\); got \(2, 4\)"):
            function(torch.ones(2, 4))
