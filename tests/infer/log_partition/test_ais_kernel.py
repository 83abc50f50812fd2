# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""AIS as a kernel: weighted particles under every driver."""

import itertools
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from torch import Size, Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import (
    AIS,
    BlockGibbs,
    GibbsLangevin,
    LogPartitionWarning,
    VectorizedMCMC,
    exact_log_partition,
)
from pyro_ebm.infer.log_partition import ais_kernel
from pyro_ebm.infer.paths import GeometricPath, MachinePath
from tests.distributions.families import ALL_PAIRS, UNBOUNDED, batch_indices, random_rbm, to_machine
from tests.infer.reference import Z_LIMIT, exact_features, features, z_score

FINITE_PAIRS = [p for p in ALL_PAIRS if not set(p) <= set(UNBOUNDED)]


def coupled(pair: tuple[str, str] = ("bernoulli", "ising"), scale: float = 0.6) -> RBM:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        rbm = random_rbm(pair, offsets=True)
        weight = scale * torch.randn(*rbm.weight.shape, dtype=torch.float64)
    return RBM(rbm.visible, rbm.hidden, weight)


def run(kernel: AIS, num_chains: int = 20_000, num_samples: int = 2) -> VectorizedMCMC:
    mcmc = VectorizedMCMC(kernel, num_samples, num_chains=num_chains, disable_progbar=True)
    mcmc.run()
    return mcmc


def weights(mcmc: VectorizedMCMC, log_z: Tensor) -> Tensor:
    """Weights over Z, shape (chains * draws, *batch); their mean is one."""
    return (mcmc.sample_stats["log_weight"].flatten(0, 1) - log_z).exp()


class TestUnbiased:
    @pytest.mark.parametrize("pair", FINITE_PAIRS, ids=["-".join(p) for p in FINITE_PAIRS])
    def test_every_pair(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True, num_hidden=1)
        mcmc = run(AIS(rbm, 3))
        assert abs(z_score(weights(mcmc, exact_log_partition(rbm)), 1.0)) < Z_LIMIT

    @pytest.mark.parametrize("options", range(5))
    def test_every_option(self, options: int) -> None:
        rbm = coupled(("gaussian", "ising") if options == 3 else ("bernoulli", "ising"))
        detour = MachinePath.from_checkpoints([RBM(rbm.visible, rbm.hidden, -rbm.weight), rbm])
        chosen: dict[str, Any] = [
            {"base": "uniform"},
            {"schedule": "adaptive"},
            {"schedule": torch.tensor([0.0, 0.2, 0.5, 1.0])},
            {"kernel": lambda d: GibbsLangevin(d, 0.5)},
            {"path": detour},
        ][options]
        mcmc = run(AIS(rbm, 4, **chosen))
        assert abs(z_score(weights(mcmc, exact_log_partition(rbm)), 1.0)) < Z_LIMIT

    def test_float32(self) -> None:
        rbm = coupled().to(torch.float32)
        mcmc = run(AIS(rbm, 5))
        assert mcmc.sample_stats["log_weight"].dtype == torch.float64
        assert mcmc.get_samples()["v"].dtype == torch.float32
        assert abs(z_score(weights(mcmc, exact_log_partition(rbm)), 1.0)) < Z_LIMIT

    @pytest.mark.parametrize("expand", [None, (2, 3), (4, 2, 3)], ids=str)
    @pytest.mark.parametrize("kernel", [None, BlockGibbs], ids=["own", "kernel"])
    def test_batches(self, expand: tuple[int, ...] | None, kernel: Any) -> None:
        """Every element of a batch by itself, and of an expanded one with particles of its own."""
        rbm = random_rbm(("bernoulli", "categorical"), offsets=True, batched=True)
        rbm = rbm if expand is None else rbm.expand(expand)
        mcmc = run(AIS(rbm, 3, kernel=kernel), num_chains=8000, num_samples=1)
        w = weights(mcmc, exact_log_partition(rbm))
        assert w.shape == (8000, *rbm.batch_shape)
        for element in w.flatten(1).unbind(1):
            assert abs(z_score(element, 1.0)) < Z_LIMIT
        assert w.flatten(1).T.unique(dim=0).shape[0] == rbm.batch_shape.numel()

    def test_expanded_along_an_inner_axis(self) -> None:
        """States and weights of an element belong together: the means that they give are right."""
        rbm = random_rbm(("bernoulli", "ising"), offsets=True)
        weight = torch.stack([rbm.weight, -rbm.weight, 0.3 * rbm.weight]).unsqueeze(1)
        batched = RBM(rbm.visible, rbm.hidden, weight).expand((3, 4))
        kernel = AIS(batched, 4)
        mean, error = kernel.expectation(run(kernel, 10_000, 1))
        for i, k in itertools.product(range(3), range(4)):
            expected = exact_features(to_machine(RBM(rbm.visible, rbm.hidden, weight[i, 0])))[:3]
            assert ((mean[i, k] - expected) / error[i, k]).abs().max() < Z_LIMIT


