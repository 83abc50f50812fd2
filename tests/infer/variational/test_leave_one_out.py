# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The leave-one-out gradient: its expectation over all tuples of particles, written out, is exact.

The rows of a plate are all tuples of states that K particles can be in, drawn by nobody but given, and the
scale of a row is the probability of its tuple. One gradient is then the expectation of the estimator.
"""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer import SVI
from torch import Tensor

from pyro_ebm.distributions import BernoulliRBM
from pyro_ebm.infer import ContrastiveDivergence, LeaveOneOutELBO, exact_log_partition

#: Two bits with an RBM prior, a third one that the guide draws given them, and the noise of a reparametrised
#: site: either of two numbers, which is as good as any law for an identity that holds for each.
STATES = torch.tensor(
    list(itertools.product((0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (-0.8, 1.1))), dtype=torch.float64
)
BITS = STATES[::4, :2]
X = torch.tensor([0.7, -0.4], dtype=torch.float64)


class Preset(TorchDistribution):
    """A distribution whose draws are given; ``pathwise``: as functions of its parameters."""

    arg_constraints = {}

    def __init__(self, base: TorchDistribution, values: Tensor, pathwise: bool = False) -> None:
        self.base, self.values, self.has_rsample = base, values, pathwise
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Preset(self.base.expand(batch_shape), self.values, self.has_rsample)

    def sample(self, sample_shape=()):
        return self.values.expand(self.shape(sample_shape))

    rsample = sample

    def log_prob(self, value):
        return self.base.log_prob(value)


def initial() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "weight": normal(2, 2),
        "bias": normal(2),
        "loading": normal(3, 2),
        "logits": normal(2),
        "slope": normal(),
        "loc": normal(),
        "log_scale": normal(),
    }


def machine(p: dict[str, Tensor]) -> BernoulliRBM:
    return BernoulliRBM(p["weight"], p["bias"], torch.ones(2, dtype=torch.float64))


def law_of_y(p: dict[str, Tensor]) -> TorchDistribution:
    return dist.Normal(p["loc"], p["log_scale"].exp())


def draw_y(p: dict[str, Tensor], noise: Tensor) -> Tensor:
    return p["loc"] + p["log_scale"].exp() * noise


def guide_laws(p: dict[str, Tensor], z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the two bits, which depend on the reparametrised y, and of the one given them."""
    return p["logits"] + y.unsqueeze(-1), p["slope"] * (z.sum(-1) - 0.5)


def likelihood(p: dict[str, Tensor], z: Tensor, k: Tensor, y: Tensor) -> TorchDistribution:
    loc = torch.cat([z, k.unsqueeze(-1)], -1) @ p["loading"] + y.unsqueeze(-1)
    return dist.Normal(loc, 0.8).to_event(1)


