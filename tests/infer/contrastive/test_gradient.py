# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The loss has the gradient and the value of exact maximum likelihood."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM, GibbsSweep, units
from pyro_ebm.infer import BlockGibbs, ContrastiveDivergence, exact_log_partition

NUM_VISIBLE, NUM_HIDDEN, NUM_ROWS, NUM_CHAINS = 5, 3, 40, 200_000
#: Bound of |z| for about 30 tests of up to 40 entries: false alarm below 1e-7 in a run.
Z_BOUND = 6.5
ELBOS = {
    "Trace": Trace_ELBO,
    "TraceGraph": TraceGraph_ELBO,
    "TraceEnum": lambda: TraceEnum_ELBO(strict_enumeration_warning=False),
    "TraceMeanField": TraceMeanField_ELBO,
}


@pytest.fixture
def parameters() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "weight": torch.randn(NUM_VISIBLE, NUM_HIDDEN, dtype=torch.float64),
        "visible_bias": torch.randn(NUM_VISIBLE, dtype=torch.float64),
        "hidden_bias": torch.randn(NUM_HIDDEN, dtype=torch.float64),
    }


@pytest.fixture
def data() -> Tensor:
    torch.manual_seed(2)
    return torch.bernoulli(torch.full((NUM_ROWS, NUM_VISIBLE), 0.4, dtype=torch.float64))


def empty_guide(*args: object) -> None:
    pass


def machine(parameters: dict[str, Tensor]) -> BernoulliRBM:
    return BernoulliRBM(
        **{name: pyro.param(name, value.clone()) for name, value in parameters.items()}
    )


def exact_gradient(parameters: dict[str, Tensor], data: Tensor) -> dict[str, Tensor]:
    """Gradient of the negative log-likelihood, every state of v and h written out."""
    leaves = {n: p.clone().requires_grad_() for n, p in parameters.items()}
    log_joint = log_weights(**leaves)
    log_z = log_joint.logsumexp((0, 1))
    index = (data @ (2.0 ** torch.arange(NUM_VISIBLE).double())).long()
    nll = -(log_joint.logsumexp(1)[index] - log_z).sum()
    return dict(zip(leaves, torch.autograd.grad(nll, list(leaves.values())), strict=True))


