# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Chains by key: which move, where they start, how they are kept, and what a row gets."""

from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.infer import (
    BlockGibbs,
    ContrastiveDivergence,
    ParallelTempering,
    exact_log_partition,
)
from pyro_ebm.infer.contrastive import loss as loss_module
from pyro_ebm.infer.contrastive.keyed import KeyedChains
from tests.infer.contrastive.conditional_machines import (
    NUM_HIDDEN,
    NUM_VISIBLE,
    Contexts,
    empty_guide,
    largest_z,
)

Z_BOUND = 6.5
NUM_CONTEXTS = 4


def row_model(contexts: Contexts, key: Any = None):
    """A machine for every row, as `nbm.condition(x)` gives them; the key is the context's number."""

    def model(index: Tensor, data: Tensor) -> None:
        used = index if key is None else key
        with pyro.plate("rows", len(data)):
            pyro.sample("y", contexts.condition(index), obs=data, infer={"chain_key": used})

    return model


@pytest.fixture(params=["gaussian", "bernoulli"])
def contexts(request: pytest.FixtureRequest) -> Contexts:
    return Contexts(request.param, "ising", NUM_CONTEXTS)


def size_of(contexts: Contexts) -> int:
    return NUM_HIDDEN if contexts.visible == "gaussian" else NUM_VISIBLE


def step(loss: ContrastiveDivergence, contexts: Contexts, index: list[int]) -> None:
    rows = torch.tensor(index)
    loss.loss_and_grads(row_model(contexts), empty_guide, rows, contexts.sample(rows, seed=9))


