# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The mean-field guide of energy-based sites, against enumeration of their states."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import Tensor

from pyro_ebm.distributions import BernoulliRBM, GaussianBernoulliRBM
from pyro_ebm.infer import (
    AutoMeanFieldBoltzmann,
    ContrastiveDivergence,
    LeaveOneOutELBO,
    exact_log_partition,
)
from pyro_ebm.infer.variational.layer_distribution import LayerDistribution
from tests.deep_machines import random_dbm
from tests.distributions.families import DISCRETE, random_rbm, random_unit
from tests.infer.reference import Z_LIMIT, z_score
from tests.infer.variational.latent_machine import (
    CLOSE,
    ROWS,
    SCALE,
    data,
    enumerating_loss,
    exact_elbo,
    loading,
    log_joint,
    model_of,
    states_of,
)


class TestLayerDistribution:
    @pytest.mark.parametrize("family", [*DISCRETE, "labels"])
    def test_states_have_probability_one(self, family: str) -> None:
        fn = LayerDistribution(random_unit(family, (2,)))
        states = fn.enumerate_support()
        assert states.shape == (fn.unit.num_states, 2, fn.unit.size)
        total = fn.log_prob(states).exp().sum(0)
        torch.testing.assert_close(total, torch.ones(2, dtype=torch.float64), **CLOSE)
        mean = (fn.log_prob(states).exp().unsqueeze(-1) * states).sum(0)
        torch.testing.assert_close(mean, fn.mean, **CLOSE)

    def test_expanded_and_unexpanded_support(self) -> None:
        fn = LayerDistribution(random_unit("ising")).expand((4,))
        assert fn.enumerate_support(expand=False).shape == (8, 1, 3)
        assert fn.enumerate_support().shape == (8, 4, 3)
        assert fn.sample((5,)).shape == (5, 4, 3)
        assert fn.log_prob(fn.sample()).shape == (4,)

    def test_continuous_layers_draw_with_a_gradient(self) -> None:
        fn = LayerDistribution(random_unit("gaussian"))
        assert fn.has_rsample and not fn.has_enumerate_support
        with pytest.raises(NotImplementedError, match="infinitely many"):
            fn.enumerate_support()
        assert not LayerDistribution(random_unit("bernoulli")).has_rsample