def log_ratio(p: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """log p - log q of all states, and the logarithm of the probability that the guide draws each."""
    z, k, y = STATES[:, :2], STATES[:, 2], draw_y(p, STATES[:, 3])
    rbm = machine(p)
    log_p = -rbm.free_energy(z) - (-rbm.free_energy(BITS)).logsumexp(0)
    log_p = log_p + k * math.log(0.3) + (1 - k) * math.log(0.7)
    log_p = log_p + likelihood(p, z, k, y).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(y)
    of_z, of_k = guide_laws(p, z, y)
    log_q = (z * of_z - of_z.exp().log1p()).sum(-1) + k * of_k - of_k.exp().log1p()
    of_y = law_of_y(p).log_prob(y)
    return log_p - log_q - of_y, log_q - math.log(2.0)


def exact_gradient(bound: str, number: int, x: Tensor = X) -> dict[str, Tensor]:
    """Of minus the bound: a sum over all states, or over all tuples of them."""
    p = {name: value.requires_grad_() for name, value in initial().items()}
    r, log_q = log_ratio(p, x)
    if bound == "elbo":
        objective = (log_q.exp() * r).sum()
    else:
        tuples = torch.cartesian_prod(*[torch.arange(len(STATES))] * number)
        value = r[tuples].exp().mean(-1).log()
        objective = (log_q[tuples].sum(-1).exp() * value).sum()
    return dict(zip(p, torch.autograd.grad(-objective, list(p.values())), strict=True))


def estimator_gradient(
    bound: str, number: int, *, x: Tensor = X, log_partition: float | None = None, rows=None
) -> dict[str, Tensor]:
    """The expectation of the estimated gradient; with ``rows``, of a choice of the tuples only."""
    pyro.clear_param_store()
    start = initial()
    tuples = torch.cartesian_prod(*[torch.arange(len(STATES))] * number)
    tuples = tuples if rows is None else tuples[rows]
    values = STATES[tuples.T]  # (K, rows, 4)
    weight = log_ratio(start, x)[1][tuples].sum(-1).exp()

    def params() -> dict[str, Tensor]:
        return {name: pyro.param(name, value) for name, value in start.items()}

    def model() -> None:
        p = params()
        rbm = machine(p)
        exact = exact_log_partition(rbm)
        rbm = rbm.normalize(
            exact if log_partition is None else exact - exact.detach() + log_partition
        )
        with pyro.plate("tuples", len(tuples)), poutine.scale(scale=weight):
            y = pyro.sample("y", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            z = pyro.sample("z", rbm)
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)))
            pyro.sample("x", likelihood(p, z, k, y), obs=x)

    def guide() -> None:
        p = params()
        with pyro.plate("tuples", len(tuples)), poutine.scale(scale=weight):
            y = pyro.sample("y", Preset(law_of_y(p), draw_y(p, values[..., 3]), pathwise=True))
            logits, _ = guide_laws(p, values[..., :2], y)
            bits = Preset(dist.Bernoulli(logits=logits).to_event(1), values[..., :2])
            z = pyro.sample("z", bits)
            _, logit = guide_laws(p, z, y)
            pyro.sample("k", Preset(dist.Bernoulli(logits=logit), values[..., 2]))

    LeaveOneOutELBO(number, 1, bound=bound).loss_and_grads(model, guide)
    return {name: value.grad for name, value in pyro.get_param_store().named_parameters()}


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("bound", ["elbo", "importance"])
def test_expected_gradient_is_exact(bound: str, number: int) -> None:
    """Model, prior and guide, with a reparametrised site above two discrete ones."""
    expected, got = exact_gradient(bound, number), estimator_gradient(bound, number)
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert torch.allclose(got[name], value, rtol=0, atol=1e-9), name


def test_bounds_differ() -> None:
    """The two objectives have different gradients, so that the test above tells them apart."""
    first, second = exact_gradient("elbo", 2), exact_gradient("importance", 2)
    assert (first["logits"] - second["logits"]).abs().max() > 0.05


@pytest.mark.parametrize("bound", ["elbo", "importance"])
def test_an_unknown_log_partition_drops_out(bound: str) -> None:
    """Of any single draw, not only on average."""
    rows = torch.tensor([9, 17, 30, 41])
    first = estimator_gradient(bound, 2, rows=rows)
    second = estimator_gradient(bound, 2, rows=rows, log_partition=1e4)
    for name, value in first.items():
        assert torch.allclose(second[name], value, rtol=0, atol=1e-8), name


# --- plates -----------------------------------------------------------------------------------

#: Rows of the data, and which of them count.
DATA = torch.tensor([[0.5, -1.0], [2.0, 0.1], [-0.7, 0.4]], dtype=torch.float64)
PAIRS = torch.cartesian_prod(torch.arange(4), torch.arange(4))


