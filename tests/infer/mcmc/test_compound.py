# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Several kernels on one model, against quadrature and enumeration."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, NUTS
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM, units
from pyro_ebm.infer import (
    BlockGibbs,
    DiscreteGibbs,
    DiscreteLangevin,
    Gibbs,
    GibbsWithGradients,
    MetropolisBlockGibbs,
    exact_log_partition,
)
from pyro_ebm.infer.mcmc.blocks import HamiltonianBlock, ModelBlock
from tests.infer.mcmc.compound_models import (
    PRIOR,
    SEEN,
    coupled,
    double,
    noisy,
    run,
    standard_errors,
    worst,
)
from tests.infer.reference import Z_LIMIT


class TestScaleOfNoise:
    """LogNormal scale, prior of an RBM on bits, Gaussian likelihood."""

    @pytest.mark.parametrize("kernel_type", [BlockGibbs, MetropolisBlockGibbs])
    def test_against_quadrature(self, kernel_type: Any) -> None:
        mcmc = run(Gibbs([(kernel_type(noisy), ["v"]), (NUTS(noisy), None)]))
        assert worst(mcmc, noisy) < Z_LIMIT
        if kernel_type is MetropolisBlockGibbs:
            accept_prob = mcmc.diagnostics()["v.accept_prob"]["chain 0"]
            assert accept_prob.shape == (300,) and accept_prob.min() > 1.0 - 1e-9

    @pytest.mark.slow
    def test_long(self) -> None:
        mcmc = run(Gibbs([(BlockGibbs(noisy), ["v"]), (NUTS(noisy), None)]), num_samples=6000)
        assert worst(mcmc, noisy) < 5.0

    def test_few_runs_of_the_model_a_draw(self) -> None:
        """One for the field, one that confirms it; HMC and the set-up apart."""
        count = 0

        def model() -> None:
            nonlocal count
            count += 1
            noisy()

        kernel = Gibbs([(BlockGibbs(model), ["v"]), (lambda v: {"scale": v["scale"]}, ["scale"])])
        kernel.setup(0)
        params, count = kernel.initial_params, 0
        for _ in range(10):
            params = kernel.sample(params)
        assert count == 20


