# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""When a machine of two continuous layers is refused."""

import itertools

import numpy as np
import pytest
import torch

from pyro_ebm.distributions import RBM, units
from tests.distributions.families import CONTINUOUS, DISCRETE, FAMILIES, random_unit


def machine(pair, weight, precision_v, precision_h):
    visible = FAMILIES[pair[0]](torch.zeros_like(precision_v), precision_v)
    hidden = FAMILIES[pair[1]](torch.zeros_like(precision_h), precision_h)
    return RBM(visible, hidden, weight)


def accepted(rbm: RBM) -> bool:
    try:
        rbm.check_normalizable()
    except ValueError as error:
        assert "not normalisable" in str(error)
        with pytest.raises(ValueError, match="not normalisable"):
            rbm.sample()
        return False
    return True


def smallest_eigenvalue(rbm: RBM) -> float:
    """Of the joint precision [[P, -W], [-W', G]]."""
    p, g = (np.diag(unit.precision.numpy()) for unit in (rbm.visible, rbm.hidden))
    w = rbm.weight.numpy()
    return float(np.linalg.eigvalsh(np.block([[p, -w], [-w.T, g]])).min())


def copositive(rbm: RBM) -> bool:
    """Whether x'Qx > 0 on the cone (rectified entries >= 0), on a fine grid of directions."""
    side = np.linspace(0, 1, 101)
    grid = np.array(list(itertools.product(side, side)))[1:]
    p, g = (unit.precision.numpy() for unit in (rbm.visible, rbm.hidden))
    w = rbm.weight.numpy()
    rectified_first = isinstance(rbm.visible, units.ReLU)
    own, other, field = (p, g, grid @ w) if rectified_first else (g, p, grid @ w.T)
    # The other layer is minimised out exactly, over the cone if it is rectified too.
    if isinstance(rbm.hidden if rectified_first else rbm.visible, units.ReLU):
        field = field.clip(min=0)
    return bool(((grid**2 * own).sum(1) - (field**2 / other).sum(1) > 0).all())


def random_machine(pair, scale):
    precision = [0.3 + 2 * torch.rand(2, dtype=torch.float64) for _ in range(2)]
    weight = scale * torch.randn(2, 2, dtype=torch.float64)
    return machine(pair, weight, *precision)


def test_gaussian_pairs_are_refused_exactly_when_not_positive_definite():
    answers = []
    for scale in np.linspace(0.2, 1.6, 150):
        rbm = random_machine(("gaussian", "gaussian"), scale)
        answers.append(accepted(rbm))
        assert answers[-1] == (smallest_eigenvalue(rbm) > 0)
    assert 30 < sum(answers) < 120  # both answers were tested


@pytest.mark.parametrize("factor", [0.999999, 1.000001])
def test_the_boundary(factor):
    weight = torch.randn(3, 2, dtype=torch.float64)
    weight = weight * factor / torch.linalg.matrix_norm(weight, ord=2)
    ones = [torch.ones(3).double(), torch.ones(2).double()]
    assert accepted(machine(("gaussian", "gaussian"), weight, *ones)) == (factor < 1)


@pytest.mark.parametrize("pair", [("gaussian", "relu"), ("relu", "gaussian"), ("relu", "relu")])
def test_rectified_pairs(pair):
    """Never accepted when Z is infinite, never refused when the joint precision is definite."""
    num_accepted, beyond = 0, 0
    for scale in np.linspace(0.2, 1.6, 100):
        rbm = random_machine(pair, scale)
        definite = smallest_eigenvalue(rbm) > 0
        if accepted(rbm):
            num_accepted += 1
            beyond += not definite
            assert copositive(rbm)
        else:
            assert not definite
    assert 20 < num_accepted < 95 and beyond > 0  # the cone is worth something


def test_negative_weights_between_rectified_layers_are_always_fine():
    ones = torch.ones(2, dtype=torch.float64)
    assert accepted(machine(("relu", "relu"), torch.full((2, 2), -50.0).double(), ones, ones))


def test_dropping_negative_entries_is_not_the_only_test():
    # S has norm 0.92, but its positive part 1.05.
    weight = 0.65 * torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    assert accepted(machine(("relu", "relu"), weight, ones, ones))


def test_any_element_of_a_batch_is_enough():
    weight = torch.stack([torch.eye(2) * 0.5, torch.eye(2) * 1.5])
    ones = torch.ones(2)
    assert accepted(machine(("gaussian", "gaussian"), weight[:1], ones, ones))
    rbm = machine(("gaussian", "gaussian"), weight, ones, ones)
    with pytest.raises(ValueError, match=r"Gaussian-Gaussian machine .* value .* is 1.5 and must"):
        rbm.check_normalizable()


@pytest.mark.parametrize("pair", list(itertools.product(CONTINUOUS, CONTINUOUS)))
def test_scalar_precisions(pair):
    for scale, fine in ((0.5, True), (3.0, False)):
        visible, hidden = (FAMILIES[family](torch.zeros(2), 2.0) for family in pair)
        assert accepted(RBM(visible, hidden, scale * torch.eye(2))) == fine


@pytest.mark.parametrize("discrete", DISCRETE)
@pytest.mark.parametrize("continuous", CONTINUOUS)
def test_a_discrete_layer_is_always_enough(discrete, continuous):
    pair = [random_unit(discrete), random_unit(continuous)]
    weight = torch.full((pair[0].size, pair[1].size), 9.0, dtype=torch.float64)
    RBM(*pair, weight).check_normalizable()
    RBM(*pair[::-1], weight.mT).check_normalizable()
