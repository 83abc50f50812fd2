# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Contrastive divergence with deep machines: the gradient of the mean-field bound less that of log Z."""

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM, units
from pyro_ebm.infer import (
    BlockGibbs,
    ContrastiveDivergence,
    ParallelTempering,
    exact_log_partition,
)
from pyro_ebm.infer.contrastive.negative import even_states
from tests import deep_machines
from tests.infer.reference import Z_LIMIT, z_scores

SIZES = (4, 3, 2)
DEEPER = (3, 2, 3, 2)
NUM_ROWS, NUM_CHAINS = 20, 10_000
Parameters = dict[str, Tensor]


def parameters(sizes: tuple[int, ...] = SIZES) -> Parameters:
    torch.manual_seed(len(sizes))
    own = {f"bias{n}": torch.randn(size).double() for n, size in enumerate(sizes)}
    own |= {
        f"weight{n}": torch.randn(sizes[n - 1], sizes[n]).double() for n in range(1, len(sizes))
    }
    return own


def machine_of(own: Parameters, tolerance: float = 1e-11) -> DBM:
    depth = len(own) // 2
    layers = [units.Bernoulli(own[f"bias{n}"]) for n in range(depth + 1)]
    weights = [own[f"weight{n}"] for n in range(1, depth + 1)]
    return DBM(layers, weights, mean_field_tolerance=tolerance)


def in_store(own: Parameters, **options: float) -> DBM:
    store = {name: pyro.param(name, value.clone()) for name, value in own.items()}
    return machine_of(store, **options)


def rows(num_visible: int = SIZES[0]) -> Tensor:
    torch.manual_seed(2)
    return torch.bernoulli(torch.full((NUM_ROWS, num_visible), 0.4)).double()


def empty_guide(*args: object) -> None:
    pass


def products(layers: list[Tensor]) -> Parameters:
    """What every parameter multiplies in -E, by row."""
    found = {f"bias{n}": x for n, x in enumerate(layers)}
    pairs = itertools.pairwise(layers)
    return found | {
        f"weight{n}": a[:, :, None] * b[:, None, :] for n, (a, b) in enumerate(pairs, 1)
    }


def positive(own: Parameters, v: Tensor) -> Parameters:
    """Gradient of the sum of the rows' bounds: of -E at the means of q, which is held."""
    means = machine_of(own).mean_field(v).means
    return {name: x.sum(0) for name, x in products([v, *means]).items()}


def negative(own: Parameters) -> tuple[Parameters, Parameters]:
    """Gradient of log Z and the deviation of what a state of all layers says of it, by enumeration."""
    states, p = deep_machines.joint(deep_machines.to_deep(machine_of(own)))
    index = torch.as_tensor(p).nonzero().T
    every = [torch.as_tensor(x)[i] for x, i in zip(states, index, strict=True)]
    weights = torch.as_tensor(p)[tuple(index)]
    found = products(every)
    mean = {name: torch.tensordot(weights, x, 1) for name, x in found.items()}
    deviation = {name: (m - m.square()).clamp(min=0).sqrt() for name, m in mean.items()}
    return mean, deviation


def gradients(
    loss: ContrastiveDivergence, model: Any, *args: Any, guide: Any = empty_guide
) -> Parameters:
    pyro.clear_param_store()
    loss.loss_and_grads(model, guide, *args)
    return {name: p.grad for name, p in pyro.get_param_store().named_parameters()}


def worst(got: Parameters, own: Parameters, v: Tensor, scale: float = NUM_ROWS) -> float:
    """Largest error of a gradient of minus the bound less log Z, in standard errors of the chains."""
    mean, deviation = negative(own)
    data = positive(own, v)
    z = [
        (got[name] + data[name] * scale / len(v) - scale * mean[name])
        / (scale * deviation[name] / NUM_CHAINS**0.5).clamp(min=1e-9)
        for name in own
    ]
    return max(x.abs().max().item() for x in z)


def plain(own: Parameters, data: Tensor) -> None:
    machine = in_store(own)
    with pyro.plate("rows", len(data)):
        pyro.sample("v", machine, obs=data)


def subsampled(own: Parameters, data: Tensor) -> None:
    """Half of twice the rows."""
    machine = in_store(own)
    index = torch.arange(len(data))
    with pyro.plate("rows", 2 * len(data), subsample=index), pyro.poutine.scale(scale=0.5):
        pyro.sample("v", machine, obs=data)


def masked(own: Parameters, data: Tensor) -> None:
    both, keep = torch.cat([data, 1.0 - data]), torch.arange(2 * len(data)) < len(data)
    machine = in_store(own)
    with pyro.plate("rows", len(both)), pyro.poutine.mask(mask=keep):
        pyro.sample("v", machine, obs=both)


def event(own: Parameters, data: Tensor) -> None:
    pyro.sample("v", in_store(own).expand([len(data)]).to_event(1), obs=data)


MODELS = [plain, subsampled, masked, event]


