# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The classification RBM: exact class probabilities, and all that an RBM can do."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import pyro_ebm
from pyro_ebm import nn
from pyro_ebm.distributions import units
from pyro_ebm.infer import estimate_log_partition, exact_log_partition
from tests import brute_force
from tests.distributions.families import to_machine
from tests.training.labelled import LAYERS, class_module, some_inputs

PAIRS = list(itertools.product(LAYERS, ("bernoulli", "ising", "categorical", "gaussian", "relu")))


def close(actual, expected):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=0.0,
        atol=1e-9,
    )


def brute_log_joint(module, x):
    """-F(x, y) of every row and class, from the definition of the energy, shape (rows, classes)."""
    machine = to_machine(module())
    columns = []
    for label in torch.eye(module.num_classes, dtype=torch.float64):
        rows = torch.cat([x, label.expand(len(x), -1)], -1)
        columns.append(-brute_force.free_energy(machine, rows.numpy()).real)
    return torch.as_tensor(np.stack(columns, -1))


@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_class_probabilities_against_enumeration(pair, centered):
    module = class_module(*pair, centered=centered)
    x = some_inputs(pair[0], 4)
    expected = torch.log_softmax(brute_log_joint(module, x), -1)
    close(module.log_class_probabilities(x).detach(), expected)
    assert torch.equal(module.predict(x), expected.argmax(-1))


def test_class_logits_in_chunks(monkeypatch):
    module = class_module("bernoulli", "bernoulli", centered=True)
    x = some_inputs("bernoulli", 7)
    whole = module.class_logits(x)
    monkeypatch.setattr("pyro_ebm.nn.classification_rbm._CHUNK_ENTRIES", 1)
    close(module.class_logits(x).detach(), whole.detach())


def test_grey_levels_have_class_probabilities():
    """log p(y | x) is -F(x, y) up to a constant, also between the states of the input."""
    module = class_module("bernoulli", "bernoulli", centered=True)
    x = torch.rand(5, 3, dtype=torch.float64)
    expected = torch.log_softmax(brute_log_joint(module, x), -1)
    close(module.log_class_probabilities(x).detach(), expected)


def test_class_logits_are_differentiable():
    module = class_module("bernoulli", "bernoulli", centered=True)
    x = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module.log_class_probabilities, (x,))


