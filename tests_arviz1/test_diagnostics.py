# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Chains through ArviZ 1.x and back, with numpy arrays and stand-ins for Pyro's objects."""

from pathlib import Path
from types import ModuleType
from typing import Any

import arviz as az
import numpy as np
import pytest

NUM_CHAINS, NUM_DRAWS = 2, 50


class Tensor:
    """As much of a torch tensor as is asked for."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.shape = array.shape

    def detach(self) -> "Tensor":
        return self

    cpu = detach

    def numpy(self) -> np.ndarray:
        return self._array


class Chains:
    """pyro.infer.MCMC: draws by site, diagnostics by chain."""

    def __init__(self, draws: np.ndarray, energy: np.ndarray) -> None:
        self._draws = draws
        self.num_samples = draws.shape[1]
        self._diagnostics = [{"divergences": [], "energy": Tensor(e)} for e in energy]

    def get_samples(self, group_by_chain: bool) -> dict[str, Tensor]:
        assert group_by_chain
        return {"v": Tensor(self._draws)}


class VectorizedChains(Chains):
    """pyro_ebm.infer.VectorizedMCMC: numbers of every draw by name."""

    def __init__(self, draws: np.ndarray, energy: np.ndarray) -> None:
        super().__init__(draws, energy)
        del self._diagnostics
        self.sample_stats = {"energy": Tensor(energy)}


@pytest.fixture
def draws() -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 2, (NUM_CHAINS, NUM_DRAWS, 3)).astype(np.float32)


@pytest.fixture
def energy() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(NUM_CHAINS, NUM_DRAWS))


@pytest.fixture(params=["mcmc", "vectorized", "mapping"])
def tree(
    request: pytest.FixtureRequest, diagnostics: ModuleType, draws: np.ndarray, energy: np.ndarray
) -> Any:
    options: dict[str, Any] = {"dims": {"v": ["pixel"]}, "coords": {"pixel": ["a", "b", "c"]}}
    if request.param == "mapping":
        posterior: Any = {"v": draws}
        options["sample_stats"] = {"energy": energy}
    else:
        chains = {"mcmc": Chains, "vectorized": VectorizedChains}[request.param]
        posterior = chains(draws, energy)
    return diagnostics.to_inference_data(posterior, **options)


def test_values_and_dims(tree: Any, draws: np.ndarray, energy: np.ndarray) -> None:
    assert type(tree).__name__ == "DataTree"
    v = tree["posterior"]["v"]
    assert v.dims == ("chain", "draw", "pixel")
    assert list(v.coords["pixel"].values) == ["a", "b", "c"]
    np.testing.assert_array_equal(v.values, draws)
    assert tree["sample_stats"]["energy"].dims == ("chain", "draw")
    np.testing.assert_array_equal(tree["sample_stats"]["energy"].values, energy)


def test_arviz_can_work_with_it(tree: Any, draws: np.ndarray) -> None:
    summary = az.summary(tree, round_to="none")
    assert list(summary.index) == ["v[a]", "v[b]", "v[c]"]
    means = summary["mean"].to_numpy().astype(float)
    np.testing.assert_allclose(means, draws.mean((0, 1)), atol=1e-6)
    assert np.isfinite(az.bfmi(tree)["energy"].values).all()


def test_netcdf(tree: Any, tmp_path: Path) -> None:
    for name in ("h5netcdf", "h5py"):
        pytest.importorskip(name)
    path = tmp_path / "chains.nc"
    tree.to_netcdf(path, engine="h5netcdf")
    again = az.from_netcdf(path, engine="h5netcdf")
    for group in ("posterior", "sample_stats"):
        assert again[group].to_dataset().equals(tree[group].to_dataset())


def test_booleans_become_numbers(diagnostics: ModuleType) -> None:
    """ArviZ 1.x subtracts draws, which booleans do not allow."""
    tree = diagnostics.to_inference_data({"v": np.array([[True, False, True, True]] * 2)})
    assert tree["posterior"]["v"].dtype == np.float32
    mean = az.summary(tree, round_to="none")["mean"].to_numpy().astype(float)
    assert mean == pytest.approx([0.75])


def test_no_stats(diagnostics: ModuleType, draws: np.ndarray) -> None:
    tree = diagnostics.to_inference_data({"v": draws})
    assert list(tree.children) == ["posterior"]


@pytest.mark.parametrize("wrong", [None, 3, "v"], ids=repr)
def test_no_chains(diagnostics: ModuleType, wrong: Any) -> None:
    with pytest.raises(TypeError, match="MCMC object or a mapping of arrays"):
        diagnostics.to_inference_data(wrong)


def test_wrong_shapes(diagnostics: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"'v' must have shape \(chains, draws, \.\.\.\)"):
        diagnostics.to_inference_data({"v": np.zeros(4)})
    with pytest.raises(ValueError, match="chains and draws differ"):
        diagnostics.to_inference_data({"v": np.zeros((2, 4)), "w": np.zeros((2, 5))})
