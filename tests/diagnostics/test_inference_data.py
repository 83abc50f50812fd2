# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Chains through ArviZ and back (ArviZ 0.x here; ``tests_arviz1`` does the same for 1.x)."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.api import StreamingMCMC

from pyro_ebm.diagnostics import to_inference_data
from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import BlockGibbs, ParallelTempering, VectorizedMCMC

ROOT = Path(__file__).resolve().parents[2]
NUM_DRAWS = 50


def machine() -> RBM:
    return BernoulliRBM(torch.randn(3, 2), torch.randn(3), torch.randn(2))


def run(driver: Any, num_chains: int, rbm: RBM) -> Any:
    return run_kernel(BlockGibbs(rbm), driver, num_chains)


def run_kernel(kernel: Any, driver: Any, num_chains: int) -> Any:
    mcmc = driver(kernel, NUM_DRAWS, warmup_steps=5, num_chains=num_chains, disable_progbar=True)
    mcmc.run()
    return mcmc


@pytest.fixture(
    params=[(MCMC, 1), (MCMC, 2), (VectorizedMCMC, 4)], ids=["mcmc-1", "mcmc-2", "vectorized-4"]
)
def chains(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, RBM]:
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 1)
    driver, num_chains = request.param
    rbm = machine()
    return run(driver, num_chains, rbm), rbm


class TestChains:
    def test_values_and_dims(self, chains: tuple[Any, RBM]) -> None:
        mcmc, rbm = chains
        idata = to_inference_data(mcmc, dims={"v": ["pixel"]}, coords={"pixel": ["a", "b", "c"]})
        v = idata.posterior["v"]
        assert v.dims == ("chain", "draw", "pixel")
        assert v.shape == (mcmc.num_chains, NUM_DRAWS, 3)
        assert list(v.coords["pixel"].values) == ["a", "b", "c"]
        samples = mcmc.get_samples(group_by_chain=True)["v"]
        np.testing.assert_array_equal(v.values, samples.numpy())
        energy = idata.sample_stats["energy"]
        assert energy.dims == ("chain", "draw")
        np.testing.assert_allclose(energy.values, rbm.free_energy(samples).numpy(), rtol=1e-5)

    def test_arviz_can_work_with_it(self, chains: tuple[Any, RBM]) -> None:
        mcmc, _ = chains
        idata = to_inference_data(mcmc)
        summary = az.summary(idata)
        assert list(summary.index) == ["v[0]", "v[1]", "v[2]"]
        means = mcmc.get_samples()["v"].mean(0).numpy()
        np.testing.assert_allclose(summary["mean"], means, atol=6e-4)
        assert np.isfinite(az.bfmi(idata)).all()

    def test_netcdf(self, chains: tuple[Any, RBM], tmp_path: Path) -> None:
        idata = to_inference_data(chains[0], dims={"v": ["pixel"]})
        path = str(tmp_path / "chains.nc")
        idata.to_netcdf(path)
        again = az.from_netcdf(path)
        for group in ("posterior", "sample_stats"):
            assert again[group].equals(idata[group])

    def test_batched_machine(self) -> None:
        rbm = BernoulliRBM(torch.randn(2, 3, 2), torch.randn(3), torch.randn(2))
        idata = to_inference_data(
            run(VectorizedMCMC, 4, rbm), dims={"v": ["row", "pixel"], "energy": ["row"]}
        )
        assert idata.posterior["v"].dims == ("chain", "draw", "row", "pixel")
        assert idata.sample_stats["energy"].dims == ("chain", "draw", "row")

    def test_given_stats_replace_the_kernels(self, chains: tuple[Any, RBM]) -> None:
        mcmc, _ = chains
        stats = {"lp": torch.zeros(mcmc.num_chains, NUM_DRAWS)}
        idata = to_inference_data(mcmc, sample_stats=stats)
        assert list(idata.sample_stats) == ["lp"]
        assert "sample_stats" not in to_inference_data(mcmc, sample_stats={}).groups()


def normal() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))


def test_chains_of_other_kernels() -> None:
    """NUTS records lists and single numbers, which are no numbers of draws."""
    mcmc = MCMC(NUTS(normal), num_samples=20, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    idata = to_inference_data(mcmc)
    assert idata.posterior["x"].shape == (1, 20)
    assert idata.groups() == ["posterior"]


def test_from_pyro_works_too() -> None:
    """ArviZ 0.x asks every kernel for a model and for divergences."""
    mcmc = run(MCMC, 1, machine())
    idata = az.from_pyro(mcmc)
    assert idata.posterior["v"].shape == (1, NUM_DRAWS, 3)
    assert not idata.sample_stats["diverging"].values.any()


class TestMappings:
    @pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray, list], ids=lambda k: k.__name__)
    def test_values(self, kind: Any) -> None:
        array = np.arange(24.0).reshape(2, 4, 3)
        values = array.tolist() if kind is list else kind(array)
        idata = to_inference_data({"v": values}, sample_stats={"lp": kind(array[..., 0])})
        np.testing.assert_array_equal(idata.posterior["v"].values, array)
        np.testing.assert_array_equal(idata.sample_stats["lp"].values, array[..., 0])

    def test_several_sites_with_dims(self) -> None:
        idata = to_inference_data(
            {"v": torch.zeros(2, 4, 3), "scale": torch.ones(2, 4)},
            dims={"v": ("pixel",)},
            coords={"pixel": range(10, 13)},
        )
        assert idata.posterior["v"].dims == ("chain", "draw", "pixel")
        assert list(idata.posterior.coords["pixel"].values) == [10, 11, 12]
        assert idata.posterior["scale"].dims == ("chain", "draw")
        assert idata.groups() == ["posterior"]

    def test_tensors_that_want_gradients(self) -> None:
        idata = to_inference_data({"v": torch.ones(2, 4, requires_grad=True)})
        assert (idata.posterior["v"].values == 1.0).all()

    @pytest.mark.parametrize("library", ["torch", "numpy"])
    def test_booleans_become_numbers(self, library: str) -> None:
        draws: Any = torch.tensor([[True, False, True, True]] * 2)
        draws = draws if library == "torch" else draws.numpy()
        idata = to_inference_data({"v": draws})
        assert idata.posterior["v"].dtype == np.float32
        np.testing.assert_array_equal(idata.posterior["v"].values, [[1, 0, 1, 1]] * 2)
        assert az.summary(idata)["mean"].item() == pytest.approx(0.75)

    def test_integers_stay(self) -> None:
        idata = to_inference_data({"v": torch.tensor([[1, 0, 1, 1]] * 2)})
        assert idata.posterior["v"].dtype == np.int64


