# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Draws and means of missing entries against sums and quadratures."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM, GaussianBernoulliRBM
from pyro_ebm.distributions.observed_rows import ObservedRows
from pyro_ebm.distributions.row_clamp import hidden_log_weight
from pyro_ebm.infer.missing import Imputation, imputation, impute, observed_log_likelihood
from tests.distributions.families import (
    ALL_PAIRS,
    UNBOUNDED,
    batch_indices,
    random_rbm,
    to_machine,
    uniform,
)
from tests.infer.missing.reference import conditional_moments, rows_of
from tests.infer.reference import Z_LIMIT

FINITE = [p for p in ALL_PAIRS if p[1] not in UNBOUNDED]
COUNT = 4


def moments(rbm: RBM, value: Tensor, observed: Tensor, index: Any = ()) -> tuple[Tensor, Tensor]:
    """Exact first and second moments of every row."""
    rows = zip(value.flatten(1).numpy(), observed.flatten(1).numpy(), strict=True)
    pairs = [conditional_moments(to_machine(rbm, index), v, o) for v, o in rows]
    mean, second = (torch.from_numpy(np.stack(m)) for m in zip(*pairs, strict=True))
    return mean, second


def deviation(samples: Tensor, mean: Tensor, second: Tensor) -> float:
    """Largest deviation of the mean of draws (first axis), in standard errors."""
    error = (second - mean**2).clamp(min=0.0).sqrt() / math.sqrt(len(samples))
    return ((samples.mean(0) - mean).abs() / (error + 1e-9)).max().item()


class TestExact:
    @pytest.mark.parametrize("pair", FINITE, ids="-".join)
    def test_every_pair(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True)
        value, observed = rows_of(rbm, COUNT)
        result = impute(rbm, value, observed, 5000, generator=Generator().manual_seed(0))
        assert result.exact and not result.std_error.any()
        assert result.samples.shape == (5000, COUNT, rbm.visible.size)
        mean, second = moments(rbm, value, observed)
        torch.testing.assert_close(result.mean, mean, atol=1e-9, rtol=1e-9)
        assert deviation(result.samples, mean, second) < Z_LIMIT
        assert rbm.support.check(result.samples).all()
        kept = torch.where(observed, value, 0.0).expand_as(result.samples)
        assert torch.equal(torch.where(observed, result.samples, 0.0), kept)

    def test_pairs_of_missing_entries_are_drawn_together(self) -> None:
        rbm = random_rbm(("ising", "ising"), scale=3)
        value = torch.tensor([[torch.nan, torch.nan, 1.0]], dtype=torch.float64)
        v = impute(rbm, value, ~value.isnan(), 20_000).samples[:, 0]
        exponent = -rbm.free_energy(rbm.visible.states(0, 8)[1::2])
        p = exponent.softmax(0)
        number = ((v[:, :2] + 1) / 2) @ torch.tensor([2.0, 1.0]).double()
        counts = torch.bincount(number.long(), minlength=4)
        error = (p * (1 - p) * len(v)).sqrt()
        assert ((counts - p * len(v)).abs() / error).max() < Z_LIMIT

    @pytest.mark.parametrize("pair", [("gaussian", "ising"), ("categorical", "bernoulli")])
    def test_a_setting_of_the_parameters_a_row(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True, batched=True)
        value, observed = rows_of(rbm, COUNT)
        lift = (COUNT, 1, 1, -1)
        result = impute(rbm, value.reshape(lift), observed.reshape(lift), 2000)
        assert result.samples.shape == (2000, COUNT, 2, 3, rbm.visible.size)
        for index in batch_indices(rbm.batch_shape):
            mean, second = moments(rbm, value, observed, index)
            where = (slice(None), *index)
            torch.testing.assert_close(result.mean[where], mean, atol=1e-9, rtol=1e-9)
            assert deviation(result.samples[(slice(None), *where)], mean, second) < Z_LIMIT
        # One row an element of the batch.
        matched = impute(rbm, value[:3], observed[:3]).mean
        for j in range(3):
            torch.testing.assert_close(matched[:, j], result.mean[j, :, j], atol=1e-12, rtol=1e-12)

    def test_chunks_of_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rbm = random_rbm(("bernoulli", "ising"), offsets=True)
        value, observed = rows_of(rbm, 7)
        whole = impute(rbm, value.reshape(7, 1, 3), observed.reshape(7, 1, 3), 3000)
        monkeypatch.setattr(imputation, "_CHUNK_ENTRIES", 2 * 4)  # two rows of four states
        parts = impute(rbm, value.reshape(7, 1, 3), observed.reshape(7, 1, 3), 3000)
        assert parts.samples.shape == (3000, 7, 1, 3)
        torch.testing.assert_close(parts.mean, whole.mean, atol=1e-12, rtol=1e-12)
        mean, second = moments(rbm, value, observed)
        assert deviation(parts.samples.squeeze(2), mean, second) < Z_LIMIT


