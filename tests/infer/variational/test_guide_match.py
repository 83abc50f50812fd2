# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Scales, masks, subsamples and guides that are none of the model, beside latent machines."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from pyro_ebm.infer import (
    AutoMeanFieldBoltzmann,
    ModelLogLikelihood,
    exact_log_partition,
    importance_log_likelihood,
    mean_field_posterior,
)
from tests.infer.reference import Z_LIMIT
from tests.infer.variational.noisy_bits import (
    CLOSE,
    SCALE,
    Program,
    bits,
    estimate,
    evidence,
    fair,
    observing,
    program,
    some_rows,
)


def call(model: Program, guide: Program, number: int = 5, **options: Any) -> ModelLogLikelihood:
    options = {"log_partition": exact_log_partition, "plate": "rows"} | options
    return importance_log_likelihood(model, guide, num_particles=number, **options)


class TestScale:
    def test_subsample_of_rows(self) -> None:
        """Given rows of a plate: its scale is no power of the weights, with a posterior or another guide."""
        machine, x, rows = bits(), some_rows(6), torch.tensor([4, 1])
        posterior = machine.tilt((2.0 * x[rows] - 1.0) / (2.0 * SCALE**2))
        posterior = posterior.normalize(exact_log_partition(posterior))

        def model() -> None:
            with pyro.plate("rows", 6, subsample=rows):
                v = pyro.sample("v", machine)
                pyro.sample("x", dist.Normal(v, SCALE).to_event(1), obs=x[rows])

        def guide(q: Any = posterior) -> None:
            with pyro.plate("rows", 6, subsample=rows):
                pyro.sample("v", q)

        exact = evidence(machine, x[rows])
        given = estimate(exact_log_partition(machine), 0.1)
        result = call(model, guide, log_partition=given)
        torch.testing.assert_close(result.rows, exact, **CLOSE)
        assert result.log_partition_error.item() == pytest.approx(0.1)
        fair_bits = dist.Bernoulli(torch.full((2, 3), 0.5).double()).to_event(1)
        result = call(model, lambda: guide(fair_bits), 2000, chunk_size=2000)
        assert ((result.rows - exact) / result.weights.std_error).abs().max() < Z_LIMIT
        with pytest.raises(ValueError, match=r"'v' is scaled by \[3.0\], but no plate is given"):
            call(model, guide, plate=None)

    def test_other_scales(self) -> None:
        """They would be powers of the weights: too high by any amount, at the guide's sites too."""
        machine, x = bits(), some_rows()
        model, guide = program(machine, x)
        scaled = poutine.scale(model, scale=2.0)
        message = r"scaled by \[2.0\], but the plate of rows 'rows' has 1: .* power of the"
        for pair in ((scaled, poutine.scale(guide, scale=2.0)), (scaled, guide)):
            with pytest.raises(ValueError, match=message):
                call(*pair)
        with pytest.raises(ValueError, match="site 'v' is scaled"):
            call(model, poutine.scale(guide, scale=torch.tensor([1.0, 1.0, 1.0, 2.0])))

    def test_subsample_of_another_plate(self) -> None:
        machine, x = bits(), some_rows(8).reshape(4, 2, 3)

        def model() -> None:
            with pyro.plate("rows", 4, dim=-2):
                with pyro.plate("columns", 6, subsample=torch.tensor([0, 3]), dim=-1):
                    v = pyro.sample("v", machine)
                    pyro.sample("x", dist.Normal(v, SCALE).to_event(1), obs=x)

        def guide() -> None:
            with pyro.plate("rows", 4, dim=-2):
                with pyro.plate("columns", 6, subsample=torch.tensor([0, 3]), dim=-1):
                    pyro.sample("v", dist.Bernoulli(torch.full_like(x, 0.5)).to_event(1))

        with pytest.raises(
            ValueError, match=r"scaled by \[3.0\], but the plate of rows 'rows' has 1"
        ):
            call(model, guide)