def in_equilibrium(own: Parameters, side: str = "visible", **options: Any) -> ContrastiveDivergence:
    loss = ContrastiveDivergence(persistent=True, num_chains=NUM_CHAINS, side=side, **options)
    machine = machine_of(own).bipartite()
    machine = machine if side == "visible" else machine.transpose()
    loss.chains["v"] = machine.sample((NUM_CHAINS,))
    return loss


class Still(BlockGibbs):
    """Hands its chains back as they are."""

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(params)


class TestGradient:
    @pytest.mark.parametrize("model", MODELS)
    def test_persistent(self, model: Any) -> None:
        own, data = parameters(), rows()
        assert worst(gradients(in_equilibrium(own), model, own, data), own, data) < Z_LIMIT

    @pytest.mark.parametrize("side", ["visible", "hidden"])
    def test_three_hidden_layers(self, side: str) -> None:
        own, data = parameters(DEEPER), rows(DEEPER[0])
        elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
        loss = in_equilibrium(own, side, elbo=elbo)
        assert worst(gradients(loss, plain, own, data), own, data) < Z_LIMIT
        width = sum(DEEPER[0::2] if side == "visible" else DEEPER[1::2])
        assert loss.chains["v"].shape == (NUM_CHAINS, width) and loss.sides == {"v": side}

    @pytest.mark.parametrize("model", MODELS)
    def test_from_the_rows(self, model: Any) -> None:
        """Many steps from the data reach the machine's law."""
        own, data = parameters(), rows()
        loss = ContrastiveDivergence(num_steps=40, num_chains=NUM_CHAINS)
        assert worst(gradients(loss, model, own, data), own, data) < Z_LIMIT

    def test_of_given_chains(self) -> None:
        """Without noise: it is the score of the chains as they are after the step."""
        own, data = parameters(), rows()
        loss = ContrastiveDivergence(persistent=True, num_chains=7)
        got = gradients(loss, plain, own, data)
        v, h2 = machine_of(own).split_even(loss.chains["v"])
        h1 = torch.sigmoid(own["bias1"] + v @ own["weight1"] + h2 @ own["weight2"].T)
        for name, x in products([v, h1, h2]).items():
            expected = NUM_ROWS * x.mean(0) - positive(own, data)[name]
            torch.testing.assert_close(got[name], expected, rtol=0, atol=1e-8)

    def test_a_wrong_machine_is_noticed(self) -> None:
        """The statistical tests have power: chains of a machine with a weaker top are refused."""
        own, data = parameters(), rows()
        loss = in_equilibrium(own | {"weight2": 0.3 * own["weight2"]}, kernel=Still)
        assert worst(gradients(loss, plain, own, data), own, data) > 2 * Z_LIMIT


class TestValue:
    @pytest.mark.parametrize("model", MODELS)
    def test_minus_the_bound_and_log_z(self, model: Any) -> None:
        own, data = parameters(), rows()
        machine = machine_of(own)
        log_z = deep_machines.log_partition(deep_machines.to_deep(machine)).real
        expected = NUM_ROWS * log_z - machine.mean_field(data).bound.sum().item()
        loss = ContrastiveDivergence(log_partition=exact_log_partition)
        pyro.clear_param_store()
        assert loss.loss(model, empty_guide, own, data) == pytest.approx(expected, abs=1e-9)
        got = loss.loss_and_grads(model, empty_guide, own, data)
        assert got == pytest.approx(expected, abs=1e-9)

    def test_is_an_upper_bound(self) -> None:
        """Of the negative log-likelihood, and close to it in a small machine."""
        own, data = parameters(), rows()
        loss = ContrastiveDivergence(log_partition=exact_log_partition)
        deep = deep_machines.to_deep(machine_of(own))
        log_p = deep_machines.log_p_star(deep, data.numpy()).real
        nll = NUM_ROWS * deep_machines.log_partition(deep).real - log_p.sum()
        pyro.clear_param_store()
        excess = loss.loss(plain, empty_guide, own, data) - nll
        assert 0.0 < excess < 0.2 * NUM_ROWS


