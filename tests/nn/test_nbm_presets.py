# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Models of the literature: sizes, formulas, what depends on the context and what does not."""

import pytest
import torch
from torch import Tensor

from pyro_ebm import nn
from tests.nn.conditional import some_contexts


def sizes(nbm: nn.NeuralBoltzmannMachine) -> dict[str, int]:
    groups = nbm.parameter_groups()
    return {name: sum(p.numel() for p in group) for name, group in groups.items()}


@pytest.mark.parametrize("visible", ["gaussian", "ising"])
def test_the_model_of_the_paper_has_its_size(visible):
    nbm = nn.paper_nbm(10, 784, visible=visible, seed=0)
    assert sizes(nbm) == {"loc": 26_224, "log_precision": 26_224, "weight": 551_936}
    assert sum(p.numel() for p in nbm.parameters()) == 604_384
    assert nbm.num_hidden == 64 and nbm.offset is None
    machine = nbm.condition(torch.eye(10))
    assert not machine.hidden.bias.any()
    # The initial W of the published code has a standard deviation of 0.0092.
    assert machine.weight.std().item() == pytest.approx(0.0092, abs=0.0002)


def double_paper(visible: str, scale: float = 1.0) -> tuple[nn.NeuralBoltzmannMachine, Tensor]:
    nbm = nn.paper_nbm(3, 4, 2, visible=visible, seed=0, dtype=torch.float64)
    with torch.no_grad():
        for parameter in nbm.parameters():
            parameter.mul_(scale)
    return nbm, some_contexts(5)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_parameters_of_the_paper(scale):
    nbm, x = double_paper("gaussian", scale)
    machine = nbm.condition(x)
    raw = nbm.log_precision(x)
    assert (raw.abs().max() > 7) == (scale > 1)
    torch.testing.assert_close(machine.visible.precision, raw.exp().clamp(1e-3, 1e3))
    torch.testing.assert_close(machine.visible.loc, nbm.loc(x))
    torch.testing.assert_close(machine.visible_offset, nbm.loc(x))
    torch.testing.assert_close(machine.weight, nbm.weight(x) / 2.0)


def test_the_spins_of_the_paper():
    """y | h is Ising(P mu + W h) with mu through a tanh; h | y is Ising(W'(y - mu))."""
    nbm, x = double_paper("ising", 2.0)
    machine = nbm.condition(x)
    mu, precision = nbm.loc(x).tanh(), nbm.log_precision(x).exp()
    h = torch.tensor([1.0, -1.0], dtype=torch.float64)
    y = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    visible = (precision * mu + machine.weight @ h).tanh()
    torch.testing.assert_close(machine.visible.mean(machine.visible_field(h)), visible)
    hidden = ((y - mu).unsqueeze(-2) @ machine.weight).squeeze(-2).tanh()
    torch.testing.assert_close(machine.hidden.mean(machine.hidden_field(y)), hidden)


def test_the_paper_has_two_visible_families():
    with pytest.raises(ValueError, match="visible must be 'gaussian' or 'ising', got 'bernoulli'"):
        nn.paper_nbm(3, 4, visible="bernoulli")


def test_options_of_presets_can_be_changed():
    nbm = nn.paper_nbm(3, 4, 2, hidden_bias=True, visible_options={"bound": "soft"})
    assert "hidden_bias" in nbm.network_names
    assert nbm.config()["visible_options"] == {"bound": "soft"}
    assert (
        nn.ConditionalRBM(3, 4, 2, "gaussian", "ising", hidden_sizes=(5,)).loc[0].out_features == 5
    )


def test_options_that_are_not_changed_stay():
    nbm = nn.paper_nbm(3, 4, 2, "ising", visible_options={"min_precision": 1e-2})
    expected = {"bound": "hard", "form": "quadratic", "min_precision": 1e-2}
    assert nbm.config()["visible_options"] == expected
    assert nn.paper_nbm(3, 4, visible_options=None).config()["visible_options"] == {"bound": "hard"}
    factored = nn.FactoredConditionalRBM(3, 4, 2, num_factors=5, weight_options={})
    assert factored.config()["weight_options"] == {"num_factors": 5}
    basis = {"weight": "basis", "weight_options": {"num_bases": 3}}
    options = nn.FactoredConditionalRBM(3, 4, 2, **basis).config()["weight_options"]
    assert options == {"num_bases": 3}


def test_the_weight_of_a_conditional_rbm_does_not_depend_on_the_context():
    nbm = nn.ConditionalRBM(3, 4, 2, seed=0, dtype=torch.float64)
    x = some_contexts(5)
    machine = nbm.condition(x)
    assert machine.batch_shape == (5,) and machine.weight.shape == (4, 2)
    assert torch.equal(machine.weight, nbm.condition(x + 1.0).weight)
    # Biases are affine in x.
    for bias, network in ((machine.visible.bias, nbm.bias), (machine.hidden.bias, nbm.hidden_bias)):
        torch.testing.assert_close(bias, x @ network.weight.T + network.bias)
    assert nbm.visible_family == nbm.config()["hidden"] == "bernoulli"


def test_the_weight_of_a_factored_conditional_rbm_has_low_rank():
    nbm = nn.FactoredConditionalRBM(3, 6, 5, num_factors=2, seed=0, dtype=torch.float64)
    weight = nbm.condition(some_contexts(5)).weight
    assert (torch.linalg.matrix_rank(weight) <= 2).all()
    assert not torch.allclose(weight[0], weight[1])
    with pytest.raises(ValueError, match="num_factors must be a whole number >= 1, got 0"):
        nn.FactoredConditionalRBM(3, 6, 5, num_factors=0)


@pytest.mark.parametrize(
    "make", [nn.ConditionalRBM, nn.FactoredConditionalRBM], ids=lambda f: f.__name__
)
@pytest.mark.parametrize(
    ("visible", "options"),
    [("gaussian", {}), ("ising", {}), ("categorical", {"num_states": 2})],
)
def test_presets_take_every_family(make, visible, options):
    nbm = make(3, 4, 2, visible, "ising", visible_options=options)
    machine = nbm.condition(torch.zeros(2, 3))
    y = machine.sample((3,))
    assert y.shape == (3, 2, 4) and bool(machine.support.check(y).all())
