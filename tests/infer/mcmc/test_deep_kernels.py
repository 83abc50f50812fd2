# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Kernels on deep machines: their law by enumeration, the names of their states, depth 1."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro.infer import MCMC
from pyro.infer.mcmc import StreamingMCMC
from torch import Tensor

from pyro_ebm.diagnostics import to_inference_data
from pyro_ebm.distributions import DBM, RBM, GibbsSweep
from pyro_ebm.infer import (
    MALA,
    BlockGibbs,
    DiscreteLangevin,
    GibbsLangevin,
    GibbsWithGradients,
    MetropolisBlockGibbs,
    ParallelTempering,
    VectorizedMCMC,
)
from tests.deep_machines import random_dbm
from tests.infer.mcmc.deep_states import even_moments
from tests.infer.reference import Z_LIMIT, features, z_scores

NUM_CHAINS = 4000
BITS = ("bernoulli",) * 3


def machine(families: tuple[str, ...] = BITS, num_units: int = 3, **options: Any) -> DBM:
    torch.manual_seed(len(families))
    return random_dbm(families, num_units, offsets=True, **options)


def tempering(dbm: DBM) -> ParallelTempering:
    return ParallelTempering(dbm, 3, adapt=False)


def tempering_of_means(dbm: DBM) -> ParallelTempering:
    means = torch.linspace(0.2, 0.8, dbm.sizes[0], dtype=torch.float64)
    return ParallelTempering(dbm, 3, base=means)


def visited(kernel: Any, num_steps: int) -> tuple[VectorizedMCMC, dict[str, Tensor]]:
    """The last states of many chains, independent of each other."""
    mcmc = VectorizedMCMC(kernel, 1, num_steps, NUM_CHAINS, disable_progbar=True)
    mcmc.run()
    return mcmc, mcmc.get_samples()


CASES: list[tuple[Callable[[DBM], Any], tuple[str, ...], int, int]] = [
    (BlockGibbs, BITS, 3, 40),
    (BlockGibbs, ("ising", "categorical", "bernoulli", "multinomial"), 2, 40),
    (BlockGibbs, ("bernoulli", "ising", "bernoulli", "ising", "bernoulli"), 2, 60),
    (BlockGibbs, ("gaussian", "bernoulli", "ising"), 2, 40),
    (tempering, BITS, 3, 40),
    (tempering_of_means, BITS, 3, 40),
    (tempering, ("gaussian", "bernoulli", "ising"), 2, 60),
    (lambda dbm: GibbsLangevin(dbm, -0.5), ("gaussian", "bernoulli", "ising"), 2, 60),
    (GibbsLangevin, ("gaussian", "bernoulli", "gaussian"), 1, 60),
    (MALA, ("gaussian", "bernoulli", "gaussian"), 1, 100),
    (lambda dbm: GibbsWithGradients(dbm, 10), BITS, 3, 20),
    (lambda dbm: DiscreteLangevin(dbm, num_steps=4), BITS, 3, 20),
]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: "-".join((getattr(c[0], "__name__", ""), *c[1]))
)
def test_law_of_all_even_layers(case: Any) -> None:
    make, families, num_units, num_steps = case
    dbm = machine(families, num_units)
    _, samples = visited(make(dbm), num_steps)
    names = ["v", *(f"h{number}" for number in range(2, dbm.depth + 1, 2))]
    assert sorted(samples) == sorted(names)
    x = dbm.join_even([samples[name] for name in names])
    assert z_scores(features(x), even_moments(dbm)).abs().max() < Z_LIMIT


