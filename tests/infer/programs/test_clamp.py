# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Programs with some units of a machine fixed, against sums over all states of the whole machine."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    HMC,
    MCMC,
    SVI,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    config_enumerate,
)
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM, GaussianBernoulliRBM, units
from pyro_ebm.infer import (
    BlockGibbs,
    ContrastiveDivergence,
    Gibbs,
    MetropolisBlockGibbs,
    VectorizedMCMC,
    clamped,
    exact_log_partition,
    machine_sites,
)
from tests.infer.programs.machines import (
    MACHINES,
    NUM_ROWS,
    bits,
    dbm,
    double,
    joint_terms,
    log_p_star,
    log_score,
    log_z,
    rbm,
    rows_of,
)

Z = 6.0
MASK = torch.tensor([False, True, False])
GIVEN = double(7.0, 1.0, float("nan"))  # read at the middle unit alone
FREE = bits(2)
SEEN = double(0.4, 0.2, 0.9)


def whole(free: Tensor, fixed: Tensor | float = 1.0) -> Tensor:
    """Free units and the one in the middle, put together by hand."""
    middle = torch.as_tensor(fixed).to(free).expand(free.shape[:-1])
    return torch.stack([free[..., 0], middle, free[..., 1]], -1)


def program(make: Callable[[], Any], normalize: bool = True) -> Callable[[], Tensor]:
    def model() -> Tensor:
        machine = make()
        if normalize:
            machine = machine.normalize(log_z(machine))
        v = pyro.sample("v", machine)
        pyro.sample("x", dist.Normal(v, 0.8).to_event(1), obs=SEEN)
        return v

    return model


