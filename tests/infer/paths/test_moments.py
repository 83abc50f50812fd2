# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The moment-averaged path: moments against enumeration, unbiased weights, and what it is good for."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Size, Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.infer.paths import (
    GeometricPath,
    MachinePath,
    base_unit,
    inverse_temperatures,
    moment_averaged_path,
    moments,
)
from pyro_ebm.infer.paths.canonical import canonical
from pyro_ebm.infer.paths.moment_fit import ChainFit
from pyro_ebm.infer.paths.moment_statistics import (
    base_moments,
    enumerated_moments,
    sampled_moments,
)
from pyro_ebm.ops.numerics import effective_sample_size
from tests import brute_force
from tests.distributions.families import ALL_FAMILIES, UNBOUNDED, random_rbm, to_machine
from tests.infer.reference import Z_LIMIT, z_score

FINITE_PAIRS = [
    ("bernoulli", "ising"),
    ("ising", "gaussian"),
    ("categorical", "relu"),
    ("multinomial", "multinomial"),
    ("gaussian", "bernoulli"),
    ("relu", "categorical"),
]
pairs = pytest.mark.parametrize("pair", FINITE_PAIRS, ids="-".join)


def moments_of(rbm: RBM, index: tuple[int, ...] = ()) -> list[np.ndarray]:
    """E[v], E[h] and E[v h'] from the definition."""
    v, h, p = brute_force.joint(to_machine(rbm, index))
    return [p.sum(1) @ v, p.sum(0) @ h, v.T @ p @ h]


def base_of(rbm: RBM) -> Any:
    return "uniform" if rbm.visible.num_states is not None else None


def switching() -> BernoulliRBM:
    """12 x 6 bits that are nearly all off, but all on at intermediate temperatures.

    All on is the likelier of the two modes until :math:`\\beta` comes close to 1, where a chain can no
    longer cross.
    """
    weight = torch.full((12, 6), 1.5, dtype=torch.float64)
    bias = torch.full((12,), -7.5, dtype=torch.float64)
    return BernoulliRBM(weight, bias, torch.full((6,), -3.5, dtype=torch.float64))


def log_weights(path: Any, num_temperatures: int, num_chains: int) -> Tensor:
    betas = inverse_temperatures("linear", num_temperatures, path, num_chains)
    _, log_ratio = path.anneal(path.sample_base(num_chains), betas)
    return path.log_partition_base + log_ratio


class TestExactFit:
    @pairs
    def test_moments_are_averages(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True, scale=2.0)
        path = moment_averaged_path(rbm, base_of(rbm), num_knots=3)
        first, last = moments_of(path.knots[0]), moments_of(rbm)
        assert len(path.knots) == 5
        for number, knot in enumerate(path.knots):
            for got, low, high in zip(moments_of(knot), first, last, strict=True):
                expected = low + number / 4 * (high - low)
                np.testing.assert_allclose(got, expected, atol=2e-6)

    def test_batches(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, batched=True, scale=2.0)
        path = moment_averaged_path(rbm, num_knots=1)
        knot = path.knots[1]
        for index in ((0, 0), (1, 2)):
            ends = (moments_of(path.knots[0], index), moments_of(rbm, index))
            for got, low, high in zip(moments_of(knot, index), *ends, strict=True):
                np.testing.assert_allclose(got, (low + high) / 2, atol=2e-6)

    @pytest.mark.parametrize("family", list(ALL_FAMILIES))
    def test_base_is_without_weights(self, family: str) -> None:
        """Its moments are those of a machine whose hidden layer has no biases either."""
        rbm = random_rbm((family, "bernoulli"), offsets=True)
        start = moment_averaged_path(rbm, num_knots=1).knots[0]
        assert not start.weight.any() and not start.hidden.natural_bias.any()
        torch.testing.assert_close(start.visible.natural_bias, rbm.visible.natural_bias)
        exact = base_moments(start)
        for got, expected in zip(
            (exact.visible, exact.hidden, exact.product), moments_of(start), strict=True
        ):
            np.testing.assert_allclose(got, expected, atol=1e-8)

    def test_precisions_go_straight(self) -> None:
        rbm = random_rbm(("gaussian", "bernoulli"))
        base = rbm.visible.replace(precision=2.0 * rbm.visible.parameters["precision"])
        path = moment_averaged_path(rbm, base, num_knots=3)
        for number, knot in enumerate(path.knots):
            factor = 2.0 - number / 4
            expected = factor * rbm.visible.parameters["precision"]
            torch.testing.assert_close(knot.visible.parameters["precision"], expected)
            assert number in (0, 4) or knot.weight.abs().max() > 0.01

    def test_float32(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), offsets=True).to(torch.float32)
        knot = moment_averaged_path(rbm, num_knots=1).knots[1]
        assert knot.weight.dtype == torch.float32
        ends = moments_of(moment_averaged_path(rbm, num_knots=1).knots[0]), moments_of(rbm)
        for got, low, high in zip(moments_of(knot), *ends, strict=True):
            np.testing.assert_allclose(got, (low + high) / 2, atol=1e-5)


