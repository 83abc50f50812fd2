# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Relaxed bits and the machines that take them."""

import itertools
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_ebm.distributions import (
    DBM,
    RBM,
    BernoulliRBM,
    ConcreteBernoulli,
    IsingRBM,
    UnnormalizedGradientError,
    relaxed,
    units,
)
from pyro_ebm.infer import BlockGibbs, ContrastiveDivergence, ParallelTempering, exact_log_partition
from pyro_ebm.nn import NeuralBoltzmannMachine

Z_BOUND = 6.0
BITS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)


def rbm(batch: tuple[int, ...] = ()) -> BernoulliRBM:
    generator = torch.Generator().manual_seed(2)
    shapes = (3, 2), (3,), (2,)
    return BernoulliRBM(
        *(torch.randn((*batch, *s), generator=generator, dtype=torch.float64) for s in shapes)
    )


def dbm() -> DBM:
    generator = torch.Generator().manual_seed(2)
    biases = [torch.randn(n, generator=generator, dtype=torch.float64) for n in (3, 2, 2)]
    weights = [
        0.5 * torch.randn(s, generator=generator, dtype=torch.float64) for s in ((3, 2), (2, 2))
    ]
    return DBM([units.Bernoulli(b) for b in biases], weights, mean_field_tolerance=1e-12)


# --- the distribution -------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_draws_have_the_concrete_law(temperature: float) -> None:
    """P(z < s) = sigmoid(tau logit(s) - l), at five points; at 1/2 it is that of the bit."""
    logits = torch.tensor([-1.5, 0.0, 0.8], dtype=torch.float64)
    z = ConcreteBernoulli(temperature, logits).sample((40_000,))
    for s in (0.05, 0.3, 0.5, 0.7, 0.95):
        expected = torch.sigmoid(temperature * math.log(s / (1 - s)) - logits)
        error = (expected * (1 - expected) / len(z)).sqrt()
        got = (z < s).double().mean(0)
        assert ((got - expected) / error).abs().max() < Z_BOUND


def test_log_prob_is_the_mass_of_bits_and_linear_between() -> None:
    logits = torch.tensor([-40.0, -1.0, 0.0, 2.0, 40.0], dtype=torch.float64)
    law = ConcreteBernoulli(0.5, logits)
    bits = torch.tensor([0.0, 1.0], dtype=torch.float64).unsqueeze(-1)
    mass = law.log_prob(bits)
    assert torch.allclose(mass, dist.Bernoulli(logits=logits).log_prob(bits), rtol=0, atol=1e-9)
    s = torch.tensor([[0.25], [0.7]], dtype=torch.float64)
    assert torch.allclose(law.log_prob(s), torch.lerp(mass[0], mass[1], s), rtol=0, atol=1e-9)


def test_gradient_of_draws() -> None:
    """d/dl and d/dtau by finite differences at the same noise."""

    def draw(logits: Tensor, temperature: Tensor) -> Tensor:
        torch.manual_seed(1)
        return ConcreteBernoulli(temperature, logits).rsample((4,)).sum(0)

    logits = torch.tensor([-0.5, 1.0], dtype=torch.float64, requires_grad=True)
    temperature = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(draw, (logits, temperature))


def test_hard_values_are_bits_with_the_gradient_of_the_relaxed_ones() -> None:
    logits = torch.tensor([-0.5, 1.0, 0.1], requires_grad=True)
    values, gradients = [], []
    for hard in (False, True):
        torch.manual_seed(0)
        z = ConcreteBernoulli(0.7, logits, hard).rsample((1000,))
        values.append(z.detach())
        gradients.append(torch.autograd.grad(z.sum(), logits)[0])
    assert torch.equal(values[1], (values[0] > 0.5).float())
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_single_precision_stays_finite(dtype: torch.dtype) -> None:
    """Cold and extreme: values in [0, 1], finite log-probabilities and gradients."""
    logits = torch.tensor([-80.0, -8.0, 0.0, 8.0, 80.0], dtype=dtype, requires_grad=True)
    temperature = torch.tensor(0.05, dtype=dtype, requires_grad=True)
    law = ConcreteBernoulli(temperature, logits)
    z = law.rsample((200_000,))
    assert bool(((z >= 0) & (z <= 1)).all())
    log_p = law.log_prob(z)
    assert bool(torch.isfinite(log_p).all())
    for gradient in torch.autograd.grad(log_p.mean(), (logits, temperature)):
        assert bool(torch.isfinite(gradient).all())


def test_noise_at_the_ends_of_the_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([0.0, 1.0])
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: ends.clone())
    temperature = torch.tensor(0.3, requires_grad=True)
    z = ConcreteBernoulli(temperature, torch.zeros(2)).rsample()
    assert torch.allclose(z, ends) and bool(
        torch.isfinite(torch.autograd.grad(z.sum(), temperature)[0])
    )