class TestDensity:
    @pytest.mark.parametrize("kind", ["rbm", "dbm"])
    @pytest.mark.parametrize("normalize", [True, False])
    def test_is_that_of_the_whole_value(self, kind: str, normalize: bool) -> None:
        model = program(MACHINES[kind], normalize)
        for free in FREE:
            fixed = poutine.condition(clamped(model, "v", MASK, GIVEN), data={"v_free": free})
            trace = poutine.trace(fixed).get_trace()
            original = poutine.trace(poutine.condition(model, data={"v": whole(free)})).get_trace()
            assert torch.equal(trace.nodes["v"]["value"], whole(free))
            assert torch.equal(trace.nodes["_RETURN"]["value"], whole(free))
            assert torch.allclose(trace.log_prob_sum(), original.log_prob_sum(), rtol=0, atol=1e-9)
            expected = log_score(MACHINES[kind](), whole(free))
            if normalize:
                expected = expected - log_z(MACHINES[kind]())
            expected = expected + dist.Normal(whole(free), 0.8).log_prob(SEEN).sum()
            assert torch.allclose(trace.log_prob_sum(), expected, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("kind", ["rbm", "nbm"])
    def test_rows_of_a_plate(self, kind: str) -> None:
        """Values of each row, a machine for each row or one for all; scale and mask count."""
        values = torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]).double()
        free = rows_of(NUM_ROWS)[:, :2]
        keep = torch.tensor([True, True, False, True])

        def model() -> None:
            machine = MACHINES[kind]()
            with pyro.plate("rows", NUM_ROWS), poutine.scale(scale=0.5), poutine.mask(mask=keep):
                pyro.sample("v", machine.normalize(log_z(machine)))

        fixed = poutine.condition(clamped(model, "v", MASK, values), data={"v_free": free})
        expected = log_score(MACHINES[kind](), whole(free, values[:, 1])) - log_z(MACHINES[kind]())
        total = poutine.trace(fixed).get_trace().log_prob_sum()
        assert torch.allclose(total, 0.5 * (expected * keep).sum(), rtol=0, atol=1e-9)

    def test_within_event_axes_and_masks(self) -> None:
        free = rows_of(NUM_ROWS)[:, :2]
        keep = torch.tensor([True, False, True, True])

        def model() -> None:
            pyro.sample("v", rbm().expand([NUM_ROWS]).mask(keep).to_event(1))

        fixed = poutine.condition(clamped(model, "v", MASK, GIVEN), data={"v_free": free})
        total = poutine.trace(fixed).get_trace().log_prob_sum()
        expected = (log_score(rbm(), whole(free)) * keep).sum()
        assert torch.allclose(total, expected, rtol=0, atol=1e-9)

    def test_units_of_hidden_layers(self) -> None:
        """The sum over the free states is the probability of all that is fixed."""
        masks = {0: MASK, 2: torch.tensor([True, False])}
        values = {0: GIVEN, 2: double(1.0, 0.0)}
        trace = poutine.trace(clamped(program(dbm), "v", masks, values)).get_trace()
        found = exact_log_partition(trace.nodes["v_free"]["fn"].normalize(None))
        machine, terms = dbm(), []
        for free, one, last in itertools.product(FREE, bits(2), bits(1)):
            two = torch.cat([double(1.0), last])
            terms.append(-machine.energy([whole(free), one, two]))
        assert torch.allclose(found, torch.stack(terms).logsumexp(0), rtol=0, atol=1e-9)
        # Attached is the log Z of the whole machine.
        attached = trace.nodes["v_free"]["fn"].log_partition
        assert torch.allclose(attached, log_z(machine), rtol=0, atol=1e-9)

    def test_values_by_row_of_a_deep_machine(self) -> None:
        """Mean field takes one machine: kernels, which need none, take them all the same."""
        values = rows_of(2)

        def model() -> None:
            with pyro.plate("rows", 2):
                pyro.sample("v", dbm())

        fixed = clamped(model, "v", MASK, values)
        mcmc = VectorizedMCMC(BlockGibbs(fixed), 1, 30, 3000, disable_progbar=True)
        mcmc.run()
        draws = mcmc.get_samples()["v_free"]
        for row in range(2):
            p_star = joint_terms(dbm(), whole(FREE, values[row, 1])).logsumexp(0)
            exact = torch.softmax(p_star, 0) @ FREE
            error = (exact * (1 - exact) / 3000).sqrt()
            assert ((draws[:, row].mean(0) - exact) / error).abs().max() < Z
        with pytest.raises(ValueError, match="no batch shape"):
            poutine.trace(fixed).get_trace().compute_log_prob()

    def test_continuous_units(self) -> None:
        machine = GaussianBernoulliRBM(
            torch.ones(3, 2), torch.zeros(3), torch.tensor([1.0, 2.0, 0.5]), torch.zeros(2)
        )
        values = torch.tensor([0.3, 7.0, 7.0])
        mask = torch.tensor([True, False, False])
        model = clamped(lambda: pyro.sample("v", machine), "v", mask, values)
        fixed = poutine.condition(model, data={"v_free": torch.tensor([0.6, -1.2])})
        expected = -machine.free_energy(torch.tensor([0.3, 0.6, -1.2]))
        trace = poutine.trace(fixed).get_trace()
        assert torch.allclose(trace.log_prob_sum(), expected)
        # An order of the units that is not its own inverse.
        assert torch.equal(trace.nodes["v"]["value"], torch.tensor([0.3, 0.6, -1.2]))


def exact_means(machine: RBM) -> Tensor:
    """Means of the free units given what is fixed and seen."""
    log_w = log_score(machine, whole(FREE)) + dist.Normal(whole(FREE), 0.8).log_prob(SEEN).sum(-1)
    return torch.softmax(log_w, 0) @ FREE


