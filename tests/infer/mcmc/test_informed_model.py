# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Informed kernels on the latent site of a Pyro model, against enumeration."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC
from torch import Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.distributions.conditionals import FlatOneHotCategorical, Spin
from pyro_ebm.infer import BlockGibbs, DiscreteLangevin, GibbsWithGradients, VectorizedMCMC
from pyro_ebm.infer.mcmc.informed_kernel import InformedKernel
from tests.distributions.families import random_rbm
from tests.infer.mcmc.frequencies import have_probabilities, occurrences
from tests.infer.mcmc.test_informed import KERNELS, VISIBLE, transition_matrix

Model = Callable[..., Any]

COUNTS = torch.tensor([0.0, 2.0, 5.0], dtype=torch.float64)


def rate(v: Tensor) -> Tensor:
    """Not linear in the states: products of the first and the last units."""
    return 0.3 + (1.0 + v[..., 0] * v[..., 1]).square() + 2.0 * v[..., 1] * v[..., -1].square()


def rate_of(v: Tensor) -> Tensor:
    return rate(v).abs() + 0.1


def counting(prior: RBM, num_rows: int | None = None) -> Model:
    """Poisson counts of products of units, of one machine or of one in every row of a plate."""

    def model() -> None:
        if num_rows is None:
            v = pyro.sample("x", prior)
            with pyro.plate("counts", len(COUNTS)):
                pyro.sample("n", dist.Poisson(rate_of(v)), obs=COUNTS)
        else:
            with pyro.plate("rows", num_rows):
                v = pyro.sample("x", prior)
                pyro.sample("n", dist.Poisson(rate_of(v)), obs=COUNTS[:num_rows])

    return model


def posterior(prior: RBM, rows: int | None) -> tuple[Tensor, Tensor]:
    """All states, and log joint densities of shape ``(states,)`` or ``(states, rows)``."""
    assert prior.visible.num_states is not None
    states = prior.visible.states(0, prior.visible.num_states)
    counts = dist.Poisson(rate_of(states).unsqueeze(-1)).log_prob(COUNTS)
    log_prior = -prior.free_energy(states)
    return states, log_prior + counts.sum(-1) if rows is None else log_prior.unsqueeze(-1) + counts[
        :, :rows
    ]


def exact_draws(states: Tensor, log_p: Tensor, count: int) -> Tensor:
    """Independent draws, shape ``(count, *rows, size)``."""
    law = torch.distributions.Categorical(logits=log_p.movedim(0, -1))
    return states[law.sample((count,))]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("family", VISIBLE)
class TestNonlinearModel:
    def test_detailed_balance(self, family: str, name: str) -> None:
        prior = random_rbm((family, "ising"), offsets=True, scale=2.0)
        states, log_p = posterior(prior, None)
        kernel = KERNELS[name](counting(prior))
        kernel.chain_shape = states.shape[:1]
        matrix, proposal = transition_matrix(kernel, states)
        p = log_p.softmax(0)
        flow = p.unsqueeze(1) * matrix
        torch.testing.assert_close(proposal.sum(1), torch.ones_like(p))
        torch.testing.assert_close(flow, flow.T, rtol=0.0, atol=1e-11)
        torch.testing.assert_close(p @ matrix, p, rtol=0.0, atol=1e-11)

    @pytest.mark.parametrize("rows", [None, 3])
    def test_chains_in_one_tensor(self, family: str, name: str, rows: int | None) -> None:
        prior = random_rbm((family, "bernoulli"), offsets=True)
        model = counting(prior, rows)
        with pytest.raises(ValueError, match="not linear"):
            VectorizedMCMC(BlockGibbs(model), 1, 0, 2, disable_progbar=True).run()
        states, log_p = posterior(prior, rows)
        start = exact_draws(states, log_p, 4000)
        mcmc = VectorizedMCMC(
            KERNELS[name](model, num_steps=2),
            2,
            2,
            len(start),
            initial_params={"x": start},
            disable_progbar=True,
        )
        mcmc.run()
        v = mcmc.get_samples(group_by_chain=True)["x"]
        assert not torch.equal(v[:, -1], start)
        assert have_probabilities(v[:, -1], states, log_p.softmax(0))
        stats = mcmc.sample_stats
        assert stats["accept_prob"].mean() < 0.95
        lifted = log_p.reshape(len(states), 1, 1, *log_p.shape[1:])
        energy = -(occurrences(v, states) * lifted).sum(0)
        torch.testing.assert_close(stats["energy"], energy)


