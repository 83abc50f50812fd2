# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of parallel tempering: what they show, read back from the figure."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_ebm import plotting
from pyro_ebm.infer import ParallelTempering, VectorizedMCMC
from tests.diagnostics.machines import two_modes


def test_real_run(tmp_path: Path) -> None:
    """The kernel's own report and states, and the same number of round trips by both."""
    kernel = ParallelTempering(two_modes(), betas=[0.0, 0.3, 0.5, 1.0])
    kernel.save_params = ["v", "v.identity"]
    mcmc = VectorizedMCMC(kernel, 100, 20, num_chains=3, disable_progbar=True)
    mcmc.run()
    report = mcmc.diagnostics()["tempering"]["chain 0"]
    figure = plotting.tempering_ladder(report)
    assert len(figure.axes) == 3 and len(figure.axes[0].patches) == 3
    plotting.save(figure, tmp_path / "ladder.png")
    identity = mcmc.get_samples(group_by_chain=True)["v.identity"]
    for chain in range(3):
        figure = plotting.replica_paths(identity, chain=chain)
        words = figure._supxlabel.get_text().split()
        # The kernel has also seen the state before the first draw.
        assert abs(int(words[2]) - int(report["round_trips"][chain])) <= 1
    plotting.save(figure, tmp_path / "paths.png")


class TestLadder:
    def report(self) -> dict[str, torch.Tensor]:
        return {
            "betas": torch.tensor([0.0, 0.2, 1.0]),
            "swap_rate": torch.tensor([0.4, 0.8]),
            "round_trips": torch.tensor([3, 5]),
            "energy_mean": torch.tensor([1.0, 0.0, -5.0]),
            "energy_std": torch.ones(3),
        }

    def test_numbers(self, tmp_path: Path) -> None:
        figure = plotting.tempering_ladder(self.report())
        rates, betas, energies = figure.axes
        assert [bar.get_height() for bar in rates.patches] == pytest.approx([0.4, 0.8])
        assert betas.get_lines()[0].get_ydata().tolist() == pytest.approx([0.0, 0.2, 1.0])
        assert energies.get_lines()[0].get_ydata().tolist() == [1.0, 0.0, -5.0]
        assert figure._supxlabel.get_text() == "round trips: 8 in 2 chains, 3 to 5 a chain"
        plotting.save(figure, tmp_path / "a.png")

    def test_batch_of_machines(self, tmp_path: Path) -> None:
        report = self.report()
        report["swap_rate"] = torch.tensor([[0.4, 0.6], [0.7, 0.9]])
        for name in ("energy_mean", "energy_std"):
            report[name] = report[name].unsqueeze(-1).expand(3, 2)
        report["round_trips"] = torch.tensor([4])
        figure = plotting.tempering_ladder(report)
        assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx([0.5, 0.8])
        assert figure._supxlabel.get_text() == "4 round trips"
        plotting.save(figure, tmp_path / "a.png")

    def test_only_what_is_needed(self) -> None:
        report = {name: self.report()[name] for name in ("betas", "swap_rate")}
        assert len(plotting.tempering_ladder(report).axes) == 2

    def test_sizes(self) -> None:
        report = self.report() | {"swap_rate": torch.tensor([0.4])}
        with pytest.raises(ValueError, match="3 levels have 2 pairs, but there are 1 swap rates"):
            plotting.tempering_ladder(report)


class TestPaths:
    #: One chain of three replicas: 0 goes up and down again, 2 comes down and goes up.
    IDENTITY = torch.tensor([[[0, 1, 2], [1, 0, 2], [1, 2, 0], [2, 1, 0], [2, 0, 1], [0, 2, 1]]])

    def test_positions(self, tmp_path: Path) -> None:
        figure = plotting.replica_paths(self.IDENTITY, num_highlighted=1, sweeps_per_draw=5)
        lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
        line = lines["replica 0: 1 round trips"]
        assert line.get_ydata().tolist() == [0, 1, 2, 2, 1, 0]
        assert line.get_xdata().tolist() == [5, 10, 15, 20, 25, 30]
        assert figure._supxlabel.get_text().startswith("chain 0: 1 round trips of all 3 replicas")
        plotting.save(figure, tmp_path / "a.png")

    def test_no_round_trips(self) -> None:
        still = torch.arange(3).expand(2, 10, 3)
        assert (
            "chain 1: 0 round trips"
            in plotting.replica_paths(still, chain=-1)._supxlabel.get_text()
        )

    def test_trips_start_at_level_0(self) -> None:
        identity = np.array([[[0, 1], [1, 0], [0, 1], [1, 0]]])
        text = plotting.replica_paths(identity)._supxlabel.get_text()
        # Replica 0 starts at level 0 and comes back once; replica 1 starts at the top.
        assert text.startswith("chain 0: 2 round trips")

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(chains, draws, levels\) and hold chain 0"):
            plotting.replica_paths(torch.zeros(3, 4))
        with pytest.raises(ValueError, match="hold chain 2"):
            plotting.replica_paths(torch.zeros(2, 3, 4), chain=2)
