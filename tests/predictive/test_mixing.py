# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Chains of hidden units: R-hat of two starts, and statistics against the length of chains."""

import json
import math

import pytest
import torch

from pyro_ebm.diagnostics import convergence_of
from pyro_ebm.distributions import RBM, BernoulliRBM, units
from pyro_ebm.infer import exact_moments
from pyro_ebm.predictive import (
    ChainLengthStatistics,
    HiddenStatistics,
    exact_hidden_statistics,
    statistics_against_chain_length,
    two_start_rhat,
)
from pyro_ebm.predictive.hidden_chain import HiddenChain
from pyro_ebm.predictive.mixing import _between_over_within
from tests import brute_force
from tests.distributions.families import random_rbm, to_machine
from tests.infer.reference import Z_LIMIT
from tests.predictive.machines import gaussian_ising, scaled_to


def two_speeds() -> RBM:
    """A machine that mixes and one with two modes that chains do not leave."""
    weight = torch.tensor([[[0.3, 0.3, 0.3]], [[3.0, 3.0, 3.0]]], dtype=torch.float64)
    visible = units.Gaussian(torch.zeros(2, 1).double(), torch.ones(2, 1).double())
    return RBM(visible, units.Ising(torch.zeros(3).double()), weight)


@pytest.mark.parametrize(
    "pair", [("gaussian", "ising"), ("bernoulli", "ising"), ("ising", "bernoulli")]
)
def test_exact_hidden_statistics(pair: tuple[str, str]) -> None:
    dist = random_rbm(pair, offsets=True)
    ours = exact_hidden_statistics(dist)
    moments = exact_moments(dist.transpose())
    torch.testing.assert_close(
        ours.second_moment,
        moments.visible_visible.expand_as(ours.second_moment),
        rtol=1e-9,
        atol=1e-9,
    )
    machine = to_machine(dist).swapped()
    h, _ = brute_force.points(machine.visible)
    energy = torch.as_tensor(brute_force.free_energy(machine, h).real)
    p = torch.softmax(-energy, 0)
    assert ours.free_energy.item() == pytest.approx((p * energy).sum().item(), abs=1e-9)


def test_two_starts_agree_or_not() -> None:
    generator = torch.Generator().manual_seed(0)
    result = two_start_rhat(two_speeds(), 400, generator=generator)
    assert result.largest.shape == (2,)
    assert result.largest[0] < 1.05 and result.largest[1] > 1.5
    # Both modes have the same energy: only the units show it.
    assert result.free_energy[1] < 1.1 or math.isnan(result.free_energy[1])
    assert result.settings["num_draws"] == 200 and result.settings["num_chains"] == 8
    again = two_start_rhat(two_speeds(), 400, generator=generator.manual_seed(0))
    assert torch.equal(result.worst_unit, again.worst_unit)


def test_energy_shows_a_mode_that_is_hard_to_find() -> None:
    """Modes that differ in energy, one where the data are, the other where the biases are."""
    bits = torch.full((12,), -6.0).double(), torch.full((2,), -5.0).double()
    dist = BernoulliRBM(torch.full((12, 2), 5.0).double(), *bits)
    stuck = two_start_rhat(dist, 100, data=torch.ones(4, 12))
    assert stuck.settings["other_start"] == "data" and stuck.largest.shape == ()
    assert stuck.free_energy > 1.5 and stuck.worst_unit > 1.5
    assert "above 1.1 in 100%" in str(stuck)
    # Nothing moves, and all agree: there is nothing to compare.
    frozen = BernoulliRBM(torch.zeros(2, 2), torch.zeros(2), torch.full((2,), 100.0))
    alone = two_start_rhat(frozen, 30, data=torch.ones(4, 2))
    assert "up to -" in str(alone)
    assert alone.largest.isnan() and alone.to_dict()["free_energy"] == [None]


def test_worst_unit_is_the_worst_of_all() -> None:
    draws = torch.randn(6, 80, 5, 4).cumsum(1)
    found = _between_over_within(draws.double()).argmax(-1)
    for i in range(5):
        each = [convergence_of(draws[:, :, i, j].sign().numpy()).r_hat for j in range(4)]
        signs = _between_over_within(draws[:, :, i].sign().double())
        assert int(signs.argmax()) == max(range(4), key=each.__getitem__)
    assert found.shape == (5,)


def test_long_chains_are_thinned() -> None:
    dist = random_rbm(("ising", "bernoulli"))
    result = two_start_rhat(dist, 2001, num_chains=2)
    assert result.settings["num_draws"] == 250
    assert result.largest < 1.1
    numbers = json.loads(json.dumps(result.to_dict()))
    assert len(numbers["worst_unit"]) == 1 and "two-start R-hat" in str(result)


def test_expanded_machine() -> None:
    dist = random_rbm(("gaussian", "ising")).expand((3,))
    result = two_start_rhat(dist, 40, num_chains=2)
    assert result.largest.shape == result.unit.shape == (3,)


