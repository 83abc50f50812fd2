# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Draws from fields follow their laws exactly."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from pyro_ebm.ops.random import (
    _far_tail_excess,
    _fill_16_bit_uniform,
    bernoulli_from_logits,
    categorical_from_logits,
    multinomial_from_logits,
    truncated_normal,
)

ALPHA = 1e-7
ROWS = 2_000_000
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])

# Among them probabilities that 16 bits alone would round away: 2^-16 is sigmoid(-11.09).
LOGITS = [-13.0, -11.5, -11.0, -9.0, -6.0, -3.0, -1.0, -0.1, 0.0, 1e-4, 0.5, 2.0, 5.0, 9.0, 11.5]


def z_scores(successes: np.ndarray, total: int, p: np.ndarray) -> np.ndarray:
    return (successes - total * p) / np.sqrt(total * p * (1 - p))


def bound(num_tests: int) -> float:
    """The |z| that one of so many tests exceeds with probability ALPHA."""
    return float(stats.norm.isf(ALPHA / 2 / num_tests))


@DTYPES
def test_bernoulli_marginals(dtype):
    logits = torch.tensor(LOGITS, dtype=dtype)
    p = torch.sigmoid(logits.double()).numpy()
    drawn = bernoulli_from_logits(logits.expand(ROWS, -1))
    assert drawn.dtype == dtype and bool((drawn[:100_000] * (1 - drawn[:100_000]) == 0).all())
    z = z_scores((drawn == 1).sum(0).numpy(), ROWS, p)
    assert np.abs(z).max() < bound(len(p))


def test_bernoulli_marginals_check_has_power():
    # Without the lower 8 bits p would be rounded to 2^-16: the rarest of LOGITS are off by much.
    logits = torch.tensor(LOGITS)
    p = torch.sigmoid(logits.double()).numpy()
    coarse = np.ceil(p * 2**16) / 2**16
    rng = np.random.default_rng(0)
    assert np.abs(z_scores(rng.binomial(ROWS, coarse), ROWS, p)).max() > bound(len(p))
    # And 2 % of one conditional is seen, in each of the units that are on and off often enough.
    for i in np.flatnonzero((p > 0.04) & (p < 0.9)):
        off = p.copy()
        off[i] *= 1.02
        assert np.abs(z_scores(rng.binomial(ROWS, off), ROWS, p)).max() > bound(len(p))


