# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The effective sample size of chains is Pyro's, in less memory."""

import pytest
import torch
from pyro.ops import stats

from pyro_ebm.ops import chains


def autoregression(rho: float, num_chains: int, num_draws: int, *event: int) -> torch.Tensor:
    noise = torch.randn(num_draws, num_chains, *event, dtype=torch.float64)
    x = [noise[0]]
    for row in noise[1:]:
        x.append(rho * x[-1] + (1 - rho**2) ** 0.5 * row)
    return torch.stack(x, 1)


@pytest.mark.parametrize("rho", [0.0, 0.7, 0.95, -0.5])
@pytest.mark.parametrize("num_chains", [1, 4])
@pytest.mark.parametrize("num_draws", [4, 5, 50, 201])
def test_agrees_with_pyro(rho, num_chains, num_draws):
    x = autoregression(rho, num_chains, num_draws, 2, 3)
    got = chains.effective_sample_size(x)
    assert got.shape == (2, 3)
    expected = stats.effective_sample_size(x, chain_dim=0, sample_dim=1)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_chunks_do_not_matter(monkeypatch):
    x = autoregression(0.5, 3, 40, 7)
    expected = chains.effective_sample_size(x)
    monkeypatch.setattr(chains, "_CHUNK_ENTRIES", 1)
    torch.testing.assert_close(chains.effective_sample_size(x), expected)


def test_follows_the_theory():
    ess = chains.effective_sample_size(autoregression(0.8, 50, 2000, 4)) / (50 * 2000)
    torch.testing.assert_close(ess, torch.full((4,), 0.2 / 1.8).double(), rtol=0.1, atol=0)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 7)])
def test_too_few_draws(shape):
    with pytest.raises(ValueError, match=r"samples must have shape \(chains, draws >= 4"):
        chains.effective_sample_size(torch.zeros(shape))
