# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The gradient of the trainer is that of maximum likelihood; the tests reject small errors in it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import GibbsSweep
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.training import TrainerConfig
from pyro_ebm.training.gradient import ContrastiveGradient
from tests import brute_force
from tests.distributions.families import CONTINUOUS, PAIR_IDS, PAIRS
from tests.training.machines import make_module, random_module, to_machine

#: Independent repetitions of a gradient, from which its standard error is taken.
REPETITIONS = 50
CHAINS = 400
#: A t of 49 degrees of freedom is beyond 8 with probability 2e-10; all tests of the file together
#: look at about 2,000 entries, so that a false alarm is rarer than 1e-6.
T_BOUND = 8.0

Gradients = dict[str, Tensor]
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=PAIR_IDS)
centred_or_not = pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])


def learnt(module: nn.RBM) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def differentiate(module: nn.RBM, value: Tensor) -> Gradients:
    parameters = learnt(module)
    return dict(zip(parameters, torch.autograd.grad(value, [*parameters.values()]), strict=True))


def exact_gradient(module: nn.RBM, data: Tensor) -> Gradients:
    """Gradient of the mean negative log-likelihood, by autograd through the exact log Z."""
    dist = module()
    families = {module.visible.family, module.hidden.family}
    if "relu" in families and families <= set(CONTINUOUS):
        # No closed form of log Z: d log Z = -E[dF], with p(v) by quadrature of the energy.
        v, _, joint = brute_force.joint(to_machine(module))
        p = torch.as_tensor(joint.sum(1))
        log_z = -(p * dist.free_energy(torch.as_tensor(v))).sum()
        return differentiate(module, dist.free_energy(data).mean() + log_z)
    return differentiate(module, -dist.normalize(exact_log_partition(dist)).log_prob(data).mean())


def other_data(module: nn.RBM, rows: int = 20) -> Tensor:
    """States that the module does not explain, or the gradient would vanish."""
    with torch.no_grad():
        unit = module.visible()
        return unit.sample(torch.linspace(-1, 1, unit.size).to(module.weight).expand(rows, -1))


def equilibrium(module: nn.RBM, chains: int) -> Tensor:
    # 60 sweeps forget the start where nothing can be enumerated: these couplings are weak.
    return module(num_gibbs_steps=60).sample((chains,))


def assert_unbiased(
    module: nn.RBM,
    kind: type[ContrastiveGradient] = ContrastiveGradient,
    *,
    chains: int = CHAINS,
    num_steps: int = 1,
) -> None:
    """Gradients from chains in equilibrium have the exact gradient as their mean."""
    data = other_data(module)
    expected = exact_gradient(module, data)
    start = equilibrium(module, REPETITIONS * chains)
    draws: dict[str, list[Tensor]] = {name: [] for name in expected}
    for part in start.split(chains):
        gradient = kind(module, TrainerConfig(num_steps=num_steps, persistent=True))
        gradient.phase.chains = part
        gradient(data)
        for name, parameter in learnt(module).items():
            draws[name].append(parameter.grad.clone())
    for name, rows in draws.items():
        table = torch.stack(rows)
        # A gradient that cannot vary must be right to rounding.
        error = (table.std(0) / REPETITIONS**0.5).clamp(min=1e-11)
        t = ((table.mean(0) - expected[name]) / error).abs().max().item()
        assert t < T_BOUND, f"{name}: {t:.1f} standard errors from the exact gradient"


def assert_exact_phases(
    module: nn.RBM, kind: type[ContrastiveGradient] = ContrastiveGradient
) -> None:
    """With given states in both phases the gradient is a difference of free energies, to rounding."""
    batch, negative = other_data(module, 7), other_data(module, 4).flip(-1)
    if module.visible.family == "relu":
        negative = negative + 0.1

    class Frozen(kind):
        def _negative_phase(self, dist, sweep, batch, theta, keep):
            return negative, sweep.hidden_theta(negative), keep

    gradient = Frozen(module, TrainerConfig())
    # Twice: what an earlier call left in .grad must not matter.
    gradient(negative)
    gradient(batch)
    hidden_mean = gradient.hidden_mean
    dist = module()
    value = dist.free_energy(batch).mean() - dist.free_energy(negative).mean()
    for name, expected in differentiate(module, value).items():
        got = learnt(module)[name].grad
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    brute = brute_force.hidden_mean(to_machine(module), batch.numpy()).mean(0)
    torch.testing.assert_close(hidden_mean, torch.as_tensor(brute), rtol=1e-8, atol=1e-8)


