# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The training loop: learning, reproducibility, resuming, refusals."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import pyro_ebm
from pyro_ebm import datasets, nn
from pyro_ebm.distributions import BernoulliRBM
from pyro_ebm.infer import exact_log_partition, log_likelihood
from pyro_ebm.nn import ModelFileError
from pyro_ebm.training import Trainer, TrainerConfig, TrainingDivergedError
from pyro_ebm.training import trainer as trainer_module

QUIET = {"progress": False, "seed": 3}
DATA = torch.bernoulli(torch.full((230, 6), 0.3), generator=torch.Generator().manual_seed(0))


def state_of(module: nn.RBM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def train(data: Tensor = DATA, validation: Tensor | None = None, **options) -> nn.RBM:
    centered = options.pop("centered", False)
    module = nn.RBM(6, 4, seed=0, centered=centered)
    Trainer(module, TrainerConfig(**{**QUIET, "num_epochs": 2, **options})).fit(data, validation)
    return module


def test_reaches_the_maximum_of_the_likelihood():
    """PCD with a falling rate ends where exact gradient ascent ends, within 0.01 nat."""
    torch.manual_seed(0)
    weight = 4.0 * torch.randn(5, 3)
    truth = BernoulliRBM(weight, -weight.sum(1) / 2, -weight.sum(0) / 2)
    data = truth.sample((3000,))

    def likelihood(module: nn.RBM) -> Tensor:
        dist = module()
        return dist.normalize(exact_log_partition(dist)).log_prob(data).mean()

    best = nn.RBM(5, 3, seed=1).init_from_data(data)
    config = TrainerConfig(
        num_epochs=150,
        batch_size=100,
        learning_rate=0.3,
        learning_rate_schedule="linear",
        persistent=True,
        num_chains=500,
        num_steps=5,
        **QUIET,
    )
    optimizer = torch.optim.LBFGS(best.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -likelihood(best)
        loss.backward()
        return loss

    optimizer.step(closure)
    # The likelihood has several maxima, so that training starts beside the one that ascent found.
    trained = nn.RBM(5, 3)
    trained.load_state_dict(best.state_dict())
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter))
    top, start = likelihood(best).item(), likelihood(trained).item()
    assert start < top - 0.1
    Trainer(trained, config).fit(data)
    assert abs(likelihood(trained).item() - top) < 0.01


@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
def test_learns_real_digits(centered):
    """Exact test log-likelihood of 12 hidden units: at least 2 nats above independent pixels."""
    digits = datasets.load("digits")
    rates, test = digits.train(), digits.binarized("test", seed=0)
    module = nn.RBM(64, 12, seed=0, centered=centered).init_from_data(rates)

    def score() -> float:
        with torch.no_grad():
            return log_likelihood(module(), test, exact_log_partition(module())).mean().item()

    independent = score()
    config = TrainerConfig(
        num_epochs=30, batch_size=50, learning_rate=0.1, persistent=True, binarize=True, **QUIET
    )
    history = Trainer(module, config).fit(rates, digits.test())
    assert score() > independent + 2.0
    assert history[-1]["reconstruction_error"] < history[0]["reconstruction_error"]


def test_same_seed_same_parameters_whatever_else_is_drawn():
    first = train(persistent=True, centered=True)
    torch.rand(17)
    assert same(state_of(first), state_of(train(persistent=True, centered=True)))
    assert not same(state_of(first), state_of(train(persistent=True, centered=True, seed=4)))
    without_seed = nn.RBM(6, 4)
    trainer = Trainer(without_seed, TrainerConfig(progress=False))
    assert trainer.config.seed is not None


def test_metrics_change_nothing():
    plain = train(persistent=True, binarize=True)
    watched = train(persistent=True, binarize=True, validation=DATA[:9], metrics_rows=7)
    assert same(state_of(plain), state_of(watched))


