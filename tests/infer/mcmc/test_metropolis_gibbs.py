# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Metropolis block Gibbs leaves the posterior of a machine in any model invariant."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC
from torch import Size, Tensor
from torch.nn.functional import logsigmoid

from pyro_ebm.distributions import RBM, BernoulliRBM, units
from pyro_ebm.infer import BlockGibbs, MetropolisBlockGibbs, VectorizedMCMC
from pyro_ebm.infer.mcmc import metropolis_gibbs
from pyro_ebm.infer.mcmc.site_field import (
    DifferenceField,
    FixedDifferenceField,
    GradientField,
    LocalField,
)
from tests import brute_force
from tests.distributions.families import CONTINUOUS, DISCRETE, random_rbm, to_machine
from tests.infer.reference import Z_LIMIT, features, z_scores

Rest = Callable[[Tensor], Tensor]
PAIRS = [(visible, "bernoulli") for visible in DISCRETE + CONTINUOUS]
PAIRS += [("bernoulli", "gaussian"), ("gaussian", "categorical"), ("ising", "relu")]
PAIRS += [("low_rank", "ising"), ("mixed", "bernoulli"), ("labels", "ising")]


def bent(v: Tensor) -> Tensor:
    """A rest of the model that couples all units, never above zero."""
    direction = torch.linspace(-1.5, 2.0, v.shape[-1], dtype=v.dtype)
    return 2.0 * logsigmoid((v * direction).sum(-1)) + 2.0 * logsigmoid(-v[..., 0] * v[..., 1])


def model_of(rbm: RBM, rest: Rest) -> Callable[[], None]:
    def model() -> None:
        pyro.factor("rest", rest(pyro.sample("v", rbm)))

    return model


def exact_draws(rbm: RBM, rest: Rest, count: int) -> Tensor:
    """Draws from the posterior by rejection."""
    kept: list[Tensor] = []
    while sum(map(len, kept)) < count:
        v = rbm.sample((4 * count,))
        kept.append(v[torch.rand(len(v), dtype=v.dtype).log() < rest(v)])
    return torch.cat(kept)[:count]


def exact_moments(rbm: RBM, rest: Rest) -> Tensor:
    """Moments of the posterior by a sum or quadrature over all visible states."""
    machine = to_machine(rbm)
    v, weights = brute_force.points(machine.visible)
    states = torch.as_tensor(v)
    exponent = -brute_force.free_energy(machine, v).real + rest(states).numpy()
    p = torch.as_tensor(weights * np.exp(exponent - exponent.max()))
    return (p / p.sum()) @ features(states)


def run_many(model: Any, start: Tensor, num_steps: int) -> tuple[MetropolisBlockGibbs, Tensor]:
    kernel = MetropolisBlockGibbs(model, num_steps)
    kernel.chain_shape = Size(start.shape[:1])
    kernel.initial_params = {"v": start}
    kernel.setup(0)
    return kernel, kernel.sample(kernel.initial_params)["v"]


def drift(rbm: RBM, rest: Rest, count: int = 60_000) -> tuple[float, float, Tensor]:
    """Deviations of the moments before and after some steps, and the acceptance probabilities."""
    start = exact_draws(rbm, rest, count)
    kernel, end = run_many(model_of(rbm, rest), start, 3)
    expected = exact_moments(rbm, rest)
    before, after = (z_scores(features(v), expected).abs().max().item() for v in (start, end))
    return before, after, kernel.diagnostics()["accept_prob"]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_exact_draws_stay_exact(pair: tuple[str, str]) -> None:
    rbm = random_rbm(pair, offsets=True, scale=1.5)
    before, after, accept_prob = drift(rbm, bent)
    assert before < Z_LIMIT and after < Z_LIMIT
    assert 0.2 < accept_prob.mean() < 0.99


