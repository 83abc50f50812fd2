# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Deep machines as latent sites of Pyro models, against brute force over all of their layers."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_ebm.distributions import DBM, units
from pyro_ebm.infer import (
    BlockGibbs,
    DiscreteGibbs,
    Gibbs,
    GibbsWithGradients,
    MetropolisBlockGibbs,
    VectorizedMCMC,
    exact_log_partition,
)
from pyro_ebm.infer.mcmc.posterior import rbm_posterior
from tests import deep_machines
from tests.deep_machines import random_dbm
from tests.infer.mcmc.compound_models import double, run, standard_errors
from tests.infer.mcmc.deep_states import visible_law
from tests.infer.mcmc.test_deep_kernels import rbm_of
from tests.infer.reference import Z_LIMIT, z_scores

SEEN = double(1.3, -0.2, 0.4)
NUM_CHAINS = 4000


def deep(*families: str, num_units: int = 3, seed: int = 5, scale: float = 1.5) -> DBM:
    torch.manual_seed(seed)
    return random_dbm(families, num_units, offsets=True, scale=scale)


PRIOR = deep("bernoulli", "ising", "categorical")


def known_noise() -> None:
    v = pyro.sample("x", PRIOR)
    assert v.shape[-1] == 3
    pyro.sample("y", dist.Normal(v, 0.6).to_event(1), obs=SEEN)


def bent() -> None:
    v = pyro.sample("x", PRIOR)
    pyro.factor("f", torch.cos(v.sum(-1)) + 2.0 * v[..., 0] * v[..., 1])


def posterior_means(dbm: DBM, rest: Callable[[Tensor], Tensor]) -> Tensor:
    """Means of the visible units by enumeration of all layers."""
    v, log_p = visible_law(dbm)
    return torch.softmax(log_p + rest(v), 0) @ v


def noise(v: Tensor, scale: Tensor | float = 0.6) -> Tensor:
    return dist.Normal(v, scale).log_prob(SEEN).sum(-1)


def bend(v: Tensor) -> Tensor:
    return torch.cos(v.sum(-1)) + 2.0 * v[..., 0] * v[..., 1]


