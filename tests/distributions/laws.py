# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Tests of laws: p-values of samples against exact probabilities.

Every check returns the smallest p-value times the number of comparisons (Bonferroni), and callers
demand more than ALPHA: with fixed seeds a sound sampler fails less often than once in a million.
"""

import math

import numpy as np
from scipy import stats

from tests import brute_force
from tests.brute_force import Layer, Machine

ALPHA = 1e-7


def z_test(samples: np.ndarray, mean: np.ndarray, second: np.ndarray) -> float:
    """Means of the columns of ``samples`` against exact first and second moments."""
    # What does not vary (the square of a spin) must be right to rounding.
    error = np.sqrt(np.maximum(second - mean**2, 1e-16) / len(samples))
    z = np.abs(samples.mean(0) - mean) / error
    return min(1.0, z.size * math.erfc(z.max() / math.sqrt(2)))


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    """Counts of cells against exact probabilities; cells of fewer than 10 expected are pooled."""
    expected = p * counts.sum()
    small = expected < 10
    if small.any():
        counts = np.append(counts[~small], counts[small].sum())
        expected = np.append(expected[~small], expected[small].sum())
        if expected[-1] == 0:
            assert counts[-1] == 0, "impossible states were drawn"
            counts, expected = counts[:-1], expected[:-1]
    return float(stats.chisquare(counts, expected, sum_check=False).pvalue)


def state_index(states: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Numbers of the states that the rows of ``samples`` are equal to."""
    radix = 7.0 ** np.arange(states.shape[1])
    keys = (states + 1) @ radix
    order = np.argsort(keys)
    found = order[np.searchsorted(keys[order], (samples + 1) @ radix).clip(max=len(keys) - 1)]
    assert np.array_equal(states[found], samples), "a sample is no state of the layer"
    return found


def layer_law(layer: Layer, x: np.ndarray, p: np.ndarray, samples: np.ndarray) -> float:
    """p-value of samples of a layer whose law is p on the points x (states or nodes)."""
    if not layer.is_continuous:
        return chi_square(np.bincount(state_index(x, samples), minlength=len(x)), p)

    def statistics(points: np.ndarray) -> np.ndarray:
        first = [points, points**2]
        return np.column_stack([*first, points[:, :1] * points[:, 1:]])

    exact = statistics(x)
    return z_test(statistics(samples), p @ exact, p @ exact**2)


def exact_law(machine: Machine) -> tuple[np.ndarray, np.ndarray]:
    """Visible points and their probabilities."""
    v, _, p = brute_force.joint(machine)
    return v, p.sum(1)
