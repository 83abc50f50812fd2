# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Parallel tempering under the drivers of Pyro and under our own, and its numbers as they are read."""

import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from pyro.infer.mcmc.api import StreamingMCMC
from torch import Tensor

from pyro_ebm.diagnostics import to_inference_data
from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import ParallelTempering, VectorizedMCMC
from tests.distributions.families import batch_indices, random_rbm, to_machine
from tests.infer.reference import Z_LIMIT, exact_features, features, z_scores

#: Pyro forks while its logging thread runs, which Python 3.12 and later warn of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)
NUMBERS = {"betas", "swap_rate", "round_trips", "energy_mean", "energy_std"}


def machine() -> BernoulliRBM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight, visible, hidden = torch.randn(3, 2), torch.randn(3), torch.randn(2)
        return BernoulliRBM(0.7 * weight.double(), visible.double(), hidden.double())


def run(driver: Any, kernel: ParallelTempering, num_samples: int = 60, **options: Any) -> Any:
    options = {"warmup_steps": 30, "disable_progbar": True, **options}
    mcmc = driver(kernel, num_samples=num_samples, **options)
    mcmc.run()
    return mcmc


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 4)


def check_tempering(
    numbers: dict[str, Tensor], chains: tuple[int, ...], batch: tuple[int, ...] = ()
) -> None:
    assert set(numbers) == NUMBERS
    num_levels = len(numbers["betas"])
    assert numbers["swap_rate"].shape == (num_levels - 1, *batch)
    assert numbers["round_trips"].shape == (*chains, *batch)
    assert numbers["energy_mean"].shape == numbers["energy_std"].shape == (num_levels, *batch)


class TestMCMC:
    @pytest.mark.parametrize("num_chains", [1, 2])
    def test_in_one_process(self, num_chains: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 1)
        mcmc = run(MCMC, ParallelTempering(machine()), num_chains=num_chains)
        self.check(mcmc, num_chains)

    @pytest.mark.usefixtures("four_cores")
    def test_in_processes(self) -> None:
        mcmc = run(MCMC, ParallelTempering(machine()), num_chains=2, mp_context="fork")
        assert type(mcmc.sampler).__name__ == "_MultiSampler"
        self.check(mcmc, 2)

    @staticmethod
    def check(mcmc: MCMC, num_chains: int) -> None:
        samples = mcmc.get_samples(group_by_chain=True)
        assert list(samples) == ["v"] and samples["v"].shape == (num_chains, 60, 3)
        diagnostics = mcmc.diagnostics()
        names = [f"chain {i}" for i in range(num_chains)]
        assert list(diagnostics["tempering"]) == list(diagnostics["energy"]) == names
        for name, chain in zip(names, samples["v"], strict=True):
            torch.testing.assert_close(diagnostics["energy"][name], machine().free_energy(chain))
            check_tempering(diagnostics["tempering"][name], ())
        stats = to_inference_data(mcmc).sample_stats
        assert set(stats.data_vars) == {"energy"} and stats["energy"].shape == (num_chains, 60)
        mcmc.summary()

    @pytest.mark.parametrize("levels", [60, 30])
    def test_as_many_levels_as_draws(self, levels: int) -> None:
        """Numbers of the ladder are not taken for those of draws."""
        betas = torch.linspace(0, 1, levels)
        mcmc = run(MCMC, ParallelTempering(machine(), betas=betas), num_samples=levels)
        assert set(to_inference_data(mcmc).sample_stats.data_vars) == {"energy"}
        mcmc = run(
            VectorizedMCMC, ParallelTempering(machine(), betas=betas), levels, num_chains=levels
        )
        assert set(to_inference_data(mcmc).sample_stats.data_vars) == {"energy"}

    def test_means_are_right(self) -> None:
        mcmc = run(MCMC, ParallelTempering(machine(), num_steps=2), 1500)
        expected = exact_features(to_machine(machine()))[:3]
        samples = mcmc.get_samples()["v"]
        n_eff = mcmc.diagnostics()["v"]["n_eff"]
        z = (samples.mean(0) - expected) / (samples.std(0) / n_eff.sqrt())
        assert z.abs().max() < Z_LIMIT and n_eff.min() > 300.0

    def test_nothing_is_left_from_the_chain_before(self) -> None:
        kernel, results = ParallelTempering(machine()), []
        for _ in range(2):
            pyro.set_rng_seed(3)
            mcmc = run(MCMC, kernel)
            results.append((mcmc.get_samples()["v"], kernel.betas))
        assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]

    def test_a_start(self) -> None:
        start = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
        bias = torch.full((3,), -50.0, dtype=torch.float64)
        rbm = BernoulliRBM(100.0 * torch.eye(3, dtype=torch.float64), bias, bias)
        # Both levels start there, and weights this strong keep them.
        kernel = ParallelTempering(rbm, betas=[0.9, 1.0])
        mcmc = run(MCMC, kernel, 5, warmup_steps=0, initial_params={"v": start})
        assert (mcmc.get_samples()["v"] == start).all()

    def test_all_replicas_may_be_stored(self) -> None:
        names = ["v", "v.replicas"]
        kernel = ParallelTempering(machine(), 4)
        mcmc = run(MCMC, kernel, 10, warmup_steps=0, save_params=names)
        samples = mcmc.get_samples()
        assert samples["v.replicas"].shape == (10, 4, 3)
        assert torch.equal(samples["v.replicas"][:, -1], samples["v"])

    def test_pickled(self) -> None:
        kernel = pickle.loads(ForkingPickler.dumps(ParallelTempering(machine())))
        self.check(run(MCMC, kernel), 1)