class TestExpectations:
    def test_moments(self) -> None:
        """Weighted moments are those of the machine; unweighted ones are not."""
        rbm = coupled(scale=1.5)
        kernel = AIS(rbm, 2)
        mcmc = run(kernel, 50_000, 1)
        expected = exact_features(to_machine(rbm))
        mean, error = kernel.expectation(mcmc, features)
        assert ((mean - expected) / error).abs().max() < Z_LIMIT
        plain = features(mcmc.get_samples()["v"])
        z = (plain.mean(0) - expected) / (plain.std(0) / len(plain) ** 0.5)
        assert z.abs().max() > 10.0

    def test_error_is_that_of_repetitions(self) -> None:
        rbm = coupled(scale=1.5)
        kernel = AIS(rbm, 2)
        means = [kernel.expectation(run(kernel, 300, 1), lambda v: v.sum(-1)) for _ in range(100)]
        spread = torch.stack([m.mean for m in means]).std()
        claimed = torch.stack([m.std_error for m in means]).mean()
        assert 0.6 < claimed / spread < 1.6

    def test_resampled_states_are_samples(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, batched=True)
        kernel = AIS(rbm, 3)
        mcmc = run(kernel, 100_000, 1)
        generator = torch.Generator().manual_seed(0)
        states = kernel.resample(mcmc, 20_000, generator=generator)
        assert states.shape == (20_000, 2, 3, 3)
        for index in batch_indices(rbm.batch_shape):
            v = states[(slice(None), *index)]
            expected = exact_features(to_machine(rbm, index))
            z = (features(v).mean(0) - expected) / (features(v).std(0) / 20_000**0.5)
            assert z.abs().max() < Z_LIMIT
        again = kernel.resample(mcmc, 20_000, generator=torch.Generator().manual_seed(0))
        assert torch.equal(states, again)

    def test_function_of_another_shape(self) -> None:
        kernel = AIS(coupled(), 2)
        with pytest.raises(ValueError, match=r"function must return values of shape \(40,\)"):
            kernel.expectation(run(kernel, 20), lambda v: v.mean())


class TestEstimate:
    def test_is_that_of_the_weights(self) -> None:
        rbm = coupled()
        kernel = AIS(rbm, 20, base="uniform", kernel=BlockGibbs)
        mcmc = run(kernel, 500)
        estimate = kernel.estimate(mcmc)
        error = estimate.value - exact_log_partition(rbm)
        assert error.abs() < Z_LIMIT * estimate.std_error and estimate.side == "below"
        assert estimate.settings == {
            "method": "ais",
            "num_chains": 1000,
            "num_temperatures": 20,
            "schedule": "linear",
            "base": "uniform",
            "seed": None,
            "kernel": "BlockGibbs",
        }

    def test_warns(self) -> None:
        kernel = AIS(coupled(scale=6.0), 1)
        with pytest.warns(LogPartitionWarning):
            assert not kernel.estimate(run(kernel, 50)).reliable

    def test_other_kernels_have_no_weights(self) -> None:
        mcmc = VectorizedMCMC(BlockGibbs(coupled()), 5, num_chains=5, disable_progbar=True)
        mcmc.run()
        with pytest.raises(ValueError, match="did not run an AIS kernel"):
            AIS(coupled()).estimate(mcmc)
        with pytest.raises(ValueError, match="did not run an AIS kernel"):
            AIS(coupled()).estimate(MCMC(BlockGibbs(coupled()), 5))