class TestErrorsAreCaught:
    """A kernel that forgets a part of the ratio, or draws other hidden states, fails the test above."""

    @pytest.mark.parametrize("factor", [1.0, 1.1])
    def test_hidden_field_too_large(self, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
        draw = units.Ising.natural_sample

        def scaled(self: Any, theta: Tensor, generator: Any = None) -> Tensor:
            return draw(self, factor * theta, generator)

        # Units that pull each other along, so that small errors of fields add up.
        one = torch.ones(6, 6, dtype=torch.float64)
        rbm = RBM(units.Bernoulli(0.0 * one[0]), units.Ising(-one[0]), 0.4 * one)
        start = exact_draws(rbm, bent, 40_000)
        monkeypatch.setattr(units.Ising, "natural_sample", scaled)
        _, end = run_many(model_of(rbm, bent), start, 8)
        error = z_scores(features(end), exact_moments(rbm, bent)).abs().max()
        assert (error > Z_LIMIT) == (factor > 1.0)

    @pytest.mark.parametrize("family", ["bernoulli", "gaussian"])
    def test_no_rejection(self, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def always(self: Any, here: Any, there: Any, theta: Tensor) -> Tensor:
            return torch.zeros(theta.shape[:-1])

        monkeypatch.setattr(MetropolisBlockGibbs, "_log_ratio", always)
        assert drift(random_rbm((family, "bernoulli"), offsets=True), bent)[1] > Z_LIMIT

    @pytest.mark.parametrize("family", ["bernoulli", "gaussian"])
    def test_reverse_proposal_with_the_field_of_here(
        self, family: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ratio = MetropolisBlockGibbs._log_ratio

        def wrong(self: Any, here: Any, there: Any, theta: Tensor) -> Tensor:
            local = here.local
            field = LocalField(there.local.log_density, local.field, local.curvature)
            return ratio(self, here, metropolis_gibbs._Point(there.v, there.theta, field), theta)

        monkeypatch.setattr(MetropolisBlockGibbs, "_log_ratio", wrong)
        assert drift(random_rbm((family, "bernoulli"), offsets=True), bent)[1] > Z_LIMIT


def noisy_bits(rbm: RBM, rate: float = 0.2) -> Callable[[], None]:
    """A channel that flips bits: linear on bits, though its gradient is that of another function."""
    seen = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)

    def model() -> None:
        with pyro.plate("rows", 2):
            v = pyro.sample("v", rbm)
            probs = rate + (1.0 - 2.0 * rate) * v
            pyro.sample("x", dist.Bernoulli(probs).to_event(1), obs=seen)

    return model


def noisy_values(rbm: RBM) -> Callable[[], None]:
    seen = torch.linspace(-1.0, 1.0, 2 * rbm.event_shape[0], dtype=torch.float64).reshape(2, -1)

    def model() -> None:
        with pyro.plate("rows", 2):
            v = pyro.sample("v", rbm)
            pyro.sample("x", dist.Normal(v, 0.3).to_event(1), obs=seen)

    return model


def first_unit_only(rbm: RBM) -> Callable[[], None]:
    """Nonlinear, and written for a value without chains."""

    def model() -> None:
        v = pyro.sample("v", rbm)
        pyro.factor("f", torch.tanh(v[0] + v[1] + v[2]))

    return model


class TestFields:
    @pytest.mark.parametrize(
        ("make", "family", "kind"),
        [
            (lambda r: model_of(r, lambda v: v[..., 0] * v[..., 1]), "bernoulli", GradientField),
            (lambda r: model_of(r, lambda v: v[..., 0] * v[..., 1]), "ising", GradientField),
            (lambda r: model_of(r, lambda v: v[..., 0] * v[..., 4]), "categorical", GradientField),
            (lambda r: model_of(r, lambda v: 2.0 * v.sum(-1)), "multinomial", GradientField),
            (noisy_values, "bernoulli", GradientField),
            (noisy_values, "ising", GradientField),
            (noisy_values, "categorical", GradientField),
            (noisy_bits, "bernoulli", FixedDifferenceField),
            (lambda r: model_of(r, bent), "bernoulli", DifferenceField),
            (lambda r: model_of(r, lambda v: (v > 0).sum(-1)), "ising", FixedDifferenceField),
            (first_unit_only, "bernoulli", GradientField),
            (noisy_values, "gaussian", GradientField),
        ],
    )
    def test_choice(self, make: Any, family: str, kind: type) -> None:
        kernel = MetropolisBlockGibbs(make(random_rbm((family, "bernoulli"))))
        kernel.setup(0)
        assert type(kernel._field) is kind

    @pytest.mark.parametrize("family", ["bernoulli", "ising", "categorical", "gaussian", "relu"])
    def test_nothing_is_rejected_where_the_field_is_exact(self, family: str) -> None:
        """Gaussian noise: linear on bits, spins and groups, one more precision for real units."""
        rbm = random_rbm((family, "bernoulli"), offsets=True)
        kernel = MetropolisBlockGibbs(noisy_values(rbm), 3)
        kernel.chain_shape = Size((500,))
        kernel.setup(0)
        params = kernel.initial_params
        for _ in range(3):
            params = kernel.sample(params)
        accept_prob = kernel.diagnostics()["accept_prob"]
        assert accept_prob.shape == (3, 500, 2)
        torch.testing.assert_close(accept_prob, torch.ones_like(accept_prob), atol=1e-9, rtol=0.0)

    def test_fixed_differences(self) -> None:
        kernel = MetropolisBlockGibbs(noisy_bits(random_rbm(("bernoulli", "bernoulli"))), 3)
        kernel.setup(0)
        kernel.sample(kernel.initial_params)
        accept_prob = kernel.diagnostics()["accept_prob"]
        torch.testing.assert_close(accept_prob, torch.ones_like(accept_prob), atol=1e-6, rtol=0.0)

    def test_convex_rest_of_real_units(self) -> None:
        """A rest that takes most of the precision away is still exact."""
        rbm = RBM(
            units.Gaussian(torch.zeros(2).double(), torch.full((2,), 2.0).double()),
            units.Bernoulli(torch.zeros(2).double()),
            torch.eye(2).double(),
        )
        kernel = MetropolisBlockGibbs(model_of(rbm, lambda v: 0.7 * v.square().sum(-1)))
        kernel.chain_shape = Size((40_000,))
        kernel.setup(0)
        params = kernel.initial_params
        for _ in range(10):
            params = kernel.sample(params)
        assert kernel.diagnostics()["accept_prob"].min() > 1.0 - 1e-9
        # Precision 2 - 1.4 in front of exp(log(1 + e^v)): a mixture of means 0 and 1 / 0.6.
        odds = np.exp(0.5 / 0.6)
        z = z_scores(params["v"], torch.full((2,), odds / (1.0 + odds) / 0.6).double())
        assert z.abs().max() < Z_LIMIT


class TestChains:
    """Against enumeration, from a start elsewhere, in float32 and plates."""

    @staticmethod
    def machine() -> RBM:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return BernoulliRBM(torch.randn(4, 3), torch.randn(4), torch.randn(3))

    observed = torch.tensor([[1.0, -1.0, 0.5, 0.0], [-2.0, 1.0, 0.0, 1.0]])

    def rest(self, v: Tensor) -> Tensor:
        return 3.0 * torch.sin(v.sum(-1)) + (self.observed * v).sum(-1)

    def model(self) -> None:
        with pyro.plate("rows", 2):
            v = pyro.sample("v", self.machine())
            pyro.factor("f", self.rest(v))

    def exact(self) -> Tensor:
        rbm = self.machine()
        states = rbm.visible.states(0, 16).unsqueeze(1)
        p = torch.softmax((rbm.log_prob(states) + self.rest(states)).double(), 0)
        return (p.unsqueeze(-1) * states).sum(0)

    def test_vectorised(self) -> None:
        run = VectorizedMCMC(MetropolisBlockGibbs(self.model), 1, 60, 20_000, disable_progbar=True)
        run.run()
        draws = run.get_samples()["v"]
        z = [z_scores(draws[:, i], self.exact()[i]) for i in range(2)]
        assert torch.stack(z).abs().max() < Z_LIMIT
        assert run.sample_stats["accept_prob"].shape == (20_000, 1, 2)

    def test_mcmc(self) -> None:
        mcmc = MCMC(MetropolisBlockGibbs(self.model), 500, 20, disable_progbar=True)
        mcmc.run()
        draws, size = mcmc.get_samples()["v"], mcmc.diagnostics()["v"]["n_eff"]
        exact = self.exact()
        error = (exact * (1.0 - exact) / size).sqrt()
        assert ((draws.mean(0) - exact) / error).abs().max() < Z_LIMIT

    def test_rows_are_decided_one_by_one(self) -> None:
        kernel = MetropolisBlockGibbs(self.model)
        kernel.chain_shape = Size((2000,))
        kernel.setup(0)
        start = kernel.initial_params
        moved = (kernel.sample(start)["v"] != start["v"]).any(-1).double()
        joint = (moved[:, 0] * moved[:, 1]).mean() - moved[:, 0].mean() * moved[:, 1].mean()
        assert 0.1 < moved.mean() < 0.9 and joint.abs() < 6.0 * 0.25 / 2000**0.5

    def test_energy_is_that_of_the_posterior(self) -> None:
        kernel = MetropolisBlockGibbs(self.model)
        kernel.setup(0)
        v = kernel.sample(kernel.initial_params)["v"]
        expected = self.machine().free_energy(v) - self.rest(v)
        torch.testing.assert_close(kernel.diagnostics()["energy"][0].float(), expected)

    def test_a_start_of_no_probability_is_left(self) -> None:
        def impossible() -> None:
            v = pyro.sample("v", self.machine())
            pyro.factor("f", torch.where(v[..., 0] == 1.0, -torch.inf, 0.0) + v[..., 1].cos())

        start = {"v": torch.ones(4)}
        mcmc = MCMC(
            MetropolisBlockGibbs(impossible), 50, 20, initial_params=start, disable_progbar=True
        )
        mcmc.run()
        assert (mcmc.get_samples()["v"][:, 0] == 0.0).all()


class TestMeans:
    """The prior may depend on what the model is conditioned on; refresh() reads it anew."""

    @pytest.mark.parametrize("kernel_type", [BlockGibbs, MetropolisBlockGibbs])
    def test_refresh(self, kernel_type: Any) -> None:
        def model() -> None:
            sign = pyro.sample("sign", dist.Normal(0.0, 1.0))
            rbm = BernoulliRBM(torch.zeros(4, 2), 50.0 * sign * torch.ones(4), torch.zeros(2))
            v = pyro.sample("v", rbm)
            pyro.factor("f", -100.0 * sign * v[..., 0])

        values = {"sign": torch.tensor(1.0)}
        kernel = kernel_type(poutine.condition(model, data=values))
        kernel.setup(0)
        params = kernel.initial_params
        for sign in (1.0, -1.0, 1.0):
            values["sign"] = torch.tensor(sign)
            kernel.refresh()
            params = kernel.sample(params)
            expected = [sign < 0] + [sign > 0] * 3
            assert params["v"].tolist() == [float(e) for e in expected]

    def test_a_precision_that_shrinks(self) -> None:
        """The curvature of a convex rest is held against the present precision, not that of setup()."""

        def model() -> None:
            tau = pyro.sample("tau", dist.Gamma(1.0, 1.0))
            one = torch.ones(2)
            rbm = RBM(
                units.Gaussian(0.0 * one, tau * one), units.Bernoulli(one[:1]), 0.1 * one[:, None]
            )
            v = pyro.sample("v", rbm)
            pyro.sample("y", dist.StudentT(3.0, v, 0.1).to_event(1), obs=torch.zeros(2))

        values = {"tau": torch.tensor(100.0)}
        kernel = MetropolisBlockGibbs(poutine.condition(model, data=values))
        kernel.setup(0)
        values["tau"] = torch.tensor(1.0)
        kernel.refresh()
        params = {"v": torch.tensor([0.3, 0.3])}  # where the rest is convex
        for _ in range(50):
            params = kernel.sample(params)
            assert bool(params["v"].isfinite().all())


class TestRefusals:
    def test_a_machine_by_itself(self) -> None:
        with pytest.raises(TypeError, match="model must be a Pyro model; BlockGibbs samples"):
            MetropolisBlockGibbs(random_rbm(("bernoulli", "bernoulli")))  # type: ignore[arg-type]

    def test_latent_sites(self) -> None:
        def model() -> None:
            pyro.sample("x", dist.Normal(0.0, 1.0))

        with pytest.raises(ValueError, match=r"MetropolisBlockGibbs needs .* are \['x'\]"):
            MetropolisBlockGibbs(model).setup(0)

    def test_not_normalisable(self) -> None:
        one = torch.ones(2)
        rbm = RBM(units.Gaussian(one, one), units.Gaussian(one, one), 2.0 * torch.eye(2))
        with pytest.raises(ValueError, match="not normalisable"):
            MetropolisBlockGibbs(model_of(rbm, lambda v: v.sum(-1))).setup(0)

    def test_block_gibbs_says_what_else_there_is(self) -> None:
        model = model_of(random_rbm(("bernoulli", "bernoulli")), bent)
        with pytest.raises(ValueError, match="MetropolisBlockGibbs or GibbsWithGradients"):
            BlockGibbs(model).setup(0)
