# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Log Z, likelihoods, the loss and Bayes' rule against sums and quadratures, for all families."""

import math

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import (
    BayesClassifier,
    conditional_likelihood,
    conditional_log_likelihood,
    conditional_log_partition,
    conditional_nll,
    unique_contexts,
)
from pyro_ebm.ops import grouping
from tests.distributions.families import some_states, to_machine, uniform
from tests.infer.conditional.blends import EXACT_PAIRS, Blend, brute_log_joint

IDS = ["-".join(pair) for pair in EXACT_PAIRS]


def some_rows(model: Blend, count: int = 4) -> Tensor:
    visible = to_machine(model.condition(torch.zeros(2))).visible
    return torch.as_tensor(some_states(visible, count))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("pair", EXACT_PAIRS, ids=IDS)
def test_all_families(pair: tuple[str, str]) -> None:
    torch.manual_seed(1)
    model = Blend.random(pair, num_hidden=1)
    data = some_rows(model)
    contexts = torch.tensor([[0.9, 0.0], [0.2, 0.0], [0.2, 1.0]])
    log_joint = brute_log_joint(model, data, contexts)
    index = torch.tensor([2, 0, 2, 1])[: len(data)]
    expected = log_joint[range(len(data)), index]

    log_z = conditional_log_partition(model, contexts)
    assert log_z.settings["method"] == "exact" and log_z.reliable
    assert log_z.value.shape == (3,) and not bool(log_z.std_error.any())
    context = contexts[index]
    close(conditional_log_likelihood(model, data, context, log_z, contexts=contexts), expected)
    close(conditional_nll(model, data, context, reduction="none"), -expected)
    classifier = BayesClassifier(model, contexts, log_z)
    close(classifier.log_joint(data), log_joint - math.log(3.0))


@pytest.fixture
def model() -> Blend:
    torch.manual_seed(2)
    return Blend.random(("bernoulli", "ising"))


@pytest.mark.parametrize("rectangle", [0, 4096])
@pytest.mark.parametrize("chunk_contexts", [None, 1, 2])
def test_blocks_do_not_matter(
    model: Blend, rectangle: int, chunk_contexts: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Very different numbers of rows for each context, in any order."""
    monkeypatch.setattr(grouping, "_SMALL_RECTANGLE", rectangle)
    contexts = torch.tensor([[0.0, 0.0], [0.3, 0.0], [0.6, 0.0], [0.9, 0.0]])
    index = torch.tensor([3] * 29 + [1] * 5 + [0] * 4 + [2])[torch.randperm(39)]
    data = some_rows(model, 8)[torch.randint(8, (39,))]
    expected = brute_log_joint(model, data, contexts)[range(39), index]
    log_z = conditional_log_partition(model, contexts, "exact", chunk_contexts=chunk_contexts)
    rows = conditional_log_likelihood(
        model, data, contexts[index], log_z, contexts=contexts, chunk_contexts=chunk_contexts
    )
    close(rows, expected)
    close(conditional_nll(model, data, contexts[index], reduction="none"), -expected)
    close(conditional_nll(model, data, contexts[index]), -expected.mean())
    close(conditional_nll(model, data, contexts[index], reduction="sum"), -expected.sum())


def test_log_z_of_contexts_of_rows_or_of_a_table(model: Blend) -> None:
    data = some_rows(model, 4)
    table = torch.tensor([[0.1, 0.0], [0.5, 0.0], [0.7, 0.0], [1.0, 0.0]])
    index = torch.tensor([3, 0, 3, 1])
    context = table[index]
    expected = brute_log_joint(model, data, table)[range(4), index]
    of_table = conditional_log_partition(model, table)
    found, inverse = unique_contexts(context)
    of_unique = conditional_log_partition(model, found)
    # A table of as many contexts as rows is not taken for one log Z a row.
    for log_z, contexts in (
        (of_table, table),
        (of_table.value, table),
        (of_unique, found),
        (of_unique.value[inverse], None),
    ):
        close(conditional_log_likelihood(model, data, context, log_z, contexts=contexts), expected)
        mean = conditional_likelihood(model, data, context, log_z, contexts=contexts)
        close(mean.value, expected.mean())
    with pytest.raises(ValueError, match="give the contexts that it belongs to"):
        conditional_log_likelihood(model, data, context, of_unique)


class Small(torch.nn.Module):
    """A network that makes all parameters of a machine."""

    def __init__(self, visible: str) -> None:
        super().__init__()
        self.visible = visible
        num_visible = 5 if visible == "gaussian" else 3
        self.weight = torch.nn.Linear(2, num_visible * 2)
        self.bias = torch.nn.Linear(2, num_visible)
        self.log_precision = torch.nn.Linear(2, num_visible)
        self.hidden_bias = torch.nn.Linear(2, 2)
        self.double()

    def condition(self, context: Tensor) -> RBM:
        bias = self.bias(context)
        visible: units.Unit = units.Bernoulli(bias)
        if self.visible == "gaussian":
            visible = units.Gaussian(bias, self.log_precision(context).exp())
        weight = self.weight(context).unflatten(-1, (-1, 2))
        hidden = units.Ising(self.hidden_bias(context))
        return RBM(visible, hidden, weight, visible_offset=bias)


def definition(model: Small, data: Tensor, context: Tensor) -> Tensor:
    """Mean negative log-likelihood row by row, by sums over hidden states alone."""
    total = torch.zeros((), dtype=torch.float64)
    h = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]).double()
    for y, x in zip(data, context, strict=True):
        dist = model.condition(x)
        bias, offset, weight = dist.visible.natural_bias, dist.visible_offset, dist.weight
        field = h @ weight.mT
        energy = -h @ dist.hidden.natural_bias + field @ offset
        if model.visible == "gaussian":
            precision = dist.visible.parameters["precision"]
            own = -0.5 * (precision * (y - offset) ** 2).sum()
            log_z = 0.5 * ((bias + field) ** 2 / precision).sum(-1) - 0.5 * (bias * offset).sum()
            log_z = log_z + 0.5 * (2.0 * torch.pi / precision).log().sum()
        else:
            own = y @ bias
            log_z = torch.log1p((bias + field).exp()).sum(-1)
        density = own + torch.logsumexp(-energy + field @ y, 0)
        total = total + torch.logsumexp(log_z - energy, 0) - density
    return total / len(data)


@pytest.mark.parametrize("visible", ["gaussian", "bernoulli"])
def test_gradient(visible: str) -> None:
    torch.manual_seed(3)
    model = Small(visible)
    context = torch.randn(3, 2).double()[[0, 1, 0, 2, 2, 0]]
    data = torch.randn(6, 5).double() if visible == "gaussian" else uniform((6, 3), 0, 1).round()
    parameters = [
        p for n, p in model.named_parameters() if visible == "gaussian" or "precision" not in n
    ]
    loss, expected = conditional_nll(model, data, context), definition(model, data, context)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    for got, want in zip(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        close(got, want)


def test_training_with_the_loss() -> None:
    """Maximum likelihood finds two classes of bits, beyond what independent bits can say."""
    torch.manual_seed(4)
    model = Small("bernoulli")
    context = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double().repeat(20, 1)
    equal = torch.randint(2, (20, 1)).double()
    data = torch.stack([equal.expand(20, 3), equal.expand(20, 3)], 1).reshape(40, 3).clone()
    data[1::2, 1] = 1.0 - data[1::2, 1]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss = conditional_nll(model, data, context)
        loss.backward()
        optimizer.step()
    # log 2 is the entropy of the data; independent bits need three times as much.
    assert loss.item() < 0.8
