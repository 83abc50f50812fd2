# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Objectives of the classification RBM: exact gradients, and what a run does with them."""

import math

import numpy as np
import pytest
import torch

from pyro_ebm.training import TrainerConfig, class_fields
from pyro_ebm.training.class_fields import ClassFields
from pyro_ebm.training.classification_gradient import ClassificationGradient
from pyro_ebm.training.gradient import ContrastiveGradient
from tests import brute_force
from tests.distributions.families import to_machine
from tests.training.labelled import HIDDEN, LAYERS, NUM_CLASSES, class_module, some_inputs

OBJECTIVES = {
    "generative": {"objective": "generative"},
    "discriminative": {"objective": "discriminative"},
    "hybrid": {"objective": "hybrid", "generative_weight": 0.3},
}
WEIGHTS = {"generative": (0.0, 1.0), "discriminative": (1.0, 0.0), "hybrid": (1.0, 0.3)}
#: Classes of five rows, -1 where unknown.
LABELS = {"labelled": [0, 2, 1, 1, 0], "some": [0, -1, 1, -1, -1], "unlabelled": [-1] * 5}
UNLABELLED_WEIGHT = 0.7
#: Entries of flat names that are stored under others.
STORED = {
    "weight": "weight",
    "visible.0_bias": "visible.inputs.bias",
    "visible.0_loc": "visible.inputs.loc",
    "visible.1_bias": "visible.labels.bias",
    "hidden.bias": "hidden.bias",
    "hidden.loc": "hidden.loc",
    "hidden.precision": "hidden.log_precision",
}

centred_or_not = pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])


def make_gradient(module, seed=0, **options):
    config = TrainerConfig(**{"negative_phase": "exact", **options})
    return ClassificationGradient(module, config, torch.Generator().manual_seed(seed))


def close(actual, expected):
    torch.testing.assert_close(
        torch.as_tensor(actual), torch.as_tensor(expected), rtol=0.0, atol=1e-9
    )


def log_sum(x):
    return brute_force.log_sum(x, np.ones(x.shape[-1]))


def loss(machine, x, labels, class_weight, generative_weight):
    """The objective from the definition of the energy; complex parameters give complex values."""
    size = NUM_CLASSES
    rows = [np.concatenate([row, label]) for row in x for label in np.eye(size)]
    joint = -brute_force.free_energy(machine, np.array(rows)).reshape(-1, size)
    v, weights = brute_force.points(machine.visible)
    log_z = brute_force.log_sum(-brute_force.free_energy(machine, v), weights)
    total = 0.0
    for values, label in zip(joint, labels, strict=True):
        if label < 0:
            total -= UNLABELLED_WEIGHT * (log_sum(values) - log_z)
        else:
            total -= class_weight * (values[label] - log_sum(values))
            total -= generative_weight * (values[label] - log_z)
    return total / len(x)


def assert_gradient(module, x, labels, objective):
    """What stands in .grad is the derivative of the objective by complex steps."""
    machine = to_machine(module().detach())
    for name, value in brute_force.parameters(machine).items():
        if name.endswith("offset") or name == "visible.0_precision":
            continue

        def at(p, name=name):
            moved = brute_force.with_parameter(machine, name, p)
            return loss(moved, x.numpy(), labels, *WEIGHTS[objective])

        expected = brute_force.derivative(at, value)
        if name == "hidden.precision":
            expected = expected * value
        close(module.get_parameter(STORED[name]).grad, expected)


CASES = [(objective, rows) for objective in OBJECTIVES for rows in LABELS]


@centred_or_not
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_gradients_of_objectives(case, centered):
    objective, rows = case
    module = class_module("bernoulli", "bernoulli", centered=centered)
    x = some_inputs("bernoulli", 5)
    options = {**OBJECTIVES[objective], "unlabelled_weight": UNLABELLED_WEIGHT}
    gradient = make_gradient(module, **options)
    batch = module.join(x, torch.tensor(LABELS[rows]))
    for p in module.parameters():  # what was there before does not matter
        p.grad = torch.full_like(p, 7.0)
    gradient(batch)
    assert_gradient(module, x, LABELS[rows], objective)
    gradient.start(batch)
    gradient(batch)
    assert_gradient(module, x, LABELS[rows], objective)


