# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The engine of tempering: exchanges keep the joint law of all levels, and move states as a whole."""

from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Size, Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer.mcmc.replica_exchange import ReplicaExchange, Replicas, RoundTrips
from pyro_ebm.infer.paths import GeometricPath, MachinePath, Path, base_unit
from pyro_ebm.infer.paths.base import Ladder
from pyro_ebm.infer.paths.geometric import GeometricLadder
from tests.distributions.families import random_rbm

BETAS = [0.0, 0.4, 1.0]
#: False alarms of one test of a histogram.
ALARM = 1e-8


def two_bits() -> RBM:
    """A machine of four visible states with a strong coupling, so that swaps are often rejected."""
    weight = torch.tensor([[2.0, -1.0], [1.5, 2.0]], dtype=torch.float64)
    visible = units.Bernoulli(torch.tensor([-1.0, 0.5], dtype=torch.float64))
    return RBM(visible, units.Ising(torch.tensor([0.3, -1.0], dtype=torch.float64)), weight)


def make_path(kind: str) -> Path:
    rbm = two_bits()
    if kind == "geometric":
        return GeometricPath(rbm, base_unit(rbm, "uniform"))
    other = rbm.tilt(torch.tensor([1.5, -2.0], dtype=torch.float64))
    return MachinePath([other, rbm])


def exact_levels(path: Path, betas: list[float], num_chains: int) -> Tensor:
    """Independent exact draws of every level, shape ``(num_chains, levels) + batch_shape + (V,)``."""
    return torch.stack([path.machine(beta).sample((num_chains,)) for beta in betas], 1)


def joint_p_value(v: Tensor, path: Path) -> float:
    """Of Pearson's test that the levels of two bits have the product of their exact laws."""
    states = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    laws = [torch.softmax(path.machine(beta).log_prob(states), 0) for beta in BETAS]
    joint = (laws[0][:, None, None] * laws[1][:, None] * laws[2]).flatten()
    index = (2.0 * v[..., 0] + v[..., 1]).long()
    cell = 16 * index[:, 0] + 4 * index[:, 1] + index[:, 2]
    counts = torch.bincount(cell, minlength=64).double()
    expected = len(v) * joint
    assert expected.min() > 5.0
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum().item(), 63))