class TestElbo:
    @pytest.mark.parametrize("family", [*DISCRETE, "labels"])
    def test_value_and_gradient_by_enumeration(self, family: str) -> None:
        """The enumerated ELBO and its gradient by the guide's parameters, for every family."""
        machine = random_rbm((family, "bernoulli"), offsets=True)
        x, weights = data(), loading(machine)
        guide = AutoMeanFieldBoltzmann(model_of(machine, x, weights), enumerate="parallel")
        loss = enumerating_loss(machine)
        value = loss.loss_and_grads(guide.model, guide)
        params = [p for _, p in guide.named_parameters()]
        log_q = LayerDistribution(guide.layer("v")).log_prob(states_of(machine).unsqueeze(1))
        expected = -exact_elbo(log_joint(machine, x, weights), log_q).sum()
        assert value == pytest.approx(expected.item(), rel=1e-9)
        gradients = torch.autograd.grad(expected, params)
        for param, gradient in zip(params, gradients, strict=True):
            torch.testing.assert_close(param.grad, gradient, **CLOSE)

    def test_deep_machine(self) -> None:
        """q is over the visible layer, the site's log-probability is the bound."""
        machine = random_dbm(("bernoulli", "ising", "bernoulli"), (3, 2, 2))
        x, weights = data(), loading(machine)
        guide = AutoMeanFieldBoltzmann(model_of(machine, x, weights), enumerate="parallel")
        value = enumerating_loss(machine).loss(guide.model, guide)
        log_q = LayerDistribution(guide.layer("v")).log_prob(states_of(machine).unsqueeze(1))
        expected = -exact_elbo(log_joint(machine, x, weights), log_q).sum()
        assert value == pytest.approx(expected.item(), rel=1e-9)

    @pytest.mark.parametrize(
        "elbo",
        [
            Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1),
            TraceGraph_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1),
            LeaveOneOutELBO(num_particles=500, max_plate_nesting=1),
        ],
        ids=["trace", "graph", "leave-one-out"],
    )
    def test_score_function_gradient(self, elbo: Any) -> None:
        """Draws give the enumerated gradient in expectation, with vectorised particles."""
        machine = random_rbm(("bernoulli", "bernoulli"))
        x, weights = data(), loading(machine)
        guide = AutoMeanFieldBoltzmann(model_of(machine, x, weights))
        guide()
        (param,) = guide.parameters()
        log_q = LayerDistribution(guide.layer("v")).log_prob(states_of(machine).unsqueeze(1))
        expected = -exact_elbo(log_joint(machine, x, weights), log_q).sum()
        (gradient,) = torch.autograd.grad(expected, param)
        loss = ContrastiveDivergence(elbo=elbo, log_partition=exact_log_partition)
        draws = []
        for _ in range(30):
            param.grad = None
            loss.loss_and_grads(guide.model, guide)
            draws.append(param.grad.clone())
        scores = [
            z_score(d, g.item())
            for d, g in zip(torch.stack(draws).reshape(30, -1).T, gradient.flatten(), strict=True)
        ]
        # Student's t with 29 degrees: 9 is beyond 1e-9.
        assert max(map(abs, scores)) < 1.5 * Z_LIMIT

    def test_gaussian_site_at_the_posterior(self) -> None:
        """Without weights and at the exact posterior every draw gives the evidence itself."""
        torch.set_default_dtype(torch.float64)
        machine = GaussianBernoulliRBM(
            torch.zeros(2, 3), torch.tensor([0.3, -1.0]), torch.tensor([1.0, 2.0]), torch.zeros(3)
        )
        machine = machine.normalize(exact_log_partition(machine))
        x = data()

        def model() -> None:
            with pyro.plate("rows", ROWS):
                v = pyro.sample("v", machine)
                pyro.sample("x", dist.Normal(v, SCALE).to_event(1), obs=x)

        guide = AutoMeanFieldBoltzmann(model)
        guide()
        unit = machine.visible
        precision = unit.parameters["precision"] + SCALE**-2
        loc = (unit.natural_bias + x / SCALE**2) / precision
        with torch.no_grad():
            guide.layers.v.loc_unconstrained.copy_(loc)
            guide.layers.v.precision_unconstrained.copy_(precision.log().expand(ROWS, -1))
        variance = 1.0 / unit.parameters["precision"] + SCALE**2
        evidence = dist.Normal(unit.mean(), variance.sqrt()).to_event(1).log_prob(x).sum()
        for _ in range(3):
            loss = Trace_ELBO().loss_and_grads(model, guide)
            assert -loss == pytest.approx(evidence.item(), rel=1e-9)

    def test_gaussian_gradient_is_pathwise(self) -> None:
        machine = random_rbm(("gaussian", "bernoulli"))
        guide = AutoMeanFieldBoltzmann(model_of(machine, data(), loading(machine)))
        trace = poutine.trace(guide).get_trace()
        assert trace.nodes["v"]["value"].requires_grad


