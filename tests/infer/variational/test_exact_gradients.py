# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Gradients of bounds with a latent machine against exact ones, by enumeration of its states."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from torch import Tensor

from pyro_ebm.distributions import BernoulliRBM
from pyro_ebm.infer import ContrastiveDivergence, LeaveOneOutELBO, exact_log_partition
from pyro_ebm.nn import NeuralBoltzmannMachine
from tests.infer.variational.programs import (
    START,
    STATES,
    X,
    dbm,
    exact_gradient,
    gradient,
    largest_z,
    likelihood,
    log_guide,
    normal,
    param,
    program,
    rbm,
)

Z_BOUND = 6.0
MACHINES = {"rbm": rbm, "dbm": dbm}
PARTICLES = {"num_particles": 4, "max_plate_nesting": 1}
SCORE = {
    "trace": lambda: Trace_ELBO(vectorize_particles=True, **PARTICLES),
    "graph": lambda: TraceGraph_ELBO(vectorize_particles=True, **PARTICLES),
    "graph with a baseline": lambda: TraceGraph_ELBO(vectorize_particles=True, **PARTICLES),
    "leave one out": lambda: LeaveOneOutELBO(**PARTICLES),
}


# --- score functions --------------------------------------------------------------------------


@pytest.mark.parametrize("elbo", SCORE)
@pytest.mark.parametrize("machine", MACHINES)
def test_score_function_gradients(machine: str, elbo: str) -> None:
    """Of prior, likelihood and guide, the mean of 60 gradients; chains start at the guide's draws."""
    copies, runs = 20, 60
    make = MACHINES[machine]
    baseline = {"use_decaying_avg_baseline": True} if "baseline" in elbo else None
    model, guide = program(make, copies, baseline)
    loss = ContrastiveDivergence(num_steps=25, elbo=SCORE[elbo]())
    draws = [gradient(loss, model, guide) for _ in range(runs)]
    expected = exact_gradient(make)
    assert set(expected) == {*draws[0]} == {*START} - ({"top"} if machine == "rbm" else set())
    draws = [{name: value / copies for name, value in draw.items()} for draw in draws]
    assert largest_z(draws, expected) < Z_BOUND


def test_power_of_the_test_above() -> None:
    """It sees a log Z without a gradient, and a score function of half its size."""
    copies = 20
    model, guide = program(rbm, copies)
    loss = ContrastiveDivergence(num_steps=25, elbo=LeaveOneOutELBO(**PARTICLES))
    draws = [gradient(loss, model, guide) for _ in range(60)]
    draws = [{name: value / copies for name, value in draw.items()} for draw in draws]
    expected = exact_gradient(rbm)
    p = {name: value.clone().requires_grad_() for name, value in START.items()}
    of_log_z = torch.autograd.grad(exact_log_partition(rbm(p)), p["bias"])[0]
    assert largest_z(draws, {"bias": expected["bias"] - len(X) * of_log_z}) > 2 * Z_BOUND
    assert largest_z(draws, {"logits": expected["logits"] / 2}) > 2 * Z_BOUND
    assert largest_z(draws, {"loading": -expected["loading"]}) > 2 * Z_BOUND


# --- enumeration ------------------------------------------------------------------------------


def guide_machine(p: dict[str, Tensor]) -> BernoulliRBM:
    """A guide whose bits depend on each other, a machine for every row."""
    weight = normal(3, 2, seed=5).expand(len(X), 3, 2)
    q = BernoulliRBM(weight, p["logits"], torch.zeros(2, dtype=torch.float64))
    return q.normalize(exact_log_partition(q))


@pytest.mark.parametrize(
    "machine, annotated",
    [("rbm", True), ("rbm", False), ("dbm", False)],
)
def test_enumerated_guide_is_exact(machine: str, annotated: bool) -> None:
    """Whether the model's site says that it is enumerated as well (which takes an RBM) or not."""
    make = MACHINES[machine]
    model, _ = program(make, of_prior={"enumerate": "parallel"} if annotated else {})

    @pyro.infer.config_enumerate
    def guide() -> None:
        p = {"logits": param("logits")}
        with pyro.plate("rows", len(X)):
            pyro.sample("z", guide_machine(p))

    loss = ContrastiveDivergence(elbo=TraceEnum_ELBO(max_plate_nesting=1))
    got = gradient(loss, model, guide)
    expected = exact_gradient(make, lambda p: guide_machine(p).log_prob(STATES.unsqueeze(1)))
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert torch.allclose(got[name], value, rtol=0, atol=1e-7), name


