# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Likelihoods of whole models by importance weights, against enumeration and quadrature."""

import json
import math
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import (
    AutoMeanFieldBoltzmann,
    LogPartitionBracket,
    ModelLogLikelihood,
    exact_log_partition,
    importance_log_likelihood,
    mean_field_posterior,
)
from tests.distributions.families import DISCRETE, random_rbm
from tests.infer.reference import Z_LIMIT, binomial_tail, z_scores
from tests.infer.variational.noisy_bits import (
    CLOSE,
    bits,
    estimate,
    evidence,
    fair,
    observing,
    program,
    some_rows,
)


class TestValue:
    @pytest.mark.parametrize("plate", ["rows", None])
    @pytest.mark.parametrize("vectorize", [True, False])
    def test_posterior_as_the_guide(self, plate: str | None, vectorize: bool) -> None:
        """All weights are the evidence, whatever K, and log Z is that of the prior."""
        machine, x = bits(), some_rows()
        result = importance_log_likelihood(
            *program(machine, x),
            num_particles=7,
            chunk_size=3,
            log_partition=exact_log_partition,
            plate=plate,
            vectorize_particles=vectorize,
        )
        expected = evidence(machine, x)
        expected = expected if plate else expected.sum().unsqueeze(0)
        torch.testing.assert_close(result.rows, expected, **CLOSE)
        torch.testing.assert_close(result.weights.ess, torch.full_like(expected, 7.0))
        assert result.density_error < 1e-7 and result.bias.abs() < 1e-9
        assert result.reliable and result.side == "below"
        assert result.lower <= result.value <= result.upper

    @pytest.mark.parametrize("family", DISCRETE)
    def test_mean_field_guide_without_weights(self, family: str) -> None:
        """Coordinate ascent finds the posterior of independent units of every family."""
        machine = random_rbm((family, "bernoulli"), offsets=True, scale=0.0)
        x = torch.randn(2, machine.event_shape[0], dtype=torch.float64)

        def model() -> None:
            with pyro.plate("rows", 2):
                v = pyro.sample("v", machine)
                pyro.factor("x", (v * x).sum(-1))

        found = mean_field_posterior(model)
        guide = AutoMeanFieldBoltzmann(model, init={"v": found.thetas[0]})
        log_z = exact_log_partition(machine)
        result = importance_log_likelihood(
            model, guide, num_particles=20, log_partition=log_z, plate="rows"
        )
        torch.testing.assert_close(result.rows, found.bound - log_z, **CLOSE)
        torch.testing.assert_close(result.weights.ess, torch.full_like(result.rows, 20.0))

    def test_any_guide(self) -> None:
        """Weights have the evidence as their mean: many rows of the same data are independent estimates."""
        machine = bits(2.0)
        x = some_rows(1).expand(5000, 3)
        result = importance_log_likelihood(
            program(machine, x)[0],
            fair(x),
            num_particles=8,
            log_partition=exact_log_partition,
            plate="rows",
        )
        exact = evidence(machine, x[:1])
        ratio = (result.rows - exact).exp()
        assert z_scores(ratio.unsqueeze(-1), torch.ones(1)).abs().max() < Z_LIMIT
        # A lower bound in expectation, by as much as it says of itself.
        below = (exact - result.value).item()
        error = (result.rows.std() / math.sqrt(5000)).item()
        assert below > Z_LIMIT * error
        noise = (result.weights.bias.std() / math.sqrt(5000)).item()
        assert abs(below - result.bias.item()) < Z_LIMIT * math.hypot(error, noise) + 0.3 * below

    def test_coverage(self) -> None:
        """Intervals of single rows hold the evidence, and so does that of the mean."""
        machine = bits(2.0)
        x = some_rows(1).expand(500, 3)
        result = importance_log_likelihood(
            program(machine, x)[0],
            fair(x),
            num_particles=400,
            log_partition=exact_log_partition,
            plate="rows",
        )
        exact = evidence(machine, x[:1])
        covered = (result.rows - exact).abs() < 1.96 * result.weights.std_error
        assert binomial_tail(int(covered.sum()), 500, 0.93) > 1e-6
        assert binomial_tail(500 - int(covered.sum()), 500, 0.03) > 1e-6
        spread = result.rows.std() / math.sqrt(500)
        assert result.density_error == pytest.approx(spread.item(), rel=0.2)
        wide = Z_LIMIT / 1.96
        assert result.lower - wide * (result.value - result.lower) < exact
        assert exact < result.upper + wide * (result.upper - result.value)

    def test_wrong_guide_is_flagged(self) -> None:
        """A guide that is sure of the wrong bits."""
        machine, x = bits(), 3.0 * torch.ones(4, 3, dtype=torch.float64)

        def guide() -> None:
            with pyro.plate("rows", 4):
                pyro.sample("v", dist.Bernoulli(torch.full_like(x, 0.01)).to_event(1))

        result = importance_log_likelihood(
            program(machine, x)[0],
            guide,
            num_particles=1000,
            log_partition=exact_log_partition,
            plate="rows",
            seed=0,
        )
        assert not result.reliable
        assert "better guide" in str(result) and "SUSPICIOUS" in str(result)
        assert result.value < evidence(machine, x).mean()

    def test_continuous_latent_context(self) -> None:
        """A machine whose bias depends on a latent number: log Z of every draw, quadrature, autoguide."""
        weight = torch.randn(3, 2, dtype=torch.float64)
        x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        direction = torch.randn(3, dtype=torch.float64)

        def machine(z: Tensor) -> RBM:
            return BernoulliRBM(weight, z * direction, torch.zeros(2).double())

        def model() -> None:
            with pyro.plate("rows", 2):
                z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
                pyro.sample("v", machine(z), obs=x)

        guide = AutoNormal(model, init_scale=1.5)
        result = importance_log_likelihood(
            model,
            guide,
            num_particles=4000,
            log_partition=exact_log_partition,
            plate="rows",
            seed=1,
        )
        grid = torch.linspace(-9, 9, 4001, dtype=torch.float64).reshape(-1, 1, 1)
        at = machine(grid)
        log_p = at.log_prob(x) - exact_log_partition(at)
        log_p = log_p + dist.Normal(0.0, 1.0).log_prob(grid.squeeze(-1))
        exact = log_p.logsumexp(0) + math.log(18 / 4000)
        score = (result.rows - exact) / result.weights.std_error
        assert score.abs().max() < Z_LIMIT
        assert result.weights.std_error.max() < 0.05
        assert result.log_partition_error == 0.0

    def test_mixture(self) -> None:
        """Log Z of the component that a particle draws; estimates with an error are refused."""
        weights = torch.randn(2, 3, 2, dtype=torch.float64)
        biases = torch.randn(2, 3, dtype=torch.float64)
        x = (torch.rand(4, 3) < 0.5).double()
        share = torch.tensor([0.3, 0.7], dtype=torch.float64)

        def component(k: Any) -> RBM:
            return BernoulliRBM(weights[k], biases[k], torch.zeros(2).double())

        def model() -> None:
            with pyro.plate("rows", 4):
                k = pyro.sample("k", dist.Categorical(share))
                pyro.sample("v", component(k), obs=x)

        log_p = torch.stack(
            [component(k).log_prob(x) - exact_log_partition(component(k)) for k in range(2)], -1
        )
        joint = log_p + share.log()

        def guide() -> None:
            with pyro.plate("rows", 4):
                pyro.sample("k", dist.Categorical(logits=joint))

        for options in ({}, {"vectorize_particles": False}):
            result = importance_log_likelihood(
                model,
                guide,
                num_particles=30,
                log_partition=exact_log_partition,
                plate="rows",
                **options,
            )
            torch.testing.assert_close(result.rows, joint.logsumexp(-1), **CLOSE)
        for wrong, text in (
            (1.5, "depend on latent variables.*give a function"),
            (lambda m: estimate(exact_log_partition(m), 0.1), "must then be exact"),
        ):
            with pytest.raises(ValueError, match=text):
                importance_log_likelihood(
                    model, guide, num_particles=30, log_partition=wrong, plate="rows"
                )


