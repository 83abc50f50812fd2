# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Correlated Gaussian units against dense covariance matrices and torch's own distribution."""

import math

import numpy as np
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal

from pyro_ebm.distributions import RBM, CollapsedSweep, GibbsSweep, reduced_machine, units
from pyro_ebm.infer import (
    MALA,
    BlockGibbs,
    estimate_log_partition,
    exact_log_partition,
    exact_moments,
    free_energy_model,
)
from pyro_ebm.infer.mcmc.posterior import rbm_posterior
from pyro_ebm.infer.paths import MachinePath
from tests.distributions.families import random_rbm, random_unit, uniform
from tests.infer.reference import Z_LIMIT, z_scores


def make(n: int = 6, rank: int = 2, batch: tuple[int, ...] = ()) -> units.LowRankGaussian:
    loc, precision = uniform((*batch, n), -1, 1), uniform((*batch, n), 0.5, 3.0)
    return units.LowRankGaussian(loc, precision, uniform((*batch, n, rank), -1.5, 1.5))


def covariance(unit: units.LowRankGaussian) -> Tensor:
    factor = unit.cov_factor
    return unit.precision.reciprocal().diag_embed() + factor @ factor.mT


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 6, 9])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_every_number_against_dense_matrices(rank, batch):
    unit = make(rank=rank, batch=batch)
    sigma = covariance(unit)
    precision = torch.linalg.inv(sigma)
    law = MultivariateNormal(unit.loc, sigma)
    x, t = uniform((4, *batch, 6), -2, 2), uniform((4, *batch, 6), -2, 2)

    def times(matrix: Tensor, vector: Tensor) -> Tensor:
        return (matrix @ vector.unsqueeze(-1)).squeeze(-1)

    close(unit.natural_bias, times(precision, unit.loc))
    volume = 0.5 * (6 * math.log(2 * math.pi) + torch.logdet(sigma))
    close(-unit.energy(x) - volume, law.log_prob(x))
    close(unit.log_partition(), volume)
    close(unit.energy_constant, 0.5 * (unit.loc * times(precision, unit.loc)).sum(-1))
    close(unit.mean(t), unit.loc + times(sigma, t))
    theta = times(precision, unit.loc) + t
    gamma = 0.5 * (theta * times(sigma, theta)).sum(-1) + volume
    close(unit.natural_log_partition(theta), gamma)
    close(unit.log_partition(t), gamma - unit.energy_constant)
    weight = uniform((6, 3), -1, 1)
    root = unit.covariance_root(weight)
    assert root.shape == (*batch, 6 + rank, 3)
    close(root.mT @ root, weight.mT @ sigma @ weight)


def test_one_column_of_zeros_is_the_gaussian_family():
    plain = random_unit("gaussian")
    unit = units.LowRankGaussian(plain.loc, plain.precision, torch.zeros(2, 1).double())
    x = uniform((5, 2), -2, 2)
    for method in ("energy", "log_partition", "mean", "natural_log_partition", "natural_mean"):
        close(getattr(unit, method)(x), getattr(plain, method)(x))
    close(unit.natural_bias, plain.natural_bias)


def test_conditional_is_torch_low_rank_normal():
    unit = make(batch=(3,))
    t = uniform((4, 3, 6), -1, 1)
    law = unit.conditional(t)
    assert law.batch_shape == (4, 3) and law.event_shape == (6,)
    close(law.mean, unit.mean(t))
    reference = LowRankMultivariateNormal(unit.mean(t), unit.cov_factor, 1 / unit.precision)
    x = uniform((4, 3, 6), -2, 2)
    close(law.log_prob(x), reference.log_prob(x))
    expected = -unit.energy(x) + (x * t).sum(-1) - unit.log_partition(t)
    close(law.log_prob(x), expected)
    scalar = units.LowRankGaussian(torch.zeros(3), 2.0, torch.ones(3, 1))
    assert scalar.conditional(torch.zeros(5, 3)).covariance_matrix.shape == (5, 3, 3)


