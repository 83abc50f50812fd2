# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Sweeps of missing entries leave their law given the observed ones invariant, and reach it."""

import math

import pytest
import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.distributions.clamped_sweep import ClampedSweep
from pyro_ebm.infer.missing import impute
from tests.distributions.families import batch_indices, random_rbm, to_machine, uniform
from tests.infer.missing.reference import conditional_moments, rows_of
from tests.infer.reference import Z_LIMIT

NUM_CHAINS = 4000
PAIRS = [
    ("bernoulli", "bernoulli"),
    ("ising", "gaussian"),
    ("categorical", "ising"),
    ("gaussian", "ising"),
    ("relu", "bernoulli"),
    ("multinomial", "ising"),
    ("mixed", "ising"),
    ("labels", "gaussian"),
    ("low_rank", "bernoulli"),
]
every_pair = pytest.mark.parametrize("pair", PAIRS, ids="-".join)


def worst(
    states: Tensor, rbm: RBM, value: Tensor, observed: Tensor, index: tuple[int, ...]
) -> float:
    """Largest deviation of a mean from the exact one, in standard errors, over all rows."""
    largest = 0.0
    for row in range(len(value)):
        v, o = value[row].flatten().numpy(), observed[row].flatten().numpy()
        mean, second = (
            torch.from_numpy(m) for m in conditional_moments(to_machine(rbm, index), v, o)
        )
        draws = states[(slice(None), row, *index)].double()
        error = (second - mean**2).clamp(min=0.0).sqrt() / math.sqrt(len(draws))
        largest = max(largest, ((draws.mean(0) - mean).abs() / (error + 1e-9)).max().item())
        # Second moments too, by their own spread.
        spread = draws.square().std(0) / math.sqrt(len(draws))
        deviation = (draws.square().mean(0) - second).abs() / (spread + 1e-9)
        largest = max(largest, deviation.max().item())
    return largest


@every_pair
def test_the_law_is_left_invariant(pair: tuple[str, str]) -> None:
    """No drift: exact draws, moved by many sweeps, have the moments of the definition still."""
    rbm = random_rbm(pair, offsets=True)
    value, observed = rows_of(rbm, 4)
    draws = impute(rbm, value, observed, NUM_CHAINS, 20)
    sweep = ClampedSweep(rbm, value, observed, Generator().manual_seed(0))
    v = sweep.run(draws.samples, 12)
    assert draws.exact or rbm.hidden.num_states is None
    assert worst(v, rbm, value, observed, ()) < Z_LIMIT
    kept = torch.where(observed, value, 0.0).expand_as(v)
    assert torch.equal(torch.where(observed, v, 0.0), kept)


@every_pair
def test_the_law_is_reached(pair: tuple[str, str]) -> None:
    rbm = random_rbm(pair, offsets=True)
    value, observed = rows_of(rbm, 4)
    sweep = ClampedSweep(rbm, value, observed, Generator().manual_seed(0))
    start = sweep.initial((NUM_CHAINS,))
    assert start.shape == (NUM_CHAINS, 4, rbm.visible.size)
    assert worst(sweep.run(start, 20), rbm, value, observed, ()) < Z_LIMIT