class TestPrograms:
    def test_subsample_has_parameters_of_full_size(self) -> None:
        """A step moves the rows that are in the subsample, and no others."""
        machine = random_rbm(("bernoulli", "bernoulli"))
        x = torch.randn(6, 3, dtype=torch.float64)

        def model(rows: Tensor) -> None:
            with pyro.plate("rows", 6, subsample=rows):
                v = pyro.sample("v", machine)
                pyro.sample("x", dist.Normal(v, SCALE).to_event(1), obs=x[rows])

        guide = AutoMeanFieldBoltzmann(
            model, create_plates=lambda rows: pyro.plate("rows", 6, subsample=rows)
        )
        rows = torch.tensor([4, 1])
        guide(rows)
        before = guide.mean()["v"].clone()
        assert before.shape == (6, 3)
        SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=Trace_ELBO()).step(rows)
        moved = (guide.mean()["v"] != before).any(-1)
        assert moved.nonzero().flatten().tolist() == [1, 4]

    def test_random_subsamples(self) -> None:
        machine = random_rbm(("ising", "bernoulli"))
        x = torch.randn(6, 3, dtype=torch.float64)

        def model() -> None:
            with pyro.plate("rows", 6, subsample_size=2) as rows:
                v = pyro.sample("v", machine)
                pyro.sample("x", dist.Normal(v, SCALE).to_event(1), obs=x[rows])

        guide = AutoMeanFieldBoltzmann(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=Trace_ELBO())
        assert torch.isfinite(torch.tensor([svi.step() for _ in range(3)])).all()
        assert guide.mean()["v"].shape == (6, 3)

    def test_beside_another_guide(self) -> None:
        """In a list with a normal guide of a scale: the ELBO of one draw is the sum over both parts."""
        machine = random_rbm(("bernoulli", "bernoulli"))
        x = data(3)

        def model() -> None:
            scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0).double(), 0.5))
            with pyro.plate("rows", ROWS):
                v = pyro.sample("v", machine)
                pyro.sample("x", dist.Normal(v, scale).to_event(1), obs=x)

        guide = AutoGuideList(model)
        guide.append(AutoMeanFieldBoltzmann(poutine.block(model, expose=["v"])))
        guide.append(AutoNormal(poutine.block(model, hide=["v"])))
        loss = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=loss)
        assert all(abs(svi.step()) < 1e6 for _ in range(3))
        assert set(guide.median()) == {"v", "scale"}
        assert guide[0].mean()["v"].shape == (ROWS, 3)

    def test_machine_as_part_of_a_larger_event(self) -> None:
        """``to_event`` and ``mask`` around the machine, with one parameter for every element."""
        machine = random_rbm(("bernoulli", "bernoulli"))
        mask = torch.tensor([True, False, True])

        def model() -> None:
            with pyro.plate("rows", ROWS):
                v = pyro.sample("v", machine.expand((ROWS, 2)).to_event(1).mask(mask))
                pyro.sample("x", dist.Normal(v.sum(-1), 1.0).to_event(1), obs=data())

        guide = AutoMeanFieldBoltzmann(model)
        assert guide()["v"].shape == (ROWS, 2, 3)
        assert guide.layer("v").batch_shape == (ROWS, 2)
        trace = poutine.trace(guide).get_trace()
        trace.compute_log_prob()
        assert trace.nodes["v"]["log_prob"].shape == (ROWS,)

    def test_subsample_of_larger_events(self) -> None:
        machine = random_rbm(("categorical", "bernoulli"))

        def model() -> None:
            with pyro.plate("rows", 5, subsample_size=2):
                pyro.sample("v", machine.expand((2, 4)).to_event(1))

        guide = AutoMeanFieldBoltzmann(model)
        assert guide()["v"].shape == (2, 4, 6)
        assert guide.mean()["v"].shape == (5, 4, 6)

    def test_several_sites(self) -> None:
        machines = {
            "a": random_rbm(("ising", "bernoulli")),
            "b.c": random_rbm(("multinomial", "ising")),
        }

        def model() -> None:
            for name, machine in machines.items():
                pyro.sample(name, machine)

        guide = AutoMeanFieldBoltzmann(model)
        assert set(guide()) == {"a", "b.c"}
        assert {name for name, _ in guide.named_parameters()} == {
            "layers.a.bias_unconstrained",
            "layers.b.c.bias_unconstrained",
        }


