# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Many chains in one tensor, read as Pyro's MCMC is."""

from typing import Any

import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc import util
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import BlockGibbs, VectorizedMCMC
from tests.distributions.families import batch_indices, random_rbm, to_machine
from tests.infer.reference import Z_LIMIT, exact_features, features, z_scores


def machine() -> RBM:
    return random_rbm(("bernoulli", "ising"), offsets=True)


def run(kernel: BlockGibbs, num_samples: int = 30, **options: Any) -> VectorizedMCMC:
    options = {"warmup_steps": 5, "num_chains": 8, "disable_progbar": True, **options}
    mcmc = VectorizedMCMC(kernel, num_samples, **options)
    mcmc.run()
    return mcmc


def frozen() -> BernoulliRBM:
    """Weights so strong that a chain never leaves where it started."""
    bias = torch.full((3,), -50.0)
    return BernoulliRBM(100.0 * torch.eye(3), bias, bias)


class TestSamples:
    def test_shapes(self) -> None:
        mcmc = run(BlockGibbs(machine()))
        grouped = mcmc.get_samples(group_by_chain=True)["v"]
        assert grouped.shape == (8, 30, 3)
        flat = mcmc.get_samples()["v"]
        assert flat.shape == (240, 3)
        assert torch.equal(flat, grouped.flatten(0, 1))
        assert len({tuple(chain.flatten().tolist()) for chain in grouped}) == 8

    @pytest.mark.parametrize("group", [True, False])
    def test_resampled(self, group: bool) -> None:
        mcmc = run(BlockGibbs(frozen()))
        drawn = mcmc.get_samples(num_samples=7, group_by_chain=group)["v"]
        assert drawn.shape == ((8, 7, 3) if group else (7, 3))
        if group:
            whole = mcmc.get_samples(group_by_chain=True)["v"]
            assert torch.equal(drawn, whole[:, :7])

    def test_batched_target(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, batched=True)
        mcmc = run(BlockGibbs(rbm, num_steps=10), num_samples=5, num_chains=20_000)
        last = mcmc.get_samples(group_by_chain=True)["v"][:, -1]
        assert last.shape == (20_000, 2, 3, 3)
        for index in batch_indices(rbm.batch_shape):
            z = z_scores(
                features(last[(slice(None), *index)]), exact_features(to_machine(rbm, index))
            )
            assert z.abs().max() < Z_LIMIT
        assert mcmc.sample_stats["energy"].shape == (20_000, 5, 2, 3)
        assert mcmc.diagnostics()["v"]["r_hat"].shape == (2, 3, 3)

    def test_means_are_right(self) -> None:
        """Chains are independent: the last draws of 50,000 chains are 50,000 exact samples."""
        rbm = machine()
        mcmc = run(BlockGibbs(rbm), num_samples=2, warmup_steps=30, num_chains=50_000)
        last = mcmc.get_samples(group_by_chain=True)["v"][:, -1]
        z = z_scores(features(last), exact_features(to_machine(rbm)))
        assert z.abs().max() < Z_LIMIT

    def test_energies_are_those_of_the_draws(self) -> None:
        rbm = machine()
        mcmc = run(BlockGibbs(rbm))
        energy = mcmc.sample_stats["energy"]
        assert energy.shape == (8, 30)
        samples = mcmc.get_samples(group_by_chain=True)["v"]
        torch.testing.assert_close(energy, rbm.free_energy(samples))

    def test_one_chain_is_the_chain_of_mcmc(self) -> None:
        rbm = machine()
        samples = []
        for driver in (VectorizedMCMC, MCMC):
            kernel = BlockGibbs(rbm, generator=torch.Generator().manual_seed(1))
            mcmc = driver(
                kernel, num_samples=20, warmup_steps=3, num_chains=1, disable_progbar=True
            )
            mcmc.run()
            samples.append(mcmc.get_samples(group_by_chain=True)["v"])
        assert torch.equal(*samples)

    def test_parameters_that_want_gradients(self) -> None:
        rbm = machine()
        for parameter in rbm.parameters():
            parameter.requires_grad_()
        mcmc = run(BlockGibbs(rbm))
        assert not mcmc.get_samples()["v"].requires_grad
        assert not mcmc.sample_stats["energy"].requires_grad

    def test_float32(self) -> None:
        mcmc = run(BlockGibbs(machine().to(torch.float32)))
        assert mcmc.get_samples()["v"].dtype == torch.float32


class TestStart:
    def test_given(self) -> None:
        start = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        kernel = BlockGibbs(frozen())
        mcmc = run(kernel, num_chains=2, initial_params={"v": start})
        samples = mcmc.get_samples(group_by_chain=True)["v"]
        assert torch.equal(samples, start.unsqueeze(1).expand(2, 30, 3))

    def test_given_to_the_kernel(self) -> None:
        """The start of one chain is that of all."""
        kernel = BlockGibbs(frozen())
        start = torch.tensor([1.0, 0.0, 1.0])
        kernel.initial_params = {"v": start}
        assert (run(kernel).get_samples()["v"] == start).all()
        assert torch.equal(kernel.initial_params["v"], start)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (torch.zeros(3), r"'v' of shape \(8, 3\), got \{'v': \(3,\)\}"),
            (torch.zeros(7, 3), r"'v' of shape \(8, 3\), got \{'v': \(7, 3\)\}"),
            (torch.full((8, 3), 0.5), "outside of"),
        ],
        ids=["axes", "chains", "support"],
    )
    def test_wrong(self, value: Tensor, message: str) -> None:
        kernel = BlockGibbs(machine())
        with pytest.raises(ValueError, match=message):
            run(kernel, initial_params={"v": value})
        # The kernel is as it was.
        assert run(kernel).get_samples()["v"].shape == (240, 3)


