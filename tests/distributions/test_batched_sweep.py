# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Runs of sweeps through weights with a batch shape, against sweeps step by step."""

import pytest
import torch

from pyro_ebm.distributions import RBM, GibbsSweep, units
from tests.distributions.families import batch_indices, random_rbm, to_machine
from tests.distributions.laws import ALPHA
from tests.distributions.test_gibbs_sweep import Exact

CHAINS = 50_000


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


FAMILIES = {
    "bernoulli": lambda batch, n: units.Bernoulli(draw(*batch, n)),
    "gaussian": lambda batch, n: units.Gaussian(draw(*batch, n), draw(n).exp()),
    "mixed": lambda batch, n: units.Mixed(
        [units.Ising(draw(*batch, 1)), units.Gaussian(draw(n - 1), draw(*batch, n - 1).exp())]
    ),
}


@pytest.fixture
def without_noise(monkeypatch):
    """Draws that are means, so that runs can be compared to rounding."""
    for cls in (units.Bernoulli, units.Ising, units.Gaussian, units.Mixed):
        monkeypatch.setattr(cls, "natural_noise", lambda self, shape, generator=None: None)
        monkeypatch.setattr(
            cls, "natural_sample", lambda self, t, generator=None: self.natural_mean(t)
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("weight", "visible", "hidden", "rows"),
    [
        ((3,), (3,), (3,), (5, 3)),
        ((3,), (), (), (3,)),
        ((2, 3), (3,), (2, 1), (4, 2, 3)),
        ((2, 1), (2, 3), (3,), (4, 2, 3)),
        ((2, 1), (2, 3), (), (4, 1, 1)),
        ((1,), (3,), (3,), (5, 1)),
        ((3,), (2, 1), (), (7, 2, 3)),
        ((2,), (2,), (2,), (0, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("num_steps", [1, 3, 9])
def test_a_run_is_its_steps(family, weight, visible, hidden, rows, num_steps, without_noise):
    v_unit, h_unit = FAMILIES[family](visible, 4), FAMILIES["bernoulli"](hidden, 3)
    rbm = RBM(v_unit, h_unit, 0.5 * draw(*weight, 4, 3), visible_offset=draw(4))
    sweep = GibbsSweep(rbm)
    v = expected = draw(*rows, 4)
    for _ in range(num_steps):
        expected = sweep.sample_visible(sweep.sample_hidden(expected))
    kept = v.clone()
    got = sweep.run(v, num_steps, collapse=False)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(v, kept) and sweep.run(v, 0) is v


@pytest.mark.parametrize(
    "pair",
    [("bernoulli", "ising"), ("categorical", "bernoulli"), ("gaussian", "ising")],
    ids="-".join,
)
def test_the_law_of_every_machine(pair):
    """Starts from the exact laws stay in them, one after another machine of the batch."""
    torch.manual_seed(0)
    rbm = random_rbm(pair, offsets=True, batched=True)
    laws = {index: Exact(to_machine(rbm, index)) for index in batch_indices(rbm.batch_shape)}
    start = torch.empty(CHAINS, *rbm.batch_shape, rbm.visible.size, dtype=torch.float64)
    for index, exact in laws.items():
        start[(slice(None), *index)] = torch.from_numpy(exact.start(CHAINS))
    sweep = GibbsSweep(rbm)
    end = sweep.run(start, 1, collapse=False)
    h = sweep.sample_hidden(end)
    for index, exact in laws.items():
        here = (slice(None), *index)
        p = exact.check(start[here].numpy(), h[here].numpy(), end[here].numpy())
        assert 3 * len(laws) * p > ALPHA


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_seed_decides(dtype):
    rbm = random_rbm(("bernoulli", "ising"), batched=True).to(dtype=dtype)
    start = torch.zeros(4, *rbm.batch_shape, rbm.visible.size, dtype=dtype)
    runs = [
        GibbsSweep(rbm, torch.Generator().manual_seed(seed)).run(start, 10) for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert runs[0].dtype == dtype and bool(rbm.support.check(runs[0]).all())