class TestMask:
    MASK = torch.tensor([True, False, True, False])

    @pytest.mark.parametrize("where", ["handler", "distribution"])
    def test_guide_without_the_mask(self, where: str) -> None:
        """Rows that are masked out have log-likelihood 0, not the guide's entropy; the others stay."""
        machine, x = bits(), some_rows()

        def masked() -> None:
            with pyro.plate("rows", 4):
                v = pyro.sample("v", machine.mask(self.MASK))
                pyro.sample("x", dist.Normal(v, SCALE).to_event(1).mask(self.MASK), obs=x)

        model, posterior = program(machine, x)
        model = poutine.mask(model, mask=self.MASK) if where == "handler" else masked
        expected = torch.where(self.MASK, evidence(machine, x), 0.0)
        for guide in (posterior, poutine.mask(posterior, mask=self.MASK)):
            torch.testing.assert_close(call(model, guide).rows, expected, **CLOSE)
        given = estimate(exact_log_partition(machine), 0.1)
        result = call(model, posterior, log_partition=given)
        assert result.log_partition_error.item() == pytest.approx(0.05)

    def test_autoguide(self) -> None:
        """Without weights the mean-field guide is the posterior: exact in the rows that count."""
        machine, x = bits(0.0), some_rows()
        model = poutine.mask(program(machine, x)[0], mask=self.MASK)
        start = mean_field_posterior(program(machine, x)[0]).thetas[0]
        guide = AutoMeanFieldBoltzmann(model, init={"v": start})
        expected = torch.where(self.MASK, evidence(machine, x), 0.0)
        torch.testing.assert_close(call(model, guide).rows, expected, **CLOSE)

    def test_mask_of_the_guide_alone(self) -> None:
        """What is drawn has its density, whatever mask the guide has: a mask of its own changes nothing."""
        machine, x = bits(), some_rows()
        model, guide = program(machine, x)
        for mask in (self.MASK, False):
            result = call(model, poutine.mask(guide, mask=mask))
            torch.testing.assert_close(result.rows, evidence(machine, x), **CLOSE)
            assert not result.exact

    def test_masks_that_no_guide_can_share(self) -> None:
        machine, x = bits(), some_rows(8).reshape(4, 2, 3)
        part = torch.tensor([True, False])

        def within() -> None:
            with pyro.plate("rows", 4):
                pyro.sample("v", machine.expand((4, 2)).mask(part).to_event(1))

        def guide() -> None:
            with pyro.plate("rows", 4):
                pyro.sample("v", dist.Bernoulli(torch.full_like(x, 0.5)).to_event(2))

        with pytest.raises(ValueError, match="'v' masks elements within its event"):
            call(within, guide)

        def real() -> None:
            with pyro.plate("rows", 4):
                pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))

        masked = poutine.mask(real, mask=self.MASK)
        auto = AutoNormal(real, init_scale=1.2)
        with pytest.raises(ValueError, match=r"auxiliary sites \['z_unconstrained'\]"):
            call(masked, auto, log_partition=None)
        result = call(masked, poutine.mask(auto, mask=self.MASK), 2000, log_partition=None)
        assert result.rows[self.MASK].abs().max() < Z_LIMIT * result.weights.std_error.max()
        assert result.rows[~self.MASK].abs().max() < 1e-9


