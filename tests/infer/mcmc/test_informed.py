# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Gibbs with gradients and discrete Langevin proposals on machines, against enumeration."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import DiscreteLangevin, GibbsWithGradients, VectorizedMCMC
from pyro_ebm.infer.mcmc.informed_kernel import InformedKernel
from pyro_ebm.infer.mcmc.informed_target import MachineDensity, Point
from tests import brute_force
from tests.distributions.families import FAMILIES, batch_indices, random_rbm, to_machine
from tests.infer.mcmc.frequencies import have_probabilities

VISIBLE = ["bernoulli", "ising", "categorical"]
PAIRS = [(visible, hidden) for visible in VISIBLE for hidden in FAMILIES]
PAIR_IDS = ["-".join(pair) for pair in PAIRS]

Factory = Callable[..., InformedKernel]
KERNELS: dict[str, Factory] = {"gwg": GibbsWithGradients, "langevin": DiscreteLangevin}


def strong_rbm(pair: tuple[str, str], **options: Any) -> RBM:
    """Couplings at which a good part of the proposals is refused."""
    scale = 1.5 if pair[1] in ("gaussian", "relu", "multinomial") else 4.0
    return random_rbm(pair, offsets=True, scale=scale, **options)


def probabilities(rbm: RBM, index: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """All visible states and their exact probabilities, from the definition."""
    machine = to_machine(rbm, index)
    v, _ = brute_force.points(machine.visible)
    return torch.as_tensor(v), torch.as_tensor(-brute_force.free_energy(machine, v).real).softmax(0)


def transition_matrix(kernel: InformedKernel, states: Tensor) -> tuple[Tensor, Tensor]:
    """Transition and proposal probabilities of one step between all states, without sampling."""
    n = len(states)
    kernel.setup(0)
    points = kernel._density(states)
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")

    def at(index: Tensor) -> Point:
        k = index.flatten()
        return Point(points.value[k], points.log_density[k], points.gradient[k])

    here, there = at(i), at(j)
    proposal = kernel._log_proposal(here, there.value).exp().reshape(n, n)
    accept = kernel._log_ratio(here, there).clamp(max=0.0).exp().reshape(n, n)
    moved = proposal * accept * (1.0 - torch.eye(n))
    return moved + torch.diag(1.0 - moved.sum(1)), proposal


def run_steps(rbm: RBM, kernel: InformedKernel, start: Tensor, draws: int = 1) -> Tensor:
    kernel.chain_shape = start.shape[: start.dim() - len(rbm.batch_shape) - 1]
    kernel.initial_params = {"v": start}
    kernel.setup(0)
    params = kernel.initial_params
    for _ in range(draws):
        params = kernel.sample(params)
    return params["v"]


def is_exact(v: Tensor, rbm: RBM, index: tuple[int, ...] = ()) -> bool:
    """Whether states are independent draws of a machine."""
    return have_probabilities(v, *probabilities(rbm, index))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("pair", PAIRS, ids=PAIR_IDS)
class TestInvariance:
    def test_detailed_balance(self, pair: tuple[str, str], name: str) -> None:
        rbm = strong_rbm(pair)
        states, p = probabilities(rbm)
        matrix, proposal = transition_matrix(KERNELS[name](rbm), states)
        tight = {"rtol": 0.0, "atol": 1e-11}
        torch.testing.assert_close(proposal.sum(1), torch.ones_like(p), **tight)
        assert matrix.min() > -1e-11
        flow = p.unsqueeze(1) * matrix
        torch.testing.assert_close(flow, flow.T, **tight)
        torch.testing.assert_close(p @ matrix, p, **tight)
        # Irreducible and aperiodic: some power of the matrix leads everywhere.
        assert torch.linalg.matrix_power(matrix, 64).min() > 0.0

    def test_exact_samples_stay_exact(self, pair: tuple[str, str], name: str) -> None:
        rbm = strong_rbm(pair)
        kernel = KERNELS[name](rbm, num_steps=3)
        start = rbm.sample((20_000,))
        end = run_steps(rbm, kernel, start)
        assert is_exact(start, rbm)
        assert is_exact(end, rbm)
        assert 0.05 < kernel.diagnostics()["accept_prob"].mean() < 1.0 - 1e-6
        assert not torch.equal(start, end)


@pytest.mark.parametrize("pair", PAIRS, ids=PAIR_IDS)
def test_gradient_of_a_machine(pair: tuple[str, str]) -> None:
    """The closed form against autograd: a wrong gradient is corrected for, but proposals get worse."""
    whole = random_rbm(pair, offsets=True, batched=True)
    machines = [whole]
    if pair[0] != "categorical":
        machines.append(whole.clamp(torch.tensor([True, False, False]), torch.ones(3)))
    for rbm in machines:
        v = rbm.sample((5,)).requires_grad_()
        log_density = -rbm.free_energy(v)
        (expected,) = torch.autograd.grad(log_density.sum(), v)
        point = MachineDensity(rbm)(v.detach())
        torch.testing.assert_close(point.gradient, expected)
        torch.testing.assert_close(point.log_density, log_density.detach())


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("family", VISIBLE)
class TestSampling:
    def test_draws_follow_the_transition_matrix(self, family: str, name: str) -> None:
        rbm = strong_rbm((family, "ising"))
        states, p = probabilities(rbm)
        kernel = KERNELS[name](rbm)
        matrix, _ = transition_matrix(kernel, states)
        count = 40_000
        for i in p.argsort()[[0, -1]]:
            end = run_steps(rbm, kernel, states[i].expand(count, -1))
            assert have_probabilities(end, states, matrix[i])

    def test_a_bad_start_is_forgotten(self, family: str, name: str) -> None:
        """All chains start at the least probable state; the step size is tuned meanwhile."""
        rbm = random_rbm((family, "bernoulli"), offsets=True, scale=2.0)
        states, p = probabilities(rbm)
        num_chains = 5_000
        kernel = KERNELS[name](rbm, num_steps=2)
        mcmc = VectorizedMCMC(
            kernel,
            1,
            60,
            num_chains,
            initial_params={"v": states[p.argmin()].expand(num_chains, -1)},
            disable_progbar=True,
        )
        mcmc.run()
        assert is_exact(mcmc.get_samples()["v"], rbm)

    def test_float32_stays_exact(self, family: str, name: str) -> None:
        rbm = strong_rbm((family, "bernoulli")).to(torch.float32)
        end = run_steps(rbm, KERNELS[name](rbm, num_steps=3), rbm.sample((50_000,)))
        assert end.dtype == torch.float32 and rbm.support.check(end).all()
        assert is_exact(end, rbm)


@pytest.mark.parametrize("name", KERNELS)
class TestShapes:
    def test_batches_stay_exact(self, name: str) -> None:
        rbm = random_rbm(("categorical", "ising"), offsets=True, batched=True, scale=3.0)
        kernel = KERNELS[name](rbm, num_steps=2)
        end = run_steps(rbm, kernel, rbm.sample((20_000,)))
        assert kernel.diagnostics()["accept_prob"].shape == (1, 20_000, 2, 3)
        for index in batch_indices(rbm.batch_shape):
            assert is_exact(end[(slice(None), *index)], rbm, index)

    def test_rows_are_accepted_one_by_one(self, name: str) -> None:
        """In a batch, one machine holds its state and another one forgets it."""
        bias = torch.tensor([[100.0] * 4, [0.0] * 4])
        rbm = RBM(units.Bernoulli(bias), units.Bernoulli(torch.zeros(2)), torch.zeros(4, 2))
        kernel = KERNELS[name](rbm, num_steps=20)
        end = run_steps(rbm, kernel, torch.ones(1000, 2, 4))
        assert (end[:, 0] == 1.0).all()
        assert abs(float(end[:, 1].mean()) - 0.5) < 0.1

    def test_clamped_machines(self, name: str) -> None:
        full = random_rbm(("bernoulli", "ising"), offsets=True, scale=3.0)
        rbm = full.clamp(torch.tensor([False, True, False]), torch.tensor([0.0, 1.0, 0.0]))
        states = rbm.visible.states(0, 4)
        whole = torch.stack([states[:, 0], torch.ones(4).double(), states[:, 1]], -1)
        p = torch.as_tensor(-brute_force.free_energy(to_machine(full), whole.numpy()).real)
        kernel = KERNELS[name](rbm)
        matrix, _ = transition_matrix(kernel, states)
        torch.testing.assert_close(p.softmax(0) @ matrix, p.softmax(0), rtol=0.0, atol=1e-11)
        mcmc = VectorizedMCMC(kernel, 1, 30, 20_000, disable_progbar=True)
        mcmc.run()
        assert have_probabilities(mcmc.get_samples()["v"], states, p.softmax(0))

    def test_expanded_machines(self, name: str) -> None:
        """Every element of an expanded batch is a chain of its own, as under Pyro's driver."""
        rbm = random_rbm(("bernoulli", "bernoulli")).expand((5,))
        mcmc = MCMC(KERNELS[name](rbm), num_samples=40, warmup_steps=10, disable_progbar=True)
        mcmc.run()
        samples = mcmc.get_samples()["v"]
        assert samples.shape == (40, 5, 3)
        assert len({tuple(chain.flatten().tolist()) for chain in samples.unbind(1)}) == 5

    def test_records(self, name: str) -> None:
        rbm = random_rbm(("ising", "gaussian"), offsets=True, batched=True)
        mcmc = VectorizedMCMC(KERNELS[name](rbm, num_steps=2), 7, 3, 4, disable_progbar=True)
        mcmc.run()
        stats = mcmc.sample_stats
        assert stats["energy"].shape == stats["accept_prob"].shape == (4, 7, 2, 3)
        assert (stats["accept_prob"] >= 0.0).all() and (stats["accept_prob"] <= 1.0).all()
        expected = rbm.free_energy(mcmc.get_samples(group_by_chain=True)["v"])
        torch.testing.assert_close(stats["energy"], expected)

    def test_parameters_that_want_gradients(self, name: str) -> None:
        rbm = random_rbm(("bernoulli", "relu"))
        for parameter in rbm.parameters():
            parameter.requires_grad_()
        kernel = pickle.loads(pickle.dumps(KERNELS[name](rbm)))
        kernel.setup(2)
        params = kernel.initial_params
        for _ in range(4):
            params = kernel.sample(params)
        assert not params["v"].requires_grad
        assert not any(kernel.diagnostics()[n].requires_grad for n in ("energy", "accept_prob"))


@pytest.mark.parametrize("name", KERNELS)
class TestState:
    def test_one_free_bit_and_an_even_number_of_steps(self, name: str) -> None:
        """A flip that is never refused would come back after two steps."""
        rbm = RBM(
            units.Bernoulli(torch.zeros(1)), units.Bernoulli(torch.zeros(1)), torch.zeros(1, 1)
        )
        end = run_steps(rbm, KERNELS[name](rbm, num_steps=2), torch.zeros(10_000, 1), draws=5)
        assert abs(float(end.mean()) - 0.5) < 0.05

    def test_a_state_from_elsewhere_is_honoured(self, name: str) -> None:
        """A kernel within another one is given other states than it returned."""
        weight = torch.full((3, 1), 20.0)
        kernel = KERNELS[name](
            RBM(units.Ising(torch.zeros(3)), units.Ising(torch.zeros(1)), weight)
        )
        kernel.setup(0)
        for sign in (1.0, -1.0, -1.0, 1.0, -1.0):
            # All spins alike: no proposal leads away from there.
            given = torch.full((3,), sign)
            assert torch.equal(kernel.sample({"v": given})["v"], given)
            # The same again from the draw itself, whose gradient the kernel has kept.
            assert torch.equal(kernel.sample(kernel.sample({"v": given}))["v"], given)

    def test_input_is_not_changed(self, name: str) -> None:
        kernel = KERNELS[name](random_rbm(("categorical", "bernoulli")))
        kernel.setup(0)
        params = kernel.initial_params
        before = params["v"].clone()
        kernel.sample(params)
        assert torch.equal(params["v"], before)

    def test_parameters_are_read_in_setup(self, name: str) -> None:
        bias = torch.full((3,), -100.0)
        rbm = RBM(units.Bernoulli(bias), units.Bernoulli(torch.zeros(2)), torch.zeros(3, 2))
        kernel = KERNELS[name](rbm)
        for value, total in ((-100.0, 0), (100.0, 3)):
            bias.fill_(value)
            kernel.setup(0)
            assert kernel.sample(kernel.initial_params)["v"].sum() == total

    def test_generator(self, name: str) -> None:
        def draws(seed: int) -> Tensor:
            kernel = KERNELS[name](rbm, generator=torch.Generator().manual_seed(seed))
            kernel.setup(0)
            params, result = kernel.initial_params, []
            for _ in range(20):
                params = kernel.sample(params)
                result.append(params["v"])
            return torch.stack(result)

        rbm = random_rbm(("bernoulli", "ising"))
        before = torch.get_rng_state()
        first = draws(3)
        assert torch.equal(before, torch.get_rng_state())
        torch.manual_seed(77)
        assert torch.equal(first, draws(3))
        assert not torch.equal(first, draws(4))

    def test_the_same_object_twice(self, name: str) -> None:
        kernel = KERNELS[name](random_rbm(("ising", "ising"), scale=3.0))
        results = []
        for _ in range(2):
            torch.manual_seed(1)
            mcmc = MCMC(kernel, num_samples=20, warmup_steps=20, disable_progbar=True)
            mcmc.run()
            results.append(mcmc.get_samples()["v"])
            assert len(mcmc.diagnostics()["accept_prob"]["chain 0"]) == 20
        assert torch.equal(*results)

    def test_initial_params(self, name: str) -> None:
        kernel = KERNELS[name](random_rbm(("bernoulli", "bernoulli")))
        with pytest.raises(ValueError, match=r"must hold 'v' of shape \(3,\), got \{'v': \(4,\)\}"):
            kernel.initial_params = {"v": torch.zeros(4)}
        with pytest.raises(ValueError, match=r"initial_params\['v'\] is outside of"):
            kernel.initial_params = {"v": torch.full((3,), 0.5)}
        kernel.initial_params = {"v": torch.ones(3, dtype=torch.int64)}
        kernel.setup(0)
        assert kernel.sample(kernel.initial_params)["v"].dtype == torch.float64


class TestStepSize:
    @staticmethod
    def machine(batch: tuple[int, ...] = ()) -> RBM:
        scale = torch.tensor([[[0.2]], [[0.3]], [[0.45]]]) if batch else torch.tensor(0.3)
        weight = scale * torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
        return RBM(units.Ising(torch.zeros(30)), units.Bernoulli(torch.zeros(20)), weight)

    @pytest.mark.parametrize("start", [None, 0.1, 10.0])
    @pytest.mark.parametrize("target", [0.4, 0.57])
    def test_reaches_the_target(self, start: float | None, target: float) -> None:
        kernel = DiscreteLangevin(self.machine(), start, target_accept_prob=target)
        mcmc = VectorizedMCMC(kernel, 50, 250, 60, disable_progbar=True)
        mcmc.run()
        assert abs(mcmc.sample_stats["accept_prob"].mean().item() - target) < 0.08

    def test_every_element_of_a_batch_has_its_own(self) -> None:
        kernel = DiscreteLangevin(self.machine((3,)))
        mcmc = VectorizedMCMC(kernel, 50, 250, 60, disable_progbar=True)
        mcmc.run()
        rates = mcmc.sample_stats["accept_prob"].mean((0, 1))
        assert (rates - 0.57).abs().max() < 0.08
        sizes = kernel.step_size
        assert sizes.shape == (3,) and sizes[0] > 1.1 * sizes[1] and len(set(sizes.tolist())) == 3

    def test_frozen_after_the_warm_up(self) -> None:
        kernel = DiscreteLangevin(self.machine())
        kernel.setup(5)
        params, sizes = kernel.initial_params, [kernel.step_size]
        for _ in range(10):
            params = kernel.sample(params)
            sizes.append(kernel.step_size)
        values = [size.item() for size in sizes]
        assert values[0] == pytest.approx(4.0 / 3.0)
        assert len(set(values[:6])) == 6 and len(set(values[5:])) == 1
        kernel.cleanup()
        assert kernel.step_size.item() == values[-1]
        kernel.setup(0)
        assert kernel.step_size.item() == values[0]

    def test_not_tuned(self) -> None:
        kernel = DiscreteLangevin(self.machine(), 0.7, adapt=False)
        VectorizedMCMC(kernel, 1, 20, 3, disable_progbar=True).run()
        assert kernel.step_size.item() == pytest.approx(0.7)

    def test_stays_finite_where_nothing_is_refused(self) -> None:
        rbm = RBM(units.Bernoulli(torch.zeros(3)), units.Ising(torch.zeros(2)), torch.zeros(3, 2))
        kernel = DiscreteLangevin(rbm)
        VectorizedMCMC(kernel, 1, 300, 3, disable_progbar=True).run()
        assert kernel.step_size.item() == 500.0

    def test_shown_and_known_after_setup(self) -> None:
        kernel = DiscreteLangevin(self.machine(), 0.25)
        with pytest.raises(RuntimeError, match="step size is known only after setup"):
            _ = kernel.step_size
        kernel.setup(0)
        kernel.sample(kernel.initial_params)
        assert list(kernel.logging()) == ["accept_prob", "energy", "step size"]
        assert kernel.logging()["step size"] == "0.25"

    @pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
    def test_arguments(self, wrong: float) -> None:
        with pytest.raises(ValueError, match="step_size must be a positive number, got"):
            DiscreteLangevin(self.machine(), wrong)

    @pytest.mark.parametrize("wrong", [0.0, 1.0, float("nan")])
    def test_target(self, wrong: float) -> None:
        with pytest.raises(ValueError, match="target_accept_prob must be between 0 and 1, got"):
            DiscreteLangevin(self.machine(), target_accept_prob=wrong)


@pytest.mark.parametrize("name", KERNELS)
class TestRefusals:
    @pytest.mark.parametrize("family", ["gaussian", "relu", "multinomial"])
    def test_families(self, family: str, name: str) -> None:
        message = "needs bits, spins or one-hot groups .*; use BlockGibbs, or MetropolisBlockGibbs"
        with pytest.raises(ValueError, match=message):
            KERNELS[name](random_rbm((family, "bernoulli")))

    @pytest.mark.parametrize("wrong", [None, 3, torch.zeros(3, 2)])
    def test_target(self, wrong: Any, name: str) -> None:
        with pytest.raises(TypeError, match=f"target must be .*got {type(wrong).__name__}"):
            KERNELS[name](wrong)

    def test_num_steps(self, name: str) -> None:
        with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
            KERNELS[name](random_rbm(("bernoulli", "bernoulli")), num_steps=0)