class TestErrorsAreCaught:
    """Values of other sites that are out of date give other means."""

    @staticmethod
    def worst() -> float:
        # The noise is large at first and small in the end.
        kernel = Gibbs([(BlockGibbs(noisy), ["v"]), (NUTS(noisy), None)])
        return worst(run(kernel, initial_params={"scale": double(2.0).squeeze()}), noisy)

    @pytest.mark.parametrize("block", [ModelBlock, HamiltonianBlock])
    def test_values_of_the_start(self, block: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        set_others = block.set_others

        def once(self: Any, values: dict[str, Tensor]) -> None:
            if not self._others:
                set_others(self, values)

        monkeypatch.setattr(block, "set_others", once)
        assert self.worst() > Z_LIMIT

    def test_a_field_of_the_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(BlockGibbs, "refresh", lambda self: None)
        assert self.worst() > Z_LIMIT


class TestCoupledBits:
    @pytest.mark.parametrize(
        "kernel",
        [
            MetropolisBlockGibbs(coupled),
            GibbsWithGradients(coupled, 4),
            DiscreteLangevin(coupled, num_steps=4),
        ],
        ids=lambda kernel: type(kernel).__name__,
    )
    def test_against_quadrature(self, kernel: Any) -> None:
        hmc = HMC(coupled, step_size=0.4, num_steps=3)
        mcmc = run(Gibbs([(hmc, "scale"), (kernel, "v")]))
        assert worst(mcmc, coupled) < Z_LIMIT
        assert 0.05 < mcmc.diagnostics()["v.accept_prob"]["chain 0"].mean() < 0.999

    def test_block_gibbs_notices_a_coupling_that_comes_later(self) -> None:
        """At the start the bits are not coupled, afterwards they are."""

        def model() -> None:
            strength = pyro.sample("strength", dist.Normal(double(0.0).squeeze(), 1.0))
            v = pyro.sample("v", PRIOR)
            pyro.factor("f", strength.clamp(min=0.0) * v[..., 0] * v[..., 1])

        start = {"strength": double(-1.0).squeeze()}
        later = Gibbs(
            [
                (lambda v: {"strength": v["strength"] + 3.0}, ["strength"]),
                (BlockGibbs(model), ["v"]),
            ]
        )
        with pytest.raises(ValueError, match=r"not linear in the states of site 'v'.*Metropolis"):
            run(later, initial_params=start)

    def test_noise_that_hid_its_square_at_first(self) -> None:
        """With a wide scale the log-density is as good as linear in real numbers, later it is not."""

        def model() -> None:
            scale = pyro.sample("scale", dist.HalfCauchy(100.0))
            v = pyro.sample("v", PRIOR.to(torch.float32))
            pyro.sample("x", dist.Normal(v, scale).to_event(1), obs=SEEN.float())

        kernel = Gibbs(
            [(lambda v: {"scale": v["scale"] / 2}, ["scale"]), (BlockGibbs(model), ["v"])]
        )
        start = {"scale": torch.tensor(1000.0)}
        assert run(kernel, num_samples=10, warmup_steps=0, initial_params=start).get_samples()


NUM_ROWS = 6


def components() -> tuple[RBM, RBM]:
    """Two machines with their log Z."""
    rbm = PRIOR
    other = RBM(units.Bernoulli(-rbm.visible.natural_bias), rbm.hidden, -rbm.weight)
    first, second = (r.normalize(exact_log_partition(r)) for r in (rbm, other))
    return first, second


def mixture(x: Tensor) -> None:
    """Rows from two machines with unknown weights."""
    first, second = components()
    bias = torch.stack([first.visible.natural_bias, second.visible.natural_bias])
    weight = torch.stack([first.weight, second.weight])
    assert first.log_partition is not None and second.log_partition is not None
    log_partition = torch.stack([first.log_partition, second.log_partition])
    weights = pyro.sample("weights", dist.Dirichlet(double(1.5, 1.0)))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        component = RBM(
            units.Bernoulli(bias[z]), first.hidden, weight[z], log_partition=log_partition[z]
        )
        pyro.sample("x", component, obs=x)


class TestMixtureOfMachines:
    """Weights and assignments, against quadrature over the weight."""

    @staticmethod
    def data() -> Tensor:
        first, second = components()
        return torch.cat([first.sample((NUM_ROWS - 2,)), second.sample((2,))])

    @staticmethod
    def exact(x: Tensor) -> tuple[Tensor, Tensor]:
        """Means of the first weight and of the assignments."""
        first, second = components()
        # Roots of the grid end at 0 and 1, where the density is small but singular in its slope.
        w = torch.linspace(0.0, 1.0, 20_002, dtype=torch.float64)[1:-1, None]
        likelihood = w * first.log_prob(x).exp(), (1.0 - w) * second.log_prob(x).exp()
        total = likelihood[0] + likelihood[1]
        p = w[:, 0].sqrt() * total.prod(-1)
        p = p / p.sum()
        return p @ w[:, 0], p @ (likelihood[1] / total)

    def test_against_quadrature(self) -> None:
        x = self.data()
        kernel = Gibbs([(DiscreteGibbs(mixture), ["z"]), (NUTS(mixture), None)])
        samples = run(kernel, x).get_samples()
        weight, assignment = self.exact(x)
        assert samples["z"].shape == (300, NUM_ROWS) and samples["weights"].shape == (300, 2)
        z = standard_errors(samples["z"], assignment)
        z_weight = standard_errors(samples["weights"][:, :1], weight)
        assert torch.cat([z, z_weight]).abs().max() < Z_LIMIT


class TestAdaptation:
    """Step size and mass matrix are tuned while other blocks move."""

    @pytest.mark.parametrize("target", [0.6, 0.9])
    def test_acceptance_is_near_its_target(self, target: float) -> None:
        def model() -> None:
            with pyro.plate("dims", 5):
                y = pyro.sample(
                    "y", dist.Normal(double(0.0).squeeze(), torch.arange(1.0, 6.0).double())
                )
            v = pyro.sample("v", PRIOR)
            pyro.sample("x", dist.Normal(v + y[..., :4], 0.5).to_event(1), obs=SEEN)

        hmc = NUTS(model, step_size=5.0, target_accept_prob=target)
        mcmc = run(
            Gibbs([(BlockGibbs(model), ["v"]), (hmc, None)]), num_samples=120, warmup_steps=150
        )
        numbers = {n: v["chain 0"] for n, v in mcmc.diagnostics().items() if n.startswith("y.")}
        # Pyro's adaptation ends up to 0.15 above the target without other blocks, too.
        assert target - 0.1 < numbers["y.mean accept prob"] < min(target + 0.22, 0.995)
        assert 0.05 < numbers["y.step size"] < 2.0
        # The fifth dimension sees no data: its variance of 25 is in the mass matrix.
        (inverse_mass,) = hmc.mass_matrix_adapter.inverse_mass_matrix.values()
        assert inverse_mass[4] > 3.0 * inverse_mass[:4].max()


def forced() -> None:
    """Bits that are told by the sign, with near certainty."""
    sign = pyro.sample("sign", dist.Normal(0.0, 1.0))
    v = pyro.sample("v", BernoulliRBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2)))
    pyro.factor("f", 50.0 * sign * (v - 0.5).sum(-1))


