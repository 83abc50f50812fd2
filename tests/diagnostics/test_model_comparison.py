# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Machines compared on held-out rows, against numbers worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ebm.diagnostics import compare_machines
from pyro_ebm.diagnostics.held_out import arviz_compare
from pyro_ebm.distributions import DBM, RBM, BernoulliRBM, units
from pyro_ebm.infer import (
    LogPartitionBracket,
    LogPartitionEstimate,
    bracket_log_partition,
    exact_log_partition,
)

NUM_ROWS = 400


def machine(seed: int) -> RBM:
    generator = torch.Generator().manual_seed(seed)
    weight, visible, hidden = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((5, 3), (5,), (3,))
    )
    return BernoulliRBM(weight, 0.5 * visible, hidden)


@pytest.fixture
def machines() -> dict[str, RBM]:
    return {name: machine(seed) for seed, name in enumerate(("a", "b", "c"))}


@pytest.fixture
def data(machines: dict[str, RBM]) -> Tensor:
    torch.manual_seed(1)
    return machines["b"].sample((NUM_ROWS,))


def exact(machines: dict[str, RBM]) -> dict[str, Tensor]:
    return {name: exact_log_partition(m) for name, m in machines.items()}


def test_numbers_of_exact_machines(machines: dict[str, RBM], data: Tensor) -> None:
    log_z = exact(machines)
    result = compare_machines(machines, data, log_z)
    states = machines["a"].visible.states(0, 32)
    index = (data.unsqueeze(1) == states).all(-1).double().argmax(1)
    rows = {n: torch.log_softmax(-m.free_energy(states), 0)[index] for n, m in machines.items()}
    best = max(rows, key=lambda name: float(rows[name].sum()))
    assert result.table.index[0] == best == "b"
    for name, line in result.table.iterrows():
        difference = rows[str(name)] - rows[best]
        dse = math.sqrt(NUM_ROWS * difference.var(correction=0).item())
        assert line["elpd"] == pytest.approx(rows[str(name)].sum().item(), rel=1e-9)
        assert line["elpd_diff"] == pytest.approx(difference.sum().item(), abs=1e-9)
        assert line["dse"] == pytest.approx(dse, abs=1e-9)
        # Without doubt about log Z the interval is that of the rows, and the weights are what they are.
        assert line["diff_upper"] == pytest.approx(line["elpd_diff"] + 1.959964 * dse, rel=1e-7)
        assert line["diff_lower"] == pytest.approx(line["elpd_diff"] - 1.959964 * dse, rel=1e-7)
        assert line["weight_lower"] == line["weight_upper"] == pytest.approx(line["weight"])
    assert result.decided and not result.flags


def doubtful(value: Tensor, low: float, high: float, flags: Any = ()) -> LogPartitionEstimate:
    """An estimate that may be too high by ``low`` and too low by ``high``."""
    return LogPartitionEstimate.from_error(
        value,
        0.1,
        {"method": "test"},
        ess=None,
        lower=value - low,
        upper=value + high,
        flags=flags,
        warn=False,
    )


def test_log_z_moves_all_rows_together(machines: dict[str, RBM], data: Tensor) -> None:
    """The interval is widened by N times the ends of both log Z, each on the side where it counts."""
    log_z: dict[str, Any] = exact(machines)
    log_z["a"] = doubtful(log_z["a"], 0.02, 0.30, ("odd",))
    log_z["b"] = doubtful(log_z["b"], 0.05, 0.01, ("odd",))
    result = compare_machines(machines, data, log_z)
    line = result.table.loc["a"]
    # b is the best. Where log Z of "a" is as low as it can be and that of "b" as high, "a" gains.
    gain = math.hypot(1.959964 * line["dse"], NUM_ROWS * 0.02, NUM_ROWS * 0.01)
    loss = math.hypot(1.959964 * line["dse"], NUM_ROWS * 0.30, NUM_ROWS * 0.05)
    assert line["diff_upper"] - line["elpd_diff"] == pytest.approx(gain)
    assert line["elpd_diff"] - line["diff_lower"] == pytest.approx(loss)
    assert result.flags == ("log Z of 'a': odd", "log Z of 'b': odd")
    assert "SUSPICIOUS: log Z of 'a': odd" in str(result)