def test_pyro_contract() -> None:
    """Shapes, expansion, events, plates, support, pickling."""
    law = ConcreteBernoulli(torch.tensor([[0.5], [1.0]]), torch.zeros(3))
    assert law.batch_shape == (2, 3) and law.event_shape == () and law.has_rsample
    wide = law.expand((4, 2, 3))
    assert wide.rsample((5,)).shape == (5, 4, 2, 3) and wide.hard == law.hard
    event = law.to_event(1)
    assert event.batch_shape == (2,) and event.event_shape == (3,)
    z = event.rsample((5,))
    assert bool(event.support.check(z).all()) and event.log_prob(z).shape == (5, 2)
    again = pickle.loads(pickle.dumps(law))
    assert torch.equal(again.log_prob(z), law.log_prob(z))
    hard = ConcreteBernoulli(0.5, torch.zeros(3), hard=True).expand((2, 3))
    assert hard.hard
    with pyro.plate("rows", 7):
        trace = poutine.trace(
            lambda: pyro.sample("z", ConcreteBernoulli(0.5, torch.zeros(3)).to_event(1))
        ).get_trace()
    assert trace.nodes["z"]["value"].shape == (7, 3)


@pytest.mark.parametrize(
    "temperature, logits, error, match",
    [
        (0.0, torch.zeros(2), ValueError, "temperature"),
        (-1.0, torch.zeros(2), ValueError, "temperature"),
        (float("nan"), torch.zeros(2), ValueError, "temperature"),
        (1.0, torch.tensor([float("nan")]), ValueError, "logits"),
        (1.0, torch.zeros(2, dtype=torch.long), TypeError, "logits.*int64"),
        (1.0, 0.3, TypeError, "logits.*float"),
        (torch.ones(3), torch.zeros(2), ValueError, "temperature of shape.*logits"),
    ],
)
def test_wrong_arguments(temperature, logits, error, match) -> None:
    with pytest.raises(error, match=match):
        ConcreteBernoulli(temperature, logits)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_values_outside_of_the_unit_interval(value: float) -> None:
    with pytest.raises(ValueError, match="support"):
        ConcreteBernoulli(1.0, torch.zeros(2)).log_prob(torch.tensor([0.5, value]))
    with pytest.raises(ValueError, match="support"):
        relaxed(rbm()).log_prob(torch.tensor([0.5, value, 0.0]))


# --- machines ---------------------------------------------------------------------------------


def test_relaxed_log_prob_sums_the_hidden_states() -> None:
    """log sum_h exp(-E(v, h)) with the energy written out, at values between the bits."""
    machine = rbm()
    v = torch.rand(5, 3, dtype=torch.float64)
    h = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)), dtype=torch.float64)
    energy = (
        -(v @ machine.visible_bias)[:, None] - h @ machine.hidden_bias - v @ machine.weight @ h.T
    )
    expected = (-energy).logsumexp(1)
    assert torch.allclose(relaxed(machine).log_prob(v), expected, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="support"):
        machine.log_prob(v)


@pytest.mark.parametrize("make", [rbm, dbm])
def test_relaxed_machine_is_the_discrete_one_at_bits(make) -> None:
    machine = make()
    soft = relaxed(machine)
    assert torch.equal(soft.log_prob(BITS), machine.log_prob(BITS))
    assert float(exact_log_partition(soft)) == float(exact_log_partition(machine))
    torch.manual_seed(0)
    draws = soft.sample((50,))
    torch.manual_seed(0)
    assert torch.equal(draws, machine.sample((50,)))
    assert soft.has_enumerate_support == machine.has_enumerate_support
    if machine.has_enumerate_support:
        assert torch.equal(soft.enumerate_support(), machine.enumerate_support())
    assert type(soft) is type(machine)
    # The machine that was given is as it was.
    assert not bool(machine.support.check(torch.full((3,), 0.5)))


@pytest.mark.parametrize("make", [rbm, dbm])
def test_gradient_by_the_states(make) -> None:
    """Of the relaxed log-probability, the mean-field bound too, by finite differences."""
    v = (0.1 + 0.8 * torch.rand(2, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(relaxed(make()).log_prob, (v,), atol=1e-6)


def test_batches_constants_and_log_partition_are_kept() -> None:
    machine = rbm((4,)).clamp(
        torch.tensor([True, False, False]), torch.ones(3, dtype=torch.float64)
    )
    machine = machine.normalize(exact_log_partition(machine)).expand((2, 4))
    soft = relaxed(machine)
    assert soft.batch_shape == (2, 4)
    total = soft.log_prob(BITS[:4, 1:].reshape(4, 1, 1, 2)).exp().sum(0)
    assert torch.allclose(total, torch.ones(2, 4, dtype=torch.float64), rtol=0, atol=1e-9)
    assert bool(soft.compact().support.check(torch.full((2,), 0.5)).all())


def test_conditional_machines_can_be_relaxed() -> None:
    nbm = NeuralBoltzmannMachine(
        num_context=2, num_visible=3, num_hidden=2, visible="bernoulli", seed=0
    )
    soft = relaxed(nbm.condition(torch.eye(2)))
    assert soft.batch_shape == (2,)
    with torch.no_grad():
        assert soft.log_prob(torch.full((2, 3), 0.4)).shape == (2,)
    with pytest.raises(UnnormalizedGradientError):
        soft.log_prob(torch.full((2, 3), 0.4))


def test_only_bits_can_be_relaxed() -> None:
    with pytest.raises(
        TypeError, match="only Bernoulli visible units can be relaxed, these are Ising"
    ):
        relaxed(IsingRBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2)))
    with pytest.raises(TypeError, match="machine must be an RBM or DBM, got Bernoulli"):
        relaxed(dist.Bernoulli(torch.zeros(3)))  # type: ignore[type-var]


