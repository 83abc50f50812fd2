# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Replicas of the negative phase: the law of every level, the choice of snapshots, and their state."""

import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.training import Trainer, TrainerConfig
from pyro_ebm.training.negative_phase import GibbsPhase
from pyro_ebm.training.replica_phase import ReplicaPhase
from pyro_ebm.training.trajectory import MIN_ACCEPTANCE, Trajectory
from tests.training.machines import assert_same_state, interrupt_at, random_module, some_bits

LIMIT = 6.0
CHAINS = 300


def two_modes(scale: float = 1.0, *, centered: bool = False) -> nn.RBM:
    """Bits that are nearly all on with probability 0.35, else nearly all off; chains start all off.

    With a scale below 1 a machine of the run that led there.
    """
    module = nn.RBM(8, 4, centered=centered, dtype=torch.float64, seed=0)
    with torch.no_grad():
        module.weight.fill_(3.0 * scale)
        module.visible.bias.fill_(-6.0 * scale)
        module.hidden.bias.fill_(-12.15 * scale)
        if centered:
            module.visible_offset.zero_()
            module.hidden_offset.zero_()
            module.shift_offsets(torch.full((8,), 0.4).double(), torch.full((4,), 0.3).double())
    return module


def phase_of(name: str, num_replicas: int = 8, **options) -> ReplicaPhase | GibbsPhase:
    config = TrainerConfig(
        negative_phase=name, persistent=True, num_replicas=num_replicas, **options
    )
    kind = GibbsPhase if name == "gibbs" else ReplicaPhase
    return kind(CHAINS, config, torch.Generator().manual_seed(0))


def update(phase: ReplicaPhase | GibbsPhase, module: nn.RBM) -> Tensor:
    """One update of the chains, as the gradient makes it."""
    with torch.no_grad():
        dist = module(validate_args=False)
        sweep = GibbsSweep(dist, phase.generator)
        batch = torch.zeros(10, 8).double()
        v, theta, keep = phase(dist, sweep, batch, sweep.hidden_theta(batch), None)
        assert keep is None and torch.equal(theta, sweep.hidden_theta(v))
    return v


def exact_law(module: nn.RBM) -> Tensor:
    """Probability of every number of visible bits that are on, by enumeration."""
    with torch.no_grad():
        states = module().visible.states(0, 2**8)
        p = torch.softmax(-module().free_energy(states), 0)
    return torch.zeros(9).double().index_add_(0, states.sum(-1).long(), p)


def train_to(phase: ReplicaPhase | GibbsPhase, module: nn.RBM, *, centered: bool) -> None:
    """A run of which the last machine is the given one."""
    for k in range(1, 11):
        on_the_way = two_modes(k / 10, centered=centered)
        for _ in range(5):
            update(phase, on_the_way)
        phase.after_epoch(on_the_way)


@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
def test_the_law_of_a_frozen_machine(centered):
    """Replicas draw from it, whereas block Gibbs stays where it was.

    Chains are independent of each other, and so are standard errors of their means.
    """
    module = two_modes(centered=centered)
    expected = exact_law(module)
    assert 0.3 < expected[5:].sum() < 0.4 and expected[3:6].sum() < 0.02
    means = {}
    for name in ("gibbs", "tempering", "trajectory"):
        phase = phase_of(name)
        train_to(phase, module, centered=centered)
        if isinstance(phase, GibbsPhase):
            # Both phases at the end of the run, from the mode of most states without a bit.
            phase.chains = torch.zeros(CHAINS, 8).double()
        for _ in range(60):
            update(phase, module)
        counts = torch.stack([update(phase, module).sum(-1).long() for _ in range(100)])
        means[name] = torch.nn.functional.one_hot(counts, 9).double().mean(0)
    for name in ("tempering", "trajectory"):
        # States that nearly no chain has seen have no deviation of their own to go by.
        error = means[name].std(0).clamp(min=1e-3) / CHAINS**0.5
        assert ((means[name].mean(0) - expected).abs() < LIMIT * error).all(), name
        # Tight enough to tell: the weights of the modes to a few hundredths.
        assert (error < 0.02).all()
    assert means["gibbs"].mean(0)[5:].sum() < 0.2


