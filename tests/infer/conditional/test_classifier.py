# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Bayes' rule against brute force, and what the doubt about log Z does to it."""

import math

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, GaussianBernoulliRBM, units
from pyro_ebm.infer import (
    BayesClassifier,
    LogPartitionBracket,
    LogPartitionEstimate,
    conditional_log_partition,
)
from tests.distributions.families import some_states, to_machine
from tests.infer.conditional.blends import Blend, brute_log_joint

CONTEXTS = torch.tensor([[0.9, 0.0], [0.1, 0.0], [0.5, 0.0]])
PRIOR = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()


@pytest.fixture(
    params=[("bernoulli", "ising"), ("gaussian", "ising"), ("categorical", "bernoulli")]
)
def model(request: pytest.FixtureRequest) -> Blend:
    torch.manual_seed(0)
    return Blend.random(request.param, num_hidden=1)


def some_rows(model: Blend) -> Tensor:
    return torch.as_tensor(some_states(to_machine(model.condition(torch.zeros(2))).visible, 5))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("chunk_rows", [None, 1, 2])
def test_against_brute_force(model: Blend, chunk_rows: int | None) -> None:
    data = some_rows(model)
    log_z = conditional_log_partition(model, CONTEXTS)
    classifier = BayesClassifier(model, CONTEXTS, log_z, PRIOR, chunk_rows=chunk_rows)
    joint = brute_log_joint(model, data, CONTEXTS) + PRIOR
    close(classifier.log_joint(data), joint)
    close(classifier.log_evidence(data), joint.exp().sum(-1).log())
    close(classifier.log_posterior(data).exp(), joint.exp() / joint.exp().sum(-1, keepdim=True))
    assert torch.equal(classifier.predict(data), joint.argmax(-1))
    bounds = classifier.bounds(data)
    close(bounds.lower, classifier.log_evidence(data))
    close(bounds.upper, classifier.log_evidence(data))
    assert bounds.num_changed == 0 and bool(bounds.certain.all())


class Widths:
    """Normal data around zero, with the precision that the context says."""

    def condition(self, context: Tensor) -> RBM:
        weight = torch.zeros(2, 3).double()
        precision = context.expand(*context.shape[:-1], 2)
        hidden = units.Bernoulli(torch.zeros(3).double())
        return RBM(units.Gaussian(torch.zeros(2).double(), precision), hidden, weight)


def test_log_z_matters() -> None:
    """The wider normal law has the lower energy everywhere, and would always win without log Z."""
    contexts = torch.tensor([[4.0], [0.25]]).double()
    log_z = conditional_log_partition(Widths(), contexts)
    data = torch.tensor([[0.1, 0.1], [2.0, 2.0]]).double()
    right = BayesClassifier(Widths(), contexts, log_z)
    # Equal densities where r^2 = 2 log(16) / (4 - 1/4) = 1.48.
    assert right.predict(data).tolist() == [0, 1]
    expected = torch.distributions.Normal(0.0, contexts.rsqrt()).log_prob(data[:, None]).sum(-1)
    close(right.log_joint(data), expected - math.log(2.0))
    without = BayesClassifier(Widths(), contexts, torch.zeros(2))
    assert without.predict(data).tolist() == [1, 1]


def bracket(exact: Tensor, down: list[float], up: list[float]) -> LogPartitionBracket:
    forward, reverse = (
        LogPartitionEstimate.from_error(
            value,
            0.01,
            {"method": "test"},
            ess=None,
            lower=value - 0.1,
            upper=value + 0.1,
            side=side,
        )
        for value, side in (
            (exact - torch.tensor(down), "below"),
            (exact + torch.tensor(up), "above"),
        )
    )
    return LogPartitionBracket(forward, reverse)