class TestDrivers:
    @pytest.mark.parametrize("num_chains", [1, 2])
    def test_pyros_mcmc(self, num_chains: int) -> None:
        rbm = coupled()
        kernel = AIS(rbm, 5)
        mcmc = MCMC(
            kernel,
            num_samples=150,
            warmup_steps=3,
            num_chains=num_chains,
            disable_progbar=True,
            mp_context="fork",
        )
        mcmc.run()
        estimate = kernel.estimate(mcmc)
        assert estimate.log_weights is not None and len(estimate.log_weights) == 150 * num_chains
        error = estimate.value - exact_log_partition(rbm)
        assert error.abs() < Z_LIMIT * estimate.std_error
        assert kernel.expectation(mcmc).mean.shape == (3,)
        assert mcmc.diagnostics()["log_weight"]["chain 0"].shape == (150,)

    def test_draws_do_not_hang_on_the_state(self) -> None:
        rbm = coupled()
        results = []
        for start in (torch.zeros(4, 3), torch.ones(4, 3)):
            kernel = AIS(rbm, 3, generator=torch.Generator().manual_seed(1))
            kernel.chain_shape = Size((4,))
            kernel.setup(0)
            results.append(kernel.sample({"v": start.double()})["v"])
        assert torch.equal(*results)

    def test_draws_are_independent(self) -> None:
        """Weights and states of one draw say nothing about the next."""
        mcmc = run(AIS(coupled(scale=1.5), 2), 5000, 10)
        for x in (
            mcmc.sample_stats["log_weight"],
            mcmc.get_samples(group_by_chain=True)["v"][..., 0],
        ):
            x = x.double() - x.double().mean()
            products = (x[:, 1:] * x[:, :-1]).flatten()
            assert abs(z_score(products, 0.0)) < Z_LIMIT

    def test_weights_of_the_warm_up_are_forgotten(self) -> None:
        mcmc = VectorizedMCMC(AIS(coupled(), 2), 3, 5, num_chains=7, disable_progbar=True)
        mcmc.run()
        assert mcmc.sample_stats["log_weight"].shape == (7, 3)
        assert mcmc.sample_stats["energy"].shape == (7, 3)
        torch.testing.assert_close(
            mcmc.sample_stats["energy"],
            coupled().free_energy(mcmc.get_samples(group_by_chain=True)["v"]),
        )

    def test_generators(self) -> None:
        before = torch.get_rng_state()
        rbm = coupled()

        def draw(path: Any, own: int | None, kernel: Any = None) -> Tensor:
            generator = None if own is None else torch.Generator().manual_seed(own)
            return run(
                AIS(rbm, 3, path=path, generator=generator, kernel=kernel), 10
            ).get_samples()["v"]

        assert torch.equal(draw(None, 1), draw(None, 1))
        assert torch.equal(draw(None, 1, BlockGibbs), draw(None, 1, BlockGibbs))
        assert not torch.equal(draw(None, 1), draw(None, 2))

        def path(seed: int) -> GeometricPath:
            return GeometricPath(rbm, rbm.visible, torch.Generator().manual_seed(seed))

        assert torch.equal(draw(path(1), None), draw(path(1), None))
        assert torch.equal(draw(path(1), 3), draw(path(2), 3))
        assert torch.equal(before, torch.get_rng_state())

    def test_start_is_drawn_from_the_base(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), batched=True).expand((4, 2, 3))
        kernel = AIS(rbm, 3)
        kernel.chain_shape = Size((5, 2))
        start = kernel.initial_params["v"]
        assert start.shape == (5, 2, 4, 2, 3, 3) and rbm.support.check(start).all()

    def test_model(self) -> None:
        """Log Z of the posterior, whose exact value follows from the tilted machine."""
        rbm = coupled(("bernoulli", "bernoulli"))

        def model(data: Tensor) -> None:
            v = pyro.sample("hidden_truth", rbm)
            with pyro.plate("pixels", 3):
                pyro.sample("x", dist.Normal(v, 0.7), obs=data)

        kernel = AIS(model, 20)
        mcmc = VectorizedMCMC(kernel, 2, num_chains=500, disable_progbar=True)
        mcmc.run(torch.tensor([1.0, 0.2, -0.3], dtype=torch.float64))
        estimate = kernel.estimate(mcmc)
        error = estimate.value - exact_log_partition(kernel.target)
        assert error.abs() < Z_LIMIT * estimate.std_error
        mean, std_error = kernel.expectation(mcmc)
        expected = exact_features(to_machine(kernel.target))[:3]
        assert ((mean - expected) / std_error).abs().max() < Z_LIMIT


