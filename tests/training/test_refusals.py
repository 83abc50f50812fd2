# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What a training run refuses: data and options, each by name."""

import json

import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.training import Trainer, TrainerConfig

QUIET = {"progress": False, "seed": 3}
DATA = torch.bernoulli(torch.full((230, 6), 0.3), generator=torch.Generator().manual_seed(0))


def train(data: Tensor = DATA, validation: Tensor | None = None, **options) -> nn.RBM:
    module = nn.RBM(6, 4, seed=0)
    Trainer(module, TrainerConfig(**{**QUIET, "num_epochs": 2, **options})).fit(data, validation)
    return module


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
