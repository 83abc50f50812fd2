# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Impossible options and bad data are refused by name, before anything is changed."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample

from pyro_ebm import nn
from pyro_ebm.nn.tied_rbm import TiedRBM
from pyro_ebm.training import TiedTrainer, Trainer, TrainerConfig
from tests.training.machines import LAYERS, make_module, some_bits, state_of

NAN, INF = float("nan"), float("inf")
WHOLE = [0, -1, 1.0, True, "1", None, NAN]

#: Values that an option cannot have.
IMPOSSIBLE = {
    "num_epochs": [-1, 1.5, True, "1", None, NAN],
    "batch_size": WHOLE,
    "num_steps": WHOLE,
    "metrics": [
        "weight_norm",
        ("weight_norms",),
        ("mmd", "mmd"),
        1,
        True,
        (1,),
        [["mmd"]],
        {"mmd"},
    ],
    "metrics_every": WHOLE,
    "metrics_options": [None, [], "mmd", {"mmd": 1}, {"mmd": None}],
    "metrics_rows": WHOLE,
    "monitor": ["", 1, True, ["mmd"]],
    "monitor_mode": ["lower", "", None, 0, ["min"]],
    "patience": [0, -1, 1.0, True, "1", NAN],
    "min_delta": [-1e-9, NAN, INF, "0", None],
    "best_checkpoint": [1, True, b"bytes", 0.5],
    "checkpoint_every": WHOLE,
    "num_chains": [0, -1, 2.0, True, "1", NAN],
    "seed": [-1, 1.0, True, "1", 2**64, NAN],
    "learning_rate": [0, 0.0, -0.1, NAN, INF, "0.1", None, True, np.float32(0.1)],
    "momentum": [-0.1, 1, 1.0, NAN, "0.9", None],
    "weight_decay": [-1e-9, NAN, INF, "0", None],
    "offset_rate": [-0.1, 1.1, NAN, "0", None],
    "optimizer": ["lbfgs", "sparseadam", "muon", "adafactor", "optimizer", "", None, 1, ["sgd"]],
    "optimizer_options": [None, [], "x", {1: 2}],
    "schedule_options": [None, [], "x", {1: 2}],
    "learning_rate_schedule": ["exponential", "LambdaLR", "OneCycleLR", "", None, 0],
    "decoupled_weight_decay": ["no", 1, None],
    "preconditioner": ["adam", "", None, 0],
    "damping": [0, 0.0, -1.0, NAN, INF, "1", None],
    "fast_rate": [-0.1, NAN, INF, "0", None, True],
    "fast_decay": [-0.1, 1, 1.0, NAN, "0.9", None],
    "positive_hidden": ["states", "", None, 0, True],
    "chain_hidden": ["states", "", None, 0],
    "chain_visible": ["states", "", None, 0],
    "negative_hidden": ["states", "", None, 0],
    "l1": [-1e-9, NAN, INF, "0", None],
    "max_norm": [0, 0.0, -1.0, NAN, INF, "1", True],
    "sparsity_target": [0, 0.0, 1, 1.0, -0.1, NAN, "0.1", None],
    "sparsity_cost": [-1e-9, NAN, INF, "0", None],
    "sparsity_damping": [-0.1, 1, 1.0, NAN, "0.9", None],
    "dropout": [-0.1, 1, 1.0, NAN, "0.5", None],
    "dropconnect": [-0.1, 1, 1.0, NAN, "0.5", None],
    "objective": ["joint", "", None, 0],
    "generative_weight": [-1e-9, NAN, INF, "0", None],
    "unlabelled_weight": [-1e-9, NAN, INF, "0", None],
    "averaging": [-0.1, 1, 1.0, NAN, "0.9", None],
    "gradient_clip": [0, 0.0, -1.0, NAN, INF, "1", True],
    "groups": [
        None,
        [],
        "weight",
        {"weight": 1.0},
        {"weight": {"decay": 1.0}},
        {"weight": {"weight_decay": -1.0}},
        {"weight": {"learning_rate": NAN}},
        {"weight": {"weight_decay": "1"}},
        {"weight": {"weight_decay": None}},
    ],
    "chain_start": ["mean", "", None, 0, ["data"]],
    "persistent_start": ["mean", "prior", "", None, 0, ["data"]],
    "mean_field_updates": WHOLE,
    "mean_field_tolerance": [-1e-9, NAN, INF, "0", None],
    "layers": [
        None,
        {},
        "max_norm",
        [None],
        ["max_norm"],
        [{"dropout": 0.5}],
        [{"max_norm": -1.0}],
        [{}, {"sparsity_cost": NAN}],
        [{"sparsity_target": "0.1"}],
    ],
    "negative_phase": ["cd", "", None, 0],
    "negative_side": ["both", "", None, 0],
    "num_replicas": [1, *WHOLE],
    "missing": ["mcar", "", None, 0],
    "noise_std": [-0.1, NAN, INF, "0", None],
    "persistent": ["no", 1, None],
    "binarize": ["no", 1, None],
    "progress": ["no", 1, None],
    "checkpoint": [1, True, b"bytes", 0.5],
}
CASES = [(name, value) for name, values in IMPOSSIBLE.items() for value in values]


