# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Rows with missing entries under machines whose parameters a network computes."""

import pytest
import torch

from pyro_ebm.distributions.clamped_sweep import ClampedSweep
from pyro_ebm.infer import impute, observed_log_likelihood
from pyro_ebm.nn import NeuralBoltzmannMachine


@pytest.mark.parametrize("visible", ["gaussian", "ising"])
def test_every_row_has_its_own_context_and_mask(visible: str) -> None:
    nbm = NeuralBoltzmannMachine(2, 5, 4, visible=visible, seed=0)
    context = torch.randn(6, 2)
    dist = nbm.condition(context)
    observed = torch.rand(6, 5) < 0.5
    value = torch.where(observed, dist.sample(), torch.nan)
    result = observed_log_likelihood(dist, value, observed)
    for i in range(6):
        alone = observed_log_likelihood(nbm.condition(context[i]), value[i], observed[i])
        torch.testing.assert_close(result.value[i], alone.value, atol=1e-5, rtol=1e-5)
    result.value.sum().backward()
    gradients = [p.grad for p in nbm.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    assert any(bool(g.any()) for g in gradients if g is not None)
    filled = impute(dist, value, observed, 3)
    assert filled.exact and filled.samples.shape == (3, 6, 5)
    v = ClampedSweep(dist, value, observed).run(filled.samples, 2)
    assert bool(dist.support.check(v).all())
