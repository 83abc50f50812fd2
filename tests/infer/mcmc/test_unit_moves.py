# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Proposals of informed kernels against their definitions, state by state."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_ebm.distributions import units
from pyro_ebm.infer.mcmc.unit_moves import BinaryMoves, OneHotMoves, UnitMoves, moves_of
from tests.distributions.families import random_unit
from tests.infer.mcmc.frequencies import have_probabilities

FAMILIES = ["bernoulli", "ising", "categorical"]


def layer(family: str) -> tuple[UnitMoves, Tensor, Tensor, int]:
    """Moves of a layer, all of its states, a gradient for each, and the width of a unit."""
    unit = random_unit(family)
    moves = moves_of(unit.support, unit.size)
    assert moves is not None and unit.num_states is not None
    states = unit.states(0, unit.num_states)
    return moves, states, 3.0 * torch.randn_like(states), unit.unit_states().shape[1]


def differences(x: Tensor, y: Tensor, gradient: Tensor, width: int) -> list[tuple[float, float]]:
    """First-order difference and squared distance of every unit of two states."""
    result = []
    for i in range(0, len(x), width):
        change = (y - x)[i : i + width]
        result.append((float(gradient[i : i + width] @ change), float(change @ change)))
    return result


def single_weight(x: Tensor, y: Tensor, gradient: Tensor, width: int) -> float:
    """Weight of y among what one change can reach from x: exp(d / 2), 0 if it takes two changes."""
    moved = [d for d, distance in differences(x, y, gradient, width) if distance > 0]
    return 0.0 if len(moved) > 1 else math.exp(sum(moved) / 2)


def joint_weight(x: Tensor, y: Tensor, gradient: Tensor, width: int, step_size: float) -> float:
    terms = differences(x, y, gradient, width)
    return math.exp(sum(d / 2 - distance / (2 * step_size) for d, distance in terms))


@pytest.mark.parametrize("family", FAMILIES)
class TestLogProbabilities:
    def test_of_one_change(self, family: str) -> None:
        moves, states, gradient, width = layer(family)
        for x, g in zip(states, gradient, strict=True):
            weights = torch.tensor([single_weight(x, y, g, width) for y in states]).double()
            got = moves.single_log_prob(x, g, states).exp()
            torch.testing.assert_close(got, weights / weights.sum(), rtol=1e-6, atol=1e-8)
            assert torch.equal(got == 0.0, weights == 0.0)

    @pytest.mark.parametrize("step_size", [0.3, 2.0])
    def test_of_all_units(self, family: str, step_size: float) -> None:
        moves, states, gradient, width = layer(family)
        alpha = torch.tensor(step_size)
        for x, g in zip(states, gradient, strict=True):
            weights = [joint_weight(x, y, g, width, step_size) for y in states]
            expected = torch.tensor(weights).double() / sum(weights)
            got = moves.joint_log_prob(x, g, alpha, states).exp()
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)

    def test_states_far_apart_in_probability(self, family: str) -> None:
        """Large fields give no infinities, in either direction."""
        moves, states, gradient, _ = layer(family)
        large = (1e4 * gradient).float()
        x = states.float()
        for i, j in itertools.product(range(len(x)), repeat=2):
            joint = moves.joint_log_prob(x[i], large[i], torch.tensor(0.1), x[j])
            assert joint.isfinite() and joint <= 0.0
            single = moves.single_log_prob(x[i], large[i], x[j])
            assert not single.isnan() and single <= 0.0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["single", "joint"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_their_probabilities(family: str, kind: str, dtype: torch.dtype) -> None:
    moves, states, gradient, _ = layer(family)
    count = 60_000
    for i in torch.randperm(len(states))[:3]:
        x, g = states[i].to(dtype).expand(count, -1), 0.3 * gradient[i].to(dtype).expand(count, -1)
        alpha = torch.full((count,), 1.5, dtype=dtype)
        if kind == "single":
            new = moves.sample_single(x, g, None)
            log_probs = moves.single_log_prob(x[0], g[0], states.to(dtype))
        else:
            new = moves.sample_joint(x, g, alpha, None)
            log_probs = moves.joint_log_prob(x[0], g[0], alpha[0], states.to(dtype))
        assert new.dtype == dtype
        assert have_probabilities(new, states.to(dtype), log_probs.double().exp())


@pytest.mark.parametrize("family", FAMILIES)
def test_random_states_are_uniform(family: str) -> None:
    moves, states, _, _ = layer(family)
    drawn = moves.random_states(torch.empty(100_000, states.shape[1], dtype=torch.float64))
    assert have_probabilities(drawn, states, torch.full((len(states),), 1.0 / len(states)))


def test_axes_in_front() -> None:
    for family in FAMILIES:
        moves, states, gradient, _ = layer(family)
        v, g = states[:6].reshape(3, 2, -1), gradient[:6].reshape(3, 2, -1)
        alpha = torch.tensor([0.5, 2.0])
        joint = moves.sample_joint(v, g, alpha, None)
        single = moves.sample_single(v, g, None)
        assert joint.shape == single.shape == v.shape
        log_prob = moves.joint_log_prob(v, g, alpha, joint)
        assert log_prob.shape == (3, 2)
        one = moves.joint_log_prob(v[2, 1], g[2, 1], alpha[1], joint[2, 1])
        torch.testing.assert_close(log_prob[2, 1], one)


def test_supports() -> None:
    def moves(support: constraints.Constraint, size: int = 6) -> UnitMoves | None:
        return moves_of(support, size)

    bits = moves(dist.Bernoulli(torch.zeros(6)).to_event(1).support)
    assert isinstance(bits, BinaryMoves) and bits.squared_distance == 1.0
    spins = moves(units.Ising(torch.zeros(6)).support)
    assert isinstance(spins, BinaryMoves) and spins.squared_distance == 4.0
    groups = moves(units.Categorical(torch.zeros(2, 3)).support)
    assert isinstance(groups, OneHotMoves) and groups.num_states == 3
    one_hot = moves(dist.OneHotCategorical(torch.ones(6)).support)
    assert isinstance(one_hot, OneHotMoves) and one_hot.num_states == 6
    assert groups.squared_distance == one_hot.squared_distance == 2.0
    for other in (
        dist.Bernoulli(torch.zeros(6)).support,
        dist.Bernoulli(torch.zeros(2, 3)).to_event(2).support,
        dist.Normal(torch.zeros(6), 1.0).to_event(1).support,
        dist.Poisson(torch.ones(6)).to_event(1).support,
        units.Multinomial(torch.zeros(6), 2).support,
        units.Gaussian(torch.zeros(6), torch.ones(6)).support,
        units.ReLU(torch.zeros(6), torch.ones(6)).support,
    ):
        assert moves(other) is None
