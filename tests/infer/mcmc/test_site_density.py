# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""The rest of a model as a function of one site, against its log-density written out."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.infer.mcmc.site_density import SiteDensity

Model = Callable[[], Any]


def machine(num_visible: int = 4) -> RBM:
    weight = torch.randn(num_visible, 3, dtype=torch.float64)
    return BernoulliRBM(weight, weight[:, 0].clone(), weight[0].clone())


RBM_4 = machine()
DATA = torch.linspace(-1.0, 2.0, 20, dtype=torch.float64).reshape(5, 4)


def states(*shape: int) -> Tensor:
    return torch.bernoulli(torch.full((*shape, 4), 0.5, dtype=torch.float64))


def noisy(scale: float = 0.7) -> None:
    """Rows in a plate, seen through noise, with sites above and below that have no rows."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3).double())
    with pyro.plate("rows", 5):
        v = pyro.sample("v", RBM_4)
    spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0), obs=torch.tensor(scale).double())
    with pyro.plate("again", 5):
        pyro.sample("x", dist.Normal(v + shift, spread).to_event(1), obs=DATA)


def noise(v: Tensor, scale: float = 0.7) -> Tensor:
    return dist.Normal(v + 0.3, scale).log_prob(DATA).sum(-1)


class TestLogDensity:
    @pytest.mark.parametrize("chains", [(), (1,), (7,), (2, 3)], ids=str)
    def test_rows_and_chains(self, chains: tuple[int, ...]) -> None:
        density = SiteDensity(noisy)
        assert density.name == "v" and density.rows == (5,)
        v = states(*chains, 5)
        got = density.log_density(v)
        torch.testing.assert_close(got, noise(v), atol=1e-5, rtol=1e-5)
        assert got.dtype == torch.float64 and density.runs_chains == (
            len(chains) > 0 and chains != (1,)
        )

    def test_arguments(self) -> None:
        v = states(5)
        for density in (SiteDensity(noisy, "v", (0.2,)), SiteDensity(noisy, kwargs={"scale": 0.2})):
            torch.testing.assert_close(density.log_density(v), noise(v, 0.2), atol=1e-4, rtol=1e-5)

    def test_values_that_the_model_is_conditioned_on_may_change(self) -> None:
        def model() -> None:
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            v = pyro.sample("v", RBM_4)
            pyro.sample("x", dist.Normal(v + shift, 1.0).to_event(1), obs=DATA[0])

        values = {"shift": torch.tensor(0.0)}
        density = SiteDensity(poutine.condition(model, data=values), "v")
        v = states()
        for shift in (0.0, 2.0):
            values["shift"] = torch.tensor(shift)
            expected = dist.Normal(v + shift, 1.0).log_prob(DATA[0]).sum()
            torch.testing.assert_close(density.log_density(v), expected)

    def test_masks_scales_and_factors(self) -> None:
        mask = torch.tensor([True, False, True, True, False])

        def model() -> None:
            with pyro.plate("rows", 5):
                v = pyro.sample("v", RBM_4)
                with poutine.mask(mask=mask), poutine.scale(scale=3.0):
                    pyro.sample("x", dist.Normal(v, 1.0).to_event(1), obs=DATA)
                pyro.factor("pair", v[..., 0] * v[..., 1])
                pyro.deterministic("sum", v.sum(-1))

        v = states(3, 5)
        x = dist.Normal(v, 1.0).log_prob(DATA).sum(-1)
        expected = torch.where(mask, 3.0 * x, 0.0) + v[..., 0] * v[..., 1]
        density = SiteDensity(model)
        torch.testing.assert_close(density.log_density(v), expected)
        assert density.runs_chains

    def test_several_observations_of_a_row_are_summed(self) -> None:
        def model() -> None:
            with pyro.plate("rows", 5, dim=-1):
                v = pyro.sample("v", RBM_4)
                with pyro.plate("repeats", 6, dim=-2):
                    pyro.sample("x", dist.Normal(v.sum(-1), 1.0), obs=torch.arange(6.0)[:, None])

        v = states(2, 5)
        expected = dist.Normal(v.sum(-1, keepdim=True), 1.0).log_prob(torch.arange(6.0)).sum(-1)
        torch.testing.assert_close(SiteDensity(model).log_density(v), expected)

    @pytest.mark.parametrize("kind", ["scale", "mask", "off"])
    def test_what_changes_the_sites_own_density_belongs_to_the_rest(self, kind: str) -> None:
        mask = torch.tensor([True, False, True, True, False])
        handler = {
            "scale": poutine.scale(scale=2.0),
            "mask": poutine.mask(mask=mask),
            "off": poutine.mask(mask=False),
        }[kind]

        def model() -> None:
            with pyro.plate("rows", 5):
                with handler:
                    v = pyro.sample("v", RBM_4)
                pyro.factor("sum", v.sum(-1))

        density = SiteDensity(model)
        v = states(3, 5)
        prior = -RBM_4.free_energy(v)
        kept = {"scale": 2.0 * prior, "mask": torch.where(mask, prior, 0.0), "off": 0.0 * prior}[
            kind
        ]
        torch.testing.assert_close(density.log_joint(v), kept + v.sum(-1))
        torch.testing.assert_close(density.log_density(v), kept - prior + v.sum(-1))

    def test_own_density(self) -> None:
        def model() -> None:
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            pyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=torch.tensor(1.5))

        z = torch.arange(3)
        expected = torch.tensor([0.2, 0.5, 0.3]).log() + dist.Normal(1.0 * z, 1.0).log_prob(
            torch.tensor(1.5)
        )
        torch.testing.assert_close(SiteDensity(model).log_joint(z), expected.double())

    @pytest.mark.parametrize("mixes", [False, True], ids=["first_axis", "all_axes"])
    def test_models_that_know_no_further_axis_are_run_chain_by_chain(self, mixes: bool) -> None:
        """One raises with chains on the left, the other would silently sum over them."""

        def model() -> None:
            v = pyro.sample("v", RBM_4)
            value = v.sum().cos() if mixes else v[0] * v[3]
            pyro.factor("f", value)

        density = SiteDensity(model)
        v = states(9)
        expected = v.sum(-1).cos() if mixes else v[:, 0] * v[:, 3]
        torch.testing.assert_close(density.log_density(v), expected)
        assert not density.runs_chains


class TestDerivatives:
    def test_gradient(self) -> None:
        density = SiteDensity(noisy)
        for shape in ((5,), (7, 5)):
            v = states(*shape)
            value, gradient = density.value_and_gradient(v)
            torch.testing.assert_close(value, density.log_density(v))
            expected = (DATA - v - 0.3) / 0.7**2
            torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)
            assert not value.requires_grad and not gradient.requires_grad

    def test_second_order(self) -> None:
        def model() -> None:
            with pyro.plate("rows", 5):
                v = pyro.sample("v", RBM_4)
                pyro.factor("f", (v.pow(3) + v[..., :1] * v).sum(-1))

        v = torch.randn(2, 5, 4, dtype=torch.float64)
        value, gradient, second = SiteDensity(model).second_order(v)
        torch.testing.assert_close(value, (v.pow(3) + v[..., :1] * v).sum(-1))
        expected = 3.0 * v.square() + v[..., :1]
        expected[..., 0] += v.sum(-1)
        torch.testing.assert_close(gradient, expected)
        rows = 6.0 * v + 1.0
        rows[..., 0] += 4.0
        torch.testing.assert_close(second, rows)

    def test_zero_where_there_is_none(self) -> None:
        def model() -> None:
            v = pyro.sample("v", RBM_4)
            pyro.factor("f", (v > 0.5).double().sum(-1))

        density = SiteDensity(model)
        v = states(3)
        for tensor in (density.value_and_gradient(v)[1], *density.second_order(v)[1:]):
            assert torch.equal(tensor, torch.zeros_like(v))

    def test_own_density_of_a_wrapped_machine(self) -> None:
        mask = torch.tensor([True, False, True])
        learnable = BernoulliRBM(
            RBM_4.weight.clone().requires_grad_(), RBM_4.visible.bias, RBM_4.hidden.bias
        )

        def model() -> None:
            v = pyro.sample("v", learnable.expand([3]).mask(mask).to_event(1))
            pyro.factor("sum", v.sum())

        v = states(2, 3)
        value, gradient = SiteDensity(model).value_and_gradient(v, own=True)
        leaf = v.clone().requires_grad_()
        expected = torch.where(mask, -RBM_4.free_energy(leaf), 0.0).sum(-1) + leaf.sum((-1, -2))
        torch.testing.assert_close(value, expected.detach())
        (exact,) = torch.autograd.grad(expected.sum(), leaf)
        torch.testing.assert_close(gradient, exact)

    def test_parameters_of_the_machine_may_want_gradients(self) -> None:
        rbm = BernoulliRBM(torch.ones(4, 2).requires_grad_(), torch.zeros(4), torch.zeros(2))

        def model() -> None:
            with poutine.scale(scale=2.0):
                v = pyro.sample("v", rbm)
            pyro.factor("f", v.sum(-1))

        value, gradient = SiteDensity(model).value_and_gradient(torch.ones(4))
        assert not value.requires_grad and gradient.shape == (4,)


def roll() -> None:
    with pyro.plate("rows", 5):
        v = pyro.sample("v", RBM_4)
        pyro.factor("f", v.roll(1, 0).sum(-1))


def total() -> None:
    with pyro.plate("rows", 5):
        v = pyro.sample("v", RBM_4)
    pyro.factor("f", v.sum())


def subsample() -> None:
    with pyro.plate("rows", 5, subsample_size=2):
        pyro.sample("v", RBM_4)


def two() -> None:
    pyro.sample("v", RBM_4)
    pyro.sample("w", RBM_4)


def components(normalised: bool) -> Model:
    rbm = RBM_4
    weight = torch.stack([rbm.weight, -rbm.weight])

    def model() -> None:
        with pyro.plate("rows", 5):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            x = RBM(rbm.visible, rbm.hidden, weight[z])
            if normalised:
                x = x.normalize(exact_log_partition(x))
            pyro.sample("x", x, obs=torch.ones(4).double())

    return model


class TestRefusals:
    @pytest.mark.parametrize(
        ("model", "site", "message"),
        [
            (two, None, r"one latent site is needed; the latent sites are \['v', 'w'\]"),
            (two, "v", r"the sites beside 'v' must be .*\['w'\] are latent"),
            (two, "u", r"no site 'u'; its latent sites are \['v', 'w'\]"),
            (total, "v", r"site 'f' of shape \(\) mixes rows .* batch shape is \(5,\)"),
            (roll, "v", "the rest of the model mixes rows of site 'v'"),
            (subsample, "v", "plate 'rows' takes a random subsample"),
            (components(False), "z", "the machine at site 'x' depend on site 'z'.*normalize"),
        ],
        ids=["two", "beside", "unknown", "total", "roll", "subsample", "log_z"],
    )
    def test_model(self, model: Model, site: str | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SiteDensity(model, site)

    @pytest.mark.parametrize("wrap", ["to_event", "mask", "expand"])
    def test_wrapped_machines_need_their_log_z(self, wrap: str) -> None:
        def model() -> None:
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.5).double()))
            fn: Any = BernoulliRBM((1 + b) * RBM_4.weight, DATA[0], RBM_4.hidden.bias)
            if wrap == "to_event":
                fn = fn.expand([3]).to_event(1)
            elif wrap == "mask":
                fn = fn.mask(torch.tensor(True))
            else:
                fn = fn.mask(torch.tensor(True)).expand([1]).to_event(1)
            pyro.sample("v", fn, obs=torch.ones(*fn.batch_shape, *fn.event_shape).double())

        with pytest.raises(ValueError, match="machine at site 'v' depend on site 'b'"):
            SiteDensity(model, "b")

    def test_a_machine_with_its_log_z_is_fine(self) -> None:
        density = SiteDensity(components(True))
        z = torch.tensor([0, 1, 0, 1, 1])
        rbm = RBM_4
        v = torch.ones(4).double()
        expected = []
        for sign in (1.0, -1.0):
            component = RBM(rbm.visible, rbm.hidden, sign * rbm.weight)
            expected.append(component.normalize(exact_log_partition(component)).log_prob(v))
        torch.testing.assert_close(density.log_density(z), torch.stack(expected)[z])

    def test_shape_of_a_value(self) -> None:
        with pytest.raises(ValueError, match=r"'v' must have shape \(\.\.\., 5, 4\), got \(4,\)"):
            SiteDensity(noisy).log_density(torch.zeros(4))


@pytest.mark.parametrize("handler", [True, False], ids=["poutine.mask", ".mask()"])
def test_which_machine_counts_depends_on_the_site(handler: bool) -> None:
    """A mixture by masks: log Z of the component that counts is a part of its weight."""
    machines = [
        BernoulliRBM(w * torch.ones(3, 2), torch.zeros(3), torch.zeros(2)) for w in (2.0, -2.0)
    ]
    data = torch.ones(4, 3)

    def model(log_z: bool) -> None:
        with pyro.plate("rows", 4):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            for k, machine in enumerate(machines):
                fn = machine.normalize(exact_log_partition(machine)) if log_z else machine
                if handler:
                    with poutine.mask(mask=z == k):
                        pyro.sample(f"v{k}", fn, obs=data)
                else:
                    pyro.sample(f"v{k}", fn.mask(z == k), obs=data)

    with pytest.raises(ValueError, match="mask of the machine at site 'v0' depend on site 'z'"):
        SiteDensity(model, "z", (False,))
    density = SiteDensity(model, "z", (True,))
    difference = density.log_density(torch.ones(4)) - density.log_density(torch.zeros(4))
    expected = [m.log_prob(data[0]) - exact_log_partition(m) for m in machines]
    assert torch.allclose(difference, (expected[1] - expected[0]).double().expand(4), atol=1e-5)
