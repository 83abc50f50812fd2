# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""New classes of the hierarchical prior, from a few images: quadrature over mean, precision and variance."""

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from tests.examples.test_hierarchical_model import F64, LOGS, prior_of, rows_of, step

#: Means of classes of a small precision are far away.
WIDE = torch.linspace(-80.0, 80.0, 1601, dtype=F64)


@pytest.fixture
def program(load: Any) -> Any:
    return load("hierarchical_model")


@pytest.fixture
def new_class(load: Any) -> Any:
    return load("hierarchical_new_class")


def fake_tree(program: Any, dim: int = 2) -> Any:
    """A posterior of one draw: three classes in two of three super-classes."""
    torch.manual_seed(7)
    draws = {
        "strength": torch.rand(1, dim, dtype=F64) + 0.5,
        "spread": torch.rand(1, dim, dtype=F64) + 0.5,
        "shape": torch.tensor([2.6], dtype=F64),
        "sticks": torch.tensor([[0.5, 0.6]], dtype=F64),
        "mean": torch.randn(1, 3, dim, dtype=F64),
        "precision": torch.rand(1, 3, dim, dtype=F64) + 0.5,
    }
    centre, q = torch.randn(1, 3, dim, dtype=F64), torch.rand(1, 3, dim, dtype=F64) + 0.5
    return program.Tree(draws, centre, q, torch.tensor([[0, 2, 0]]))


def by_quadrature(program: Any, tree: Any, x: Tensor, d: int, s: int | None) -> Tensor:
    """log p(rows of one feature | super-class s, a new one if None) on a grid of mean and precision."""
    logs = LOGS[::2].unsqueeze(-1)
    tau, m = logs.exp(), WIDE
    shape, strength = tree.draws["shape"][0], tree.draws["strength"][0, d]
    if s is None:
        q = LOGS.exp()
        prior = dist.Gamma(*prior_of(program)).log_prob(q) + LOGS
        log_tau = dist.Gamma(shape, shape * q).log_prob(tau) + prior
        log_tau = log_tau.logsumexp(-1, keepdim=True) + step(LOGS)
        variance = 1.0 / (strength * tau) + 1.0 / tree.draws["spread"][0, d]
        log_mean = dist.Normal(0.0, variance.sqrt()).log_prob(m)
    else:
        log_tau = dist.Gamma(shape, shape * tree.variance[0, s, d]).log_prob(tau)
        log_mean = dist.Normal(tree.centre[0, s, d], (strength * tau).rsqrt()).log_prob(m)
    joint = log_tau + logs + log_mean
    for value in x:
        joint = joint + dist.Normal(m, tau.rsqrt()).log_prob(value)
    return joint.flatten().logsumexp(0) + step(WIDE) + step(LOGS[::2])


def test_new_classes_by_quadrature(program: Any, new_class: Any, monkeypatch: Any) -> None:
    """Membership, evidence and predictive density of one and of three images."""
    monkeypatch.setattr(new_class.FreshClass.__init__, "__defaults__", (60,))
    tree = fake_tree(program)
    x, y = rows_of(8, [1, 3], 2)
    data = program.Statistics.of(x, y, range(2))
    asked = torch.tensor([0.4, -0.7], dtype=F64)
    found = new_class.NewClasses(tree, 0, data)
    assert found.used.tolist() == [0, 2]
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=F64)
    density = found.log_density(asked.unsqueeze(0))[0]
    for k in range(2):
        before, after = [], []
        for s in (0, 2, None):
            own = [x[y == k, d] for d in range(2)]
            more = [torch.cat([r, asked[d : d + 1]]) for d, r in enumerate(own)]
            before.append(sum(by_quadrature(program, tree, r, d, s) for d, r in enumerate(own)))
            after.append(sum(by_quadrature(program, tree, r, d, s) for d, r in enumerate(more)))
        joint, both = (torch.stack(part) + weights.log() for part in (before, after))
        assert abs(found.log_evidence[k] - joint.logsumexp(0)) < 1e-7
        expected = joint.log_softmax(0)
        torch.testing.assert_close(found.log_membership[:, k], expected, rtol=0.0, atol=1e-7)
        assert abs(density[k] - both.logsumexp(0) + joint.logsumexp(0)) < 1e-7