def test_samples_have_the_covariance_of_every_element_of_a_batch():
    unit, count = make(4, 2, (2,)), 50_000
    # The natural parameter has no batch axis: draws must differ between the elements all the same.
    theta = uniform((4,), -1, 1).expand(count, 1, 4)
    draws = unit.natural_sample(theta, torch.Generator().manual_seed(0))
    assert draws.shape == (count, 2, 4)
    mean = unit.natural_mean(theta[0])
    deviation = draws - mean
    for k in range(2):
        assert z_scores(draws[:, k], mean[k]).abs().max() < Z_LIMIT
        pairs = (deviation[:, k, :, None] * deviation[:, k, None, :]).flatten(1)
        assert z_scores(pairs, covariance(unit)[k].flatten()).abs().max() < Z_LIMIT
    both = (deviation[:, 0, :, None] * deviation[:, 1, None, :]).flatten(1)
    assert z_scores(both, torch.zeros(16).double()).abs().max() < Z_LIMIT


def test_parameters_that_are_shared_or_of_another_batch():
    factor = uniform((4, 2), -1, 1)
    unit = units.LowRankGaussian(uniform((3, 1, 4), -1, 1), uniform((2, 4), 0.5, 2.0), factor)
    assert unit.batch_shape == (3, 2) and unit.size == 4 and unit.num_units == 1 and unit.rank == 2
    scalar = units.LowRankGaussian(uniform((4,), -1, 1), 2.0, factor)
    full = scalar.map_whole(lambda p, dim: p.clone())
    assert scalar.precision.dim() == 0 and full.precision.shape == (4,)
    x = uniform((5, 4), -1, 1)
    for method in ("energy", "log_partition", "mean", "natural_log_partition"):
        close(getattr(scalar, method)(x), getattr(full, method)(x))
    close(scalar.log_partition(), full.log_partition())


def test_a_mean_that_all_entries_share():
    factor, precision = uniform((4, 2), -1, 1), uniform((4,), 0.5, 2.0)
    full = units.LowRankGaussian(torch.full((4,), 0.3, dtype=torch.float64), precision, factor)
    x = uniform((5, 4), -1, 1)
    number = torch.tensor(0.3, dtype=torch.float64)
    for loc in (0.3, number, number.unsqueeze(0)):
        unit = units.LowRankGaussian(loc, precision, factor)
        assert unit.loc.shape == (4,) and unit.dtype == torch.float64
        close(unit.natural_bias, full.natural_bias)
        close(unit.energy_constant, full.energy_constant)
        for method in ("energy", "log_partition", "mean"):
            close(getattr(unit, method)(x), getattr(full, method)(x))
    batch = units.LowRankGaussian(uniform((3, 1), -1, 1), precision, factor)
    assert batch.natural_bias.shape == (3, 4) and batch.mean().shape == (3, 4)


