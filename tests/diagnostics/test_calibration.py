# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Simulation-based calibration: exact samplers pass, wrong ones fail, and the kernels of the package pass."""

import itertools
import json
import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import NUTS
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_ebm.diagnostics import CalibrationResult, simulation_based_calibration
from pyro_ebm.diagnostics.rank_tests import (
    ecdf_band,
    ecdf_counts,
    ecdf_p_value,
    holm,
    rank_test,
)
from pyro_ebm.diagnostics.simulated_data import Simulator
from pyro_ebm.distributions import BernoulliRBM
from pyro_ebm.infer import BlockGibbs, Exchange, Gibbs, PseudoMarginal
from pyro_ebm.infer.bayesian import exchange
from tests.infer.bayesian.small_programs import program

#: With fixed seeds; what is wrong must miss it by far.
LEVEL = 1e-5


def normal_mean() -> None:
    """Two means with normal data, whose posterior is normal."""
    with pyro.plate("means", 2):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean, 0.5), obs=torch.zeros(2))


def conjugate(shift: float = 0.0, spread: float = 1.0) -> Any:
    """Its posterior, displaced and widened."""

    def sampler(data: dict[str, Tensor], num_draws: int) -> dict[str, Tensor]:
        noise = math.sqrt(0.2) * torch.randn(num_draws, 2)
        return {"mean": 0.8 * data["x"] + shift * math.sqrt(0.2) + spread * noise}

    return sampler


def calibrate(sampler: Any, **options: Any) -> CalibrationResult:
    defaults = {"num_simulations": 300, "num_draws": 31, "level": LEVEL}
    return simulation_based_calibration(normal_mean, sampler=sampler, **(defaults | options))


class TestSamplers:
    def test_exact(self) -> None:
        result = calibrate(conjugate())
        assert result.passed and result.p_value > 1e-3, result
        assert list(result.ranks) == ["mean[0]", "mean[1]"]
        assert result.num_simulations == 300 and result.thin == 1.0
        assert "passed" in str(result) and "mean[1]" in str(result)
        assert json.loads(json.dumps(result.to_dict()))["quantities"]["mean[0]"]["ranks"]

    @pytest.mark.parametrize("wrong", [{"shift": 0.6}, {"spread": 1.9}, {"spread": 0.5}])
    def test_wrong(self, wrong: dict[str, float]) -> None:
        result = calibrate(conjugate(**wrong))
        assert not result.passed and result.p_value < 1e-7, result
        assert "FAILED" in str(result)

    def test_quantities_of_parameters_and_data(self) -> None:
        """A posterior that ignores the data has calibrated parameters; their product with the data is not."""

        def prior(data: dict[str, Tensor], num_draws: int) -> dict[str, Tensor]:
            return {"mean": torch.randn(num_draws, 2)}

        assert calibrate(prior).passed
        product = {"fit": lambda values, data: (values["mean"] * data["x"]).sum(-1)}
        assert not calibrate(prior, quantities=product).passed
        assert calibrate(conjugate(), quantities=product).passed

    def test_bits_are_ranked_at_random_among_equals(self) -> None:
        def model() -> None:
            bit = pyro.sample("bit", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(bit, 0.7))

        def exact(data: dict[str, Tensor], num_draws: int) -> dict[str, Tensor]:
            log_odds = math.log(0.3 / 0.7) + (2.0 * data["x"] - 1.0) / (2.0 * 0.49)
            return {"bit": dist.Bernoulli(logits=log_odds).sample((num_draws,))}

        options: dict[str, Any] = {"observed": ["x"], "num_simulations": 300, "num_draws": 15}
        assert simulation_based_calibration(model, sampler=exact, **options).passed


def one_mean() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mean, 0.5), obs=torch.tensor(0.0))


