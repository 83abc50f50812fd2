# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Chains and what both majors of ArviZ say of them. Imports numpy only, for ``tests_arviz1``."""

import numpy as np


def chains() -> dict[str, np.ndarray]:
    """Autoregressive chains, bits made of them, and chains of which one sits elsewhere."""
    noise = np.random.default_rng(0).normal(size=(4, 300))
    x = noise.copy()
    for t in range(1, 300):
        x[:, t] = 0.6 * x[:, t - 1] + 0.8 * noise[:, t]
    apart = x.copy()
    apart[1] += 1.5
    return {"real": x, "bits": (x > 0.5).astype(float), "apart": apart, "single": apart[:1]}


#: mean, standard deviation, MCSE, R-hat, bulk and tail ESS, median R-hat of single chains; computed
#: with ArviZ 0.23.4.
EXPECTED = {
    "real": (-0.062115, 0.991513, 0.0591101, 1.014925, 283.61586, 487.95020, 1.013473),
    "bits": (0.283333, 0.450617, 0.0237549, 1.006441, 360.13980, 360.13980, 1.008678),
    "apart": (0.312885, 1.201553, 0.3352814, 1.243896, 13.42142, 54.99095, 1.013473),
    "single": (-0.071961, 1.042243, 0.1261649, 1.021719, 68.57433, 140.53677, 1.021719),
}
