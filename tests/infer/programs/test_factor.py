# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Machines as factors on supports of one's choice, against quadrature."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import HMC, MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_sample, init_to_value
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_ebm.distributions import (
    RBM,
    GaussianBernoulliRBM,
    UnnormalizedGradientError,
    relaxed,
    units,
)
from pyro_ebm.distributions.constraints import concatenation, counts, flat_one_hot, spin
from pyro_ebm.infer import FactorReparam, FactorReparamWarning, exact_log_partition
from pyro_ebm.infer.programs.bounds import (
    hull_of,
    interval_of,
    is_inside,
    is_inside_hull,
    is_same,
)
from tests.infer.programs.machines import dbm, double, log_p_star, rbm

Z = 6.0


def gaussian(shift: Tensor | float = 0.0) -> GaussianBernoulliRBM:
    loc = double(0.2, -0.3) + torch.as_tensor(shift)
    weight = double(1.0, -0.6, 0.5, 0.9).reshape(2, 2)
    return GaussianBernoulliRBM(weight, loc, double(1.0, 2.0), double(-0.2, 0.3))


def rectified() -> RBM:
    return RBM(
        units.ReLU(double(0.4, -0.2), double(1.5, 1.0)),
        units.Bernoulli(double(0.3, -0.5)),
        double(0.5, -0.6, 0.3, 0.4).reshape(2, 2),
    )


def program(machine: Any) -> Callable[[], Tensor]:
    def model() -> Tensor:
        return pyro.sample("v", machine)

    return model


def reparametrised(machine: Any, *args: Any, **kwargs: Any) -> Callable[[], Tensor]:
    return poutine.reparam(program(machine), config={"v": FactorReparam(*args, **kwargs)})


