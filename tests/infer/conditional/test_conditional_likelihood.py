# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Mean likelihoods with their errors, and which log Z belongs to which row."""

import json
import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import (
    BayesClassifier,
    LogPartitionBracket,
    LogPartitionEstimate,
    conditional_likelihood,
    conditional_log_likelihood,
    conditional_log_partition,
    conditional_nll,
    unique_contexts,
)
from pyro_ebm.infer.conditional.contexts import match_contexts

CONTEXTS = torch.tensor([[0.0], [1.0], [2.0]])


class Bits:
    def condition(self, context: Tensor) -> RBM:
        weight = torch.linspace(-1.0, 1.0, 12).reshape(4, 3) * context.unsqueeze(-1)
        return BernoulliRBM(weight, torch.linspace(-1, 1, 4), torch.zeros(3))


def rows(num: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(2, (num, 4), generator=generator).float()
    index = torch.randint(3, (num,), generator=generator)
    return data, index


def estimate(value: Tensor, error: list[float], side: str | None, width: float = 2.0):
    s = torch.tensor(error).double()
    return LogPartitionEstimate.from_error(
        value,
        s,
        {"method": "ais" if side == "below" else "reverse-ais"},
        ess=None,
        lower=value - width * s,
        upper=value + 1.5 * width * s,
        side=side,
    )


class TestUniqueContexts:
    def test_order_of_first_occurrence(self) -> None:
        generator = torch.Generator().manual_seed(0)
        context = torch.randint(3, (50, 2), generator=generator).double() - 1.0
        contexts, index = unique_contexts(context)
        torch.testing.assert_close(contexts[index], context, rtol=0.0, atol=0.0)
        seen = list(dict.fromkeys(map(tuple, context.tolist())))
        assert list(map(tuple, contexts.tolist())) == seen

    def test_different_contexts_keep_their_order(self) -> None:
        context = torch.eye(10)
        contexts, index = unique_contexts(context)
        assert torch.equal(contexts, context) and torch.equal(index, torch.arange(10))

    @pytest.mark.parametrize("context", [torch.zeros(3), torch.zeros(2, 3, 1), torch.zeros(0, 2)])
    def test_wrong_shapes(self, context: Tensor) -> None:
        with pytest.raises(ValueError, match=r"context must have shape \(rows, n_x\)"):
            unique_contexts(context)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_not_finite(self, bad: float) -> None:
        with pytest.raises(ValueError, match="context must be finite, 1 of 2 rows"):
            unique_contexts(torch.tensor([[1.0], [bad]]))


class TestMatchContexts:
    def test_by_numbers(self) -> None:
        table = torch.eye(4)
        index = torch.tensor([3, 3, 0, 1])
        assert torch.equal(match_contexts(table[index], table), index)

    def test_unknown_and_repeated(self) -> None:
        with pytest.raises(ValueError, match="1 of 2 rows have a context that is not in contexts"):
            match_contexts(torch.tensor([[1.0], [5.0]]), CONTEXTS)
        with pytest.raises(ValueError, match="contexts holds a context twice"):
            match_contexts(CONTEXTS, CONTEXTS[[0, 1, 0]])
        with pytest.raises(ValueError, match="context has 1 entries a row, contexts 2"):
            match_contexts(CONTEXTS, torch.zeros(1, 2))

    @pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.bool], ids=str)
    def test_whole_numbers_are_not_cut_off(self, kind: torch.dtype) -> None:
        table = torch.tensor([[0.5], [1.0], [0.0]])
        context = torch.tensor([[1], [0]]).to(kind)
        assert match_contexts(context, table).tolist() == [1, 2]
        with pytest.raises(ValueError, match="1 of 1 rows have a context that is not in contexts"):
            match_contexts(context[1:], table[:2])
        assert match_contexts(table[[1, 2]], torch.tensor([[1], [0]]).to(kind)).tolist() == [0, 1]

    def test_precisions_do_not_matter(self) -> None:
        table = torch.tensor([[0.1], [0.7]], dtype=torch.float64)
        assert match_contexts(table[[1, 0]].float(), table).tolist() == [1, 0]
        assert match_contexts(table[[1, 0]], table.float()).tolist() == [1, 0]


