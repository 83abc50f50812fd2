# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Which machines a program has under Pyro's handlers, and the values that its trace and ELBO then have."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    Importance,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    config_enumerate,
)
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM, units
from pyro_ebm.infer import (
    ContrastiveDivergence,
    FactorReparam,
    check_log_partitions,
    clamped,
    exact_log_partition,
    machine_sites,
)
from tests.infer.programs.machines import (
    MACHINES,
    NBM,
    NUM_ROWS,
    bits,
    dbm,
    double,
    log_p_star,
    log_score,
    log_z,
    nbm,
    rbm,
    rows_of,
)

KINDS = list(MACHINES)
DATA = rows_of(NUM_ROWS)
MASK = torch.tensor([True, False, True, True])
Z = 6.0


def observed(make: Callable[[], Any]) -> Callable[[], None]:
    """All rows of a machine in a plate, its log Z attached."""

    def model() -> None:
        machine = make()
        with pyro.plate("rows", NUM_ROWS):
            pyro.sample("v", machine.normalize(log_z(machine)), obs=DATA)

    return model


def latent(make: Callable[[], Any]) -> Callable[[], Tensor]:
    def model() -> Tensor:
        machine = make()
        with pyro.plate("rows", NUM_ROWS):
            return pyro.sample("v", machine.normalize(log_z(machine)))

    return model


def scores(make: Callable[[], Any], v: Tensor = DATA) -> Tensor:
    """log p of every row from the definition."""
    machine = make()
    return log_score(machine, v) - log_z(machine)


def total(model: Callable[..., Any]) -> Tensor:
    return poutine.trace(model).get_trace().log_prob_sum()


def close(a: Tensor | float, b: Tensor | float) -> bool:
    a, b = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (a, b))
    return abs(float(a) - float(b)) < 1e-9