def test_every_level_has_the_law_of_its_machine():
    """Snapshots are the machines of the epochs that made them; level 0 has no weights."""
    phase = phase_of("trajectory", num_replicas=4)
    module = two_modes(centered=True)
    train_to(phase, module, centered=True)
    trajectory = phase._trajectory
    assert trajectory.num_snapshots == 3
    snapshots = trajectory.state()
    assert snapshots["snapshots.weight"].shape == (3, 8, 4)
    assert (snapshots["snapshots.weight"][0] == 0).all()
    base = snapshots["snapshots.visible.bias"][0].sigmoid()
    torch.testing.assert_close(base, torch.full((8,), 0.4).double())
    scales = snapshots["snapshots.weight"][1:, 0, 0] / 3.0
    assert (scales.diff() > 0).all() and (scales <= 1.0).all()
    # A snapshot is canonical: the distribution of the machine of that epoch.
    assert torch.allclose((scales * 10).round() / 10, scales)
    torch.testing.assert_close(snapshots["snapshots.visible.bias"][1:, 0], -6.0 * scales)
    counts = []
    for _ in range(100):
        update(phase, module)
        counts.append(trajectory.state()["replicas"].sum(-1).long())
    means = torch.nn.functional.one_hot(torch.stack(counts), 9).double().mean(0)
    error = means.std(0).clamp(min=1e-3) / CHAINS**0.5
    for level in range(1, 3):
        expected = exact_law(two_modes(float(scales[level - 1])))
        assert ((means[:, level].mean(0) - expected).abs() < LIMIT * error[level]).all()


def test_a_snapshot_is_kept_when_exchanges_become_rare():
    """The acceptance that is estimated is the exact one, and decides."""
    trajectory = Trajectory(8, torch.Generator().manual_seed(0))
    machine = two_modes(0.05)
    chains = trajectory.move(machine(), torch.zeros(CHAINS, 8).double(), 20)
    trajectory.follow(machine())
    assert trajectory.num_snapshots == 1
    found = False
    for scale in torch.linspace(0.1, 4.0, 15).tolist():
        machine = two_modes(scale)
        trajectory.move(machine(), chains, 30)
        before = trajectory.num_snapshots
        last = trajectory.state()
        trajectory.follow(machine())
        rate = exact_acceptance(last, machine)
        # Within the noise of an estimate by 300 chains of what is the same in every seed.
        if rate < MIN_ACCEPTANCE - 0.1:
            assert trajectory.num_snapshots == before + 1
            found = True
        if rate > MIN_ACCEPTANCE + 0.1:
            assert trajectory.num_snapshots == before
        chains = trajectory.state()["replicas"][:, -1]
        if found:
            break
    assert found


def exact_acceptance(state: dict[str, Tensor], machine: nn.RBM) -> float:
    """Mean acceptance of exchanges of independent draws of the last snapshot and a machine."""
    twin = nn.RBM(8, 4, dtype=torch.float64)
    with torch.no_grad():
        twin.weight.copy_(state["snapshots.weight"][-1])
        twin.visible.bias.copy_(state["snapshots.visible.bias"][-1])
        twin.hidden.bias.copy_(state["snapshots.hidden.bias"][-1])
        states = machine().visible.states(0, 2**8)
        log_p = [-m().free_energy(states) - exact_log_partition(m()) for m in (twin, machine)]
    difference = log_p[1] - log_p[0]
    accept = (difference.unsqueeze(-1) - difference).clamp(max=0.0).exp()
    return float(log_p[0].exp() @ accept @ log_p[1].exp())


def test_the_estimated_acceptance_is_the_exact_one():
    low, high = two_modes(0.5), two_modes(0.7)
    trajectory = Trajectory(8, torch.Generator().manual_seed(0))
    from pyro_ebm.infer.paths.machines import MachineLadder
    from pyro_ebm.training.trajectory import _acceptance, _parameters

    ladder = MachineLadder([low(), high()])
    v = torch.stack([m(num_gibbs_steps=1).sample((2000,)) for m in (low, high)], 1)
    table = ladder.log_density_table(v, ladder.fields(v))
    trajectory._snapshots = {n: p[:1] for n, p in _parameters(ladder.machines).items()}
    expected = exact_acceptance(trajectory.state(), high)
    assert abs(_acceptance(table, 0, 1) - expected) < 0.04
    assert 0.05 < expected < 0.95


def test_there_are_never_more_levels_than_allowed():
    """The ends stay; levels that are dropped are those that leave exchanges likely."""
    phase = phase_of("trajectory", num_replicas=3)
    seen = set()
    for k in range(1, 16):
        module = two_modes(k / 4)
        for _ in range(5):
            update(phase, module)
        phase.after_epoch(module)
        state = phase.state()
        levels = len(state["snapshots.weight"])
        assert levels <= 2 and state["replicas"].shape == (CHAINS, levels + 1, 8)
        assert torch.equal(state["replicas"][:, -1], state["chains"])
        assert (state["snapshots.weight"][0] == 0).all()
        seen.add(tuple(state["snapshots.weight"][:, 0, 0].tolist()))
    # A level between the ends was there, and then another one.
    assert len(seen) >= 2
    two = phase_of("trajectory", num_replicas=2)
    train_to(two, two_modes(), centered=False)
    assert two.state()["snapshots.weight"].shape == (1, 8, 4)


