# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Maximum mean discrepancy and energy distance against closed forms and double loops."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ebm.distances import energy_distance, maximum_mean_discrepancy
from pyro_ebm.distances.two_sample import TwoSampleDistance
from tests.infer.reference import Z_LIMIT, z_score

CHUNK = "pyro_ebm.distances.pooled._CHUNK_ENTRIES"


def by_loops(x: Tensor, y: Tensor, kernel: Any, unbiased: bool) -> float:
    """E k(X, X') + E k(Y, Y') - 2 E k(X, Y), one pair after the other."""
    a, b = x.double().numpy(), y.double().numpy()

    def mean(left: np.ndarray, right: np.ndarray, same: bool) -> float:
        pairs = [
            kernel(left[i], right[j])
            for i in range(len(left))
            for j in range(len(right))
            if not (same and unbiased and i == j)
        ]
        return math.fsum(pairs) / len(pairs)

    return mean(a, a, True) + mean(b, b, True) - 2.0 * mean(a, b, False)


def rbf(bandwidth: float) -> Any:
    return lambda a, b: math.exp(-((a - b) ** 2).sum() / (2.0 * bandwidth**2))


def hamming(bandwidth: float) -> Any:
    return lambda a, b: math.exp(-(a != b).sum() / bandwidth)


def samples(kind: str) -> tuple[Tensor, Tensor]:
    if kind == "bits":
        return torch.rand(7, 5).lt(0.5), torch.rand(9, 5).lt(0.7)
    if kind == "spins":
        return torch.rand(7, 5).lt(0.5) * 2 - 1, torch.rand(9, 5).lt(0.7) * 2.0 - 1.0
    if kind == "counts":
        return torch.randint(0, 4, (7, 5)), torch.randint(0, 5, (9, 5))
    if kind == "fractions":  # two values, but no whole numbers
        return torch.rand(7, 5).lt(0.5) * 0.3 + 0.1, torch.rand(9, 5).lt(0.7) * 0.3 + 0.1
    return torch.randn(7, 5), torch.randn(9, 5) + 0.3