def test_bounds() -> None:
    contexts = torch.tensor([[4.0], [0.25]]).double()
    exact = conditional_log_partition(Widths(), contexts).value
    # Log odds of the first context: log 16 - 15/8 r^2, that is 2.77, 0.10, -0.27 and -2.
    square = torch.tensor([0.0, 1.425, 1.62, 2.545]).double()
    data = torch.stack([square.sqrt(), torch.zeros(4).double()], -1)
    classifier = BayesClassifier(Widths(), contexts, bracket(exact, [0.0, 0.4], [0.3, 0.0]))
    bounds = classifier.bounds(data)
    # The odds lose 0.4 from below, 0.3 from above, and gain 0.2 at the best ends of the intervals.
    assert bounds.num_changed == 0 and bounds.certain.tolist() == [True, False, True, True]
    truth = BayesClassifier(Widths(), contexts, exact).log_evidence(data)
    assert bool((bounds.lower < truth).all()) and bool((truth < bounds.upper).all())
    widened = bracket(exact, [0.0, 0.0], [0.5, 0.0])
    other = BayesClassifier(Widths(), contexts, widened).bounds(data)
    # From below they are right, from above the first context loses half a nat.
    assert other.changed.tolist() == [False, True, False, False]
    upper = torch.stack([exact + torch.tensor([0.6, 0.1]), exact - 0.1])
    ends = [BayesClassifier(Widths(), contexts, z).log_evidence(data) for z in upper]
    torch.testing.assert_close(other.lower, ends[0])
    torch.testing.assert_close(other.upper, ends[1])


def test_impossible_contexts_and_many_rows() -> None:
    contexts = torch.tensor([[4.0], [0.25]]).double()
    log_z = conditional_log_partition(Widths(), contexts)
    prior = torch.tensor([0.0, -math.inf]).double()
    classifier = BayesClassifier(Widths(), contexts, log_z, prior)
    data = torch.randn(100, 2).double()
    assert bool((classifier.predict(data) == 0).all())
    assert bool((classifier.log_posterior(data)[:, 1] == -math.inf).all())
    assert bool(classifier.bounds(data).certain.all())


def test_parameters_are_read_once() -> None:
    weight = torch.zeros(4, 3, requires_grad=True)

    class Model(torch.nn.Module):
        def condition(self, context: Tensor) -> RBM:
            visible = torch.zeros(4) + context
            return GaussianBernoulliRBM(weight, visible, torch.ones(4), torch.zeros(3))

    classifier = BayesClassifier(Model(), torch.eye(4), torch.zeros(4))
    assert not classifier.log_joint(torch.zeros(1, 4)).requires_grad


@pytest.mark.parametrize(
    "contexts, log_z, prior, message",
    [
        (torch.zeros(2), torch.zeros(2), None, r"contexts must have shape \(U, n_x\)"),
        (torch.tensor([[math.nan], [1.0]]), torch.zeros(2), None, "contexts must be finite"),
        (torch.ones(2, 1), torch.zeros(3), None, r"log_partition must have shape \(2,\)"),
        (torch.ones(2, 1), torch.tensor([0.0, math.inf]), None, "log_partition must be finite"),
        (torch.ones(2, 1), torch.zeros(2), torch.zeros(3), r"log_prior must have shape \(2,\)"),
        (torch.ones(2, 1), torch.zeros(2), torch.zeros(2), "sum to 1, they sum to 2"),
        (torch.ones(2, 1), torch.zeros(2), torch.full((2,), math.nan), "they sum to nan"),
    ],
)
def test_wrong_arguments(
    contexts: Tensor, log_z: Tensor, prior: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BayesClassifier(Widths(), contexts.double(), log_z, prior)


def test_wrong_data() -> None:
    classifier = BayesClassifier(Widths(), torch.ones(2, 1).double(), torch.zeros(2))
    with pytest.raises(ValueError, match=r"data must have shape \(rows, 2\), got \(3, 4\)"):
        classifier.predict(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="data has 1 of 3 rows that are not finite"):
        classifier.log_evidence(torch.tensor([[0.0, 0.0], [math.inf, 0.0], [1.0, 1.0]]))
    with pytest.raises(ValueError, match="chunk_rows must be at least 1"):
        BayesClassifier(Widths(), torch.ones(2, 1).double(), torch.zeros(2), chunk_rows=0)
