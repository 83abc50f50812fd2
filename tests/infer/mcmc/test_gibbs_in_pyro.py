# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Block Gibbs as a kernel of Pyro's own drivers, in one process and in several."""

import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import MCMC
from pyro.infer.mcmc.api import StreamingMCMC
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import BlockGibbs
from tests.distributions.families import random_rbm, to_machine
from tests.infer.reference import Z_LIMIT, exact_features

#: Pyro forks while its logging thread runs, which Python 3.12 and later warn of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def machine() -> BernoulliRBM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight, visible, hidden = torch.randn(3, 2), torch.randn(3), torch.randn(2)
        return BernoulliRBM(0.7 * weight.double(), visible.double(), hidden.double())


def run(kernel: BlockGibbs, num_samples: int = 60, **options: Any) -> MCMC:
    options = {"warmup_steps": 10, "disable_progbar": True, **options}
    mcmc = MCMC(kernel, num_samples=num_samples, **options)
    mcmc.run()
    return mcmc


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pyro keeps one core for itself and runs chains one after the other if too few are left."""
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 4)


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 1)


def check_chains(mcmc: MCMC, rbm: RBM, num_chains: int, num_samples: int) -> None:
    """Shapes, independence and energies of the chains of one run."""
    samples = mcmc.get_samples(group_by_chain=True)["v"]
    assert samples.shape == (num_chains, num_samples, *rbm.batch_shape, 3)
    assert samples.dtype == rbm.weight.dtype and not samples.requires_grad
    assert len({tuple(chain.flatten().tolist()) for chain in samples}) == num_chains
    diagnostics = mcmc.diagnostics()
    names = [f"chain {i}" for i in range(num_chains)]
    assert list(diagnostics["energy"]) == list(diagnostics["divergences"]) == names
    for name, chain in zip(names, samples, strict=True):
        expected = rbm.free_energy(chain).detach()
        torch.testing.assert_close(diagnostics["energy"][name], expected)
        assert diagnostics["divergences"][name] == []
    assert diagnostics["v"]["n_eff"].shape == (*rbm.batch_shape, 3)


def test_one_chain() -> None:
    check_chains(run(BlockGibbs(machine())), machine(), 1, 60)


@pytest.mark.usefixtures("one_core")
def test_chains_one_after_the_other() -> None:
    check_chains(run(BlockGibbs(machine()), num_chains=2), machine(), 2, 60)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_chains_in_processes(context: str) -> None:
    rbm = machine()
    mcmc = run(BlockGibbs(rbm), num_chains=2, mp_context=context)
    assert type(mcmc.sampler).__name__ == "_MultiSampler"
    check_chains(mcmc, rbm, 2, 60)


@pytest.mark.usefixtures("four_cores")
def test_parameters_that_want_gradients() -> None:
    """Samples with a graph cannot leave a worker process: the parent would wait for ever."""
    rbm = machine()
    for parameter in rbm.parameters():
        parameter.requires_grad_()
    kernel = BlockGibbs(rbm)
    kernel.setup(0)
    sample = kernel.sample(kernel.initial_params)
    assert not sample["v"].requires_grad
    assert not kernel.diagnostics()["energy"].requires_grad
    kernel.cleanup()
    check_chains(run(kernel, num_chains=2, mp_context="fork"), rbm, 2, 60)


def test_computed_log_z_survives_pickling() -> None:
    """Tensors that are no leaves cannot be sent to a spawned worker."""
    weight = torch.randn(3, 2, requires_grad=True)
    rbm = BernoulliRBM(weight.detach(), torch.zeros(3), torch.zeros(2))
    kernel = BlockGibbs(rbm.normalize((2.0 * weight).sum()))
    copy = pickle.loads(ForkingPickler.dumps(kernel))
    check_chains(run(copy), rbm, 1, 60)


def test_means_are_right() -> None:
    rbm = machine()
    mcmc = run(BlockGibbs(rbm, num_steps=3), num_samples=2000)
    samples = mcmc.get_samples()["v"]
    expected = exact_features(to_machine(rbm))[:3]
    n_eff = mcmc.diagnostics()["v"]["n_eff"]
    z = (samples.mean(0) - expected) / (samples.std(0) / n_eff.sqrt())
    assert z.abs().max() < Z_LIMIT
    assert n_eff.min() > 500.0


def test_batched_target() -> None:
    rbm = random_rbm(("bernoulli", "ising"), offsets=True, batched=True)
    mcmc = run(BlockGibbs(rbm))
    check_chains(mcmc, rbm, 1, 60)
    assert mcmc.get_samples()["v"].shape == (60, 2, 3, 3)


def test_expanded_target() -> None:
    """Every element of an expanded batch is a chain of its own."""
    rbm = machine().expand((4,))
    samples = run(BlockGibbs(rbm)).get_samples()["v"]
    assert samples.shape == (60, 4, 3)
    assert len({tuple(c.flatten().tolist()) for c in samples.unbind(1)}) == 4


class TestNothingIsLeftFromTheChainBefore:
    @pytest.mark.usefixtures("one_core")
    def test_sequential_consistent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both chains of a run are what one chain with the same seed is."""
        setup = BlockGibbs.setup

        def seeded(self: BlockGibbs, *args: Any, **kwargs: Any) -> None:
            pyro.set_rng_seed(7)
            setup(self, *args, **kwargs)

        monkeypatch.setattr(BlockGibbs, "setup", seeded)
        alone = run(BlockGibbs(machine())).get_samples()["v"]
        mcmc = run(BlockGibbs(machine()), num_chains=2)
        both = mcmc.get_samples(group_by_chain=True)["v"]
        assert torch.equal(both[0], alone) and torch.equal(both[1], alone)
        energies = mcmc.diagnostics()["energy"]
        assert len(energies["chain 0"]) == len(energies["chain 1"]) == 60

    def test_the_same_object_twice(self) -> None:
        kernel = BlockGibbs(machine())
        results = []
        for _ in range(2):
            pyro.set_rng_seed(3)
            mcmc = run(kernel)
            results.append(mcmc.get_samples()["v"])
            assert len(mcmc.diagnostics()["energy"]["chain 0"]) == 60
        assert torch.equal(*results)

    def test_cleanup_may_be_called_twice(self) -> None:
        kernel = BlockGibbs(machine())
        kernel.setup(0)
        kernel.sample(kernel.initial_params)
        for _ in range(2):
            kernel.cleanup()
            assert kernel.diagnostics()["energy"].numel() == 0