class SlowKernel(MCMCKernel):  # type: ignore[misc]
    """An autoregressive chain whose law is the posterior of :func:`one_mean`, from its first draw."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.transforms: dict[str, Any] = {}

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        trace = poutine.trace(self._model).get_trace(*args, **kwargs)
        self._mean = 0.8 * trace.nodes["x"]["value"]
        self._start = {"mean": self._mean + math.sqrt(0.2) * torch.randn(())}

    @property
    def initial_params(self) -> dict[str, Tensor]:
        return self._start

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self._start = params

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        noise = math.sqrt(0.2 * (1.0 - 0.8**2)) * torch.randn(())
        return {"mean": self._mean + 0.8 * (params["mean"] - self._mean) + noise}


class TestKernels:
    """A machine with two parameters and five rows."""

    ROWS = torch.zeros(5, 3).double()

    @pytest.mark.parametrize(
        "kernel",
        [Exchange, lambda model: PseudoMarginal(model, num_bridges=2)],
        ids=["exchange", "pm"],
    )
    def test_machines(self, kernel: Any) -> None:
        result = self.run(kernel)
        assert result.passed and result.p_value > 1e-3, result

    def run(self, kernel: Any) -> CalibrationResult:
        return simulation_based_calibration(
            program,
            kernel,
            args=[self.ROWS],
            num_simulations=128,
            num_draws=7,
            warmup_steps=75,
            thin=25,
            level=LEVEL,
            vectorized=True,
        )

    def test_without_log_z(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            exchange, "bridge_log_weights", lambda start, end, x, k: torch.zeros(x.shape[:-1])
        )
        result = self.run(Exchange)
        assert not result.passed, result

    def test_chains_are_as_long_as_their_effective_sizes_ask_for(self) -> None:
        """An exact but slow kernel fails with one transition a draw, and the result says why."""
        options: dict[str, Any] = {
            "num_simulations": 128,
            "num_draws": 7,
            "warmup_steps": 10,
            "level": LEVEL,
        }
        dependent = simulation_based_calibration(one_mean, SlowKernel, thin=1, **options)
        assert not dependent.passed and not dependent.has_enough_draws, dependent
        assert "FEWER than the 7" in str(dependent)
        result = simulation_based_calibration(one_mean, SlowKernel, **options)
        assert result.passed and result.p_value > 1e-3 and result.thin > 4.0, result
        assert result.to_dict()["smallest_effective_size"] > 1.0
        short = simulation_based_calibration(one_mean, SlowKernel, max_thin=2, **options)
        assert short.thin <= 2.0 and not short.has_enough_draws

    @pytest.mark.slow
    @pytest.mark.parametrize("kernel", [Exchange, PseudoMarginal])
    def test_machines_at_length(self, kernel: Any) -> None:
        result = simulation_based_calibration(
            program,
            kernel,
            args=[self.ROWS],
            num_simulations=400,
            num_draws=15,
            warmup_steps=300,
            thin=40,
            level=0.01,
            vectorized=True,
        )
        assert result.passed, result

    @pytest.mark.slow
    def test_nuts_with_exact_log_z(self) -> None:
        result = simulation_based_calibration(
            program,
            NUTS,
            args=[self.ROWS],
            kwargs={"exact": True},
            num_simulations=64,
            num_draws=7,
            warmup_steps=30,
            thin=3,
            level=0.01,
        )
        assert result.passed, result

    @pytest.mark.slow
    def test_compound(self) -> None:
        """The example in the docstring of Gibbs: the scale of a prior, a latent machine, noise."""
        rbm = BernoulliRBM(torch.ones(4, 2), torch.zeros(4), torch.zeros(2))

        def model() -> None:
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            v = pyro.sample("v", rbm)
            pyro.sample("x", dist.Normal(v, scale).to_event(1))

        result = simulation_based_calibration(
            model,
            lambda given: Gibbs([(BlockGibbs(given), ["v"]), (NUTS(given), None)]),
            observed=["x"],
            num_simulations=96,
            num_draws=7,
            warmup_steps=30,
            thin=5,
            level=0.01,
        )
        assert result.passed, result


class TestRankTests:
    def test_p_value_of_the_ecdf_by_enumeration(self) -> None:
        """Every sequence of four ranks among two draws."""
        num_draws, number = 2, 4
        sequences = np.array(list(itertools.product(range(num_draws + 1), repeat=number)))
        values = np.array([ecdf_p_value(ranks, num_draws) for ranks in sequences])
        for value in np.unique(values):
            # The exact distribution of a p-value: at most t with the probability t, at its own values.
            assert (values <= value + 1e-9).mean() == pytest.approx(value, abs=1e-9)

    def test_p_values_of_uniform_ranks(self) -> None:
        generator = np.random.default_rng(0)
        ranks = generator.integers(0, 16, size=(1000, 80))
        tests = [rank_test(own, 15, 8) for own in ranks]
        for p in ([t.ecdf_p for t in tests], [t.chi_square_p for t in tests]):
            for level in (0.05, 0.3):
                share = (np.array(p) <= level).mean()
                assert share < level + 6.0 * math.sqrt(level * (1.0 - level) / 1000)
                assert share > 0.5 * level

    def test_chi_square_against_scipy(self) -> None:
        scipy_stats = pytest.importorskip("scipy.stats")
        ranks = np.random.default_rng(1).integers(0, 20, 200)
        test = rank_test(ranks, 19, 5)
        expected = scipy_stats.chisquare(np.bincount(ranks // 4, minlength=5))
        assert test.chi_square == pytest.approx(expected.statistic, rel=1e-12)
        assert test.chi_square_p == pytest.approx(expected.pvalue, rel=1e-9)

    def test_band_and_p_value_agree(self) -> None:
        """A curve leaves the band of a level where its p-value is at most the level."""
        generator = np.random.default_rng(2)
        low, high = ecdf_band(60, 15, 0.2)
        for _ in range(200):
            ranks = generator.integers(0, 16, 60)
            counts = ecdf_counts(ranks, 15)
            inside = bool(((counts >= low) & (counts <= high)).all())
            assert inside == (ecdf_p_value(ranks, 15) > 0.2)

    def test_holm(self) -> None:
        assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
        assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


class TestRefused:
    @pytest.mark.parametrize(
        "options, message",
        [
            ({"num_simulations": 5}, "num_simulations"),
            ({"num_draws": 2}, "num_draws"),
            ({"num_draws": 28}, "has no divisor"),
            ({"num_bins": 7}, "num_bins must divide"),
            ({"level": 1.0}, "level"),
            ({"thin": 0}, "thin"),
            ({"observed": ["z"]}, "must have latent and observed sites"),
            ({"observed": ["mean", "x"]}, "must have latent and observed sites"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            calibrate(conjugate(), **options)

    def test_two_samplers_or_none(self) -> None:
        with pytest.raises(TypeError, match="exactly one"):
            simulation_based_calibration(normal_mean)
        with pytest.raises(TypeError, match="exactly one"):
            calibrate(conjugate(), kernel=NUTS)
        with pytest.raises(TypeError, match="not for NUTS"):
            simulation_based_calibration(normal_mean, NUTS, vectorized=True)
        with pytest.raises(TypeError, match="needs a kernel"):
            calibrate(conjugate(), vectorized=True)

    def test_factors(self) -> None:
        def model() -> None:
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.factor("penalty", -x.square())

        with pytest.raises(ValueError, match="'penalty' is a factor"):
            simulation_based_calibration(model, sampler=conjugate())

    def test_scaled_site(self) -> None:
        with pytest.raises(ValueError, match="'mean' is scaled by 2"):
            simulation_based_calibration(poutine.scale(normal_mean, 2.0), sampler=conjugate())

    def test_draws_that_are_not_exact(self) -> None:
        def model(size: int) -> None:
            scale = pyro.sample("scale", dist.Normal(0.0, 0.1))
            rbm = BernoulliRBM(scale * torch.ones(size, size), torch.zeros(size), torch.zeros(size))
            pyro.sample("v", rbm.expand([2]).to_event(1))

        Simulator(model, (16,), {}, ["v"])
        with pytest.raises(ValueError, match="'v' has no layer that can be enumerated"):
            Simulator(model, (17,), {}, ["v"])

    @pytest.mark.parametrize(
        ("plate", "message"), [(True, "of other chains"), (False, "has the shape")]
    )
    def test_simulations_that_mix(self, plate: bool, message: str) -> None:
        """As many data sets as rows or units, and an array without .to_event()."""

        def model() -> None:
            w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 2] if plate else [16]))
            weight = w if plate else w[..., None]
            visible, hidden = weight.shape[-2:]
            rbm = BernoulliRBM(weight, torch.zeros(visible), torch.zeros(hidden))
            with pyro.plate("rows", 16) if plate else nullcontext():
                pyro.sample(
                    "v", rbm, obs=torch.zeros(16, visible) if plate else torch.zeros(visible)
                )

        with pytest.raises(ValueError, match=message):
            simulation_based_calibration(
                model, Exchange, num_simulations=16, num_draws=3, num_bins=2, vectorized=True
            )

    def test_quantity_of_a_wrong_shape(self) -> None:
        with pytest.raises(ValueError, match="must have 31 draws"):
            calibrate(conjugate(), quantities={"q": lambda values, data: values["mean"]})