def test_sides_of_a_bracket_are_not_averaged(machines: dict[str, RBM], data: Tensor) -> None:
    """Its half width is no random error: an end of the difference is at one of the sides."""
    log_z: dict[str, Any] = exact(machines)
    value = log_z["a"]
    log_z["a"] = LogPartitionBracket(doubtful(value, 0.01, 0.02), doubtful(value + 0.5, 0.03, 0.04))
    line = compare_machines(machines, data, log_z).table.loc["a"]
    middle, margin = line["elpd_diff"], 1.959964 * line["dse"]
    upper = middle + NUM_ROWS * 0.25 + math.hypot(margin, NUM_ROWS * 0.01)
    lower = middle - NUM_ROWS * 0.25 - math.hypot(margin, NUM_ROWS * 0.04)
    assert line["diff_upper"] == pytest.approx(upper)
    assert line["diff_lower"] == pytest.approx(lower)


def test_weights_at_the_ends_of_log_z() -> None:
    """Two machines that differ by a constant: all weight goes to the one of the lower log Z."""
    rbm = machine(0)
    torch.manual_seed(0)
    data = rbm.sample((50,))
    value = exact_log_partition(rbm)
    log_z = {"a": doubtful(value, 0.5, 0.5), "b": value + 0.1}
    result = compare_machines({"a": rbm, "b": rbm}, data, log_z, method="pseudo-bma")
    weight = 1 / (1 + math.exp(-50 * 0.1))
    assert result.table.loc["a", "weight"] == pytest.approx(weight)
    assert result.table.loc["a", "weight_lower"] == pytest.approx(1 / (1 + math.exp(50 * 0.4)))
    assert result.table.loc["a", "weight_upper"] == pytest.approx(1 / (1 + math.exp(-50 * 0.6)))
    assert result.table.loc["b", "weight_upper"] == pytest.approx(1 / (1 + math.exp(-50 * 0.4)))
    assert not result.decided


@pytest.mark.parametrize("level", [0.0, -900.0])
def test_stacking_maximises_the_score_of_the_mixture(level: float) -> None:
    """At any level of the likelihoods: exp(-900) is 0."""
    rng = np.random.default_rng(0)
    a, b = level + rng.normal(size=300), level + 0.2 + 1.5 * rng.normal(size=300)
    table = arviz_compare({"a": a, "b": b})
    grid = np.linspace(0.0, 1.0, 2001)[:, None]
    score = np.log(grid * np.exp(a - level) + (1 - grid) * np.exp(b - level)).sum(1)
    assert table.loc["a", "weight"] == pytest.approx(float(grid[score.argmax(), 0]), abs=2e-3)


def test_deep_machines_and_brackets(data: Tensor) -> None:
    layers = [units.Bernoulli(torch.zeros(n, dtype=torch.float64)) for n in (5, 3, 2)]
    weights = [torch.ones(5, 3, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)]
    deep, shallow = DBM(layers, [0.3 * w for w in weights]), machine(1)
    log_z = {
        "deep": bracket_log_partition(deep, num_chains=50, num_temperatures=200, seed=0),
        "shallow": bracket_log_partition(shallow, num_chains=50, num_temperatures=200, seed=0),
    }
    result = compare_machines({"deep": deep, "shallow": shallow}, data, log_z)
    line = result.table.loc["deep"]
    bound = deep.log_prob(data).sum() - NUM_ROWS * log_z["deep"].value
    assert line["elpd"] == pytest.approx(bound.item(), rel=1e-6)
    assert line["log_z_lower"] == log_z["deep"].lower.item()
    assert line["log_z_lower"] < line["log_z_upper"]
    # The bound may lose although the machine is better, and a machine that beats it may be worse.
    assert not result.decided and "by an unknown amount" in str(result)
    loser = result.table.iloc[1]
    favoured = ("diff_upper", math.inf) if loser.name == "deep" else ("diff_lower", -math.inf)
    assert loser[favoured[0]] == favoured[1]
    assert result.to_markdown().count("\n") == 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"log_partition": {"a": 0.0}}, "must have the names"),
        ({"data": torch.zeros(5)}, r"shape \(rows, V\)"),
        ({"data": torch.full((3, 5), 0.5)}, "outside"),
        ({"data": torch.zeros(1, 5)}, "one log-likelihood a row"),
        ({"machines": {"a": machine(0)}, "log_partition": {"a": 0.0}}, "at least two"),
        ({"machines": {"a": machine(0).expand((2,)), "b": machine(1)}}, "no batch shape"),
        ({"method": "mean"}, "method must be one of"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    arguments = {
        "machines": {"a": machine(0), "b": machine(1)},
        "data": torch.zeros(3, 5),
        "log_partition": {"a": 0.0, "b": 0.0},
    } | change
    with pytest.raises(ValueError, match=message):
        compare_machines(**arguments)
