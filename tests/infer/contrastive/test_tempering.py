# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Tempering in the negative phase: all replicas persist, and the gradient is that of the likelihood."""

from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM, units
from pyro_ebm.infer import BlockGibbs, ContrastiveDivergence, ParallelTempering
from pyro_ebm.infer.paths import GeometricPath, base_unit
from pyro_ebm.infer.paths.geometric import GeometricLadder

BETAS = [0.0, 0.3, 0.6, 1.0]
NUM_CHAINS = 30_000
#: Bound of |z| for tests of up to 24 entries: false alarm below 1e-7.
Z_BOUND = 6.0
EXTRA = {"v.replicas", "v.identity", "v.parity"}


def tempered(dist: RBM) -> ParallelTempering:
    return ParallelTempering(dist, betas=BETAS)


def empty_guide(*args: Any) -> None:
    pass


def parameters() -> dict[str, Tensor]:
    """Two modes, which one sweep of block Gibbs does not cross."""
    g = torch.Generator().manual_seed(1)
    noise = 0.3 * torch.randn(5, 3, generator=g, dtype=torch.float64)
    weight = 2.5 + noise
    return {
        "weight": weight,
        "visible_bias": -weight.sum(1) / 2 + 0.1,
        "hidden_bias": -weight.sum(0) / 2,
    }


def model(data: Tensor) -> None:
    rbm = BernoulliRBM(**{name: pyro.param(name, p.clone()) for name, p in parameters().items()})
    with pyro.plate("rows", len(data)):
        pyro.sample("x", rbm, obs=data)


def rows(count: int = 40) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.bernoulli(torch.full((count, 5), 0.4, dtype=torch.float64), generator=g)


def gradients(loss: ContrastiveDivergence, data: Tensor) -> dict[str, Tensor]:
    loss.loss_and_grads(model, empty_guide, data)
    return {n: p.grad for n, p in pyro.get_param_store().named_parameters()}


def exact_gradients(data: Tensor) -> dict[str, Tensor]:
    """Of the negative log-likelihood, every visible state written out."""
    leaves = {name: p.requires_grad_() for name, p in parameters().items()}

    def log_weight(v: Tensor) -> Tensor:
        field = v @ leaves["weight"] + leaves["hidden_bias"]
        return v @ leaves["visible_bias"] + torch.nn.functional.softplus(field).sum(-1)

    states = units.Bernoulli(torch.zeros(5, dtype=torch.float64)).states(0, 32)
    nll = len(data) * log_weight(states).logsumexp(0) - log_weight(data).sum()
    return dict(zip(leaves, torch.autograd.grad(nll, list(leaves.values())), strict=True))


def largest_z(got: dict[str, Tensor], expected: dict[str, Tensor], count: int) -> float:
    """Against the deviation of statistics of a bit, at most 1/2, over independent chains."""
    error = 0.5 * count / NUM_CHAINS**0.5
    return max(((got[n] - expected[n]) / error).abs().max().item() for n in expected)


def exact_replicas(num_chains: int) -> dict[str, Tensor]:
    rbm = BernoulliRBM(**parameters())
    path = GeometricPath(rbm, base_unit(rbm, "uniform"))
    levels = [path.machine(beta).sample((num_chains,)) for beta in BETAS]
    return {"v": levels[-1], "v.replicas": torch.stack(levels, 1)}


def equilibrium_loss(**options: Any) -> ContrastiveDivergence:
    loss = ContrastiveDivergence(persistent=True, num_chains=NUM_CHAINS, kernel=tempered, **options)
    state = exact_replicas(NUM_CHAINS)
    loss.chains["x"] = state.pop("v")
    loss.kernel_states["x"] = state
    return loss


class TestGradient:
    @pytest.mark.parametrize("num_steps", [1, 3])
    def test_persistent(self, num_steps: int) -> None:
        data = rows()
        got = gradients(equilibrium_loss(num_steps=num_steps), data)
        assert largest_z(got, exact_gradients(data), len(data)) < Z_BOUND

    def test_from_a_single_mode(self) -> None:
        """Chains that all start at zero: tempering brings them to equilibrium, block Gibbs does not."""
        data, z = rows(), []
        for kernel in (tempered, BlockGibbs):
            pyro.clear_param_store()
            loss = ContrastiveDivergence(
                num_steps=40, persistent=True, num_chains=NUM_CHAINS, kernel=kernel
            )
            loss.chains["x"] = torch.zeros(NUM_CHAINS, 5, dtype=torch.float64)
            got = gradients(loss, data)
            z.append(largest_z(got, exact_gradients(data), len(data)))
        assert z[0] < Z_BOUND < 3 * Z_BOUND < z[1], z

    def test_not_persistent(self) -> None:
        """Every gradient starts all levels at the data; long enough, it does not matter."""
        data = rows()
        loss = ContrastiveDivergence(num_steps=40, num_chains=NUM_CHAINS, kernel=tempered)
        got = gradients(loss, data)
        assert largest_z(got, exact_gradients(data), len(data)) < Z_BOUND
        assert loss.chains == {} and loss.kernel_states == {}

    def test_a_wrong_swap_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = GeometricLadder.swap_log_ratio
        monkeypatch.setattr(
            GeometricLadder,
            "swap_log_ratio",
            lambda self, *arguments: (0.5 * original(self, *arguments)[0], None),
        )
        data = rows()
        got = gradients(equilibrium_loss(num_steps=5), data)
        assert largest_z(got, exact_gradients(data), len(data)) > Z_BOUND