def test_metrics_are_what_they_say():
    module = nn.RBM(6, 4, seed=0)
    config = TrainerConfig(num_epochs=1, persistent=True, **QUIET)
    trainer = Trainer(module, config)
    (record,) = trainer.fit(DATA, DATA[:50])
    dist = module()
    with torch.no_grad():
        free_energy = dist.free_energy(DATA).mean().item()
        held_out = dist.free_energy(DATA[:50]).mean().item()
        chains = dist.free_energy(trainer.chains).mean().item()
        mean = dist.hidden_given(DATA).mean
        error = (dist.visible_given(mean).mean - DATA).square().mean().item()
    assert record["epoch"] == 1 and record["seconds"] >= 0
    assert record["free_energy_train"] == pytest.approx(free_energy)
    assert record["free_energy_gap"] == pytest.approx(held_out - free_energy, abs=1e-4)
    assert record["free_energy_chains"] == pytest.approx(chains)
    assert record["reconstruction_error"] == pytest.approx(error)
    assert record["weight_norm"] == pytest.approx(dist.weight.norm().item())
    json.dumps(record)


def test_data_of_any_dtype_and_a_partial_last_batch():
    reference = state_of(train(batch_size=100))
    for dtype in (torch.uint8, torch.bool, torch.float64):
        assert same(reference, state_of(train(DATA.to(dtype), batch_size=100)))


def test_linear_schedule_falls_to_zero(monkeypatch):
    rates = []
    original = torch.optim.SGD.step

    def recording(self, *args):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", recording)
    train(learning_rate=0.2, learning_rate_schedule="linear", num_epochs=2, batch_size=115)
    assert rates == pytest.approx([0.2, 0.15, 0.1, 0.05])


def test_weight_decay_touches_weights_only(monkeypatch):
    """With a zero gradient, one step of SGD shrinks the weights by 1 - rate * decay."""

    def no_gradient(self, batch):
        for parameter in self.module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return torch.zeros(4)

    monkeypatch.setattr(trainer_module.ContrastiveGradient, "__call__", no_gradient)
    before = state_of(nn.RBM(6, 4, seed=0))
    after = state_of(train(num_epochs=1, batch_size=230, learning_rate=0.5, weight_decay=0.1))
    assert torch.allclose(after["weight"], before["weight"] * 0.95)
    assert torch.equal(after["visible.bias"], before["visible.bias"])


def test_binarisation_draws_new_bits_with_the_given_rates(monkeypatch):
    seen = []
    original = trainer_module.ContrastiveGradient.__call__

    def recording(self, batch):
        seen.append(batch.clone())
        return original(self, batch)

    monkeypatch.setattr(trainer_module.ContrastiveGradient, "__call__", recording)
    rates = torch.linspace(0.0, 1.0, 6).expand(400, 6)
    train(rates, num_epochs=5, batch_size=400, binarize=True)
    assert all(((x == 0) | (x == 1)).all() for x in seen)
    assert not torch.equal(seen[0].sum(0), seen[1].sum(0))
    mean = torch.cat(seen).mean(0)
    error = (rates[0] * (1 - rates[0]) / 2000).sqrt() + 1e-9
    assert ((mean - rates[0]).abs() / error).max() < 6


