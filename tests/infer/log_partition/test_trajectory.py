# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Annealing through checkpoints: the weights at every one of them are unbiased."""

import copy
import json
import warnings
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import (
    LogPartitionEstimate,
    LogPartitionWarning,
    exact_log_partition,
    trajectory_log_partition,
)
from pyro_ebm.infer.paths import MachinePath
from tests.distributions.families import ALL_FAMILIES, UNBOUNDED, random_rbm
from tests.infer.reference import Z_LIMIT, z_score

METHODS = ["ais", "reverse-ais"]


@lru_cache
def trained(num_checkpoints: int = 4) -> tuple[RBM, ...]:
    """Checkpoints of a machine of 6 x 4 bits that learns two patterns by its exact gradient."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]], dtype=torch.float64)
        weight = 0.1 * torch.randn(6, 4, dtype=torch.float64)
    parameters = [weight, torch.zeros(6).double(), torch.zeros(4).double()]
    for parameter in parameters:
        parameter.requires_grad_()
    optimiser = torch.optim.SGD(parameters, lr=0.7)
    checkpoints: list[RBM] = []
    for _ in range(num_checkpoints):
        for _ in range(60):
            optimiser.zero_grad()
            rbm = BernoulliRBM(*parameters)
            loss = -rbm.normalize(exact_log_partition(rbm)).log_prob(rows).mean()
            loss.backward()
            optimiser.step()
        checkpoints.append(BernoulliRBM(*(p.detach().clone() for p in parameters)))
    return tuple(checkpoints)


def run(checkpoints: Any, method: str = "ais", **options: Any) -> list[LogPartitionEstimate]:
    options = {"num_chains": 20_000, "num_temperatures": 8, "schedule": "linear", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogPartitionWarning)
        return trajectory_log_partition(checkpoints, method, seed=1, **options)


def exact_values(checkpoints: Any) -> Tensor:
    return torch.stack([exact_log_partition(machine) for machine in checkpoints])


def weights_z(estimate: LogPartitionEstimate, log_z: Tensor, sign: float = 1.0) -> float:
    assert estimate.log_weights is not None
    return z_score((sign * (estimate.log_weights - log_z)).exp(), 1.0)


class TestUnbiased:
    @pytest.mark.parametrize("schedule", ["linear", "adaptive", "given"])
    def test_at_every_checkpoint(self, schedule: str) -> None:
        checkpoints = trained()
        log_z = exact_values(checkpoints)
        assert log_z.diff().abs().min() > 0.2, "too alike to be told apart"
        given = torch.tensor([0.0, 0.1, 0.3, 0.8, 0.9, 1.0])
        chosen: Any = given if schedule == "given" else schedule
        curve = run(checkpoints, schedule=chosen)
        assert len(curve) == len(checkpoints)
        for estimate, expected in zip(curve, log_z, strict=True):
            assert abs(weights_z(estimate, expected)) < Z_LIMIT
            assert estimate.side == "below"

    def test_reverse_for_the_last_and_consistent_for_the_others(self) -> None:
        checkpoints = trained()
        log_z = exact_values(checkpoints)
        curve = run(checkpoints, "reverse-ais", num_temperatures=60)
        assert abs(weights_z(curve[-1], log_z[-1], -1.0)) < Z_LIMIT
        assert curve[-1].side == "above"
        for estimate, expected in zip(curve, log_z, strict=True):
            assert abs(estimate.value - expected) < Z_LIMIT * estimate.std_error
            assert estimate.std_error < 0.05

    def test_ratio_of_two_estimates_has_the_error_that_it_claims(self) -> None:
        """40 runs of 500 chains each. Of a first checkpoint that is almost the base the weights on the
        way to it and in all are almost the same, and so their errors cancel."""
        last = trained()[-1]
        first = last.visible.replace(bias=0.5 * last.visible.bias)
        weak = RBM(first, last.hidden.neutral(), 0.05 * last.weight)
        runs = [
            trajectory_log_partition(
                [weak, last], "reverse-ais", num_chains=500, num_temperatures=40, schedule="linear"
            )
            for _ in range(40)
        ]
        spread = torch.stack([r[0].value for r in runs]).std()
        claimed = torch.stack([r[0].std_error for r in runs]).square().mean().sqrt()
        # The standard deviation of 40 values is known to 11 %.
        assert 0.5 < claimed / spread < 2.0
        assert claimed < 0.2 * torch.stack([r[1].std_error for r in runs]).mean()

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("family", [f for f in ALL_FAMILIES if f != "low_rank"])
    def test_every_family(self, family: str, method: str) -> None:
        """Offsets, and precisions that differ between checkpoints."""
        pair = (family, "bernoulli" if family in UNBOUNDED else "gaussian")
        checkpoints = [random_rbm(pair, offsets=True, num_hidden=2) for _ in range(3)]
        log_z = exact_values(checkpoints)
        sign = -1.0 if method == "reverse-ais" else 1.0
        curve = run(checkpoints, method, num_temperatures=6, num_chains=50_000)
        assert abs(weights_z(curve[-1], log_z[-1], sign)) < Z_LIMIT
        if method == "ais":
            assert abs(weights_z(curve[0], log_z[0])) < Z_LIMIT

    @pytest.mark.parametrize("base", ["uniform", "means", "unit"])
    def test_every_base(self, base: str) -> None:
        checkpoints = trained()
        means = torch.full((6,), 0.4, dtype=torch.float64)
        options: dict[str, Any] = {
            "uniform": "uniform",
            "means": means,
            "unit": checkpoints[0].visible.from_mean(means),
        }
        curve = run(checkpoints, base=options[base])
        assert abs(weights_z(curve[-1], exact_log_partition(checkpoints[-1]))) < Z_LIMIT

    @pytest.mark.parametrize("method", METHODS)
    def test_batches(self, method: str) -> None:
        pair = ("bernoulli", "ising")
        checkpoints = [random_rbm(pair, offsets=True, batched=True) for _ in range(2)]
        log_z = exact_values(checkpoints)
        curve = run([m.expand((4, 2, 3)) for m in checkpoints], method)
        assert all(e.value.shape == e.std_error.shape == (4, 2, 3) for e in curve)
        for estimate, expected in zip(curve, log_z, strict=True):
            error = (estimate.value - expected) / estimate.std_error
            assert error.abs().max() < Z_LIMIT

    def test_float32(self) -> None:
        checkpoints = [machine.to(torch.float32) for machine in trained()]
        curve = run(checkpoints, num_temperatures=40)
        log_z = exact_values(checkpoints)
        for estimate, expected in zip(curve, log_z, strict=True):
            assert estimate.value.dtype == torch.float64
            assert abs(weights_z(estimate, expected)) < Z_LIMIT


class TestMistakesAreCaught:
    def test_weights_taken_one_knot_too_early(self) -> None:
        curve = run(trained())
        log_z = exact_values(trained())
        assert curve[0].log_weights is not None
        early = copy.copy(curve[0].log_weights)
        assert abs(z_score((early - log_z[1]).exp(), 1.0)) > 10.0

    def test_moves_of_the_machine_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = MachinePath.move

        def behind(self: MachinePath, fields: Tensor, beta: float) -> Tensor:
            return original(self, fields, max(beta - 0.125, 0.0))

        monkeypatch.setattr(MachinePath, "move", behind)
        estimate = run(trained())[-1]
        assert abs(weights_z(estimate, exact_log_partition(trained()[-1]))) > 10.0


class TestInterface:
    def test_one_checkpoint_is_plain_annealing(self) -> None:
        rbm = trained()[-1]
        (estimate,) = run([rbm])
        assert abs(weights_z(estimate, exact_log_partition(rbm))) < Z_LIMIT

    def test_same_seed_same_weights(self) -> None:
        first, second = run(trained())[-1], run(trained())[-1]
        assert torch.equal(first.value, second.value)
        before = torch.get_rng_state()
        run(trained(), "reverse-ais")
        assert torch.equal(before, torch.get_rng_state())

    def test_settings(self) -> None:
        curve = run(trained(), num_temperatures=10)
        settings = curve[2].settings
        # 10 even temperatures hold two of the three inner knots at 1/4, 1/2 and 3/4.
        assert settings["num_temperatures"] == 12 and settings["num_checkpoints"] == 4
        assert settings["checkpoint"] == 2 and settings["method"] == "trajectory ais"
        for estimate in curve:
            assert json.loads(json.dumps(estimate.to_dict())) == estimate.to_dict()
        assert run(trained(), "reverse-ais")[0].settings["start"] == "exact"

    def test_given_start(self) -> None:
        start = trained()[-1].sample(torch.Size((20,)))
        curve = run(trained(), "reverse-ais", num_chains=20, initial=start)
        assert curve[-1].settings["start"] == "given"

    def test_one_warning_for_all(self) -> None:
        weight = 4.0 * torch.randn(8, 8)
        checkpoints = [BernoulliRBM(s * weight, torch.zeros(8), torch.zeros(8)) for s in (1.0, 3.0)]
        with pytest.warns(LogPartitionWarning, match="of 2 checkpoints are suspicious") as record:
            trajectory_log_partition(
                checkpoints, num_chains=100, num_temperatures=1, schedule="linear", seed=0
            )
        assert len(record) == 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "raise"}, "method must be one of .*'reverse-ais'.*got 'raise'"),
            ({"num_chains": 1}, "num_chains must be at least 2 for a standard error, got 1"),
            ({"base": "flat"}, "base must be None"),
        ],
    )
    def test_wrong_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            trajectory_log_partition(trained(), **{"num_temperatures": 5, **options})

    @pytest.mark.parametrize("wrong", [[], [None], [torch.zeros(3)]])
    def test_no_machines(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match="checkpoints must be RBM distributions"):
            trajectory_log_partition(wrong)

    def test_machines_that_do_not_fit(self) -> None:
        other = random_rbm(("ising", "bernoulli"))
        with pytest.raises(ValueError, match="differs from the first"):
            trajectory_log_partition([other, trained()[0]])