KINDS = ["bits", "spins", "counts", "fractions", "real"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unbiased", [True, False])
class TestAgainstLoops:
    @pytest.mark.parametrize("bandwidth", [0.7, 3.0])
    def test_rbf(self, kind: str, unbiased: bool, bandwidth: float) -> None:
        x, y = samples(kind)
        ours = maximum_mean_discrepancy(x, y, bandwidth=bandwidth, unbiased=unbiased)
        assert ours.value == pytest.approx(by_loops(x, y, rbf(bandwidth), unbiased), abs=1e-6)

    def test_hamming(self, kind: str, unbiased: bool) -> None:
        x, y = samples(kind)
        ours = maximum_mean_discrepancy(x, y, kernel="hamming", bandwidth=2.0, unbiased=unbiased)
        assert ours.value == pytest.approx(by_loops(x, y, hamming(2.0), unbiased), abs=1e-6)

    def test_energy(self, kind: str, unbiased: bool) -> None:
        x, y = samples(kind)
        ours = energy_distance(x, y, unbiased=unbiased)
        expected = by_loops(x, y, lambda a, b: -float(np.linalg.norm(a - b)), unbiased)
        assert ours.value == pytest.approx(expected, abs=1e-6)

    def test_chunks_change_nothing(
        self, kind: str, unbiased: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x, y = samples(kind)
        kernel = "hamming" if kind == "counts" else "rbf"

        def both() -> list[TwoSampleDistance]:
            g = torch.Generator().manual_seed(1)
            options: dict[str, Any] = {"unbiased": unbiased, "num_permutations": 19, "generator": g}
            return [
                maximum_mean_discrepancy(x, y, kernel=kernel, **options),
                energy_distance(x, y, **options),
            ]

        whole = both()
        for entries in (1, 40):
            monkeypatch.setattr(CHUNK, entries)
            for a, b in zip(whole, both(), strict=True):
                assert a.value == pytest.approx(b.value, abs=1e-6)
                assert a.p_value == b.p_value


class TestClosedForms:
    def test_mmd_of_gaussians(self) -> None:
        """Two normals of variance s^2 that lie delta apart, in d dimensions."""
        d, s, delta, sigma = 3, 0.8, 0.5, 1.3
        values = []
        for _ in range(400):
            x, y = s * torch.randn(30, d), s * torch.randn(20, d)
            y[:, 0] += delta
            values.append(maximum_mean_discrepancy(x, y, bandwidth=sigma).value)
        width = sigma**2 + 2.0 * s**2
        height = (sigma**2 / width) ** (d / 2)
        expected = 2.0 * height * (1.0 - math.exp(-(delta**2) / (2.0 * width)))
        assert abs(z_score(torch.tensor(values), expected)) < Z_LIMIT
        # A factor of two, or the biased statistic, would be seen.
        assert abs(z_score(torch.tensor(values), 2.0 * expected)) > Z_LIMIT
        biased = expected + (1.0 - height) * (1 / 30 + 1 / 20)
        assert abs(z_score(torch.tensor(values), biased)) > Z_LIMIT

    def test_hamming_of_bits(self) -> None:
        """Independent bits: the kernel is a product over units."""
        p, q, sigma = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.6, 0.5, 0.7]), 1.5

        def expected_kernel(a: Tensor, b: Tensor) -> float:
            differ = a * (1.0 - b) + b * (1.0 - a)
            return float((1.0 - differ + differ * math.exp(-1.0 / sigma)).prod())

        expected = expected_kernel(p, p) + expected_kernel(q, q) - 2.0 * expected_kernel(p, q)
        values = [
            maximum_mean_discrepancy(
                torch.rand(30, 3) < p, torch.rand(30, 3) < q, kernel="hamming", bandwidth=sigma
            ).value
            for _ in range(400)
        ]
        assert abs(z_score(torch.tensor(values), expected)) < Z_LIMIT

    def test_energy_of_gaussians(self) -> None:
        delta = 0.7

        def mean_distance(shift: float) -> float:
            """E|N(shift, 2)|."""
            return 2.0 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4.0) + shift * math.erf(
                shift / 2.0
            )

        expected = 2.0 * mean_distance(delta) - 2.0 * mean_distance(0.0)
        values = [
            energy_distance(torch.randn(30, 1), torch.randn(20, 1) + delta).value
            for _ in range(400)
        ]
        assert abs(z_score(torch.tensor(values), expected)) < Z_LIMIT

    def test_energy_is_the_integral_between_distribution_functions(self) -> None:
        x, y = torch.randn(40, 1).double(), 1.5 * torch.randn(60, 1).double()
        points = torch.cat([x, y]).flatten().sort().values
        below = [(s <= points[:-1]).double().mean(0) for s in (x, y)]
        integral = ((below[0] - below[1]).square() * points.diff()).sum()
        ours = energy_distance(x, y, unbiased=False).value
        assert ours == pytest.approx(2.0 * integral.item(), abs=1e-12)


class TestPermutations:
    @pytest.mark.parametrize("function", [maximum_mean_discrepancy, energy_distance])
    def test_uniform_where_nothing_differs(self, function: Any) -> None:
        trials, num_permutations = 600, 9
        ranks = torch.zeros(num_permutations + 1)
        for _ in range(trials):
            x, y = torch.randn(8, 2), torch.randn(6, 2)
            p = function(x, y, num_permutations=num_permutations).p_value
            ranks[round(p * (num_permutations + 1)) - 1] += 1
        expected = trials / (num_permutations + 1)
        chi_square = ((ranks - expected).square() / expected).sum().item()
        assert chi_square < 45.0  # 1e-6 of 9 degrees of freedom

    def test_never_too_small_for_discrete_rows(self) -> None:
        trials, num_permutations = 400, 19
        small = 0
        for _ in range(trials):
            x, y = torch.rand(10, 2) < 0.5, torch.rand(10, 2) < 0.5
            p = maximum_mean_discrepancy(x, y, num_permutations=num_permutations).p_value
            small += p is not None and p <= 0.1
        assert small < trials * 0.1 + Z_LIMIT * math.sqrt(trials * 0.1 * 0.9)

    @pytest.mark.parametrize("function", [maximum_mean_discrepancy, energy_distance])
    def test_smallest_where_they_differ(self, function: Any) -> None:
        result = function(torch.randn(100, 3), torch.randn(80, 3) + 1.0, num_permutations=49)
        assert result.p_value == pytest.approx(1 / 50)

    def test_own_generator(self) -> None:
        x, y = torch.randn(20, 2), torch.randn(20, 2)
        before = torch.get_rng_state()
        p = [
            energy_distance(
                x, y, num_permutations=99, generator=torch.Generator().manual_seed(seed)
            ).p_value
            for seed in (0, 0, 1, 2, 3)
        ]
        assert torch.equal(before, torch.get_rng_state())
        assert p[0] == p[1] and len(set(p)) > 1