@every_pair
@centred_or_not
def test_expectation_is_the_gradient_of_the_likelihood(pair, centered):
    assert_unbiased(random_module(pair, centered=centered, learn_precision=True))


@every_pair
@centred_or_not
def test_both_phases_are_exact(pair, centered):
    assert_exact_phases(random_module(pair, centered=centered, learn_precision=True))


@pytest.mark.parametrize("pair", [("gaussian", "relu"), ("relu", "gaussian")], ids="-".join)
def test_a_precision_that_is_not_learnt_gets_no_gradient(pair):
    module = random_module(pair, learn_precision=False)
    assert_exact_phases(module)
    for layer in (module.visible, module.hidden):
        # Not even after the module was called, which registers its parameters with Pyro.
        assert not layer.log_precision.requires_grad and layer.log_precision.grad is None


# --- the tests above see small errors -----------------------------------------------------------


class SignError(ContrastiveGradient):
    """The biases climb the wrong way."""

    def _set_units(self, dist, positive, negative):
        super()._set_units(dist, negative, positive)


class MissingMean(ContrastiveGradient):
    """The negative phase is a sum over chains divided by the rows of the batch."""

    def _set_weight(self, dist, positive, negative):
        factor = len(negative.v) / len(positive.v)
        super()._set_weight(dist, positive, replace(negative, v=negative.v * factor))


class MissingOffsets(ContrastiveGradient):
    """The weights' gradient of a machine without offsets."""

    def _set_weight(self, dist, positive, negative):
        self.module.centered = False
        super()._set_weight(dist, positive, negative)
        self.module.centered = True


class SampledStatistics(ContrastiveGradient):
    """The positive phase of the weights uses rounded instead of mean hidden states."""

    def _set_weight(self, dist, positive, negative):
        super()._set_weight(dist, replace(positive, h=positive.h.round()), negative)


def strong_module(centered: bool = True) -> nn.RBM:
    """Bits whose couplings are strong enough for small errors to have large effects."""
    module = make_module(("bernoulli", "bernoulli"), centered=centered)
    with torch.no_grad():
        module.weight.copy_(2.5 * torch.tensor([[1, -1, 1], [1, 1, -1], [-1, 1, 1]]))
        module.visible.bias.copy_(torch.tensor([-0.5, -1.0, 0.0]))
        module.hidden.bias.copy_(torch.tensor([0.0, -1.0, -0.5]))
        if centered:
            module.visible_offset.fill_(0.4)
            module.hidden_offset.fill_(0.6)
    return module


FAULTS = [SignError, MissingMean, MissingOffsets, SampledStatistics]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("check", [assert_unbiased, assert_exact_phases])
def test_a_wrong_formula_is_rejected(check, fault):
    check(strong_module())
    with pytest.raises(AssertionError, match=r"standard errors|not close"):
        check(strong_module(), fault)


def sensitive_module() -> nn.RBM:
    """A ferromagnet near its transition: of many random ones, the most upset by wrong fields."""
    module = nn.RBM(4, 4, seed=0)
    weight = [
        [0.5, 1.3, 0.5, 0.9],
        [2.1, 1.7, 0.4, 1.0],
        [1.2, 0.8, 1.1, 3.6],
        [2.1, 0.6, 0.8, 2.3],
    ]
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight))
        module.visible.bias.copy_(torch.tensor([-2.4, -2.5, -2.7, -3.1]))
        module.hidden.bias.copy_(torch.tensor([-2.4, -1.4, -0.3, -3.4]))
    return module


@pytest.mark.parametrize("factors", [(1.02, 1.0), (1.0, 1.02)], ids=["hidden", "visible"])
def test_a_conditional_that_is_2_percent_wrong_is_rejected(factors, monkeypatch):
    """Chains that move by fields 2 % too strong; the statistics themselves stay right."""
    # The exact law after ten such sweeps is 0.013 standard deviations off: 14 standard errors.
    settings = {"chains": 24_000, "num_steps": 10}

    def wrong_step(self, theta):
        h = self._hidden.natural_sample(theta * factors[0], self.generator)
        v = self._visible.natural_sample(self.visible_theta(h) * factors[1], self.generator)
        return v, self.hidden_theta(v)

    monkeypatch.setattr(GibbsSweep, "step_from_theta", wrong_step)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_unbiased(sensitive_module(), **settings)


