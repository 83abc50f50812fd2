# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Machines whose mixing is known."""

import torch

from pyro_ebm.distributions import RBM, BernoulliRBM, IsingRBM


def two_modes(strength: float = 0.35) -> RBM:
    """All spins up or all down. Block Gibbs does not cross between them within 10,000 sweeps."""
    return IsingRBM(strength * torch.ones(16, 8), torch.full((16,), 0.02), torch.zeros(8))


def fast(num_visible: int = 8) -> RBM:
    """Almost independent bits."""
    weight = 0.1 * torch.randn(num_visible, 4)
    return BernoulliRBM(weight, torch.zeros(num_visible), torch.zeros(4))