class TestMistakesAreCaught:
    def test_weights_of_the_step_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Weights that belong to other states give other means."""
        original = ais_kernel._log_weights
        monkeypatch.setattr(ais_kernel, "_log_weights", lambda mcmc: original(mcmc).roll(1, 0))
        rbm = coupled(scale=1.5)
        kernel = AIS(rbm, 2)
        mean, error = kernel.expectation(run(kernel, 50_000, 1), features)
        assert ((mean - exact_features(to_machine(rbm))) / error).abs().max() > 10.0

    def test_base_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rbm = coupled()
        monkeypatch.setattr(GeometricPath, "log_partition_base", torch.tensor(0.0))
        assert abs(z_score(weights(run(AIS(rbm, 3)), exact_log_partition(rbm)), 1.0)) > 10.0


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_temperatures": 0}, "num_temperatures must be at least 1, got 0"),
            ({"base": "flat"}, 'base must be None, "uniform" or a tensor'),
            ({"schedule": "cosine"}, "schedule must be one of"),
            ({"schedule": torch.tensor([0.0, 0.5])}, "must increase strictly from 0 to 1"),
        ],
    )
    def test_wrong(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            AIS(coupled(), **options)

    def test_path_and_kernel(self) -> None:
        rbm = coupled()
        path = GeometricPath(rbm, rbm.visible)
        with pytest.raises(ValueError, match="give base or path, not both"):
            AIS(rbm, path=path, base="uniform")
        with pytest.raises(ValueError, match="path leads to another machine"):
            AIS(coupled(scale=0.1), path=path)
        with pytest.raises(TypeError, match="kernel must make a kernel"):
            AIS(rbm, kernel=lambda d: d)

    def test_not_normalisable(self) -> None:
        one = torch.ones(2)
        rbm = RBM(units.Gaussian(one, one), units.Gaussian(one, one), 2.0 * torch.eye(2))
        with pytest.raises(ValueError, match="not normalisable"):
            AIS(rbm)

    def test_no_part_of_gibbs(self) -> None:
        """A compound kernel needs parts that leave their target invariant."""
        kernel = AIS(coupled(), 3)
        with pytest.raises(ValueError, match="cannot be a part of Gibbs"):
            kernel.refresh()


def test_naive_average_of_log_weights_is_not_the_estimate() -> None:
    rbm = coupled(scale=3.0)
    kernel = AIS(rbm, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogPartitionWarning)
        estimate = kernel.estimate(run(kernel, 5000))
    assert estimate.log_weights is not None
    assert estimate.log_weights.mean() < estimate.value - 0.5