def log_weights(weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> Tensor:
    """-E(v, h) for all v (bit i of the row number is unit i) and h, by the definition."""
    v = (torch.arange(2**NUM_VISIBLE)[:, None] >> torch.arange(NUM_VISIBLE) & 1).double()
    h = (torch.arange(2**NUM_HIDDEN)[:, None] >> torch.arange(NUM_HIDDEN) & 1).double()
    interaction = torch.einsum("vi,ij,hj->vh", v, weight, h)
    return interaction + (v @ visible_bias)[:, None] + (h @ hidden_bias)[None, :]


def standard_errors(parameters: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Errors of a mean of NUM_CHAINS independent negative gradients, times ``scale``."""
    v = BernoulliRBM(**parameters).sample((20_000,))
    h = torch.sigmoid(v @ parameters["weight"] + parameters["hidden_bias"])
    per_chain = {
        "weight": v[:, :, None] * h[:, None, :],
        "visible_bias": v,
        "hidden_bias": h,
    }
    return {n: scale * g.std(0) / NUM_CHAINS**0.5 for n, g in per_chain.items()}


def gradients(loss: ContrastiveDivergence, model, *args) -> dict[str, Tensor]:
    value = loss.loss_and_grads(model, empty_guide, *args)
    assert torch.isfinite(torch.as_tensor(value))
    return {n: p.grad for n, p in pyro.get_param_store().named_parameters()}


def largest_z(got: dict[str, Tensor], expected: dict[str, Tensor], errors: dict[str, Tensor]):
    return max(((got[n] - expected[n]) / errors[n]).abs().max().item() for n in expected)


def equilibrium_loss(parameters: dict[str, Tensor], **options) -> ContrastiveDivergence:
    loss = ContrastiveDivergence(persistent=True, num_chains=NUM_CHAINS, **options)
    loss.chains["v"] = BernoulliRBM(**parameters).sample((NUM_CHAINS,))
    return loss


def plain_model(parameters: dict[str, Tensor], data: Tensor) -> None:
    rbm = machine(parameters)
    with pyro.plate("rows", len(data)):
        pyro.sample("v", rbm, obs=data)


def event_model(parameters: dict[str, Tensor], data: Tensor) -> None:
    pyro.sample("v", machine(parameters).expand([len(data)]).to_event(1), obs=data)


def masked_model(parameters: dict[str, Tensor], data: Tensor) -> None:
    """Rows that are masked out do not count, whichever way they are masked."""
    rbm = machine(parameters)
    rows = torch.cat([data, 1.0 - data])
    keep = torch.arange(len(rows)) < len(data)
    with pyro.plate("rows", len(rows)), pyro.poutine.mask(mask=keep):
        pyro.sample("v", rbm.mask(keep), obs=rows)


def scaled_model(parameters: dict[str, Tensor], data: Tensor) -> None:
    """Half of twice the rows, scaled to all of them by the plate."""
    rbm = machine(parameters)
    half = pyro.plate("rows", 2 * len(data), subsample=torch.arange(len(data)))
    with half, pyro.poutine.scale(scale=0.5):
        pyro.sample("v", rbm, obs=data)


MODELS = {f.__name__: f for f in (plain_model, event_model, masked_model, scaled_model)}


@pytest.mark.parametrize("elbo", ELBOS.values(), ids=ELBOS)
def test_gradient_is_that_of_maximum_likelihood(elbo, parameters, data):
    got = gradients(equilibrium_loss(parameters, elbo=elbo()), plain_model, parameters, data)
    expected = exact_gradient(parameters, data)
    errors = standard_errors(parameters, NUM_ROWS)
    assert largest_z(got, expected, errors) < Z_BOUND


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_scale_mask_plates_and_events(model, parameters, data):
    got = gradients(equilibrium_loss(parameters), model, parameters, data)
    expected = exact_gradient(parameters, data)
    assert largest_z(got, expected, standard_errors(parameters, NUM_ROWS)) < Z_BOUND


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_value_is_the_negative_log_likelihood(model, parameters, data):
    loss = ContrastiveDivergence(log_partition=exact_log_partition)
    log_joint = log_weights(**parameters)
    index = (data @ (2.0 ** torch.arange(NUM_VISIBLE).double())).long()
    expected = -(log_joint.logsumexp(1)[index] - log_joint.logsumexp((0, 1))).sum()
    assert loss.loss(model, empty_guide, parameters, data) == pytest.approx(expected.item())
    assert loss.loss_and_grads(model, empty_guide, parameters, data) == pytest.approx(
        expected.item()
    )


def test_a_wrong_negative_phase_is_rejected(parameters, data, monkeypatch):
    """The test has power: hidden fields 2 % too strong give a gradient that it refuses."""
    original = GibbsSweep.visible_theta
    monkeypatch.setattr(GibbsSweep, "visible_theta", lambda self, h: original(self, h) * 1.02)
    loss = equilibrium_loss(parameters)
    loss.num_steps = 30
    got = gradients(loss, plain_model, parameters, data)
    errors = standard_errors(parameters, NUM_ROWS)
    assert largest_z(got, exact_gradient(parameters, data), errors) > Z_BOUND


@pytest.mark.parametrize("kernel", [None, BlockGibbs], ids=["sweeps", "kernel"])
def test_long_contrastive_divergence_is_unbiased(kernel, parameters, data):
    """CD-k from the data reaches equilibrium for large k, by sweeps and by a given kernel."""
    loss = ContrastiveDivergence(num_steps=60, num_chains=NUM_CHAINS, kernel=kernel)
    got = gradients(loss, plain_model, parameters, data)
    errors = standard_errors(parameters, NUM_ROWS)
    assert largest_z(got, exact_gradient(parameters, data), errors) < Z_BOUND


def test_one_step_of_contrastive_divergence_moves_the_data(parameters, data):
    """CD-1 is not maximum likelihood: its expectation is known exactly for a row, and it is that."""
    rows = data[:1].expand(NUM_CHAINS, NUM_VISIBLE)
    got = gradients(ContrastiveDivergence(), plain_model, parameters, rows)
    log_joint = log_weights(**parameters)
    index = int((data[0] @ (2.0 ** torch.arange(NUM_VISIBLE).double())).item())
    hidden = torch.softmax(log_joint[index], 0)
    after = torch.softmax(log_joint, 0) @ hidden
    v = (torch.arange(2**NUM_VISIBLE)[:, None] >> torch.arange(NUM_VISIBLE) & 1).double()
    expected = NUM_CHAINS * (after @ v - data[0])
    error = NUM_CHAINS**0.5 * 0.5
    assert ((got["visible_bias"] - expected) / error).abs().max() < Z_BOUND


def test_rows_with_parameters_of_their_own(parameters, data):
    """A machine per row (as a conditional model has) gets a chain per row, started at that row."""
    torch.manual_seed(3)
    shift = torch.randn(NUM_ROWS, NUM_HIDDEN, dtype=torch.float64)

    def model(data: Tensor) -> None:
        weight, b, c = (pyro.param(n, parameters[n].clone()) for n in parameters)
        rbm = BernoulliRBM(weight, b, c + shift)
        with pyro.plate("rows", len(data)):
            pyro.sample("v", rbm, obs=data)

    with pytest.raises(ValueError, match="every row of plate 'rows'"):
        ContrastiveDivergence(persistent=True).loss_and_grads(model, empty_guide, data)
    pyro.clear_param_store()
    repeats = 300
    loss = ContrastiveDivergence(num_steps=20)
    total = torch.zeros(NUM_VISIBLE, NUM_HIDDEN, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for _ in range(repeats):
        pyro.clear_param_store()
        got = gradients(loss, model, data)["weight"]
        total, squares = total + got, squares + got.square()
    mean = total / repeats
    error = ((squares / repeats - mean.square()) / repeats).sqrt()
    leaf = parameters["weight"].clone().requires_grad_()
    rbm = BernoulliRBM(leaf, parameters["visible_bias"], parameters["hidden_bias"] + shift)
    nll = -rbm.normalize(exact_log_partition(rbm)).log_prob(data).sum()
    (expected,) = torch.autograd.grad(nll, leaf)
    assert ((mean - expected) / error).abs().max() < Z_BOUND


def test_mixture_needs_the_value_of_log_z(parameters, data):
    """An enumerated component: with exact values the gradient is right, with none it is not."""
    torch.manual_seed(4)
    other = {n: p + 1.5 * torch.randn_like(p) for n, p in parameters.items()}
    mixture = torch.tensor([0.3, 0.7], dtype=torch.float64)
    stacked = {n: torch.stack([parameters[n], other[n]]) for n in parameters}

    def model(data: Tensor) -> None:
        tensors = {n: pyro.param(n, p.clone()) for n, p in stacked.items()}
        with pyro.plate("rows", len(data)):
            k = pyro.sample("k", dist.Categorical(mixture), infer={"enumerate": "parallel"})
            pyro.sample("v", BernoulliRBM(**{n: p[k] for n, p in tensors.items()}), obs=data)

    def gradient_error(log_partition) -> float:
        pyro.clear_param_store()
        loss = ContrastiveDivergence(
            num_steps=30,
            num_chains=NUM_CHAINS,
            log_partition=log_partition,
            elbo=TraceEnum_ELBO(max_plate_nesting=1),
        )
        got = gradients(loss, model, data)
        return max(
            ((got[n] - expected[n]).abs().max() / expected[n].abs().max()).item() for n in got
        )

    leaves = {n: p.clone().requires_grad_() for n, p in stacked.items()}
    components = RBM(
        units.Bernoulli(leaves["visible_bias"]),
        units.Bernoulli(leaves["hidden_bias"]),
        leaves["weight"],
    )
    normalized = components.normalize(exact_log_partition(components))
    log_p = normalized.log_prob(data[:, None, :]) + mixture.log()
    nll = -log_p.logsumexp(1).sum()
    expected = dict(zip(leaves, torch.autograd.grad(nll, list(leaves.values())), strict=True))
    # Monte Carlo noise at 200,000 chains is well under 2 %; without the value errors are tens of %.
    assert gradient_error(exact_log_partition) < 0.03
    assert gradient_error(None) > 0.1