@pytest.mark.parametrize("kind", ["geometric", "machines"])
class TestJointLaw:
    """Started from exact and independent draws, all levels stay exact and independent."""

    @pytest.mark.parametrize("parity", [0, 1])
    def test_swaps_alone(self, kind: str, parity: int) -> None:
        path = make_path(kind)
        exchange = ReplicaExchange(path.ladder(BETAS))
        start = exact_levels(path, BETAS, 200_000)
        replicas, probability = exchange.swap(exchange.start(start, parity=parity))
        assert 0.05 < probability[:, 1].mean() < 0.95
        assert joint_p_value(replicas.v, path) > ALARM
        assert not torch.equal(replicas.v, start)

    def test_steps(self, kind: str) -> None:
        path = make_path(kind)
        exchange = ReplicaExchange(path.ladder(BETAS), num_sweeps=2)
        replicas = exchange.start(exact_levels(path, BETAS, 100_000))
        for _ in range(4):
            replicas, _ = exchange.step(replicas)
        assert joint_p_value(replicas.v, path) > ALARM

    @pytest.mark.parametrize("fault", ["sign", "weak", "one-sided"])
    def test_a_wrong_ratio_is_found(
        self, kind: str, fault: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = make_path(kind)
        ladder = path.ladder(BETAS)
        original = type(ladder).swap_log_ratio

        def wrong(self: Any, v: Tensor, fields: Tensor, partner: Tensor) -> Any:
            ratio, exchanged = original(self, v, fields, partner)
            if fault == "one-sided":
                return ladder.level_log_ratio(v, fields, partner), exchanged
            return (-ratio if fault == "sign" else 0.9 * ratio), exchanged

        monkeypatch.setattr(type(ladder), "swap_log_ratio", wrong)
        exchange = ReplicaExchange(ladder)
        replicas, _ = exchange.swap(exchange.start(exact_levels(path, BETAS, 200_000)))
        assert joint_p_value(replicas.v, path) < ALARM


def labelled(path: Path, num_levels: int, shape: tuple[int, ...] = (50,)) -> Replicas:
    """Replicas of machines with unbounded units, every state another number."""
    betas = torch.linspace(0, 1, num_levels).tolist()
    exchange = ReplicaExchange(path.ladder(betas))
    shape = (*shape, num_levels, *path.batch_shape, path.num_visible)
    v = torch.arange(torch.Size(shape).numel(), dtype=path.target.weight.dtype).view(shape)
    return exchange.start(v / v.numel())


@pytest.mark.parametrize("num_levels", [2, 3, 4, 7])
@pytest.mark.parametrize("kind", ["geometric", "machines"])
@pytest.mark.parametrize("batched", [False, True], ids=["plain", "batched"])
def test_a_state_moves_as_a_whole(num_levels: int, kind: str, batched: bool) -> None:
    """State, fields and identity go together; nothing is lost and nothing doubled."""
    rbm = random_rbm(("gaussian", "bernoulli"), offsets=True, batched=batched)
    path: Path = GeometricPath(rbm, base_unit(rbm, None))
    if kind == "machines":
        other = random_rbm(("gaussian", "bernoulli"), offsets=True, batched=batched)
        path = MachinePath([other, rbm])
    replicas = labelled(path, num_levels)
    exchange = ReplicaExchange(path.ladder(torch.linspace(0, 1, num_levels).tolist()))
    start, moved = replicas.v, torch.zeros(num_levels, dtype=torch.bool)
    numbers = torch.arange(num_levels).view(-1, *(1,) * len(path.batch_shape))
    for step in range(12):
        before = replicas
        replicas, probability = exchange.swap(replicas)
        identity = replicas.identity
        assert replicas.parity == 1 - before.parity == (step + 1) % 2
        assert torch.equal(identity.sort(1).values, numbers.expand_as(identity))
        carried = start.gather(1, identity.unsqueeze(-1).expand_as(start))
        assert torch.equal(replicas.v, carried)
        torch.testing.assert_close(replicas.fields, exchange.ladder.fields(carried))
        check_pairs(before, replicas, probability)
        moved |= (identity != before.identity).movedim(1, 0).flatten(1).any(1)
    assert moved.all() and torch.equal(start, labelled(path, num_levels).v)


def check_pairs(before: Replicas, after: Replicas, probability: Tensor) -> None:
    """Both members of a pair exchange or neither does; others stay."""
    num_levels = probability.shape[1]
    moved = after.identity != before.identity
    for level in range(num_levels):
        partner = level + 1 if level % 2 == before.parity else level - 1
        if not 0 <= partner < num_levels:
            assert not moved[:, level].any() and (probability[:, level] == 1).all()
            continue
        assert torch.equal(moved[:, level], moved[:, partner])
        torch.testing.assert_close(probability[:, level], probability[:, partner])
        new = torch.where(moved[:, level], before.identity[:, partner], before.identity[:, level])
        assert torch.equal(after.identity[:, level], new)


def test_acceptance_rate_is_the_probability() -> None:
    path = make_path("geometric")
    exchange = ReplicaExchange(path.ladder(BETAS))
    replicas = exchange.start(exact_levels(path, BETAS, 100_000))
    after, probability = exchange.swap(replicas)
    moved = (after.identity[:, 0] != 0).double()
    error = (
        (moved.mean() - probability[:, 0].mean()) / (probability[:, 0].std() + 0.5) * 100_000**0.5
    )
    assert error.abs() < 6.0


def test_float32_and_batches() -> None:
    rbm = random_rbm(("bernoulli", "ising"), batched=True).to(torch.float32)
    path = GeometricPath(rbm, base_unit(rbm, "uniform"))
    exchange = ReplicaExchange(path.ladder(BETAS))
    replicas = exchange.start(exchange.ladder.initial(Size((5,))))
    assert replicas.v.shape == (5, 3, 2, 3, 3) and replicas.identity.shape == (5, 3, 2, 3)
    for _ in range(3):
        replicas, probability = exchange.step(replicas)
    assert replicas.v.dtype == replicas.fields.dtype == torch.float32
    assert probability.shape == (5, 3, 2, 3) and replicas.identity.dtype == torch.int64
    # One tensor of one chain without a chain axis, as under pyro.infer.MCMC.
    single = exchange.start(exchange.ladder.initial(Size()))
    assert exchange.step(single)[0].v.shape == (3, 2, 3, 3)


def test_own_generator() -> None:
    before, runs = torch.get_rng_state(), []
    rbm = two_bits()
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        ladder = GeometricPath(rbm, base_unit(rbm, "uniform"), generator).ladder(BETAS)
        exchange = ReplicaExchange(ladder)
        replicas = exchange.start(ladder.initial(Size((100,))))
        for _ in range(3):
            replicas, _ = exchange.step(replicas)
        runs.append(replicas.v)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_an_impossible_state_is_never_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio that is not a number rejects."""
    nan = lambda self, v, fields, partner: (torch.full(v.shape[:-1], torch.nan), None)  # noqa: E731
    monkeypatch.setattr(GeometricLadder, "swap_log_ratio", nan)
    exchange = ReplicaExchange(make_path("geometric").ladder(BETAS))
    replicas = exchange.start(exchange.ladder.initial(Size((20,))))
    assert torch.equal(exchange.swap(replicas)[0].identity, replicas.identity)


class TestRoundTrips:
    @staticmethod
    def replicas(identity: Tensor) -> Replicas:
        return Replicas(torch.empty(0), torch.empty(0), identity, 0)

    @staticmethod
    def by_hand(history: list[Tensor]) -> Tensor:
        """One chain: shape of an entry is ``(levels,)``."""
        num_levels = len(history[0])
        counts, heading = [0] * num_levels, [""] * num_levels
        for identity in history:
            bottom, top = int(identity[0]), int(identity[-1])
            counts[bottom] += heading[bottom] == "down"
            heading[bottom] = "up"
            heading[top] = "down" if heading[top] else ""
        return torch.tensor(counts)

    @pytest.mark.parametrize("num_steps", [0, 1, 63, 64, 65, 400])
    @pytest.mark.parametrize("batch", [(), (2,)], ids=["plain", "batched"])
    def test_against_a_walk_by_hand(self, num_steps: int, batch: tuple[int, ...]) -> None:
        shape, axis = (3, 4, *batch), -1 - len(batch)
        identities = [torch.rand(shape).argsort(axis) for _ in range(num_steps + 1)]
        trips = RoundTrips(self.replicas(identities[0]), axis)
        for number, identity in enumerate(identities[1:]):
            trips.observe(self.replicas(identity))
            if number == num_steps // 2:
                _ = trips.counts  # reading changes nothing
        for chain in range(3):
            for element in range(batch[0] if batch else 1):
                history = [i[chain].reshape(4, -1)[:, element] for i in identities]
                counted = trips.counts[chain].reshape(4, -1)[:, element]
                assert torch.equal(counted, self.by_hand(history))

    def test_there_and_back(self) -> None:
        """Replica 0 goes up and comes back: one trip. Replica 2 starts at the top: half of one."""
        path = [[0, 1, 2], [1, 0, 2], [1, 2, 0], [2, 1, 0], [2, 0, 1], [0, 2, 1]]
        trips = RoundTrips(self.replicas(torch.tensor(path[0])), -1)
        for identity in path[1:]:
            trips.observe(self.replicas(torch.tensor(identity)))
        assert trips.counts.tolist() == [1, 0, 0]


def test_ladders_need_two_levels() -> None:
    path = make_path("geometric")
    with pytest.raises(ValueError, match="at least 2 levels, got 1"):
        path.ladder([1.0])
    assert issubclass(GeometricLadder, Ladder)
