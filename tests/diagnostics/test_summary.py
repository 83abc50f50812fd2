# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Summaries of chains: their numbers, and that their flags see what is wrong."""

import json
import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_ebm.diagnostics import ChainSummary, convergence_of, magnetisation, summarize_chains
from pyro_ebm.distributions import BernoulliRBM
from pyro_ebm.infer import BlockGibbs, ParallelTempering, VectorizedMCMC
from tests.diagnostics.machines import fast, two_modes


def run(kernel: Any, num_samples: int = 200, warmup: int = 50, num_chains: int = 8) -> Any:
    mcmc = VectorizedMCMC(kernel, num_samples, warmup, num_chains, disable_progbar=True)
    mcmc.run()
    return mcmc


def flagged(summary: ChainSummary, words: str) -> bool:
    return any(words in flag for flag in summary.flags)


class TestVerdict:
    def test_independent_draws_are_fine(self) -> None:
        rbm = fast()
        summary = summarize_chains(rbm.sample((4, 500)), rbm, max_r_hat=1.02)
        assert summary.reliable and summary.flags == ()
        assert "nothing suspicious found" in str(summary)

    def test_modes(self) -> None:
        """Every chain looks converged; together they do not."""
        rbm = two_modes()
        start = torch.ones(8, 16)
        start[4:] = -1.0
        kernel = BlockGibbs(rbm)
        mcmc = VectorizedMCMC(
            kernel, 300, num_chains=8, initial_params={"v": start}, disable_progbar=True
        )
        mcmc.run()
        summary = summarize_chains(mcmc, rbm)
        assert summary.rows["leading direction"].r_hat > 1.5
        assert summary.rows["leading direction"].r_hat_single < 1.05
        assert flagged(summary, "chains sit in different modes")
        assert flagged(summary, "R-hat of") and flagged(summary, "effective sample size of")
        assert not summary.reliable and "! chains sit" in str(summary)

    def test_modes_of_equal_energy_and_magnetisation(self) -> None:
        pattern = torch.tensor([1.0, -1.0]).repeat(8)
        v = pattern * torch.tensor([1.0, -1.0]).repeat(4).view(8, 1, 1).expand(8, 100, 16)
        flips = torch.rand(8, 100, 16) < 0.02
        summary = summarize_chains(torch.where(flips, -v, v))
        assert summary.rows["leading direction"].sits_in_modes
        assert not summary.rows["magnetisation"].sits_in_modes
        assert flagged(summary, "leading direction")

    def test_one_mode_only_is_not_seen(self) -> None:
        """What the documentation warns of."""
        rbm = two_modes()
        mcmc = VectorizedMCMC(
            BlockGibbs(rbm),
            800,
            initial_params={"v": torch.ones(4, 16)},
            num_chains=4,
            disable_progbar=True,
        )
        mcmc.run()
        assert not flagged(summarize_chains(mcmc, rbm), "modes")

    def test_tempering_is_better(self) -> None:
        rbm = two_modes()
        summary = summarize_chains(run(ParallelTempering(rbm), 500, 200), rbm)
        assert summary.rows["leading direction"].r_hat < 1.1
        assert not flagged(summary, "modes")

    def test_single_chain(self) -> None:
        summary = summarize_chains(run(BlockGibbs(two_modes()), num_chains=1))
        assert flagged(summary, "there is one chain")
        assert summary.rows["energy"].r_hat < 1.1

    def test_stuck(self) -> None:
        v = torch.rand(4, 100, 6).round()
        v[1] = v[1, :1]
        v[2] = 0.0
        summary = summarize_chains(v)
        assert summary.num_stuck == 2 and flagged(summary, "2 of 4 chains never moved")

    def test_too_few_draws(self) -> None:
        rbm = fast()
        v = rbm.sample((4, 20))
        assert flagged(summarize_chains(v, rbm), "below 400 (also")
        assert not flagged(summarize_chains(v, rbm, min_ess=1.0), "below")

    def test_not_finite(self) -> None:
        v = torch.randn(4, 20, 3)
        v[0, 3, 0] = math.inf
        summary = summarize_chains(v)
        assert flagged(summary, "magnetisation has infinite or undefined values")

    def test_constant_numbers_are_no_reason(self) -> None:
        v = torch.rand(4, 500, 6).round()
        v[..., 2] = 1.0
        summary = summarize_chains(v, units=[2], max_r_hat=1.05)
        assert summary.rows["v[2]"].is_constant and summary.reliable
        assert json.loads(json.dumps(summary.to_dict()))["rows"]["v[2]"]["ess_per_second"] is None