class TestErrors:
    @pytest.mark.parametrize("wrong", [None, 3, torch.zeros(2, 3), "v"], ids=repr)
    def test_no_chains(self, wrong: Any) -> None:
        name = type(wrong).__name__
        with pytest.raises(TypeError, match=f"MCMC object or a mapping of arrays, got {name}"):
            to_inference_data(wrong)

    def test_streaming_keeps_no_draws(self) -> None:
        mcmc = StreamingMCMC(BlockGibbs(machine()), 10, warmup_steps=0, disable_progbar=True)
        mcmc.run()
        with pytest.raises(TypeError, match="got StreamingMCMC"):
            to_inference_data(mcmc)

    @pytest.mark.parametrize("shape", [(), (4,)], ids=str)
    def test_no_chain_axis(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"'v' must have shape \(chains, draws, \.\.\.\), got"):
            to_inference_data({"v": torch.zeros(shape)})

    def test_sites_of_different_length(self) -> None:
        with pytest.raises(ValueError, match=r"chains and draws differ: .*\(2, 4\).*\(2, 5\)"):
            to_inference_data({"v": torch.zeros(2, 4), "w": torch.zeros(2, 5)})

    def test_stats_of_different_length(self) -> None:
        with pytest.raises(ValueError, match=r"chains and draws differ: .*\(2, 4\).*\(4, 2\)"):
            to_inference_data({"v": torch.zeros(2, 4)}, sample_stats={"lp": torch.zeros(4, 2)})

    def test_before_run(self) -> None:
        with pytest.raises(RuntimeError, match=r"call run\(\) first"):
            to_inference_data(VectorizedMCMC(BlockGibbs(machine()), 10))


def test_names_are_made_identifiers() -> None:
    """Pyro's kernels use spaces in names, which NetCDF and attribute access do not like."""
    chain = {"acceptance rate": np.zeros(4), "divergences": [], "step size": 0.1}
    # An array that is not one number a draw, such as a ladder of temperatures, is left out.
    chain["ladder"] = np.zeros(7)
    posterior = SimpleNamespace(
        get_samples=lambda group_by_chain: {"x": np.zeros((2, 4))},
        num_samples=4,
        _diagnostics=[chain, chain],
    )
    idata = to_inference_data(posterior)
    assert list(idata.sample_stats) == ["acceptance_rate"]


class WithLadder(BlockGibbs):
    """A kernel that also tells of things that are no numbers of draws."""

    def diagnostics(self) -> dict[str, Any]:
        return super().diagnostics() | {
            "ladder": torch.linspace(0, 1, 7),
            "rates": torch.ones(NUM_DRAWS, 7),
            "tempering": {"betas": torch.zeros(NUM_DRAWS, 4)},
        }


def test_other_arrays_are_left_out() -> None:
    mcmc = VectorizedMCMC(WithLadder(machine()), NUM_DRAWS, num_chains=4, disable_progbar=True)
    mcmc.run()
    assert list(to_inference_data(mcmc).sample_stats) == ["energy"]


def test_tempering() -> None:
    kernel = ParallelTempering(machine(), betas=[0.0, 0.5, 1.0])
    kernel.save_params = ["v", "v.identity"]
    idata = to_inference_data(run_kernel(kernel, VectorizedMCMC, 4))
    assert list(idata.sample_stats) == ["energy"]
    assert idata.posterior["v.identity"].shape == (4, NUM_DRAWS, 3)


def test_wall_time() -> None:
    """That of the draws, without the warm-up."""
    mcmc = VectorizedMCMC(BlockGibbs(machine()), 8, 400, num_chains=4, disable_progbar=True)
    assert mcmc.seconds is None
    started = time.perf_counter()
    mcmc.run()
    assert mcmc.seconds is not None
    assert 0.0 < mcmc.seconds < 0.5 * (time.perf_counter() - started)


def test_arviz_is_loaded_only_where_it_is_used() -> None:
    code = "import sys, pyro_ebm.diagnostics; assert 'arviz' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