@pytest.mark.parametrize("pair", [("bernoulli", "ising"), ("gaussian", "ising")], ids="-".join)
def test_a_setting_of_the_parameters_a_row(pair: tuple[str, str]) -> None:
    rbm = random_rbm(pair, offsets=True, batched=True)
    value, observed = rows_of(rbm, 2)
    value, observed = value.reshape(2, 1, 1, -1), observed.reshape(2, 1, 1, -1)
    sweep = ClampedSweep(rbm, value, observed, Generator().manual_seed(1))
    assert sweep.batch_shape == (2, 2, 3)
    v = sweep.run(sweep.initial((NUM_CHAINS // 2,)), 20)
    kept = torch.where(observed, value, 0.0).expand_as(v)
    assert torch.equal(torch.where(observed, v, 0.0), kept)
    for index in batch_indices(rbm.batch_shape):
        assert worst(v, rbm, value, observed, index) < Z_LIMIT


def test_one_mask_integrates_a_gaussian_layer_out() -> None:
    rbm = RBM(
        units.Gaussian(uniform((8,), -1, 1), uniform((8,), 0.8, 2.0)),
        units.Ising(uniform((2,), -1, 1)),
        uniform((8, 2), -0.7, 0.7),
    )
    mask = torch.arange(8) < 3
    value = torch.where(mask, uniform((4, 8), -2, 2), torch.nan)
    sweep = ClampedSweep(rbm, value, mask, Generator().manual_seed(2))
    # Nothing is made for single steps.
    assert sweep.run(sweep.initial(), 1).shape == (4, 8) and sweep._clamped is None
    v = sweep.run(sweep.initial((NUM_CHAINS,)), 25)
    assert sweep._clamped is not None
    assert sweep._clamped._rule._sweep is not None  # it was the collapsed chain
    exact = impute(rbm, value, mask).mean
    error = v.std(0) / math.sqrt(NUM_CHAINS)
    assert ((v.mean(0) - exact).abs() <= Z_LIMIT * error + 1e-9).all()
    # Masks that differ would need a weight each; rows with weights of their own have one.
    assert not ClampedSweep(rbm, value, ~value.isnan())._may_collapse
    rows = RBM(rbm.visible, rbm.hidden, rbm.weight.expand(4, 8, 2))
    assert ClampedSweep(rows, value, ~value.isnan())._may_collapse
    # There is nothing to integrate out of a machine without a Gaussian layer.
    bits = random_rbm(("bernoulli", "ising"))
    assert not ClampedSweep(bits, torch.zeros(3), torch.arange(3) < 1)._may_collapse


def test_other_starts() -> None:
    """From hidden states and from natural parameters: one step is a draw given them."""
    rbm = random_rbm(("bernoulli", "ising"), offsets=True)
    value, observed = rows_of(rbm, 4)

    def sweep() -> ClampedSweep:
        return ClampedSweep(rbm, value, observed, Generator().manual_seed(3))

    h = rbm.hidden_given(torch.ones(5, 4, 3).double()).sample()
    one = sweep().run_from_hidden(h, 1)
    assert torch.equal(one, sweep().sample_visible(h))
    first = sweep()
    assert torch.equal(sweep().run_from_hidden(h, 3), first.run(first.sample_visible(h), 2))
    theta = rbm.hidden.natural_bias + torch.zeros(5, 4, 2)
    v, new = sweep().run_from_theta(theta, 2)
    again = sweep()
    expected = again.run(again.sample_visible(again.draw_hidden(theta)), 1)
    assert torch.equal(v, expected)
    torch.testing.assert_close(new, rbm.hidden.natural_bias + rbm.hidden_field(v))
    # What stands at observed entries of a start is not read.
    start = sweep().initial((2,))
    spoilt = torch.where(observed, torch.nan, start)
    assert torch.equal(sweep().run(start, 3), sweep().run(spoilt, 3))
    assert torch.equal(sweep().run(start, 0), start)


def test_reproducible_and_without_gradient() -> None:
    rbm = random_rbm(("gaussian", "bernoulli"))
    rbm.weight.requires_grad_()
    value, observed = rows_of(rbm, 3)

    def draw() -> Tensor:
        sweep = ClampedSweep(rbm, value, observed, Generator().manual_seed(4))
        return sweep.run(sweep.initial((2,)), 5)

    before = torch.get_rng_state()
    assert torch.equal(draw(), draw()) and not draw().requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_float32_and_expanded_machines() -> None:
    rbm = RBM(
        units.Ising(torch.zeros(3)), units.Ising(torch.zeros(2)), uniform((3, 2), -1, 1).float()
    )
    value = torch.tensor([[1, -1, 0], [0, 1, 0]])
    sweep = ClampedSweep(rbm.expand((4, 1)), value, value != 0)
    v = sweep.run(sweep.initial(), 2)
    assert v.shape == (4, 2, 3) and v.dtype == torch.float32
    assert sweep.sample_hidden(v).shape == (4, 2, 2)


def test_bad_rows_are_refused_unless_validation_is_off() -> None:
    rbm = random_rbm(("bernoulli", "ising"))
    value, observed = torch.full((3,), torch.nan), torch.ones(3).bool()
    with pytest.raises(ValueError, match="value is NaN at an observed entry"):
        ClampedSweep(rbm, value, observed)
    rbm._validate_args = False
    ClampedSweep(rbm, value, observed)  # looks at no number, so that nothing waits for a device
    with pytest.raises(ValueError, match="observed must be boolean"):
        ClampedSweep(rbm, value, observed.float())