class TestLatent:
    """A machine as the prior of a latent site."""

    SEEN = torch.tensor([[0.9, 0.2, -0.3, 1.4], [0.1, 0.6, 1.1, -0.2]]).double()

    def model(self, own: Parameters, tolerance: float = 1e-11) -> None:
        machine = in_store(own, tolerance=tolerance)
        with pyro.plate("rows", 2):
            v = pyro.sample("v", machine)
            pyro.sample("y", dist.Normal(v, 0.5).to_event(1), obs=self.SEEN)

    def test_at_a_point(self) -> None:
        own = parameters()
        v = (self.SEEN > 0.5).double()

        def guide(own: Parameters) -> None:
            with pyro.plate("rows", 2):
                pyro.sample("v", dist.Delta(v, event_dim=1))

        loss = in_equilibrium(own, log_partition=exact_log_partition)
        got = gradients(loss, self.model, own, guide=guide)
        assert worst(got, own, v, scale=2) < Z_LIMIT
        machine = machine_of(own)
        log_z = deep_machines.log_partition(deep_machines.to_deep(machine)).real
        rest = dist.Normal(v, 0.5).log_prob(self.SEEN).sum()
        expected = 2 * log_z - machine.mean_field(v).bound.sum() - rest
        value = loss.loss(self.model, guide, own)
        assert value == pytest.approx(expected.item(), abs=1e-9)

    @pytest.mark.parametrize("persistent", [False, True])
    def test_guide_of_bits(self, persistent: bool) -> None:
        """With the gradient of the guide by the score function, both sides learn."""
        own = parameters()

        def guide(own: Parameters, tolerance: float) -> None:
            logits = pyro.param("logits", torch.zeros(2, 4).double())
            with pyro.plate("rows", 2):
                pyro.sample("v", dist.Bernoulli(logits=logits).to_event(1))

        torch.manual_seed(0)
        pyro.clear_param_store()
        elbo = Trace_ELBO(num_particles=10, vectorize_particles=True)
        loss = ContrastiveDivergence(
            2, persistent, num_chains=50, elbo=elbo, log_partition=exact_log_partition
        )
        svi = SVI(self.model, guide, pyro.optim.Adam({"lr": 0.1}), loss=loss)
        values = torch.tensor([svi.step(own, 1e-4) for _ in range(24)])
        assert values[-8:].mean() < values[:8].mean() - 1.0


class TestChains:
    @pytest.mark.parametrize("sizes", [SIZES, DEEPER, (3, 2, 2, 2, 3)])
    def test_start_at_the_mean_field(self, sizes: tuple[int, ...]) -> None:
        machine = machine_of(parameters(sizes))
        v = torch.ones(sizes[0]).double().expand(10_000, -1)
        visible, *above = machine.split_even(even_states(machine, v))
        assert torch.equal(visible, v)
        expected = machine.mean_field(v[0]).means
        for number, h in enumerate(above):
            assert z_scores(h, expected[2 * number + 1]).abs().max() < Z_LIMIT

    def test_go_on(self) -> None:
        own = parameters()
        loss, states = ContrastiveDivergence(persistent=True), []
        for count in (5, 3):
            gradients(loss, plain, own, rows()[:count])
            states.append(loss.chains["v"].clone())
        assert [tuple(x.shape) for x in states] == [(5, 6), (5, 6)]
        assert not torch.equal(*states)
        other = ContrastiveDivergence(persistent=True)
        other.load_state_dict(loss.state_dict())
        assert torch.equal(other.chains["v"], loss.chains["v"])

    def test_tempering(self) -> None:
        own, data = parameters(), rows()

        def kernel(machine: RBM) -> ParallelTempering:
            return ParallelTempering(machine, betas=(0.0, 0.5, 1.0))

        loss = ContrastiveDivergence(20, True, NUM_CHAINS, kernel=kernel)
        assert worst(gradients(loss, plain, own, data), own, data) < Z_LIMIT
        assert loss.kernel_states["v"]

    def test_by_key(self) -> None:
        own = parameters()

        def model(data: Tensor, keys: Tensor) -> None:
            machine = in_store(own)
            with pyro.plate("rows", len(data)):
                pyro.sample("v", machine, obs=data, infer={"chain_key": keys})

        loss = ContrastiveDivergence(persistent=True, num_chains=5)
        got = gradients(loss, model, rows()[:3], torch.tensor([4, 4, 9]))
        assert loss.keyed_chains["v"].states.shape == (2, 5, 6)
        assert all(torch.isfinite(g).all() for g in got.values())


def gradients_of(make: Callable[[Parameters], Any], own: Parameters, persistent: bool) -> Any:
    def model(data: Tensor) -> None:
        store = {name: pyro.param(name, value.clone()) for name, value in own.items()}
        with pyro.plate("rows", len(data)):
            pyro.sample("v", make(store), obs=data)

    torch.manual_seed(3)
    return gradients(ContrastiveDivergence(2, persistent), model, rows())


@pytest.mark.parametrize("persistent", [False, True])
def test_depth_one_is_the_rbm(persistent: bool) -> None:
    own = parameters((4, 3))

    def rbm_of(own: Parameters) -> RBM:
        layers = (units.Bernoulli(own[f"bias{n}"]) for n in range(2))
        return RBM(*layers, own["weight1"])

    deep, flat = (gradients_of(make, own, persistent) for make in (machine_of, rbm_of))
    assert all(torch.equal(deep[name], flat[name]) for name in own)


def test_rows_with_parameters_of_their_own_are_refused() -> None:
    own = parameters()
    own["bias1"] = own["bias1"].expand(NUM_ROWS, -1)
    with pytest.raises(ValueError, match="parameters have no batch shape, got \\(20,\\)"):
        gradients(ContrastiveDivergence(), plain, own, rows())
