# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Likelihoods of rows, with log Z and without it, against brute force."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM, units
from pyro_ebm.infer import (
    estimate_log_partition,
    exact_log_partition,
    log_likelihood,
    pseudo_log_likelihood,
)
from pyro_ebm.infer.log_partition import likelihood
from tests import brute_force
from tests.distributions.families import (
    DISCRETE,
    FAMILIES,
    batch_indices,
    random_rbm,
    some_states,
    to_machine,
)
from tests.infer.reference import log_partition

#: Entries of one unit of a family, whose states all compete with the observed one.
WIDTH = {"bernoulli": 1, "ising": 1, "categorical": 3, "multinomial": 3}
PAIRS = [(v, h) for v in DISCRETE for h in FAMILIES]
PAIRS += [("labels", "bernoulli"), ("labels", "mixed"), ("categorical", "low_rank")]
Function = Callable[..., Tensor]


def log_probabilities(rbm: RBM) -> tuple[np.ndarray, np.ndarray]:
    """All visible states and their log-probabilities, from the definition."""
    machine = to_machine(rbm)
    states, _ = brute_force.points(machine.visible)
    return states, -brute_force.free_energy(machine, states).real - log_partition(machine)


class TestLogLikelihood:
    @pytest.mark.parametrize("pair", PAIRS, ids="-".join)
    def test_rows(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True, num_hidden=1)
        states, expected = log_probabilities(rbm)
        result = log_likelihood(rbm, torch.as_tensor(states), exact_log_partition(rbm))
        np.testing.assert_allclose(result.numpy(), expected, rtol=0.0, atol=1e-9)

    def test_every_kind_of_log_z(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"))
        data = torch.bernoulli(torch.full((5, 3), 0.5))
        estimate = estimate_log_partition(rbm, num_chains=50, num_temperatures=20, seed=0)
        value = estimate.value.item()
        for log_z in (estimate, estimate.value, value):
            torch.testing.assert_close(
                log_likelihood(rbm, data, log_z), -rbm.free_energy(data.double()) - value
            )

    def test_batches_of_machines(self) -> None:
        """Every row under every machine, each with its own log Z."""
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, batched=True)
        data = torch.bernoulli(torch.full((5, 1, 1, 3), 0.5)).double()
        result = log_likelihood(rbm, data, exact_log_partition(rbm))
        assert result.shape == (5, 2, 3)
        for index in batch_indices(rbm.batch_shape):
            machine = to_machine(rbm, index)
            expected = -brute_force.free_energy(machine, data.reshape(5, 3).numpy()).real
            got = result[(slice(None), *index)].numpy()
            np.testing.assert_allclose(got, expected - log_partition(machine), atol=1e-9)

    def test_float32_machines_are_evaluated_in_float64(self) -> None:
        """A sum of 784 terms would lose 1e-4 in float32."""
        torch.manual_seed(0)
        rbm = BernoulliRBM(torch.randn(784, 50), torch.randn(784), torch.randn(50))
        data = torch.bernoulli(torch.full((5, 784), 0.5))
        result = log_likelihood(rbm, data.to(torch.uint8), 123.0)
        assert result.dtype == torch.float64
        expected = -rbm.to(torch.float64).free_energy(data.double()) - 123.0
        torch.testing.assert_close(result, expected, rtol=0.0, atol=1e-9)

    def test_no_gradients(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"))
        for parameter in rbm.parameters():
            parameter.requires_grad_()
        assert not log_likelihood(rbm, torch.ones(2, 3), 1.0).requires_grad

    def test_attached_log_z_is_replaced(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"))
        data = torch.ones(2, 3)
        plain = log_likelihood(rbm, data, 1.0)
        assert torch.equal(plain, log_likelihood(rbm.normalize(50.0), data, 1.0))

    @pytest.mark.parametrize(
        ("log_z", "message"),
        [(torch.zeros(4), "does not broadcast"), (float("nan"), "log_partition is NaN")],
        ids=["shape", "nan"],
    )
    def test_wrong_log_z(self, log_z: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            log_likelihood(random_rbm(("bernoulli", "ising")), torch.ones(2, 3), log_z)


class TestPseudoLogLikelihood:
    @staticmethod
    def reference(rbm: RBM, family: str) -> tuple[np.ndarray, np.ndarray]:
        """sum_i log p(v_i | rest): the joint over the sum of all states that differ in unit i."""
        states, log_p = log_probabilities(rbm)
        total = np.zeros(len(states))
        # A bit and two labels of three states each, or units of one width.
        starts = [0, 1, 4] if family == "labels" else range(0, states.shape[1], WIDTH[family])
        for start in starts:
            width = (1 if start == 0 else 3) if family == "labels" else WIDTH[family]
            rest = np.delete(states, np.s_[start : start + width], axis=1)
            for row in range(len(states)):
                same = (rest == rest[row]).all(-1)
                total[row] += log_p[row] - np.log(np.exp(log_p[same]).sum())
        return states, total

    @pytest.mark.parametrize("offsets", [False, True], ids=["plain", "offsets"])
    @pytest.mark.parametrize("pair", PAIRS, ids="-".join)
    def test_rows(self, pair: tuple[str, str], offsets: bool) -> None:
        rbm = random_rbm(pair, offsets=offsets, num_hidden=1)
        states, expected = self.reference(rbm, pair[0])
        result = pseudo_log_likelihood(rbm, torch.as_tensor(states))
        np.testing.assert_allclose(result.numpy(), expected, rtol=0.0, atol=1e-9)
        assert np.ptp(expected) > 0.01

    @pytest.mark.parametrize("entries", [1, 20])
    @pytest.mark.parametrize("family", [*DISCRETE, "labels"])
    def test_chunks_do_not_matter(
        self, family: str, entries: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rbm = random_rbm((family, "ising"), offsets=True)
        data = torch.as_tensor(some_states(to_machine(rbm).visible, 7))
        whole = pseudo_log_likelihood(rbm, data)
        monkeypatch.setattr(likelihood, "_CHUNK_ENTRIES", entries)
        torch.testing.assert_close(pseudo_log_likelihood(rbm, data), whole)

    def test_shapes(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"))
        data = torch.bernoulli(torch.full((4, 5, 3), 0.5))
        result = pseudo_log_likelihood(rbm, data)
        assert result.shape == (4, 5)
        assert torch.equal(pseudo_log_likelihood(rbm, data[2, 3]), result[2, 3])

    def test_one_category_of_many_states(self) -> None:
        """With a single unit nothing is conditioned on: the exact log-likelihood."""
        rbm = random_rbm(("multinomial", "bernoulli"))
        states, expected = log_probabilities(rbm)
        result = pseudo_log_likelihood(rbm, torch.as_tensor(states))
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-9)

    def test_clamped_machine(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), offsets=True)
        mask = torch.tensor([True, False, False])
        value = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        rows = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).double()
        states, log_p = log_probabilities(rbm)
        log_p = log_p[states[:, 0] == 1].reshape(2, 2)
        first = log_p - np.logaddexp(log_p[:1], log_p[1:])
        second = log_p - np.logaddexp(log_p[:, :1], log_p[:, 1:])
        result = pseudo_log_likelihood(rbm.clamp(mask, value), rows)
        np.testing.assert_allclose(result.numpy(), (first + second).ravel(), atol=1e-9)

    @pytest.mark.parametrize("family", ["gaussian", "relu"])
    def test_continuous_units(self, family: str) -> None:
        rbm = random_rbm((family, "bernoulli"))
        with pytest.raises(ValueError, match="units have no finite set of states"):
            pseudo_log_likelihood(rbm, torch.ones(4, 2))

    def test_batches_of_machines(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), batched=True)
        with pytest.raises(ValueError, match=r"takes an unbatched machine, got \(2, 3\)"):
            pseudo_log_likelihood(rbm, torch.ones(4, 3))


@pytest.mark.parametrize(
    "function",
    [pseudo_log_likelihood, lambda rbm, data: log_likelihood(rbm, data, 0.0)],
    ids=["pseudo", "exact"],
)
class TestWrongData:
    @pytest.mark.parametrize("shape", [(5, 4), (4,), ()], ids=str)
    def test_shape(self, function: Function, shape: tuple[int, ...]) -> None:
        rbm = random_rbm(("bernoulli", "ising"))
        with pytest.raises(ValueError, match=r"data must have shape \(\.\.\., 3\), got"):
            function(rbm, torch.zeros(shape))

    @pytest.mark.parametrize("bad", [0.5, 255.0, -1.0, float("nan")])
    def test_outside_of_the_support(self, function: Function, bad: float) -> None:
        rbm = random_rbm(("bernoulli", "ising"))
        data = torch.ones(5, 3)
        data[1, 0] = data[3, 2] = data[3, 1] = bad
        with pytest.raises(ValueError, match="data has 2 of 5 rows outside of"):
            function(rbm, data)

    @pytest.mark.parametrize("family", ["ising", "categorical", "multinomial"])
    def test_every_support(self, function: Function, family: str) -> None:
        rbm = random_rbm((family, "ising"))
        with pytest.raises(ValueError, match="data has 4 of 4 rows outside of"):
            function(rbm, torch.zeros(4, *rbm.event_shape))


class Thirds(units.Bernoulli):
    """Bits whose second state stands for three: a family with a base measure, r(x) = -x log 3."""

    def energy(self, x: Tensor) -> Tensor:
        return super().energy(x) - math.log(3.0) * x.sum(-1)

    def natural_log_partition(self, theta: Tensor) -> Tensor:
        return super().natural_log_partition(theta + math.log(3.0))


def test_pseudo_log_likelihood_includes_base_measures() -> None:
    torch.manual_seed(0)
    plain = RBM(units.Bernoulli(torch.randn(4)), units.Bernoulli(torch.randn(2)), torch.randn(4, 2))
    with_measure = RBM(Thirds(plain.visible.bias), plain.hidden, plain.weight)
    same = RBM(units.Bernoulli(plain.visible.bias + math.log(3.0)), plain.hidden, plain.weight)
    v = plain.sample((6,))
    got = pseudo_log_likelihood(with_measure, v)
    torch.testing.assert_close(got, pseudo_log_likelihood(same, v))
    assert (got - pseudo_log_likelihood(plain, v)).abs().min() > 0.01
