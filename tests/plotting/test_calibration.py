# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The picture of simulation-based calibration shows what was tested."""

import numpy as np
from matplotlib.figure import Figure

from pyro_ebm import plotting
from pyro_ebm.diagnostics import CalibrationResult
from pyro_ebm.diagnostics.rank_tests import rank_test


def test_calibration_ranks() -> None:
    generator = np.random.default_rng(0)
    ranks = {"good": generator.integers(0, 16, 100), "bad": generator.integers(0, 9, 100)}
    tests = {name: rank_test(own, 15, 8) for name, own in ranks.items()}
    result = CalibrationResult(ranks, 15, 8, 0.01, tests, 1.0)
    figure = plotting.calibration_ranks(result)
    assert isinstance(figure, Figure)
    assert [ax.get_ylabel() for ax in figure.axes[::2]] == ["good", "bad"]
    heights = [sum(patch.get_height() for patch in ax.patches[1:]) for ax in figure.axes[::2]]
    assert heights == [100, 100]
    assert "FAILED" in figure.get_supxlabel()
    assert len(plotting.calibration_ranks(result, max_quantities=1).axes) == 2