def rows_gradient(
    chosen: list[int],
    mask: Tensor | None = None,
    *,
    data: Tensor = DATA,
    pairs: Tensor = PAIRS,
    bound: str = "elbo",
) -> tuple[Tensor, float]:
    """Expected gradient by the rows' logits, for a subsample of the rows; and the loss."""
    pyro.clear_param_store()
    start = initial()
    logits0 = torch.stack([start["logits"], -start["logits"], 0.5 * start["logits"]])
    rows = torch.tensor(chosen)
    log_q = dist.Bernoulli(logits=logits0[rows].unsqueeze(1)).log_prob(BITS).sum(-1)
    weight = log_q[:, pairs].sum(-1).exp()  # (rows, tuples)
    values = BITS[pairs.T].unsqueeze(1)  # (K, 1, tuples, 2)
    rbm = machine(start)
    prior = rbm.normalize(exact_log_partition(rbm))
    masked = torch.ones(len(DATA), dtype=torch.bool) if mask is None else mask

    def plates():
        return (
            pyro.plate("rows", len(DATA), subsample=rows, dim=-2),
            pyro.plate("tuples", len(pairs), dim=-1),
            poutine.scale(scale=weight),
            poutine.mask(mask=masked[rows].unsqueeze(-1)),
        )

    def model() -> None:
        first, second, scale, hide = plates()
        with first, second, scale, hide:
            z = pyro.sample("z", prior)
            law = dist.Normal(z @ start["loading"][:2], 0.8).to_event(1)
            pyro.sample("x", law, obs=data[rows].unsqueeze(1))

    def guide() -> None:
        logits = pyro.param("logits", logits0)[rows].unsqueeze(1)
        first, second, scale, hide = plates()
        with first, second, scale, hide:
            pyro.sample("z", Preset(dist.Bernoulli(logits=logits).to_event(1), values))

    loss = LeaveOneOutELBO(2, 2, bound=bound).loss_and_grads(model, guide)
    return dict(pyro.get_param_store().named_parameters())["logits"].grad, loss


def exact_rows(mask: Tensor, bound: str) -> tuple[Tensor, float]:
    start = initial()
    logits = torch.stack([start["logits"], -start["logits"], 0.5 * start["logits"]])
    logits.requires_grad_()
    rbm = machine(start)
    prior = -rbm.free_energy(BITS) - (-rbm.free_energy(BITS)).logsumexp(0)
    joint = dist.Normal(BITS @ start["loading"][:2], 0.8).to_event(1).log_prob(DATA.unsqueeze(1))
    log_q = dist.Bernoulli(logits=logits.unsqueeze(1)).log_prob(BITS).sum(-1)
    ratio = prior + joint - log_q
    value = ratio[:, PAIRS].mean(-1) if bound == "elbo" else ratio[:, PAIRS].exp().mean(-1).log()
    bounds = (log_q[:, PAIRS].sum(-1).exp() * value).sum(-1)
    objective = -(bounds * mask).sum()
    return torch.autograd.grad(objective, logits)[0], objective.item()


@pytest.mark.parametrize("bound", ["elbo", "importance"])
@pytest.mark.parametrize("mask", [[True, True, True], [True, False, True]])
def test_subsampling_and_masks(mask: list[bool], bound: str) -> None:
    """Over all subsamples of two rows the gradient and the loss are those of all rows that count."""
    hidden = torch.tensor(mask)
    found = [rows_gradient([i, j], hidden, bound=bound) for i, j in ((0, 1), (0, 2), (1, 2))]
    gradient, loss = exact_rows(hidden, bound)
    assert torch.allclose(sum(g for g, _ in found) / 3, gradient, rtol=0, atol=1e-9)
    assert sum(value for _, value in found) / 3 == pytest.approx(loss, abs=1e-9)
    assert (gradient[~hidden] == 0).all() and (gradient[hidden] != 0).all()


def test_the_signal_of_a_row_is_its_own() -> None:
    """Given the draws, other rows' data change nothing in a row's gradient."""
    other = DATA.clone()
    other[1:] += 3.0
    first, _ = rows_gradient([0, 1, 2], pairs=PAIRS[[1, 6, 11, 12]])
    second, _ = rows_gradient([0, 1, 2], data=other, pairs=PAIRS[[1, 6, 11, 12]])
    assert torch.allclose(first[0], second[0], rtol=0, atol=1e-12)
    assert not torch.allclose(first[1:], second[1:], rtol=0, atol=1e-3)