def test_every_option_is_tested():
    assert set(IMPOSSIBLE) == {field.name for field in fields(TrainerConfig)}


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{n}={v!r}" for n, v in CASES])
def test_impossible_options_are_named(name, value):
    with pytest.raises(ValueError) as error:
        TrainerConfig(**{name: value})
    assert str(error.value).startswith(f"{name} must be ")
    assert str(error.value).endswith(f", got {value!r}")
    # A change of an existing configuration is checked too.
    with pytest.raises(ValueError, match=f"^{name} must be "):
        replace(TrainerConfig(), **{name: value})


@pytest.mark.parametrize(
    "values",
    [
        {"num_epochs": 0},
        {"num_chains": 1, "seed": 0, "batch_size": 1},
        {"seed": 2**64 - 1},
        {"learning_rate": 1, "momentum": 0, "weight_decay": 0, "offset_rate": 1},
        {"learning_rate": np.float64(0.1)},
        {"checkpoint": "x"},
        {"checkpoint": Path("x")},
        {"averaging": 0, "gradient_clip": 1e-9, "groups": {}, "num_replicas": 2, "noise_std": 0},
        {"learning_rate_schedule": "cosine", "averaging": 0.999, "gradient_clip": None},
    ],
    ids=str,
)
def test_values_at_the_border_are_accepted(values):
    config = TrainerConfig(**values)
    assert {name: getattr(config, name) for name in values} == values
    Trainer(nn.RBM(2, 2), replace(config, checkpoint=None))


@pytest.mark.parametrize(
    "values",
    [
        {"groups": {"weight": {"weight_decay": 0, "learning_rate": 1e-3}, "bias": {}}},
        {"groups": MappingProxyType({"weight": MappingProxyType({"weight_decay": 0.5})})},
        {"chain_start": "prior"},
        {"negative_side": "hidden"},
    ],
    ids=str,
)
def test_options_of_conditional_models(values):
    config = TrainerConfig(num_epochs=1, **values)
    assert TrainerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert isinstance(hash(config), int)
    # They are refused where they mean nothing, and not ignored.
    with pytest.raises(ValueError, match=f"^{min(values)}.* is an option of conditional models"):
        Trainer(nn.RBM(2, 2), config)


def test_tempering_is_of_persistent_chains():
    with pytest.raises(ValueError, match="negative_phase='tempering' needs persistent=True"):
        TrainerConfig(negative_phase="tempering")


@pytest.mark.parametrize(
    "option", [{"persistent": True}, {"num_chains": 5}, {"negative_side": "hidden"}]
)
def test_the_exact_phase_has_no_chains(option):
    with pytest.raises(
        ValueError, match=f"{next(iter(option))} is an option of chains: negative_ph"
    ):
        TrainerConfig(negative_phase="exact", **option)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_momentum_is_of_sgd(optimizer):
    with pytest.raises(ValueError, match=rf"momentum is an option of .*, not of '{optimizer}'"):
        TrainerConfig(optimizer=optimizer, momentum=0.5)


def test_positions_and_unknown_names():
    with pytest.raises(TypeError, match="positional"):
        TrainerConfig(10)
    with pytest.raises(TypeError, match="epochs"):
        TrainerConfig(epochs=3)
    with pytest.raises(AttributeError):
        TrainerConfig().num_epochs = 3