class TestDrivers:
    def test_chains_in_one_tensor(self) -> None:
        dbm = machine()
        mcmc = VectorizedMCMC(BlockGibbs(dbm), 7, 2, 5, disable_progbar=True)
        mcmc.run()
        samples = mcmc.get_samples(group_by_chain=True)
        assert {n: tuple(s.shape) for n, s in samples.items()} == {"v": (5, 7, 3), "h2": (5, 7, 3)}
        assert {"v", "h2", "energy"} <= set(mcmc.diagnostics())
        energy = dbm.bipartite().free_energy(torch.cat([samples["v"], samples["h2"]], -1))
        torch.testing.assert_close(mcmc.sample_stats["energy"], energy)

    @pytest.mark.parametrize("kernel", [BlockGibbs, tempering])
    def test_one_chain(self, kernel: Any) -> None:
        mcmc = MCMC(kernel(machine()), 6, 2, num_chains=1, disable_progbar=True)
        mcmc.run()
        samples = mcmc.get_samples(group_by_chain=True)
        assert {n: tuple(s.shape) for n, s in samples.items()} == {"v": (1, 6, 3), "h2": (1, 6, 3)}

    def test_streaming(self) -> None:
        mcmc = StreamingMCMC(BlockGibbs(machine()), 50, 2, disable_progbar=True)
        mcmc.run()
        chain = mcmc.get_statistics(group_by_chain=False)
        assert set(chain) == {"v", "h2"}

    @pytest.mark.parametrize("driver", [MCMC, VectorizedMCMC])
    def test_arviz(self, driver: Any) -> None:
        mcmc = driver(BlockGibbs(machine()), 10, 2, num_chains=1, disable_progbar=True)
        mcmc.run()
        data = to_inference_data(mcmc, dims={"h2": ["feature"]})
        assert tuple(data.posterior["h2"].dims) == ("chain", "draw", "feature")
        assert data.posterior["v"].shape == (1, 10, 3)

    def test_batch_of_machines(self) -> None:
        dbm = machine(batched=True)
        mcmc = VectorizedMCMC(BlockGibbs(dbm), 4, 1, 5, disable_progbar=True)
        mcmc.run()
        assert mcmc.get_samples(group_by_chain=True)["h2"].shape == (5, 4, 2, 3, 3)

    def test_goes_on_without_a_product(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The field of the latest draw is known, though its parts are what is handed back."""
        kernel, count, product = BlockGibbs(machine()), 0, GibbsSweep.hidden_theta
        kernel.setup(0)
        params = kernel.sample(kernel.initial_params)

        def counting(self: GibbsSweep, v: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return product(self, v)

        monkeypatch.setattr(GibbsSweep, "hidden_theta", counting)
        params = kernel.sample(params)
        after_own = count
        kernel.sample({name: value.clone() for name, value in params.items()})
        assert count - after_own == after_own + 1


class TestStart:
    def test_given(self) -> None:
        dbm = machine()
        start = {"v": torch.ones(3, 3).double(), "h2": torch.zeros(3, 3).double()}
        kernel = BlockGibbs(dbm)
        mcmc = VectorizedMCMC(kernel, 1, 0, 3, initial_params=start, disable_progbar=True)
        mcmc.run()
        assert mcmc.get_samples()["h2"].shape == (3, 3)

    @pytest.mark.parametrize(
        ("start", "message"),
        [
            ({"v": torch.ones(3)}, "must hold 'h2' of shape"),
            ({"v": torch.ones(3), "h2": torch.ones(2)}, "'h2' of shape \\(3,\\)"),
            ({"v": torch.ones(6)}, "'v' of shape \\(3,\\)"),
            ({"v": torch.ones(3), "h2": torch.full((3,), 0.5)}, r"\['h2'\] is outside of"),
        ],
    )
    def test_refused(self, start: dict[str, Tensor], message: str) -> None:
        kernel = BlockGibbs(machine())
        with pytest.raises(ValueError, match=message):
            kernel.initial_params = start

    def test_a_machine_is_no_model(self) -> None:
        with pytest.raises(TypeError, match="BlockGibbs samples a machine"):
            MetropolisBlockGibbs(machine())

    def test_units_that_a_kernel_does_not_fit(self) -> None:
        with pytest.raises(ValueError, match="Gaussian visible units"):
            GibbsLangevin(machine())
        with pytest.raises(ValueError, match="alpha must broadcast"):
            GibbsLangevin(machine(("gaussian", *BITS)), torch.zeros(5))
        with pytest.raises(ValueError, match="needs bits, spins or one-hot groups"):
            GibbsWithGradients(machine(("ising", *BITS)))
        with pytest.raises(ValueError, match="base must have shape"):
            ParallelTempering(machine(), base=torch.zeros(6))


class TestDepthOne:
    """A machine with one hidden layer is the RBM, draw for draw."""

    @pytest.mark.parametrize(
        "kernel", [BlockGibbs, tempering, GibbsWithGradients, DiscreteLangevin]
    )
    def test_same_draws(self, kernel: Any) -> None:
        dbm = machine(("bernoulli", "ising"))
        found = []
        for target in (dbm, rbm_of(dbm)):
            torch.manual_seed(0)
            mcmc = VectorizedMCMC(kernel(target), 5, 3, 4, disable_progbar=True)
            mcmc.run()
            found.append(mcmc.get_samples())
        assert list(found[0]) == ["v"] == list(found[1])
        assert torch.equal(found[0]["v"], found[1]["v"])

    def test_gaussian(self) -> None:
        dbm = machine(("gaussian", "ising"))
        found = []
        for target in (dbm, rbm_of(dbm)):
            torch.manual_seed(0)
            mcmc = VectorizedMCMC(GibbsLangevin(target), 5, 3, 4, disable_progbar=True)
            mcmc.run()
            found.append(mcmc.get_samples()["v"])
        assert torch.equal(*found)


def rbm_of(dbm: DBM) -> RBM:
    visible, hidden = dbm.units
    return RBM(
        visible,
        hidden,
        dbm.weights[0],
        visible_offset=dbm.offsets[0],
        hidden_offset=dbm.offsets[1],
    )


def test_tempering_over_checkpoints() -> None:
    dbm = machine()
    early = DBM(dbm.units, [0.5 * w for w in dbm.weights], offsets=dbm.offsets)
    _, samples = visited(ParallelTempering.from_checkpoints([early, dbm]), 40)
    x = torch.cat([samples["v"], samples["h2"]], -1)
    assert z_scores(features(x), even_moments(dbm)).abs().max() < Z_LIMIT