class TestInference:
    def test_block_gibbs(self) -> None:
        kernel = BlockGibbs(clamped(program(rbm), "v", MASK, GIVEN))
        mcmc = VectorizedMCMC(kernel, 1, 30, num_chains=4000, disable_progbar=True)
        mcmc.run()
        draws = mcmc.get_samples()["v_free"]
        error = draws.std(0) / len(draws) ** 0.5
        assert ((draws.mean(0) - exact_means(rbm())) / error).abs().max() < Z

    def test_deep_block_gibbs(self) -> None:
        mcmc = VectorizedMCMC(
            BlockGibbs(clamped(program(dbm), "v", MASK, GIVEN)), 1, 30, 4000, disable_progbar=True
        )
        mcmc.run()
        draws = mcmc.get_samples()["v_free"]
        p_star = joint_terms(dbm(), whole(FREE)).logsumexp(0)
        log_w = p_star + dist.Normal(whole(FREE), 0.8).log_prob(SEEN).sum(-1)
        error = draws.std(0) / len(draws) ** 0.5
        exact = torch.softmax(log_w, 0) @ FREE
        assert ((draws.mean(0) - exact) / error).abs().max() < Z

    def test_compound_with_a_latent_field(self) -> None:
        """The posterior of a machine's parameter: log Z of the whole machine, not of its free part."""

        def model() -> None:
            shift = pyro.sample("shift", dist.Normal(double(0.0).squeeze(), 1.5))
            machine = rbm(shift.unsqueeze(-1) * double(0.0, 1.0, 0.0))
            pyro.sample("v", machine.normalize(exact_log_partition(machine)))

        fixed = clamped(model, "v", MASK, GIVEN)
        for shift in double(-1.0, 0.4):
            own = [
                poutine.trace(poutine.condition(fixed, data={"shift": shift, "v_free": free}))
                .get_trace()
                .log_prob_sum()
                for free in FREE
            ]
            machine = rbm(shift * double(0.0, 1.0, 0.0))
            # log p(shift, fixed): how probable what is fixed is tells of the field.
            expected = log_score(machine, whole(FREE)).logsumexp(0) - log_z(machine)
            expected = expected + dist.Normal(double(0.0), 1.5).log_prob(shift).squeeze()
            assert torch.allclose(torch.stack(own).logsumexp(0), expected, rtol=0, atol=1e-9)
        kernel = Gibbs(
            [
                (MetropolisBlockGibbs(fixed), ["v_free"]),
                (HMC(fixed, step_size=0.1, num_steps=2, adapt_step_size=False), ["shift"]),
            ]
        )
        mcmc = MCMC(kernel, 4, 4, disable_progbar=True)
        mcmc.run()
        assert mcmc.get_samples()["v_free"].shape == (4, 2)

    def test_predictive(self) -> None:
        def model() -> None:
            with pyro.plate("rows", 2):
                v = pyro.sample("v", rbm())
                pyro.sample("x", dist.Normal(v, 0.8).to_event(1))

        values = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        draws = Predictive(clamped(model, "v", MASK, values), num_samples=4000, parallel=True)()
        assert draws["v"].shape == (4000, 2, 3) and draws["v_free"].shape == (4000, 2, 2)
        assert torch.equal(draws["v"][..., 1].unique(dim=0), double(1.0, 0.0)[None])
        for row in range(2):
            exact = torch.softmax(log_score(rbm(), whole(FREE, values[row, 1])), 0) @ FREE
            error = (exact * (1 - exact) / 4000).sqrt()
            assert ((draws["v_free"][:, row].mean(0) - exact) / error).abs().max() < Z


