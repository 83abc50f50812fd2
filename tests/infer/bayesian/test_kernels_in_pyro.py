# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The kernels under Pyro's drivers, on programs of other forms, and what they refuse."""

from functools import partial
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.mcmc import StreamingMCMC
from torch import Size, Tensor

from pyro_ebm.distributions import DBM, RBM, BernoulliRBM, units
from pyro_ebm.infer import (
    ApproximateAuxiliaryWarning,
    Exchange,
    PseudoMarginal,
    VectorizedMCMC,
    exact_log_partition,
)
from pyro_ebm.infer.bayesian.auxiliary import bridge_log_weights, draw_auxiliary
from pyro_ebm.infer.bayesian.machine_factor import machine_factor
from pyro_ebm.infer.bayesian.random_walk import RandomWalk, covariance_windows
from pyro_ebm.infer.paths import MachinePath
from tests.infer.bayesian.small_programs import machine, program

DATA = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]).double()
KERNELS = [Exchange, PseudoMarginal]


@pytest.mark.parametrize("kernel_type", KERNELS)
class TestDrivers:
    def test_sequential_chains_are_fresh(self, kernel_type: Any) -> None:
        """The second chain is that of a kernel of its own."""
        kernel_type = partial(kernel_type, num_bridges=0)
        mcmc = MCMC(kernel_type(program), 5, 20, num_chains=2, disable_progbar=True)
        torch.manual_seed(5)
        mcmc.run(DATA)
        draws = mcmc.get_samples(group_by_chain=True)["scale"]
        assert draws.shape == (2, 5) and draws.dtype == torch.float64
        torch.manual_seed(5)
        for number in range(2):
            single = MCMC(kernel_type(program), 5, 20, disable_progbar=True)
            single.run(DATA)
            assert torch.equal(single.get_samples()["scale"], draws[number])

    def test_start_of_the_user(self, kernel_type: Any) -> None:
        start = {"coupling": torch.tensor(0.25).double(), "scale": torch.tensor(3.0).double()}
        kernel = kernel_type(program, init_scale=1e-6)
        mcmc = MCMC(kernel, 5, 0, initial_params=start, disable_progbar=True)
        mcmc.run(DATA)
        draws = mcmc.get_samples()
        assert (draws["scale"] - 3.0).abs().max() < 1e-3
        assert (draws["coupling"] - 0.25).abs().max() < 1e-3

    def test_starts_of_many_chains(self, kernel_type: Any) -> None:
        start = {
            "coupling": torch.linspace(-1.0, 1.0, 6).double(),
            "scale": torch.linspace(1.0, 2.0, 6).double(),
        }
        kernel = kernel_type(program, init_scale=1e-6)
        mcmc = VectorizedMCMC(kernel, 3, 0, 6, initial_params=start, disable_progbar=True)
        mcmc.run(DATA)
        draws = mcmc.get_samples(group_by_chain=True)
        for name, value in start.items():
            assert (draws[name] - value.unsqueeze(1)).abs().max() < 1e-3

    def test_streaming(self, kernel_type: Any) -> None:
        mcmc = StreamingMCMC(kernel_type(program), 10, 10, disable_progbar=True)
        mcmc.run(DATA)
        assert mcmc.get_statistics()

    def test_diagnostics(self, kernel_type: Any) -> None:
        mcmc = MCMC(kernel_type(program), 20, 10, disable_progbar=True)
        mcmc.run(DATA)
        numbers = mcmc.diagnostics()
        assert numbers["divergences"]["chain 0"] == []
        assert numbers["exact auxiliary"]["chain 0"] is True
        assert numbers["accept_prob"]["chain 0"].shape == (20,)
        assert 0.0 <= float(numbers["acceptance rate"]["chain 0"]) <= 1.0


def test_pseudo_marginal_reports_its_noise() -> None:
    mcmc = MCMC(PseudoMarginal(program), 5, 10, disable_progbar=True)
    mcmc.run(DATA)
    assert float(mcmc.diagnostics()["estimate std"]["chain 0"]) >= 0.0


