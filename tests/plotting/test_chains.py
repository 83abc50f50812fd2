# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of chains: what they show, read back from the figure."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_ebm import plotting
from pyro_ebm.diagnostics import Convergence, SamplerComparison, SamplerRun
from pyro_ebm.plotting.chains import _ranks


def heights(ax: Any) -> np.ndarray:
    return np.array([bar.get_height() for bar in ax.patches if bar.get_width() < 0.1])


class TestRankHistograms:
    def test_one_chain_above(self, tmp_path: Path) -> None:
        """Ranks of the highest chain of four fill the upper quarter."""
        values = torch.randn(4, 400)
        values[2] += 100.0
        figure = plotting.rank_histograms(values, num_bins=20)
        bars = heights(figure.axes[5])
        assert bars[:15].sum() == 0 and bars[15:].sum() == 400
        assert len(figure.axes) == 8
        plotting.save(figure, tmp_path / "a.png")

    def test_equal_values_are_flat(self) -> None:
        """Bits of chains that agree give flat histograms."""
        bits = np.tile(np.arange(400) % 2, (4, 1))
        for ax in plotting.rank_histograms(bits).axes[1::2]:
            assert np.ptp(heights(ax)) <= 2
        assert np.ptp(heights(plotting.rank_histograms(np.ones((3, 400))).axes[1])) <= 2

    def test_ranks(self) -> None:
        ranks = _ranks(np.array([[3.0, 1.0, 4.0], [2.0, 6.0, 5.0]]))
        np.testing.assert_allclose(ranks * 6, [[2.5, 0.5, 3.5], [1.5, 5.5, 4.5]])
        # Three equal values in two chains share the first three ranks.
        ranks = _ranks(np.array([[1.0, 1.0], [1.0, 2.0]]))
        np.testing.assert_allclose(ranks * 4, [[0.75, 2.25], [1.5, 3.5]])

    def test_many_chains(self, tmp_path: Path) -> None:
        figure = plotting.rank_histograms(torch.randn(100, 30), max_chains=5)
        assert len(figure.axes) == 10
        assert "5 of 100 chains" in figure._supxlabel.get_text()
        assert [ax.get_ylabel() for ax in figure.axes[::2]] == ["0", "24", "49", "74", "99"]
        plotting.save(figure, tmp_path / "a.png")

    @pytest.mark.parametrize("shape", [(4,), (1, 10), (2, 3, 4)], ids=str)
    def test_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"shape \(chains >= 2, draws\), got"):
            plotting.rank_histograms(torch.zeros(shape))


def comparison(sizes: dict[str, list[float]], r_hat: dict[str, float]) -> SamplerComparison:
    runs = [
        SamplerRun(
            name,
            seed,
            2.0,
            1.0,
            10,
            4,
            1,
            {
                "energy": Convergence(0, 1, 0.1, r_hat[name], ess, ess, 1),
                "projection": Convergence(0, 1, 0.1, 1.0, 2 * ess, ess, 1),
            },
        )
        for name, values in sizes.items()
        for seed, ess in enumerate(values)
    ]
    return SamplerComparison(tuple(runs), {"num_chains": 4, "budget": "2 s"})


class TestSamplerComparison:
    def test_dots_are_rates(self, tmp_path: Path) -> None:
        ours = comparison({"a": [200.0, 400.0], "b": [20.0, 40.0]}, {"a": 1.0, "b": 3.0})
        figure = plotting.sampler_comparison(ours)
        energy, projection = figure.axes
        assert [energy.get_title(), projection.get_title()] == ["energy", "projection"]
        assert [label.get_text() for label in energy.get_yticklabels()] == ["a", "b"]
        dots = energy.collections[0].get_offsets()
        np.testing.assert_allclose(np.asarray(dots), [[100.0, 0.0], [200.0, 0.0]])
        np.testing.assert_allclose(
            np.asarray(projection.collections[1].get_offsets())[:, 0], [20, 40]
        )
        assert energy.get_xscale() == "log" and energy.get_xlim() == (10.0, 1000.0)
        # Chains that have not mixed are hollow.
        faces = [tuple(dots.get_facecolor()[0][:3]) for dots in energy.collections]
        assert faces[1] == (1.0, 1.0, 1.0) != faces[0]
        assert "hollow" in figure._suptitle.get_text()
        plotting.save(figure, tmp_path / "a.png")

    def test_nothing_moved(self, tmp_path: Path) -> None:
        figure = plotting.sampler_comparison(comparison({"a": [math.nan, 5.0]}, {"a": 1.0}))
        assert figure.axes[0].get_xscale() == "linear"
        plotting.save(figure, tmp_path / "a.png")