class TestConditionalLikelihood:
    def test_errors_are_weighted_by_rows(self) -> None:
        data, index = rows()
        exact = conditional_log_partition(Bits(), CONTEXTS).value
        log_z = estimate(exact, [0.1, 0.2, 0.3], "below")
        result = conditional_likelihood(Bits(), data, CONTEXTS[index], log_z, contexts=CONTEXTS)
        own = conditional_log_likelihood(Bits(), data, CONTEXTS[index], exact, contexts=CONTEXTS)
        share = torch.bincount(index).double() / 40
        error = (share * torch.tensor([0.1, 0.2, 0.3])).square().sum().sqrt()
        torch.testing.assert_close(result.rows, own)
        torch.testing.assert_close(result.value, own.mean())
        torch.testing.assert_close(result.std_error, own.std() / math.sqrt(40))
        torch.testing.assert_close(result.log_partition_error, error)
        # The interval of log Z reaches further up, hence that of the likelihood further down.
        torch.testing.assert_close(result.lower, own.mean() - 3.0 * error)
        torch.testing.assert_close(result.upper, own.mean() + 2.0 * error)
        for u in range(3):
            torch.testing.assert_close(result.context_values[u], own[index == u].mean())
        assert torch.equal(result.counts, torch.bincount(index))
        assert result.side == "above" and "an upper bound" in str(result)

    def test_brackets(self) -> None:
        data, index = rows()
        exact = conditional_log_partition(Bits(), CONTEXTS).value
        forward = estimate(exact - 0.5, [0.1, 0.1, 0.1], "below")
        reverse = estimate(exact + 0.7, [0.2, 0.1, 0.1], "above")
        bracket = LogPartitionBracket(forward, reverse)
        context = CONTEXTS[index]
        result = conditional_likelihood(Bits(), data, context, bracket, contexts=CONTEXTS)
        truth = conditional_likelihood(Bits(), data, context, exact, contexts=CONTEXTS)
        sides = [
            conditional_likelihood(Bits(), data, context, side, contexts=CONTEXTS)
            for side in (forward, reverse)
        ]
        torch.testing.assert_close(result.optimistic, truth.value + 0.5)
        torch.testing.assert_close(result.pessimistic, truth.value - 0.7)
        torch.testing.assert_close(result.gap, torch.tensor(1.2).double())
        torch.testing.assert_close(result.value, truth.value - 0.1)
        torch.testing.assert_close(result.lower, sides[1].lower)
        torch.testing.assert_close(result.upper, sides[0].upper)
        assert result.lower < truth.value < result.upper
        assert result.side is None and sides[1].side == "below"
        of_rows = conditional_log_likelihood(Bits(), data, context, bracket, contexts=CONTEXTS)
        torch.testing.assert_close(of_rows, result.rows)

    def test_contexts_without_rows(self) -> None:
        data, _ = rows(5)
        log_z = estimate(torch.zeros(3), [0.1, math.inf, math.inf], "below")
        context = CONTEXTS[[0] * 5]
        result = conditional_likelihood(Bits(), data, context, log_z, contexts=CONTEXTS)
        assert result.log_partition_error.item() == pytest.approx(0.1)
        assert bool(torch.isfinite(result.lower)) and bool(result.context_values[1].isnan())
        assert "of 5 rows in 1 contexts" in str(result)

    def test_report(self) -> None:
        data, index = rows()
        log_z = conditional_log_partition(Bits(), CONTEXTS)
        result = conditional_likelihood(Bits(), data, CONTEXTS[index], log_z, contexts=CONTEXTS)
        assert result.reliable and "log Z by exact" in str(result)
        assert result.log_partition_error == 0.0 and result.gap == 0.0
        for end in (result.lower, result.upper):
            torch.testing.assert_close(end, result.value, rtol=0.0, atol=1e-12)
        assert json.loads(json.dumps(result.to_dict()))["value"] == result.value.item()
        one = conditional_likelihood(
            Bits(), data[:1], CONTEXTS[index[:1]], log_z, contexts=CONTEXTS
        )
        assert bool(one.std_error.isinf())

    def test_flags(self) -> None:
        data, index = rows()
        weights = torch.zeros(10, 3).double()
        weights[0] = 50.0
        forward = LogPartitionEstimate.from_log_weights(weights, {"method": "ais"}, warn=False)
        result = conditional_likelihood(Bits(), data, CONTEXTS[index], forward, contexts=CONTEXTS)
        assert not result.reliable and "SUSPICIOUS" in str(result)