class TestRows:
    def test_subsample_of_rows(self) -> None:
        """Rows that are given keep their own likelihoods, without the scale of the subsample."""
        machine, x = bits(), (some_rows(6) > 0).double()
        rows = torch.tensor([4, 1])

        def model() -> None:
            with pyro.plate("rows", 6, subsample=rows):
                pyro.sample("v", machine, obs=x[rows])

        given = estimate(1.0, 0.1)
        result = importance_log_likelihood(model, lambda: None, log_partition=given, plate="rows")
        torch.testing.assert_close(result.rows, machine.log_prob(x[rows]) - 1.0, **CLOSE)
        assert result.log_partition_error.item() == pytest.approx(0.1)

    def test_rows_of_an_outer_plate(self) -> None:
        """Elements of plates within a row are summed."""
        machine, x = bits(), (some_rows(6) > 0).double().reshape(2, 3, 3)

        def model() -> None:
            with pyro.plate("rows", 2, dim=-2), pyro.plate("parts", 3, dim=-1):
                pyro.sample("v", machine, obs=x)

        given = {"v": 0.5}
        result = importance_log_likelihood(model, lambda: None, log_partition=given, plate="rows")
        expected = (machine.log_prob(x) - 0.5).sum(-1)
        torch.testing.assert_close(result.rows, expected, **CLOSE)

    def test_join(self) -> None:
        """Calls with some rows each, put together, are the call with all of them."""
        machine, x = bits(), some_rows(5)
        bracket = LogPartitionBracket(estimate(1.0, 0.1, "below"), estimate(1.2, 0.2, "above"))

        def call(rows: Tensor, **options: Any) -> ModelLogLikelihood:
            model, guide = program(machine, rows)
            return importance_log_likelihood(
                model, guide, num_particles=4, log_partition=bracket, plate="rows", **options
            )

        parts = [call(x[:2], seed=0, chunk_size=3), call(x[2:4]), call(x[4:], seed=1)]
        # Joined twice, as parts of parts.
        whole = call(x)
        joined = ModelLogLikelihood.join([ModelLogLikelihood.join(parts[:2]), parts[2]])
        for name in ("value", "std_error", "log_partition_error", "optimistic", "pessimistic"):
            torch.testing.assert_close(getattr(joined, name), getattr(whole, name), **CLOSE)
        for name in ("lower", "upper"):
            torch.testing.assert_close(
                getattr(joined, name), getattr(whole, name), rtol=1e-6, atol=1e-6
            )
        torch.testing.assert_close(joined.rows, whole.rows, **CLOSE)
        assert joined.settings["seed"] == [0, None, 1] and joined.settings["num_rows"] == 5
        with pytest.raises(ValueError, match="nothing to join"):
            ModelLogLikelihood.join([])
        model, guide = program(machine, x)
        other = importance_log_likelihood(
            model, guide, num_particles=3, log_partition=bracket, plate="rows"
        )
        with pytest.raises(ValueError, match="same sites and settings"):
            ModelLogLikelihood.join([whole, other])

    def test_join_of_equal_seeds(self) -> None:
        """The same random numbers in all parts: their errors would not average out."""
        machine, x = bits(), some_rows()

        def call(model: Any, guide: Any) -> ModelLogLikelihood:
            return importance_log_likelihood(
                model, guide, num_particles=4, log_partition=1.0, plate="rows", seed=5
            )

        part = call(program(machine, x)[0], fair(x))
        with pytest.raises(ValueError, match=r"seeds \[5, 5\]"):
            ModelLogLikelihood.join([part, part])
        exact = call(observing(machine, (x > 0).double()), lambda: None)
        assert len(ModelLogLikelihood.join([exact, exact]).rows) == 8
        assert "particles" not in str(exact) and "of 4 rows, log Z of v by given" in str(exact)

    def test_report(self) -> None:
        machine, x = bits(), some_rows()
        result = importance_log_likelihood(
            *program(machine, x), num_particles=4, log_partition=estimate(1.0, 0.1), plate="rows"
        )
        data = json.loads(json.dumps(result.to_dict()))
        assert data["settings"]["num_particles"] == 4 and data["settings"]["num_rows"] == 4
        assert data["settings"]["log_partition"]["v"]["method"] == "made up"
        assert "of 4 rows by 4 particles" in str(result)
        assert "log Z of v by made up" in str(result) and "a lower bound" in str(result)

    def test_report_of_an_estimate_without_a_method(self) -> None:
        machine, x = bits(), (some_rows() > 0).double()
        given = replace(estimate(1.0, 0.1), settings={})
        result = importance_log_likelihood(
            observing(machine, x), lambda: None, log_partition=given, plate="rows"
        )
        assert str(result).endswith("of 4 rows, log Z of v")

    def test_seed(self) -> None:
        """The same numbers, and none taken from the global generator."""
        machine, x = bits(), some_rows()
        model, _ = program(machine, x)

        def call(seed: int | None) -> Tensor:
            return importance_log_likelihood(
                model, fair(x), num_particles=5, log_partition=1.0, plate="rows", seed=seed
            ).rows

        state = torch.get_rng_state()
        assert torch.equal(call(3), call(3))
        assert torch.equal(state, torch.get_rng_state())
        assert not torch.equal(call(3), call(4))
        assert not torch.equal(call(None), call(None))


