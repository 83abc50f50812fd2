# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Estimates of log Z for many contexts, against enumeration, and how they are put together."""

import warnings

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer import (
    LogPartitionBracket,
    LogPartitionEstimate,
    LogPartitionWarning,
    conditional_log_partition,
)
from pyro_ebm.infer.log_partition.side import side_machine
from tests.infer.reference import Z_LIMIT

#: Largest eigenvalue of the coupling K of each context: one mode, and two.
CONTEXTS = torch.tensor([[0.5], [1.5], [3.0]])
FAST = {"num_chains": 200, "num_temperatures": 100}


class Gaussian:
    """40 Gaussian units and 8 hidden ones, the coupling as strong as the context says."""

    def __init__(self, hidden: str = "ising", dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(40, 8, generator=generator, dtype=torch.float64)
        precision = 0.5 + torch.rand(40, generator=generator, dtype=torch.float64)
        norm = torch.linalg.matrix_norm(weight * precision.rsqrt().unsqueeze(-1), ord=2)
        self.weight, self.precision = (weight / norm).to(dtype), precision.to(dtype)
        self.hidden_bias = 0.3 * torch.randn(8, generator=generator, dtype=torch.float64).to(dtype)
        self.hidden = hidden
        self.seen: list[int] = []

    def condition(self, context: Tensor) -> RBM:
        self.seen.append(len(context))
        weight = context.to(self.weight).sqrt().unsqueeze(-1) * self.weight
        mean = context.to(self.weight).expand(*context.shape[:-1], 40)
        hidden: units.Unit = units.Ising(self.hidden_bias)
        if self.hidden == "bernoulli":
            weight = 2.0 * weight
            coupling = weight.mT @ (weight / self.precision.unsqueeze(-1))
            hidden = units.Bernoulli(self.hidden_bias - 0.5 * coupling.sum(-1))
        if self.hidden == "categorical":
            hidden = units.Categorical(self.hidden_bias.reshape(4, 2))
        return RBM(units.Gaussian(mean, self.precision), hidden, weight, visible_offset=mean)


class Bits:
    """8 visible and 6 hidden bits."""

    def condition(self, context: Tensor) -> RBM:
        weight = torch.linspace(-1.0, 1.5, 48).reshape(8, 6) * context.unsqueeze(-1)
        return RBM(
            units.Bernoulli(torch.linspace(-1, 1, 8)), units.Bernoulli(torch.zeros(6)), weight
        )


def check(estimate: LogPartitionEstimate, exact: Tensor) -> None:
    assert estimate.value.shape == exact.shape
    assert bool((estimate.std_error > 0.0).all()) and bool((estimate.std_error < 0.5).all())
    assert bool(((estimate.value - exact).abs() < Z_LIMIT * estimate.std_error).all())


@pytest.mark.parametrize("hidden", ["ising", "bernoulli", "categorical"])
@pytest.mark.parametrize("method", ["ais", "reverse-ais", "bidirectional"])
def test_hidden_side_of_gaussian_machines(method: str, hidden: str) -> None:
    model = Gaussian(hidden)
    exact = conditional_log_partition(model, CONTEXTS).value
    estimate = conditional_log_partition(model, CONTEXTS, method, seed=1, **FAST)
    assert isinstance(estimate, LogPartitionEstimate)
    check(estimate, exact)
    layer = {"ising": "Ising", "bernoulli": "Bernoulli", "categorical": "Categorical"}[hidden]
    assert estimate.settings["layer"] == layer
    assert estimate.settings["schedule"] == "even in the coupling"
    assert estimate.settings["dtype"] == "float64"


@pytest.mark.parametrize("side", ["auto", "visible", "hidden"])
@pytest.mark.parametrize("model", [Gaussian(), Gaussian("bernoulli", torch.float32), Bits()])
def test_either_side(model: Gaussian | Bits, side: str) -> None:
    exact = conditional_log_partition(model, CONTEXTS).value
    check(conditional_log_partition(model, CONTEXTS, "ais", side=side, seed=2, **FAST), exact)


@pytest.mark.parametrize("method", ["bar", "mbar", "ti"])
def test_tempering(method: str) -> None:
    model = Gaussian()
    options = {"num_chains": 10, "num_samples": 100, "warmup_steps": 50}
    estimate = conditional_log_partition(model, CONTEXTS, method, seed=3, **options)
    check(estimate, conditional_log_partition(model, CONTEXTS).value)


def test_tempering_start() -> None:
    model = Gaussian()
    exact = conditional_log_partition(model, CONTEXTS).value
    options = {"start": "tempering", "tempering_sweeps": 100, "seed": 4, **FAST}
    bracket = conditional_log_partition(model, CONTEXTS, "bracket", **options)
    assert isinstance(bracket, LogPartitionBracket)
    check(bracket.forward, exact)
    check(bracket.reverse, exact)
    assert "tempering of 20 chains" in bracket.reverse.settings["start"]
    reverse = conditional_log_partition(model, CONTEXTS, "reverse-ais", **options)
    torch.testing.assert_close(reverse.value, bracket.reverse.value, rtol=0.0, atol=0.0)


def test_given_samples() -> None:
    model = Gaussian()
    exact = conditional_log_partition(model, CONTEXTS).value
    dist = side_machine(model.condition(CONTEXTS))
    initial = dist.sample((200,), generator=torch.Generator().manual_seed(0))
    for method in ("reverse-ais", "bracket", "bidirectional"):
        result = conditional_log_partition(
            model, CONTEXTS, method, initial=initial, chunk_contexts=2, seed=5, **FAST
        )
        reverse = result.reverse if isinstance(result, LogPartitionBracket) else result
        check(reverse, exact)


def test_auto() -> None:
    """Exact for few states, a bracket for many."""
    model = Gaussian()
    exact = conditional_log_partition(model, CONTEXTS, num_chains=7)
    assert exact.settings["method"] == "exact"
    bracket = conditional_log_partition(model, CONTEXTS, max_states=100, seed=6, **FAST)
    assert isinstance(bracket, LogPartitionBracket)
    check(bracket.forward, exact.value)
    check(bracket.reverse, exact.value)
    assert bool((bracket.lower < exact.value).all() & (exact.value < bracket.upper).all())


def test_chunks() -> None:
    """Chunks have seeds of their own, and are examined as a whole."""
    model = Gaussian()
    exact = conditional_log_partition(model, CONTEXTS).value
    model.seen.clear()
    estimate = conditional_log_partition(model, CONTEXTS, "ais", chunk_contexts=2, seed=7, **FAST)
    assert model.seen == [1, 2, 1]
    check(estimate, exact)
    assert [chunk["size"] for chunk in estimate.settings["chunks"]] == [2, 1]
    assert len({chunk["seed"] for chunk in estimate.settings["chunks"]}) == 2
    assert estimate.log_weights is not None and estimate.log_weights.shape == (200, 3)
    torch.testing.assert_close(estimate[2].value, estimate.value[2])
    LogPartitionEstimate.from_dict(estimate.to_dict())
    # The same context twice, in two chunks: other random numbers.
    twice = conditional_log_partition(
        model, CONTEXTS[[2, 2]], "ais", chunk_contexts=1, seed=7, **FAST
    )
    assert twice.value[0] != twice.value[1]
    again = conditional_log_partition(
        model, CONTEXTS[[2, 2]], "ais", chunk_contexts=1, seed=7, **FAST
    )
    torch.testing.assert_close(twice.value, again.value, rtol=0.0, atol=0.0)


def test_one_warning_for_all_chunks() -> None:
    model, strong = Gaussian(), torch.tensor([[40.0], [60.0], [80.0]])
    options = {"num_chains": 50, "num_temperatures": 5, "chunk_contexts": 1, "seed": 0}
    with pytest.warns(LogPartitionWarning) as caught:
        estimate = conditional_log_partition(model, strong, "ais", **options)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert estimate.flags and not estimate.reliable


def test_modules_are_evaluated_as_they_were() -> None:
    class Dropping(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.frozen = torch.nn.Dropout(0.5), torch.nn.Dropout(0.5).eval()

        def condition(self, context: Tensor) -> RBM:
            return Bits().condition(self.frozen(self.drop(context)))

    model = Dropping()
    expected = conditional_log_partition(Bits(), CONTEXTS).value
    torch.testing.assert_close(conditional_log_partition(model, CONTEXTS).value, expected)
    assert model.training and model.drop.training and not model.frozen.training


class Wrong:
    def __init__(self, result: object) -> None:
        self.result = result

    def condition(self, context: Tensor) -> object:
        return self.result


@pytest.mark.parametrize(
    "contexts, message",
    [
        (torch.zeros(3), r"contexts must have shape \(U, n_x\) with U >= 1, got \(3,\)"),
        (torch.zeros(0, 1), "with U >= 1"),
        (torch.tensor([[0.1], [float("nan")]]), "contexts must be finite, 1 of 2 rows are not"),
        (torch.tensor([[0.1], [float("inf")]]), "contexts must be finite"),
    ],
)
def test_wrong_contexts(contexts: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conditional_log_partition(Bits(), contexts)


@pytest.mark.parametrize(
    "method, options, message",
    [
        ("exakt", {}, "method must be one of"),
        ("ais", {"side": "left"}, "side must be one of"),
        ("ais", {"start": "tempering"}, "start is for the methods"),
        ("bracket", {"start": "tempering", "num_seeds": 2}, "a single seed"),
        ("ais", {"path": object()}, "path is for a single machine"),
        ("ais", {"initial": torch.zeros(2, 3, 8)}, "initial is for reverse chains"),
        ("bracket", {"initial": torch.zeros(2, 8)}, r"shape \(num_chains, 3, n\), got \(2, 8\)"),
        ("ais", {"num_temperatures": 0}, "num_temperatures must be at least 1"),
        ("ais", {"chunk_contexts": 0}, "chunk_contexts must be at least 1"),
        ("exact", {"max_states": 10}, "more than max_states=10"),
    ],
)
def test_impossible_options(method: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conditional_log_partition(Gaussian(), CONTEXTS, method, **options)


def test_wrong_models_and_unknown_options() -> None:
    with pytest.raises(TypeError, match=r"model must have a method condition\(context\)"):
        conditional_log_partition(torch.nn.Linear(1, 1), CONTEXTS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be an RBM, got Tensor"):
        conditional_log_partition(Wrong(torch.zeros(3)), CONTEXTS)
    with pytest.raises(ValueError, match=r"must have batch shape \(1,\)"):
        conditional_log_partition(Wrong(Bits().condition(torch.ones(2, 1))), CONTEXTS)
    with pytest.raises(TypeError, match="takes no options, got \\['num_chains'\\]"):
        conditional_log_partition(Bits(), CONTEXTS, "exact", num_chains=3)
    with warnings.catch_warnings(), pytest.raises(TypeError, match="num_chain"):
        conditional_log_partition(Bits(), CONTEXTS, "ais", num_chain=3)