class TestPersistent:
    def test_only_present_keys_move_and_keys_are_added(self, contexts: Contexts) -> None:
        torch.manual_seed(0)
        loss = ContrastiveDivergence(persistent=True, num_chains=50)
        step(loss, contexts, [2, 0, 2])
        chains = loss.keyed_chains["y"]
        assert chains.keys.tolist() == [0, 2]
        assert chains.states.shape == (2, 50, size_of(contexts))
        before = chains.states.clone()
        step(loss, contexts, [2, 2, 2, 3])
        assert chains.keys.tolist() == [0, 2, 3]
        after = chains.states
        assert torch.equal(before[0], after[0])
        assert not torch.equal(before[1], after[1])
        loss.loss(row_model(contexts), empty_guide, torch.tensor([1]), after.new_zeros(1, 3))
        assert chains.keys.tolist() == [0, 2, 3] and torch.equal(after, chains.states)
        assert loss.chains == {}

    @pytest.mark.parametrize(
        "elbo", [Trace_ELBO, lambda: TraceEnum_ELBO(strict_enumeration_warning=False)]
    )
    def test_every_key_moves_once(self, contexts: Contexts, elbo, monkeypatch) -> None:
        """However many rows a key has: the machines that move have one batch element a key."""
        moved = []

        def counting(machine: RBM, chains: Tensor, *args: Any) -> Any:
            moved.append((machine.batch_shape, chains.shape[:2]))
            return chains, {}

        monkeypatch.setattr(loss_module, "move_chains", counting)
        loss = ContrastiveDivergence(persistent=True, num_chains=5, elbo=elbo())
        for _ in range(2):
            step(loss, contexts, [3, 1, 3, 3])
        assert moved == [((2,), (5, 2))] * 2

    def test_a_second_run_in_a_gradient_moves_the_other_keys(self, contexts: Contexts) -> None:
        """A model that runs once a particle, say, with other rows each time."""
        torch.manual_seed(0)
        loss = ContrastiveDivergence(persistent=True, num_chains=50)
        model = loss._normalizing(row_model(contexts))
        states = []
        for keys in ([0, 1], [1, 2]):
            index = torch.tensor(keys)
            trace = poutine.trace(model).get_trace(index, contexts.sample(index))
            trace.compute_log_prob()
            states.append(loss.keyed_chains["y"].get([1]).clone())
        assert loss.keyed_chains["y"].keys.tolist() == [0, 1, 2]
        assert torch.equal(*states)

    def test_default_number_of_chains(self, contexts: Contexts) -> None:
        loss = ContrastiveDivergence(persistent=True)
        step(loss, contexts, [1, 1])
        assert loss.keyed_chains["y"].states.shape[:2] == (1, 10)

    @pytest.mark.parametrize("visible", ["gaussian", "bernoulli"])
    def test_new_keys_start_at_their_rows(self, visible: str, monkeypatch) -> None:
        """At the visible side at the rows themselves, at the hidden side at a draw given them."""
        monkeypatch.setattr(loss_module, "move_chains", lambda m, chains, *rest: (chains, {}))
        contexts = Contexts(visible, "ising", NUM_CONTEXTS)
        index = torch.tensor([0, 3, 0, 3, 3])
        data = contexts.sample(index)
        loss = ContrastiveDivergence(persistent=True, num_chains=7, side="visible")
        loss.loss_and_grads(row_model(contexts), empty_guide, index, data)
        for key in (0, 3):
            states = loss.keyed_chains["y"].get([key])[:, 0]
            assert set(map(tuple, states.tolist())) == set(map(tuple, data[index == key].tolist()))
        torch.manual_seed(1)
        loss = ContrastiveDivergence(persistent=True, num_chains=20_000, side="hidden")
        loss.loss_and_grads(row_model(contexts), empty_guide, index[:1], data[:1])
        start = loss.keyed_chains["y"].get([0])[:, 0]
        mean = contexts.condition(index[0]).hidden_given(data[0]).mean.detach()
        assert ((start.mean(0) - mean) * len(start) ** 0.5).abs().max() < Z_BOUND

    def test_masked_rows_start_no_chain(self, contexts: Contexts, monkeypatch) -> None:
        monkeypatch.setattr(loss_module, "move_chains", lambda m, chains, *rest: (chains, {}))
        index = torch.tensor([0, 0, 0])
        data = contexts.sample(index)
        keep = torch.tensor([True, False, True])

        def model() -> None:
            with pyro.plate("rows", 3), poutine.mask(mask=keep | (index > 0)):
                pyro.sample(
                    "y", contexts.condition(index).mask(keep), obs=data, infer={"chain_key": index}
                )

        loss = ContrastiveDivergence(persistent=True, num_chains=6, side="visible")
        loss.loss_and_grads(model, empty_guide)
        states = set(map(tuple, loss.keyed_chains["y"].states[0].tolist()))
        assert states == set(map(tuple, data[keep].tolist()))

    def test_restored_bit_by_bit(self, contexts: Contexts, tmp_path) -> None:
        torch.manual_seed(2)
        loss = ContrastiveDivergence(persistent=True, num_chains=5)
        step(loss, contexts, [2, 0])
        torch.save(loss.state_dict(), tmp_path / "chains.pt")
        restored = ContrastiveDivergence(persistent=True, num_chains=5)
        restored.load_state_dict(torch.load(tmp_path / "chains.pt", weights_only=True))
        results = []
        for one in (loss, restored):
            torch.manual_seed(3)
            for index in ([0, 1], [3, 2, 0]):
                step(one, contexts, index)
            results.append(one.keyed_chains["y"].state_dict())
        assert torch.equal(results[0]["keys"], results[1]["keys"])
        assert results[0]["keys"].tolist() == [0, 2, 1, 3]
        assert torch.equal(results[0]["states"], results[1]["states"])

    def test_kernels(self, contexts: Contexts) -> None:
        loss = ContrastiveDivergence(persistent=True, num_chains=5, kernel=BlockGibbs)
        step(loss, contexts, [2, 0])
        assert loss.keyed_chains["y"].states.shape == (2, 5, NUM_VISIBLE)
        loss = ContrastiveDivergence(
            persistent=True, kernel=lambda dist: ParallelTempering(dist, betas=[0.0, 1.0])
        )
        with pytest.raises(ValueError, match="kernel whose state is the chains alone"):
            step(loss, contexts, [2, 0])

    def test_dtypes(self) -> None:
        loss = ContrastiveDivergence(persistent=True, num_chains=5)
        for dtype in (torch.float32, torch.float64):
            step(loss, Contexts("gaussian", "ising", NUM_CONTEXTS, dtype), [2, 0, 2])
            assert loss.keyed_chains["y"].states.dtype == dtype

    def test_shapes_of_other_machines_are_refused(self, contexts: Contexts) -> None:
        loss = ContrastiveDivergence(persistent=True)
        state = {"keys": torch.tensor([0]), "states": torch.zeros(1, 10, 5)}
        loss.load_state_dict({"chains": {}, "keyed_chains": {"y": state}, "sides": {}})
        with pytest.raises(ValueError, match="chains of site 'y' have 5 units"):
            step(loss, contexts, [0])