@centred_or_not
@pytest.mark.parametrize("hidden", HIDDEN)
def test_gradients_of_hidden_families(hidden, centered):
    module = class_module("bernoulli", hidden, centered=centered)
    x = some_inputs("bernoulli", 5)
    options = {**OBJECTIVES["hybrid"], "unlabelled_weight": UNLABELLED_WEIGHT}
    make_gradient(module, **options)(module.join(x, torch.tensor(LABELS["some"])))
    assert_gradient(module, x, LABELS["some"], "hybrid")


@pytest.mark.parametrize("visible", [v for v in LAYERS if v != "bernoulli"])
def test_gradients_of_inputs(visible):
    module = class_module(visible, "bernoulli", centered=True)
    x = some_inputs(visible, 5)
    options = {**OBJECTIVES["hybrid"], "unlabelled_weight": UNLABELLED_WEIGHT}
    make_gradient(module, **options)(module.join(x, torch.tensor(LABELS["some"])))
    if visible == "gaussian":  # log Z by quadrature takes long for every parameter
        machine = to_machine(module().detach())

        def at(p):
            moved = brute_force.with_parameter(machine, "visible.0_loc", p)
            return loss(moved, x.numpy(), LABELS["some"], *WEIGHTS["hybrid"])

        expected = brute_force.derivative(at, machine.visible.parameters["0_loc"])
        close(module.get_parameter("visible.inputs.loc").grad, expected)
    else:
        assert_gradient(module, x, LABELS["some"], "hybrid")


def test_zero_weights():
    """Rows without a label, and the generative part, do nothing at weight zero."""
    module = class_module("bernoulli", "bernoulli", centered=True)
    x, labels = some_inputs("bernoulli", 5), torch.tensor(LABELS["some"])
    make_gradient(module, objective="hybrid", generative_weight=0.0, unlabelled_weight=0.0)(
        module.join(x, labels)
    )
    got = {name: p.grad.clone() for name, p in module.named_parameters()}
    known = labels >= 0
    make_gradient(module, objective="discriminative")(module.join(x[known], labels[known]))
    for name, p in module.named_parameters():
        close(got[name], p.grad * int(known.sum()) / 5)


@centred_or_not
@pytest.mark.parametrize("hidden", ["bernoulli", "ising"])
@pytest.mark.parametrize("chunk", [1, 7, 2**17])
def test_left_out_units_and_chunks(chunk, hidden, centered, monkeypatch):
    """With factors of the hidden units, against autograd of the definition."""
    monkeypatch.setattr(class_fields, "_CHUNK_ENTRIES", chunk)
    module = class_module("bernoulli", hidden, centered=centered)
    x = torch.rand(4, 3, dtype=torch.float64)
    keep = torch.rand(4, 2, dtype=torch.float64)
    labels = torch.eye(3, dtype=torch.float64)[torch.tensor([2, 0, 1, 1])]
    weights = torch.tensor([[0.3], [-0.2], [1.0], [0.0]], dtype=torch.float64)
    form = module().canonical()
    theta = (x @ form.weight[:3] + form.hidden_bias).unsqueeze(1) + form.weight[3:]
    if hidden == "ising":
        by_unit = torch.log(2 * torch.cosh(theta))
    else:
        by_unit = torch.log(1 + theta.exp())
    logits = (by_unit * keep.unsqueeze(1)).sum(-1) + form.visible_bias[3:]
    value = -(weights * labels * torch.log_softmax(logits, -1)).sum()
    expected = torch.autograd.grad(value, list(module.parameters()), allow_unused=True)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    fields = ClassFields(module, x, keep)
    close(fields.logits, logits.detach())
    fields.add_gradient(labels, weights)
    for p, wanted in zip(module.parameters(), expected, strict=True):
        close(p.grad, torch.zeros_like(p) if wanted is None else wanted)