class TestGibbs:
    PAIRS = (
        ("bernoulli", "bernoulli"),
        ("gaussian", "ising"),
        ("ising", "gaussian"),
        ("mixed", "ising"),
        ("multinomial", "relu"),
        ("relu", "labels"),
    )

    @pytest.mark.parametrize("pair", PAIRS, ids="-".join)
    def test_means_and_draws(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True)
        value, observed = rows_of(rbm, COUNT)
        result = impute(
            rbm, value, observed, 3000, 20, max_states=0, generator=Generator().manual_seed(0)
        )
        assert not result.exact
        mean, second = moments(rbm, value, observed)
        assert deviation(result.samples, mean, second) < Z_LIMIT
        error = (result.mean - mean).abs()
        assert (error <= Z_LIMIT * result.std_error + 1e-9).all()
        assert not result.std_error[observed].any()
        # Rao-Blackwellised: no more variance than the draws have.
        plain = (second - mean**2).clamp(min=0.0).sqrt() / math.sqrt(3000)
        assert (result.std_error <= 1.1 * plain + 1e-9).all()

    def test_two_gaussian_layers(self) -> None:
        """The conditional mean of a joint normal."""
        rbm = random_rbm(("gaussian", "gaussian"), offsets=True)
        value = torch.tensor([[0.5, torch.nan], [torch.nan, -1.0]], dtype=torch.float64)
        result = impute(rbm, value, ~value.isnan(), 5000, 30)
        precision = (
            torch.diag(rbm.visible.precision) - rbm.weight @ (rbm.weight / rbm.hidden.precision).mT
        )
        form = rbm.canonical()
        centre = torch.linalg.solve(
            precision, form.visible_bias + rbm.weight @ (form.hidden_bias / rbm.hidden.precision)
        )
        for row, (o, m) in enumerate(((0, 1), (1, 0))):
            pull = precision[m, o] / precision[m, m] * (value[row, o] - centre[o])
            assert (
                abs(result.mean[row, m] - (centre[m] - pull)) < Z_LIMIT * result.std_error[row, m]
            )

    def test_chains_start_where_they_are_told(self) -> None:
        rbm = BernoulliRBM(
            torch.full((4, 2), 60.0), torch.full((4,), -60.0), torch.full((2,), -120.0)
        )
        value = torch.full((1, 4), torch.nan)
        for bit in (0.0, 1.0):  # two modes that Gibbs sampling cannot leave
            start = torch.full((4,), bit)
            result = impute(rbm, value, ~value.isnan(), 20, 30, initial=start)
            assert not result.exact and (result.samples == bit).all()

    def test_batched_parameters(self) -> None:
        rbm = random_rbm(("gaussian", "bernoulli"), offsets=True, batched=True)
        value, observed = rows_of(rbm, 3)
        result = impute(rbm, value, observed, 3000, 25, max_states=0)
        assert result.samples.shape == (3000, 2, 3, 2)
        exact = impute(rbm, value, observed).mean
        assert ((result.mean - exact).abs() <= Z_LIMIT * result.std_error + 1e-9).all()

    def test_one_chain_has_no_error(self) -> None:
        rbm = random_rbm(("bernoulli", "bernoulli"))
        value, observed = rows_of(rbm, COUNT)
        result = impute(rbm, value, observed, num_steps=1, max_states=0)
        assert result.samples.shape == (1, COUNT, 3)
        assert result.std_error[~observed].isnan().all() and not result.std_error[observed].any()


def both(rbm: RBM, value: Tensor, observed: Tensor, **options: Any) -> list[Imputation]:
    """By the exact posterior and by chains."""
    return [impute(rbm, value, observed, 3, 4, max_states=n, **options) for n in (2**12, 0)]


def test_reproducible_and_without_gradient() -> None:
    rbm = random_rbm(("gaussian", "ising"))
    rbm.weight.requires_grad_()
    value, observed = rows_of(rbm, COUNT)
    before = torch.get_rng_state()
    first, second = (
        both(rbm, value, observed, generator=Generator().manual_seed(5)) for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.samples, b.samples) and torch.equal(a.mean, b.mean)
        assert not a.samples.requires_grad and not a.mean.requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_no_rows() -> None:
    rbm = random_rbm(("bernoulli", "ising"))
    value = torch.zeros(0, 3)
    assert observed_log_likelihood(rbm, value, value.bool()).value.shape == (0,)
    for result in both(rbm, value, value.bool()):
        assert result.samples.shape == (3, 0, 3) and result.mean.shape == (0, 3)


