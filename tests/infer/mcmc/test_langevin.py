# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Langevin-like, over-relaxed and Metropolis-adjusted kernels leave the exact law invariant."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import MCMC
from torch import Generator, Size, Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import MALA, BlockGibbs, GibbsLangevin, VectorizedMCMC
from pyro_ebm.infer.mcmc import MachineKernel
from tests import brute_force
from tests.distributions.families import (
    FAMILIES,
    batch_indices,
    random_rbm,
    to_machine,
    uniform,
)
from tests.distributions.laws import ALPHA, layer_law
from tests.infer.reference import Z_LIMIT, z_scores

CHAINS = 40_000
ALPHAS = [-0.9, -0.5, 0.0, 0.5, 0.9, torch.tensor([-0.8, 0.6])]
every_family = pytest.mark.parametrize("family", FAMILIES)
every_alpha = pytest.mark.parametrize("alpha", ALPHAS, ids=str)


class Exact:
    """The exact law of the visible layer of one machine, by brute force."""

    def __init__(self, machine: brute_force.Machine) -> None:
        self.layer = machine.visible
        self.v, _, joint = brute_force.joint(machine)
        self.p = joint.sum(1)
        p_h = joint.sum(0)
        given_h = (joint / np.maximum(p_h, 1e-300)).T @ self.v
        #: E[v v'] and E[m m'], m being the mean given the hidden units.
        self.second = torch.as_tensor((self.v * self.p[:, None]).T @ self.v)
        self.second_of_means = torch.as_tensor((given_h * p_h[:, None]).T @ given_h)

    def draw(self, count: int = CHAINS) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        return torch.as_tensor(self.v[rng.choice(len(self.v), count, p=self.p)])

    def p_value(self, samples: Tensor) -> float:
        return layer_law(self.layer, self.v, self.p, samples.double().numpy())


def moved(kernel: MachineKernel, start: Tensor, num_steps: int = 1) -> Tensor:
    """Where a kernel takes states in some transitions."""
    kernel.chain_shape = start.shape[: start.dim() - len(kernel.target.batch_shape) - 1]
    kernel.setup(0)
    state = {"v": start}
    for _ in range(num_steps):
        state = kernel.sample(state)
    return state["v"]


def stiff_rbm() -> RBM:
    """Units of different precision, pulled strongly by few bits."""
    return RBM(
        units.Gaussian(
            torch.tensor([0.4, -0.3], dtype=torch.float64),
            torch.tensor([0.8, 1.9], dtype=torch.float64),
        ),
        units.Bernoulli(torch.tensor([-0.5, 0.2], dtype=torch.float64)),
        torch.tensor([[1.5, 0.7], [-0.6, 1.6]], dtype=torch.float64),
        visible_offset=torch.tensor([0.3, -0.2], dtype=torch.float64),
    )