class TestFloat32:
    """Images with a large precision: terms of the energy are thousands of times what they leave."""

    @pytest.fixture(params=[1e3, 1e6], ids="P={:.0e}".format)
    def unit(self, request):
        generator = torch.Generator().manual_seed(0)
        loc = torch.rand(784, generator=generator)
        factor = 0.5 * torch.randn(784, 4, generator=generator)
        return units.LowRankGaussian(loc, torch.full((784,), request.param), factor)

    @staticmethod
    def near(got: Tensor, exact: Tensor, limit: float) -> None:
        assert got.dtype == torch.float32
        assert float((got.double() - exact).abs().max()) < limit

    def test_energies_and_means(self, unit):
        exact, precision = unit.map(torch.Tensor.double), float(unit.precision[0])
        generator = torch.Generator().manual_seed(1)
        x = exact.sample(torch.zeros(20, 784).double(), generator).float()
        # Rounding x itself moves P^(1/2) (x - m), of order one.
        self.near(unit.energy(x), exact.energy(x.double()), 1e-4 * (1 + 0.1 * precision**0.5))
        constant = exact.energy_constant
        self.near(unit.energy_constant, constant, 1e-6 * float(constant))
        bias = exact.natural_bias
        self.near(unit.natural_bias, bias, 1e-7 * float(bias.abs().max()))
        if precision == 1e3:  # what the rounding of the natural parameter leaves
            self.near(unit.natural_mean(unit.natural_bias), exact.mean(), 4e-3)
        t = 0.01 * torch.randn(20, 784, generator=generator)
        for field in (None, t):
            mean = exact.mean(None if field is None else t.double())
            self.near(unit.mean(field), mean, 1e-5)
            self.near(unit.conditional(field).mean, mean, 1e-5)
        volume = exact.log_partition()
        self.near(unit.log_partition(), volume, 1e-6 * float(volume.abs()))

    def test_gradients_of_energies(self, unit):
        x = unit.map(torch.Tensor.double).sample(torch.zeros(8, 784).double()).float()
        got = unit.mean_parameters_gradient(x)
        expected = unit.map(torch.Tensor.double).mean_parameters_gradient(x.double())
        for name, exact in expected.items():
            self.near(got[name], exact, 2e-3 * float(exact.abs().max()))

    def test_draws(self, unit):
        states = []
        for one in (unit, unit.map(torch.Tensor.double)):
            # The same normal numbers, in another type.
            def normal(self, generator=None):
                numbers = torch.randn(self.shape, generator=torch.Generator().manual_seed(2))
                return self.copy_(numbers)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Tensor, "normal_", normal)
                states.append(one.sample(torch.zeros(5, 784, dtype=one.dtype)))
        self.near(states[0], states[1], 1e-5)
        assert unit.sample().shape == (784,)

    @pytest.mark.parametrize("centred", [False, True])
    def test_the_chain_and_the_machine_without_the_layer(self, unit, centred):
        generator = torch.Generator().manual_seed(3)
        weight = 0.02 * torch.randn(784, 6, generator=generator)
        offset = torch.rand(6, generator=generator) if centred else None
        hidden = units.Ising(torch.zeros(6))
        rbm = RBM(unit, hidden, weight, visible_offset=unit.loc, hidden_offset=offset)
        exact = rbm.to(dtype=torch.float64)
        chain, reference = CollapsedSweep(rbm), CollapsedSweep(exact)
        self.near(chain._bias, reference._bias, 1e-5)
        self.near(chain.coupling, reference.coupling, 1e-5)
        h = hidden.states(0, 64)
        reduced = reduced_machine(rbm).free_energy(h)
        error = reduced.double() - reduced_machine(exact).free_energy(h.double())
        # Differences of states; the constant is thousands, with the rounding of that.
        assert float(error.max() - error.min()) < 1e-3


def test_float64_fields_of_float32_units_are_not_rounded():
    exact = make()
    unit = exact.map(torch.Tensor.float)
    theta = uniform((6,), -1, 1)
    again = unit.map(torch.Tensor.double)
    assert unit.natural_log_partition(theta).dtype == torch.float64
    torch.testing.assert_close(
        unit.natural_log_partition(theta), again.natural_log_partition(theta), rtol=1e-6, atol=1e-6
    )
    assert unit.energy(theta).dtype == torch.float64


def test_gradients_reach_every_parameter():
    unit = make()
    x, t = uniform((5, 6), -1, 1), uniform((5, 6), -1, 1)
    leaves = [p.requires_grad_() for p in unit.parameters.values()]
    dense = MultivariateNormal(unit.loc, covariance(unit))
    ours = unit.energy(x).sum() + unit.log_partition().sum()
    got = torch.autograd.grad(ours, leaves)
    expected = torch.autograd.grad(
        -dense.log_prob(x).sum() + (1 - len(x)) * 0.5 * torch.logdet(covariance(unit)), leaves
    )
    for one, other in zip(got, expected, strict=True):
        close(one, other)
    assert set(unit.log_partition_gradient(t)) == {"loc", "precision", "cov_factor"}