class TestKernelAfterwards:
    @pytest.mark.parametrize("given", [False, True], ids=["own start", "given start"])
    def test_runs_one_chain_again(self, given: bool) -> None:
        kernel = BlockGibbs(machine())
        start = {"v": torch.ones(8, 3)} if given else None
        run(kernel, initial_params=start)
        mcmc = MCMC(kernel, num_samples=10, warmup_steps=0, disable_progbar=True)
        mcmc.run()
        assert mcmc.get_samples()["v"].shape == (10, 3)

    def test_after_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kernel = BlockGibbs(machine())
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(BlockGibbs, "sample", interrupt)
            run(kernel)
        assert kernel.chain_shape == ()
        assert kernel.initial_params["v"].shape == (3,)

    def test_runs_twice(self) -> None:
        mcmc = run(BlockGibbs(machine()))
        first = mcmc.get_samples()["v"]
        kept = first.clone()
        mcmc.run()
        second = mcmc.get_samples()["v"]
        assert torch.equal(first, kept) and not torch.equal(first, second)
        assert mcmc.sample_stats["energy"].shape == (8, 30)

    def test_same_seed_same_chains(self) -> None:
        rbm, results = machine(), []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            results.append(run(BlockGibbs(rbm)).get_samples()["v"])
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


class TestDiagnostics:
    def test_equal_pyros(self) -> None:
        mcmc = run(BlockGibbs(machine()), num_samples=200)
        ours = mcmc.diagnostics()
        pyros = util.diagnostics(mcmc.get_samples(group_by_chain=True))["v"]
        torch.testing.assert_close(ours["v"]["n_eff"], pyros["n_eff"], rtol=1e-8, atol=0.0)
        torch.testing.assert_close(ours["v"]["r_hat"], pyros["r_hat"])

    def test_what_the_kernel_recorded(self) -> None:
        mcmc = run(BlockGibbs(machine()))
        diagnostics = mcmc.diagnostics()
        assert set(diagnostics) == {"v", "energy", "divergences"}
        names = [f"chain {i}" for i in range(8)]
        assert list(diagnostics["energy"]) == list(diagnostics["divergences"]) == names
        for i, name in enumerate(names):
            assert torch.equal(diagnostics["energy"][name], mcmc.sample_stats["energy"][i])
            assert diagnostics["divergences"][name] == []

    def test_units_that_never_change(self) -> None:
        mcmc = run(BlockGibbs(frozen()), initial_params={"v": torch.ones(8, 3)})
        result = mcmc.diagnostics()["v"]
        assert result["r_hat"].shape == result["n_eff"].shape == (3,)
        mcmc.summary()

    def test_summary(self, capsys: pytest.CaptureFixture[str]) -> None:
        mcmc = run(BlockGibbs(machine()), num_samples=100)
        mcmc.summary(prob=0.8)
        lines = capsys.readouterr().out.splitlines()
        header = next(line for line in lines if "n_eff" in line).split()
        assert header == ["mean", "std", "median", "10.0%", "90.0%", "n_eff", "r_hat"]
        rows = {line.split()[0]: line.split()[1:] for line in lines if "[" in line}
        assert list(rows) == ["v[0]", "v[1]", "v[2]"]
        samples = mcmc.get_samples()["v"]
        for i, row in enumerate(rows.values()):
            assert float(row[0]) == pytest.approx(samples[:, i].mean().item(), abs=0.006)
            assert float(row[1]) == pytest.approx(samples[:, i].std().item(), abs=0.006)
            n_eff = mcmc.diagnostics()["v"]["n_eff"][i].item()
            assert float(row[5]) == pytest.approx(n_eff, abs=0.006)
        assert lines[-1] == "Number of chains: 8"

    def test_progress_bar(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Pyro hides its bars where it takes the terminal for a continuous integration run.
        for name in ("CI", "PYTEST_XDIST_WORKER"):
            monkeypatch.delenv(name, raising=False)
        run(BlockGibbs(machine()), disable_progbar=False)
        assert "35/35" in capfd.readouterr().err
        run(BlockGibbs(machine()), disable_progbar=True)
        assert capfd.readouterr().err == ""


class TestErrors:
    def test_before_run(self) -> None:
        mcmc = VectorizedMCMC(BlockGibbs(machine()), 10)
        for call in (mcmc.get_samples, mcmc.diagnostics, mcmc.summary):
            with pytest.raises(RuntimeError, match=r"no samples yet; call run\(\) first"):
                call()
        with pytest.raises(RuntimeError, match="no samples yet"):
            _ = mcmc.sample_stats

    @pytest.mark.parametrize(
        "numbers",
        [{"num_samples": 0}, {"num_chains": 0}, {"warmup_steps": -1}],
        ids=lambda d: next(iter(d)),
    )
    def test_numbers(self, numbers: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="num_samples and num_chains must be at least 1"):
            VectorizedMCMC(BlockGibbs(machine()), **{"num_samples": 10, **numbers})

    @pytest.mark.parametrize("kernel", [None, NUTS(potential_fn=lambda z: z["x"].sum())])
    def test_kernels_of_one_chain(self, kernel: Any) -> None:
        name = type(kernel).__name__
        with pytest.raises(TypeError, match=f"{name} cannot run chains in one tensor"):
            VectorizedMCMC(kernel, 10)
