# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Bits of rates in the blocks of mixed layers, and rows of a classification RBM."""

import math

import pytest
import torch

from pyro_ebm import nn
from pyro_ebm.training import TrainerConfig
from pyro_ebm.training.training_data import TrainingData, check_data_options, draw_states
from tests.nn.conditional import make_nbm

RATES = TrainerConfig(binarize=True)


def check(module, rows, context=None, observed=None, **options):
    config = TrainerConfig(**options)
    rows = torch.as_tensor(rows, dtype=torch.float64)
    return TrainingData.check("data", module, config, rows, context, observed).rows


def draw(module, rows, seed=0):
    return draw_states(rows, module, RATES, torch.Generator().manual_seed(seed))


def test_bits_of_a_mixed_layer():
    """One bit, one real number and one group of three: only the bit is drawn."""
    module = make_nbm("mixed")
    check_data_options(module, RATES)
    rows = torch.tensor([[0.3, 1.5, 0.0, 1.0, 0.0]], dtype=torch.float64).repeat(20_000, 1)
    before = rows.clone()
    states = draw(module, rows)
    assert torch.equal(rows, before) and torch.equal(states[:, 1:], rows[:, 1:])
    assert set(states[:, 0].tolist()) == {0.0, 1.0}
    assert abs(states[:, 0].mean().item() - 0.3) < 6 * math.sqrt(0.3 * 0.7 / 20_000)


def test_spins_of_a_classification_rbm():
    module = nn.ClassificationRBM(2, 3, 3, visible="ising", dtype=torch.float64, seed=0)
    check_data_options(module, RATES)
    x = torch.tensor([0.2, 1.0], dtype=torch.float64).expand(20_000, 2)
    rows = module.join(x, torch.arange(20_000) % 4 - 1)
    states, labels = module.split(draw(module, rows))
    assert torch.equal(labels, rows[:, 2:])
    assert set(states[:, 0].tolist()) == {-1.0, 1.0} and bool((states[:, 1] == 1.0).all())
    # The mean of a spin is 2 p - 1.
    assert abs(states[:, 0].mean().item() + 0.6) < 6 * 2 * math.sqrt(0.2 * 0.8 / 20_000)


def test_layers_of_layers():
    """Blocks of a block, and one that is bits from end to end."""
    bits = {"family": "bernoulli", "size": 1}
    inner = [bits, {"family": "ising", "size": 2}]
    nested = {"family": "mixed", "size": 3, "options": {"blocks": inner}}
    blocks = [{"family": "gaussian", "size": 1}, nested, bits]
    options = {"visible_options": {"blocks": blocks}, "hidden_sizes": (), "seed": 0}
    module = nn.NeuralBoltzmannMachine(1, 5, 2, "mixed", **options)
    rows = torch.tensor([[7.0, 1.0, 0.0, 1.0, 0.0]])
    assert draw(module, rows).tolist() == [[7.0, 1.0, -1.0, 1.0, 0.0]]


def test_layers_without_bits():
    block = {"family": "categorical", "size": 3, "options": {"num_states": 3}}
    options = {"visible_options": {"blocks": [block, block]}, "hidden_sizes": ()}
    module = nn.NeuralBoltzmannMachine(1, 6, 2, "mixed", **options)
    message = "binarize=True draws bits, which are no states of any block of mixed units"
    with pytest.raises(ValueError, match=message):
        check_data_options(module, RATES)
    classes = nn.ClassificationRBM(3, 2, 2, visible="gaussian")
    with pytest.raises(ValueError, match=message):
        check_data_options(classes, RATES)


@pytest.mark.parametrize(
    ("bad", "binarize"),
    [
        ([1.2, 0.0, 0.0, 1.0, 0.0], True),
        ([math.nan, 0.0, 0.0, 1.0, 0.0], True),
        ([0.3, math.inf, 0.0, 1.0, 0.0], True),
        ([0.3, 0.0, 0.3, 0.7, 0.0], True),
        ([0.3, 0.0, 0.0, 0.0, 0.0], True),
        ([0.3, 0.0, 0.0, 1.0, 0.0], False),
    ],
)
def test_rows_of_mixed_layers(bad, binarize):
    good = [1.0 - 0.4 * binarize, -3.0, 0.0, 0.0, 1.0]
    module, context = make_nbm("mixed"), torch.zeros(2, 3, dtype=torch.float64)
    assert check(module, [good, good], context, binarize=binarize).tolist() == [good, good]
    message = "data has 1 of 2 rows outside of the support of 'mixed' units or not finite"
    message += ".*rates in.*which binarize=True needs" if binarize else ""
    with pytest.raises(ValueError, match=message):
        check(module, [good, bad], context, binarize=binarize)


def test_missing_entries_of_mixed_layers():
    module, context = make_nbm("mixed"), torch.zeros(2, 3, dtype=torch.float64)
    rows = [[0.3, math.nan, 0.0, 1.0, 0.0], [math.nan, 2.0, math.nan, math.nan, math.nan]]
    observed = ~torch.tensor(rows).isnan()
    filled = check(module, rows, context, observed, binarize=True)
    assert torch.equal(filled[observed], torch.tensor(rows, dtype=torch.float64)[observed])
    assert filled[1, 0] == 0.5 and math.isfinite(filled[0, 1])
    assert sorted(filled[1, 2:].tolist()) == [0.0, 0.0, 1.0]
    observed[1, 2] = True  # a third of a one-hot group
    with pytest.raises(ValueError, match="observed must take all 3 entries"):
        check(module, [rows[0], [0.0, 2.0, 1.0, 0.0, 0.0]], context, observed, binarize=True)


@pytest.mark.parametrize("objective", ["generative", "discriminative", "hybrid"])
def test_rows_of_a_classification_rbm(objective):
    module = nn.ClassificationRBM(2, 3, 2, seed=0)
    rows = [[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]  # the second without a label
    assert check(module, rows, objective=objective).tolist() == rows
    for bad in ([1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.5, 0.5], [1.2, 0.0, 1.0, 0.0]):
        with pytest.raises(ValueError, match="data has 1 of 3 rows outside of the support"):
            check(module, [*rows, bad], objective=objective)
    grey = [[0.3, 1.0, 0.0, 1.0]]
    if objective == "generative":
        with pytest.raises(ValueError, match="data has 1 of 1 rows outside of the support"):
            check(module, grey, objective=objective)
    else:
        assert len(check(module, grey, objective=objective)) == 1
    assert len(check(module, grey, objective=objective, binarize=True)) == 1


def test_grey_levels_of_spins():
    module = nn.ClassificationRBM(1, 3, 2, visible="ising", seed=0)
    rows = [[-0.5, 0.0, 1.0], [1.0, 1.0, 0.0]]
    assert len(check(module, rows, objective="hybrid")) == 2
    with pytest.raises(ValueError, match="data has 1 of 2 rows"):
        check(module, rows, objective="hybrid", binarize=True)


def test_an_input_of_as_many_states_as_classes_is_no_label():
    module = nn.ClassificationRBM(
        3, 2, 3, visible="categorical", visible_options={"num_states": 3}, seed=0
    )
    with pytest.raises(ValueError, match="data has 1 of 1 rows outside"):
        check(module, [[0.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    assert len(check(module, [[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]])) == 1