def grid(low: float, high: float, number: int = 60) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points of a square and the logarithms of their weights."""
    x, w = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(number))
    x, log_w = (x + 1) * (high - low) / 2 + low, (w * (high - low) / 2).log()
    return torch.cartesian_prod(x, x), torch.cartesian_prod(log_w, log_w).sum(-1)


def expected_log_z(machine: RBM, low: float, high: float) -> Tensor:
    v, log_w = grid(low, high)
    return (log_p_star(machine, v) + log_w).logsumexp(0)


SUPPORTS = {
    "positive": (constraints.positive, 0.0, 9.0),
    "interval": (constraints.interval(-0.5, 1.5), -0.5, 1.5),
    "real": (None, -9.0, 9.0),
}


class TestPotential:
    @pytest.mark.parametrize("name", SUPPORTS)
    def test_is_the_free_energy_and_the_jacobian(self, name: str) -> None:
        support, _, _ = SUPPORTS[name]
        _, potential, transforms, _ = initialize_model(reparametrised(gaussian(), support))
        z = double(0.3, -0.7)
        transform = biject_to(gaussian().support if support is None else support)
        v = transform(z)
        jacobian = transform.log_abs_det_jacobian(z, v).sum()
        found = potential({"v_improper": z})
        assert list(transforms) == ["v_improper"]
        assert torch.allclose(found, -log_p_star(gaussian(), v) - jacobian, rtol=0, atol=1e-9)

    def test_integral(self) -> None:
        """Summed over the unconstrained space it has the log Z of the restricted machine."""
        support, low, high = SUPPORTS["interval"]
        _, potential, _, _ = initialize_model(reparametrised(gaussian(), support))
        v, log_w = grid(low, high, 10)
        transform = biject_to(support)
        z = transform.inv(v)
        stretch = transform.log_abs_det_jacobian(z, v).sum(-1)
        values = torch.stack([-potential({"v_improper": row}) for row in z])
        found = (values + log_w - stretch).logsumexp(0)
        assert torch.allclose(found, expected_log_z(gaussian(), low, high), rtol=0, atol=1e-9)

    @pytest.mark.parametrize("kind", ["bits", "spins"])
    def test_relaxation(self, kind: str) -> None:
        """F of a relaxed machine is the formula of its energy at real values."""
        weight, bias = double(1.0, -0.6, 0.5, 0.9).reshape(2, 2), double(0.4, -0.3)
        family = units.Bernoulli if kind == "bits" else units.Ising
        machine = RBM(family(bias), units.Bernoulli(double(0.1, 0.2)), weight)
        low = 0.0 if kind == "bits" else -1.0
        support = constraints.unit_interval if kind == "bits" else constraints.interval(-1.0, 1.0)
        model = reparametrised(machine, support)
        v = double(0.3, 0.8)
        trace = poutine.trace(poutine.condition(model, data={"v_improper": v})).get_trace()
        field = double(0.1, 0.2) + v @ weight
        expected = v @ bias + torch.nn.functional.softplus(field).sum()
        assert torch.allclose(trace.log_prob_sum(), expected, rtol=0, atol=1e-9)
        _, potential, _, _ = initialize_model(model, init_strategy=init_to_sample)
        z = double(0.3, -1.1)
        v = low + (1.0 - low) * z.sigmoid()
        field = double(0.1, 0.2) + v @ weight
        expected = v @ bias + torch.nn.functional.softplus(field).sum()
        jacobian = ((1.0 - low) * z.sigmoid() * (-z).sigmoid()).log().sum()
        found = potential({"v_improper": z})
        assert torch.allclose(found, -expected - jacobian, rtol=0, atol=1e-9)

    def test_plates_scales_and_masks(self) -> None:
        keep = torch.tensor([True, False, True])
        v = torch.rand(3, 2, dtype=torch.float64)

        def model() -> None:
            with pyro.plate("rows", 3), poutine.scale(scale=0.5), poutine.mask(mask=keep):
                pyro.sample("v", gaussian())

        positive = poutine.reparam(model, config={"v": FactorReparam(constraints.positive)})
        fixed = poutine.condition(positive, data={"v_improper": v})
        total = poutine.trace(fixed).get_trace().log_prob_sum()
        expected = 0.5 * (log_p_star(gaussian(), v) * keep).sum()
        assert torch.allclose(total, expected, rtol=0, atol=1e-9)

    def test_event_axes_and_masks_of_the_distribution(self) -> None:
        keep = torch.tensor([True, False, True])
        v = torch.rand(3, 2, dtype=torch.float64)
        fn = gaussian().expand([3]).mask(keep).to_event(1)
        fixed = poutine.condition(reparametrised(fn, constraints.positive), data={"v_improper": v})
        total = poutine.trace(fixed).get_trace().log_prob_sum()
        expected = (log_p_star(gaussian(), v) * keep).sum()
        assert torch.allclose(total, expected, rtol=0, atol=1e-9)


class TestSampling:
    def test_truncated_machine(self) -> None:
        mcmc = MCMC(
            NUTS(reparametrised(gaussian(), constraints.positive)), 120, 40, disable_progbar=True
        )
        mcmc.run()
        draws = mcmc.get_samples()["v_improper"]
        v, log_w = grid(0.0, 9.0)
        exact = torch.softmax(log_p_star(gaussian(), v) + log_w, 0) @ v
        error = draws.std(0) / mcmc.diagnostics()["v_improper"]["n_eff"].sqrt()
        assert ((draws.mean(0) - exact) / error).abs().max() < Z
        # Untruncated it would be far from there.
        assert (exact - 0.5).abs().max() > 0.2
        whole = Predictive(reparametrised(gaussian(), constraints.positive), mcmc.get_samples())()
        assert torch.equal(whole["v"], draws)

    def test_relaxed_bits_start_inside(self) -> None:
        model = reparametrised(rbm(), constraints.unit_interval)
        params, _, _, _ = initialize_model(model, init_strategy=init_to_sample)
        # A state of the bits would be at infinity, or where the transform is cut off.
        assert bool((params["v_improper"].abs() <= 2.0).all())
        mcmc = MCMC(HMC(model, init_strategy=init_to_sample), 3, 3, disable_progbar=True)
        mcmc.run()
        draws = mcmc.get_samples()["v_improper"]
        assert draws.shape == (3, 3) and bool(((draws > 0) & (draws < 1)).all())

    def test_given_start(self) -> None:
        model = reparametrised(gaussian(), constraints.positive)
        start = init_to_value(values={"v": double(0.5, 2.0)})
        params, _, _, _ = initialize_model(model, init_strategy=start)
        assert torch.allclose(params["v_improper"].exp(), double(0.5, 2.0))

    def test_autoguide(self) -> None:
        """Without a sampler of its own, the site learns under SVI as well."""
        model = reparametrised(gaussian(), constraints.positive)
        guide = AutoNormal(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=Trace_ELBO())
        assert math.isfinite(svi.step())

    def test_no_forward_samples(self) -> None:
        with pytest.raises(NotImplementedError, match="no forward samples"):
            Predictive(reparametrised(gaussian(), constraints.positive), num_samples=2)()


class TestLogPartition:
    def score(self, machine: RBM, *args: Any, **kwargs: Any) -> Tensor:
        model = reparametrised(machine, *args, **kwargs)
        fixed = poutine.condition(model, data={"v_improper": double(0.3, 0.8)})
        return poutine.trace(fixed).get_trace().log_prob_sum() - log_p_star(
            machine, double(0.3, 0.8)
        )

    def test_kept_on_the_same_support(self) -> None:
        log_z = exact_log_partition(gaussian())
        for support in (None, constraints.real, constraints.real_vector):
            found = self.score(gaussian().normalize(log_z), support)
            assert torch.allclose(found, -log_z, rtol=0, atol=1e-9)
        machine = rectified().normalize(1.5)
        assert torch.allclose(self.score(machine, constraints.positive), double(-1.5), atol=1e-9)

    def test_dropped_on_another_support(self) -> None:
        with pytest.warns(FactorReparamWarning, match=r"site 'v'.*dropped.*GreaterThan"):
            found = self.score(gaussian().normalize(1.5), constraints.positive)
        assert abs(float(found)) < 1e-9

    def test_dropped_where_it_is_that_of_bits(self) -> None:
        """A relaxed machine keeps the log Z of bits, on the support of relaxed ones."""
        machine = relaxed(rbm().normalize(exact_log_partition(rbm())))
        value = double(0.3, 0.8, 0.1)
        for support in (None, constraints.unit_interval):
            fixed = poutine.condition(reparametrised(machine, support), data={"v_improper": value})
            with pytest.warns(FactorReparamWarning, match="'v'.*dropped"):
                found = poutine.trace(fixed).get_trace().log_prob_sum()
            assert torch.allclose(found, log_p_star(rbm(), value), rtol=0, atol=1e-9)
        params, _, _, _ = initialize_model(
            reparametrised(relaxed(rbm())), init_strategy=init_to_sample
        )
        # Not at the bits that it is drawn from.
        assert bool((params["v_improper"].abs() <= 2.0).all())

    def test_warned_once(self) -> None:
        model = reparametrised(gaussian().normalize(1.5), constraints.positive)
        with pytest.warns(FactorReparamWarning):
            model()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model()

    def test_given(self) -> None:
        found = self.score(
            gaussian().normalize(1.5),
            constraints.positive,
            log_partition=lambda m: expected_log_z(m, 0.0, 9.0),
        )
        assert torch.allclose(found, -expected_log_z(gaussian(), 0.0, 9.0), rtol=0, atol=1e-9)

    def test_latent_parameters(self) -> None:
        """Without log Z on the support HMC is refused; with it the posterior is that of quadrature."""

        def model() -> None:
            shift = pyro.sample("shift", dist.Normal(double(0.0).squeeze(), 1.0))
            pyro.sample("v", gaussian(shift))

        def with_factor(**kwargs: Any) -> Any:
            reparam = FactorReparam(constraints.unit_interval, **kwargs)
            return poutine.reparam(model, config={"v": reparam})

        with pytest.raises(UnnormalizedGradientError, match="log Z on Interval"):
            MCMC(NUTS(with_factor()), 2, 2, disable_progbar=True).run()
        v, log_w = grid(0.0, 1.0, 9)

        def log_z(machine: RBM) -> Tensor:
            return (log_p_star(machine, v) + log_w).logsumexp(0)

        _, potential, _, _ = initialize_model(with_factor(log_partition=log_z))
        shift = double(0.7).squeeze()
        values = torch.stack([-potential({"shift": shift, "v_improper": row.logit()}) for row in v])
        total = (values + log_w - (v * (1 - v)).log().sum(-1)).logsumexp(0)
        # v summed out, the shift has its prior.
        prior = dist.Normal(double(0.0), 1.0).log_prob(shift).squeeze()
        assert torch.allclose(total, prior, rtol=0, atol=1e-9)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "support, error, match",
        [
            ("positive", TypeError, "support must be a constraint"),
            (constraints.boolean, ValueError, "support must be continuous"),
            (constraints.positive_definite, ValueError, "event dimension 2"),
        ],
    )
    def test_supports(self, support: Any, error: Any, match: str) -> None:
        with pytest.raises(error, match=match):
            FactorReparam(support)

    def test_log_partition(self) -> None:
        with pytest.raises(TypeError, match="log_partition must be a function"):
            FactorReparam(None, log_partition=1.5)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "fn, support, error, match",
        [
            (
                dist.Normal(0.0, 1.0),
                None,
                TypeError,
                "site 'v': FactorReparam needs an RBM, got a Normal",
            ),
            (dbm(), constraints.unit_interval, TypeError, "got a DBM"),
            (rbm(), None, ValueError, "discrete units; HMC needs a support"),
            (rectified(), constraints.real, ValueError, "defined on .* only"),
            (rbm(), constraints.real, ValueError, r"between their states.*\(0.0, 1.0\)"),
            (rbm(), constraints.positive, ValueError, "between their states"),
            (rbm(), constraints.interval(-1.0, 1.0), ValueError, "between their states"),
        ],
    )
    def test_sites(self, fn: Any, support: Any, error: Any, match: str) -> None:
        with pytest.raises(error, match=match):
            reparametrised(fn, support)()

    def test_observed(self) -> None:
        model = poutine.condition(program(gaussian()), data={"v": double(0.1, 0.2)})
        with pytest.raises(ValueError, match="is observed"):
            poutine.reparam(model, config={"v": FactorReparam(constraints.positive)})()


class TestBounds:
    def test_intervals(self) -> None:
        assert interval_of(constraints.real_vector) == (-math.inf, math.inf)
        assert interval_of(constraints.nonnegative) == (0.0, math.inf)
        assert interval_of(constraints.less_than(2.0)) == (-math.inf, 2.0)
        assert interval_of(constraints.unit_interval) == (0.0, 1.0)
        assert interval_of(constraints.simplex) is None
        assert interval_of(constraints.integer_interval(0, 3)) is None

    def test_hulls(self) -> None:
        assert hull_of(constraints.independent(constraints.boolean, 1)) == (0.0, 1.0)
        assert hull_of(spin) == (-1.0, 1.0)
        assert hull_of(counts(3)) == (0.0, 3.0)
        assert hull_of(concatenation([counts(3), spin], [2, 1])) == (0.0, 1.0)
        assert hull_of(constraints.real) is None
        assert is_inside_hull(constraints.simplex, flat_one_hot(3))
        assert is_inside_hull(constraints.interval(0.2, 0.9), constraints.boolean)
        assert not is_inside_hull(constraints.unit_interval, constraints.nonnegative_integer)

    def test_comparisons(self) -> None:
        assert is_same(constraints.positive, constraints.independent(constraints.nonnegative, 1))
        assert not is_same(constraints.positive, constraints.real)
        assert not is_same(constraints.simplex, constraints.unit_interval)
        assert is_inside(constraints.interval(double(0.0, 1.0), 3.0), constraints.positive)
        assert not is_inside(constraints.interval(double(-0.1, 1.0), 3.0), constraints.positive)
        assert is_inside(constraints.simplex, constraints.unit_interval)