def test_dropout_is_right_on_average():
    """Factors are 0 or 1 / (1 - p), and one for rows without a label."""
    module = class_module("bernoulli", "bernoulli")
    gradient = make_gradient(
        module, negative_phase="gibbs", objective="hybrid", dropout=[0.25, 0.0]
    )
    x = torch.zeros(20_000, 3, dtype=torch.float64)
    known = (torch.arange(len(x)) % 2 == 0).unsqueeze(-1)
    keep = gradient._keep(x, known)
    assert set(keep[known.squeeze()].unique().tolist()) == {0.0, 1 / 0.75}
    assert bool((keep[~known.squeeze()] == 1.0).all())
    error = math.sqrt(0.25 / 0.75 / 20_000)
    assert abs(keep[known.squeeze()].mean().item() - 1.0) < 6 * error
    gradient.start_epoch(1)
    assert gradient._keep(x, None) is None
    # Chains have all units: dropout belongs to the classes.
    assert gradient.generative.config.dropout == 0.0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_chains(objective):
    """The generative part is contrastive divergence times its weight, with the same random numbers."""
    options = {"negative_phase": "gibbs", "persistent": True, "num_chains": 4, "num_steps": 2}
    config = TrainerConfig(**options, **OBJECTIVES[objective])
    module = class_module("bernoulli", "bernoulli", centered=True)
    batch = module.join(some_inputs("bernoulli", 5), torch.tensor(LABELS["labelled"]))
    make_gradient(module, objective="discriminative")(batch)
    classes = {name: p.grad.clone() for name, p in module.named_parameters()}
    alone = ContrastiveGradient(module, config, torch.Generator().manual_seed(3))
    alone(batch)
    chains = {name: p.grad.clone() for name, p in module.named_parameters()}
    gradient = ClassificationGradient(module, config, torch.Generator().manual_seed(3))
    gradient(batch)
    class_weight, generative_weight = WEIGHTS[objective]
    for name, p in module.named_parameters():
        close(p.grad, class_weight * classes[name] + generative_weight * chains[name])
    if objective == "discriminative":
        assert gradient.chains is None and not gradient.state()
        return
    assert torch.equal(gradient.chains, alone.chains) and gradient.chains.shape == (4, 6)
    other = ClassificationGradient(module, config, torch.Generator().manual_seed(4))
    other.restore({name: tensor.clone() for name, tensor in gradient.state().items()})
    assert torch.equal(other.chains, gradient.chains)
    # Labels of chains are one-hot.
    assert bool((module.split(gradient.chains)[1].sum(-1) == 1).all())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rows", LABELS)
def test_offsets_follow_the_hidden_mean(objective, rows):
    module = class_module("bernoulli", "bernoulli", centered=True)
    batch = module.join(some_inputs("bernoulli", 5), torch.tensor(LABELS[rows]))
    gradient = make_gradient(
        module, negative_phase="gibbs", offset_rate=0.5, **OBJECTIVES[objective]
    )
    gradient(batch)
    offset = module.hidden_offset.clone()
    dist = module().detach()
    if rows == "labelled":
        mean = dist.hidden.mean(dist.hidden_field(batch)).mean(0)
        gradient.after_step()
        close(module.hidden_offset, offset + 0.5 * (mean - offset))
    else:
        gradient.after_step()
        assert not torch.equal(module.hidden_offset, offset)


def test_frozen_parameters_stay_without_gradient():
    module = class_module("bernoulli", "bernoulli")
    module.weight.requires_grad_(False)
    module.visible.labels.bias.requires_grad_(False)
    batch = module.join(some_inputs("bernoulli", 5), torch.tensor(LABELS["some"]))
    make_gradient(module, objective="discriminative", unlabelled_weight=0.0)(batch)
    assert module.weight.grad is None and module.visible.labels.bias.grad is None
    assert bool(module.hidden.bias.grad.any())


@pytest.mark.parametrize(
    ("options", "hidden", "message"),
    [
        (
            {"preconditioner": "diagonal"},
            "bernoulli",
            "preconditioner is an option of objective='gen",
        ),
        (
            {"dropconnect": 0.1},
            "bernoulli",
            "dropconnect is an option of objective='generative' only",
        ),
        ({"dropout": 0.1}, "gaussian", "dropout"),
    ],
)
def test_options_that_an_objective_does_not_have(options, hidden, message):
    module = class_module("bernoulli", hidden)
    with pytest.raises(ValueError, match=message):
        make_gradient(module, negative_phase="gibbs", objective="hybrid", **options)


def test_dropout_of_the_joint_law_needs_labels():
    module = class_module("bernoulli", "bernoulli")
    gradient = make_gradient(module, negative_phase="gibbs", dropout=0.5)
    x = some_inputs("bernoulli", 5)
    gradient.start(module.join(x, torch.tensor(LABELS["labelled"])))
    with pytest.raises(ValueError, match="take rows with labels only"):
        gradient.start(module.join(x, torch.tensor(LABELS["some"])))