class TestStreamingMCMC:
    def test_statistics(self) -> None:
        mcmc = run(StreamingMCMC, ParallelTempering(machine()), 1000, num_chains=2)
        statistics = mcmc.get_statistics(group_by_chain=True)
        assert set(statistics) == {(0, "v"), (1, "v")}
        expected = exact_features(to_machine(machine()))[:3]
        for value in statistics.values():
            assert value["count"] == 1000
            # A standard error of 0.016 for independent draws; these are correlated.
            assert (value["mean"] - expected).abs().max() < 0.15
        check_tempering(mcmc.diagnostics()["tempering"]["chain 1"], ())


class TestVectorizedMCMC:
    def test_batched(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, batched=True)
        mcmc = run(VectorizedMCMC, ParallelTempering(rbm), 4, num_chains=2_000)
        last = mcmc.get_samples(group_by_chain=True)["v"][:, -1]
        for index in batch_indices(rbm.batch_shape):
            chains = features(last[(slice(None), *index)])
            assert z_scores(chains, exact_features(to_machine(rbm, index))).abs().max() < Z_LIMIT
        check_tempering(mcmc.diagnostics()["tempering"]["chain 7"], (2_000,), (2, 3))
        assert set(mcmc.sample_stats) == {"energy"}
        torch.testing.assert_close(mcmc.sample_stats["energy"][:, -1], rbm.free_energy(last))

    def test_given_start(self) -> None:
        start = torch.bernoulli(torch.full((8, 3), 0.5, dtype=torch.float64))
        mcmc = run(
            VectorizedMCMC, ParallelTempering(machine()), num_chains=8, initial_params={"v": start}
        )
        assert mcmc.get_samples(group_by_chain=True)["v"].shape == (8, 60, 3)
        assert set(mcmc.get_samples()) == {"v"}

    def test_starts_again_from_all_replicas(self) -> None:
        kernel = ParallelTempering(machine(), 3)
        start = {
            "v": torch.ones(8, 3, dtype=torch.float64),
            "v.replicas": torch.zeros(8, 3, 3, dtype=torch.float64),
        }
        mcmc = run(VectorizedMCMC, kernel, num_chains=8, warmup_steps=0, initial_params=start)
        assert mcmc.get_samples(group_by_chain=True)["v"].shape == (8, 60, 3)

    def test_one_chain_is_the_chain_of_mcmc(self) -> None:
        samples = []
        for driver in (VectorizedMCMC, MCMC):
            kernel = ParallelTempering(machine(), generator=torch.Generator().manual_seed(1))
            mcmc = run(driver, kernel, num_chains=1)
            samples.append(mcmc.get_samples(group_by_chain=True)["v"])
        assert torch.equal(*samples)

    def test_trajectory(self) -> None:
        machines = [random_rbm(("bernoulli", "ising"), scale=s) for s in (0.1, 1.0, 2.0)]
        kernel = ParallelTempering.from_checkpoints(machines)
        mcmc = run(VectorizedMCMC, kernel, 3, num_chains=20_000)
        last = mcmc.get_samples(group_by_chain=True)["v"][:, -1]
        expected = exact_features(to_machine(machines[-1]))
        assert z_scores(features(last), expected).abs().max() < Z_LIMIT


class TestModels:
    """The posterior of a machine whose units are seen through noise."""

    DATA = torch.tensor([0.2, -0.3, 1.4], dtype=torch.float64)

    @staticmethod
    def model(data: Tensor) -> None:
        pixels = pyro.sample("pixels", machine())
        pyro.sample("x", dist.Normal(pixels, 0.8).to_event(1), obs=data)

    def posterior(self) -> RBM:
        # (x - v)^2 / (2 s^2) is linear in bits: a field (x - 1/2) / s^2.
        return machine().tilt((self.DATA - 0.5) / 0.64)

    def test_posterior(self) -> None:
        mcmc = VectorizedMCMC(
            ParallelTempering(self.model), 2, 40, num_chains=15_000, disable_progbar=True
        )
        mcmc.run(self.DATA)
        last = mcmc.get_samples(group_by_chain=True)["pixels"][:, -1]
        expected = exact_features(to_machine(self.posterior()))
        assert z_scores(features(last), expected).abs().max() < Z_LIMIT
        torch.testing.assert_close(
            mcmc.sample_stats["energy"][:, -1], self.posterior().free_energy(last)
        )

    def test_names(self) -> None:
        kernel = ParallelTempering(self.model, 3)
        kernel.setup(0, self.DATA)
        params = kernel.sample(kernel.initial_params)
        names = {"pixels", "pixels.replicas", "pixels.identity", "pixels.parity"}
        assert set(params) == names and kernel.save_params == ["pixels"]

    def test_wrong_base(self) -> None:
        kernel = ParallelTempering(self.model, base=torch.zeros(7))
        with pytest.raises(ValueError, match=r"base must have shape \(\.\.\., 3\)"):
            kernel.setup(0, self.DATA)