class TestRefused:
    def test_numbers(self) -> None:
        for options in ({"num_particles": 0}, {"chunk_size": True}, {"num_particles": 1.5}):
            with pytest.raises(ValueError, match=f"{next(iter(options))} must be a whole number"):
                importance_log_likelihood(lambda: None, lambda: None, **options)  # type: ignore[arg-type]

    def test_log_z_is_missing(self) -> None:
        machine, x = bits(), some_rows()
        model, guide = program(machine, x)
        for given, text in (
            (None, r"sites \['v'\] have no log Z"),
            ({"w": 1.0}, r"names \['w'\]"),
            (math.nan, "must be finite"),
            (torch.zeros(3), "does not broadcast"),
        ):
            with pytest.raises(ValueError, match=text):
                importance_log_likelihood(model, guide, num_particles=2, log_partition=given)

        def two() -> None:
            pyro.sample("a", machine, obs=x[0] > 0)
            pyro.sample("b", machine, obs=x[0] > 0)

        with pytest.raises(ValueError, match=r"dict by site.*\['a', 'b'\]"):
            importance_log_likelihood(two, lambda: None, log_partition=1.0)

    def test_plates(self) -> None:
        machine, x = bits(), some_rows()
        model, guide = program(machine, x)
        with pytest.raises(ValueError, match=r"plate must name a vectorised plate.*\['rows'\]"):
            importance_log_likelihood(model, guide, log_partition=1.0, plate="columns")

        def with_scale() -> None:
            pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            model()

        def guide_of_scale() -> None:
            pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            guide()

        with pytest.raises(ValueError, match=r"\['scale'\] are outside of plate 'rows'"):
            importance_log_likelihood(with_scale, guide_of_scale, log_partition=1.0, plate="rows")

        def random_rows() -> None:
            with pyro.plate("rows", 4, subsample_size=2) as rows:
                pyro.sample("v", machine, obs=(x[rows] > 0).double())

        with pytest.raises(ValueError, match="random subsample"):
            importance_log_likelihood(random_rows, lambda: None, log_partition=1.0, plate="rows")

    def test_another_guide(self) -> None:
        machine, x = bits(), some_rows()
        model, _ = program(machine, x)
        with pytest.raises(ValueError, match=r"the guide lacks \['v'\]"):
            importance_log_likelihood(model, lambda: None, log_partition=1.0)
        with pytest.raises(ValueError, match=r"and has \['w'\]"):
            importance_log_likelihood(
                lambda: None, lambda: pyro.sample("w", dist.Normal(0.0, 1.0)), log_partition=1.0
            )

        def unnormalised() -> None:
            with pyro.plate("rows", 4):
                pyro.sample("v", machine)

        with pytest.raises(ValueError, match="of the guide is a machine without log Z"):
            importance_log_likelihood(model, unnormalised, log_partition=1.0)