def test_16_bit_uniforms_are_uniform_on_24_bits():
    noise = torch.empty(1000, 1000)
    _fill_16_bit_uniform(noise, torch.Generator().manual_seed(0))
    whole = noise.double() * 2**24
    assert torch.equal(whole, whole.floor())
    assert 0 <= noise.min() < 1e-4 and 1 - 1e-4 < noise.max() < 1
    # The lower 8 bits are one number a row, and of all 256 values.
    low = whole.long() % 256
    assert bool((low == low[:, :1]).all()) and len(low[:, 0].unique()) > 200
    counts = np.bincount((whole.long() // 2**16).flatten().numpy(), minlength=256)
    assert stats.chisquare(counts).pvalue > ALPHA
    fine = np.bincount(((whole.long() // 256) % 256).flatten().numpy(), minlength=256)
    assert stats.chisquare(fine).pvalue > ALPHA


@DTYPES
def test_bernoulli_certain_outcomes(dtype):
    inf = math.inf
    logits = torch.tensor([-inf, -1e4, 1e4, inf], dtype=dtype).expand(200_000, 4)
    drawn = bernoulli_from_logits(logits)
    assert torch.equal(drawn, torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=dtype).expand(200_000, 4))


@DTYPES
def test_bernoulli_rows_and_units_are_independent(dtype):
    # Two units of one row share 8 bits; their covariance is below 2^-34, unseen in any sample.
    p = torch.tensor([0.3, 0.3, 0.5, 0.9], dtype=dtype)
    drawn = bernoulli_from_logits(p.logit().expand(ROWS, 4)).double().numpy()
    p = p.double().numpy()
    centred = drawn - p
    sd = np.sqrt(p * (1 - p))
    pairs = [(i, j) for i in range(4) for j in range(i)]
    z = [(centred[:, i] * centred[:, j]).mean() / (sd[i] * sd[j]) * ROWS**0.5 for i, j in pairs]
    # Neighbouring rows, of one unit and across units.
    z += [
        (centred[1:, i] * centred[:-1, j]).mean() / (sd[i] * sd[j]) * (ROWS - 1) ** 0.5
        for i in range(4)
        for j in range(4)
    ]
    assert np.abs(z).max() < bound(len(z))


@DTYPES
def test_bernoulli_values_generator_and_inputs(dtype):
    logits = torch.randn(7, 5, dtype=dtype)
    kept = logits.clone()

    def draw(**kwargs):
        return bernoulli_from_logits(logits, torch.Generator().manual_seed(1), **kwargs)

    assert torch.equal(draw(), draw()) and torch.equal(logits, kept)
    assert torch.equal(draw(values=(-1.0, 1.0)), 2 * draw() - 1)
    state = torch.get_rng_state()
    draw()
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(bernoulli_from_logits(kept.expand(9, 7, 5)), draw().expand(9, 7, 5))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (1,), (2, 1), (3,), (5, 7)])
@DTYPES
def test_bernoulli_shapes(shape, dtype):
    assert bernoulli_from_logits(torch.zeros(shape, dtype=dtype)).shape == shape
    turned = torch.zeros(shape, dtype=dtype).mT if len(shape) == 2 else torch.zeros(shape)
    assert bernoulli_from_logits(turned).shape == turned.shape


@DTYPES
def test_categorical_marginals_and_certain_outcomes(dtype):
    logits = torch.tensor([[0.0, 1.0, -2.0, 0.5], [-9.0, 3.0, 3.0, -1.0]], dtype=dtype)
    p = torch.softmax(logits.double(), -1).numpy()
    drawn = categorical_from_logits(logits.expand(200_000, 2, 4))
    assert drawn.dtype == dtype and bool((drawn.sum(-1) == 1).all())
    for row in range(2):
        counts = drawn[:, row].double().sum(0).numpy()
        assert stats.chisquare(counts, p[row] * 200_000).pvalue > ALPHA
        off = p[row] * np.array([1.02, 1, 1, 1]) if row == 0 else p[row] * [1, 1.02, 1, 1]
        off = np.random.default_rng(0).multinomial(2_000_000, off / off.sum())
        assert stats.chisquare(off, p[row] * 2_000_000).pvalue < ALPHA
    inf = math.inf
    certain = torch.tensor([[-inf, 0.0, -inf], [-1e4, -inf, 1e4], [0.0, -inf, -inf]], dtype=dtype)
    expected = torch.eye(3, dtype=dtype)[[1, 2, 0]]
    drawn = categorical_from_logits(certain.expand(10_000, 3, 3))
    assert torch.equal(drawn, expected.expand(10_000, 3, 3))


def test_categorical_of_many_states_stays_inside():
    # A float32 cumulative sum over 50,000 states ends away from one.
    drawn = categorical_from_logits(torch.zeros(200, 50_000))
    assert bool((drawn.sum(-1) == 1).all())


@DTYPES
def test_multinomial_law(dtype):
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=dtype)
    p = torch.softmax(logits.double(), -1).numpy()
    drawn = multinomial_from_logits(logits.expand(100_000, 3), 4)
    assert drawn.dtype == dtype and bool((drawn.sum(-1) == 4).all()) and bool((drawn >= 0).all())
    law = stats.multinomial(4, p)
    states = [(i, j, 4 - i - j) for i in range(5) for j in range(5 - i)]
    counts = [(drawn == torch.tensor(s, dtype=dtype)).all(-1).sum().item() for s in states]
    assert stats.chisquare(counts, [100_000 * law.pmf(s) for s in states]).pvalue > ALPHA
    batched = multinomial_from_logits(torch.zeros(2, 3, 5, dtype=dtype), 7)
    assert batched.shape == (2, 3, 5)


@pytest.mark.parametrize("sampler", [categorical_from_logits, truncated_normal])
def test_generators(sampler):
    x = torch.zeros(50, 4)
    first = sampler(x, torch.Generator().manual_seed(1))
    assert torch.equal(first, sampler(x, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, sampler(x, torch.Generator().manual_seed(2)))
    one = multinomial_from_logits(x, 5, torch.Generator().manual_seed(1))
    assert torch.equal(one, multinomial_from_logits(x, 5, torch.Generator().manual_seed(1)))


ALPHAS = [-1e4, -1000.0, -100.0, -30.0, -6.0, -5.001, -4.999, -2.0, -0.5, 0.0, 0.7, 3.0, 8.0, 20.0]


def survival(x: np.ndarray, alpha: float) -> np.ndarray:
    """P(X > x), uniform if X is a unit normal at alpha, truncated to [0, inf)."""
    if alpha > -1:
        return stats.norm.sf(x - alpha) / stats.norm.sf(-alpha)
    # sf(z) = exp(-z^2 / 2) erfcx(z / sqrt 2) / 2, without the squares that cancel.
    ratio = special.erfcx((x - alpha) / math.sqrt(2)) / special.erfcx(-alpha / math.sqrt(2))
    return np.exp(alpha * x - x**2 / 2) * ratio


@pytest.mark.parametrize("alpha", ALPHAS)
@DTYPES
def test_truncated_normal_law(alpha, dtype):
    x = truncated_normal(torch.full((50_000,), alpha, dtype=dtype))
    assert x.dtype == dtype and bool((x >= 0).all()) and bool(torch.isfinite(x).all())
    uniform = survival(x.double().numpy(), alpha)
    assert stats.kstest(uniform, "uniform").pvalue > ALPHA
    # Two per cent of the width is seen.
    assert stats.kstest(np.clip(uniform * 1.05, 0, 1), "uniform").pvalue < ALPHA


def test_truncated_normal_tails_are_drawn():
    # KS tests are blind to tails: compare the rate of P(X > x) = 1e-4, and the smallest values.
    n = 1_000_000
    for alpha in (-20.0, 0.0, 3.0):
        x = truncated_normal(torch.full((n,), alpha, dtype=torch.float64))
        uniform = survival(x.numpy(), alpha)
        for p in (1e-4, 1 - 1e-4):
            z = z_scores(np.array([(uniform < p).sum()]), n, np.array([p]))
            assert abs(z[0]) < bound(6)


@pytest.mark.parametrize("bound", [5.0, 12.0, 100.0, 1e4])
def test_far_tail_inversion(bound):
    """Deterministic, as no KS test sees that Newton's method stopped a step early."""
    u = torch.tensor([1e-300, 1e-12, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-6], dtype=torch.float64)
    x = _far_tail_excess(torch.full_like(u, bound), u.log())
    # log sf(1e4) = -5e7 leaves eight digits to a difference of two such numbers.
    tolerance = 1e-10 if bound < 1000 else 1e-6
    np.testing.assert_allclose(survival(x.numpy(), -bound), u.numpy(), rtol=tolerance)
