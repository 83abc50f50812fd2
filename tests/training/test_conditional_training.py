# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Whole runs of conditional models: learning, optimisers by network, metrics, resuming, refusals."""

import json
import math
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample
from torch import Tensor

import pyro_ebm
from pyro_ebm import nn
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.training import Trainer, TrainerConfig, paper_config
from pyro_ebm.training.conditional_gradient import ConditionalGradient
from tests.nn.conditional import VISIBLE, make_nbm, some_contexts
from tests.training.machines import interrupt_at

ROWS, BATCH, NUM_EPOCHS = 110, 40, 4
BATCHES = 3


def some_data(visible: str, num_contexts: int = 3, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(5))
    x = some_contexts(num_contexts)[order % num_contexts]
    torch.manual_seed(6)
    return make_nbm(visible, seed=9).condition(x).sample().detach(), x


def make_trainer(nbm: nn.NeuralBoltzmannMachine, **options) -> Trainer:
    options = {
        "num_epochs": NUM_EPOCHS,
        "batch_size": BATCH,
        "learning_rate": 0.02,
        "seed": 5,
        "progress": False,
        **options,
    }
    return Trainer(nbm, TrainerConfig(**options))


def mean_log_prob(nbm: nn.NeuralBoltzmannMachine, y: Tensor, x: Tensor) -> float:
    with torch.no_grad():
        machine = nbm.condition(x)
        return machine.normalize(exact_log_partition(machine)).log_prob(y).mean().item()