RUNS = {
    "pcd-momentum": {"persistent": True, "momentum": 0.5, "centered": True},
    "cd-adam": {"optimizer": "adam", "learning_rate": 0.01},
    "adamw-binarised": {"optimizer": "adamw", "binarize": True, "weight_decay": 0.1},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_resumed_run_equals_uninterrupted_one(options, tmp_path, monkeypatch):
    options = dict(options)
    centered = options.pop("centered", False)
    path = tmp_path / "checkpoint.safetensors"
    schedule = {"learning_rate_schedule": "linear"}
    config = TrainerConfig(
        num_epochs=4, batch_size=50, checkpoint=path, **QUIET, **schedule, **options
    )
    whole = Trainer(nn.RBM(6, 4, seed=0, centered=centered), replace(config, checkpoint=None))
    whole.fit(DATA)

    interrupted = Trainer(nn.RBM(6, 4, seed=0, centered=centered), config)
    original = Trainer._run_epoch

    def stop_in_third_epoch(self, data, num_batches, bar):
        original(self, data, num_batches, bar)
        if self.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_run_epoch", stop_in_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(DATA)
    monkeypatch.undo()

    resumed = Trainer.from_checkpoint(path)
    assert resumed.epoch == 2
    history = resumed.fit(DATA)
    assert same(state_of(resumed.module), state_of(whole.module))
    assert (resumed.chains is None) == (whole.chains is None)
    if whole.chains is not None:
        assert torch.equal(resumed.chains, whole.chains)
    assert len(history) == 4
    for ours, theirs in zip(history, whole.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    # The final checkpoint is a model file too.
    assert same(state_of(pyro_ebm.load(path)), state_of(whole.module))


def test_longer_run_and_nothing_left_to_do(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    module = train(checkpoint=path)
    more = Trainer.from_checkpoint(path, num_epochs=3)
    assert len(more.fit(DATA)) == 3
    assert not same(state_of(more.module), state_of(module))
    done = Trainer.from_checkpoint(path)
    assert len(done.fit(DATA)) == 3


def test_checkpoints_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model file"):
        Trainer.from_checkpoint(tmp_path / "missing.safetensors")
    model = tmp_path / "model.safetensors"
    pyro_ebm.save(nn.RBM(6, 4), model)
    with pytest.raises(ModelFileError, match="not the state of a training run"):
        Trainer.from_checkpoint(model)
    path = tmp_path / "checkpoint.safetensors"
    train(checkpoint=path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ModelFileError, match=r"checkpoint\.safetensors"):
        Trainer.from_checkpoint(path)


def test_divergence_is_an_error_and_keeps_the_last_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    config = TrainerConfig(num_epochs=1, checkpoint=path, **QUIET)
    Trainer(nn.RBM(6, 4, "gaussian", seed=0), config).fit(DATA)
    trainer = Trainer.from_checkpoint(path, num_epochs=30, learning_rate=1e6, num_steps=5)
    with pytest.raises(TrainingDivergedError, match="lower learning_rate"):
        trainer.fit(DATA)
    # What the file holds was written before the parameters overflowed.
    kept = Trainer.from_checkpoint(path)
    assert 1 <= kept.epoch < 30
    assert all(torch.isfinite(p).all() for p in kept.module.parameters())


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (torch.zeros(10, 5), r"data must have shape \(rows >= 1, 6\), got \(10, 5\)"),
        (torch.zeros(6), r"got \(6,\)"),
        (torch.zeros(0, 6), r"got \(0, 6\)"),
        (torch.full((10, 6), 0.5), "data has 10 of 10 rows outside of"),
        (torch.cat([DATA, torch.full((1, 6), float("nan"))]), "data has 1 of 231 rows"),
    ],
)
def test_bad_data(data, match):
    with pytest.raises(ValueError, match=match):
        train(data)


def test_bad_rates_and_validation():
    with pytest.raises(ValueError, match=r"data has 1 of 231 rows outside of \[0, 1\]"):
        train(torch.cat([DATA, torch.full((1, 6), 1.5)]), binarize=True)
    with pytest.raises(ValueError, match="validation must have shape"):
        train(validation=torch.zeros(3, 7))
    with pytest.raises(TypeError, match=r"module must be a pyro_ebm\.nn\.RBM, got Linear"):
        Trainer(torch.nn.Linear(2, 2), TrainerConfig())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_epochs", -1),
        ("num_epochs", 1.5),
        ("batch_size", 0),
        ("num_steps", True),
        ("num_chains", 0),
        ("seed", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "fast"),
        ("momentum", 1.0),
        ("weight_decay", -0.1),
        ("offset_rate", 2.0),
        ("optimizer", "sdg"),
        ("learning_rate_schedule", "cosine"),
        ("metrics_rows", 0),
        ("checkpoint_every", 0),
    ],
)
def test_impossible_options_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*, got {value!r}"):
        TrainerConfig(**{name: value})


def test_config_round_trip(tmp_path):
    config = TrainerConfig(num_epochs=3, checkpoint=tmp_path / "x.safetensors", seed=1)
    values = json.loads(json.dumps(config.to_dict()))
    assert TrainerConfig.from_dict(values).to_dict() == config.to_dict()
    with pytest.raises(ValueError, match=r"unknown training options \['epochs'\]"):
        TrainerConfig.from_dict({"epochs": 3})
    with pytest.raises(ValueError, match="momentum is an option of 'sgd'"):
        TrainerConfig(optimizer="adam", momentum=0.9)
