# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Exact log Z against sums and quadratures from the definition of the energy."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM, GaussianBernoulliRBM, enumeration, units
from pyro_ebm.infer import exact_log_partition
from tests import brute_force
from tests.distributions.families import (
    ALL_PAIRS,
    UNBOUNDED,
    batch_indices,
    flat_tensors,
    random_rbm,
    to_machine,
)
from tests.infer.reference import log_partition

FINITE_PAIRS = [p for p in ALL_PAIRS if not set(p) <= set(UNBOUNDED)]
GAUSSIAN = {"gaussian", "low_rank"}
EXACT_PAIRS = [p for p in ALL_PAIRS if p in FINITE_PAIRS or set(p) <= GAUSSIAN]
IDS = ["-".join(p) for p in EXACT_PAIRS]
#: Counts and correlated units are one unit, which is clamped as a whole or not at all.
CLAMPABLE = [p for p in EXACT_PAIRS if p[0] not in ("multinomial", "low_rank")]


@pytest.mark.parametrize("offsets", [False, True], ids=["plain", "offsets"])
@pytest.mark.parametrize("pair", EXACT_PAIRS, ids=IDS)
def test_agrees_with_brute_force(pair: tuple[str, str], offsets: bool) -> None:
    rbm = random_rbm(pair, offsets=offsets, num_hidden=1)
    value = exact_log_partition(rbm)
    assert value.shape == () and value.dtype == torch.float64
    assert value.item() == pytest.approx(log_partition(to_machine(rbm)), abs=1e-9)


