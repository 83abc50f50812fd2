# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Chains, refusals and bookkeeping of the loss."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceEnum_ELBO

from pyro_ebm import nn
from pyro_ebm.distributions import BernoulliRBM, UnnormalizedGradientError
from pyro_ebm.infer import ContrastiveDivergence, exact_log_partition

DATA = torch.bernoulli(torch.full((30, 6), 0.5), generator=torch.Generator().manual_seed(0))


def empty_guide(*args: object) -> None:
    pass


def make_model(module: nn.RBM):
    def model(data: torch.Tensor) -> None:
        rbm = module()
        with pyro.plate("rows", len(data)):
            pyro.sample("v", rbm, obs=data)

    return model


@pytest.fixture
def model():
    return make_model(nn.RBM(6, 4, seed=0))


@pytest.mark.parametrize(
    "elbo", [Trace_ELBO, lambda: TraceEnum_ELBO(strict_enumeration_warning=False)]
)
def test_chains_move_once_a_gradient_and_never_for_the_value(model, elbo, monkeypatch):
    calls = []
    original = ContrastiveDivergence._negatives

    def counting(self, *args):
        before = self.chains.get("v")
        result = original(self, *args)
        calls.append(before is not self.chains["v"])
        return result

    monkeypatch.setattr(ContrastiveDivergence, "_negatives", counting)
    loss = ContrastiveDivergence(persistent=True, num_chains=7, elbo=elbo())
    loss.loss(model, empty_guide, DATA)
    assert loss.chains == {} and calls == []
    for step in range(1, 4):
        loss.loss_and_grads(model, empty_guide, DATA)
        assert sum(calls) == step
    before = loss.chains["v"].clone()
    loss.loss(model, empty_guide, DATA)
    assert torch.equal(before, loss.chains["v"]) and before.shape == (7, 6)


def test_chains_survive_in_the_state(model):
    loss = ContrastiveDivergence(persistent=True)
    loss.loss_and_grads(model, empty_guide, DATA)
    assert loss.chains["v"].shape == DATA.shape
    restored = ContrastiveDivergence(persistent=True)
    restored.load_state_dict(loss.state_dict())
    assert torch.equal(restored.chains["v"], loss.chains["v"])
    for one in (loss, restored):
        pyro.set_rng_seed(5)
        one.loss_and_grads(model, empty_guide, DATA)
    assert torch.equal(restored.chains["v"], loss.chains["v"])
    with pytest.raises(ValueError, match="'chains'"):
        restored.load_state_dict({})


def test_chains_of_other_parameters_are_refused(model):
    loss = ContrastiveDivergence(persistent=True)
    loss.chains["v"] = torch.zeros(10, 5)
    with pytest.raises(ValueError, match="chains of site 'v'"):
        loss.loss_and_grads(model, empty_guide, DATA)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1"),
        ({"num_chains": 0}, ValueError, "num_chains must be at least 1"),
        ({"elbo": Trace_ELBO}, TypeError, "elbo must be a pyro.infer.ELBO"),
        ({"elbo": JitTrace_ELBO()}, ValueError, "JitTrace_ELBO would freeze"),
        ({"elbo": Trace_ELBO(num_particles=2), "persistent": True}, ValueError, "vectorize"),
    ],
)
def test_impossible_options(options, error, match):
    with pytest.raises(error, match=match):
        ContrastiveDivergence(**options)


def test_plain_elbo_is_refused(model):
    """Without the loss, training would diverge while the reported loss looks excellent."""
    with pytest.raises(UnnormalizedGradientError, match="ContrastiveDivergence"):
        Trace_ELBO().loss_and_grads(model, empty_guide, DATA)


def test_unnormalised_guides_are_refused():
    module = nn.RBM(3, 2, seed=0)

    def model() -> None:
        pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))

    def guide() -> None:
        pyro.sample("z", module())

    with pytest.raises(UnnormalizedGradientError):
        ContrastiveDivergence().loss_and_grads(model, guide)


def test_fixed_and_normalised_machines_need_no_chains():
    fixed = BernoulliRBM(torch.ones(6, 2), torch.zeros(6), torch.zeros(2))
    normalized = fixed.normalize(exact_log_partition(fixed))

    def model(data: torch.Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("rows", len(data)):
            pyro.sample("v", fixed, obs=data)
            pyro.sample("w", normalized, obs=data)
            pyro.sample("x", dist.Normal(shift, 1.0), obs=data[:, 0])

    loss = ContrastiveDivergence(persistent=True)
    value = loss.loss_and_grads(model, empty_guide, DATA)
    assert loss.chains == {}
    nll = -(fixed.log_prob(DATA) + normalized.log_prob(DATA)).sum()
    nll -= dist.Normal(0.0, 1.0).log_prob(DATA[:, 0]).sum()
    assert value == pytest.approx(nll.item(), rel=1e-5)


def test_learning_recovers_the_distribution():
    """SVI with PCD on five units comes close to the truth; KL of the start is above 0.2."""
    torch.manual_seed(0)
    weight = 2.0 * torch.randn(5, 3)
    truth = BernoulliRBM(weight, -weight.sum(1) / 2, -weight.sum(0) / 2)
    truth = truth.normalize(exact_log_partition(truth))
    states = truth.visible.states(0, 32)
    p = truth.log_prob(states).exp()
    data = truth.sample((2000,))
    module = nn.RBM(5, 3, seed=1).init_from_data(data)
    loss = ContrastiveDivergence(num_steps=5, persistent=True, num_chains=1000)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.997})
    svi = SVI(make_model(module), empty_guide, optimizer, loss=loss)

    def divergence() -> float:
        with torch.no_grad():
            learnt = module()
            log_q = learnt.log_prob(states) - exact_log_partition(learnt)
        return (p * (p.log() - log_q)).sum().item()

    start = divergence()
    for _ in range(600):
        svi.step(data)
    # 0.005 to 0.010 with seeds 0 to 7 of data, start and chains.
    # 2,000 rows and 23 parameters: the maximum-likelihood fit itself is at about 23 / 4000 = 0.006.
    assert start > 0.2
    assert divergence() < 0.04


def test_elbo_module_interface():
    """`loss(model, guide)` is a torch module whose backward pass fills the gradients."""
    module = nn.RBM(6, 4, seed=0)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rbm = module

        def forward(self, data: torch.Tensor) -> None:
            make_model(self.rbm)(data)

    class Guide(torch.nn.Module):
        def forward(self, data: torch.Tensor) -> None:
            pass

    loss = ContrastiveDivergence(persistent=True)(Model(), Guide())
    loss(DATA).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