class TestStart:
    def test_mean_field_of_the_machine(self) -> None:
        """Weak machines: near the fixed point of their mean field."""
        machine = random_rbm(("bernoulli", "bernoulli"), offsets=True, scale=0.5)
        guide = AutoMeanFieldBoltzmann(model_of(machine, data(), loading(machine)))
        theta = guide_theta(guide)
        form = machine.canonical()
        hidden = machine.hidden.natural_mean(form.hidden_bias + theta.sigmoid() @ form.weight)
        image = form.visible_bias + hidden @ form.weight.mT
        torch.testing.assert_close(theta, image, rtol=0, atol=1e-3)

    def test_biases(self) -> None:
        machine = random_rbm(("ising", "bernoulli"))
        model = model_of(machine, data(), loading(machine))
        theta = guide_theta(AutoMeanFieldBoltzmann(model, init="bias"))
        torch.testing.assert_close(theta, machine.visible.natural_bias.expand(ROWS, -1))

    def test_no_unit_starts_saturated(self) -> None:
        machine = BernoulliRBM(
            torch.full((3, 2), 9.0).double(),
            torch.full((3,), 5.0).double(),
            torch.zeros(2).double(),
        )
        guide = AutoMeanFieldBoltzmann(model_of(machine, data(), loading(machine)))
        assert guide_theta(guide).abs().max() == 2.0

    def test_weights_of_every_row(self) -> None:
        """A conditional machine: each row starts at its own."""
        weight = torch.randn(ROWS, 3, 2).double()
        machine = BernoulliRBM(weight, torch.zeros(3).double(), torch.zeros(2).double())
        guide = AutoMeanFieldBoltzmann(model_of(machine, data(), loading(machine)))
        theta = guide_theta(guide)
        alone = BernoulliRBM(weight[1], torch.zeros(3).double(), torch.zeros(2).double())
        other = AutoMeanFieldBoltzmann(model_of(alone, data(), loading(machine)))
        torch.testing.assert_close(theta[1], guide_theta(other)[0])

    def test_gaussian_starts_at_the_mean_field(self) -> None:
        machine = random_rbm(("gaussian", "gaussian"))
        guide = AutoMeanFieldBoltzmann(model_of(machine, data(), loading(machine)))
        mean = guide.mean()["v"][0]
        form = machine.canonical()
        hidden = machine.hidden.natural_mean(form.hidden_bias + mean @ form.weight)
        image = machine.visible.natural_mean(form.visible_bias + hidden @ form.weight.mT)
        torch.testing.assert_close(mean, image, rtol=0, atol=1e-2)

    def test_parameters_of_an_earlier_guide(self) -> None:
        """They stay in Pyro's store: a start that does not count is no silent one."""
        machine = random_rbm(("bernoulli", "bernoulli"))
        model = model_of(machine, data(), loading(machine))
        init = {"v": torch.full((3,), -1.0).double()}
        AutoMeanFieldBoltzmann(model, init=init)()
        for call in (lambda guide: guide(), lambda guide: guide.mean()):
            other = AutoMeanFieldBoltzmann(model, init={"v": torch.ones(3).double()})
            with pytest.warns(
                UserWarning, match=r"layers.v.bias'\].*clear_param_store.*unique names"
            ):
                call(other)
            other()
            torch.testing.assert_close(guide_theta(other), init["v"].expand(ROWS, -1))
        # The same start, and the default one, which asks for nothing.
        for quiet in (init, "mean-field"):
            AutoMeanFieldBoltzmann(model, init=quiet)()
        pyro.clear_param_store()
        free = AutoMeanFieldBoltzmann(model, init={"v": torch.ones(3).double()})
        free()
        torch.testing.assert_close(guide_theta(free), torch.ones(ROWS, 3).double())

    def test_median(self) -> None:
        machine = random_rbm(("labels", "bernoulli"))
        guide = AutoMeanFieldBoltzmann(model_of(machine, data(), loading(machine)))
        median = guide.median()["v"]
        assert bool(machine.support.check(median).all())
        q = LayerDistribution(guide.layer("v"))
        best = q.log_prob(states_of(machine).unsqueeze(1)).amax(0)
        torch.testing.assert_close(q.log_prob(median), best)
        ising = random_rbm(("ising", "bernoulli"))
        guide = AutoMeanFieldBoltzmann(model_of(ising, data(), loading(ising)))
        assert torch.equal(guide.median()["v"].sign(), guide.mean()["v"].sign())


def guide_theta(guide: AutoMeanFieldBoltzmann) -> Tensor:
    guide.mean()
    return guide.layer("v").natural_bias.detach()


class TestRefused:
    def test_options(self) -> None:
        with pytest.raises(ValueError, match="init must be"):
            AutoMeanFieldBoltzmann(lambda: None, init="middle")
        with pytest.raises(ValueError, match="enumerate must be"):
            AutoMeanFieldBoltzmann(lambda: None, enumerate="sequential")

    def test_other_latent_sites(self) -> None:
        machine = random_rbm(("bernoulli", "bernoulli"))

        def model() -> None:
            pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            pyro.sample("v", machine)

        with pytest.raises(ValueError, match=r"other sites \['scale'\].*expose=\['v'\]"):
            AutoMeanFieldBoltzmann(model)()
        with pytest.raises(ValueError, match="RBMs or DBMs; there are"):
            AutoMeanFieldBoltzmann(lambda: None)()

    def test_natural_parameters_that_do_not_fit(self) -> None:
        machine = random_rbm(("bernoulli", "bernoulli"))
        model = model_of(machine, data(), loading(machine))
        for init, text in (
            ({"w": torch.zeros(3)}, "init names the sites"),
            ({"v": torch.zeros(4)}, r"shape \(3, 3\), got shape \(4,\)"),
            ({"v": torch.full((3,), torch.nan)}, "NaN"),
        ):
            with pytest.raises(ValueError, match=text):
                AutoMeanFieldBoltzmann(model, init=init)()

    def test_too_many_states(self) -> None:
        machine = BernoulliRBM(torch.zeros(11, 2), torch.zeros(11), torch.zeros(2))
        with pytest.raises(ValueError, match="2048 states"):
            AutoMeanFieldBoltzmann(lambda: pyro.sample("v", machine), enumerate="parallel")()

    def test_unknown_layer(self) -> None:
        machine = random_rbm(("multinomial", "bernoulli"))
        guide = AutoMeanFieldBoltzmann(model_of(machine, data(), loading(machine)))
        with pytest.raises(ValueError, match="has not been run"):
            guide.layer("v")
        guide.mean()
        with pytest.raises(ValueError, match=r"its sites are \['v'\]"):
            guide.layer("w")
        with pytest.raises(NotImplementedError, match="Multinomial"):
            guide.median()