def test_rows():
    module = nn.ClassificationRBM(2, 3, 4, seed=0)
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.5, 0.0]])
    rows = module.join(x, torch.tensor([3, 0, -1]))
    assert rows.tolist() == [
        [0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        [1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
        [0.5, 0.0, 0.0, 0.0, 0.0, 0.0],
    ]
    back, labels = module.split(rows)
    assert torch.equal(back, x)
    assert torch.equal(module.join(back, labels), rows)
    assert module.join(x.double(), labels).dtype == torch.float64
    assert module.join(x.bool(), labels.bool()).dtype == torch.float32


@pytest.mark.parametrize(
    "x, labels, error, message",
    [
        ([[0.0]], torch.zeros(1).long(), TypeError, "x must be a tensor, got list"),
        (torch.zeros(2, 3), torch.zeros(2).long(), ValueError, r"x must have shape \(rows, 2\)"),
        (torch.zeros(2, 2), [0, 1], TypeError, "labels must be a tensor, got list"),
        (
            torch.zeros(2, 2),
            torch.tensor([0, 4]),
            ValueError,
            "labels must be classes 0 to 3.*1 of 2",
        ),
        (torch.zeros(2, 2), torch.tensor([0, -2]), ValueError, "labels must be classes 0 to 3"),
        (
            torch.zeros(2, 2),
            torch.zeros(2),
            ValueError,
            r"whole numbers of shape \(2,\) or one-hot",
        ),
        (torch.zeros(2, 2), torch.zeros(3).long(), ValueError, "labels must be whole numbers"),
        (torch.zeros(2, 2), torch.ones(2, 4), ValueError, "labels must be one-hot; 2 of 2"),
        (torch.zeros(1, 2), torch.full((1, 4), torch.nan), ValueError, "labels must be one-hot"),
    ],
)
def test_what_cannot_be_joined(x, labels, error, message):
    with pytest.raises(error, match=message):
        nn.ClassificationRBM(2, 3, 4, seed=0).join(x, labels)


def test_wrong_arguments():
    module = nn.ClassificationRBM(2, 3, 4, seed=0)
    with pytest.raises(ValueError, match="x must be finite, 1 of 2 rows are not"):
        module.class_logits(torch.tensor([[0.0, torch.nan], [0.0, 1.0]]))
    with pytest.raises(
        ValueError, match=r"rows must be a tensor of shape \(..., 6\), got \(2, 5\)"
    ):
        module.split(torch.zeros(2, 5))
    for bad in (1, 0, True, 2.0):
        with pytest.raises(ValueError, match="num_classes must be a whole number >= 2"):
            nn.ClassificationRBM(2, 3, bad)
    with pytest.raises(ValueError, match="num_hidden must be a whole number"):
        nn.ClassificationRBM(2, 0, 3)
    with pytest.raises(ValueError, match="unknown unit family 'bits'"):
        nn.ClassificationRBM(2, 3, 3, visible="bits")


# --- it is an RBM ---------------------------------------------------------------------------------


def normalized(dist):
    return dist.normalize(exact_log_partition(dist))


@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centred"])
def test_the_joint_law(centered):
    """log p(x, y) with log Z, and p(y | x) as its ratio to p(x)."""
    module = class_module("bernoulli", "bernoulli", centered=centered)
    with torch.no_grad():
        dist = module().detach()
    states = dist.visible.states(0, dist.visible.num_states)
    _, _, p = brute_force.joint(to_machine(dist))
    close(normalized(dist).log_prob(states).exp().sort()[0], np.sort(p.sum(1)))
    x, labels = module.split(states)
    joint = dist.log_prob(states).reshape(-1, module.num_classes)
    own = (module.log_class_probabilities(x) * labels).sum(-1).reshape(joint.shape)
    close(own.detach(), torch.log_softmax(joint, -1))


def test_annealed_importance_sampling():
    module = class_module("bernoulli", "bernoulli", centered=True)
    with torch.no_grad():
        dist = module().detach()
    estimate = estimate_log_partition(dist, num_chains=200, num_temperatures=100, seed=0)
    error = estimate.value.item() - exact_log_partition(dist).item()
    assert abs(error) < 6 * estimate.std_error.item()


def test_samples_of_a_class():
    """With the label clamped, chains have the law of p(x | y)."""
    module = class_module("bernoulli", "bernoulli", centered=True)
    with torch.no_grad():
        dist = module(num_gibbs_steps=50).detach()
    mask = torch.tensor([False] * 3 + [True] * 3)
    rows = module.join(torch.zeros(3, 3, dtype=torch.float64), torch.arange(3))
    given = dist.clamp(mask, rows)
    draws = given.sample((3000,), generator=torch.Generator().manual_seed(0))
    x = units.Bernoulli(torch.zeros(3, dtype=torch.float64)).states(0, 8)
    p = torch.softmax(brute_log_joint(module, x), 0)
    numbers = (draws @ torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)).long()
    for k in range(3):
        counts = torch.bincount(numbers[:, k], minlength=8)
        result = stats.chisquare(counts.numpy(), 3000 * p[:, k].numpy())
        assert result.pvalue > 1e-7
        # The machine that is left knows p(x | y) itself.
        close(normalized(dist.clamp(mask, rows[k])).log_prob(x).exp(), p[:, k])


# --- ownership of parameters ----------------------------------------------------------------------


@pytest.mark.parametrize("visible", LAYERS)
def test_files(visible, tmp_path: Path):
    module = class_module(visible, "bernoulli", centered=True)
    assert json.loads(json.dumps(module.config())) == module.config()
    pyro_ebm.save(module, tmp_path / "model.safetensors")
    again = pyro_ebm.load(tmp_path / "model.safetensors")
    assert type(again) is nn.ClassificationRBM and again.config() == module.config()
    assert module.state_dict().keys() == again.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_initial_parameters():
    module = nn.ClassificationRBM(3, 4, 2, centered=True, weight_scale=0.5, seed=3)
    assert set(dict(module.named_parameters())) == {
        "weight",
        "visible.inputs.bias",
        "visible.labels.bias",
        "hidden.bias",
    }
    assert module.weight.shape == (5, 4) and module.visible_offset.shape == (5,)
    assert "visible_offset" in module.state_dict()
    same = nn.ClassificationRBM(3, 4, 2, centered=True, weight_scale=0.5, seed=3)
    assert torch.equal(module.weight, same.weight)
    large = nn.ClassificationRBM(300, 200, 2, weight_scale=0.5, seed=3)
    assert 0.49 < large.weight.std() < 0.51
    assert nn.ClassificationRBM(3, 4, 2, dtype=torch.float64)().weight.dtype == torch.float64


def test_start_at_the_data():
    module = nn.ClassificationRBM(2, 4, 3, centered=True, dtype=torch.float64, seed=0)
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    rows = module.join(x, torch.tensor([1, 1, 2, -1]))
    module.init_from_data(rows)
    close(module.visible().mean()[:2].detach(), x.mean(0))
    # Rates of labels are those of the labelled rows, no class being impossible.
    rates = module.visible().mean()[2:].detach()
    close(
        rates,
        units.Categorical(torch.zeros(1, 3).double())
        .from_mean(torch.tensor([0, 2 / 3, 1 / 3]))
        .mean(),
    )
    assert rates[1] > 0.66 and 0 < rates[0] < 0.01
    close(module.visible_offset, rows.mean(0))
    bias = module.visible.labels.bias.clone()
    module.init_from_data(module.join(x, torch.full((4,), -1)))
    assert torch.equal(module.visible.labels.bias, bias)


def test_offsets_change_no_probability():
    module = class_module("bernoulli", "ising", centered=True)
    x = some_inputs("bernoulli", 4)
    with torch.no_grad():
        before = normalized(module()).log_prob(module.join(x, torch.tensor([0, 1, 2, 0])))
    classes = module.log_class_probabilities(x).detach()
    module.shift_offsets(torch.randn(6).double(), torch.randn(2).double())
    with torch.no_grad():
        after = normalized(module()).log_prob(module.join(x, torch.tensor([0, 1, 2, 0])))
    close(after, before)
    close(module.log_class_probabilities(x).detach(), classes)