@pytest.mark.parametrize("pair", EXACT_PAIRS, ids=IDS)
def test_batches_agree_with_brute_force(pair: tuple[str, str]) -> None:
    rbm = random_rbm(pair, offsets=True, batched=True, num_hidden=1)
    value = exact_log_partition(rbm)
    assert value.shape == rbm.batch_shape == (2, 3)
    for index in batch_indices(rbm.batch_shape):
        expected = log_partition(to_machine(rbm, index))
        assert value[index].item() == pytest.approx(expected, abs=1e-9)
    expanded = exact_log_partition(rbm.expand((4, 2, 3)))
    assert expanded.shape == (4, 2, 3)
    torch.testing.assert_close(expanded, value.expand(4, 2, 3), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("pair", EXACT_PAIRS, ids=IDS)
def test_normalised_probabilities_sum_to_one(pair: tuple[str, str]) -> None:
    rbm = random_rbm(pair, offsets=True, num_hidden=1)
    v, weights = brute_force.points(to_machine(rbm).visible)
    log_p = rbm.normalize(exact_log_partition(rbm)).log_prob(torch.as_tensor(v))
    total = (log_p.exp() * torch.as_tensor(weights)).sum().item()
    assert total == pytest.approx(1.0, abs=1e-9)


def test_the_library_enumerates_normalised_machines() -> None:
    rbm = random_rbm(("bernoulli", "ising"), batched=True)
    normalized = rbm.normalize(exact_log_partition(rbm))
    total = normalized.log_prob(normalized.enumerate_support()).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros(2, 3).double(), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("entries", [1, 30, 60])
@pytest.mark.parametrize(
    "pair", [("bernoulli", "ising"), ("categorical", "gaussian"), ("relu", "multinomial")], ids=str
)
def test_chunks_do_not_matter(
    pair: tuple[str, str], entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rbm = random_rbm(pair, offsets=True, batched=True)
    leaves = [p.requires_grad_() for p in rbm.parameters()]

    def value_and_gradients() -> list[Tensor]:
        value = exact_log_partition(rbm)
        return [value.detach(), *torch.autograd.grad(value.sin().sum(), leaves)]

    whole = value_and_gradients()
    counted = []
    original = RBM.free_energy

    def counting(self: RBM, value: Tensor) -> Tensor:
        counted.append(len(value))
        return original(self, value)

    monkeypatch.setattr(RBM, "free_energy", counting)
    monkeypatch.setattr(enumeration, "_CHUNK_ENTRIES", entries)
    chunked = value_and_gradients()
    assert len(counted) > 2, "the limit made no chunks, so that nothing was tested"
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pair", EXACT_PAIRS, ids=IDS)
def test_gradients(pair: tuple[str, str]) -> None:
    """Automatic gradients of log Z against complex steps through the brute force."""
    rbm = random_rbm(pair, offsets=True, num_hidden=1)
    leaves = {name: p.requires_grad_() for name, p in flat_tensors(rbm).items()}
    gradients = torch.autograd.grad(exact_log_partition(rbm), list(leaves.values()))
    machine = to_machine(rbm)
    reference = {n: brute_force.parameters(machine)[n] for n in leaves}
    if machine.visible.is_continuous:
        # A complex step costs one quadrature a parameter, hence the weight alone.
        reference = {"weight": reference["weight"]}
    named = dict(zip(leaves, gradients, strict=True))
    for name, array in reference.items():

        def function(x: np.ndarray, name: str = name) -> complex:
            return log_partition(brute_force.with_parameter(machine, name, x), keep_complex=True)

        expected = brute_force.derivative(function, array)
        np.testing.assert_allclose(named[name].numpy(), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "pair", [("bernoulli", "bernoulli"), ("gaussian", "ising"), ("gaussian", "gaussian")], ids=str
)
def test_gradcheck(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enumeration, "_CHUNK_ENTRIES", 8)
    rbm = random_rbm(pair, batched=True)

    def function(weight: Tensor, *parameters: Tensor) -> Tensor:
        names = list(rbm.visible.parameters)
        visible = rbm.visible.replace(**dict(zip(names, parameters, strict=True)))
        return exact_log_partition(RBM(visible, rbm.hidden, weight))

    leaves = [rbm.weight, *rbm.visible.parameters.values()]
    assert torch.autograd.gradcheck(function, [p.detach().requires_grad_() for p in leaves])


@pytest.mark.parametrize("pair", [("bernoulli", "ising"), ("multinomial", "relu")], ids=str)
def test_gradient_is_the_mean_of_the_energys(pair: tuple[str, str]) -> None:
    r"""d log Z = -E_model[dF], the identity that all training objectives rest on."""
    rbm = random_rbm(pair, offsets=True, batched=True)
    leaves = [p.requires_grad_() for p in rbm.parameters()]
    log_z = exact_log_partition(rbm)
    states = rbm.enumerate_support()
    free_energy = rbm.free_energy(states)
    probability = (-free_energy - log_z).exp().detach()
    surrogate = -(probability * free_energy).sum()
    left = torch.autograd.grad(log_z.sum(), leaves)
    right = torch.autograd.grad(surrogate, leaves)
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_trains_by_maximum_likelihood() -> None:
    """The gradient of the normalised log-probability vanishes at the truth."""
    rbm = random_rbm(("bernoulli", "bernoulli"))
    leaves = [p.requires_grad_() for p in rbm.parameters()]
    normalized = rbm.normalize(exact_log_partition(rbm))
    log_p = normalized.log_prob(rbm.enumerate_support())
    for gradient in torch.autograd.grad((log_p.exp().detach() * log_p).sum(), leaves):
        assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("pair", CLAMPABLE, ids="-".join)
def test_difference_of_clamped_log_z_is_the_log_marginal(pair: tuple[str, str]) -> None:
    rbm = random_rbm(pair, offsets=True, num_hidden=1)
    machine = to_machine(rbm)
    v, weights = brute_force.points(machine.visible)
    width = 3 if pair[0] == "categorical" else 1
    mask = torch.zeros(rbm.event_shape, dtype=torch.bool)
    mask[:width] = True
    # Rows of the grid that agree with its middle row in the clamped entries; at a node of a
    # quadrature the density is that sum without the weight of the clamped axis.
    value = v[len(v) // 2]
    rows = (v[:, :width] == value[:width]).all(-1)
    assert 1 < rows.sum() < len(v)
    log_p = -brute_force.free_energy(machine, v[rows]).real
    free = weights[rows]
    if machine.visible.is_continuous and pair[0] != "mixed":  # a spin is clamped there
        own = np.sqrt(weights[np.flatnonzero(np.ptp(v, axis=1) == 0)])
        free = weights[rows] / own[np.unique(v[:, 0]).tolist().index(value[0])]
    joint = brute_force.log_sum(log_p.astype(complex), free).real
    clamped = rbm.clamp(mask, torch.as_tensor(value))
    difference = (exact_log_partition(clamped) - exact_log_partition(rbm)).item()
    assert difference == pytest.approx(joint - log_partition(machine), abs=1e-9)


def test_clamping_rows_of_values() -> None:
    rbm = random_rbm(("bernoulli", "ising"))
    mask = torch.tensor([True, True, False])
    corners = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    log_p = exact_log_partition(rbm.clamp(mask, corners.double())) - exact_log_partition(rbm)
    assert log_p.shape == (4,)
    assert log_p.logsumexp(0).item() == pytest.approx(0.0, abs=1e-12)
    assert log_p.std() > 0.01


def test_float32_machines_are_summed_in_float64() -> None:
    rbm = random_rbm(("bernoulli", "bernoulli")).to(torch.float32)
    assert exact_log_partition(rbm).item() == pytest.approx(
        log_partition(to_machine(rbm)), abs=1e-12
    )


def test_attached_log_z_is_ignored() -> None:
    rbm = random_rbm(("bernoulli", "bernoulli"))
    assert exact_log_partition(rbm.normalize(3.0)) == exact_log_partition(rbm)


def test_the_smaller_side_is_enumerated() -> None:
    """40 units on either side are fine if the other is small."""
    torch.manual_seed(1)
    weight = torch.randn(40, 3, dtype=torch.float64)
    bias = torch.randn(40, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    one = exact_log_partition(BernoulliRBM(weight, *bias), max_states=8)
    other = exact_log_partition(BernoulliRBM(weight.mT, *bias[::-1]), max_states=8)
    assert one.item() == pytest.approx(other.item(), abs=1e-10)


@pytest.mark.slow
def test_a_million_states_of_an_image_model() -> None:
    """2^20 hidden states and 784 pixels in under a minute, against two blocks of 2^10 states."""
    torch.manual_seed(0)
    blocks = [
        BernoulliRBM(
            0.3 * torch.randn(392, 10, dtype=torch.float64),
            torch.randn(392, dtype=torch.float64),
            torch.randn(10, dtype=torch.float64),
        )
        for _ in range(2)
    ]
    whole = BernoulliRBM(
        torch.block_diag(*(b.weight for b in blocks)),
        torch.cat([b.visible_bias for b in blocks]),
        torch.cat([b.hidden_bias for b in blocks]),
    )
    expected = sum(exact_log_partition(b).item() for b in blocks)
    started = time.perf_counter()
    value = exact_log_partition(whole).item()
    assert time.perf_counter() - started < 60.0
    assert value == pytest.approx(expected, abs=1e-8)


class TestRefusals:
    @pytest.mark.parametrize("pair", [("gaussian", "relu"), ("relu", "relu")], ids=str)
    def test_no_finite_layer(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair)
        names = "-".join(type(u).__name__ for u in (rbm.visible, rbm.hidden))
        with pytest.raises(ValueError, match=f"{names} machine has no finite layer to enumerate"):
            exact_log_partition(rbm)

    def test_too_many_states(self) -> None:
        rbm = BernoulliRBM(torch.zeros(40, 30), torch.zeros(40), torch.zeros(30))
        with pytest.raises(ValueError, match=rf"{2**30} states, more than max_states={2**26}; use"):
            exact_log_partition(rbm)

    def test_own_limit(self) -> None:
        rbm = BernoulliRBM(torch.zeros(4, 3), torch.zeros(4), torch.zeros(3))
        with pytest.raises(ValueError, match="8 states, more than max_states=7"):
            exact_log_partition(rbm, max_states=7)
        assert exact_log_partition(rbm, max_states=8).item() == pytest.approx(7 * np.log(2.0))

    def test_not_normalisable(self) -> None:
        one = torch.ones(2)
        rbm = RBM(units.Gaussian(one, one), units.Gaussian(one, one), 1.01 * torch.eye(2))
        with pytest.raises(ValueError, match=r"not normalisable.*1\.01 and must be below 1"):
            exact_log_partition(rbm)

    @pytest.mark.parametrize("wrong", [None, torch.zeros(2), units.Bernoulli(torch.zeros(2))])
    def test_no_machine(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match=f"must be an RBM, got {type(wrong).__name__}"):
            exact_log_partition(wrong)


def test_gaussian_machine_in_closed_form() -> None:
    """One visible unit and two bits: Z is a sum of four Gaussian integrals, by hand."""
    precision, loc = 4.0, 0.5
    weight, bias = [1.5, -2.0], [0.3, 0.7]
    rbm = GaussianBernoulliRBM(
        torch.tensor([weight], dtype=torch.float64),
        torch.tensor([loc], dtype=torch.float64),
        torch.tensor([precision], dtype=torch.float64),
        torch.tensor(bias, dtype=torch.float64),
    )
    total = 0.0
    for first, second in ((0, 0), (0, 1), (1, 0), (1, 1)):
        field = weight[0] * first + weight[1] * second
        area = np.sqrt(2 * np.pi / precision) * np.exp(field * loc + field**2 / (2 * precision))
        total += area * np.exp(bias[0] * first + bias[1] * second)
    assert exact_log_partition(rbm).item() == pytest.approx(np.log(total), abs=1e-12)