# --- its use ----------------------------------------------------------------------------------


def rbm_model(x: Tensor) -> None:
    bias = pyro.param("bias", torch.zeros(3))
    prior = BernoulliRBM(0.3 * torch.ones(3, 2), bias, torch.zeros(2))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", prior)
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def rbm_guide(x: Tensor) -> None:
    logits = pyro.param("logits", torch.zeros(len(x), 3))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


@pytest.mark.parametrize("bound", ["elbo", "importance"])
@pytest.mark.parametrize("nesting", [{}, {"max_plate_nesting": 1}, {"max_plate_nesting": 3}])
def test_learns_inside_contrastive_divergence(bound: str, nesting: dict[str, int]) -> None:
    """Bits that the data show: the guide finds them, whichever way the nesting is known."""
    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]).repeat(20, 1)
    elbo = LeaveOneOutELBO(4, bound=bound, **nesting)
    loss = ContrastiveDivergence(num_steps=2, persistent=True, num_chains=20, elbo=elbo)
    svi = SVI(rbm_model, rbm_guide, pyro.optim.Adam({"lr": 0.1}), loss=loss)
    for _ in range(60):
        svi.step(x)
    assert ((pyro.param("logits") > 0) == x.bool()).all()
    assert loss.chains["z"].unique().tolist() == [0.0, 1.0]
    bias = pyro.param("bias")
    assert bias[1] < -1.0 and bias[2] > 1.0


def test_loss_is_the_bound() -> None:
    """Values: minus the bound of the particles drawn, and the importance-weighted one is above the other."""
    x = torch.randn(6, 3)
    log_z = exact_log_partition
    values = {}
    for bound in ("elbo", "importance"):
        elbo = LeaveOneOutELBO(400, 1, bound=bound)
        loss = ContrastiveDivergence(log_partition=log_z, elbo=elbo)
        values[bound] = (
            loss.loss(rbm_model, rbm_guide, x),
            loss.loss_and_grads(rbm_model, rbm_guide, x),
            loss.differentiable_loss(rbm_model, rbm_guide, x).item(),
        )
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
    prior = BernoulliRBM(0.3 * torch.ones(3, 2), torch.zeros(3), torch.zeros(2))
    log_p = prior.normalize(log_z(prior)).log_prob(states)
    joint = log_p + dist.Normal(states, 0.5).to_event(1).log_prob(x.unsqueeze(1))
    evidence = joint.logsumexp(1).sum().item()
    elbo_value = (joint.mean(1) + 3 * math.log(2.0)).sum().item()
    deviation = joint.var(1, unbiased=False).sum().sqrt().item() / 20
    for value in values["elbo"]:
        assert abs(-value - elbo_value) < 6 * deviation
    ratio = (joint + 3 * math.log(2.0)).exp()
    error = ((ratio.var(1, unbiased=False) / ratio.mean(1).square()).sum() / 400).sqrt().item()
    for value in values["importance"]:
        assert abs(-value - evidence) < 6 * error + error**2


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [-1, 0, 1])
def test_one_particle_has_no_others(number: int) -> None:
    with pytest.raises(ValueError, match=f"num_particles must be at least 2.*got {number}"):
        LeaveOneOutELBO(number)


def test_unknown_bound() -> None:
    with pytest.raises(ValueError, match="bound must be 'elbo' or 'importance', got 'iwae'"):
        LeaveOneOutELBO(2, bound="iwae")


def test_different_scales_have_no_importance_bound() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            with poutine.scale(scale=0.5):
                z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(3)).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"one scale .* 'z' and 'x' differ; use bound='elbo'"):
        LeaveOneOutELBO(2, 1, bound="importance").loss(model, rbm_guide, torch.zeros(4, 3))
