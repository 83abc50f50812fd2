# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Errors of moments against loops, and their standard errors against repeated sampling."""

import json
import math

import pytest
import torch
from torch import Tensor

from pyro_ebm.distances import MomentErrors, moment_errors
from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import exact_moments
from tests.distributions.families import random_rbm, to_machine
from tests.infer.reference import Z_LIMIT, exact_features, features


def machine(num_visible: int = 8) -> RBM:
    return BernoulliRBM(
        0.5 * torch.randn(num_visible, 4), 0.5 * torch.randn(num_visible), torch.zeros(4)
    )


@pytest.mark.parametrize("family", ["bernoulli", "ising", "categorical", "multinomial", "gaussian"])
def test_errors_against_the_definition(family: str) -> None:
    """Moments of every family from the sum or quadrature over all states."""
    rbm = random_rbm((family, "bernoulli"))
    v = rbm.sample((500,))
    ours = moment_errors(v, rbm)
    expected = features(v.double()).mean(0) - exact_features(to_machine(rbm))
    num_units = v.shape[-1]
    i, j = torch.triu_indices(num_units, num_units)
    torch.testing.assert_close(ours.mean, expected[:num_units], rtol=0, atol=1e-8)
    torch.testing.assert_close(ours.pair[i, j], expected[num_units:], rtol=0, atol=1e-8)
    torch.testing.assert_close(ours.pair, ours.pair.mT)
    assert ours.mean_z.abs().max() < Z_LIMIT and ours.pair_z.abs().max() < Z_LIMIT
    # Squares of bits, spins and one-hot units say nothing new.
    diagonal = bool(ours.pairs.diagonal().any())
    assert diagonal == (family in ("multinomial", "gaussian"))


def test_scores_of_independent_rows() -> None:
    rbm = machine()
    v = rbm.sample((2000,))
    ours = moment_errors(v, rbm)
    rows = features(v.double())
    error = rows.std(0) / math.sqrt(len(rows))
    i, j = torch.triu_indices(8, 8)
    expected = torch.cat([ours.mean, ours.pair[i, j]]) / error
    got = torch.cat([ours.mean_z, ours.pair_z[i, j]])
    # The larger of the samples' variance and the exact one, which are close here.
    torch.testing.assert_close(got, expected, rtol=0.2, atol=0.0)
    assert (got.abs() <= expected.abs() * (1.0 + 1e-9)).all()


def repeated_rms(make: object, repeats: int = 60) -> dict[str, float]:
    """Root mean squares of the scores over repetitions, which are 1 where errors are right."""
    squares: dict[str, list[float]] = {"mean": [], "pair": []}
    for _ in range(repeats):
        ours: MomentErrors = make()  # type: ignore[operator]
        squares["mean"].append(ours.mean_z.square().mean().item())
        squares["pair"].append(ours.pair_z[ours.pairs].square().mean().item())
    return {name: math.sqrt(sum(s) / repeats) for name, s in squares.items()}


class TestStandardErrors:
    def test_rows_against_exact(self) -> None:
        rbm = machine()
        moments = exact_moments(rbm)
        for rms in repeated_rms(lambda: moment_errors(rbm.sample((1000,)), moments)).values():
            assert 0.8 < rms < 1.25

    def test_rows_against_rows(self) -> None:
        rbm = machine()
        make = lambda: moment_errors(rbm.sample((600,)), rbm.sample((300,)))  # noqa: E731
        for rms in repeated_rms(make).values():
            assert 0.8 < rms < 1.25

    def test_chains_against_exact(self) -> None:
        """Every draw ten times: the errors of rows would be three times too small."""
        rbm = machine()
        moments = exact_moments(rbm)

        def draws() -> Tensor:
            return rbm.sample((60, 20)).repeat_interleave(10, 1)

        for rms in repeated_rms(lambda: moment_errors(draws(), moments)).values():
            assert 0.8 < rms < 1.25
        flat = repeated_rms(lambda: moment_errors(draws().flatten(0, 1), moments), 20)
        assert min(flat.values()) > 2.0