# --- a machine for every context --------------------------------------------------------------

CONTEXT = torch.eye(2, dtype=torch.float64)[torch.tensor([0, 1, 1])]
SUBSAMPLES = ((0, 1), (0, 2), (1, 2))


@pytest.fixture
def nbm() -> NeuralBoltzmannMachine:
    module = NeuralBoltzmannMachine(
        num_context=2, num_visible=3, num_hidden=2, visible="bernoulli", seed=0
    ).double()
    for number, parameter in enumerate(module.parameters()):
        parameter.data = normal(*parameter.shape, scale=0.5, seed=number)
    return module


def contextual(nbm, rows: list[int], mask: Tensor, enumerate_: bool):
    """Model and guide of a subsample of the rows."""
    index = torch.tensor(rows)

    def model() -> None:
        pyro.module("nbm", nbm)
        p = {"loading": param("loading")}
        plate = pyro.plate("rows", len(X), subsample=index)
        with plate, pyro.poutine.mask(mask=mask[index]):
            z = pyro.sample("z", nbm.condition(CONTEXT[index]))
            pyro.sample("x", likelihood(p, z), obs=X[index])

    def guide() -> None:
        logits = param("logits")[index]
        plate = pyro.plate("rows", len(X), subsample=index)
        with plate, pyro.poutine.mask(mask=mask[index]):
            if not enumerate_:
                pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))
                return
            # Independent bits as one site that can be enumerated: a machine without weights.
            zero = torch.zeros(3, 1, dtype=torch.float64)
            q = BernoulliRBM(zero, logits, zero[0])
            q = q.normalize(exact_log_partition(q))
            pyro.sample("z", q, infer={"enumerate": "parallel"})

    return model, guide