class TestPersistence:
    @staticmethod
    def loss(**options: Any) -> ContrastiveDivergence:
        return ContrastiveDivergence(persistent=True, num_chains=7, kernel=tempered, **options)

    def test_the_whole_state_goes_on(self) -> None:
        """Replicas, identities and turns are those that the gradient before has left."""
        loss, turns = self.loss(), []
        for _ in range(4):
            loss.loss_and_grads(model, empty_guide, rows())
            state = loss.kernel_states["x"]
            assert set(state) == EXTRA and loss.chains["x"].shape == (7, 5)
            assert state["v.replicas"].shape == (7, 4, 5)
            assert torch.equal(state["v.replicas"][:, -1], loss.chains["x"])
            turns.append(int(state["v.parity"][0]))
        assert turns == [1, 0, 1, 0]

    def test_as_one_long_chain(self) -> None:
        """Without learning, four gradients are four draws of one kernel."""
        start = exact_replicas(7)
        torch.manual_seed(5)
        loss = self.loss()
        loss.chains["x"] = start["v"]
        loss.kernel_states["x"] = {"v.replicas": start["v.replicas"]}
        for _ in range(4):
            loss.loss_and_grads(model, empty_guide, rows())
        torch.manual_seed(5)
        kernel = tempered(BernoulliRBM(**parameters()))
        kernel.chain_shape = torch.Size((7,))
        kernel.setup(0)
        state = start
        for _ in range(4):
            state = kernel.sample(state)
        assert torch.equal(loss.chains["x"], state["v"])
        assert all(torch.equal(loss.kernel_states["x"][name], state[name]) for name in EXTRA)

    def test_the_value_moves_nothing(self) -> None:
        loss = self.loss()
        loss.loss_and_grads(model, empty_guide, rows())
        before = loss.state_dict()
        loss.loss(model, empty_guide, rows())
        after = loss.state_dict()
        assert torch.equal(before["chains"]["x"], after["chains"]["x"])
        for name in EXTRA:
            assert torch.equal(
                before["kernel_states"]["x"][name], after["kernel_states"]["x"][name]
            )

    def test_saved_and_restored(self) -> None:
        loss = self.loss()
        loss.loss_and_grads(model, empty_guide, rows())
        restored = self.loss()
        restored.load_state_dict(loss.state_dict())
        for one in (loss, restored):
            torch.manual_seed(5)
            one.loss_and_grads(model, empty_guide, rows())
        assert torch.equal(loss.chains["x"], restored.chains["x"])
        for name, value in loss.kernel_states["x"].items():
            assert torch.equal(value, restored.kernel_states["x"][name])

    def test_states_of_before(self) -> None:
        """A state without those of kernels is one of block Gibbs."""
        loss = self.loss()
        loss.load_state_dict({"chains": {"x": torch.ones(7, 5)}})
        assert loss.kernel_states == {}
        loss.loss_and_grads(model, empty_guide, rows())
        assert set(loss.kernel_states["x"]) == EXTRA
        assert loss.chains["x"].dtype == torch.float64
        for wrong in (3, {"x": torch.zeros(3)}, {"x": {"v.replicas": 3}}):
            with pytest.raises(ValueError, match="'kernel_states' of state must be"):
                loss.load_state_dict({"chains": {}, "kernel_states": wrong})

    def test_chains_set_by_hand(self) -> None:
        """They are the last level; where their number does not fit, all levels start at them."""
        loss = self.loss()
        loss.loss_and_grads(model, empty_guide, rows())
        loss.chains["x"] = torch.ones(4, 5, dtype=torch.float64)
        loss.loss_and_grads(model, empty_guide, rows())
        assert loss.kernel_states["x"]["v.replicas"].shape == (4, 4, 5)

    def test_block_gibbs_has_nothing_more(self) -> None:
        for kernel in (None, BlockGibbs):
            loss = ContrastiveDivergence(persistent=True, num_chains=7, kernel=kernel)
            loss.loss_and_grads(model, empty_guide, rows())
            assert loss.kernel_states["x"] == {}


def test_learning_two_modes() -> None:
    """SVI with tempered chains learns the weights of two modes, 0.1 and 0.9; they start near 0.6."""
    data = torch.cat([torch.zeros(10, 5), torch.ones(90, 5)]).double()
    svi = SVI(
        model,
        empty_guide,
        pyro.optim.SGD({"lr": 0.001}),
        loss=ContrastiveDivergence(num_steps=2, persistent=True, num_chains=200, kernel=tempered),
    )
    for _ in range(150):
        svi.step(data)
    store = pyro.get_param_store()
    rbm = BernoulliRBM(**{name: store[name].detach() for name in parameters()})
    states = rbm.visible.states(0, 32)
    probability = torch.softmax(rbm.log_prob(states), 0)
    many = states.sum(1) > 2
    assert probability[many].sum().item() == pytest.approx(0.9, abs=0.12)
