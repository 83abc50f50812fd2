# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Exact moments against sums over both layers from the definition."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM, units
from pyro_ebm.infer import exact_log_partition, exact_moments
from pyro_ebm.infer.log_partition.moments_exact import MachineMoments
from tests import brute_force
from tests.distributions.families import (
    ALL_PAIRS,
    UNBOUNDED,
    batch_indices,
    random_rbm,
    to_machine,
)

#: Two continuous layers have a closed form only where both are Gaussian.
GAUSSIAN = {"gaussian", "low_rank"}
EXACT = [p for p in ALL_PAIRS if not set(p) <= set(UNBOUNDED) or set(p) <= GAUSSIAN]


def reference(rbm: RBM, index: tuple[int, ...] = ()) -> MachineMoments:
    v, h, p = brute_force.joint(to_machine(rbm, index))
    p_v, p_h = p.sum(1), p.sum(0)
    arrays = (p_v @ v, p_h @ h, v.T @ (p_v[:, None] * v), v.T @ p @ h)
    return MachineMoments(*(torch.as_tensor(np.ascontiguousarray(a)) for a in arrays))


def tolerance(pair: tuple[str, str]) -> float:
    """The quadrature over two continuous layers has few digits."""
    return 1e-3 if set(pair) <= set(UNBOUNDED) else 1e-7


def assert_close(
    ours: MachineMoments,
    expected: MachineMoments,
    index: tuple[int, ...] = (),
    tolerance: float = 1e-7,
) -> None:
    for name in ("visible", "hidden", "visible_visible", "visible_hidden"):
        got: Tensor = getattr(ours, name)
        assert got.dtype == torch.float64
        torch.testing.assert_close(
            got[index], getattr(expected, name), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("pair", EXACT, ids="-".join)
@pytest.mark.parametrize("num_hidden", [1, 4])
def test_moments(pair: tuple[str, str], num_hidden: int) -> None:
    """Few hidden units: the hidden layer is enumerated; many: the visible one."""
    if num_hidden > 2 and pair[1] in UNBOUNDED:
        pytest.skip("the same machine as with one hidden unit")
    rbm = random_rbm(pair, offsets=True, num_hidden=num_hidden)
    assert_close(exact_moments(rbm), reference(rbm), tolerance=tolerance(pair))


@pytest.mark.parametrize(
    "pair", [("bernoulli", "ising"), ("multinomial", "bernoulli"), ("gaussian", "gaussian")]
)
def test_batches_and_expand(pair: tuple[str, str]) -> None:
    rbm = random_rbm(pair, offsets=True, batched=True, num_hidden=1)
    moments = exact_moments(rbm)
    assert moments.visible_hidden.shape == (2, 3, rbm.visible.size, rbm.hidden.size)
    for index in batch_indices(rbm.batch_shape):
        assert_close(moments, reference(rbm, index), index, tolerance(pair))
    large = exact_moments(rbm.expand((4, 2, 3)))
    assert_close(large, moments, (2,))


def test_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rbm = BernoulliRBM(torch.randn(12, 7), torch.randn(12), torch.randn(7))
    expected = exact_moments(rbm)
    monkeypatch.setattr("pyro_ebm.distributions.enumeration._CHUNK_ENTRIES", 100)
    assert_close(exact_moments(rbm), expected)


def test_covariance() -> None:
    """Its diagonal is that of bits, p (1 - p)."""
    rbm = random_rbm(("bernoulli", "relu"))
    moments = exact_moments(rbm)
    p = moments.visible
    torch.testing.assert_close(moments.covariance.diagonal(), p * (1.0 - p))


def test_gradient_of_log_partition() -> None:
    """E[v h'] is the derivative of log Z with respect to the weights."""
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    rbm = BernoulliRBM(weight, torch.randn(5).double(), torch.randn(3).double())
    (gradient,) = torch.autograd.grad(exact_log_partition(rbm), weight)
    torch.testing.assert_close(exact_moments(rbm).visible_hidden, gradient)


def test_refusals() -> None:
    one = torch.ones(2)
    relu = RBM(units.ReLU(one, one), units.ReLU(one, one), 0.1 * torch.eye(2))
    with pytest.raises(ValueError, match="a ReLU-ReLU machine has no finite layer"):
        exact_moments(relu)
    rbm = random_rbm(("bernoulli", "bernoulli"))
    with pytest.raises(ValueError, match="4 states, more than max_states=3; compare with held-out"):
        exact_moments(rbm, max_states=3)
    wrong: Any = torch.zeros(3)
    with pytest.raises(TypeError, match="dist must be an RBM, got Tensor"):
        exact_moments(wrong)