class TestNumbers:
    def test_rows(self) -> None:
        rbm = fast()
        mcmc = run(BlockGibbs(rbm), num_chains=4)
        v = mcmc.get_samples(group_by_chain=True)["v"]
        summary = summarize_chains(
            mcmc, rbm, units=[3, -1], functions={"pair": lambda v: v[..., 0] * v[..., 1]}
        )
        expected = {
            "energy": rbm.free_energy(v),
            "magnetisation": v.mean(-1),
            "v[3]": v[..., 3],
            "v[7]": v[..., 7],
            "pair": v[..., 0] * v[..., 1],
        }
        assert list(summary.rows) == [*list(expected)[:2], "leading direction", *list(expected)[2:]]
        for name, values in expected.items():
            assert summary.rows[name] == convergence_of(values.double().numpy())

    def test_recorded_energy(self) -> None:
        rbm = fast()
        mcmc = run(BlockGibbs(rbm), num_chains=4)
        recorded, computed = (
            astuple(summarize_chains(mcmc, d).rows["energy"]) for d in (None, rbm)
        )
        assert recorded == pytest.approx(computed, rel=1e-3)

    def test_rates(self) -> None:
        rbm = fast()
        mcmc = run(BlockGibbs(rbm, 5), num_chains=4)
        summary = summarize_chains(mcmc)
        assert mcmc.seconds is not None and mcmc.seconds > 0.0
        assert summary.seconds == mcmc.seconds and summary.sweeps_per_draw == 5
        ess = summary.rows["energy"].ess_bulk
        assert summary.ess_per_second("energy") == pytest.approx(ess / mcmc.seconds)
        assert summary.ess_per_sweep("energy") == pytest.approx(ess / (4 * 200 * 5))
        given = summarize_chains(mcmc, seconds=2.0, sweeps_per_draw=7)
        assert given.ess_per_second("energy") == pytest.approx(ess / 2.0)
        assert given.sweeps_per_draw == 7
        unknown = summarize_chains(mcmc.get_samples(group_by_chain=True), rbm)
        assert unknown.ess_per_second("energy") is None and unknown.ess_per_sweep("energy") is None
        assert "ESS/s" not in str(unknown) and "ESS/s" in str(given)

    def test_replicas_count(self) -> None:
        kernel = ParallelTempering(fast(), betas=[0.0, 0.5, 1.0], num_steps=2)
        assert summarize_chains(run(kernel)).sweeps_per_draw == 6

    def test_the_kernels_own_state_is_left_out(self) -> None:
        kernel = ParallelTempering(fast(), betas=[0.0, 0.5, 1.0])
        kernel.save_params = ["v", "v.identity"]
        rows = summarize_chains(run(kernel)).rows
        assert list(rows) == ["energy", "magnetisation", "leading direction"]

    def test_batches(self) -> None:
        rbm = BernoulliRBM(0.1 * torch.randn(2, 5, 3), torch.zeros(5), torch.zeros(3))
        mcmc = run(BlockGibbs(rbm), num_chains=4)
        v = mcmc.get_samples(group_by_chain=True)["v"]
        for summary in (summarize_chains(mcmc), summarize_chains(v, rbm)):
            names = ["energy[0]", "energy[1]", "magnetisation[0]", "magnetisation[1]"]
            assert list(summary.rows)[:4] == names
            own = magnetisation(v[:, :, 1]).double().numpy()
            assert summary.rows["magnetisation[1]"] == convergence_of(own)

    def test_report(self) -> None:
        summary = summarize_chains(run(BlockGibbs(fast())), units=[1])
        numbers = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
        assert numbers["rows"]["v[1]"]["r_hat"] == summary.rows["v[1]"].r_hat
        assert numbers["num_chains"] == 8 and numbers["flags"] == list(summary.flags)
        table = summary.to_markdown().splitlines()
        assert len(table) == 2 + len(summary.rows) and table[0].startswith(
            "|  | mean | sd | MCSE |"
        )