def forced_rows() -> None:
    sign = pyro.sample("sign", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 3):
        v = pyro.sample("v", dist.Categorical(torch.ones(2)))
        pyro.factor("f", 50.0 * sign * (v - 0.5))


class TestOfTheOthers:
    """Every kernel sees the other sites as they are, whatever they were before."""

    @pytest.mark.parametrize(
        "kernel",
        [
            BlockGibbs(forced),
            MetropolisBlockGibbs(forced),
            GibbsWithGradients(forced, 20),
            DiscreteLangevin(forced, num_steps=20, step_size=10.0, adapt=False),
            DiscreteGibbs(forced_rows),
        ],
        ids=lambda kernel: type(kernel).__name__,
    )
    def test_kernels_follow(self, kernel: Any) -> None:
        gibbs = Gibbs([(lambda v: {"sign": -v["sign"]}, ["sign"]), (kernel, None)])
        gibbs.initial_params = {"sign": torch.tensor(1.0)}
        gibbs.setup(0)
        params = gibbs.initial_params
        for i in range(6):
            params = gibbs.sample(params)
            assert params["sign"] == (-1.0) ** (i + 1)
            assert params["v"].tolist() == [float(params["sign"] > 0)] * 3

    @pytest.mark.parametrize("forget", [True, False], ids=["cleared", "kept"])
    def test_the_potential_is_that_of_the_present_values(
        self, forget: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A small step keeps the energy, so that all are accepted, unless the energy is another's."""

        def model() -> None:
            sign = pyro.sample("sign", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(3.0 * sign, 1.0))

        if not forget:
            monkeypatch.setattr(HMC, "clear_cache", lambda self: None)
        hmc = HMC(model, step_size=1e-3, num_steps=1, adapt_step_size=False)
        gibbs = Gibbs([(lambda v: {"sign": -v["sign"]}, ["sign"]), (hmc, None)])
        gibbs.initial_params = {"sign": torch.tensor(1.0), "y": torch.tensor(-1.0)}
        gibbs.setup(0)
        params = gibbs.initial_params
        for _ in range(20):
            params = gibbs.sample(params)
        accept_prob = gibbs.diagnostics()["y.mean accept prob"]
        assert accept_prob > 0.99 if forget else accept_prob < 0.9

    def test_a_state_from_elsewhere_is_honoured(self) -> None:
        gibbs = Gibbs([(BlockGibbs(forced), ["v"]), (lambda v: {"sign": v["sign"]}, None)])
        gibbs.setup(0)
        for sign in (1.0, -1.0, 1.0):
            given = {"sign": torch.tensor(sign), "v": torch.ones(3)}
            new = gibbs.sample(given)
            assert new["v"].tolist() == [float(sign > 0)] * 3 and new["sign"] == sign
            assert given["v"].tolist() == [1.0] * 3

    def test_a_function_sees_constrained_values_in_the_models_types(self) -> None:
        seen: list[dict[str, Tensor]] = []

        def model() -> None:
            pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample("y", dist.Normal(0.0, 1.0))

        def update(values: dict[str, Tensor]) -> dict[str, Tensor]:
            seen.append(values)
            return {"y": torch.randn(())}

        kernel = Gibbs(
            [
                (HMC(model, step_size=0.1, num_steps=2), ["scale"]),
                (update, ["y"]),
                (DiscreteGibbs(model), ["z"]),
            ]
        )
        samples = run(kernel, num_samples=20, warmup_steps=0).get_samples()
        scales = torch.stack([values["scale"] for values in seen])
        torch.testing.assert_close(scales, samples["scale"])
        assert {values["z"].dtype for values in seen} == {torch.int64}
        assert samples["z"].dtype == torch.float32