class TestNumbers:
    def test_float32_far_from_zero(self) -> None:
        """Squared norms of 1e8 would leave no digit of distances of 1 in float32."""
        x, y = torch.randn(30, 4) + 1e4, torch.randn(30, 4) + 1e4
        expected = by_loops(x, y, rbf(1.0), True)
        ours = maximum_mean_discrepancy(x, y, bandwidth=1.0).value
        assert ours == pytest.approx(expected, abs=1e-9)

    def test_median_bandwidth(self) -> None:
        x, y = torch.randn(20, 3), torch.randn(30, 3)
        middle = torch.pdist(torch.cat([x, y]).double()).median().item()
        (ours,) = maximum_mean_discrepancy(x, y).settings["bandwidth"]
        assert ours == pytest.approx(middle)

    @pytest.mark.parametrize("kernel", ["rbf", "hamming"])
    def test_equal_rows(self, kernel: str) -> None:
        ours = maximum_mean_discrepancy(torch.ones(5, 2), torch.ones(4, 2), kernel=kernel)
        assert ours.value == pytest.approx(0.0, abs=1e-12)
        assert ours.settings["bandwidth"] == [1.0]

    def test_bandwidths_are_averaged(self) -> None:
        x, y = torch.randn(10, 3), torch.randn(12, 3)
        one, two = (maximum_mean_discrepancy(x, y, bandwidth=b).value for b in (0.5, 2.0))
        both = maximum_mean_discrepancy(x, y, bandwidth=[0.5, 2.0]).value
        assert both == pytest.approx((one + two) / 2)

    def test_report(self) -> None:
        result = energy_distance(torch.randn(10, 2), torch.randn(12, 2), num_permutations=9)
        assert json.loads(json.dumps(result.to_dict()))["value"] == float(result)
        assert str(result).startswith("energy distance = ") and "10 and 12 samples" in str(result)


class TestErrors:
    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            (torch.zeros(3), torch.zeros(3, 2), r"x must have shape \(samples >= 2, units\)"),
            (torch.zeros(3, 2), torch.zeros(1, 2), r"y must have shape .*got \(1, 2\)"),
            (torch.zeros(3, 2), torch.zeros(3, 4), r"same units, got \(3, 2\) and \(3, 4\)"),
            (torch.full((3, 2), math.nan), torch.zeros(3, 2), "x must be finite"),
        ],
    )
    def test_samples(self, x: Tensor, y: Tensor, message: str) -> None:
        for function in (maximum_mean_discrepancy, energy_distance):
            with pytest.raises(ValueError, match=message):
                function(x, y)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kernel": "linear"}, "kernel must be one of"),
            ({"bandwidth": 0.0}, "bandwidth must be positive"),
            ({"bandwidth": []}, "bandwidth must be positive"),
            ({"bandwidth": [1.0, math.inf]}, "bandwidth must be positive"),
            ({"num_permutations": -1}, "num_permutations must be at least 0, got -1"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            maximum_mean_discrepancy(torch.zeros(3, 2), torch.zeros(3, 2), **options)
