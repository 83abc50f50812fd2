# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The effective sample size of chains: Pyro's number, in memory that is linear in the draws."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pyro.ops import stats
from torch import Tensor

from pyro_ebm.ops import chains
from pyro_ebm.ops.chains import effective_sample_size

ROOT = Path(__file__).resolve().parents[3]


def autoregressive(num_chains: int, num_draws: int, event: tuple[int, ...], rho: float) -> Tensor:
    """Stationary chains whose effective size is known, S (1 - rho) / (1 + rho) each."""
    noise = torch.randn(num_draws, num_chains, *event, dtype=torch.float64)
    draws = [noise[0]]
    for step in noise[1:]:
        draws.append(rho * draws[-1] + math.sqrt(1.0 - rho**2) * step)
    return torch.stack(draws, 1)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.95])
@pytest.mark.parametrize(
    ("num_chains", "num_draws", "event"),
    [(1, 100, (3,)), (4, 101, (2, 3)), (2, 4, ()), (3, 5, (2,)), (8, 333, (5,))],
    ids=str,
)
def test_equals_pyros(num_chains: int, num_draws: int, event: tuple[int, ...], rho: float) -> None:
    samples = autoregressive(num_chains, num_draws, event, rho)
    value = effective_sample_size(samples)
    assert value.shape == event
    expected = stats.effective_sample_size(samples)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0.0)


def test_chains_that_disagree() -> None:
    samples = autoregressive(4, 200, (3,), 0.3) + torch.arange(4.0).reshape(4, 1, 1)
    value = effective_sample_size(samples)
    torch.testing.assert_close(value, stats.effective_sample_size(samples), rtol=1e-5, atol=0.0)
    assert value.max() < 20.0


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_known_size(rho: float) -> None:
    value = effective_sample_size(autoregressive(4, 5000, (20,), rho)).mean()
    assert value.item() == pytest.approx(20_000 * (1 - rho) / (1 + rho), rel=0.08)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = autoregressive(2, 50, (3, 4), 0.5)
    whole = effective_sample_size(samples)
    for entries in (1, 250, 700):
        monkeypatch.setattr(chains, "_CHUNK_ENTRIES", entries)
        torch.testing.assert_close(effective_sample_size(samples), whole, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("shape", [(), (10,), (2, 3), (2, 3, 5)], ids=str)
def test_too_few_draws(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(chains, draws >= 4, \.\.\.\), got"):
        effective_sample_size(torch.zeros(shape))


def test_units_that_never_change() -> None:
    samples = torch.ones(2, 20, 3)
    samples[..., 1] = torch.randn(2, 20)
    value = effective_sample_size(samples)
    assert value.shape == (3,) and value[1] > 0.0
    assert torch.isnan(value[[0, 2]]).all()


MEMORY = """
import resource
import torch
from pyro_ebm.ops.chains import effective_sample_size

samples = torch.bernoulli(torch.full((16, 4000, 784), 0.5))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert effective_sample_size(samples).shape == (784,)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_memory_at_the_size_of_images() -> None:
    """784 units x 4,000 draws x 16 chains, 0.19 GiB: another 0.14 GiB by chunks, 1.3 GiB at once.

    Pyro's own would take tens of GiB.
    """
    result = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, check=True
    )
    gibibytes = float(result.stdout)
    assert 0.0 <= gibibytes < 0.6
