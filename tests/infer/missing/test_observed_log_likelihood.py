# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Likelihoods of observed entries against sums and quadratures over what is missing."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, BernoulliRBM, GaussianBernoulliRBM, units
from pyro_ebm.infer import LogPartitionWarning, estimate_log_partition, exact_log_partition
from pyro_ebm.infer.missing import annealed as annealed_module
from pyro_ebm.infer.missing import hidden_posterior, observed_log_likelihood, row_chunks
from tests import brute_force
from tests.distributions.families import (
    ALL_PAIRS,
    UNBOUNDED,
    batch_indices,
    flat_tensors,
    random_rbm,
    random_unit,
    to_machine,
    uniform,
)
from tests.infer.missing.reference import log_density, log_likelihood, rows_of
from tests.infer.reference import Z_LIMIT

FINITE_PAIRS = [pair for pair in ALL_PAIRS if not set(pair) <= set(UNBOUNDED)]
COUNT = 4


def rows_for(rbm: RBM, count: int = COUNT) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Rows in front of the batch shape."""
    value, observed = rows_of(rbm, count)
    lift = (count, *(1,) * len(rbm.batch_shape), -1)
    return value.reshape(lift), observed.reshape(lift), lift


class TestExact:
    @pytest.mark.parametrize("pair", FINITE_PAIRS, ids="-".join)
    def test_every_pair(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=FINITE_PAIRS.index(pair) % 4 > 0)
        value, observed = rows_of(rbm, COUNT)
        result = observed_log_likelihood(rbm, value, observed)
        assert result.exact and result.reliable and result.side is None
        assert not result.std_error.any() and result.value.dtype == torch.float64
        machine = to_machine(rbm)
        for row in range(COUNT):
            expected = log_likelihood(machine, value[row].numpy(), observed[row].numpy()).real
            assert abs(result.value[row].item() - expected) < 1e-9
        # Nothing observed, then everything.
        assert result.value[0] == 0.0
        complete = -rbm.free_energy(value[1]) - exact_log_partition(rbm)
        torch.testing.assert_close(result.value[1], complete, atol=1e-9, rtol=1e-9)

    @pytest.mark.parametrize("pair", FINITE_PAIRS[::5], ids="-".join)
    def test_a_setting_of_the_parameters_a_row(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True, batched=True)
        value, observed, _ = rows_for(rbm, 3)
        result = observed_log_likelihood(rbm, value, observed)
        assert result.value.shape == (3, 2, 3)
        for index in batch_indices(rbm.batch_shape):
            machine = to_machine(rbm, index)
            for row in range(3):
                v, o = (x[row].reshape(-1).numpy() for x in (value, observed))
                expected = log_likelihood(machine, v, o).real
                assert abs(result.value[(row, *index)].item() - expected) < 1e-9
        # One row an element of the batch, all with masks of their own.
        matched = observed_log_likelihood(rbm, value[:, 0, 0], observed[:, 0, 0])
        for j in range(3):
            expected = result.value[j, :, j]
            torch.testing.assert_close(matched.value[:, j], expected, atol=1e-12, rtol=1e-12)

    @pytest.mark.parametrize("pair", [("gaussian", "gaussian"), ("gaussian", "low_rank")])
    def test_two_gaussian_layers(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True, num_hidden=1)
        value, observed = rows_of(rbm, COUNT)
        result = observed_log_likelihood(rbm, value, observed)
        assert result.settings["method"] == "enumeration"
        for row in range(COUNT):
            v, o = value[row].numpy(), observed[row].numpy()
            expected = log_likelihood(to_machine(rbm), v, o).real
            assert abs(result.value[row].item() - expected) < 1e-8

    def test_the_formula_of_gaussian_visible_units(self) -> None:
        """The closed form in K_m, written out."""
        loc, precision, c = uniform((5,), -2, 2), uniform((5,), 0.5, 900.0), uniform((3,), -1, 1)
        weight = uniform((5, 3), -1, 1) * precision.sqrt().unsqueeze(-1)
        rbm = RBM(units.Gaussian(loc, precision), units.Ising(c), weight, visible_offset=loc)
        v = loc + uniform((5,), -1, 1)
        o = torch.tensor([True, False, True, False, False])
        h = rbm.hidden.states(0, 8)

        def log_sum(kept: Tensor, bias: Tensor) -> Tensor:
            coupling = (weight[kept] / precision[kept].unsqueeze(-1)).mT @ weight[kept]
            return torch.logsumexp(h @ bias + 0.5 * ((h @ coupling) * h).sum(-1), 0)

        d, p = (v - loc)[o], precision[o]
        expected = -0.5 * (d * p * d).sum() + 0.5 * (p / (2 * math.pi)).log().sum()
        expected = expected + log_sum(~o, c + d @ weight[o]) - log_sum(torch.ones_like(o), c)
        got = observed_log_likelihood(rbm, torch.where(o, v, torch.nan), o).value
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)

    def test_marginals_are_those_of_draws(self) -> None:
        """exp of the likelihoods of all values of the observed bits sum to one."""
        rbm = random_rbm(("bernoulli", "gaussian"), offsets=True)
        o = torch.tensor([True, False, True])
        values = units.Bernoulli(torch.zeros(2, dtype=torch.float64)).states(0, 4)
        rows = torch.full((4, 3), torch.nan, dtype=torch.float64)
        rows[:, o] = values
        total = observed_log_likelihood(rbm, rows, o).value.exp().sum()
        assert abs(total.item() - 1.0) < 1e-12

    @pytest.mark.parametrize("entries", [1, 50, 2**21])
    def test_chunks(self, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
        rbm = random_rbm(("mixed", "ising"), offsets=True, num_hidden=5, batched=True)
        value, observed, _ = rows_for(rbm)
        whole = observed_log_likelihood(rbm, value, observed, 0.0).value
        monkeypatch.setattr(hidden_posterior, "_CHUNK_ENTRIES", entries)
        parts = observed_log_likelihood(rbm, value, observed, 0.0).value
        torch.testing.assert_close(parts, whole, atol=1e-12, rtol=1e-12)

    def test_rows_of_few_missing_units_are_enumerated_by_their_masks(self) -> None:
        rbm = random_rbm(("categorical", "gaussian"), offsets=True)
        value, observed = rows_of(rbm, 4)
        observed = observed.clone()
        observed[0] = observed[1]  # the first row would miss everything
        value[0] = value[1]
        log_z = exact_log_partition(rbm)
        expected = observed_log_likelihood(rbm, value, observed, log_z)
        result = observed_log_likelihood(rbm, value, observed, log_z, max_states=3)
        assert result.exact and result.settings["method"] == "enumeration by mask"
        assert expected.settings["method"] == "enumeration"
        torch.testing.assert_close(result.value, expected.value, atol=1e-9, rtol=1e-9)
        with pytest.raises(ValueError, match=r'method="exact" is impossible: .* over 2 states'):
            observed_log_likelihood(rbm, value, observed, log_z, max_states=2, method="exact")

    def test_log_partition_in_every_form(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"))
        value, observed = rows_of(rbm, COUNT)
        log_z = exact_log_partition(rbm)
        expected = observed_log_likelihood(rbm, value, observed).value
        for given in (log_z, log_z.item()):
            result = observed_log_likelihood(rbm, value, observed, given)
            torch.testing.assert_close(result.value, expected)
            assert result.exact and result.settings["log_partition"] == {"method": "given"}
        estimate = estimate_log_partition(rbm, num_temperatures=50, seed=0)
        result = observed_log_likelihood(rbm, value, observed, estimate)
        assert not result.exact and result.side == "above"
        torch.testing.assert_close(result.std_error[1:], estimate.std_error.expand(3))
        assert result.value[0] == 0.0 and result.std_error[0] == 0.0
        reverse = estimate_log_partition(rbm, "reverse-ais", num_temperatures=50, seed=0)
        assert observed_log_likelihood(rbm, value, observed, reverse).side == "below"

    def test_expanded_machines_and_dtypes(self) -> None:
        rbm = random_rbm(("bernoulli", "ising")).to(torch.float32)
        value, observed = rows_of(rbm, COUNT)
        result = observed_log_likelihood(rbm.expand((2, 1)), value.float(), observed)
        assert result.value.shape == (2, COUNT) and result.value.dtype == torch.float64
        double = observed_log_likelihood(rbm.to(torch.float64), value, observed).value
        torch.testing.assert_close(result.value[1], double, atol=1e-12, rtol=1e-12)
        whole = value.nan_to_num(0.0).to(torch.uint8)
        torch.testing.assert_close(
            observed_log_likelihood(rbm, whole, observed).value, double, atol=1e-12, rtol=1e-12
        )


class TestGradient:
    PAIRS = (
        ("gaussian", "ising"),
        ("bernoulli", "bernoulli"),
        ("categorical", "ising"),
        ("ising", "gaussian"),
        ("multinomial", "bernoulli"),
    )

    @pytest.mark.parametrize("pair", PAIRS, ids="-".join)
    def test_against_complex_steps_of_the_definition(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True)
        value, observed = rows_of(rbm, COUNT)
        some = observed.any(-1)  # the others have likelihood one, whatever log Z is given
        value, observed = value[some], observed[some]
        machine = to_machine(rbm)
        flat = flat_tensors(rbm)
        for tensor in flat.values():
            tensor.requires_grad_()
        total = observed_log_likelihood(rbm, value, observed, 0.0).value.sum()
        gradients = torch.autograd.grad(total, list(flat.values()))
        for name, got in zip(flat, gradients, strict=True):

            def function(x: np.ndarray, name: str = name) -> complex:
                changed = brute_force.with_parameter(machine, name, x)
                rows = zip(value.numpy(), observed.numpy(), strict=True)
                return sum(log_density(changed, v, o) for v, o in rows)

            x = brute_force.parameters(machine)[name]
            expected = brute_force.derivative(function, x)
            np.testing.assert_allclose(got, expected.reshape(got.shape), atol=1e-9, rtol=1e-9)

    def test_against_autograd_of_the_enumerated_joint(self) -> None:
        """Eight hidden spins: log-sum-exp of -E over all pairs of states, differentiated as it stands."""
        rbm = RBM(
            random_unit("bernoulli", num_units=5),
            random_unit("ising", num_units=8),
            uniform((5, 8), -1, 1).requires_grad_(),
            visible_offset=uniform((5,), -1, 1),
        )
        v, h = rbm.visible.states(0, 32), rbm.hidden.states(0, 256)
        negative = -rbm.energy(v.unsqueeze(1), h)
        observed = torch.rand(6, 5) < 0.5
        value = v[torch.randint(32, (6,))]
        consistent = ((v == value.unsqueeze(1)) | ~observed.unsqueeze(1)).all(-1)
        free = torch.logsumexp(negative, 1)
        expected = torch.logsumexp(torch.where(consistent, free, -torch.inf), 1)
        expected = expected - torch.logsumexp(free, 0)
        got = observed_log_likelihood(rbm, value, observed).value
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
        (have,) = torch.autograd.grad(got.sum(), rbm.weight, retain_graph=True)
        (want,) = torch.autograd.grad(expected.sum(), rbm.weight)
        torch.testing.assert_close(have, want, atol=1e-10, rtol=1e-10)

    def test_a_given_log_partition_keeps_its_gradient(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"))
        value, observed = rows_of(rbm, COUNT)
        rbm.weight.requires_grad_()
        computed = observed_log_likelihood(rbm, value, observed).value.sum()
        given = observed_log_likelihood(rbm, value, observed, exact_log_partition(rbm)).value.sum()
        for got, expected in zip(
            torch.autograd.grad(given, rbm.weight),
            torch.autograd.grad(computed, rbm.weight),
            strict=True,
        ):
            torch.testing.assert_close(got, expected)


class TestAnnealed:
    PAIRS = (
        ("bernoulli", "bernoulli"),
        ("gaussian", "ising"),
        ("mixed", "ising"),
        ("low_rank", "bernoulli"),
        ("bernoulli", "relu"),
    )

    @pytest.mark.parametrize("pair", PAIRS, ids="-".join)
    def test_every_kind_of_visible_layer(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True, batched=True)
        value, observed, _ = rows_for(rbm)
        log_z = exact_log_partition(rbm)
        expected = observed_log_likelihood(rbm, value, observed, log_z)
        options = {"method": "ais", "num_chains": 300, "num_temperatures": 30, "seed": 0}
        result = observed_log_likelihood(rbm, value, observed, log_z, **options)
        assert not result.exact and result.side == "below"
        assert result.settings["method"] == "ais" and result.settings["seed"] == 0
        error = (result.value - expected.value).abs()
        assert (error <= Z_LIMIT * result.std_error + 1e-9).all()
        # What needs no chains is exact: nothing and everything observed.
        assert not result.std_error[:2].any() and (result.std_error < 0.2).all()
        assert result.std_error.any() or pair[0] == "low_rank"  # one unit is never missing in part
        again = observed_log_likelihood(rbm, value, observed, log_z, **options)
        assert torch.equal(again.value, result.value)

    def test_low_temperatures_err_below(self) -> None:
        """Strong weights and two temperatures: too low, and it says that it may be."""
        rbm = RBM(
            units.Ising(torch.zeros(12).double()),
            units.Ising(torch.zeros(8)),
            uniform((12, 8), -1, 1) * 2,
        )
        value = torch.full((20, 12), torch.nan, dtype=torch.float64)
        value[:, 0] = 1.0
        log_z = exact_log_partition(rbm)
        exact = observed_log_likelihood(rbm, value[0], ~value[0].isnan(), log_z).value
        with pytest.warns(LogPartitionWarning, match="error bars are too small"):
            result = observed_log_likelihood(
                rbm,
                value,
                ~value.isnan(),
                log_z,
                method="ais",
                num_temperatures=2,
                num_chains=8,
                seed=0,
            )
        assert result.flags and not result.reliable
        assert result.value.mean() < exact

    def test_both_terms_annealed(self) -> None:
        rbm = GaussianBernoulliRBM(
            uniform((6, 17), -0.3, 0.3), torch.ones(6).double(), torch.ones(6), torch.zeros(17)
        )
        value = torch.randn(5, 6).double()
        observed = torch.rand(5, 6) < 0.5
        observed[0] = False
        options = {"num_chains": 200, "num_temperatures": 50, "seed": 1}
        result = observed_log_likelihood(rbm, value, observed, **options)
        assert result.side is None and not result.exact and result.value[0] == 0.0
        assert result.settings["log_partition"]["method"] == "ais"
        truth = observed_log_likelihood(rbm, value, observed, max_states=2**17, method="exact")
        assert ((result.value - truth.value).abs() <= Z_LIMIT * result.std_error).all()

    @pytest.mark.parametrize("family", ["low_rank", "bernoulli", "gaussian"])
    def test_a_gaussian_layer_is_summed_out(self, family: str) -> None:
        """In float64, about the middle of the bits, even in the coupling: less error than without that."""
        generator = torch.Generator().manual_seed(3)
        size, bits = 12, 8
        factor = 0.3 * torch.randn(size, 2, generator=generator)
        gaussian: units.Unit = units.Gaussian(torch.zeros(size), torch.ones(size))
        if family == "low_rank":
            gaussian = units.LowRankGaussian(torch.zeros(size), torch.ones(size), factor)
        weight = 0.5 * torch.randn(size, bits, generator=generator)
        rbm = RBM(gaussian, units.Bernoulli(torch.full((bits,), -1.0)), weight)
        if family == "bernoulli":
            rbm = rbm.transpose()
        value = torch.zeros(6, rbm.visible.size)
        observed = torch.zeros_like(value).bool()
        observed[0] = True
        if family != "low_rank":
            observed[1:, :4] = torch.rand(5, 4, generator=generator) < 0.5
        options = {"num_chains": 100, "num_temperatures": 30, "seed": 0}
        result = observed_log_likelihood(
            rbm, value, observed, method="ais", max_states=1, **options
        )
        assert not result.exact and result.settings["log_partition"]["method"] == "ais"
        assert result.settings["dtype"] == "float64"
        exact = observed_log_likelihood(rbm, value, observed)
        error = (result.value - exact.value).abs()
        assert (error <= Z_LIMIT * result.std_error + 1e-5).all()
        old = rbm if family == "bernoulli" else rbm.transpose()
        plain = estimate_log_partition(old, "ais", **options)
        # A complete row has the error of log Z alone.
        assert 0.0 < result.std_error[0] < 0.7 * plain.std_error

    def test_chunks_of_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, batched=True)
        value, observed, _ = rows_for(rbm, 6)
        sizes = []
        original = row_chunks.split_rows

        def spy(*arguments: object) -> list[object]:
            chunks = original(*arguments)
            sizes.extend(len(chunk.value) for chunk in chunks)
            return chunks

        monkeypatch.setattr(annealed_module, "split_rows", spy)
        monkeypatch.setattr(annealed_module, "_CHUNK_ENTRIES", 2 * 6 * rbm.weight.shape[-1] * 3)
        log_z = exact_log_partition(rbm)
        options = {"num_temperatures": 30, "num_chains": 200, "seed": 0}
        result = observed_log_likelihood(rbm, value, observed, log_z, method="ais", **options)
        assert sizes == [2, 2, 2]
        expected = observed_log_likelihood(rbm, value, observed, log_z)
        error = (result.value - expected.value).abs()
        assert (error <= Z_LIMIT * result.std_error + 1e-9).all()


class TestRefusals:
    def test_bad_arguments_are_named(self) -> None:
        rbm = BernoulliRBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2))
        value, observed = torch.zeros(4, 3), torch.zeros(4, 3).bool()
        with pytest.raises(TypeError, match="dist must be an RBM, got Normal"):
            observed_log_likelihood(torch.distributions.Normal(0, 1), value, observed)
        with pytest.raises(ValueError, match=r"method must be one of .* got 'gibbs'"):
            observed_log_likelihood(rbm, value, observed, method="gibbs")
        with pytest.raises(ValueError, match="does not broadcast to the batch shape"):
            observed_log_likelihood(rbm, value, observed, torch.zeros(4))
        with pytest.raises(ValueError, match="value is NaN at an observed entry"):
            observed_log_likelihood(rbm, torch.full((3,), torch.nan), torch.ones(3).bool())
        normal = RBM(units.Gaussian(torch.zeros(3), torch.ones(3)), rbm.hidden, torch.zeros(3, 2))
        with pytest.raises(ValueError, match="value is infinite at an observed entry"):
            observed_log_likelihood(normal, torch.full((3,), -torch.inf), torch.ones(3).bool())
        with pytest.raises(ValueError, match='method="exact" needs log_partition'):
            observed_log_likelihood(rbm, value, ~observed, method="exact", max_states=2)

    def test_rows_with_parameters_of_their_own_are_not_enumerated_by_masks(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"), batched=True)
        value, observed, _ = rows_for(rbm)
        with pytest.raises(ValueError, match="rows with parameters of their own"):
            observed_log_likelihood(rbm, value, observed, 0.0, method="exact", max_states=2)

    def test_validation_off_in_the_machine_does_not_hide_wrong_rows(self) -> None:
        rbm = BernoulliRBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2), validate_args=False)
        with pytest.raises(ValueError, match="outside of the support"):
            observed_log_likelihood(rbm, torch.full((3,), 0.5), torch.ones(3).bool())
