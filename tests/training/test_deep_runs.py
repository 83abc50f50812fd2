# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Runs of deep machines: every option of the trainer works or is refused, and a run can be resumed."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

import pyro_ebm
from pyro_ebm import nn
from pyro_ebm.nn import ModelFileError
from pyro_ebm.training import Callback, Trainer, TrainerConfig
from pyro_ebm.training.checkpoints import write_checkpoint
from pyro_ebm.training.deep_gradient import DeepGradient
from pyro_ebm.training.negative_phase import some_rows
from tests.training.deep import random_deep
from tests.training.machines import assert_same_state, interrupt_at, some_bits

DATA = some_bits(50)
VALIDATION = some_bits(20, seed=1)


def make_module(**options) -> nn.DBM:
    defaults = {"centered": True, "seed": 0, "hidden": ["bernoulli", "ising", "bernoulli"]}
    return nn.DBM(6, [4, 3, 3], **{**defaults, **options})


def make_trainer(module: nn.DBM | None = None, **options) -> Trainer:
    defaults = {"num_epochs": 3, "batch_size": 20, "seed": 5, "progress": False}
    defaults |= {"persistent": True, "learning_rate": 0.1}
    return Trainer(module or make_module(), TrainerConfig(**{**defaults, **options}))


# --- what works ---------------------------------------------------------------------------------

OPTIONS = {
    "pcd": {},
    "pcd-data": {"persistent_start": "data", "num_chains": 30},
    "cd": {"persistent": False},
    "cd-chains": {"persistent": False, "num_chains": 7},
    "noise": {"persistent": False, "chain_start": "noise"},
    "tempering": {"negative_phase": "tempering", "num_replicas": 3},
    "tempering-data": {
        "negative_phase": "tempering",
        "num_replicas": 3,
        "persistent_start": "data",
    },
    "trajectory": {"negative_phase": "trajectory", "num_replicas": 3, "learning_rate": 1.0},
    "exact": {"negative_phase": "exact", "persistent": False},
    "schedules": {
        "num_steps": [1, 2],
        "learning_rate": lambda epoch: 0.1 / (1 + epoch),
        "momentum": [0.5, 0.9],
        "sparsity_cost": [0.0, 0.2],
        "l1": [0.0, 1e-3],
        "weight_decay": [1e-3, 0.0],
        "offset_rate": 0.1,
    },
    "adam": {"optimizer": "adam", "learning_rate": 0.01, "decoupled_weight_decay": True},
    "adam-decay": {
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "learning_rate_schedule": "cosine",
    },
    "plateau": {
        "learning_rate_schedule": "ReduceLROnPlateau",
        "monitor": "reconstruction_error",
        "schedule_options": {"patience": 0},
    },
    "averaged": {"averaging": 0.8, "gradient_clip": 0.3},
    "layers": {
        "layers": [
            {"max_norm": 0.5},
            {"sparsity_cost": 0.2, "sparsity_target": 0.3, "max_norm": None},
            {},
        ],
        "max_norm": 1.0,
    },
    "mean-field": {"mean_field_updates": 2, "mean_field_tolerance": 0.0},
}


def fitted(options: dict, data: Tensor = DATA, **more) -> Trainer:
    trainer = make_trainer(**{**options, **more})
    trainer.fit(data)
    return trainer