def states(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- learning ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy() -> tuple[Tensor, Tensor]:
    """Coupled bits in three contexts, from a machine with stronger couplings than a start has."""
    truth = make_nbm("ising", "ising", hidden_sizes=())
    with torch.no_grad():
        truth.weight.linear.weight.mul_(2.5)
        truth.hidden_bias.weight.mul_(0.5)
    x = torch.eye(3, dtype=torch.float64).repeat(400, 1)
    torch.manual_seed(1)
    return truth.condition(x).sample().detach(), x


def start(toy: tuple[Tensor, Tensor]) -> nn.NeuralBoltzmannMachine:
    nbm = make_nbm("ising", "ising", hidden_sizes=(), seed=3)
    return nbm.init_from_data(*toy, num_steps=150, learning_rate=0.05, seed=0)


def entropy(toy: tuple[Tensor, Tensor]) -> float:
    """The best mean log-likelihood that any model of p(y | x) has."""
    total = 0.0
    for context in torch.eye(3, dtype=torch.float64):
        rows = toy[0][(toy[1] == context).all(-1)]
        counts = rows.unique(dim=0, return_counts=True)[1]
        total += (counts * (counts.double() / len(rows)).log()).sum().item()
    return total / len(toy[0])


METHODS = {
    "exact": {"negative_phase": "exact"},
    "pcd-visible": {"persistent": True, "num_chains": 300, "num_steps": 2},
    "pcd-hidden": {"persistent": True, "num_chains": 300, "negative_side": "hidden"},
    "tempering": {
        "persistent": True,
        "num_chains": 300,
        "negative_phase": "tempering",
        "num_replicas": 3,
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_every_negative_phase_reaches_the_maximum_of_the_likelihood(method, toy):
    nbm = start(toy)
    best, before = entropy(toy), mean_log_prob(nbm, *toy)
    make_trainer(
        nbm,
        num_epochs=60,
        batch_size=400,
        optimizer="adam",
        learning_rate=0.03,
        learning_rate_schedule="cosine",
        metrics_rows=1,
        **METHODS[method],
    ).fit(toy[0], context=toy[1])
    after = mean_log_prob(nbm, *toy)
    assert before < best - 0.05, "a problem that needs no couplings would show nothing"
    assert best - 0.01 < after <= best


def test_gaussian_units_learn_their_couplings():
    """Two clusters in each context, which no independent units have, and near enough for chains."""
    torch.manual_seed(0)
    x = torch.eye(2, dtype=torch.float64).repeat(300, 1)
    sign = torch.where(torch.rand(600, 1) < 0.5 + 0.3 * x[:, :1], 1.0, -1.0)
    direction = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    y = sign * (x @ direction) + 0.7 * torch.randn(600, 2).double()
    scores = {}
    for method in ("exact", "pcd"):
        nbm = nn.NeuralBoltzmannMachine(2, 2, 2, hidden_sizes=(), seed=0, dtype=torch.float64)
        nbm.init_from_data(y, x, num_steps=100, learning_rate=0.05)
        scores["start"] = mean_log_prob(nbm, y, x)
        options = {"persistent": True, "num_chains": 200}
        if method == "exact":
            options = {"negative_phase": "exact"}
        make_trainer(
            nbm,
            num_epochs=80,
            batch_size=200,
            optimizer="adam",
            learning_rate=0.03,
            learning_rate_schedule="cosine",
            **options,
        ).fit(y, context=x)
        scores[method] = mean_log_prob(nbm, y, x)
    assert scores["exact"] > scores["start"] + 0.3
    assert abs(scores["exact"] - scores["pcd"]) < 0.02


# --- optimisers -------------------------------------------------------------------------------------


@pytest.fixture
def constant_gradient(monkeypatch) -> None:
    """Stands in for the gradient: 1/4 everywhere."""

    def gradient(this: ConditionalGradient, batch: Tensor, rows: Tensor) -> None:
        for parameter in this.module.parameters():
            parameter.grad = torch.full_like(parameter, 0.25)

    monkeypatch.setattr(ConditionalGradient, "__call__", gradient)


def one_step(
    nbm: nn.NeuralBoltzmannMachine, **options
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    y, x = some_data("gaussian")
    before = states(nbm)
    options = {"num_epochs": 1, "batch_size": ROWS, "learning_rate": 0.1, **options}
    make_trainer(nbm, **options).fit(y, context=x)
    return before, states(nbm)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_groups_are_rates_and_decays_of_networks(optimizer, constant_gradient):
    groups = {
        "weight": {"weight_decay": 1.0, "learning_rate": 0.05},
        "loc": {"weight_decay": 0.5},
        "hidden_bias": {"learning_rate": 0.2},
        "trunk": {"learning_rate": 0.0},
    }
    nbm = make_nbm("gaussian", trunk_sizes=(4,))
    before, after = one_step(nbm, optimizer=optimizer, groups=groups, weight_decay=0.3)
    rates = {"weight": 0.05, "hidden_bias": 0.2, "trunk": 0.0}
    for name, value in before.items():
        network = name.split(".")[0]
        rate = rates.get(network, 0.1)
        # The biases of a network decay too, as in the published code of the paper.
        decay = groups.get(network, {}).get("weight_decay", 0.0)
        if optimizer == "adamw":
            expected = value * (1 - rate * decay) - rate
        else:
            expected = value - rate * (0.25 + decay * value)
        torch.testing.assert_close(after[name], expected, rtol=1e-7, atol=1e-8)


def test_without_groups_the_weight_alone_decays(constant_gradient):
    before, after = one_step(make_nbm("gaussian"), weight_decay=0.5)
    for name, value in before.items():
        decay = 0.5 if name.startswith("weight.") else 0.0
        torch.testing.assert_close(after[name], value - 0.1 * (0.25 + decay * value))


def test_offsets_do_not_move():
    nbm = make_nbm("bernoulli")
    y, x = some_data("bernoulli")
    before = states(nbm)
    trainer = make_trainer(nbm, averaging=0.5)
    trainer.fit(y, context=x)
    moved = {n.split(".")[0] for n, t in nbm.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == set(nbm.network_names)
    assert all(
        torch.equal(before[n], t) for n, t in trainer.averaged.offset.named_buffers(prefix="offset")
    )


def test_the_configuration_of_the_paper():
    shared = {
        "num_epochs": 50,
        "batch_size": 128,
        "num_steps": 32,
        "persistent": False,
        "num_chains": None,
        "chain_start": "prior",
        "negative_phase": "gibbs",
        "optimizer": "adamw",
        "learning_rate_schedule": "constant",
        "averaging": 0.0,
        "gradient_clip": None,
        "groups": {
            "weight": {"weight_decay": 1.0},
            "loc": {"weight_decay": 0.5},
            "log_precision": {"weight_decay": 0.5},
        },
    }
    gaussian, ising = paper_config(), paper_config("ising", seed=3)
    for config, own in (
        (gaussian, {"learning_rate": 5e-4, "noise_std": 1e-3, "binarize": False}),
        (ising, {"learning_rate": 1e-2, "noise_std": 0.0, "binarize": True, "seed": 3}),
    ):
        values = config.to_dict()
        assert {name: values[name] for name in {**shared, **own}} == {**shared, **own}
    assert paper_config(num_steps=1, groups={}).groups == {}
    with pytest.raises(ValueError, match="visible must be 'gaussian' or 'ising', got 'bernoulli'"):
        paper_config("bernoulli")
    with pytest.raises(ValueError, match="num_steps must be"):
        paper_config(num_steps=0)


@pytest.mark.parametrize("visible", ["gaussian", "ising"])
def test_the_paper_trains(visible):
    nbm = nn.paper_nbm(3, 4, 2, visible=visible, seed=0)
    config = paper_config(visible, num_epochs=2, num_steps=3, seed=0, progress=False)
    x = torch.eye(3).repeat(50, 1)
    history = Trainer(nbm, config).fit(torch.rand(150, 4), context=x)
    assert len(history) == 2


# --- data -------------------------------------------------------------------------------------------


def record_batches(monkeypatch) -> list[tuple[Tensor, Tensor]]:
    seen: list[tuple[Tensor, Tensor]] = []

    def gradient(this: ConditionalGradient, batch: Tensor, rows: Tensor) -> None:
        seen.append((batch.clone(), rows.clone()))
        for parameter in this.module.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(ConditionalGradient, "__call__", gradient)
    return seen


def test_batches_come_with_the_numbers_of_their_rows(monkeypatch):
    seen = record_batches(monkeypatch)
    y, x = some_data("gaussian")
    make_trainer(make_nbm("gaussian"), num_epochs=2).fit(y, context=x)
    assert [len(rows) for _, rows in seen] == [40, 40, 30] * 2
    for batch, rows in seen:
        assert torch.equal(batch, y[rows])
    for epoch in (seen[:3], seen[3:]):
        assert torch.cat([rows for _, rows in epoch]).sort().values.tolist() == list(range(ROWS))


def test_noise_and_spins_are_drawn_at_every_visit(monkeypatch):
    seen = record_batches(monkeypatch)
    x = torch.zeros(1000, 3)
    grey = torch.full((1000, 2), 0.25)
    options = {"num_epochs": 2, "batch_size": 1000}
    make_trainer(make_nbm("gaussian"), noise_std=0.1, **options).fit(grey, context=x)
    noise = torch.stack([b - 0.25 for b, _ in seen])
    assert abs(noise.std().item() - 0.1) < 6 * 0.1 / math.sqrt(2 * noise.numel())
    assert abs(noise.mean().item()) < 6 * 0.1 / math.sqrt(noise.numel())
    assert len(noise.unique()) > 3990
    seen.clear()
    grey = torch.full((1000, 3), 0.25)
    make_trainer(make_nbm("ising"), binarize=True, **options).fit(grey, context=x)
    spins = torch.stack([b for b, _ in seen])
    assert spins.unique().tolist() == [-1.0, 1.0] and not torch.equal(spins[0], spins[1])
    assert abs(spins.mean().item() + 0.5) < 6 * math.sqrt(0.75 / spins.numel())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32], ids=str)
def test_data_and_contexts_of_any_type(dtype):
    bits, one_hot = (torch.arange(60).view(20, 3) % 5 < 2), torch.eye(3)[torch.arange(20) % 3]
    results = []
    for kind in (torch.float64, dtype):
        nbm = make_nbm("bernoulli")
        make_trainer(nbm, num_epochs=1).fit(bits.to(kind), context=one_hot.to(kind))
        results.append(nbm)
    assert_same(*results)


# --- metrics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("visible", ["gaussian", "ising", "mixed"])
def test_metrics_are_those_of_every_row_in_its_context(visible):
    nbm = make_nbm(visible)
    y, x = some_data(visible)
    held_out, other = some_data(visible, num_contexts=5, rows=23)
    options = {"num_epochs": 1, "metrics_rows": 17}
    trainer = make_trainer(nbm, **options)
    (record,) = trainer.fit(y, held_out, context=x, validation_context=other)
    with torch.no_grad():
        machine, validation = nbm.condition(x[:17]), nbm.condition(other[:17])
        train = machine.free_energy(y[:17]).mean().item()
        free_energy = validation.free_energy(held_out[:17]).mean().item()
        hidden = machine.hidden.mean(machine.hidden_field(y[:17]))
        mean = machine.visible.mean(machine.visible_field(hidden))
        norms = nbm.condition(torch.unique(x[:17], dim=0)).weight.flatten(1).norm(dim=-1)
    expected = {
        "epoch": 1,
        "free_energy_train": train,
        "free_energy_validation": free_energy,
        "free_energy_gap": free_energy - train,
        "reconstruction_error": (y[:17] - mean).square().mean().item(),
        "weight_norm": norms.mean().item(),
    }
    assert record.pop("seconds") >= 0
    assert record == pytest.approx(expected, rel=1e-9, abs=1e-9)
    plain = make_trainer(make_nbm(visible), **options)
    plain.fit(y, context=x)
    assert_same(plain.module, nbm)


# --- a run and its seed -----------------------------------------------------------------------------

RUNS = {
    "cd": {},
    "cd-chains": {"num_chains": 3, "chain_start": "prior"},
    "pcd": {"persistent": True},
    "tempering": {"persistent": True, "negative_phase": "tempering", "num_replicas": 3},
    "exact": {"negative_phase": "exact"},
    "averaged": {
        "persistent": True,
        "averaging": 0.9,
        "optimizer": "adamw",
        "groups": {"weight": {"weight_decay": 0.3}},
        "learning_rate_schedule": "cosine",
    },
}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_depends_on_its_seed_alone(run):
    y, x = some_data("ising")
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(results))
        state = torch.get_rng_state()
        nbm = make_nbm("ising")
        make_trainer(nbm, seed=seed, **RUNS[run]).fit(y, context=x)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(nbm)
    assert_same(*results[:2])
    assert not torch.equal(results[0].weight.linear.weight, results[2].weight.linear.weight)


def fit_until(
    step: int, trainer: Trainer, y: Tensor, x: Tensor, monkeypatch, observed: Tensor | None = None
) -> None:
    """Run until Ctrl-C arrives at the given step."""
    with interrupt_at(step, ConditionalGradient, monkeypatch):
        trainer.fit(y, context=x, observed=observed)


@pytest.mark.parametrize(
    ("visible", "num_contexts", "run"),
    [
        (visible, num_contexts, run)
        for visible, num_contexts in (
            ("gaussian", 3),
            ("ising", 3),
            ("bernoulli", 60),
            ("gaussian", 60),
            ("mixed", 3),
        )
        for run in RUNS
        # Tempering takes few contexts.
        if run != "tempering" or num_contexts == 3
    ],
)
def test_resumed_equals_uninterrupted(run, visible, num_contexts, tmp_path, monkeypatch):
    """Killed at a step that differs between the cases: between epochs, within one, in the last one."""
    step = BATCHES + (7 * len(visible) + 3 * list(RUNS).index(run) + num_contexts) % (3 * BATCHES)
    y, x = some_data(visible, num_contexts)
    path = tmp_path / "checkpoint.safetensors"
    whole = make_trainer(make_nbm(visible), **RUNS[run])
    whole.fit(y, context=x)
    trainer = make_trainer(make_nbm(visible), checkpoint=path, **RUNS[run])
    fit_until(step, trainer, y, x, monkeypatch)
    torch.manual_seed(123)
    resumed = Trainer.from_checkpoint(path)
    assert resumed.epoch == step // BATCHES
    resumed.fit(y, context=x)
    assert_same(resumed.module, whole.module)
    assert_same(resumed.averaged, whole.averaged)
    if whole.chains is None:
        assert resumed.chains is None
    else:
        assert torch.equal(resumed.chains, whole.chains)
    for ours, theirs in zip(resumed.history, whole.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    # The checkpoint is a model file too.
    assert_same(pyro_ebm.load(path), whole.module)


def test_every_part_of_the_state_matters(tmp_path, monkeypatch):
    """A resumed run without its chains, its replicas or its average ends elsewhere."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    y, x = some_data("ising")
    options = {**RUNS["tempering"], "averaging": 0.9}
    whole = make_trainer(make_nbm("ising"), **options)
    whole.fit(y, context=x)
    path = tmp_path / "checkpoint.safetensors"
    fit_until(7, make_trainer(make_nbm("ising"), checkpoint=path, **options), y, x, monkeypatch)
    with safe_open(str(path), framework="pt") as file:
        header = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    for lost in ("training.chains", "training.kernel.", "average."):
        kept = {name: t for name, t in tensors.items() if not name.startswith(lost)}
        assert len(kept) < len(tensors), lost
        damaged = tmp_path / "damaged.safetensors"
        save_file(kept, damaged, metadata=header)
        resumed = Trainer.from_checkpoint(damaged, checkpoint=None)
        resumed.fit(y, context=x)
        same = [
            torch.equal(a, b)
            for a, b in zip(resumed.averaged.parameters(), whole.averaged.parameters(), strict=True)
        ]
        assert not all(same), lost


def test_the_options_of_a_run_come_back(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    y, x = some_data("ising")
    trainer = make_trainer(make_nbm("ising"), checkpoint=path, num_epochs=1, **RUNS["averaged"])
    trainer.fit(y, context=x)
    again = Trainer.from_checkpoint(path, num_epochs=2)
    assert again.config.groups == trainer.config.groups
    assert json.dumps(again.config.to_dict()) != json.dumps(trainer.config.to_dict())
    assert len(again.fit(y, context=x)) == 2
    assert again.averaged is not again.module


def frozen_trunk() -> nn.NeuralBoltzmannMachine:
    nbm = make_nbm("ising", trunk_sizes=(5,))
    nbm.trunk.requires_grad_(False)
    return nbm


@pytest.mark.parametrize("run", ["cd", "averaged"])
def test_a_frozen_trunk_stays_frozen(run, tmp_path, monkeypatch):
    """Also when a run goes on, whose optimiser has one state a trained parameter."""
    y, x = some_data("ising")
    path = tmp_path / "checkpoint.safetensors"
    options = {"optimizer": "adam", **RUNS[run]}
    whole = make_trainer(frozen_trunk(), **options)
    whole.fit(y, context=x)
    start = frozen_trunk().trunk.state_dict()
    fit_until(7, make_trainer(frozen_trunk(), checkpoint=path, **options), y, x, monkeypatch)
    resumed = Trainer.from_checkpoint(path)
    names = {n for n, p in resumed.module.named_parameters() if not p.requires_grad}
    assert names == {f"trunk.0.{name}" for name in ("weight", "bias")}
    resumed.fit(y, context=x)
    assert_same(resumed.module, whole.module)
    assert_same(resumed.averaged, whole.averaged)
    for trainer in (whole, resumed):
        assert all(torch.equal(start[n], t) for n, t in trainer.module.trunk.state_dict().items())


def test_a_frozen_weight_of_an_rbm_is_not_trained():
    module = nn.RBM(6, 2, seed=0)
    module.weight.requires_grad_(False)
    before = states(module)
    data = torch.bernoulli(torch.full((50, 6), 0.3), generator=torch.Generator().manual_seed(0))
    make_trainer(module, num_epochs=1).fit(data)
    assert torch.equal(module.weight, before["weight"])
    assert not torch.equal(module.visible.bias, before["visible.bias"])


@pytest.mark.parametrize(
    "change",
    [
        {"negative_side": "hidden"},
        {"num_chains": 7},
        {"persistent": False},
        {"negative_phase": "tempering"},
    ],
    ids=str,
)
def test_chains_are_not_taken_for_others(change, tmp_path):
    """Spins have as many visible as hidden units here: shapes would not tell."""
    y, x = some_data("ising")
    path = tmp_path / "checkpoint.safetensors"
    nbm = make_nbm("ising")
    assert nbm.num_visible == nbm.num_hidden
    make_trainer(nbm, checkpoint=path, num_epochs=1, **RUNS["pcd"]).fit(y, context=x)
    (name, value) = next(iter(change.items()))
    with pytest.raises(ValueError, match=f"^{name} must stay .*, got {value!r}"):
        Trainer.from_checkpoint(path, **change)
    assert Trainer.from_checkpoint(path, num_epochs=2, num_steps=3).epoch == 1
    # Without chains everything can change.
    make_trainer(make_nbm("ising"), checkpoint=path, num_epochs=1).fit(y, context=x)
    assert Trainer.from_checkpoint(path, negative_side="hidden", persistent=True).epoch == 1


# --- networks of one's own --------------------------------------------------------------------------


class Picky(torch.nn.Sequential):
    """A network with batch norm and dropout that takes tables of one-hot contexts only."""

    def __init__(self, size: int) -> None:
        kwargs = {"dtype": torch.float64}
        super().__init__(
            torch.nn.Linear(3, 8, **kwargs),
            torch.nn.BatchNorm1d(8, **kwargs),
            torch.nn.Dropout(0.5),
            torch.nn.Linear(8, size, **kwargs),
        )

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 2 and bool((x.sum(-1) == 1).all()), "no context"
        return super().forward(x)


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_networks_are_asked_about_contexts_of_the_data_only(missing):
    x = torch.eye(3, dtype=torch.float64)[torch.arange(40) % 3]
    y = (some_contexts(40) > 0).double() * 2 - 1
    observed = torch.ones(40, 3, dtype=torch.bool)
    observed[0, 0] = not missing
    nbm = make_nbm("ising", networks={"bias": Picky(3)})
    trainer = make_trainer(nbm, num_epochs=1, metrics_rows=10)
    (record,) = trainer.fit(y, y, context=x, validation_context=x, observed=observed)
    assert nbm.bias.training and nbm.bias[2].training
    # Metrics are those of evaluation mode.
    nbm.eval()
    with torch.no_grad():
        expected = nbm.condition(x[:10]).free_energy(y[:10]).mean().item()
    assert record["free_energy_validation"] == pytest.approx(expected, abs=1e-12)


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (None, r"context must have shape \(110, 3\), got None"),
        (torch.zeros(109, 3), r"context must have shape \(110, 3\), got \(109, 3\)"),
        (torch.zeros(110, 2), r"context must have shape \(110, 3\), got \(110, 2\)"),
        (torch.full((110, 3), math.nan), "context holds NaN or infinite values"),
    ],
    ids=["none", "rows", "entries", "nan"],
)
def test_bad_contexts(context, message):
    y, x = some_data("ising")
    nbm = make_nbm("ising")
    before = states(nbm)
    with pytest.raises(ValueError, match=f"^{message}"):
        make_trainer(nbm).fit(y, context=context)
    with pytest.raises(ValueError, match=f"^validation_{message}"):
        make_trainer(nbm).fit(y, y, context=x, validation_context=context)
    assert all(torch.equal(before[name], t) for name, t in nbm.state_dict().items())


def test_random_weights_are_refused():
    nbm = make_nbm("ising")
    layer = nbm.bias[0]
    layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand(layer.weight.shape).to_event(2))
    with pytest.raises(ValueError, match=r"weights \['bias\.0\.weight'\] of the model are random"):
        make_trainer(nbm)


def test_data_and_contexts_are_tensors():
    y, x = some_data("ising")
    trainer = make_trainer(make_nbm("ising"))
    with pytest.raises(TypeError, match=r"^data must be a tensor, got ndarray"):
        trainer.fit(y.numpy(), context=x)
    with pytest.raises(TypeError, match=r"^context must be a tensor, got ndarray"):
        trainer.fit(y, context=x.numpy())
    with pytest.raises(TypeError, match=r"^validation_context must be a tensor, got ndarray"):
        trainer.fit(y, y, context=x, validation_context=x.numpy())
    with pytest.raises(TypeError, match=r"^observed must be a tensor, got ndarray"):
        trainer.fit(y, context=x, observed=(y > 0).numpy())


BAD = {
    "ising": [1.0, 0.0, 1.0],
    "bernoulli": [1.0, 0.5, 1.0],
    "categorical": [1.0, 1, 0, 0, 0, 1],
    "multinomial": [1.0, 1, 2],
    "gaussian": [0.0, math.inf],
    "low-rank": [0.0, math.nan],
    "mixed": [1.0, 0.3, 0.0, 1.0, 1.0],
}


@pytest.mark.parametrize("visible", BAD)
def test_values_outside_of_the_support(visible):
    y, x = some_data(visible)
    family = VISIBLE[visible][0]
    bad = torch.cat([y, torch.tensor([BAD[visible]], dtype=torch.float64)])
    contexts = torch.cat([x, x[:1]])
    message = f"data has 1 of 111 rows outside of the support of '{family}' units"
    with pytest.raises(ValueError, match=message):
        make_trainer(make_nbm(visible)).fit(bad, context=contexts)


@pytest.mark.parametrize("visible", ["categorical", "multinomial"])
def test_bits_are_no_states_of_these(visible):
    with pytest.raises(ValueError, match="binarize=True draws bits, which are no states of"):
        make_trainer(make_nbm(visible), binarize=True)


@pytest.mark.parametrize("visible", ["ising", "bernoulli", "categorical", "mixed"])
def test_noise_is_of_gaussian_units(visible):
    with pytest.raises(ValueError, match="noise_std is an option of Gaussian visible units"):
        make_trainer(make_nbm(visible), noise_std=0.1)


def test_groups_name_networks():
    message = (
        r"groups names networks \['bias', 'mu'\]; the model has \['hidden_bias', 'loc', 'log_p"
    )
    with pytest.raises(ValueError, match=message):
        make_trainer(make_nbm("gaussian"), groups={"mu": {}, "bias": {}, "weight": {}})


def test_a_model_that_cannot_be_written_is_refused_before_it_trains(tmp_path: Path):
    nbm = make_nbm("gaussian", networks={"loc": torch.nn.Linear(3, 2, dtype=torch.float64)})
    with pytest.raises(TypeError, match=r"networks \['loc'\] were given to this module"):
        make_trainer(nbm, checkpoint=tmp_path / "x.safetensors")
    y, x = some_data("gaussian")
    assert len(make_trainer(nbm, num_epochs=1).fit(y, context=x)) == 1


def test_layers_that_cannot_be_enumerated_have_no_exact_phase():
    nbm = nn.NeuralBoltzmannMachine(1, 60, 50, "bernoulli")
    trainer = make_trainer(nbm, negative_phase="exact")
    with pytest.raises(ValueError, match="states"):
        trainer.fit(torch.zeros(3, 60), context=torch.zeros(3, 1))