#: Configurations that have no option at its default between them.
ALL_OPTIONS = [
    TrainerConfig(
        num_epochs=3,
        batch_size=7,
        learning_rate=[0.1, 0.05],
        num_steps=lambda epoch: epoch + 1,
        persistent=True,
        num_chains=5,
        seed=2**63 + 1,
        optimizer_options={"nesterov": True},
        momentum=0.3,
        weight_decay=1e-4,
        decoupled_weight_decay=True,
        learning_rate_schedule="linear",
        averaging=0.9,
        gradient_clip=1.5,
        preconditioner="standardize",
        damping=0.1,
        groups={"weight": {"weight_decay": 0.5}},
        fast_rate=1e-3,
        fast_decay=0.5,
        positive_hidden="sample",
        chain_hidden="mean",
        chain_visible="mean",
        negative_hidden="sample",
        l1=1e-3,
        max_norm=3.0,
        sparsity_target=0.2,
        sparsity_cost=[0.0, 0.1],
        sparsity_damping=0.5,
        dropout=0.5,
        dropconnect=0.25,
        objective="hybrid",
        generative_weight=0.5,
        unlabelled_weight=0.5,
        binarize=True,
        noise_std=0.1,
        offset_rate=0.2,
        metrics=["pseudo_log_likelihood", "mmd"],
        metrics_every=2,
        metrics_options={"mmd": {"kernel": "hamming", "every": 3}},
        metrics_rows=9,
        monitor="pseudo_log_likelihood_validation",
        monitor_mode="max",
        patience=4,
        min_delta=0.5,
        best_checkpoint=Path("runs") / "best.safetensors",
        checkpoint=Path("runs") / "x.safetensors",
        checkpoint_every=4,
        progress=False,
    ),
    TrainerConfig(
        optimizer="RMSprop",
        learning_rate_schedule="StepLR",
        schedule_options={"step_size": 2},
        chain_start="prior",
        negative_phase="tempering",
        persistent=True,
        negative_side="hidden",
        num_replicas=4,
    ),
    TrainerConfig(missing="absent"),
    TrainerConfig(
        persistent=True,
        persistent_start="data",
        mean_field_updates=9,
        mean_field_tolerance=1e-3,
        layers=[{"max_norm": 2.0}, {"sparsity_cost": 0.1, "sparsity_target": 0.3}],
    ),
]


def test_all_options_are_tried():
    defaults = TrainerConfig()
    same = [
        f.name
        for f in fields(TrainerConfig)
        if all(getattr(c, f.name) == getattr(defaults, f.name) for c in ALL_OPTIONS)
    ]
    assert same == []


@pytest.mark.parametrize("config", ALL_OPTIONS, ids=["rbm", "conditional", "absent", "deep"])
def test_round_trip_by_json(config):
    values = config.to_dict()
    again = TrainerConfig.from_dict(json.loads(json.dumps(values)))
    assert again.to_dict() == values
    no_paths = {"checkpoint": None, "best_checkpoint": None}
    assert asdict(again) | no_paths == asdict(config) | no_paths
    for name in no_paths:
        path = getattr(config, name)
        assert path is None or Path(getattr(again, name)) == path
    assert TrainerConfig.from_dict(TrainerConfig().to_dict()) == TrainerConfig()


def test_dictionaries_are_checked():
    with pytest.raises(ValueError, match=r"unknown training options \['epochs', 'rate'\]"):
        TrainerConfig.from_dict({"rate": 1, "epochs": 2, "num_epochs": 3})
    with pytest.raises(ValueError, match=r"^batch_size must be"):
        TrainerConfig.from_dict({"batch_size": -1})
    # Options that an older file lacks have their defaults.
    assert TrainerConfig.from_dict({"num_epochs": 3}) == TrainerConfig(num_epochs=3)


# --- modules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [torch.nn.Linear(2, 2), None, nn.RBM(2, 2)()], ids=repr)
def test_only_modules_of_the_package_are_trained(module):
    message = r"module must be a pyro_ebm\.nn\.RBM, DBM or NeuralBoltzmannMachine, got "
    with pytest.raises(TypeError, match=message):
        Trainer(module, TrainerConfig())


@pytest.mark.parametrize("copies", [{"visible_copies": 2}, {"hidden_copies": 2}], ids=str)
def test_tied_copies_have_a_trainer_of_their_own(copies):
    """Another would take rows for sums of copies, and say nothing."""
    module = TiedRBM(3, 2, **copies)
    with pytest.raises(TypeError, match=r"TiedRBM.*pyro_ebm\.training\.TiedTrainer"):
        Trainer(module, TrainerConfig())
    assert TiedTrainer(module, TrainerConfig()).module is module


@pytest.mark.parametrize("family", LAYERS)
def test_bits_must_be_states_of_the_visible_units(family):
    """Bits are no one-hot groups and no counts; they are real numbers, and spins in disguise."""
    module = make_module((family, "bernoulli"))
    config = TrainerConfig(binarize=True, num_epochs=1, progress=False)
    if family in ("categorical", "multinomial"):
        with pytest.raises(ValueError, match=f"binarize=True draws bits, .* of '{family}' units"):
            Trainer(module, config)
    else:
        data = some_bits(20, module.weight.shape[0])
        assert len(Trainer(module, config).fit(data)) == 1


@pytest.mark.parametrize("family", LAYERS)
def test_noise_is_of_gaussian_units(family):
    """Bits with noise are no bits, and rectified units would become negative."""
    module = make_module((family, "bernoulli"))
    config = TrainerConfig(noise_std=0.1, num_epochs=1, progress=False)
    if family == "gaussian":
        assert len(Trainer(module, config).fit(torch.zeros(20, 2))) == 1
    else:
        with pytest.raises(ValueError, match=f"noise_std is an option of Gaussian .* '{family}'"):
            Trainer(module, config)