@pytest.mark.parametrize("function", [conditional_log_likelihood, conditional_likelihood])
class TestWrongArguments:
    def test_log_z(self, function) -> None:
        data, index = rows(4)
        context = CONTEXTS[index]
        for log_z in (torch.zeros(7), torch.zeros(()), 0.0, torch.zeros(3, 1)):
            with pytest.raises(ValueError, match=r"log_partition must have shape \(3,\)"):
                function(Bits(), data, context, log_z, contexts=CONTEXTS)
        with pytest.raises(ValueError, match="log_partition must be finite"):
            function(Bits(), data, context, torch.full((3,), math.nan), contexts=CONTEXTS)

    def test_data(self, function) -> None:
        data, index = rows(4)
        context, log_z = CONTEXTS[index], torch.zeros(3)
        with pytest.raises(
            ValueError, match=r"data must have shape \(4, 4\), got \(3, 4\): as many"
        ):
            function(Bits(), data[:3], context, log_z, contexts=CONTEXTS)
        with pytest.raises(ValueError, match=r"data must have shape \(4, 4\), got \(4, 3\)"):
            function(Bits(), data[:, :3], context, log_z, contexts=CONTEXTS)
        data[1, 2] = math.nan
        with pytest.raises(ValueError, match="data has 1 of 4 rows"):
            function(Bits(), data, context, log_z, contexts=CONTEXTS)

    def test_contexts(self, function) -> None:
        data, index = rows(4)
        with pytest.raises(ValueError, match="not in contexts"):
            function(Bits(), data, CONTEXTS[index] + 0.5, torch.zeros(3), contexts=CONTEXTS)
        with pytest.raises(ValueError, match="context must be finite"):
            function(Bits(), data, torch.full((4, 1), math.nan), torch.zeros(1))


class Random(torch.nn.Module):
    """A machine with a random weight, which every call draws anew."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[torch.nn.Linear](1, 2)
        prior = dist.Normal(torch.zeros(2, 1), 1.0).to_event(2)
        self.layer.weight = PyroSample(prior)

    def condition(self, context: Tensor) -> RBM:
        return BernoulliRBM(torch.zeros(2, 1), self.layer(context), torch.zeros(1))


def test_random_weights_are_refused() -> None:
    """log Z would be that of one draw, and free energies those of another."""
    contexts, data = torch.tensor([[0.0], [1.0]]), torch.zeros(2, 2)
    message = r"weights \['layer\.weight'\] of the model are random .* condition them first"
    with pytest.raises(ValueError, match=message):
        conditional_log_partition(Random(), contexts)
    with pytest.raises(ValueError, match=message):
        conditional_nll(Random(), data, contexts)
    with pytest.raises(ValueError, match=message):
        BayesClassifier(Random(), contexts, torch.zeros(2))

    class Fixed:
        """What the message recommends."""

        def __init__(self, model: Random) -> None:
            self.model, self.draw = model, {"weight": torch.ones(2, 1)}

        def condition(self, context: Tensor) -> RBM:
            return poutine.condition(self.model.condition, data=self.draw)(context)

    x = torch.tensor([[0.3], [0.3], [-1.0]])
    first = conditional_nll(Fixed(Random()), torch.ones(3, 2), x, reduction="none")
    assert first[0] == first[1] and first[0] != first[2]


def test_wrong_arguments_of_the_loss() -> None:
    data, index = rows(4)
    context = CONTEXTS[index]
    with pytest.raises(ValueError, match="reduction must be one of"):
        conditional_nll(Bits(), data, context, reduction="median")
    with pytest.raises(ValueError, match="more than max_states=7"):
        conditional_nll(Bits(), data, context, max_states=7)
    with pytest.raises(ValueError, match=r"got \(3, 4\)"):
        conditional_nll(Bits(), data[:3], context)
    with pytest.raises(ValueError, match="context must be finite"):
        conditional_nll(Bits(), data, context / 0.0)
    with pytest.raises(ValueError, match="4 of 4 rows that are not finite"):
        conditional_nll(Bits(), data + 2.0, context)