def test_few_nodes_are_enough(program: Any, new_class: Any) -> None:
    tree = fake_tree(program)
    x, y = rows_of(8, [1, 3], 2)
    data = program.Statistics.of(x, y, range(2))
    shape, strength, spread = (tree.draws[n][0] for n in ("shape", "strength", "spread"))
    rows = torch.linspace(-4.0, 4.0, 9, dtype=F64).unsqueeze(-1).expand(-1, 2)
    few, many = (new_class.FreshClass(data, shape, strength, spread, n) for n in (8, 60))
    assert (few.evidence - many.evidence).abs().max() < 0.01
    assert (few.log_density(rows) - many.log_density(rows)).abs().max() < 0.05


def test_an_improbable_super_class_may_explain_a_row_best(program: Any, new_class: Any) -> None:
    """30 features that vary little within known super-classes: a new one is wide in each of them, so that
    nothing of it can be left out."""
    tree = fake_tree(program, 30)
    tree.centre.mul_(2.0)
    tree.variance.mul_(0.1)
    generator = torch.Generator().manual_seed(9)
    centre = tree.centre[0, [0, 2]]
    x = centre + 0.3 * torch.randn(2, 30, generator=generator, dtype=F64)
    data = program.Statistics.of(x, torch.arange(2), range(2))
    found = new_class.NewClasses(tree, 0, data)
    assert (found.log_membership[-1] < math.log(1e-12)).all()
    away = torch.randn(30, generator=generator, dtype=F64)
    rows = torch.stack([centre[0], centre[0] + 3.0 * away])
    values = {name: tree.draws[name][0] for name in ("shape", "strength", "spread")}
    fresh = new_class.FreshClass(data, **values, nodes=60).log_density(rows)
    known = torch.stack([found._student(n).log_prob(rows[:, None]).sum(-1) for n in range(2)])
    parts = torch.cat([known, fresh[None]]) + found.log_membership[:, None]
    # It is nothing to the first row and everything to the last one.
    ahead = parts[-1] - parts[:2].amax(0)
    assert ahead[0, 0] < -30.0 and (ahead[1] > 30.0).all()
    # Within the error of its few nodes.
    torch.testing.assert_close(found.log_density(rows), parts.logsumexp(0), rtol=0.0, atol=0.2)


def test_a_flat_hierarchy_knows_no_new_super_class(program: Any, new_class: Any) -> None:
    tree = fake_tree(program)
    del tree.draws["sticks"]
    tree = program.Tree(tree.draws, tree.centre, tree.variance, torch.zeros(1, 3, dtype=torch.long))
    x, y = rows_of(8, [1, 3], 2)
    found = new_class.NewClasses(tree, 0, program.Statistics.of(x, y, range(2)))
    assert found.log_membership.exp().tolist() == [[1.0, 1.0], [0.0, 0.0]]
    rows = torch.tensor([[0.0, 0.0], [50.0, -50.0]], dtype=F64)
    expected = found._student(0).log_prob(rows.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(found.log_density(rows), expected)


def test_images_of_new_classes(program: Any, new_class: Any) -> None:
    """Draws against the predictive density, by a bounded function; 6 standard errors."""
    tree = fake_tree(program, 1)
    x, y = rows_of(8, [1, 3], 1)
    found = new_class.NewClasses(tree, 0, program.Statistics.of(x, y, range(2)))
    torch.manual_seed(0)
    got = found.sample(20_000)[..., 0]
    line = torch.linspace(-60.0, 60.0, 12_001, dtype=F64)
    density = found.log_density(line.unsqueeze(-1)).exp() * (line[1] - line[0])
    assert (density.sum(0) - 1.0).abs().max() < 1e-3
    for function in (torch.tanh, lambda t: torch.tanh(t).square()):
        expected = function(line) @ density
        off = function(got)
        assert ((off.mean(0) - expected).abs() < 6.0 * off.std(0) / len(got) ** 0.5).all()


def test_base_densities(program: Any, new_class: Any) -> None:
    tree, rows = fake_tree(program), torch.randn(4, 2, dtype=F64)
    mean, precision = tree.draws["mean"][0], tree.draws["precision"][0]
    expected = dist.Normal(mean, precision.rsqrt()).log_prob(rows.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(new_class.base_log_density(tree, 0, rows), expected)