class TestConditioned:
    def test_guide_that_draws_what_is_fixed(self) -> None:
        """A value that the model is conditioned on has no q: the guide must be conditioned or blocked too."""
        machine, x = bits(), some_rows()
        model, guide = program(machine, x)
        bits_of_rows = (x > 0).double()
        conditioned = poutine.condition(model, data={"v": bits_of_rows})
        with pytest.raises(ValueError, match=r"draws \['v'\].*condition or block the guide too"):
            call(conditioned, guide)
        expected = machine.log_prob(bits_of_rows) - exact_log_partition(machine)
        expected = expected + dist.Normal(bits_of_rows, SCALE).to_event(1).log_prob(x)
        for fixed in (
            poutine.condition(guide, data={"v": bits_of_rows}),
            poutine.block(guide, hide=["v"]),
        ):
            result = call(conditioned, fixed)
            torch.testing.assert_close(result.rows, expected, **CLOSE)
            assert result.exact

        def observed_guide() -> None:
            with pyro.plate("rows", 4):
                pyro.sample("v", dist.Bernoulli(torch.full_like(x, 0.5)).to_event(1))

        with pytest.raises(ValueError, match=r"draws \['v'\]"):
            call(observing(machine, bits_of_rows), observed_guide)

    def test_global_site_that_both_are_conditioned_on(self) -> None:
        """As the message about sites outside of the plate says."""
        machine, x = bits(), some_rows()
        model, guide = program(machine, x)

        def with_scale(run: Program) -> Program:
            def wrapped() -> None:
                pyro.sample("scale", dist.LogNormal(0.0, 1.0))
                run()

            return wrapped

        def counted() -> None:
            with_scale(model)()

        with pytest.raises(ValueError, match="condition the model and the guide on them"):
            call(counted, with_scale(guide))
        at = {"scale": torch.tensor(1.5)}
        fixed = poutine.condition(with_scale(guide), data=at)
        result = call(poutine.condition(counted, data=at), fixed, plate=None)
        prior = dist.LogNormal(0.0, 1.0).log_prob(at["scale"]).double()
        exact = evidence(machine, x).sum() + prior
        torch.testing.assert_close(result.rows[0], exact, rtol=1e-7, atol=1e-7)


class TestPointMass:
    @staticmethod
    def model() -> None:
        pyro.sample("s", dist.LogNormal(torch.tensor(0.0).double(), 1.0))
        pyro.sample("t", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))

    def test_continuous(self) -> None:
        """The density at one point is no integral, beside other guides too."""
        model = self.model
        with pytest.raises(ValueError, match=r"point mass at the continuous sites \['s', 't'\]"):
            call(model, AutoDelta(model), plate=None)
        both = AutoGuideList(model)
        both.append(AutoDelta(poutine.block(model, expose=["s"])))
        both.append(AutoNormal(poutine.block(model, hide=["s"])))
        with pytest.raises(ValueError, match=r"at the continuous sites \['s'\]"):
            call(model, both, plate=None)

        def function() -> None:
            t = pyro.sample("t", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("s", dist.Delta(t.sum().exp()))

        with pytest.raises(ValueError, match=r"at the continuous sites \['s'\]"):
            call(model, function, plate=None)

    @pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal])
    def test_points_of_an_auxiliary_site(self, auto: Any) -> None:
        """Pyro's autoguides: the evidence of a model without data is one."""
        guide = auto(self.model, init_scale=1.2)
        result = call(self.model, guide, 4000, plate=None, log_partition=None)
        assert result.rows.abs().item() < Z_LIMIT * result.weights.std_error.item()

    def test_discrete(self) -> None:
        """A point mass of bits is one term of the sum: a lower bound."""
        machine, x = bits(), some_rows()
        model, _ = program(machine, x)

        def guide() -> None:
            with pyro.plate("rows", 4):
                pyro.sample("v", dist.Delta(point, event_dim=1))

        point = (x > 0).double()
        expected = machine.log_prob(point) - exact_log_partition(machine)
        expected = expected + dist.Normal(point, SCALE).to_event(1).log_prob(x)
        torch.testing.assert_close(call(model, guide).rows, expected, **CLOSE)


def test_float32() -> None:
    """Single precision in the model, double in the sums."""
    machine, x = bits().to(torch.float32), some_rows().float()
    exact = evidence(machine.to(torch.float64), x.double())
    result = call(program(machine, x)[0], fair(x), 4000, seed=0)
    assert result.rows.dtype == result.value.dtype == torch.float64
    score = (result.rows - exact).abs() / (result.weights.std_error + 1e-5)
    assert score.max() < Z_LIMIT
    result = call(*program(machine, x))
    torch.testing.assert_close(result.rows, exact, rtol=1e-5, atol=1e-5)
    assert isinstance(result.lower, Tensor) and result.lower <= result.value <= result.upper
