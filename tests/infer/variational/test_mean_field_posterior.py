# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Coordinate ascent for a machine in a model, against sums over the states of all layers."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM, BernoulliRBM, units
from pyro_ebm.infer import (
    AutoMeanFieldBoltzmann,
    exact_log_partition,
    mean_field_posterior,
)
from pyro_ebm.infer.variational.layer_distribution import LayerDistribution
from tests.deep_machines import random_dbm
from tests.distributions.families import DISCRETE, random_rbm
from tests.infer.variational.latent_machine import (
    CLOSE,
    ROWS,
    SCALE,
    data,
    loading,
    model_of,
    states_of,
)


class TestPosterior:
    @pytest.mark.parametrize("family", DISCRETE)
    def test_bound_by_enumeration(self, family: str) -> None:
        """E_q of the log joint plus the entropy, over all states of both layers; below the evidence."""
        machine = random_rbm((family, "ising"), offsets=True, scale=2.0)
        x, weights = one_sided(machine)
        found = mean_field_posterior(linear_model(machine, x, weights))
        v, h = states_of(machine), states_of(machine.transpose())
        q_v = LayerDistribution(tilted_to(machine.visible, found.thetas[0]))
        q_h = LayerDistribution(tilted_to(machine.hidden, found.thetas[1]))
        log_v, log_h = q_v.log_prob(v.unsqueeze(1)), q_h.log_prob(h.unsqueeze(1))
        energy = machine.energy(v.unsqueeze(1), h.unsqueeze(0))
        joint = linear_likelihood(v, x, weights).unsqueeze(1) - energy.unsqueeze(-1)
        log_q = log_v.unsqueeze(1) + log_h.unsqueeze(0)
        expected = (log_q.exp() * (joint - log_q)).sum((0, 1))
        torch.testing.assert_close(found.bound, expected, **CLOSE)
        evidence = joint.logsumexp((0, 1))
        assert bool((found.bound <= evidence + 1e-9).all())
        assert bool(found.converged.all())

    @pytest.mark.parametrize("family", DISCRETE)
    def test_exact_without_weights(self, family: str) -> None:
        """The bound is the evidence, log Z included, and the guide that starts there has it as its ELBO."""
        machine = random_rbm((family, "bernoulli"), offsets=True, scale=0.0)
        machine = machine.normalize(exact_log_partition(machine))
        x, weights = one_sided(machine)
        model = linear_model(machine, x, weights)
        found = mean_field_posterior(model)
        joint = machine.log_prob(states_of(machine)).unsqueeze(1)
        joint = joint + linear_likelihood(states_of(machine), x, weights)
        torch.testing.assert_close(found.bound, joint.logsumexp(0), **CLOSE)
        guide = AutoMeanFieldBoltzmann(model, init={"v": found.thetas[0]}, enumerate="parallel")
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide)
        assert -loss == pytest.approx(found.bound.sum().item(), rel=1e-9)
        posterior = torch.softmax(joint, 0).unsqueeze(-1) * states_of(machine).unsqueeze(1)
        torch.testing.assert_close(guide.mean()["v"], posterior.sum(0), **CLOSE)

    def test_summing_out_the_hidden_units_is_no_worse(self) -> None:
        machine = random_rbm(("bernoulli", "bernoulli"), scale=3.0)
        x, weights = one_sided(machine)
        model = linear_model(machine, x, weights)
        found = mean_field_posterior(model)
        guide = AutoMeanFieldBoltzmann(model, init={"v": found.thetas[0]}, enumerate="parallel")
        elbo = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide)
        assert elbo > found.bound.sum().item()

    @pytest.mark.parametrize("attached", [False, True])
    def test_deep_machine(self, attached: bool) -> None:
        """E_q of the log joint plus the entropy, over all states of the even and the odd layers."""
        machine = random_dbm(
            ("bernoulli", "ising", "bernoulli", "ising"), (3, 2, 2, 1), offsets=True
        )
        log_z = exact_log_partition(machine) if attached else torch.zeros(()).double()
        x, weights = one_sided(machine)
        model = linear_model(machine.normalize(log_z) if attached else machine, x, weights)
        found = mean_field_posterior(model)
        assert [mean.shape[-1] for mean in found.means] == list(machine.sizes)
        q = [
            LayerDistribution(tilted_to(unit, theta))
            for unit, theta in zip(machine.units, found.thetas, strict=True)
        ]
        own = [unit.states(0, unit.num_states or 0) for unit in machine.units]
        index = torch.cartesian_prod(*(torch.arange(len(own_states)) for own_states in own))
        states = [layer[i] for layer, i in zip(own, index.T, strict=True)]
        log_q = torch.stack(
            [fn.log_prob(s.unsqueeze(1)) for fn, s in zip(q, states, strict=True)]
        ).sum(0)
        joint = (
            linear_likelihood(states[0], x, weights) - machine.energy(states).unsqueeze(-1) - log_z
        )
        expected = (log_q.exp() * (joint - log_q)).sum(0)
        torch.testing.assert_close(found.bound, expected, **CLOSE)
        assert bool((found.bound <= joint.logsumexp(0) + 1e-9).all())

    def test_plates_of_two_axes(self) -> None:
        """Rows come to the same in whatever shape they stand."""
        machine = random_rbm(("bernoulli", "bernoulli"), offsets=True)
        x = torch.randn(2, 3, 3, dtype=torch.float64)

        def model(x: Tensor) -> None:
            with pyro.plate("columns", x.shape[1], dim=-1), pyro.plate("rows", len(x), dim=-2):
                v = pyro.sample("v", machine)
                pyro.sample("x", dist.Normal(v, SCALE).to_event(1), obs=x)

        found = mean_field_posterior(model, x)
        flat = mean_field_posterior(model, x.reshape(1, 6, 3))
        assert found.means[0].shape == (2, 3, 3)
        torch.testing.assert_close(found.bound.flatten(), flat.bound.flatten(), **CLOSE)

    def test_a_single_row(self) -> None:
        machine = random_rbm(("bernoulli", "bernoulli"))
        x = torch.randn(3, dtype=torch.float64)

        def model() -> None:
            v = pyro.sample("v", machine)
            pyro.sample("x", dist.Normal(v, SCALE).to_event(1), obs=x)

        assert mean_field_posterior(model).bound.shape == ()

    def test_what_is_refused(self) -> None:
        machine = random_rbm(("bernoulli", "bernoulli"))
        model = model_of(machine, data(), 3.0 * loading(machine))
        with pytest.raises(ValueError, match="not linear"):
            mean_field_posterior(model)
        with pytest.raises(ValueError, match="max_updates"):
            mean_field_posterior(model, max_updates=0)
        with pytest.raises(ValueError, match="damping"):
            mean_field_posterior(model, damping=1.0)

        def two() -> None:
            pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            pyro.sample("v", machine)

        with pytest.raises(
            ValueError, match=r"^mean_field_posterior needs a model with one latent"
        ):
            mean_field_posterior(two)
        gaussian = random_rbm(("gaussian", "bernoulli"))
        with pytest.raises(ValueError, match=r"^mean_field_posterior needs discrete visible units"):
            mean_field_posterior(model_of(gaussian, data(), loading(gaussian)))
        weights = torch.zeros(ROWS, 3, 2)
        x, linear = one_sided(machine)
        own = BernoulliRBM(weights, torch.zeros(3), torch.zeros(2)).to(torch.float64)
        with pytest.raises(ValueError, match="weights of its own"):
            mean_field_posterior(linear_model(own, x, linear))


def one_sided(machine: RBM | DBM) -> tuple[Tensor, Tensor]:
    """Data and weights of :func:`linear_likelihood`."""
    return data(machine.event_shape[0]), torch.randn(machine.event_shape[0], dtype=torch.float64)


def linear_likelihood(v: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """A log-density that is linear in the states, shape ``(states, rows)``."""
    return v @ (weights * x).mT - x.square().sum(-1)


def linear_model(machine: RBM | DBM, x: Tensor, weights: Tensor) -> Callable[[], None]:
    def model() -> None:
        with pyro.plate("rows", ROWS):
            v = pyro.sample("v", machine)
            pyro.factor("x", (v * (weights * x)).sum(-1) - x.square().sum(-1))

    return model


def tilted_to(unit: units.Unit, theta: Tensor) -> units.Unit:
    return unit.tilt(theta - unit.natural_bias)[0]