def exact(contexts: Contexts, index: Tensor, data: Tensor) -> Tensor:
    return contexts.gradient(contexts.nll(data, index))


@pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "from data"])
@pytest.mark.parametrize("num_chains", [None, 40])
def test_gradient_of_rows_with_keys(
    contexts: Contexts, num_chains: int | None, persistent: bool
) -> None:
    index = torch.tensor([3, 0, 3, 1, 3, 1])
    data = contexts.sample(index)
    loss = ContrastiveDivergence(40, persistent, num_chains)
    model = row_model(contexts)
    torch.manual_seed(5)
    got = [
        contexts.gradient(loss.differentiable_loss(model, empty_guide, index, data))
        for _ in range(60)
    ]
    assert largest_z(got, exact(contexts, index, data)) < Z_BOUND


def test_the_value_is_the_negative_log_likelihood(contexts: Contexts) -> None:
    index = torch.tensor([3, 0, 3, 1])
    data = contexts.sample(index)
    loss = ContrastiveDivergence(log_partition=exact_log_partition)
    value = loss.loss(row_model(contexts), empty_guide, index, data)
    assert value == pytest.approx(contexts.nll(data, index).item(), rel=1e-9)
    value = loss.loss_and_grads(row_model(contexts), empty_guide, index, data)
    assert value == pytest.approx(contexts.nll(data, index).item(), rel=1e-9)


@pytest.mark.parametrize("key", [torch.arange(3), torch.arange(3)[None, :]], ids=["1d", "2d"])
def test_rows_gathered_by_context(contexts: Contexts, key: Tensor) -> None:
    """A rectangle of rows, padded and masked: its gradient is that of the rows that count."""
    order = torch.arange(3)
    data = contexts.sample(order.expand(4, 3))
    keep = torch.tensor([[True, True, True], [True, False, True], [False, False, True]])
    keep = torch.cat([keep, torch.tensor([[False, False, True]])])
    padded = torch.where(keep[..., None], data, 1.0)

    def model() -> None:
        with pyro.plate("contexts", 3), pyro.plate("rows", 4), poutine.mask(mask=keep):
            pyro.sample("y", contexts.condition(order), obs=padded, infer={"chain_key": key})

    torch.manual_seed(6)
    loss = ContrastiveDivergence(40, persistent=True, num_chains=40)
    got = [contexts.gradient(loss.differentiable_loss(model, empty_guide)) for _ in range(60)]
    assert loss.keyed_chains["y"].states.shape == (3, 40, size_of(contexts))
    expected = exact(contexts, order.expand(4, 3)[keep], data[keep])
    assert largest_z(got, expected) < Z_BOUND


def test_particles_share_the_chains_of_a_key(contexts: Contexts) -> None:
    index = torch.tensor([3, 0, 3, 1])
    data = contexts.sample(index)
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    loss = ContrastiveDivergence(1, True, 6, log_partition=exact_log_partition, elbo=elbo)
    value = loss.loss_and_grads(row_model(contexts), empty_guide, index, data)
    assert value == pytest.approx(contexts.nll(data, index).item(), rel=1e-9)
    assert loss.keyed_chains["y"].states.shape[:2] == (3, 6)