# --- learning ---------------------------------------------------------------------------------


def relaxed_model(make, leaves: list[Tensor], x: Tensor):
    def model() -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", relaxed(make(leaves)))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    return model


def make_rbm(leaves: list[Tensor]) -> RBM:
    return BernoulliRBM(leaves[0], leaves[1], torch.zeros(2, dtype=torch.float64))


def make_dbm(leaves: list[Tensor]) -> DBM:
    layers = [units.Bernoulli(b) for b in (leaves[1], torch.zeros(2), torch.zeros(1))]
    layers = [layers[0], *(layer.map(torch.Tensor.double) for layer in layers[1:])]
    return DBM(layers, [leaves[0], torch.ones(2, 1, dtype=torch.float64)])


@pytest.mark.parametrize("make", [make_rbm, make_dbm])
@pytest.mark.parametrize("hard", [False, True])
def test_gradient_of_the_proxy(make, hard: bool) -> None:
    """Given the draws, the gradient by the prior is that of log p(z) with the exact log Z of bits."""
    rows = 30_000
    x = torch.zeros(rows, 3, dtype=torch.float64)
    leaves = [0.4 * torch.randn(3, 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)]
    for leaf in leaves:
        leaf.requires_grad_()
    drawn: list[Tensor] = []

    def guide() -> None:
        with pyro.plate("rows", rows):
            law = ConcreteBernoulli(0.5, torch.zeros(3, dtype=torch.float64), hard).to_event(1)
            drawn.append(pyro.sample("z", law))

    loss = ContrastiveDivergence(num_steps=20)
    got = torch.autograd.grad(
        loss.differentiable_loss(relaxed_model(make, leaves, x), guide) / rows, leaves
    )
    z, machine = drawn[-1].detach(), relaxed(make(leaves))
    objective = machine.free_energy(z).mean() + exact_log_partition(make(leaves))
    for first, second in zip(got, torch.autograd.grad(objective, leaves), strict=True):
        assert ((first - second) * rows**0.5 / 0.5).abs().max() < Z_BOUND


def tempering(machine: RBM) -> ParallelTempering:
    return ParallelTempering(machine, betas=[0.0, 0.5, 1.0])


def test_the_proxy_may_be_above_the_evidence() -> None:
    """One bit whose log-joint is linear: the proxy is the evidence at the posterior, and no maximum there."""
    a, shifts = 1.3, (-0.3, 0.0, 0.3)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    evidence = math.log1p(math.exp(a))
    proxy = []
    for shift in shifts:
        z = torch.sigmoid(a + shift + torch.logit(u))
        law = ConcreteBernoulli(1.0, torch.tensor(a + shift, dtype=torch.float64))
        proxy.append((a * z - law.log_prob(z)).mean().item())
    assert proxy[1] == pytest.approx(evidence, abs=1e-12)
    assert proxy[0] < evidence - 0.02 < evidence + 0.01 < proxy[2]


@pytest.mark.parametrize("kernel", [None, BlockGibbs, tempering])
@pytest.mark.parametrize("make", [make_rbm, make_dbm])
def test_chains_are_of_the_discrete_machine(kernel, make) -> None:
    """Persistent chains start at relaxed values and are bits after a gradient, whatever moves them."""
    leaves = [torch.randn(3, 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)]
    leaves[0].requires_grad_()

    def guide() -> None:
        with pyro.plate("rows", 40):
            pyro.sample(
                "z", ConcreteBernoulli(2.0, torch.zeros(3, dtype=torch.float64)).to_event(1)
            )

    loss = ContrastiveDivergence(persistent=True, kernel=kernel)
    model = relaxed_model(make, leaves, torch.zeros(40, 3, dtype=torch.float64))
    loss.differentiable_loss(model, guide)
    assert loss.chains["z"].unique().tolist() == [0.0, 1.0]


class TestContinuousInference:
    """A relaxed machine keeps the log Z of bits, so that nobody may sample it over [0, 1]."""

    @staticmethod
    def program(size: int) -> None:
        pyro.sample(
            "v", relaxed(BernoulliRBM(torch.zeros(size, 2), torch.zeros(size), torch.zeros(2)))
        )

    def test_autoguides(self) -> None:
        with pytest.raises(NotImplementedError, match="no density over"):
            AutoNormal(self.program)(3)

    def test_nuts(self) -> None:
        with pytest.raises(NotImplementedError, match="no density over"):
            MCMC(NUTS(self.program), 2, 2, disable_progbar=True).run(12)