def test_bad_two_starts() -> None:
    dist = two_speeds()
    with pytest.raises(ValueError, match="num_steps must be at least 16"):
        two_start_rhat(dist, 15)
    with pytest.raises(ValueError, match=r"data must have shape \(n >= 4, \*\(2, 1\)\)"):
        two_start_rhat(dist, 50, data=torch.zeros(4, 3, 1))
    with pytest.raises(ValueError, match="data must be in"):
        two_start_rhat(dist, 50, data=torch.full((4, 2, 1), math.nan))
    with pytest.raises(ValueError, match="need data to start from"):
        two_start_rhat(random_rbm(("bernoulli", "gaussian")), 50)
    with pytest.raises(TypeError, match="dist must be an RBM"):
        two_start_rhat(torch.zeros(2), 50)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_visible", [2, 6])
def test_long_chains_have_the_exact_statistics(num_visible: int) -> None:
    """With few visible units the chain is plain, with many the visible layer is summed out."""
    dist = scaled_to(gaussian_ising((2,), num_visible, 5, bias=0.0), 0.8)
    generator = torch.Generator().manual_seed(1)
    result = statistics_against_chain_length(dist, [0, 1, 60], num_chains=4000, generator=generator)
    assert result.free_energy_z is not None and result.moment_error is not None
    assert result.free_energy_z[-1].abs().max() < Z_LIMIT
    assert (result.free_energy_z[0] > 2 * Z_LIMIT).all()
    assert (result.moment_error[-1] < 2.0 * result.moment_noise[-1]).all()
    assert (result.moment_error[0] > 5.0 * result.moment_noise[0]).all()
    assert (result.free_energy.diff(dim=0) < 0.0).all()


def test_moment_noise_is_the_standard_error() -> None:
    """Without weights every length is exact, and the error is the noise on average."""
    dist = gaussian_ising((1000,), 2, 4, scale=0.0)
    result = statistics_against_chain_length(dist, [3], num_chains=10)
    assert result.moment_error is not None
    ratio = result.moment_error.square().mean() / result.moment_noise.square().mean()
    assert ratio.item() == pytest.approx(1.0, abs=0.06)


def test_without_exact_statistics() -> None:
    dist = gaussian_ising((2,), 3, 20, scale=0.2)
    plain = statistics_against_chain_length(dist, [0, 5], num_chains=10)
    assert plain.exact is None and plain.moment_error is None and plain.free_energy_z is None
    given = HiddenStatistics(torch.zeros(2), torch.zeros(2, 20, 20))
    result = statistics_against_chain_length(dist, [0, 5], given, num_chains=10)
    assert result.moment_error is not None and result.moment_error.shape == (2, 2)
    for report in (plain, result):
        assert json.loads(json.dumps(report.to_dict()))["lengths"] == [0, 5]
        assert "mean F(h)" in str(report)
    small = statistics_against_chain_length(gaussian_ising(()).expand((3,)), [2], num_chains=10)
    assert small.moment_error is not None and small.moment_error.shape == (1, 3)
    assert "exact" in str(small)


@pytest.mark.parametrize("expansion", [(3,), (2, 3)])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_lengths_of_expanded_machines(batch: tuple[int, ...], expansion: tuple[int, ...]) -> None:
    """Several lengths, also as many as there are machines: all copies have the numbers of their machine."""
    dist = gaussian_ising(batch)

    def run(machine: RBM) -> ChainLengthStatistics:
        generator = torch.Generator().manual_seed(0)
        return statistics_against_chain_length(
            machine, [0, 1, 5], num_chains=10, generator=generator
        )

    result, plain = run(dist.expand((*expansion, *batch))), run(dist)
    for name in ("free_energy", "free_energy_error", "moment_error", "moment_noise"):
        own = getattr(plain, name).reshape(3, *(1,) * len(expansion), *batch)
        got = getattr(result, name)
        assert got.shape == (3, *expansion, *batch)
        torch.testing.assert_close(got, own.expand_as(got))
    assert result.free_energy_z is not None and result.free_energy_z.shape == got.shape
    assert "mean F(h)" in str(result)


@pytest.mark.parametrize("entries", [1, 100])
def test_free_energies_in_chunks(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = HiddenChain(gaussian_ising((2,), 7, 3))
    h = chain.prior(30).reshape(5, 6, 2, 3)
    expected, rows = chain.side.free_energy(h), []
    original = RBM.free_energy

    def spy(machine: RBM, value: torch.Tensor) -> torch.Tensor:
        rows.append(len(value))
        return original(machine, value)

    monkeypatch.setattr(RBM, "free_energy", spy)
    monkeypatch.setattr("pyro_ebm.predictive.hidden_chain._CHUNK_ENTRIES", entries)
    torch.testing.assert_close(chain.free_energy(h), expected)
    assert max(rows) == max(1, entries // 14)


def test_bad_lengths() -> None:
    dist = gaussian_ising((2,))
    for lengths in ([], [-1], [3, 3]):
        with pytest.raises(ValueError, match="lengths must be increasing"):
            statistics_against_chain_length(dist, lengths)
    with pytest.raises(ValueError, match="num_chains"):
        statistics_against_chain_length(dist, [1], num_chains=1)
    with pytest.raises(ValueError, match="exact must hold shapes"):
        statistics_against_chain_length(
            dist, [1], HiddenStatistics(torch.zeros(3), torch.zeros(2, 3, 3))
        )
    with pytest.raises(ValueError, match="hidden layer must have at most"):
        exact_hidden_statistics(gaussian_ising((2,), 3, 20))