class TestKindsOfChains:
    @pytest.mark.parametrize("num_chains", [1, 2])
    def test_pyro_mcmc(self, num_chains: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 1)
        rbm = fast()
        mcmc = MCMC(BlockGibbs(rbm), 50, 5, num_chains=num_chains, disable_progbar=True)
        mcmc.run()
        ours = summarize_chains(mcmc)
        assert ours.num_chains == num_chains and ours.seconds is None
        assert ours.rows["energy"].mean == pytest.approx(
            rbm.free_energy(mcmc.get_samples()["v"]).mean().item(), rel=1e-5
        )

    def test_no_machine(self) -> None:
        """Numbers of NUTS: one row for each."""

        def model() -> None:
            pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))

        mcmc = MCMC(NUTS(model), num_samples=20, warmup_steps=5, disable_progbar=True)
        mcmc.run()
        rows = summarize_chains(mcmc).rows
        assert list(rows) == ["x", "y[0]", "y[1]", "z: leading direction"]

    def test_site_of_a_model(self) -> None:
        rbm = fast(4)

        def model(noisy: Tensor) -> None:
            clean = pyro.sample("clean", rbm)
            pyro.sample("noisy", dist.Normal(clean, 0.5).to_event(1), obs=noisy)

        mcmc = VectorizedMCMC(BlockGibbs(model), 20, num_chains=4, disable_progbar=True)
        mcmc.run(torch.ones(4))
        rows = summarize_chains(mcmc, units=[0]).rows
        assert list(rows) == ["energy", "magnetisation", "leading direction", "clean[0]"]

    @pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
    def test_mappings(self, kind: Any) -> None:
        values = np.random.default_rng(0).integers(0, 2, (4, 50, 5))
        draws = {"clean": kind(values), "scale": kind(values[..., 0] + 0.5)}
        assert list(summarize_chains(draws, site="clean").rows) == [
            "magnetisation",
            "leading direction",
            "scale",
        ]
        assert list(summarize_chains({"clean": kind(values)}).rows) == [
            "magnetisation",
            "leading direction",
        ]


class TestErrors:
    def test_type(self) -> None:
        with pytest.raises(TypeError, match="MCMC object or a mapping of arrays, got int"):
            summarize_chains(3)
        with pytest.raises(TypeError, match=r"functions\['x'\] must be callable, got int"):
            wrong: Any = {"x": 3}
            summarize_chains(torch.zeros(2, 10, 3), functions=wrong)

    def test_shapes(self) -> None:
        rbm = fast()
        with pytest.raises(ValueError, match="at least 8 draws of every chain, got 7"):
            summarize_chains(torch.zeros(2, 7, 8))
        with pytest.raises(ValueError, match=r"shape \(chains, draws, \*event\) throughout"):
            summarize_chains(torch.zeros(2))
        with pytest.raises(ValueError, match="throughout"):
            summarize_chains({"v": torch.zeros(2, 10, 3), "w": torch.zeros(2, 11)})
        with pytest.raises(ValueError, match=r"must have shape \(chains, draws, \*\(8,\)\)"):
            summarize_chains(torch.zeros(2, 10, 7), rbm)

    def test_names(self) -> None:
        with pytest.raises(ValueError, match=r"site must be one of \['v'\], got 'h'"):
            summarize_chains(torch.zeros(2, 10, 3), site="h")
        with pytest.raises(ValueError, match="units must be between 0 and 2, got \\[3\\]"):
            summarize_chains(torch.zeros(2, 10, 3), units=[0, 3])
        two = {"a": torch.zeros(2, 10, 8), "b": torch.zeros(2, 10, 8)}
        with pytest.raises(ValueError, match="site must name the state of dist"):
            summarize_chains(two, fast())