class TestLearning:
    """The gradient is that of log p(fixed, x) or its bound: the log Z is that of the whole machine."""

    def learnable(self) -> Callable[[], None]:
        def model() -> None:
            bias = pyro.param("bias", rbm().visible.natural_bias)
            machine = RBM(
                units.Bernoulli(bias),
                rbm().hidden,
                rbm().weight,
                visible_offset=rbm().visible_offset,
                hidden_offset=rbm().hidden_offset,
            )
            v = pyro.sample("v", machine)
            pyro.sample("x", dist.Normal(v, 0.8).to_event(1), obs=SEEN)

        return model

    def exact(self, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Value and gradient of log p(fixed, x), or of the ELBO of weights of the free states."""
        bias = rbm().visible.natural_bias.clone().requires_grad_()
        machine = rbm(bias - rbm().visible.natural_bias)
        terms = log_score(machine, whole(FREE)) - log_z(machine)
        terms = terms + dist.Normal(whole(FREE), 0.8).log_prob(SEEN).sum(-1)
        if weights is None:
            value = terms.logsumexp(0)
        else:
            value = (weights * (terms - torch.special.xlogy(weights, weights) / weights)).sum()
        (gradient,) = torch.autograd.grad(value, bias)
        return value.detach(), gradient

    def test_enumerated(self) -> None:
        model = config_enumerate(clamped(self.learnable(), "v", MASK, GIVEN))
        loss = ContrastiveDivergence(elbo=TraceEnum_ELBO(max_plate_nesting=0))
        value = loss.loss_and_grads(model, lambda: None)
        expected, gradient = self.exact()
        assert value == pytest.approx(-float(expected), abs=1e-9)
        got = dict(pyro.get_param_store().named_parameters())["bias"].grad
        assert torch.allclose(got, -gradient, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("persistent", [False, True])
    def test_sampled(self, persistent: bool) -> None:
        q = double(0.3, 0.8)
        number = 20_000

        def guide() -> None:
            pyro.sample("v_free", dist.Bernoulli(q).to_event(1))

        loss = ContrastiveDivergence(
            num_steps=30,
            persistent=persistent,
            num_chains=number,
            elbo=Trace_ELBO(num_particles=number, vectorize_particles=True, max_plate_nesting=0),
        )
        loss.loss_and_grads(clamped(self.learnable(), "v", MASK, GIVEN), guide)
        if persistent:
            assert loss.chains["v_free"].shape == (number, 3)  # states of all units
        weights = dist.Bernoulli(q).to_event(1).log_prob(FREE).exp()
        _, gradient = self.exact(weights)
        got = dict(pyro.get_param_store().named_parameters())["bias"].grad
        # Differences of two means of bits, of variance at most one half together.
        assert ((got + gradient) / (0.5 / number) ** 0.5).abs().max() < Z
        # The machine over the free units alone would give the fixed one no gradient at all.
        assert abs(float(gradient[1])) > 0.3

    def test_minibatch(self) -> None:
        """Values are chosen by the program's arguments."""
        data = rows_of(NUM_ROWS)

        def model(index: Tensor) -> None:
            with pyro.plate("rows", NUM_ROWS, subsample=index):
                pyro.sample("v", rbm())

        fixed = clamped(model, "v", MASK, lambda index: data[index])
        index = torch.tensor([3, 1])
        trace = poutine.trace(fixed).get_trace(index)
        assert torch.equal(trace.nodes["v"]["value"][:, 1], data[index, 1])
        assert trace.nodes["v_free"]["scale"] == 2.0

    def test_svi_step(self) -> None:
        """A step of length 1 is the gradient: the guide's state less the means of the whole machine."""
        fixed = clamped(self.learnable(), "v", MASK, GIVEN)
        free, number = double(0.0, 1.0), 20_000

        def guide() -> None:
            pyro.sample("v_free", dist.Bernoulli(free).to_event(1))

        loss = ContrastiveDivergence(num_steps=30, num_chains=number)
        SVI(fixed, guide, pyro.optim.SGD({"lr": 1.0}), loss=loss).step()
        moved = pyro.param("bias").detach() - rbm().visible.natural_bias
        means = torch.softmax(log_p_star(rbm(), bits(3)), 0) @ bits(3)
        assert ((moved - (whole(free) - means)) / (0.25 / number) ** 0.5).abs().max() < Z
        assert (whole(free) - means).abs().min() > 0.1


class TestWhoseLogPartition:
    """That of the whole machine, whatever is around the clamped program."""

    def test_nested(self) -> None:
        def prior() -> Tensor:
            return pyro.sample("v", rbm())

        inner = clamped(prior, "v", MASK, GIVEN)
        both = clamped(inner, "v_free", torch.tensor([True, False]), double(0.0, 7.0))
        value = poutine.trace(both).get_trace().nodes["_RETURN"]["value"]
        assert torch.equal(value[:2], double(0.0, 1.0))
        loss = ContrastiveDivergence(elbo=TraceEnum_ELBO(max_plate_nesting=0))
        found = loss.loss(config_enumerate(both), lambda: None)
        rest = torch.stack([double(0.0, 1.0, 0.0), double(0.0, 1.0, 1.0)])
        expected = log_z(rbm()) - log_p_star(rbm(), rest).logsumexp(0)
        assert found == pytest.approx(float(expected), abs=1e-9)
        site = machine_sites(both)["v_free_free"]
        assert site.normalizer.event_shape == (3,) and site.machine.event_shape == (1,)

    def test_prior_alone_in_float64(self) -> None:
        """The recorded whole layer has a log-density of the program's dtype, which enumeration contracts."""

        def prior() -> None:
            pyro.sample("v", rbm())

        fixed = clamped(prior, "v", MASK, GIVEN)
        loss = ContrastiveDivergence(elbo=TraceEnum_ELBO(max_plate_nesting=0))
        found = loss.loss(config_enumerate(fixed), lambda: None)
        expected = log_z(rbm()) - log_p_star(rbm(), whole(FREE)).logsumexp(0)
        assert found == pytest.approx(float(expected), abs=1e-9)
        trace = poutine.trace(fixed).get_trace()
        trace.compute_log_prob()
        assert trace.nodes["v"]["log_prob"].dtype == torch.float64

    @pytest.mark.parametrize("replayed", [False, True])
    def test_replayed(self, replayed: bool) -> None:
        """``poutine.replay`` puts the guide's ``infer`` in the place of the model's."""
        free = double(0.0, 1.0)

        def guide() -> None:
            pyro.sample("v_free", dist.Bernoulli(free).to_event(1))

        model = clamped(program(rbm, normalize=False), "v", MASK, GIVEN)
        if replayed:
            model = poutine.replay(model, trace=poutine.trace(guide).get_trace())
        found = ContrastiveDivergence(log_partition=exact_log_partition).loss(model, guide)
        seen = dist.Normal(whole(free), 0.8).log_prob(SEEN).sum()
        expected = log_z(rbm()) - log_p_star(rbm(), whole(free)) - seen
        assert found == pytest.approx(float(expected), abs=1e-9)

    def test_of_a_machine_too_large_to_enumerate(self) -> None:
        """Few free units are enumerated, with the log Z that is given and its gradient from chains."""
        bias, number = torch.linspace(-1.0, 1.0, 30).double(), 4000

        def prior() -> None:
            visible = pyro.param("bias", bias.clone())
            # Without weights a single sweep draws from the machine.
            pyro.sample(
                "v", BernoulliRBM(torch.zeros(30, 28).double(), visible, torch.zeros(28).double())
            )

        mask = torch.arange(30) >= 2
        model = config_enumerate(clamped(prior, "v", mask, torch.ones(30).double()))
        log_z = torch.nn.functional.softplus(bias).sum() + 28 * math.log(2.0)
        loss = ContrastiveDivergence(
            log_partition=lambda machine: log_z,
            num_chains=number,
            elbo=TraceEnum_ELBO(max_plate_nesting=0),
        )
        value = loss.loss_and_grads(model, lambda: None)
        expected = -torch.nn.functional.logsigmoid(bias[mask]).sum()
        assert value == pytest.approx(float(expected), abs=1e-9)
        got = dict(pyro.get_param_store().named_parameters())["bias"].grad
        exact = torch.where(mask, bias.sigmoid() - 1.0, 0.0)
        assert got is not None
        assert ((got - exact).abs().max() / (0.25 / number) ** 0.5) < Z


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "arguments, match",
        [
            ((rows_of(1), "v", MASK, GIVEN), "model must be a Pyro model"),
            ((program(rbm), 3, MASK, GIVEN), "site must be the name"),
            ((program(rbm), "v", [True], GIVEN), "mask must be a tensor"),
            ((program(rbm), "v", MASK, [1.0]), "values must be a tensor"),
        ],
    )
    def test_types(self, arguments: Any, match: str) -> None:
        with pytest.raises(TypeError, match=match):
            clamped(*arguments)

    @pytest.mark.parametrize(
        "site, mask, values, error, match",
        [
            ("w", MASK, GIVEN, ValueError, r"no latent site 'w' to clamp; it has \['v', 'x'\]"),
            ("x", MASK, GIVEN, TypeError, "site 'x' must be an RBM or a DBM"),
            ("v", torch.ones(3).bool(), GIVEN, ValueError, "fixes all visible units.*condition"),
            ("v", MASK[:2], GIVEN, ValueError, "mask must be boolean of shape"),
            ("v", MASK, double(0.0, 0.5, 0.0), ValueError, "outside of"),
            (
                "v",
                MASK,
                GIVEN.expand(5, 3),
                ValueError,
                r"\(5, 3\) do not broadcast .* of site 'v'",
            ),
            ("v", {0: MASK}, {0: GIVEN}, TypeError, "by layer are for a DBM"),
        ],
    )
    def test_arguments(self, site: str, mask: Any, values: Any, error: Any, match: str) -> None:
        with pytest.raises(error, match=match):
            clamped(program(rbm), site, mask, values)()

    def test_values(self) -> None:
        with pytest.raises(ValueError, match="NaN at a clamped unit"):
            clamped(program(rbm), "v", ~MASK, GIVEN)()

    def test_observed(self) -> None:
        model = poutine.condition(program(rbm), data={"v": whole(FREE[0])})
        with pytest.raises(ValueError, match="has a value already"):
            clamped(model, "v", MASK, GIVEN)()