@pytest.mark.parametrize(
    "pair", [("bernoulli", "gaussian"), ("gaussian", "bernoulli"), ("categorical", "ising")]
)
@pytest.mark.parametrize("name", ["tempering", "trajectory"])
def test_other_families(pair, name):
    module = random_module(pair, centered=True, learn_precision=True)
    data = module().sample((60,))
    config = TrainerConfig(
        num_epochs=3,
        batch_size=30,
        learning_rate=0.01,
        persistent=True,
        negative_phase=name,
        num_replicas=3,
        seed=0,
        progress=False,
    )
    trainer = Trainer(module, config)
    trainer.fit(data)
    assert trainer.chains.shape == (30, data.shape[1]) and trainer.chains.isfinite().all()
    assert module().visible.support.check(trainer.chains).all()


@pytest.mark.parametrize("name", ["tempering", "trajectory"])
@pytest.mark.parametrize("extra_steps", [0, 2], ids=["between-epochs", "mid-epoch"])
def test_a_resumed_run_is_the_same(name, extra_steps, tmp_path, monkeypatch):
    from pyro_ebm.training.gradient import ContrastiveGradient

    # Copies of one bit, which are learnt fast, so that there are snapshots before and after.
    data = some_bits(60, 1).expand(60, 6)
    options = {
        "num_epochs": 8,
        "batch_size": 5,
        "learning_rate": 1.0,
        "num_steps": 2,
        "num_chains": 30,
        "persistent": True,
        "negative_phase": name,
        "num_replicas": 4,
        "seed": 2,
        "progress": False,
    }

    def make(**more) -> Trainer:
        module = nn.RBM(6, 4, seed=0, centered=True)
        return Trainer(module, TrainerConfig(**options, **more))

    whole = make()
    whole.fit(data)
    path = tmp_path / "checkpoint.safetensors"
    with interrupt_at(4 * 12 + extra_steps, ContrastiveGradient, monkeypatch):
        make(checkpoint=path).fit(data)
    resumed = Trainer.from_checkpoint(path)
    assert resumed.epoch == 4
    resumed.fit(data)
    assert_same_state(resumed.module, whole.module)
    ours, theirs = resumed._gradient.state(), whole._gradient.state()
    assert ours.keys() == theirs.keys()
    for tensor in ours:
        assert torch.equal(ours[tensor], theirs[tensor]), tensor
    if name == "trajectory":
        assert len(theirs["snapshots.weight"]) > 1


def test_fewer_levels_after_a_change():
    """A run that goes on with fewer levels drops some at its next snapshot."""
    phase = phase_of("trajectory", num_replicas=6)
    train_to(phase, two_modes(), centered=False)
    assert phase._trajectory.num_snapshots > 2
    other = phase_of("trajectory", num_replicas=3)
    other.restore(phase.state())
    far = two_modes()
    with torch.no_grad():
        far.visible.bias += 4.0
    for _ in range(30):
        update(other, far)
    other.after_epoch(far)
    assert other._trajectory.num_snapshots == 2


def test_chains_of_another_phase_are_taken_on():
    """A run that changes from block Gibbs goes on from its chains."""
    phase = phase_of("trajectory")
    chains = torch.ones(CHAINS, 8).double()
    phase.restore({"chains": chains})
    phase.after_epoch(two_modes())  # nothing to look at yet
    assert phase._trajectory.num_snapshots == 0
    # One sweep does not leave the mode, and exchanges are with a machine far away.
    assert update(phase, two_modes()).mean() > 0.7


def test_the_base_of_tempering_is_the_mean_of_the_data():
    module = two_modes(centered=True)
    phase = phase_of("tempering")
    kernel = phase._kernel(module())
    torch.testing.assert_close(kernel.base, torch.full((8,), 0.4).double())
    assert phase._kernel(two_modes()()).base is None
    gaussian = random_module(("gaussian", "bernoulli"), centered=True)
    assert phase._kernel(gaussian()).base is None


@pytest.mark.parametrize("name", ["tempering", "trajectory"])
@pytest.mark.parametrize(
    "option", [{"chain_hidden": "mean"}, {"chain_visible": "mean"}, {"dropout": 0.5}], ids=str
)
def test_options_of_block_gibbs(name, option):
    config = TrainerConfig(negative_phase=name, persistent=True, **option)
    with pytest.raises(ValueError, match=f"{min(option)} is an option of block Gibbs, not of"):
        Trainer(nn.RBM(6, 4), config)


def test_trajectories_are_of_persistent_chains():
    with pytest.raises(ValueError, match="negative_phase='trajectory' needs persistent=True"):
        TrainerConfig(negative_phase="trajectory")


def test_levels_are_distributions():
    """The machine of a level is made anew from its tensors."""
    phase = phase_of("trajectory")
    train_to(phase, two_modes(), centered=False)
    ladder = phase._trajectory._ladder(two_modes()())
    assert isinstance(ladder.machines, RBM)
    assert ladder.machines.batch_shape == (phase._trajectory.num_snapshots + 1,)