class TestWithChains:
    @pytest.fixture(autouse=True)
    def _never_exact(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(moments, "_MAX_FITTED_STATES", 0)

    @pairs
    def test_moments_are_near_averages(self, pair: tuple[str, str]) -> None:
        """Of the distance that the moments have to go, a tenth is left at most."""
        rbm = random_rbm(pair, offsets=True, scale=2.0)
        path = moment_averaged_path(
            rbm, base_of(rbm), num_knots=2, num_chains=1000, num_updates=300, learning_rate=0.5
        )
        first, last = moments_of(path.knots[0]), moments_of(rbm)
        for number in (1, 2):
            got = moments_of(path.knots[number])
            for now, low, high in zip(got, first, last, strict=True):
                expected = low + number / 3 * (high - low)
                distance = np.abs(high - low).max()
                assert np.abs(now - expected).max() < 0.1 * distance

    def test_samples_are_used(self) -> None:
        """Moments of the wrong machine are matched as faithfully."""
        rbm, other = (random_rbm(("bernoulli", "bernoulli"), scale=3.0) for _ in range(2))
        path = moment_averaged_path(
            rbm,
            num_knots=1,
            samples=other.sample(Size((20_000,))),
            num_chains=2000,
            num_updates=300,
            learning_rate=0.5,
        )
        v = (
            brute_force.joint(to_machine(other))[2].sum(1)
            @ brute_force.points(to_machine(other).visible)[0]
        )
        base = moments_of(path.knots[0])[0]
        got = moments_of(path.knots[1])[0]
        np.testing.assert_allclose(got, (base + v) / 2, atol=0.03)
        assert np.abs(v - moments_of(rbm)[0]).max() > 0.2

    def test_one_update_is_the_centred_gradient(self) -> None:
        """From exact samples of the start, of which one sweep makes others."""
        rbm, other = (random_rbm(("bernoulli", "ising"), scale=2.0) for _ in range(2))
        start, goal = canonical(rbm), enumerated_moments(canonical(other))[0]
        fit = ChainFit(rbm.sample(Size((200_000,))), 1, 1.0).fit(start, goal)
        mean_v, mean_h = goal.visible.numpy(), goal.hidden.numpy()
        wanted = (mean_v, mean_h, goal.product.numpy())
        of_v, of_h, of_product = (w - m for w, m in zip(wanted, moments_of(rbm), strict=True))
        # A spin has four times the variance of a bit, and gets a quarter of its rate.
        weight = (of_product - np.outer(mean_v, of_h) - np.outer(of_v, mean_h)) / 4
        expected = (of_v - weight @ mean_h, of_h / 4 - mean_v @ weight, weight)
        before, after = (
            (m.visible.natural_bias, m.hidden.natural_bias, m.weight) for m in (start, fit)
        )
        for old, new, change in zip(before, after, expected, strict=True):
            np.testing.assert_allclose(
                (new - old).numpy(), change, atol=0.05 * np.abs(change).max()
            )

    def test_moments_of_many_samples(self) -> None:
        """More than a chunk of them, in an order that matters."""
        rbm = random_rbm(("bernoulli", "ising"), offsets=True)
        v = rbm.sample(Size((2500,))).sort(0).values
        mean = rbm.hidden_given(v).mean
        got = sampled_moments(rbm, v)
        torch.testing.assert_close(got.visible, v.mean(0))
        torch.testing.assert_close(got.hidden, mean.mean(0))
        torch.testing.assert_close(got.product, v.T @ mean / 2500)

    def test_chains_follow_the_machine(self) -> None:
        """Persistent chains end as samples of the last fit."""
        rbm = random_rbm(("bernoulli", "bernoulli"), scale=2.0)
        start = moment_averaged_path(rbm, num_knots=1, num_updates=1).knots[0]
        goal = base_moments(start)
        v = start.visible.natural_sample(start.visible.natural_bias.expand(5000, 3))
        fit = ChainFit(v, 100, 0.1)
        knot = fit.fit(start, goal)
        assert not torch.equal(fit.v, v)
        expected = moments_of(knot)[0]
        z = (fit.v.mean(0).numpy() - expected) / (fit.v.std(0).numpy() / np.sqrt(5000))
        assert np.abs(z).max() < Z_LIMIT

    def test_batches_and_unbiased_however_bad_the_fit(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, batched=True)
        path = moment_averaged_path(rbm, num_knots=2, num_chains=10, num_updates=5)
        weights = (log_weights(path, 6, 20_000) - exact_log_partition(rbm)).exp()
        for element in weights.flatten(1).unbind(1):
            assert abs(z_score(element, 1.0)) < Z_LIMIT


class TestAnnealing:
    @pairs
    def test_unbiased(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True, scale=1.5)
        path = moment_averaged_path(rbm, base_of(rbm), num_knots=2)
        weights = (log_weights(path, 4, 50_000) - exact_log_partition(rbm)).exp()
        assert abs(z_score(weights, 1.0)) < Z_LIMIT

    def test_clamped_machines_keep_their_constant(self) -> None:
        rbm = random_rbm(("bernoulli", "gaussian"), offsets=True)
        clamped = rbm.clamp(torch.tensor([True, False, False]), torch.ones(3).double())
        path = moment_averaged_path(clamped, num_knots=1)
        weights = (log_weights(path, 4, 50_000) - exact_log_partition(clamped)).exp()
        assert abs(z_score(weights, 1.0)) < Z_LIMIT

    def test_better_than_the_geometric_path_from_a_uniform_base(self) -> None:
        """At 100 temperatures and 4 knots: variances of the log-weights 0.29 and 0.90, effective chains
        75 % and 27 %."""
        rbm = switching()
        log_z = exact_log_partition(rbm)
        geometric = GeometricPath(rbm, base_unit(rbm, "uniform"))
        averaged = moment_averaged_path(rbm, "uniform", num_knots=4)
        ours, theirs = (log_weights(path, 100, 2000) - log_z for path in (averaged, geometric))
        assert ours.var() < 0.5 * theirs.var()
        assert effective_sample_size(ours) > 2.0 * effective_sample_size(theirs)
        # A single chain errs less on the side that it errs on.
        assert theirs.mean() < ours.mean() - 0.2
        assert ours.mean() < 0.0


class TestPositions:
    def test_lengths_are_equal_costs(self) -> None:
        """A quadratic form: positions against the formula, from enumerated moments."""
        rbm = random_rbm(("bernoulli", "bernoulli"), offsets=True, scale=3.0)
        path = moment_averaged_path(rbm, "uniform", num_knots=2)
        costs = []
        for low, high in zip(path.knots, path.knots[1:], strict=False):
            pairs_of = (
                (low.visible.natural_bias, high.visible.natural_bias),
                (low.hidden.natural_bias, high.hidden.natural_bias),
                (low.weight, high.weight),
            )
            change = zip(pairs_of, moments_of(low), moments_of(high), strict=True)
            cost = sum(float(((b - a).numpy() * (y - x)).sum()) for (a, b), x, y in change)
            costs.append(cost**0.5)
        expected = np.cumsum([0.0, *costs]) / sum(costs)
        np.testing.assert_allclose(path.positions, expected, atol=1e-4)

    def test_path_of_machines_with_uneven_positions(self) -> None:
        rbms = [random_rbm(("bernoulli", "ising"), offsets=True) for _ in range(3)]
        path = MachinePath(rbms, positions=[0.0, 0.2, 1.0])
        v = rbms[0].sample(Size((5,)))
        for position, rbm in zip((0.0, 0.2, 1.0), rbms, strict=True):
            torch.testing.assert_close(path.machine(position).log_prob(v), rbm.log_prob(v))
        middle = path.machine(0.6)
        torch.testing.assert_close(middle.weight, (rbms[1].weight + rbms[2].weight) / 2)
        fields = path.fields(v, 0.1)
        ratio, _ = path.log_ratio(v, fields, 0.1, 0.6)
        ratio = ratio + path.constant(0.6) - path.constant(0.1)
        expected = middle.log_prob(v) - path.machine(0.1).log_prob(v)
        torch.testing.assert_close(ratio, expected)

    @pytest.mark.parametrize(
        "positions", [[0.0, 1.0], [0.1, 0.5, 1.0], [0.0, 0.0, 1.0], [0.0, 0.5, 0.9]]
    )
    def test_bad_positions(self, positions: list[float]) -> None:
        rbms = [random_rbm(("bernoulli", "ising")) for _ in range(3)]
        with pytest.raises(ValueError, match="positions must be 3 numbers that increase"):
            MachinePath(rbms, positions=positions)


class TestAccuracy:
    def test_increments_in_float32(self) -> None:
        """784 x 500 bits: increments of 10,000 temperatures to 1e-5 of a nat."""
        generator = torch.Generator().manual_seed(0)
        machines = [
            BernoulliRBM(
                s * torch.randn(784, 500, generator=generator) / 8.0,
                torch.randn(784, generator=generator) - 2.0,
                torch.randn(500, generator=generator) - 1.0,
            )
            for s in (0.0, 1.0)
        ]
        path = MachinePath(machines)
        exact = MachinePath([m.to(torch.float64) for m in machines])
        v = machines[1].visible.natural_sample(machines[1].visible.bias.expand(20, 784))
        for beta in (0.1, 0.5, 0.9):
            got, _ = path.log_ratio(v, path.fields(v, beta), beta, beta + 1e-4)
            fields = exact.fields(v.double(), beta)
            expected, _ = exact.log_ratio(v.double(), fields, beta, beta + 1e-4)
            assert got.dtype == torch.float64
            assert (got - expected).abs().max() < 1e-5


class TestOptions:
    WRONG: list[tuple[dict[str, Any], str]] = [
        ({"num_knots": 0}, "num_knots must be at least 1, got 0"),
        ({"num_chains": 0}, "num_chains must be at least 1, got 0"),
        ({"num_updates": 0}, "num_updates must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"base": "flat"}, 'base must be None, "uniform" or a tensor'),
        ({"samples": torch.zeros(5, 4)}, r"samples must have shape \(samples,\) \+ \(3,\), got"),
        ({"samples": torch.zeros(3)}, r"samples must have shape \(samples,\) \+ \(3,\), got"),
        ({"samples": torch.full((5, 3), 0.5)}, "samples has values outside of"),
    ]

    @pytest.mark.parametrize(("options", "message"), WRONG)
    def test_wrong(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            moment_averaged_path(random_rbm(("bernoulli", "bernoulli")), **options)

    def test_wrong_base(self) -> None:
        other = random_rbm(("ising", "bernoulli")).visible
        with pytest.raises(ValueError, match="base must be a layer of 3 Bernoulli entries"):
            moment_averaged_path(random_rbm(("bernoulli", "bernoulli")), other)

    def test_no_machine(self) -> None:
        with pytest.raises(TypeError, match="dist must be an RBM, got str"):
            moment_averaged_path("rbm")  # type: ignore[arg-type]

    @pytest.mark.parametrize("pair", [(a, b) for a in UNBOUNDED for b in UNBOUNDED], ids="-".join)
    def test_two_continuous_layers(self, pair: tuple[str, str]) -> None:
        with pytest.raises(ValueError, match="one layer must be discrete"):
            moment_averaged_path(random_rbm(pair))

    def test_generator_and_progress(self, capfd: pytest.CaptureFixture[str]) -> None:
        rbm = random_rbm(("bernoulli", "bernoulli"))
        before = torch.get_rng_state()
        paths = [
            moment_averaged_path(
                rbm,
                num_knots=1,
                generator=torch.Generator().manual_seed(3),
                samples=torch.ones(4, 3),
                progress=True,
            )
            for _ in range(2)
        ]
        assert torch.equal(before, torch.get_rng_state())
        assert "moments: " in capfd.readouterr().err
        assert torch.equal(paths[0].knots[1].weight, paths[1].knots[1].weight)