class TestOptionsOfMCMC:
    @pytest.mark.parametrize("num_chains", [1, 2])
    @pytest.mark.usefixtures("one_core")
    def test_initial_params(self, num_chains: int) -> None:
        """Chains start where they are told: with weights this strong they never leave."""
        weight = 100.0 * torch.eye(3)
        bias = torch.full((3,), -50.0)
        rbm = BernoulliRBM(weight, bias, bias)
        start = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])[:num_chains]
        given = start if num_chains > 1 else start[0]
        mcmc = run(BlockGibbs(rbm), num_chains=num_chains, initial_params={"v": given})
        samples = mcmc.get_samples(group_by_chain=True)["v"]
        assert torch.equal(samples, start.unsqueeze(1).expand(num_chains, 60, 3))

    @pytest.mark.parametrize(
        ("value", "message"),
        [(torch.zeros(4), r"must hold 'v' of shape \(3,\)"), (torch.full((3,), 2.0), "outside of")],
        ids=["shape", "support"],
    )
    def test_wrong_initial_params(self, value: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            run(BlockGibbs(machine()), initial_params={"v": value})

    def test_thinning(self) -> None:
        """Three sweeps a draw are every third draw of one sweep each."""
        results = []
        for num_steps, num_samples in ((1, 30), (3, 10)):
            kernel = BlockGibbs(machine(), num_steps, generator=torch.Generator().manual_seed(0))
            mcmc = run(kernel, num_samples=num_samples, warmup_steps=0)
            results.append((mcmc.get_samples()["v"], mcmc.diagnostics()["energy"]["chain 0"]))
        (dense, dense_energy), (thin, thin_energy) = results
        assert torch.equal(dense[2::3], thin)
        torch.testing.assert_close(dense_energy[2::3], thin_energy)

    def test_hook(self) -> None:
        seen: list[tuple[str, int, Tensor]] = []

        def hook(kernel: BlockGibbs, params: dict[str, Tensor], stage: str, i: int) -> None:
            assert isinstance(kernel, BlockGibbs)
            seen.append((stage, i, params["v"].clone()))

        samples = run(BlockGibbs(machine()), num_samples=5, warmup_steps=3, hook_fn=hook)
        stages = [("Warmup", i) for i in range(3)] + [("Sample", i) for i in range(5)]
        assert [(stage, i) for stage, i, _ in seen] == stages
        drawn = torch.stack([v for stage, _, v in seen if stage == "Sample"])
        assert torch.equal(drawn, samples.get_samples()["v"])

    def test_save_params(self) -> None:
        mcmc = run(BlockGibbs(machine()), save_params=["v"])
        assert list(mcmc.get_samples()) == ["v"]

    def test_same_seed_same_chain(self) -> None:
        results = []
        for seed in (1, 1, 2):
            pyro.set_rng_seed(seed)
            results.append(run(BlockGibbs(machine())).get_samples()["v"])
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_progress_bar_shows_the_energy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kernel = BlockGibbs(machine())
        kernel.setup(1)
        params = kernel.sample(kernel.initial_params)
        assert kernel.logging() == {}
        params = kernel.sample(params)
        shown = float(kernel.logging()["energy"])
        assert shown == pytest.approx(machine().free_energy(params["v"]).item(), rel=1e-3)

    def test_summary(self, capsys: pytest.CaptureFixture[str]) -> None:
        run(BlockGibbs(machine())).summary()
        printed = capsys.readouterr().out
        assert "v[0]" in printed and "v[2]" in printed and "divergences: 0" in printed


class TestStreaming:
    def test_statistics(self) -> None:
        kernel = BlockGibbs(machine())
        mcmc = StreamingMCMC(
            kernel, num_samples=2000, warmup_steps=10, num_chains=2, disable_progbar=True
        )
        mcmc.run()
        statistics = mcmc.get_statistics(group_by_chain=True)
        assert set(statistics) == {(0, "v"), (1, "v")}
        expected = exact_features(to_machine(machine()))[:3]
        for value in statistics.values():
            assert value["count"] == 2000
            # A standard error of 0.011 for independent draws; these are correlated.
            assert (value["mean"] - expected).abs().max() < 0.1

    def test_diagnostics(self) -> None:
        mcmc = StreamingMCMC(
            BlockGibbs(machine()), num_samples=20, warmup_steps=0, disable_progbar=True
        )
        mcmc.run()
        assert len(mcmc.diagnostics()["energy"]["chain 0"]) == 20