def test_chains_are_evaluated_each_by_itself() -> None:
    """A batch of chains has the log-densities that they have one by one."""
    kernel = Exchange(program)
    kernel.chain_shape = Size((4,))
    kernel.setup(0, DATA)
    z = torch.randn(4, 2).double()
    together = kernel.density.evaluate(z).log_density
    kernel.chain_shape = Size()
    kernel.setup(0, DATA)
    alone = torch.stack([kernel.density.evaluate(row).log_density for row in z])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    rbm = machine(z[:, 0], z[:, 1])
    expected = (
        -rbm.free_energy(DATA[:, None]).sum(0)
        + dist.Normal(0.0, 1.5).log_prob(z[:, 0])
        + dist.LogNormal(0.0, 0.7).log_prob(z[:, 1].exp())
        + z[:, 1]
    )
    torch.testing.assert_close(alone, expected, rtol=1e-6, atol=1e-6)


class TestWeights:
    """Weights of auxiliary rows have the ratio of both Z as their mean."""

    @pytest.mark.parametrize("num_bridges", [0, 3])
    @pytest.mark.parametrize("batch", [(), (2, 1), (3,)])
    def test_mean(self, num_bridges: int, batch: tuple[int, ...]) -> None:
        start = machine(torch.full(batch, 0.8).double(), torch.full(batch, 0.5).double())
        end = machine(torch.full(batch, -0.3).double(), torch.full(batch, 1.0).double())
        rows = (2, 3)
        x = start.expand(rows).sample((4000,))
        weights = bridge_log_weights(start, end, x, num_bridges).exp()
        assert weights.shape == (4000, *rows)
        expected = (exact_log_partition(end) - exact_log_partition(start)).exp()
        error = weights.std(0) / len(weights) ** 0.5
        assert float(((weights.mean(0) - expected) / error).abs().max()) < 6.0

    @pytest.mark.parametrize("num_bridges", [1, 3])
    def test_both_directions_are_one(
        self, num_bridges: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One sweep at every machine between, and from the other end the same machines in reverse order."""
        swept: list[Tensor] = []
        move = MachinePath.move

        def recorded(self: MachinePath, fields: Tensor, beta: float) -> Tensor:
            swept.append(self.machine(beta).weight)
            return move(self, fields, beta)

        monkeypatch.setattr(MachinePath, "move", recorded)
        ends = [machine(torch.tensor(c).double(), torch.zeros(()).double()) for c in (0.5, 2.0)]
        found = []
        for start, end in (ends, ends[::-1]):
            swept.clear()
            bridge_log_weights(start, end, DATA, num_bridges)
            found.append(torch.stack(swept))
        assert len(found[0]) == num_bridges
        torch.testing.assert_close(found[0], found[1].flip(0))


class TestPrograms:
    def test_rows_with_machines_of_their_own_and_masks(self) -> None:
        """Every row has its own coupling; the second is masked out twice over."""
        x = torch.tensor([0.5, -1.0, 2.0]).double()

        def model() -> None:
            slope = pyro.sample("slope", dist.Normal(torch.zeros(()).double(), 1.0))
            rbm = machine(slope * x, torch.zeros(3).double())
            with pyro.plate("rows", 3), poutine.mask(mask=torch.tensor([True, False, True])):
                pyro.sample("v", rbm.mask(torch.tensor([True, True, True])), obs=DATA)

        trace = poutine.trace(model).get_trace()
        factor = machine_factor("v", trace.nodes["v"])
        assert factor is not None and factor.machine.batch_shape == (3,)
        assert factor.counted(torch.ones(3)).tolist() == [1.0, 0.0, 1.0]
        assert draw_auxiliary(factor, 1, 7).shape == (7, 3, 3)
        mcmc = MCMC(Exchange(model, num_bridges=2), 10, 10, disable_progbar=True)
        mcmc.run()
        assert mcmc.get_samples()["slope"].shape == (10,)

    def test_a_machine_that_does_not_depend_on_the_parameters(self) -> None:
        """Its Z cancels: nothing is drawn."""
        fixed = machine(torch.tensor(1.0).double(), torch.tensor(0.0).double())

        def model() -> None:
            loc = pyro.sample("loc", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("v", fixed, obs=DATA[0])
            pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(1.0).double())

        kernel = Exchange(model)
        kernel.setup(0)
        point = kernel.density.evaluate(torch.zeros(1).double())
        other = kernel.density.evaluate(torch.ones(1).double())
        state = torch.get_rng_state()
        assert float(kernel._exchanged(other, point)) == 0.0
        assert torch.equal(state, torch.get_rng_state())

    def test_other_families(self) -> None:
        """Gaussian visible units, hidden spins."""
        y = torch.randn(6, 2).double()

        def model() -> None:
            precision = pyro.sample("precision", dist.Gamma(torch.tensor(2.0).double(), 2.0))
            weight = pyro.sample(
                "weight", dist.Normal(torch.zeros(()).double(), 0.3).expand([2, 2]).to_event(2)
            )
            visible = units.Gaussian(torch.zeros(2).double(), precision.unsqueeze(-1))
            rbm = RBM(visible, units.Ising(torch.zeros(2).double()), weight)
            with pyro.plate("rows", 6):
                pyro.sample("y", rbm, obs=y)

        for kernel in (Exchange(model, num_bridges=2), PseudoMarginal(model)):
            mcmc = MCMC(kernel, 10, 10, disable_progbar=True)
            mcmc.run()
            assert mcmc.get_samples()["weight"].shape == (10, 2, 2)

    def test_too_large_to_enumerate(self) -> None:
        """Double Metropolis-Hastings, with a warning and a flag."""
        data = torch.bernoulli(torch.full((4, 17), 0.5))

        def model() -> None:
            scale = pyro.sample("scale", dist.Normal(0.0, 0.1))
            with pyro.plate("rows", 4):
                rbm = BernoulliRBM(scale * torch.ones(17, 17), torch.zeros(17), torch.zeros(17))
                pyro.sample("v", rbm, obs=data)

        mcmc = MCMC(Exchange(model, num_sweeps=3), 5, 5, disable_progbar=True)
        with pytest.warns(ApproximateAuxiliaryWarning, match="'v'"):
            mcmc.run()
        assert mcmc.diagnostics()["exact auxiliary"]["chain 0"] is False


class TestRefused:
    def run(self, model: Any, kernel_type: Any = Exchange, **options: Any) -> None:
        kernel_type(model, **options).setup(5, DATA)

    def test_constant_log_z(self) -> None:
        def model(data: Tensor) -> None:
            coupling = pyro.sample("coupling", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("v", machine(coupling, 0.0 * coupling).normalize(1.0), obs=data[0])

        with pytest.raises(ValueError, match="does not depend on the latent parameters"):
            self.run(model)

    def test_discrete_site(self) -> None:
        def model(data: Tensor) -> None:
            pyro.sample("k", dist.Bernoulli(0.5))

        with pytest.raises(ValueError, match="'k' is discrete"):
            self.run(model)

    def test_no_latent_site(self) -> None:
        with pytest.raises(ValueError, match="no latent site"):
            self.run(lambda data: None)

    def test_scaled_site(self) -> None:
        with pytest.raises(ValueError, match="is scaled by 2"):
            self.run(poutine.scale(program, scale=2.0))

    def test_deep_machine(self) -> None:
        def model(data: Tensor) -> None:
            bias = pyro.sample("bias", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
            layers = [
                units.Bernoulli(b) for b in (bias, torch.zeros(2).double(), torch.zeros(2).double())
            ]
            dbm = DBM(layers, [torch.zeros(3, 2).double(), torch.zeros(2, 2).double()])
            pyro.sample("v", dbm, obs=data[0])

        with pytest.raises(TypeError, match="log_prob is a bound"):
            self.run(model)

    def test_machines_that_come_and_go(self) -> None:
        def model(data: Tensor) -> None:
            coupling = pyro.sample("coupling", dist.Normal(torch.zeros(()).double(), 1.0))
            if coupling > 0.0:
                pyro.sample("v", machine(coupling, 0.0 * coupling), obs=data[0])

        kernel = Exchange(model)
        kernel.initial_params = {"coupling": torch.ones(()).double()}
        kernel.setup(0, DATA)
        with pytest.raises(ValueError, match="differ from run to run"):
            kernel.density.evaluate(-torch.ones(1).double())

    def test_start(self) -> None:
        kernel = Exchange(program)
        kernel.initial_params = {"coupling": torch.zeros(()).double()}
        with pytest.raises(ValueError, match="initial_params must have the shapes"):
            kernel.setup(0, DATA)
        kernel.initial_params = {k: -torch.ones(()).double() for k in ("coupling", "scale")}
        with pytest.raises(ValueError, match=r"initial_params\['scale'\] is outside"):
            kernel.setup(0, DATA)

    def test_reference(self) -> None:
        with pytest.raises(ValueError, match="reference must hold"):
            self.run(program, PseudoMarginal, reference={"coupling": torch.zeros(())})

    @pytest.mark.parametrize("kernel_type", KERNELS)
    @pytest.mark.parametrize(
        "options",
        [
            {"num_bridges": -1},
            {"num_steps": 0},
            {"num_sweeps": 0},
            {"target_accept_prob": 1.0},
            {"init_scale": 0.0},
        ],
    )
    def test_options(self, kernel_type: Any, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(options))):
            kernel_type(program, **options)

    def test_other_options(self) -> None:
        with pytest.raises(ValueError, match="num_particles"):
            PseudoMarginal(program, num_particles=0)
        with pytest.raises(TypeError, match="model must be a Pyro model"):
            Exchange(3)  # type: ignore[arg-type]

    def test_parameters_changed_by_others(self) -> None:
        kernel = PseudoMarginal(program)
        kernel.setup(0, DATA)
        params = {k: v + 0.1 for k, v in kernel.initial_params.items()}
        with pytest.raises(ValueError, match="use Exchange in a compound kernel"):
            kernel.sample(params)


class TestRandomWalk:
    def test_windows(self) -> None:
        assert covariance_windows(20) == []
        windows = covariance_windows(1000)
        assert windows[0][0] == 150 and windows[-1][1] == 850
        assert all(a[1] == b[0] for a, b in pairwise(windows))

    def test_learns_the_covariance_of_each_chain(self) -> None:
        factors = torch.tensor([[[1.0, 0.0], [0.9, 0.1]], [[3.0, 0.0], [0.0, 0.2]]]).double()
        start = torch.zeros(2, 2).double()
        walk = RandomWalk(start, 800, target_accept_prob=0.3, init_scale=0.1, adapt_covariance=True)
        for _ in range(680):
            z = (factors @ torch.randn(2, 2, 1).double()).squeeze(-1)
            walk.adapt(z, torch.full((2,), 0.3).double())
        torch.testing.assert_close(
            walk._factor @ walk._factor.mT, factors @ factors.mT, rtol=0.3, atol=0.1
        )

    def test_scale_meets_the_acceptance(self) -> None:
        """A standard normal target: the acceptance after warm-up is the one that was asked for."""
        z = torch.zeros(200, 1).double()
        walk = RandomWalk(z, 300, target_accept_prob=0.4, init_scale=0.1, adapt_covariance=True)
        rates = []
        for step in range(400):
            new = walk.propose(z)
            prob = (0.5 * (z.square() - new.square()).sum(-1)).clamp(max=0.0).exp()
            z = torch.where((torch.rand_like(prob) < prob).unsqueeze(-1), new, z)
            walk.adapt(z, prob)
            rates += [prob.mean()] if step >= 300 else []
        assert float(torch.stack(rates).mean()) == pytest.approx(0.4, abs=0.05)