@pytest.mark.parametrize("name", OPTIONS)
def test_resumed_equals_uninterrupted(name, tmp_path, monkeypatch):
    """Parameters, offsets, average, chains and history, bit by bit; interrupted in the middle of an epoch."""
    options, path = OPTIONS[name], tmp_path / "x.safetensors"
    whole = fitted(options)
    trainer = make_trainer(checkpoint=path, **options)
    with interrupt_at(4, type(trainer._gradient), monkeypatch):
        trainer.fit(DATA)
    torch.manual_seed(123)
    resumed = Trainer.from_checkpoint(path)
    assert resumed.epoch == 1
    resumed.fit(DATA)
    assert_same_state(resumed.module, whole.module)
    assert_same_state(resumed.averaged, whole.averaged)
    assert whole.chains is resumed.chains is None or torch.equal(whole.chains, resumed.chains)
    for ours, theirs in zip(resumed.history, whole.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    # A run is no other than that of its options.
    if name not in ("pcd", "plateau"):
        assert not torch.equal(whole.module.weights[0], fitted({}).module.weights[0])
    assert_same_state(pyro_ebm.load(path), whole.module)


@pytest.mark.parametrize("lost", ["kernel.", "chains", "layer2.sparsity_sum"])
def test_every_part_of_the_state_matters(lost, tmp_path):
    """A run that goes on without a part of its state ends elsewhere: the tests above would see it."""
    options = dict(OPTIONS["tempering"], layers=OPTIONS["layers"]["layers"], max_norm=1.0)
    state = fitted(options, num_epochs=1).state()
    ends = []
    for prefix in (None, lost):
        kept = {n: t for n, t in state.state.items() if prefix is None or not n.startswith(prefix)}
        assert len(kept) < len(state.state) or prefix is None
        path = tmp_path / "x.safetensors"
        write_checkpoint(path, replace(state, state=kept))
        again = Trainer.from_checkpoint(path, num_epochs=3)
        again.fit(DATA)
        ends.append(torch.cat([weight.detach().flatten() for weight in again.module.weights]))
    assert not torch.equal(*ends)


def test_a_trajectory_takes_snapshots():
    trainer = fitted(OPTIONS["trajectory"], num_epochs=6, learning_rate=3.0)
    assert trainer._gradient.phase._trajectory.num_snapshots > 1
    assert trainer.chains.shape == (20, 6 + 3)


@pytest.mark.parametrize("name", ["gaussian", "2-mixed"])
def test_other_families(name, tmp_path):
    module = random_deep(name, centered=True, scale=0.3)
    with torch.no_grad():
        data = module().sample((40,), generator=Generator().manual_seed(0))
    noise = {"noise_std": 0.1} if name == "gaussian" else {}
    path = tmp_path / "x.safetensors"
    trainer = make_trainer(module, num_epochs=2, checkpoint=path, learning_rate=0.01, **noise)
    trainer.fit(data)
    assert all(bool(p.isfinite().all()) for p in module.parameters())
    again = Trainer.from_checkpoint(path, num_epochs=3)
    again.fit(data)
    assert again.epoch == 3 and again.chains.dtype == torch.float64


def test_partial_fit_and_rates():
    trainer = make_trainer(binarize=True)
    rates = DATA * 0.8 + 0.1
    for part in rates.split(25):
        record = trainer.partial_fit(part)
    assert trainer.epoch == 2 and record["epoch"] == 2 and trainer.chains.shape == (20, 9)


def test_callbacks_and_the_best_checkpoint(tmp_path):
    class Stop(Callback):
        def on_epoch_end(self, trainer, record):
            record["twice"] = 2.0 * record["epoch"]
            if trainer.epoch == 2:
                trainer.stop()

    best = tmp_path / "best.safetensors"
    trainer = make_trainer(monitor="twice", monitor_mode="max", best_checkpoint=best)
    history = trainer.fit(DATA, callbacks=[Stop()])
    assert [record["twice"] for record in history] == [2.0, 4.0]
    assert Trainer.from_checkpoint(best).epoch == trainer.best_epoch == 2


def test_frozen_weights_stay():
    module = make_module()
    module.weights[0].requires_grad_(False)
    before = module.weights[0].clone()
    upper = module.weights[1].clone()
    make_trainer(module, weight_decay=0.1, decoupled_weight_decay=True, max_norm=1e-3).fit(DATA)
    assert torch.equal(module.weights[0], before) and not torch.equal(module.weights[1], upper)


def test_options_of_layers():
    """Norms and rates are those of the layer, and of no other one."""
    module = nn.DBM(6, [4, 3], seed=0, weight_scale=1.0)
    make_trainer(module, layers=[{"max_norm": 0.7}, {}], max_norm=0.2).fit(DATA)
    norms = [weight.norm(dim=0).max().item() for weight in module.weights]
    assert norms[0] == pytest.approx(0.7, rel=1e-5) and norms[1] < 0.2 * (1 + 1e-5)
    plain = nn.DBM(6, [4, 3], seed=0, weight_scale=1.0)
    make_trainer(plain, layers=[{"max_norm": None}, {}], max_norm=0.2).fit(DATA)
    assert plain.weights[0].norm(dim=0).max() > 1
    gradient = make_trainer(
        sparsity_cost=0.1, layers=[{}, {"sparsity_cost": 0.0}, {"sparsity_target": 0.4}]
    )._gradient
    assert [s and s.target for s in gradient.sparsity] == [0.1, None, 0.4]


def test_the_average_has_offsets():
    trainer = fitted({"averaging": 0.8, "offset_rate": 0.3})
    for own, mean in zip(trainer.module.offsets, trainer.averaged.offsets, strict=True):
        assert own.shape == mean.shape
    assert not torch.equal(trainer.module.offsets[1], trainer.averaged.offsets[1])


def test_offsets_follow_the_mean_field():
    """One update with rate 1: hidden offsets are the means of the batch, and the law is the same."""
    module = random_deep("3", centered=True)
    data = 2.0 * some_bits(20, 3).double() - 1.0
    config = {"num_epochs": 1, "batch_size": 20, "offset_rate": 1.0, "learning_rate": 1e-12}
    trainer = make_trainer(module, **config)
    before = module().detach()
    v = torch.tensor([[1.0, -1.0, 1.0]]).double()
    energies = [before.even_log_prob([v, x]) for x in torch.eye(3).double()]
    trainer.fit(data)
    means = trainer._gradient.hidden_means
    torch.testing.assert_close(module.offsets[0], data.mean(0), rtol=0, atol=1e-12)
    for offset, mean in zip(module.offsets[1:], means, strict=True):
        torch.testing.assert_close(offset, mean, rtol=0, atol=1e-12)
    after = [module().detach().even_log_prob([v, x]) for x in torch.eye(3).double()]
    differences = torch.cat(after) - torch.cat(energies)
    # Up to one constant, which is in log Z too.
    torch.testing.assert_close(differences, differences[:1].expand(3), rtol=0, atol=1e-9)


# --- where chains start -----------------------------------------------------------------------------


def test_some_rows():
    batch = torch.arange(5.0).unsqueeze(1)
    few = some_rows(batch, 4, Generator().manual_seed(0)).flatten().tolist()
    assert len(set(few)) == 4
    many = some_rows(batch, 12, Generator().manual_seed(0)).flatten().tolist()
    assert sorted(many[:5]) == sorted(many[5:10]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("phase", ["gibbs", "tempering"])
@pytest.mark.parametrize("deep", [False, True], ids=["rbm", "dbm"])
def test_persistent_chains_start_at_data(phase, deep):
    """With weights of zero and biases that say nothing, noise is balanced; data are not."""
    # The layers above the visible one follow it: strong weights, so that one sweep forgets nothing.
    module = nn.DBM(1, [1, 1], seed=0) if deep else nn.RBM(1, 1, seed=0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.fill_(40.0 if "weight" in name else -20.0 - 20.0 * (name == "layers.1.bias"))
    data = torch.tensor([[1.0]] * 30 + [[0.0]] * 10)
    options = {"negative_phase": phase, "persistent": True, "batch_size": 40, "num_chains": 40}
    options |= {"num_epochs": 1, "learning_rate": 1e-9, "progress": False, "num_replicas": 2}
    chains = {}
    for start in ("data", "noise"):
        trainer = Trainer(module, TrainerConfig(seed=0, persistent_start=start, **options))
        trainer.fit(data)
        chains[start] = trainer.chains
    if phase == "gibbs":
        assert chains["data"].mean(0).tolist() == [0.75] * (1 + deep)
    assert not torch.equal(chains["data"], chains["noise"])


def test_rows_are_drawn_only_where_chains_start_at_them(monkeypatch):
    """The layers above are drawn from q for the first batch of persistent chains, and never after."""
    drawn = []
    for start, expected in (("data", [True, False, False]), ("noise", [False] * 3)):
        gradient = make_trainer(persistent_start=start)._gradient
        reads = []
        for _ in range(3):
            reads.append(gradient.phase.reads_rows)
            gradient(DATA[:20])
        assert reads == expected
        drawn.append(gradient.chains)
    gradient = make_trainer(persistent=False)._gradient
    gradient(DATA[:20])
    assert gradient.phase.reads_rows
    gradient = make_trainer(persistent=False, chain_start="noise")._gradient
    assert not gradient.phase.reads_rows


# --- what is refused --------------------------------------------------------------------------------

REFUSED = {
    "preconditioner is an option of a nn.RBM": {"preconditioner": "diagonal"},
    "damping is an option of a nn.RBM": {"damping": 0.5},
    "fast_rate is an option of a nn.RBM": {"fast_rate": 0.1},
    "fast_decay is an option of a nn.RBM": {"fast_decay": 0.5},
    "positive_hidden is an option of a nn.RBM": {"positive_hidden": "sample"},
    "chain_hidden is an option of a nn.RBM": {"chain_hidden": "mean"},
    "chain_visible is an option of a nn.RBM": {"chain_visible": "mean"},
    "negative_hidden is an option of a nn.RBM": {"negative_hidden": "sample"},
    "dropout is an option of a nn.RBM": {"dropout": 0.5},
    "dropconnect is an option of a nn.RBM": {"dropconnect": 0.5},
    "missing='absent' is an option of a nn.RBM": {"missing": "absent", "persistent": False},
    "objective is an option of a nn.ClassificationRBM": {"objective": "hybrid"},
    "generative_weight is an option of a nn.ClassificationRBM": {"generative_weight": 0.5},
    "unlabelled_weight is an option of a nn.ClassificationRBM": {"unlabelled_weight": 0.5},
    "groups is an option of conditional models": {"groups": {"weight": {}}},
    "negative_side is an option of conditional": {"negative_side": "hidden"},
    "chain_start='prior' is an option of cond": {"chain_start": "prior", "persistent": False},
    "layers must be options of 3 hidden layers, got 2": {"layers": [{}, {}]},
    r"layers\[1\] has sparsity_target=0.2, which has no effect": {
        "layers": [{}, {"sparsity_target": 0.2}, {}]
    },
    "chain_start is no option of negative_phase='exact'": {
        "negative_phase": "exact",
        "persistent": False,
        "chain_start": "noise",
    },
    "sparsity_cost is no option of negative_phase='exact'": {
        "negative_phase": "exact",
        "persistent": False,
        "layers": [{"sparsity_cost": 0.1}, {}, {}],
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_of_others_are_refused(message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_trainer(**REFUSED[message])


@pytest.mark.parametrize("name", ["mean_field_updates", "mean_field_tolerance", "layers"])
def test_options_of_deep_machines(name):
    value = {"mean_field_updates": 3, "mean_field_tolerance": 0.5, "layers": [{}]}[name]
    with pytest.raises(ValueError, match=f"^{name} is an option of a nn.DBM"):
        Trainer(nn.RBM(6, 2), TrainerConfig(**{name: value}))


def test_more_refusals(tmp_path):
    with pytest.raises(ValueError, match="sparsity_cost is an option of hidden bits or spins"):
        make_trainer(nn.DBM(6, [4, 2], hidden=["bernoulli", "gaussian"]), sparsity_cost=0.1)
    with pytest.raises(ValueError, match=r"has .* states, more than max_states"):
        large = nn.DBM(60, [60, 60], seed=0)
        make_trainer(large, negative_phase="exact", persistent=False)
    with pytest.raises(ValueError, match="observed is no option of a nn\\.DBM"):
        make_trainer().fit(DATA, observed=torch.ones(50, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="a machine of class DBM has no context"):
        make_trainer().fit(DATA, context=torch.zeros(50, 1))
    with pytest.raises(ValueError, match="noise_std is an option of Gaussian visible units"):
        make_trainer(noise_std=0.1)
    with pytest.raises(ValueError, match=r"data must have shape \(rows >= 1, 6\)"):
        make_trainer().fit(DATA[:, :5])
    path = tmp_path / "x.safetensors"
    fitted({}, checkpoint=path)
    with pytest.raises(ValueError, match="the checkpoint has 20 persistent chains"):
        Trainer.from_checkpoint(path, num_chains=30)


def test_chains_of_another_machine_are_no_checkpoint(tmp_path):
    path = tmp_path / "x.safetensors"
    trainer = fitted({}, checkpoint=path)
    state = trainer.state()
    state.state["chains"] = state.state["chains"][:, :6].clone()
    write_checkpoint(path, state)
    with pytest.raises(ModelFileError, match="damaged checkpoint"):
        Trainer.from_checkpoint(path)


# --- learning ---------------------------------------------------------------------------------------


def test_training_learns():
    """The exact likelihood of a small machine rises by as much as exact gradients make it rise."""
    data = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]).repeat(20, 1)
    found = {}
    for name, options in {
        "exact": {"negative_phase": "exact", "persistent": False},
        "pcd": {"num_steps": 5, "num_chains": 100},
    }.items():
        module = nn.DBM(4, [6, 3], centered=True, seed=0, weight_scale=0.1)
        config = {"num_epochs": 60, "batch_size": 20, "learning_rate": 0.3, **options}
        metrics = {"metrics": ["exact_log_likelihood"], "metrics_every": 60}
        record = make_trainer(module, **config, **metrics).fit(data)[-1]
        found[name] = record["exact_log_likelihood_train"]
    # Independent bits have -4 log 2 = -2.77, the best machine -log 2 = -0.69.
    assert found["exact"] > -1.2
    assert found["pcd"] == pytest.approx(found["exact"], abs=0.15)


def test_nothing_waits_for_a_device_but_the_mean_field(monkeypatch):
    """An update reads no number of a tensor outside of the mean field's look at which rows are done."""
    gradient = make_trainer(mean_field_updates=1)._gradient
    assert isinstance(gradient, DeepGradient)
    gradient(DATA[:20])
    reads = []
    for name in ("item", "__bool__", "__float__", "__int__"):
        original = getattr(Tensor, name)

        def counting(self, original=original):
            reads.append(1)
            return original(self)

        monkeypatch.setattr(Tensor, name, counting)
    gradient(DATA[:20])
    gradient.after_step()
    assert len(reads) <= 1