class TestHandlers:
    """Each handler: the site that is found, and the log-probability of the trace."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_plate(self, kind: str) -> None:
        model = observed(MACHINES[kind])
        site = machine_sites(model)["v"]
        assert isinstance(site.machine, DBM if kind == "dbm" else RBM)
        assert site.machine.batch_shape == ((NUM_ROWS,) if kind == "nbm" else ())
        assert site.batch_shape == (NUM_ROWS,) and site.event_shape == (3,)
        assert (site.plates, site.scale, site.mask) == (("rows",), 1.0, None)
        assert site.is_observed and site.is_normalized
        # The networks of a conditional machine are in the parameter store.
        assert site.requires_grad == (kind == "nbm")
        assert site.depends_on == () and site.normalizer is site.machine
        assert close(total(model), scores(MACHINES[kind]).sum())

    @pytest.mark.parametrize("kind", KINDS)
    def test_condition(self, kind: str) -> None:
        model = poutine.condition(latent(MACHINES[kind]), data={"v": DATA})
        assert machine_sites(model)["v"].is_observed
        assert not machine_sites(latent(MACHINES[kind]))["v"].is_observed
        assert close(total(model), scores(MACHINES[kind]).sum())

    @pytest.mark.parametrize("kind", KINDS)
    def test_replay(self, kind: str) -> None:
        drawn = poutine.trace(
            poutine.condition(latent(MACHINES[kind]), data={"v": DATA})
        ).get_trace()
        drawn.nodes["v"]["is_observed"] = False
        model = poutine.replay(latent(MACHINES[kind]), trace=drawn)
        assert not machine_sites(model)["v"].is_observed
        assert close(total(model), scores(MACHINES[kind]).sum())

    @pytest.mark.parametrize("kind", KINDS)
    def test_block(self, kind: str) -> None:
        """A hidden site is neither found nor counted."""

        def model() -> None:
            observed(MACHINES[kind])()
            pyro.sample("w", rbm(), obs=DATA[0])

        hidden = poutine.block(model, hide=["v"])
        assert list(machine_sites(model)) == ["v", "w"]
        assert list(machine_sites(hidden)) == ["w"]
        assert close(total(hidden), log_p_star(rbm(), DATA[0]))

    @pytest.mark.parametrize("kind", KINDS)
    def test_do(self, kind: str) -> None:
        """An intervention cuts the site off: it has the law of a latent one, and what is below the value."""

        def model() -> Tensor:
            v = latent(MACHINES[kind])()
            pyro.sample("x", dist.Normal(v, 1.0).to_event(2), obs=torch.zeros_like(v))
            return v

        done = poutine.do(model, data={"v": DATA})
        assert not machine_sites(done)["v"].is_observed
        trace = poutine.trace(done).get_trace()
        trace.compute_log_prob()
        assert torch.equal(trace.nodes["_RETURN"]["value"], DATA)
        assert close(
            trace.nodes["x"]["log_prob_sum"], dist.Normal(DATA, 1.0).log_prob(0 * DATA).sum()
        )
        assert close(
            trace.nodes["v"]["log_prob_sum"],
            scores(MACHINES[kind], trace.nodes["v"]["value"]).sum(),
        )

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("where", ["handler", "distribution", "both"])
    def test_mask(self, kind: str, where: str) -> None:
        other = torch.tensor([True, True, False, True])
        inner = {"handler": None, "distribution": MASK, "both": other}[where]
        outer = {"handler": MASK, "distribution": None, "both": MASK}[where]

        def model() -> None:
            machine = MACHINES[kind]()
            fn = machine.normalize(log_z(machine)).expand([NUM_ROWS])
            with pyro.plate("rows", NUM_ROWS):
                pyro.sample("v", fn if inner is None else fn.mask(inner), obs=DATA)

        masked = model if outer is None else poutine.mask(model, mask=outer)
        expected = MASK & other if where == "both" else MASK
        assert torch.equal(machine_sites(masked)["v"].mask, expected)
        assert close(total(masked), (scores(MACHINES[kind]) * expected).sum())

    @pytest.mark.parametrize("kind", KINDS)
    def test_mask_of_everything(self, kind: str) -> None:
        assert machine_sites(poutine.mask(observed(MACHINES[kind]), mask=False))["v"].mask is False

        def model() -> None:
            pyro.sample("v", MACHINES[kind]().expand([NUM_ROWS]).mask(False).to_event(1), obs=DATA)

        assert machine_sites(model)["v"].mask is False
        assert close(total(model), 0.0)

    @pytest.mark.parametrize("kind", KINDS)
    def test_scale(self, kind: str) -> None:
        model = poutine.scale(observed(MACHINES[kind]), scale=0.3)
        assert machine_sites(model)["v"].scale == pytest.approx(0.3)
        assert close(total(model), 0.3 * scores(MACHINES[kind]).sum())

    @pytest.mark.parametrize("kind", KINDS)
    def test_subsample(self, kind: str) -> None:
        index = torch.tensor([2, 0])

        def model() -> None:
            machine = MACHINES[kind]()
            if kind == "nbm":
                machine = NBM.condition(torch.zeros(2, 2, dtype=torch.float64))
            with pyro.plate("rows", NUM_ROWS, subsample=index):
                pyro.sample("v", machine.normalize(log_z(machine)), obs=DATA[index])

        site = machine_sites(model)["v"]
        assert site.scale == pytest.approx(2.0) and site.batch_shape == (2,)
        make = (
            (lambda: NBM.condition(torch.zeros(2, 2).double())) if kind == "nbm" else MACHINES[kind]
        )
        assert close(total(model), 2.0 * scores(make, DATA[index]).sum())

    @pytest.mark.parametrize("kind", KINDS)
    def test_event_axes(self, kind: str) -> None:
        def model() -> None:
            machine = MACHINES[kind]()
            machine = machine.normalize(log_z(machine))
            pyro.sample("v", machine.expand([NUM_ROWS]).to_event(1), obs=DATA)

        site = machine_sites(model)["v"]
        assert site.batch_shape == () and site.event_shape == (NUM_ROWS, 3)
        assert close(total(model), scores(MACHINES[kind]).sum())

    def test_nested_plates_from_outside_in(self) -> None:
        def model() -> None:
            with pyro.plate("inner", 2, dim=-1), pyro.plate("outer", 3, dim=-2):
                pyro.sample("v", rbm())

        assert machine_sites(model)["v"].plates == ("outer", "inner")


class TestElbo:
    """ELBOs of a latent machine with a learnable likelihood against sums over all states."""

    X = double(0.4, -0.3, 0.9)
    Q = double(0.2, 0.6, 0.9)

    def exact_elbo(self, make: Callable[[], Any], scale: float = 1.0) -> float:
        machine, v = make(), bits(3)
        q = dist.Bernoulli(self.Q).to_event(1).log_prob(v)
        log_p = log_score(machine, v) - log_z(machine)
        x = dist.Normal(v, 1.0).to_event(1).log_prob(self.X)
        return scale * float((q.exp() * (log_p + x - q)).sum().detach())

    def model(self, make: Callable[[], Any]) -> Callable[[], None]:
        def model() -> None:
            v = pyro.sample("v", make())
            pyro.sample("x", dist.Normal(v, 1.0).to_event(1), obs=self.X)

        return model

    def guide(self) -> None:
        pyro.sample("v", dist.Bernoulli(self.Q).to_event(1))

    def machine_guide(self) -> None:
        """The same law as a machine without weights, which Pyro can enumerate as one site."""
        unit = units.Bernoulli(self.Q.logit())
        q = RBM(unit, rbm().hidden, torch.zeros_like(rbm().weight))
        pyro.sample("v", q.normalize(log_z(q)), infer={"enumerate": "parallel"})

    @pytest.mark.parametrize("kind", ["rbm", "dbm", "nbm"])
    @pytest.mark.parametrize("scale", [1.0, 0.4])
    def test_enumerated_guide(self, kind: str, scale: float) -> None:
        """TraceEnum sums the guide: the ELBO is exact."""
        make = MACHINES[kind]
        if kind == "nbm":
            make = lambda: NBM.condition(double(0.3, -1.0))  # noqa: E731
        loss = ContrastiveDivergence(
            log_partition=exact_log_partition, elbo=TraceEnum_ELBO(max_plate_nesting=0)
        )
        model = poutine.scale(self.model(make), scale=scale)
        guide = poutine.scale(self.machine_guide, scale=scale)
        assert close(-loss.loss(model, guide), self.exact_elbo(make, scale))

    @pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO])
    @pytest.mark.parametrize("kind", ["rbm", "dbm"])
    def test_sampled_guide(self, kind: str, elbo: Any) -> None:
        number = 20_000
        loss = ContrastiveDivergence(
            log_partition=exact_log_partition,
            elbo=elbo(num_particles=number, vectorize_particles=True, max_plate_nesting=0),
        )
        value = -loss.loss(self.model(MACHINES[kind]), self.guide)
        # The terms of a draw differ by less than 3 nats, so that their deviation is below 3.
        assert abs(value - self.exact_elbo(MACHINES[kind])) < Z * 3.0 / number**0.5

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("handler", ["mask", "subsample", "condition", "do"])
    def test_handlers_of_observed_machines(self, kind: str, handler: str) -> None:
        """The loss of unnormalised machines, log Z given by the loss."""
        make = MACHINES[kind]

        def model() -> None:
            machine = make()
            with pyro.plate("rows", 2 * NUM_ROWS, subsample=torch.arange(NUM_ROWS)):
                pyro.sample("v", machine, obs=DATA)

        def unobserved() -> None:
            machine = make()
            with pyro.plate("rows", NUM_ROWS):
                v = pyro.sample("v", machine)
                pyro.sample("x", dist.Normal(v, 1.0).to_event(1), obs=torch.zeros_like(DATA))

        if handler == "do":
            # The machine is cut off. What is left of it is a latent site that the guide must not have.
            done = poutine.block(poutine.do(unobserved, data={"v": DATA}), hide=["v"])
            expected = dist.Normal(DATA, 1.0).log_prob(0 * DATA).sum()
            assert close(-Trace_ELBO().loss(done, lambda: None), expected)
            return
        expected = scores(make)
        wrapped: Callable[..., Any] = model
        if handler == "mask":
            wrapped, expected = poutine.mask(model, mask=MASK), expected * MASK
        if handler == "condition":
            wrapped = poutine.condition(unobserved, data={"v": DATA})
            expected = expected + dist.Normal(DATA, 1.0).to_event(1).log_prob(0 * DATA)
        else:
            expected = 2.0 * expected
        loss = ContrastiveDivergence(log_partition=exact_log_partition)
        assert close(-loss.loss(wrapped, lambda: None), expected.sum())


class TestMoreThanHandlers:
    def test_guides(self) -> None:
        def guide() -> None:
            weight = pyro.param("weight", rbm().weight)
            machine = RBM(rbm().visible, rbm().hidden, weight)
            pyro.sample("z", machine.normalize(exact_log_partition(machine)))

        site = machine_sites(guide)["z"]
        assert site.requires_grad and site.is_normalized
        assert site.log_partition is not None and site.log_partition.requires_grad

    def test_dependences(self) -> None:
        """Through arithmetic and observed sites, but not from conditioned or unrelated ones."""

        def model() -> None:
            a = pyro.sample("a", dist.Normal(double(0.0), 1.0).to_event(1))
            pyro.sample("b", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", NUM_ROWS):
                v = pyro.sample("v", rbm(a.exp()))
                pyro.sample("w", NBM.condition(v[..., :2]), obs=DATA)

        sites = machine_sites(model)
        assert sites["v"].depends_on == ("a",) and sites["w"].depends_on == ("v",)
        assert sites["v"].needs_log_partition and sites["w"].needs_log_partition
        assert type(sites["w"].machine.weight) is Tensor
        fixed = machine_sites(poutine.condition(model, data={"a": double(0.2)}))
        assert fixed["v"].depends_on == () and fixed["w"].depends_on == ("v",)
        none = machine_sites(poutine.mask(model, mask=False))
        assert not none["v"].needs_log_partition

    def test_enumerated_component(self) -> None:
        @config_enumerate
        def model() -> None:
            k = pyro.sample("k", dist.Categorical(torch.ones(2)))
            pyro.sample("v", rbm(double(0.0, 1.0)[k].unsqueeze(-1)), obs=DATA[0])

        assert machine_sites(model)["v"].depends_on == ("k",)

    def test_arguments_and_random_state(self) -> None:
        def model(rows: Tensor, *, scale: float) -> None:
            with poutine.scale(scale=scale), pyro.plate("rows", len(rows)):
                pyro.sample("v", rbm())

        before = torch.random.get_rng_state()
        site = machine_sites(model, DATA[:2], scale=3.0)["v"]
        assert (site.batch_shape, site.scale) == ((2,), 3.0)
        assert torch.equal(before, torch.random.get_rng_state())

    def test_clamped_and_reparametrised(self) -> None:
        model = clamped(latent(rbm), "v", torch.tensor([True, False, False]), DATA)
        (site,) = machine_sites(model).values()
        assert site.name == "v_free" and site.machine.event_shape == (2,)
        assert site.normalizer.event_shape == (3,) and site.is_normalized
        assert "clamped" in str(site)
        factor = poutine.reparam(
            latent(rbm),
            config={"v": FactorReparam(dist.constraints.unit_interval, log_partition=log_z)},
        )
        assert machine_sites(factor) == {}

    def test_text(self) -> None:
        text = str(
            machine_sites(poutine.mask(poutine.scale(observed(dbm), scale=2.0), mask=MASK))["v"]
        )
        assert text == (
            "v: DBM(3 Bernoulli x 2 Bernoulli x 2 Bernoulli), batch shape (4,), observed, normalised, "
            "plates rows, scale 2, rows masked"
        )

    def test_what_is_refused(self) -> None:
        with pytest.raises(TypeError, match="model must be a Pyro model"):
            machine_sites(DATA)


class TestCheckLogPartitions:
    """Methods that only evaluate a density cannot notice a missing log Z; see how wrong they are."""

    GRID = torch.linspace(-4.0, 4.0, 401, dtype=torch.float64)

    @staticmethod
    def model(normalize: bool) -> Callable[[], None]:
        def model() -> None:
            shift = pyro.sample("shift", dist.Normal(double(0.0).squeeze(), 1.0))
            machine = rbm(shift.unsqueeze(-1))
            if normalize:
                machine = machine.normalize(exact_log_partition(machine))
            with pyro.plate("rows", NUM_ROWS):
                pyro.sample(
                    "v",
                    machine.expand((*shift.shape, NUM_ROWS)),
                    obs=DATA,
                )

        return model

    def test_importance_is_wrong_without(self) -> None:
        """The evidence by importance sampling, with and without, against a sum over a grid."""
        prior = dist.Normal(0.0, 1.0).log_prob(self.GRID)
        machine = rbm(self.GRID[:, None])
        log_p = log_p_star(machine, DATA[:, None].expand(-1, 401, -1)) - log_z(machine)
        step = self.GRID[1] - self.GRID[0]
        exact = float((prior + log_p.sum(0)).logsumexp(0) + step.log())
        found = {}
        for normalize in (True, False):
            run = Importance(self.model(normalize), num_samples=100).run()
            found[normalize] = float(run.get_log_normalizer())
        assert abs(found[True] - exact) < 0.5 < abs(found[False] - exact)

    def test_refused(self) -> None:
        with pytest.raises(
            ValueError, match=r"'v' depends on shift.*normalize\(exact_log_partition"
        ):
            check_log_partitions(self.model(False))
        assert list(check_log_partitions(self.model(True))) == ["v"]

    def test_a_constant_is_refused(self) -> None:
        def model() -> None:
            shift = pyro.sample("shift", dist.Normal(double(0.0).squeeze(), 1.0))
            pyro.sample("v", rbm(shift.unsqueeze(-1)).normalize(3.0), obs=DATA[0])

        with pytest.raises(ValueError, match=r"'v' depends on shift.*constant"):
            check_log_partitions(model)

    def test_under_factor_reparam_it_is_not_found(self) -> None:
        """What the documentation says: check the program without it."""
        machine = RBM(
            units.Gaussian(double(0.0), double(1.0)), rbm().hidden, double(1.0, 1.0)[None]
        )
        model = poutine.reparam(lambda: pyro.sample("v", machine), config={"v": FactorReparam()})
        assert check_log_partitions(model) == {}

    def test_learnable_parameters_alone_are_fine(self) -> None:
        """Under SVI the loss supplies what is missing."""

        def model() -> None:
            bias = pyro.param("bias", torch.zeros(1).double())
            pyro.sample("v", rbm(bias), obs=DATA[0])

        assert check_log_partitions(model)["v"].requires_grad
        SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.01}), loss=ContrastiveDivergence()).step()


def test_a_conditional_machine_has_a_batch_of_parameters() -> None:
    site = machine_sites(latent(nbm))["v"]
    assert site.machine.parameter_batch_shape == (NUM_ROWS,)