def test_an_unconditional_machine_may_have_keys() -> None:
    """Every key then has chains of the same machine, without its parameters being repeated."""
    contexts = Contexts("gaussian", "ising", 1)
    data = contexts.sample(torch.zeros(4, dtype=torch.long))

    def model() -> None:
        with pyro.plate("rows", 4):
            dist = contexts.condition(torch.tensor(0))
            pyro.sample("y", dist, obs=data, infer={"chain_key": torch.tensor([5, 5, 7, 7])})

    loss = ContrastiveDivergence(1, persistent=True, log_partition=exact_log_partition)
    value = loss.loss_and_grads(model, empty_guide)
    assert loss.keyed_chains["y"].keys.tolist() == [5, 7]
    nll = contexts.nll(data, torch.zeros(4, dtype=torch.long))
    assert value == pytest.approx(nll.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("key", "match"),
    [
        (torch.tensor([0.0, 1.0]), "whole numbers, got torch.float32"),
        (torch.tensor([True, False]), "whole numbers, got torch.bool"),
        ([0, 1], "whole numbers, got list"),
        (torch.tensor([0, -1]), "numbers >= 0, got -1"),
        (torch.zeros(0, dtype=torch.long), "numbers >= 0, got an empty one"),
        (torch.tensor([0, 1, 2]), r"shape \(3,\) does not broadcast to the batch shape \(2,\)"),
        (torch.zeros(3, 2, dtype=torch.long), r"shape \(3, 2\) does not broadcast"),
        (torch.tensor(3), "gives one key to several machines"),
    ],
)
@pytest.mark.parametrize("persistent", [True, False])
def test_wrong_keys(key: Any, match: str, persistent: bool) -> None:
    contexts = Contexts("gaussian", "ising", NUM_CONTEXTS)
    index = torch.tensor([1, 2])
    loss = ContrastiveDivergence(persistent=persistent)
    with pytest.raises(ValueError, match=match):
        loss.loss_and_grads(row_model(contexts, key), empty_guide, index, contexts.sample(index))


def test_without_keys_the_refusal_names_them() -> None:
    contexts = Contexts("gaussian", "ising", NUM_CONTEXTS)
    index = torch.tensor([1, 2])

    def model() -> None:
        with pyro.plate("rows", 2):
            pyro.sample("y", contexts.condition(index), obs=torch.zeros(2, NUM_VISIBLE))

    with pytest.raises(ValueError, match="chain_key"):
        ContrastiveDivergence(persistent=True).loss_and_grads(model, empty_guide)


class TestStorage:
    def test_grows(self) -> None:
        chains, kept = KeyedChains(), {}
        generator = torch.Generator().manual_seed(0)
        for keys in ([4, 1], [7], [2, 9, 30], [31, 32, 33, 34]):
            states = torch.randn(3, len(keys), 2, generator=generator)
            chains.add(keys, states)
            kept |= {key: states[:, place] for place, key in enumerate(keys)}
        assert chains.keys.tolist() == list(kept) and len(chains) == len(kept)
        for key, states in kept.items():
            assert torch.equal(chains.get([key])[:, 0], states)
        assert chains.unknown([9, 8, 4, 5]) == [1, 3]
        chains.set([1, 34], torch.zeros(3, 2, 2))
        assert chains.get([34, 4])[:, 0].abs().sum() == 0
        assert torch.equal(chains.get([34, 4])[:, 1], kept[4])

    @pytest.mark.parametrize(
        "state",
        [
            3,
            {},
            {"keys": torch.tensor([0, 1]), "states": torch.zeros(1, 2, 3)},
            {"keys": torch.tensor([1, 1]), "states": torch.zeros(2, 2, 3)},
            {"keys": torch.tensor([1]), "states": torch.zeros(1, 3)},
        ],
    )
    def test_wrong_states(self, state: Any) -> None:
        with pytest.raises(ValueError, match="keyed chains must be a dict"):
            ContrastiveDivergence().load_state_dict({"chains": {}, "keyed_chains": {"y": state}})