class TestRareEvents:
    def test_never_on_in_the_samples(self) -> None:
        """The variance is that of the reference."""
        rate, n = 0.01, 1000
        reference = torch.zeros(100, 2)
        reference[0] = 1.0
        ours = moment_errors(torch.zeros(n, 2), reference)
        variance = rate * (1.0 - rate) * 100 / 99
        expected = -rate / math.sqrt(variance / n + variance / 100)
        torch.testing.assert_close(ours.mean_z, torch.full((2,), expected).double())

    def test_impossible_against_exact(self) -> None:
        rbm = BernoulliRBM(torch.zeros(2, 1), torch.tensor([0.0, -5.0]), torch.zeros(1))
        ours = moment_errors((torch.arange(400) % 2).view(-1, 1) * torch.tensor([1.0, 0.0]), rbm)
        rate = torch.sigmoid(torch.tensor(-5.0)).double()
        expected = -rate / (rate * (1 - rate) / 400).sqrt()
        torch.testing.assert_close(ours.mean_z[1], expected, rtol=1e-4, atol=0.0)
        assert ours.mean_z[0].abs() < 1e-6

    def test_equal_constants(self) -> None:
        ours = moment_errors(torch.ones(5, 3), torch.ones(4, 3))
        assert ours.to_dict()["mean"]["max_z"] == 0.0


def test_small_errors_are_seen() -> None:
    rbm = machine()
    wrong = rbm.tilt(torch.eye(8)[0] * 0.3)
    ours = moment_errors(wrong.sample((10_000,)), rbm)
    assert ours.worst_units(1) == [0]
    assert ours.to_dict()["mean"]["max_z"] > 10.0


def test_report() -> None:
    rbm = machine()
    ours = moment_errors(rbm.sample((1000,)), rbm)
    numbers = json.loads(json.dumps(ours.to_dict()))
    assert numbers["mean"]["count"] == 8 and numbers["pair"]["count"] == 28
    assert numbers["mean"]["max"] == pytest.approx(ours.mean.abs().max().item())
    settings = {"samples": [1000, 8], "reference": "exact", "degrees_of_freedom": 999.0}
    assert numbers["settings"] == settings
    # Two-sided 5 % for the largest of 28 standard normals, and of Student's t of 999 degrees.
    assert numbers["pair"]["chance_z"] == pytest.approx(3.134, abs=0.01)
    lines = str(ours).splitlines()
    assert lines[0].split() == ["max", "rms", "max/SE", "rms/SE", "chance"]
    assert lines[2].startswith("28 pairs")
    held_out = moment_errors(rbm.sample((10,)), rbm.sample((20, 3)))
    assert held_out.settings["reference"] == "samples of shape (20, 3, 8)"


def test_single_unit_has_no_pairs() -> None:
    ours = moment_errors(torch.ones(5, 1), torch.ones(4, 1))
    assert ours.to_dict()["pair"]["count"] == 0


class TestErrors:
    def test_shapes(self) -> None:
        with pytest.raises(ValueError, match=r"samples must have shape .*got \(3,\)"):
            moment_errors(torch.zeros(3), torch.zeros(3, 3))
        with pytest.raises(ValueError, match=r"reference must have shape .*got \(1, 3\)"):
            moment_errors(torch.zeros(3, 3), torch.zeros(1, 3))
        with pytest.raises(ValueError, match="samples have 3 units, the reference has 4"):
            moment_errors(torch.zeros(3, 3), torch.zeros(3, 4))
        with pytest.raises(ValueError, match="samples must be finite"):
            moment_errors(torch.full((3, 3), math.nan), torch.zeros(3, 3))

    def test_batched_machine(self) -> None:
        rbm = random_rbm(("bernoulli", "bernoulli"), batched=True)
        with pytest.raises(ValueError, match=r"no batch shape, got \(2, 3\)"):
            moment_errors(torch.zeros(4, 3), rbm)


@pytest.mark.parametrize("chains", [4, 8, 20])
def test_chance_of_chains(chains: int) -> None:
    """Right but slow chains exceed the limit in 5 % of cases at most, though their errors come from few
    numbers: a normal quantile would be exceeded in 65 % with 4 chains."""
    rbm = BernoulliRBM(*(torch.zeros(s, dtype=torch.float64) for s in ((16, 1), (16,), (1,))))
    exceeded = 0
    for _ in range(200):
        bits = torch.bernoulli(torch.full((chains, 10, 16), 0.5, dtype=torch.float64))
        slow = bits.repeat_interleave(20, 1)
        numbers = moment_errors(slow, rbm).to_dict()["mean"]
        exceeded += numbers["max_z"] > numbers["chance_z"]
    # 26 of 200 where 10 are expected: a probability of 1e-6.
    assert exceeded <= 26