def test_float32_whole_numbers_and_plates() -> None:
    rbm = GaussianBernoulliRBM(
        uniform((3, 2), -1, 1).float(), torch.zeros(3), torch.ones(3), torch.zeros(2)
    )
    value = torch.tensor([[1, 2, 0], [0, 0, 0]])
    for result in both(rbm.expand((5, 1)), value, value != 0):
        assert result.samples.shape == (3, 5, 2, 3) and result.mean.shape == (5, 2, 3)
        assert result.samples.dtype == result.mean.dtype == result.std_error.dtype == torch.float32
        assert result.samples[:, 0, 1].unique(dim=0).shape == (3, 3)
        assert not torch.equal(result.samples[:, 0], result.samples[:, 1])


@pytest.mark.parametrize("pair", [("gaussian", "ising"), ("bernoulli", "bernoulli")], ids="-".join)
def test_gradients_of_training_on_incomplete_rows(pair: tuple[str, str]) -> None:
    """Fisher's identity: completed rows, or weights of drawn hidden states, give the exact gradient."""
    rbm = random_rbm(pair, offsets=True)
    value, observed = rows_of(rbm, COUNT)
    rows = ObservedRows(rbm, value[2:], observed[2:])
    v = impute(rbm, value[2:], observed[2:], 4000).samples
    h = rbm.hidden_given(v).sample()
    rbm.weight.requires_grad_()
    exact = observed_log_likelihood(rbm, value[2:], observed[2:], 0.0).value.sum()
    (expected,) = torch.autograd.grad(exact, rbm.weight)

    def per_draw(log_density: Any) -> Tensor:
        """Gradient of every draw on its own, by a weight of its own."""
        weight = rbm.weight.detach().expand(len(v), 1, *rbm.weight.shape).clone().requires_grad_()
        machine = RBM(
            rbm.visible,
            rbm.hidden,
            weight,
            visible_offset=rbm.visible_offset,
            hidden_offset=rbm.hidden_offset,
        )
        return torch.autograd.grad(log_density(machine).sum(), weight)[0].squeeze(1).flatten(1)

    completed = per_draw(lambda machine: -machine.free_energy(v))
    summed = per_draw(lambda machine: hidden_log_weight(machine, rows, h))
    for draws in (completed, summed):
        error = draws.std(0) / math.sqrt(len(draws))
        assert ((draws.mean(0) - expected.flatten()).abs() <= Z_LIMIT * error).all()


BITS, NONE = torch.zeros(4, 3), torch.zeros(4, 3).bool()
BAD: list[tuple[dict[str, Any], str]] = [
    ({"num_samples": 0}, "num_samples and num_steps must be at least 1, got 0"),
    ({"num_steps": 0}, "num_samples and num_steps must be at least 1, got 1 and 0"),
    ({"observed": NONE.float()}, "observed must be boolean"),
    ({"observed": ~NONE, "value": BITS * torch.nan}, "value is NaN at an observed entry"),
    ({"initial": torch.zeros(2)}, r"initial must broadcast to \(1, 4, 3\), got shape \(2,\)"),
    ({"initial": torch.full((3,), torch.nan)}, "initial is NaN or infinite at a missing entry"),
    ({"initial": torch.full((3,), torch.inf)}, "initial is NaN or infinite at a missing entry"),
    ({"initial": torch.full((3,), 0.5)}, "outside of the support at 12 missing units"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    rbm = BernoulliRBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=message):
        impute(rbm, **{"value": BITS, "observed": NONE, **changes})
    with pytest.raises(TypeError, match="dist must be an RBM"):
        impute(torch.distributions.Normal(0, 1), BITS, NONE)
    with pytest.raises(TypeError, match="initial must be a tensor, got float"):
        impute(rbm, BITS, NONE, initial=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_start_of_another_dtype(dtype: torch.dtype) -> None:
    rbm = BernoulliRBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2))
    # What stands at observed entries is not read.
    start = torch.tensor([7.0, 1.0, 0.0]).to(dtype)
    result = impute(rbm, BITS, torch.tensor([True, False, False]), 2, 3, initial=start)
    assert result.samples.dtype == result.mean.dtype == torch.float32