def exact_contextual(nbm, mask: Tensor) -> dict[str, Tensor]:
    p = {name: START[name].clone().requires_grad_() for name in ("loading", "logits")}
    machine = nbm.condition(CONTEXT)
    log_prior = -machine.free_energy(STATES.unsqueeze(1)) - exact_log_partition(machine)
    log_p = log_prior + likelihood(p, STATES.unsqueeze(1)).log_prob(X)
    log_q = log_guide(p["logits"])
    objective = -((log_q.exp() * (log_p - log_q)).sum(0) * mask).sum()
    names = {f"nbm$$${name}": value for name, value in nbm.named_parameters()} | p
    found = torch.autograd.grad(objective, list(names.values()), allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


@pytest.mark.parametrize("hidden", [None, 1])
def test_enumerated_rows_with_contexts(nbm, hidden: int | None) -> None:
    """Subsampled and masked, with a network that makes the prior: exact over all subsamples."""
    mask = torch.tensor([number != hidden for number in range(len(X))])
    loss = ContrastiveDivergence(elbo=TraceEnum_ELBO(max_plate_nesting=1))
    draws = [gradient(loss, *contextual(nbm, list(rows), mask, True)) for rows in SUBSAMPLES]
    for name, value in exact_contextual(nbm, mask).items():
        mean = sum(draw[name] for draw in draws) / len(draws)
        assert torch.allclose(mean, value, rtol=0, atol=1e-7), name


@pytest.mark.parametrize(
    "elbo, value",
    [(LeaveOneOutELBO(20, 1), None), (Trace_ELBO(20, 1, None, True), exact_log_partition)],
    ids=["leave one out", "trace"],
)
def test_sampled_rows_with_contexts(nbm, elbo, value) -> None:
    """The same with draws: right whatever the value of log Z(context) is, which no latent decides."""
    mask = torch.tensor([True, False, True])
    loss = ContrastiveDivergence(num_steps=15, log_partition=value, elbo=elbo)
    draws = []
    for _ in range(60):
        found = [gradient(loss, *contextual(nbm, list(s), mask, False)) for s in SUBSAMPLES]
        draws.append({name: sum(f[name] for f in found) / 3 for name in found[0]})
    assert largest_z(draws, exact_contextual(nbm, mask)) < Z_BOUND


# --- the value of log Z -----------------------------------------------------------------------


def test_leave_one_out_needs_no_log_partition(nbm) -> None:
    """The gradient of the same draws is the same with log Z taken as 0, a machine a row too."""
    mask = torch.ones(len(X), dtype=torch.bool)
    found = []
    for value in (None, exact_log_partition):
        pyro.set_rng_seed(7)
        loss = ContrastiveDivergence(log_partition=value, elbo=LeaveOneOutELBO(3, 1))
        found.append(gradient(loss, *contextual(nbm, [0, 1, 2], mask, False)))
    for name, first in found[0].items():
        assert torch.allclose(first, found[1][name], rtol=0, atol=1e-9), name


@pytest.mark.parametrize("known", [True, False])
def test_a_latent_choice_of_the_machine_needs_it(known: bool) -> None:
    """Two machines, and a latent bit that chooses: log Z of each is part of the bit's signal."""
    copies, runs = 60, 60
    bias = torch.stack([START["bias"], START["bias"] + 1.5])
    logit0 = torch.tensor(0.4, dtype=torch.float64)

    def machines(bit: Tensor) -> BernoulliRBM:
        hidden = torch.zeros(2, dtype=torch.float64)
        return BernoulliRBM(START["weight"], bias[bit.long()], hidden)

    def model() -> None:
        with pyro.plate("rows", copies):
            bit = pyro.sample("bit", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
            pyro.sample("v", machines(bit), obs=STATES[5].expand(copies, 3))

    def guide() -> None:
        logit = pyro.param("logit", logit0)
        with pyro.plate("rows", copies):
            pyro.sample("bit", dist.Bernoulli(logits=logit))

    loss = ContrastiveDivergence(
        log_partition=exact_log_partition if known else None, elbo=LeaveOneOutELBO(4, 1)
    )
    draws = [gradient(loss, model, guide) for _ in range(runs)]
    logit = logit0.clone().requires_grad_()
    both = machines(torch.arange(2))
    log_p = -both.free_energy(STATES[5]) - exact_log_partition(both)
    log_q = torch.nn.functional.logsigmoid(torch.stack([-logit, logit]))
    objective = -(log_q.exp() * (log_p - log_q)).sum()
    expected = {"logit": copies * torch.autograd.grad(objective, logit)[0]}
    assert (largest_z(draws, expected) < Z_BOUND) == known


# --- variance ---------------------------------------------------------------------------------


def variance(elbo, value=None) -> float:
    """Total variance of the gradient by the guide's parameters of a row, over 4000 copies of it."""
    copies = 4000
    prior = rbm(START)

    def model() -> None:
        with pyro.plate("copies", copies), pyro.plate("rows", len(X), dim=-2):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(START, z), obs=X.unsqueeze(1))

    def guide() -> None:
        logits = pyro.param("copied", START["logits"].unsqueeze(1).repeat(1, copies, 1))
        with pyro.plate("copies", copies), pyro.plate("rows", len(X), dim=-2):
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    loss = ContrastiveDivergence(log_partition=value, elbo=elbo)
    return gradient(loss, model, guide)["copied"].var(1).sum().item()


@pytest.mark.parametrize("number, factor, factor_known", [(2, 1.9, 5), (4, 2.8, 8), (16, 3.5, 10)])
def test_variance_is_below_that_of_plain_score_functions(number, factor, factor_known) -> None:
    """By these factors (measured: 2.3, 6.3; 3.3, 9.4; 4.1, 11.5) at the same number of draws, with log Z
    taken as 0 and known. Which of them is larger depends on the size of the log-ratios alone."""
    own = variance(LeaveOneOutELBO(number, 2))
    plain = Trace_ELBO(number, 2, None, True)
    assert variance(plain) > factor * own
    assert variance(plain, exact_log_partition) > factor_known * own