def last_draws(kernel: Any, num_steps: int = 40) -> dict[str, Tensor]:
    torch.manual_seed(0)
    mcmc = VectorizedMCMC(kernel, 1, num_steps, NUM_CHAINS, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples()


class TestOneSite:
    @pytest.mark.parametrize("kernel", [BlockGibbs, MetropolisBlockGibbs])
    def test_linear_rest(self, kernel: Any) -> None:
        samples = last_draws(kernel(known_noise))
        assert {n: x.shape[1] for n, x in samples.items()} == {"x": 3, "x.h2": 6}
        expected = posterior_means(PRIOR, noise)
        assert z_scores(samples["x"], expected).abs().max() < Z_LIMIT

    def test_any_rest(self) -> None:
        expected = posterior_means(PRIOR, bend)
        samples = last_draws(MetropolisBlockGibbs(bent))
        assert z_scores(samples["x"], expected).abs().max() < Z_LIMIT
        with pytest.raises(ValueError, match="not linear in the states of site 'x'"):
            BlockGibbs(bent).setup(0)

    def test_informed_proposals(self) -> None:
        prior = deep("bernoulli", "ising", "bernoulli")

        def model() -> None:
            v = pyro.sample("x", prior)
            pyro.factor("f", bend(v))

        samples = last_draws(GibbsWithGradients(model, 10), 20)
        assert z_scores(samples["x"], posterior_means(prior, bend)).abs().max() < Z_LIMIT

    def test_posterior_is_a_tilted_machine(self) -> None:
        name, machine = rbm_posterior(known_noise)
        assert name == "x" and isinstance(machine, DBM)
        v, log_p = visible_law(PRIOR)
        _, own = visible_law(machine)
        difference = own - log_p - noise(v)
        torch.testing.assert_close(difference, difference[:1].expand_as(difference))

    def test_real_units_follow_the_curvature(self) -> None:
        """A Gaussian likelihood on Gaussian visible units: nothing is ever rejected."""
        prior = deep("gaussian", "bernoulli", "ising", num_units=2)
        seen = double(0.5, -1.0)

        def model() -> None:
            v = pyro.sample("x", prior)
            pyro.sample("y", dist.Normal(v, 0.5).to_event(1), obs=seen)

        kernel = MetropolisBlockGibbs(model)
        mcmc = VectorizedMCMC(kernel, 1, 30, NUM_CHAINS, disable_progbar=True)
        mcmc.run()
        assert mcmc.sample_stats["accept_prob"].min() > 1.0 - 1e-9
        # The posterior as a machine: precisions grow by 4, and the means are pulled.
        layer = prior.units[0]
        precision = layer.parameters["precision"] + 4.0
        loc = (layer.parameters["loc"] * layer.parameters["precision"] + 4.0 * seen) / precision
        exact = DBM(
            [units.Gaussian(loc, precision), *prior.units[1:]],
            prior.weights,
            offsets=prior.offsets,
        )
        expected = exact.sample((20_000,))
        draws = mcmc.get_samples()["x"]
        error = (draws.var(0) / len(draws) + expected.var(0) / len(expected)).sqrt()
        assert ((draws.mean(0) - expected.mean(0)) / error).abs().max() < Z_LIMIT

    def test_rows_of_a_plate(self) -> None:
        seen = torch.stack([SEEN, 1.0 - SEEN])

        def model() -> None:
            with pyro.plate("rows", 2):
                v = pyro.sample("x", PRIOR)
                pyro.sample("y", dist.Normal(v, 0.6).to_event(1), obs=seen)

        samples = last_draws(BlockGibbs(model))
        assert samples["x.h2"].shape == (NUM_CHAINS, 2, 6)
        for row in range(2):
            expected = posterior_means(
                PRIOR, lambda v, row=row: dist.Normal(v, 0.6).log_prob(seen[row]).sum(-1)
            )
            assert z_scores(samples["x"][:, row], expected).abs().max() < Z_LIMIT

    def test_wrapped_machines_are_refused(self) -> None:
        def model() -> None:
            pyro.sample("x", PRIOR.mask(True))

        with pytest.raises(ValueError, match="site 'x': a latent DBM can't be sampled within"):
            BlockGibbs(model).setup(0)

    def test_an_observed_machine_is_left_alone(self) -> None:
        def model() -> None:
            v = pyro.sample("x", PRIOR)
            with pyro.plate("rows", 2):
                pyro.sample("other", PRIOR, obs=torch.ones(2, 3))
            pyro.factor("f", v.sum(-1))

        kernel = BlockGibbs(model)
        kernel.setup(0)
        assert set(kernel.initial_params) == {"x", "x.h2"}


class TestCompound:
    @staticmethod
    def unknown_noise() -> None:
        scale = pyro.sample("scale", dist.LogNormal(double(-0.5).squeeze(), 0.7))
        v = pyro.sample("x", PRIOR)
        assert v.shape[-1] == 3
        pyro.sample("y", dist.Normal(v, scale).to_event(1), obs=SEEN)

    @pytest.mark.parametrize("kernel", [BlockGibbs, MetropolisBlockGibbs])
    def test_unknown_noise_by_nuts(self, kernel: Any) -> None:
        model = self.unknown_noise
        torch.manual_seed(1)
        mcmc = run(Gibbs([(kernel(model), ["x"]), (NUTS(model), None)]), num_samples=200)
        samples = mcmc.get_samples()
        assert {n: tuple(s.shape) for n, s in samples.items()} == {
            "x": (200, 3),
            "x.h2": (200, 6),
            "scale": (200,),
        }
        log_scale = torch.linspace(-6.0, 5.0, 2001, dtype=torch.float64)
        v, log_p = visible_law(PRIOR)
        prior = dist.Normal(-0.5, 0.7).log_prob(log_scale)
        joint = prior[:, None] + log_p + noise(v, log_scale.exp()[:, None, None])
        p = torch.softmax(joint.flatten(), 0).reshape(joint.shape)
        assert standard_errors(samples["x"], p.sum(0) @ v).abs().max() < Z_LIMIT
        own = standard_errors(samples["scale"].log()[:, None], (p.sum(1) @ log_scale)[None])
        assert own.abs().max() < Z_LIMIT

    def test_a_prior_that_depends_on_a_discrete_site(self) -> None:
        """Both layers of the state weigh in the update of what the machine depends on."""
        # Strong couplings: a layer that is not the one of the state shows.
        families = ("bernoulli", "ising", "bernoulli")
        dbms = [deep(*families, num_units=2, seed=s, scale=4.0) for s in (0, 1)]
        machines = [dbm.normalize(exact_log_partition(dbm.bipartite())) for dbm in dbms]
        seen = SEEN[:2]

        def model() -> None:
            k = pyro.sample("k", dist.Bernoulli(double(0.4).squeeze()))
            weights = [a + (b - a) * k[..., None, None] for a, b in pairs("weights")]
            offsets = [a + (b - a) * k[..., None] for a, b in pairs("offsets")]
            layers = [
                type(a)(a.natural_bias + (b.natural_bias - a.natural_bias) * k[..., None])
                for a, b in pairs("units")
            ]
            log_z = [m.log_partition for m in machines]
            machine = DBM(layers, weights, offsets=offsets)
            v = pyro.sample("x", machine.normalize(log_z[0] + (log_z[1] - log_z[0]) * k))
            pyro.sample("y", dist.Normal(v, 0.5).to_event(1), obs=seen)

        def pairs(name: str) -> Any:
            return zip(*(getattr(dbm, name) for dbm in dbms), strict=True)

        torch.manual_seed(2)
        kernel = Gibbs([(BlockGibbs(model), ["x"]), (DiscreteGibbs(model), ["k"])])
        samples = run(kernel, num_samples=600, warmup_steps=20).get_samples()
        joint = []
        for prior, dbm in zip((0.6, 0.4), dbms, strict=True):
            states, p = deep_machines.joint(deep_machines.to_deep(dbm))
            v, _, h2 = (torch.as_tensor(x) for x in states)
            rest = dist.Normal(v, 0.5).log_prob(seen).sum(-1).exp()
            joint.append(prior * rest[:, None] * torch.as_tensor(p.sum(1)))
        weights = torch.stack(joint)
        weights = weights / weights.sum()
        expected = {
            "x": weights.sum((0, 2)) @ v,
            "x.h2": weights.sum((0, 1)) @ h2,
            "k": weights[1].sum()[None],
        }
        for name, mean in expected.items():
            draws = samples[name].reshape(len(samples[name]), -1)
            assert standard_errors(draws, mean).abs().max() < Z_LIMIT

    def test_functions_are_given_layers(self) -> None:
        """And return all of those of a site that they update."""
        met: dict[str, tuple[int, ...]] = {}

        def flip(values: dict[str, Tensor]) -> dict[str, Tensor]:
            met.update((name, tuple(value.shape)) for name, value in values.items())
            return {"x": 1.0 - values["x"], "x.h2": values["x.h2"].flip(-1)}

        model = self.unknown_noise
        kernel = Gibbs([(flip, ["x"]), (NUTS(model), None)])
        kernel.setup(0)
        before = kernel.initial_params
        after = kernel.sample(before)
        assert met == {"x": (3,), "x.h2": (6,), "scale": ()}
        assert torch.equal(after["x"], 1.0 - before["x"])
        assert torch.equal(after["x.h2"], before["x.h2"].flip(-1))
        wrong = Gibbs([(lambda values: {"x": values["x"]}, ["x"]), (NUTS(model), None)])
        wrong.setup(0)
        with pytest.raises(ValueError, match="must return tensors of the shapes"):
            wrong.sample(wrong.initial_params)

    def test_start(self) -> None:
        model = self.unknown_noise
        kernel = Gibbs([(BlockGibbs(model), ["x"]), (NUTS(model), None)])
        groups = double(1, 0, 0, 0, 0, 1)
        kernel.initial_params = {"x": torch.ones(3).double(), "x.h2": groups}
        kernel.setup(0)
        start = kernel.initial_params
        assert torch.equal(start["x"], torch.ones(3)) and torch.equal(start["x.h2"], groups)
        kernel.initial_params = {"x": torch.ones(3).double()}
        with pytest.raises(ValueError, match=r"state is \['x', 'x.h2'\], got \['x'\]"):
            kernel.setup(0)


class TestDepthOne:
    @pytest.mark.parametrize("kernel", [BlockGibbs, MetropolisBlockGibbs])
    def test_same_draws(self, kernel: Any) -> None:
        dbm, found = deep("bernoulli", "ising"), []
        for prior in (dbm, rbm_of(dbm)):

            def model(prior: Any = prior) -> None:
                scale = pyro.sample("scale", dist.LogNormal(double(0.0).squeeze(), 0.5))
                v = pyro.sample("x", prior)
                pyro.sample("y", dist.Normal(v, scale).to_event(1), obs=SEEN)

            torch.manual_seed(3)
            gibbs = Gibbs([(kernel(model), ["x"]), (NUTS(model), None)])
            mcmc = MCMC(gibbs, 10, 10, disable_progbar=True)
            mcmc.run()
            found.append(mcmc.get_samples())
        assert set(found[0]) == {"x", "scale"}
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_conditioned_sites_are_observed() -> None:
    """What the user has conditioned a model on is the visible layer, as in the model."""
    model = poutine.condition(TestCompound.unknown_noise, data={"x": torch.ones(3).double()})
    mcmc = MCMC(NUTS(model), 3, 3, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["scale"].shape == (3,)