def test_interpolation_needs_one_covariance():
    unit = make()
    base = unit.from_mean(uniform((6,), -1, 1))
    close(unit.interpolate(base, 0.25).loc, 0.75 * base.loc + 0.25 * unit.loc)
    # Copies of the same numbers are the same.
    copy = base.map(torch.clone)
    close(unit.interpolate(copy, 0.25).loc, 0.75 * base.loc + 0.25 * unit.loc)
    assert unit.neutral().interpolate(unit, 0.5).loc.shape == (6,)
    for name in ("precision", "cov_factor"):
        other = unit.replace(**{name: 1.1 * getattr(unit, name)})
        with pytest.raises(ValueError, match=f"differ in {name}, and a mixture of two covariances"):
            unit.interpolate(other, 0.5)
    with pytest.raises(ValueError, match="differ in cov_factor"):
        unit.interpolate(unit.replace(cov_factor=torch.ones(6, 1).double()), 0.5)


def machines(*units_: units.Unit) -> list[RBM]:
    return [
        RBM(unit, units.Ising(torch.zeros(3).double()), torch.ones(6, 3).double() * 0.1 * (k + 1))
        for k, unit in enumerate(units_)
    ]


def test_paths_through_machines_need_one_covariance():
    unit = make()
    path = MachinePath(machines(unit.neutral(), unit))
    close(path.machine(0.5).visible.loc, 0.5 * unit.loc)
    other = unit.replace(precision=2 * unit.precision)
    with pytest.raises(ValueError, match="differ in precision"):
        MachinePath(machines(other, unit)).machine(0.5)
    with pytest.raises(ValueError, match="machine 1 of the path differs"):
        MachinePath(machines(make(rank=3), unit))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.ones(3), torch.ones(3)), r"cov_factor must be .* got shape \(3,\)"),
        ((torch.zeros(3), torch.ones(3), torch.ones(3, 0)), r"r >= 1, got shape \(3, 0\)"),
        ((torch.zeros(3), torch.ones(3), 1.0), "cov_factor must be a tensor .* got float"),
        ((torch.zeros(3), torch.ones(3), torch.ones(2, 1)), r"cov_factor \(2, 1\)"),
        ((torch.zeros(3), torch.ones(3), torch.ones(1, 2)), "a row for each of the 3 entries"),
        ((torch.zeros(3), -torch.ones(3), torch.ones(3, 1)), "precision must be GreaterThan"),
        ((torch.full((3,), torch.nan), torch.ones(3), torch.ones(3, 1)), "loc must be .*nan"),
        (
            (torch.zeros(3), torch.ones(3), torch.full((3, 1), torch.nan)),
            "cov_factor must be .*nan",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        units.LowRankGaussian(*arguments)


def test_the_layer_is_clamped_as_a_whole():
    rbm = random_rbm(("low_rank", "ising"))
    with pytest.raises(ValueError, match="all or none of a LowRankGaussian"):
        rbm.clamp(torch.tensor([True, False]), torch.zeros(2))


def big_machine(batch: tuple[int, ...] = ()) -> RBM:
    """Nine correlated numbers and four spins: a sum over 16 states is log Z."""
    visible = make(9, 2, batch)
    weight = uniform((*batch, 9, 4), -0.4, 0.4)
    return RBM(visible, units.Ising(uniform((4,), -0.5, 0.5)), weight, visible_offset=visible.loc)


def closed_form(rbm: RBM) -> Tensor:
    """log Z of ``u = (v - m)' Sigma^-1 (v - m) / 2`` and the offset m, state by state of h."""
    states = rbm.hidden.states(0, 16)
    pull = states @ rbm.weight.mT
    quadratic = (pull.unsqueeze(-2) @ covariance(rbm.visible) @ pull.unsqueeze(-1)).flatten()
    own = states @ rbm.hidden.bias + 0.5 * quadratic
    volume = 0.5 * (9 * math.log(2 * math.pi) + torch.logdet(covariance(rbm.visible)))
    return own.logsumexp(0) + volume


class TestMachine:
    def test_exact_log_partition(self):
        rbm = big_machine()
        close(exact_log_partition(rbm), closed_form(rbm))

    def test_two_correlated_layers(self):
        visible, hidden = make(3, 2), make(4, 1)
        rbm = RBM(visible, hidden, uniform((3, 4), -0.04, 0.04))
        rbm.check_normalizable()
        p, g = (torch.linalg.inv(covariance(u)) for u in (visible, hidden))
        joint = torch.cat([torch.cat([p, -rbm.weight], 1), torch.cat([-rbm.weight.mT, g], 1)])
        bias = torch.cat([visible.natural_bias, hidden.natural_bias])
        sigma = torch.linalg.inv(joint)
        expected = 0.5 * (bias @ sigma @ bias + 7 * math.log(2 * math.pi) + torch.logdet(sigma))
        expected = expected - visible.energy_constant - hidden.energy_constant
        close(exact_log_partition(rbm), expected)
        close(exact_moments(rbm).covariance, sigma[:3, :3])

    def test_the_precision_of_uncorrelated_layers_is_their_parameter(self, monkeypatch):
        # A dense root and its inverse would cost V^3.
        rbm = random_rbm(("gaussian", "gaussian"))
        shared = units.Gaussian(rbm.visible.loc, torch.tensor(2.0).double())
        rbm = RBM(shared, rbm.hidden, 0.3 * rbm.weight)
        factor = torch.zeros(shared.size, 1).double()
        correlated = RBM(
            units.LowRankGaussian(shared.loc, shared.precision, factor), rbm.hidden, rbm.weight
        )
        expected = exact_log_partition(correlated)
        rbm.check_normalizable()
        monkeypatch.setattr(rbm, "check_normalizable", lambda: None)
        monkeypatch.setattr(units.Gaussian, "covariance_root", None)
        close(exact_log_partition(rbm), expected)

    def test_normalisable_exactly_when_the_joint_precision_is_definite(self):
        visible, hidden = make(3, 2), make(4, 1)
        weight = uniform((3, 4), -1, 1)
        p, g = (torch.linalg.inv(covariance(u)) for u in (visible, hidden))
        answers = []
        for scale in np.linspace(0.02, 1.2, 60):
            w = scale * weight
            joint = torch.cat([torch.cat([p, -w], 1), torch.cat([-w.mT, g], 1)])
            definite = bool(torch.linalg.eigvalsh(joint)[0] > 0)
            try:
                RBM(visible, hidden, w).check_normalizable()
            except ValueError as error:
                assert "LowRankGaussian-LowRankGaussian machine is not normalisable" in str(error)
                answers.append(False)
            else:
                answers.append(True)
            assert answers[-1] == definite
        assert 5 < sum(answers) < 55

    def test_rectified_units_may_be_pulled_apart(self):
        # The cone is worth something beside correlated units, too.
        visible = units.LowRankGaussian(torch.zeros(2), torch.ones(2), 0.1 * torch.ones(2, 1))
        hidden = units.ReLU(torch.zeros(2), torch.ones(2))
        weight = torch.tensor([[0.9, -0.9], [0.0, 0.0]])
        RBM(visible, hidden, weight).check_normalizable()
        with pytest.raises(ValueError, match="not normalisable"):
            RBM(visible, hidden, weight.abs()).check_normalizable()

    def test_samples_follow_the_exact_moments(self):
        rbm = big_machine()
        moments = exact_moments(rbm)
        draws = rbm.sample((40_000,), generator=torch.Generator().manual_seed(1))
        assert z_scores(draws, moments.visible).abs().max() < Z_LIMIT
        pairs = (draws[:, :, None] * draws[:, None, :]).flatten(1)
        assert z_scores(pairs, moments.visible_visible.flatten()).abs().max() < Z_LIMIT

    @pytest.mark.parametrize("collapse", [True, False])
    def test_block_gibbs_keeps_the_law(self, collapse):
        rbm = big_machine()
        sweep = GibbsSweep(rbm, torch.Generator().manual_seed(2))
        draws = sweep.run(rbm.sample((40_000,)), 4, collapse=collapse)
        assert z_scores(draws, exact_moments(rbm).visible).abs().max() < Z_LIMIT
        second = exact_moments(rbm).visible_visible.flatten()
        pairs = (draws[:, :, None] * draws[:, None, :]).flatten(1)
        assert z_scores(pairs, second).abs().max() < Z_LIMIT
        BlockGibbs(rbm, collapse=collapse)

    @pytest.mark.parametrize("batch", [(), (3,)], ids=str)
    def test_the_collapsed_chain_is_made_of_dense_matrices(self, batch):
        rbm = big_machine(batch)
        chain, sigma = CollapsedSweep(rbm), covariance(rbm.visible)
        coupling = rbm.weight.mT @ sigma @ rbm.weight
        close(chain.coupling, coupling)
        close(chain.noise_factor.mT @ chain.noise_factor, coupling)
        assert chain.noise_factor.shape == (*batch, 4, 4)
        form = rbm.canonical()
        pull = (rbm.weight.mT @ sigma @ form.visible_bias.unsqueeze(-1)).squeeze(-1)
        close(chain._bias, form.hidden_bias + pull)

    def test_annealing(self):
        rbm = big_machine()
        for method in ("ais", "reverse-ais"):
            estimate = estimate_log_partition(
                rbm, method, num_chains=1000, num_temperatures=30, seed=0
            )
            error = (estimate.value - closed_form(rbm)).abs()
            assert error < Z_LIMIT * estimate.std_error + 1e-3
        mean = rbm.visible.loc + 0.3
        estimate = estimate_log_partition(
            rbm, base=mean, num_chains=1000, num_temperatures=30, seed=0
        )
        assert (estimate.value - closed_form(rbm)).abs() < Z_LIMIT * estimate.std_error + 1e-3
        with pytest.raises(ValueError, match="impossible for unbounded LowRankGaussian"):
            estimate_log_partition(rbm, base="uniform")

    def test_a_path_given_must_have_the_covariance_of_the_machine(self):
        unit = make()
        start, end = machines(unit.neutral(), unit)
        start = RBM(start.visible, start.hidden, 0 * start.weight)
        path = MachinePath([start, end])
        assert estimate_log_partition(
            end, path=path, num_chains=50, num_temperatures=50, seed=0
        ).value.isfinite()
        other = RBM(unit.replace(cov_factor=unit.cov_factor + 0.1), end.hidden, end.weight)
        other = other.tilt(end.canonical().visible_bias - other.canonical().visible_bias)
        with pytest.raises(ValueError, match="another machine"):
            estimate_log_partition(other, path=path, num_chains=50, num_temperatures=50, seed=0)

    def test_nuts_takes_them_and_langevin_kernels_say_that_they_do_not(self):
        rbm = random_rbm(("low_rank", "ising"))
        mcmc = MCMC(NUTS(free_energy_model(rbm)), 3, 3, disable_progbar=True)
        mcmc.run()
        assert mcmc.get_samples()["v"].shape == (3, 2)
        with pytest.raises(ValueError, match="Gaussian visible units, got LowRankGaussian"):
            MALA(rbm)
        with pytest.raises(ValueError, match="needs discrete visible units"):
            import pyro

            rbm_posterior(lambda: pyro.sample("v", rbm))