@pytest.mark.parametrize("name", KERNELS)
class TestDrivers:
    def test_one_chain(self, name: str) -> None:
        prior = random_rbm(("bernoulli", "bernoulli"))
        kernel = KERNELS[name](counting(prior, 3), num_steps=3)
        mcmc = MCMC(kernel, num_samples=200, warmup_steps=50, disable_progbar=True)
        mcmc.run()
        samples = mcmc.get_samples()["x"]
        assert samples.shape == (200, 3, 3) and samples.dtype == torch.float64
        states, log_p = posterior(prior, 3)
        energy = -(occurrences(samples, states) * log_p.unsqueeze(1)).sum(0)
        torch.testing.assert_close(mcmc.diagnostics()["energy"]["chain 0"], energy)
        assert energy.unique(dim=0).shape[0] > 5
        assert mcmc.diagnostics()["accept_prob"]["chain 0"].shape == (200, 3)

    def test_a_model_that_indexes_from_the_left(self, name: str) -> None:
        """It cannot be vectorised, so that it is run once for every chain."""
        prior = random_rbm(("bernoulli", "bernoulli"))

        def model() -> None:
            v = pyro.sample("x", prior)
            pyro.sample("n", dist.Poisson(0.2 + 3.0 * v[0] * v[2]), obs=COUNTS[1])

        states = prior.visible.states(0, 8)
        counts = dist.Poisson(0.2 + 3.0 * states[:, 0] * states[:, 2]).log_prob(COUNTS[1])
        log_p = counts - prior.free_energy(states)
        start = exact_draws(states, log_p, 400)
        mcmc = VectorizedMCMC(
            KERNELS[name](model), 3, 0, 400, initial_params={"x": start}, disable_progbar=True
        )
        mcmc.run()
        v = mcmc.get_samples(group_by_chain=True)["x"]
        assert have_probabilities(v[:, -1], states, log_p.softmax(0))
        index = (v.unsqueeze(-2) == states).all(-1).double().argmax(-1)
        torch.testing.assert_close(mcmc.sample_stats["energy"], -log_p[index])

    def test_generator(self, name: str) -> None:
        def draws(seed: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            kernel = KERNELS[name](counting(prior, 2), generator=generator)
            mcmc = VectorizedMCMC(kernel, 5, 5, 10, disable_progbar=True)
            mcmc.run()
            return mcmc.get_samples()["x"]

        prior = random_rbm(("categorical", "bernoulli"))
        first = draws(3)
        torch.manual_seed(77)
        assert torch.equal(first, draws(3))
        assert not torch.equal(first, draws(4))

    def test_initial_params(self, name: str) -> None:
        prior = random_rbm(("bernoulli", "bernoulli"))
        for start, message in (
            (torch.zeros(7, 3), r"must hold 'x' of shape \(7, 2, 3\), got"),
            (torch.full((7, 2, 3), 0.5), r"initial_params\['x'\] is outside of"),
        ):
            mcmc = VectorizedMCMC(
                KERNELS[name](counting(prior, 2)),
                1,
                0,
                7,
                initial_params={"x": start},
                disable_progbar=True,
            )
            with pytest.raises(ValueError, match=message):
                mcmc.run()

    def test_parameters_that_want_gradients(self, name: str) -> None:
        """A machine of a module has no log Z attached; its states alone are differentiated."""
        prior = random_rbm(("bernoulli", "gaussian"))
        for parameter in prior.parameters():
            parameter.requires_grad_()
        mcmc = VectorizedMCMC(KERNELS[name](counting(prior, 3)), 3, 3, 4, disable_progbar=True)
        mcmc.run()
        assert not mcmc.get_samples()["x"].requires_grad
        assert all(parameter.grad is None for parameter in prior.parameters())

    def test_before_setup(self, name: str) -> None:
        kernel = KERNELS[name](counting(random_rbm(("bernoulli", "bernoulli"))))
        with pytest.raises(RuntimeError, match="known only after setup"):
            _ = kernel.state_shape
        kernel.setup(0)
        with pytest.raises(TypeError, match="a model, not a machine"):
            _ = kernel.target


def pairs(x: Tensor) -> Tensor:
    return torch.exp(-(x[..., 0] - x[..., 1] * x[..., 2]).square()).log1p() * 3.0


LAWS: dict[str, tuple[dist.TorchDistribution, units.Unit]] = {
    "bits": (
        dist.Bernoulli(logits=torch.tensor([0.5, -0.3, 0.2]).double()).to_event(1),
        units.Bernoulli(torch.tensor([0.5, -0.3, 0.2]).double()),
    ),
    "spins": (
        Spin(torch.tensor([0.5, -0.3, 0.2]).double()).to_event(1),
        units.Ising(torch.tensor([0.5, -0.3, 0.2]).double()),
    ),
    "groups": (
        FlatOneHotCategorical(torch.tensor([[0.5, -0.3, 0.2], [0.0, 1.0, 0.1]]).double()),
        units.Categorical(torch.tensor([[0.5, -0.3, 0.2], [0.0, 1.0, 0.1]]).double()),
    ),
    "one-hot": (
        dist.OneHotCategorical(logits=torch.tensor([0.5, -0.3, 0.2]).double()),
        units.Categorical(torch.tensor([[0.5, -0.3, 0.2]]).double()),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("law", LAWS)
def test_other_sites_than_machines(law: str, name: str) -> None:
    prior, unit = LAWS[law]

    def model() -> None:
        x = pyro.sample("x", prior)
        pyro.factor("pairs", pairs(x))

    assert unit.num_states is not None
    states = unit.states(0, unit.num_states)
    log_p = pairs(states) - unit.energy(states)
    mcmc = VectorizedMCMC(KERNELS[name](model, num_steps=2), 1, 20, 3000, disable_progbar=True)
    mcmc.run()
    assert have_probabilities(mcmc.get_samples()["x"], states, log_p.softmax(0))


@pytest.mark.parametrize("name", KERNELS)
class TestWithinAnotherKernel:
    def test_other_sites_may_change(self, name: str) -> None:
        """Conditioned values are read anew, even if the kernel is given the state it returned."""
        prior = random_rbm(("bernoulli", "bernoulli"))
        values = {"scale": torch.tensor(0.5).double()}

        def model() -> None:
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            v = pyro.sample("x", RBM(prior.visible, prior.hidden, scale * prior.weight))
            mean = scale * v[..., 0] * v[..., 1]
            pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.tensor(1.0).double())

        def log_joint(v: Tensor) -> Tensor:
            machine = RBM(prior.visible, prior.hidden, values["scale"] * prior.weight)
            mean = values["scale"] * v[0] * v[1]
            return dist.Normal(mean, 1.0).log_prob(torch.tensor(1.0)) - machine.free_energy(v)

        kernel = KERNELS[name](poutine.condition(model, data=values))
        kernel.setup(0)
        params = kernel.initial_params
        for scale in torch.linspace(0.5, 3.0, 12).double():
            values["scale"] = scale
            params = kernel.sample(params)
            energy = kernel.diagnostics()["energy"][-1]
            torch.testing.assert_close(energy, -log_joint(params["x"]).double())

    def test_gradients_that_do_not_exist(self, name: str) -> None:
        """A table that is read at integers, and a square root at zero: exact all the same."""
        prior = random_rbm(("bernoulli", "bernoulli"))
        table = torch.tensor([0.0, 2.0, -1.0, 1.0]).double()

        def rest(v: Tensor) -> Tensor:
            return table[v.sum(-1).long()] + 2.0 * (v[..., 0] * v[..., 1]).sqrt()

        def model() -> None:
            pyro.factor("rest", rest(pyro.sample("x", prior)))

        states = prior.visible.states(0, 8)
        mcmc = VectorizedMCMC(KERNELS[name](model), 1, 40, 3000, disable_progbar=True)
        mcmc.run()
        log_p = rest(states) - prior.free_energy(states)
        assert have_probabilities(mcmc.get_samples()["x"], states, log_p.softmax(0))

    def test_impossible_states(self, name: str) -> None:
        """Chains start where the density is not zero, and never go elsewhere."""
        prior = random_rbm(("bernoulli", "bernoulli"))

        def model() -> None:
            v = pyro.sample("x", prior)
            allowed = v[..., 0] + v[..., 1] >= 1.0
            pyro.factor("allowed", torch.where(allowed, 0.0, -torch.inf).double())

        states = prior.visible.states(0, 8)
        allowed = states[:, :2].sum(-1) >= 1.0
        log_p = torch.where(allowed, -prior.free_energy(states), -torch.inf)
        mcmc = VectorizedMCMC(KERNELS[name](model, num_steps=2), 20, 20, 3000, disable_progbar=True)
        mcmc.run()
        v = mcmc.get_samples(group_by_chain=True)["x"]
        assert (v[..., :2].sum(-1) >= 1.0).all()
        assert have_probabilities(v[:, -1], states, log_p.softmax(0))
        assert mcmc.sample_stats["accept_prob"].isfinite().all()

    def test_nowhere_to_start(self, name: str) -> None:
        def model() -> None:
            pyro.sample("x", dist.Bernoulli(torch.tensor([0.5, 0.5])).to_event(1))
            pyro.factor("impossible", torch.tensor(-torch.inf))

        kernel = KERNELS[name](model)
        kernel.setup(0)
        with pytest.raises(ValueError, match="no state of site 'x' with a finite log-density"):
            _ = kernel.initial_params


@pytest.mark.parametrize("kernel", [GibbsWithGradients, DiscreteLangevin])
class TestRefusals:
    @pytest.mark.parametrize(
        ("law", "message"),
        [
            (dist.Normal(0.0, 1.0), "use HMC or NUTS"),
            (dist.Bernoulli(0.5), "to_event"),
            (dist.Multinomial(3, torch.ones(3)), "use another kernel"),
            (random_rbm(("gaussian", "bernoulli")), "use BlockGibbs, or MetropolisBlockGibbs"),
            (random_rbm(("multinomial", "bernoulli")), "use BlockGibbs, or MetropolisBlockGibbs"),
        ],
        ids=["normal", "scalar", "counts", "gaussian", "multinomial"],
    )
    def test_sites(self, law: Any, message: str, kernel: type[InformedKernel]) -> None:
        with pytest.raises(ValueError, match=f"{kernel.__name__} needs bits, .*{message}"):
            kernel(lambda: pyro.sample("x", law)).setup(0)

    def test_two_latent_sites(self, kernel: type[InformedKernel]) -> None:
        def model() -> None:
            pyro.sample("x", random_rbm(("bernoulli", "bernoulli")))
            pyro.sample("y", dist.Normal(0.0, 1.0))

        with pytest.raises(ValueError, match=r"one latent site .*\['x', 'y'\]"):
            kernel(model).setup(0)

    def test_rows_that_depend_on_each_other(self, kernel: type[InformedKernel]) -> None:
        def model() -> None:
            with pyro.plate("rows", 3):
                v = pyro.sample("x", random_rbm(("bernoulli", "bernoulli")))
            pyro.factor("all", v.sum().square())

        with pytest.raises(ValueError, match="mixes rows"):
            kernel(model).setup(0)