def test_data_are_tensors():
    trainer = Trainer(nn.RBM(6, 2), TrainerConfig(num_epochs=1, progress=False))
    with pytest.raises(TypeError, match=r"^data must be a tensor, got ndarray"):
        trainer.fit(some_bits(20).numpy())
    with pytest.raises(TypeError, match=r"^validation must be a tensor, got ndarray"):
        trainer.fit(some_bits(20), some_bits(20).numpy())


def test_random_weights_are_refused():
    module = nn.RBM(6, 2)
    module.weight = PyroSample(dist.Normal(0.0, 1.0).expand((6, 2)).to_event(2))
    with pytest.raises(ValueError, match=r"weights \['weight'\] of the model are random"):
        Trainer(module, TrainerConfig())


def test_an_rbm_has_no_context():
    data = some_bits(20)
    trainer = Trainer(nn.RBM(6, 2), TrainerConfig(num_epochs=1, progress=False))
    with pytest.raises(
        ValueError, match="context is given, but a machine of class RBM has no context"
    ):
        trainer.fit(data, context=torch.zeros(20, 1))
    with pytest.raises(
        ValueError, match="validation_context is given, but a machine of class RBM has"
    ):
        trainer.fit(data, data, validation_context=torch.zeros(20, 1))


# --- data ---------------------------------------------------------------------------------------

#: One row outside of the support of the family with the sizes of LAYERS, and good rows.
OUTSIDE = {
    "bernoulli": [[0.0, 0.5, 1.0], [0, -1, 0], [0, 2, 0], [0, NAN, 0], [0, INF, 0]],
    "ising": [[1.0, 0.0, 1.0], [1, 2, 1], [1, NAN, 1]],
    "categorical": [[1.0, 1, 0, 0, 0, 1], [0, 0, 0, 1, 0, 0], [0.5, 0.5, 0, 1, 0, 0]],
    "multinomial": [[1.0, 1, 2], [3, 1, -1], [1.5, 1.5, 0], [NAN, 0, 3]],
    "gaussian": [[0.0, NAN], [INF, 0.0], [0.0, -INF]],
    "relu": [[1.0, -0.1], [NAN, 1.0], [INF, 1.0]],
}
BAD_ROWS = [(family, row) for family, rows in OUTSIDE.items() for row in rows]


def refuse(module: nn.RBM, message: str, data, validation=None, **options) -> None:
    trainer = Trainer(module, TrainerConfig(num_epochs=1, progress=False, **options))
    before = state_of(module)
    with pytest.raises(ValueError, match=message):
        trainer.fit(data, validation)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert trainer.history == [] and trainer.epoch == 0


@pytest.mark.parametrize("where", ["data", "validation"])
@pytest.mark.parametrize(("family", "row"), BAD_ROWS, ids=[f"{f}-{r}" for f, r in BAD_ROWS])
def test_values_outside_of_the_support(family, row, where):
    module = make_module((family, "bernoulli"), centered=True, dtype=torch.float32)
    with torch.no_grad():
        good = module().sample((6,))
    bad = torch.cat([good, torch.tensor([row], dtype=torch.float32)])
    message = f"{where} has 1 of 7 rows outside of the support of '{family}' units"
    if where == "data":
        refuse(module, message, bad)
    else:
        refuse(module, message, good, bad)


@pytest.mark.parametrize("where", ["data", "validation"])
@pytest.mark.parametrize("value", [-0.001, 1.001, NAN, INF, 255.0])
def test_rates_outside_of_the_unit_interval(value, where):
    rates = torch.full((5, 3), 0.5)
    bad = rates.clone()
    bad[2, 1] = value
    message = rf"{where} has 1 of 5 rows outside of \[0, 1\], which binarize=True needs"
    arguments = (bad, None) if where == "data" else (rates, bad)
    refuse(make_module(("bernoulli", "bernoulli")), message, *arguments, binarize=True)


def test_bytes_of_grey_levels_are_no_rates():
    grey = torch.tensor([[0, 128, 255]], dtype=torch.uint8)
    refuse(make_module(("bernoulli", "bernoulli")), "data has 1 of 1 rows", grey, binarize=True)


@pytest.mark.parametrize("shape", [(5, 4), (5, 2), (3,), (0, 3), (2, 5, 3), ()], ids=str)
@pytest.mark.parametrize("where", ["data", "validation"])
@pytest.mark.parametrize("binarize", [False, True], ids=["bits", "rates"])
def test_wrong_shapes(shape, where, binarize):
    module = make_module(("bernoulli", "bernoulli"), centered=True)
    bad, good = torch.zeros(shape), torch.zeros(5, 3)
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    message = rf"{where} must have shape \(rows >= 1, 3\), got {got}"
    arguments = (bad, None) if where == "data" else (good, bad)
    refuse(module, message, *arguments, binarize=binarize)