def test_the_same_number_of_right_steps_is_accepted():
    assert_unbiased(sensitive_module(), chains=24_000, num_steps=10)


# --- where the chains start and how they go on --------------------------------------------------


def copying_module() -> nn.RBM:
    """A machine whose Gibbs sweep returns the state that it started from."""
    module = nn.RBM(4, 4, seed=0)
    with torch.no_grad():
        module.weight.copy_(200.0 * torch.eye(4))
        module.visible.bias.fill_(-100.0)
        module.hidden.bias.fill_(-100.0)
    return module


def negative_states(gradient: ContrastiveGradient, batch: Tensor, monkeypatch) -> Tensor:
    seen = []
    original = ContrastiveGradient._negative_phase

    def recording(self, *args):
        seen.append(original(self, *args))
        return seen[-1]

    monkeypatch.setattr(ContrastiveGradient, "_negative_phase", recording)
    gradient(batch)
    return seen[0][0]


def test_cd_starts_at_the_rows_of_the_batch(monkeypatch):
    batch = torch.eye(4)[torch.tensor([0, 3, 3, 1, 2])]
    gradient = ContrastiveGradient(
        copying_module(), TrainerConfig(num_steps=3, persistent=False, num_chains=None)
    )
    assert torch.equal(negative_states(gradient, batch, monkeypatch), batch)
    assert gradient.chains is None


def test_cd_with_another_number_of_chains_starts_at_random_rows(monkeypatch):
    batch = torch.eye(4)[torch.tensor([0, 0, 0, 1])]
    gradient = ContrastiveGradient(
        copying_module(), TrainerConfig(num_steps=1, persistent=False, num_chains=4000)
    )
    states = negative_states(gradient, batch, monkeypatch)
    assert states.shape == (4000, 4)
    # Binomial(4000, 3/4), standard deviation 27.4: six of them.
    assert abs(states[:, 0].sum() - 3000) < 165
    assert states[:, 0].sum() + states[:, 1].sum() == 4000


def test_persistent_chains_go_on_from_where_they_were(monkeypatch):
    batch = torch.eye(4)
    module = copying_module()
    gradient = ContrastiveGradient(
        module, TrainerConfig(num_steps=2, persistent=True, num_chains=3)
    )
    gradient.phase.chains = torch.eye(4)[1:].clone()
    states = negative_states(gradient, batch, monkeypatch)
    assert torch.equal(states, torch.eye(4)[1:]) and torch.equal(gradient.chains, states)


def test_persistent_chains_are_left_where_they_went(monkeypatch):
    module = copying_module()
    with torch.no_grad():
        module.visible.bias.fill_(500.0)
    gradient = ContrastiveGradient(
        module, TrainerConfig(num_steps=1, persistent=True, num_chains=3)
    )
    gradient.phase.chains = torch.zeros(3, 4)
    states = negative_states(gradient, torch.eye(4), monkeypatch)
    assert torch.equal(states, torch.ones(3, 4)) and torch.equal(gradient.chains, states)


@pytest.mark.parametrize(("num_chains", "expected"), [(None, 5), (7, 7)])
def test_persistent_chains_start_at_the_visible_layer_alone(num_chains, expected, monkeypatch):
    module = nn.RBM(4, 2, seed=0)
    with torch.no_grad():
        module.weight.zero_()
        module.visible.bias.copy_(torch.tensor([200.0, -200.0, 200.0, -200.0]))
    gradient = ContrastiveGradient(
        module, TrainerConfig(num_steps=1, persistent=True, num_chains=num_chains, batch_size=5)
    )
    states = negative_states(gradient, torch.zeros(5, 4), monkeypatch)
    assert torch.equal(states, torch.tensor([1.0, 0.0, 1.0, 0.0]).expand(expected, 4))


def test_more_steps_forget_the_start():
    """CD-k of many steps is the likelihood gradient; CD-1 from the data is far from it."""
    module = strong_module()
    data = torch.ones(20_000, 3, dtype=torch.float64)
    expected = exact_gradient(module, data)
    error = []
    for num_steps in (1, 200):
        ContrastiveGradient(
            module, TrainerConfig(num_steps=num_steps, persistent=False, num_chains=None)
        )(data)
        error.append((module.visible.bias.grad - expected["visible.bias"]).abs().max().item())
    # The mean of 20,000 bits has a standard error of at most 0.0036: six of them.
    assert error[0] > 0.1 and error[1] < 0.022
