# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Runs of the trainer on a classification RBM."""

from pathlib import Path

import pytest
import torch

from pyro_ebm import nn
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.training import Trainer, TrainerConfig
from pyro_ebm.training.classification_gradient import ClassificationGradient
from tests.training.machines import assert_same_state, make_module, some_bits

NUM_CLASSES = 3
#: The bits of every class: three patterns that share pixels.
PATTERNS = torch.tensor(
    [[1, 1, 1, 0, 0, 0, 0, 1], [0, 0, 1, 1, 1, 0, 1, 0], [1, 0, 0, 0, 1, 1, 1, 1]]
)
FLIP = 0.15


def some_rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy patterns and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % NUM_CLASSES
    flips = torch.rand(count, 8, generator=generator) < FLIP
    return (PATTERNS[labels].bool() ^ flips).float(), labels


def bayes_error(x: torch.Tensor, labels: torch.Tensor) -> float:
    """The error of the rule that knows how the rows are made: the nearest pattern."""
    distance = (x[:, None] != PATTERNS.float()).sum(-1)
    return (distance.argmin(-1) != labels).float().mean().item()


def make_trainer(centered=True, **options):
    module = nn.ClassificationRBM(8, 12, NUM_CLASSES, centered=centered, seed=0)
    defaults = {"num_epochs": 12, "batch_size": 30, "learning_rate": 0.05, "optimizer": "adam"}
    config = TrainerConfig(**{**defaults, "seed": 0, "progress": False, **options})
    return Trainer(module, config)


def error_after(**options):
    """Test error beyond that of the best rule."""
    trainer = make_trainer(**options)
    trainer.fit(trainer.module.join(*some_rows(300, 0)))
    x, labels = some_rows(3000, 1)
    wrong = (trainer.module.predict(x) != labels).float().mean().item()
    return wrong - bayes_error(x, labels)


@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
@pytest.mark.parametrize(
    "options",
    [
        {"objective": "generative", "learning_rate": 0.02, "num_epochs": 20},
        {"objective": "discriminative"},
        {"objective": "hybrid", "generative_weight": 0.1},
        {"objective": "hybrid", "dropout": 0.3},
    ],
    ids=["generative", "discriminative", "hybrid", "dropout"],
)
def test_learns_the_classes(options, centered):
    assert error_after(centered=centered, **options) < 0.05


def test_rows_without_labels_are_learnt():
    """Without any label, the law of the inputs."""
    trainer = make_trainer(objective="discriminative", persistent=True)
    module = trainer.module
    x, _ = some_rows(300, 0)
    test, _ = some_rows(3000, 1)

    def log_evidence():
        with torch.no_grad():
            dist = module()
            log_z = exact_log_partition(dist)
            rows = [module.join(test, torch.full((3000,), k)) for k in range(NUM_CLASSES)]
            joint = torch.stack([-dist.free_energy(r) for r in rows])
            return (joint.logsumexp(0) - log_z).mean().item()

    independent = torch.distributions.Bernoulli(test.mean(0)).log_prob(test).sum(-1).mean().item()
    assert log_evidence() < independent
    trainer.fit(module.join(x, torch.full((300,), -1)))
    assert log_evidence() > independent + 0.3


@pytest.mark.parametrize("objective", ["generative", "discriminative", "hybrid"])
def test_resumed_equals_uninterrupted(objective, tmp_path: Path):
    path = tmp_path / "run.safetensors"
    options = {"objective": objective, "persistent": True, "dropout": 0.2, "averaging": 0.9}
    x, labels = some_rows(60, 0)
    whole = make_trainer(num_epochs=4, **options)
    rows = whole.module.join(x, labels)
    whole.fit(rows)
    make_trainer(num_epochs=2, checkpoint=path, **options).fit(rows)
    again = Trainer.from_checkpoint(path, num_epochs=4)
    assert isinstance(again.module, nn.ClassificationRBM)
    again.fit(rows)
    assert_same_state(whole.module, again.module)
    assert_same_state(whole.averaged, again.averaged)


def test_binarised_inputs():
    """Labels are no rates: only inputs are drawn anew."""
    x, labels = some_rows(60, 0)
    trainer = make_trainer(num_epochs=1, binarize=True, persistent=True)
    trainer.fit(trainer.module.join(0.9 * x + 0.05, labels))
    drawn, own = trainer.module.split(trainer.chains)
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and bool((own.sum(-1) == 1).all())


def test_the_gradient_of_the_trainer():
    trainer = make_trainer()
    assert isinstance(trainer._gradient, ClassificationGradient)


def test_objectives_are_of_classification_machines():
    config = TrainerConfig(objective="hybrid", num_epochs=1, progress=False)
    with pytest.raises(ValueError, match="objective"):
        Trainer(make_module(("bernoulli", "bernoulli")), config).fit(some_bits(10, 3))