class TestGibbsLangevin:
    @every_alpha
    @every_family
    def test_exact_samples_stay_exact(self, family: str, alpha: float | Tensor) -> None:
        rbm = random_rbm(("gaussian", family), offsets=True)
        exact = Exact(to_machine(rbm))
        end = moved(GibbsLangevin(rbm, alpha, 2), exact.draw(), 2)
        assert exact.p_value(end) > ALPHA

    @every_alpha
    @every_family
    def test_covariance_of_neighbouring_states(self, family: str, alpha: float | Tensor) -> None:
        """``E[v v'] = alpha E[v v] + (1 - alpha) E[m m]``, for every hidden family."""
        rbm = random_rbm(("gaussian", family), offsets=True)
        exact = Exact(to_machine(rbm))
        start = exact.draw()
        end = moved(GibbsLangevin(rbm, alpha), start)
        expected = alpha * exact.second + (1 - alpha) * exact.second_of_means
        products = (start.unsqueeze(-1) * end.unsqueeze(-2)).flatten(1)
        assert z_scores(products, expected.flatten()).abs().max() < Z_LIMIT

    @every_alpha
    def test_chains_from_elsewhere_converge(self, alpha: float | Tensor) -> None:
        rbm = stiff_rbm()
        exact = Exact(to_machine(rbm))
        start = torch.tensor([5.0, -4.0], dtype=torch.float64).expand(CHAINS // 4, 2)
        assert exact.p_value(moved(GibbsLangevin(rbm, alpha, 250), start)) > ALPHA

    def test_batches_of_machines(self) -> None:
        rbm = random_rbm(("gaussian", "ising"), offsets=True, batched=True)
        laws = {index: Exact(to_machine(rbm, index)) for index in batch_indices(rbm.batch_shape)}
        start = torch.empty(4, CHAINS // 8, *rbm.batch_shape, 2, dtype=torch.float64)
        for index, exact in laws.items():
            start[(..., *index, slice(None))] = exact.draw(CHAINS // 2).view(4, -1, 2)
        alpha = torch.tensor([[-0.7, 0.2], [0.4, -0.3], [0.8, 0.0]])
        end = moved(GibbsLangevin(rbm, alpha, 3), start)
        for index, exact in laws.items():
            assert len(laws) * exact.p_value(end[(..., *index, slice(None))].flatten(0, 1)) > ALPHA

    def test_float32(self) -> None:
        rbm = stiff_rbm()
        exact = Exact(to_machine(rbm))
        end = moved(GibbsLangevin(rbm.to(torch.float32), -0.9, 3), exact.draw().float())
        assert end.dtype == torch.float32
        assert exact.p_value(end) > ALPHA

    def test_without_memory_it_is_block_gibbs(self) -> None:
        rbm = random_rbm(("gaussian", "ising"), offsets=True)
        start = torch.randn(50, 2, dtype=torch.float64)
        ends = [
            moved(kernel, start, 3)
            for kernel in (
                GibbsLangevin(rbm, 0.0, 2, generator=Generator().manual_seed(1)),
                BlockGibbs(rbm, 2, generator=Generator().manual_seed(1)),
            )
        ]
        torch.testing.assert_close(*ends)

    def test_langevin_over_a_time(self) -> None:
        """exp(-eta P) per unit solves Langevin dynamics: the states forget their start at rate P."""
        rbm = stiff_rbm()
        alpha = torch.exp(-0.4 * rbm.visible.parameters["precision"])
        start = torch.tensor([50.0, -40.0], dtype=torch.float64).expand(CHAINS, 2)
        far = (start + 1.0).clone()
        kernel = GibbsLangevin(rbm, alpha, generator=Generator().manual_seed(1))
        # Far out h hardly depends on v, so two chains with the same random numbers share it.
        difference = moved(kernel, far)
        kernel = GibbsLangevin(rbm, alpha, generator=Generator().manual_seed(1))
        difference = (difference - moved(kernel, start)).median(0).values
        torch.testing.assert_close(difference, alpha)

    @pytest.mark.parametrize("hidden", ["bernoulli", "gaussian"])
    def test_energies_and_offsets(self, hidden: str) -> None:
        rbm = random_rbm(("gaussian", hidden), offsets=True, batched=True)
        rbm.weight.requires_grad_()
        kernel = GibbsLangevin(rbm, 0.3, 2)
        v = moved(kernel, torch.zeros(7, 2, 3, 2, dtype=torch.float64))
        energy = kernel.diagnostics()["energy"]
        assert energy.shape == (1, 7, 2, 3) and not v.requires_grad
        torch.testing.assert_close(energy[0], rbm.free_energy(v).detach())

    def test_input_is_not_changed_and_a_state_from_elsewhere_is_honoured(self) -> None:
        """With alpha near 1 a step hardly moves, wherever it starts."""
        kernel = GibbsLangevin(stiff_rbm(), 1.0 - 1e-9)
        for value in (3.0, -2.0):
            start = torch.full((5, 2), value, dtype=torch.float64)
            end = moved(kernel, start)
            assert torch.equal(start, torch.full_like(start, value))
            torch.testing.assert_close(end, start, rtol=0.0, atol=1e-3)


Breakage = Callable[[GibbsLangevin], None]


def no_root(kernel: GibbsLangevin) -> None:
    kernel._noise_scale = kernel._noise_scale.square()


def noise_of_one_minus_alpha(kernel: GibbsLangevin) -> None:
    kernel._noise_scale = ((1.0 - kernel._alpha) / kernel._precision).sqrt()


def noise_without_precision(kernel: GibbsLangevin) -> None:
    kernel._noise_scale = kernel._noise_scale * kernel._precision.sqrt()


def whole_mean(kernel: GibbsLangevin) -> None:
    kernel._mean_scale = 1.0 / kernel._precision


def opposite_sign(kernel: GibbsLangevin) -> None:
    kernel._alpha = -kernel._alpha


class TestPowerOfTheTestsAbove:
    @staticmethod
    def p_value(breakage: Breakage | None) -> float:
        rbm = stiff_rbm()
        exact = Exact(to_machine(rbm))
        kernel = GibbsLangevin(rbm, -0.5, 3)
        kernel.chain_shape = Size((CHAINS,))
        kernel.setup(0)
        if breakage is not None:
            breakage(kernel)
        return exact.p_value(kernel.sample({"v": exact.draw()})["v"])

    def test_nothing_wrong(self) -> None:
        assert self.p_value(None) > ALPHA

    @pytest.mark.parametrize(
        "breakage",
        [no_root, noise_of_one_minus_alpha, noise_without_precision, whole_mean, opposite_sign],
    )
    def test_something_wrong(self, breakage: Breakage) -> None:
        assert self.p_value(breakage) < ALPHA


class TestAutocorrelation:
    """A strongly coupled pair of Gaussian units: the chain of v is an exact autoregression."""

    RHO = 0.95
    NUM_CHAINS, NUM_DRAWS = 10_000, 200

    @classmethod
    def draws(cls, alpha: float) -> Tensor:
        """Chains in equilibrium, standardised, shape ``(draws, chains)``."""
        one = torch.ones(1, dtype=torch.float64)
        weight = math.sqrt(cls.RHO) * one.unsqueeze(0)
        rbm = RBM(units.Gaussian(0.0 * one, one), units.Gaussian(0.0 * one, one), weight)
        kernel = GibbsLangevin(rbm, alpha)
        kernel.chain_shape = Size((cls.NUM_CHAINS,))
        kernel.setup(0)
        scale = 1.0 / math.sqrt(1.0 - cls.RHO)
        state = {"v": scale * torch.randn(cls.NUM_CHAINS, 1, dtype=torch.float64)}
        result = []
        for _ in range(cls.NUM_DRAWS):
            result.append(state["v"].squeeze(-1))
            state = kernel.sample(state)
        return torch.stack(result) / scale

    @pytest.mark.parametrize("alpha", [-0.9, -0.5, 0.0, 0.9])
    def test_as_stated(self, alpha: float) -> None:
        rate = self.RHO + alpha * (1.0 - self.RHO)
        draws = self.draws(alpha)
        for lag in (1, 5, 40):
            products = (draws[0] * draws[lag]).unsqueeze(-1)
            assert z_scores(products, products.new_tensor([rate**lag])).abs().max() < Z_LIMIT
        # The variance of a chain's mean has a relative error of sqrt(2 / chains).
        time = torch.arange(self.NUM_DRAWS)
        expected = (rate ** (time - time.unsqueeze(-1)).abs().double()).mean()
        error = expected * math.sqrt(2.0 / self.NUM_CHAINS)
        assert (draws.mean(0).square().mean() - expected).abs() < Z_LIMIT * error
        asymptotic = 2.0 / ((1.0 - alpha) * (1.0 - self.RHO)) - 1.0
        assert (1.0 + rate) / (1.0 - rate) == pytest.approx(asymptotic)

    def test_over_relaxed_chains_forget_faster(self) -> None:
        variances = [self.draws(alpha).mean(0).square().mean() for alpha in (-0.9, 0.0, 0.9)]
        assert variances[0] < 0.75 * variances[1]
        assert variances[1] < 0.75 * variances[2]


class TestMALA:
    @every_family
    def test_exact_samples_stay_exact(self, family: str) -> None:
        rbm = random_rbm(("gaussian", family), offsets=True)
        exact = Exact(to_machine(rbm))
        kernel = MALA(rbm, 1.3, 3)
        assert exact.p_value(moved(kernel, exact.draw())) > ALPHA
        accepted = kernel.diagnostics()["accept_prob"]
        assert accepted.shape == (1, CHAINS)
        assert 0.3 < accepted.mean() < 0.9

    @every_family
    def test_gradient(self, family: str) -> None:
        rbm = random_rbm(("gaussian", family), offsets=True, batched=True)
        v = torch.randn(4, 2, 3, 2, dtype=torch.float64, requires_grad=True)
        kernel = MALA(rbm)
        kernel.setup(0)
        point = kernel._point(v.detach())
        energy = rbm.free_energy(v)
        (expected,) = torch.autograd.grad(energy.sum(), v)
        got = point.gradient * rbm.visible.parameters["precision"].sqrt()
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(point.energy, energy.detach())

    def test_float32(self) -> None:
        rbm = stiff_rbm()
        exact = Exact(to_machine(rbm))
        end = moved(MALA(rbm.to(torch.float32), 1.0, 5), exact.draw().float())
        assert end.dtype == torch.float32
        assert exact.p_value(end) > ALPHA

    @pytest.mark.parametrize("what", ["energies too large", "no test"])
    def test_a_wrong_test_is_rejected(self, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Energies 15 % too large, and proposals that are always accepted."""
        rbm = stiff_rbm()
        exact = Exact(to_machine(rbm))
        original = MALA._point
        calls = []

        def wrong(self: MALA, v: Tensor) -> Any:
            point = original(self, v)
            calls.append(point)
            energy = 1.15 * point.energy if what == "energies too large" else -1e6 * len(calls)
            return point._replace(energy=torch.as_tensor(energy).expand(v.shape[:-1]))

        monkeypatch.setattr(MALA, "_point", wrong)
        assert exact.p_value(moved(MALA(rbm, 1.0, 20), exact.draw())) < ALPHA

    def test_every_chain_and_machine_decides_by_itself(self) -> None:
        rbm = random_rbm(("gaussian", "ising"), offsets=True, batched=True)
        start = torch.randn(1000, 2, 3, 2, dtype=torch.float64)
        end = moved(MALA(rbm, 1.5), start)
        moves = (start != end).all(-1)
        assert torch.equal(moves, (start != end).any(-1))
        rate = moves.double().mean(0)
        assert ((rate > 0.2) & (rate < 0.95)).all()
        both = (moves[:, 0, 0] & moves[:, 1, 2]).double().mean()
        assert (both - rate[0, 0] * rate[1, 2]).abs() < Z_LIMIT * 0.5 / math.sqrt(1000)

    def test_batches_stay_exact(self) -> None:
        rbm = random_rbm(("gaussian", "bernoulli"), offsets=True, batched=True)
        laws = {index: Exact(to_machine(rbm, index)) for index in batch_indices(rbm.batch_shape)}
        start = torch.empty(CHAINS // 2, *rbm.batch_shape, 2, dtype=torch.float64)
        for index, exact in laws.items():
            start[(slice(None), *index)] = exact.draw(CHAINS // 2)
        end = moved(MALA(rbm, torch.tensor([0.9, 1.4, 2.0]), 3), start)
        for index, exact in laws.items():
            assert len(laws) * exact.p_value(end[(slice(None), *index)]) > ALPHA

    def test_an_impossible_proposal_is_refused(self) -> None:
        start = torch.randn(10, 2, dtype=torch.float64)
        kernel = MALA(stiff_rbm(), 1e200)
        assert torch.equal(moved(kernel, start), start)
        assert torch.equal(kernel.diagnostics()["accept_prob"], torch.zeros(1, 10).double())


class TestStepSize:
    @pytest.mark.parametrize("target", [0.574, 0.8])
    @pytest.mark.parametrize("start", [0.01, None, 30.0])
    def test_reaches_the_target_and_stays_there(self, start: float | None, target: float) -> None:
        """The draws are right after the warm-up, in which the chains come from elsewhere."""
        rbm = stiff_rbm()
        kernel = MALA(rbm, start, target_accept_prob=target)
        kernel.chain_shape = Size((2000,))
        kernel.setup(150)
        state = kernel.initial_params
        sizes = []
        for _ in range(180):
            state = kernel.sample(state)
            sizes.append(kernel.step_size)
        assert not torch.equal(sizes[10], sizes[149])
        assert torch.equal(sizes[150], sizes[179])
        accepted = kernel.diagnostics()["accept_prob"]
        assert accepted.shape == (30, 2000)
        assert accepted.mean().item() == pytest.approx(target, abs=0.02)
        assert "step size" in kernel.logging()
        exact = Exact(to_machine(rbm))
        assert exact.p_value(state["v"]) > ALPHA

    def test_one_chain(self) -> None:
        kernel = MALA(stiff_rbm())
        mcmc = MCMC(kernel, num_samples=500, warmup_steps=1000, disable_progbar=True)
        mcmc.run()
        accepted = mcmc.diagnostics()["accept_prob"]["chain 0"]
        assert accepted.mean().item() == pytest.approx(0.574, abs=0.1)

    def test_every_machine_of_a_batch_has_its_own(self) -> None:
        """The second law is three times as wide as the first, the step hence longer."""
        layer = units.Gaussian(torch.zeros(1), torch.ones(1))
        rbm = RBM(layer, layer, torch.tensor([0.1, 0.95]).view(2, 1, 1))
        mcmc = VectorizedMCMC(MALA(rbm), 20, 200, num_chains=500, disable_progbar=True)
        mcmc.run()
        first, second = mcmc.kernel.step_size
        assert second > 2.0 * first
        accepted = mcmc.sample_stats["accept_prob"].mean((0, 1))
        torch.testing.assert_close(accepted, torch.full((2,), 0.574), atol=0.03, rtol=0.0)

    def test_fixed(self) -> None:
        kernel = MALA(stiff_rbm(), 0.7, adapt=False)
        kernel.setup(5)
        state = kernel.initial_params
        for _ in range(10):
            state = kernel.sample(state)
            assert kernel.step_size == 0.7

    def test_a_second_run_starts_anew(self) -> None:
        kernel = MALA(stiff_rbm(), 0.7)
        with pytest.raises(RuntimeError, match="known only after setup"):
            _ = kernel.step_size
        for _ in range(2):
            kernel.setup(5)
            assert kernel.step_size == 0.7
            state = kernel.sample(kernel.initial_params)
            kernel.sample(state)
            assert kernel.step_size != 0.7
            kernel.cleanup()


class TestArguments:
    @pytest.mark.parametrize("kernel", [GibbsLangevin, MALA])
    @pytest.mark.parametrize("family", ["bernoulli", "relu"])
    def test_visible_units(self, family: str, kernel: type[MachineKernel]) -> None:
        message = f"{kernel.__name__} needs Gaussian visible units, got {FAMILIES[family].__name__}"
        with pytest.raises(ValueError, match=message):
            kernel(random_rbm((family, "ising")))

    @pytest.mark.parametrize("alpha", [1.0, -1.0, 2, math.nan, torch.tensor([0.0, 1.5])])
    def test_alpha(self, alpha: float | Tensor) -> None:
        with pytest.raises(ValueError, match="alpha must be between -1 and 1, both excluded, got"):
            GibbsLangevin(stiff_rbm(), alpha)

    @pytest.mark.parametrize("shape", [(3,), (4, 2), (1, 1, 2)], ids=str)
    def test_shape_of_alpha(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"alpha must broadcast to shape \(2,\), got \("):
            GibbsLangevin(stiff_rbm(), torch.zeros(shape))

    @pytest.mark.parametrize("step_size", [0.0, -1.0, math.inf, math.nan])
    def test_step_size(self, step_size: float) -> None:
        with pytest.raises(ValueError, match="step_size must be positive and finite, got"):
            MALA(stiff_rbm(), step_size)

    def test_shape_of_the_step_size(self) -> None:
        with pytest.raises(ValueError, match=r"step_size must broadcast to .*\(\), got \(3,\)"):
            MALA(stiff_rbm(), torch.ones(3))

    @pytest.mark.parametrize("target", [0.0, 1.0, -0.5, math.nan])
    def test_target_accept_prob(self, target: float) -> None:
        with pytest.raises(ValueError, match="target_accept_prob must be between 0 and 1, got"):
            MALA(stiff_rbm(), target_accept_prob=target)

    def test_not_normalisable(self) -> None:
        one = torch.ones(2)
        rbm = RBM(units.Gaussian(one, one), units.Gaussian(one, one), 2.0 * torch.eye(2))
        for kernel in (GibbsLangevin, MALA):
            with pytest.raises(ValueError, match="not normalisable"):
                kernel(rbm)

    def test_a_scalar_precision(self) -> None:
        precision = torch.tensor(4.0, dtype=torch.float64)
        visible = units.Gaussian(uniform((3,), -1, 1), precision)
        rbm = RBM(visible, units.Bernoulli(uniform((2,), -1, 1)), uniform((3, 2), -1, 1))
        for kernel in (GibbsLangevin(rbm), MALA(rbm)):
            assert moved(kernel, torch.zeros(5, 3, dtype=torch.float64)).shape == (5, 3)


@pytest.mark.parametrize("kernel", [GibbsLangevin, MALA])
def test_a_model_is_refused_at_once(kernel: Any) -> None:
    with pytest.raises(TypeError, match=r"target must be an RBM .*got function; .*MetropolisBlock"):
        kernel(lambda: None)
