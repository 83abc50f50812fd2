# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Log Z and its errors in the likelihood of a whole model."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_ebm.distributions import BernoulliRBM
from pyro_ebm.infer import (
    LogPartitionBracket,
    ModelLogLikelihood,
    clamped,
    conditional_likelihood,
    exact_log_partition,
    importance_log_likelihood,
    log_likelihood,
)
from pyro_ebm.infer.variational.site_log_partition import SiteLogPartition, side_error
from pyro_ebm.nn import NeuralBoltzmannMachine
from tests.deep_machines import random_dbm
from tests.infer.variational.noisy_bits import (
    CLOSE,
    SCALE,
    bits,
    estimate,
    evidence,
    field,
    observing,
    program,
    some_rows,
)


class TestLogPartition:
    """An error of log Z in the likelihood: its size, sign and direction."""

    def test_bracket(self) -> None:
        machine, x = bits(), some_rows()
        log_z = exact_log_partition(machine).item()
        below, above = estimate(log_z - 0.2, 0.1, "below"), estimate(log_z + 0.3, 0.05, "above")
        result = importance_log_likelihood(
            *program(machine, x),
            num_particles=5,
            log_partition=LogPartitionBracket(below, above),
            plate="rows",
        )
        exact = evidence(machine, x).mean().item()
        assert result.optimistic.item() == pytest.approx(exact + 0.2, abs=1e-9)
        assert result.pessimistic.item() == pytest.approx(exact - 0.3, abs=1e-9)
        assert result.value.item() == pytest.approx(exact - 0.05, abs=1e-9)
        assert result.gap.item() == pytest.approx(0.5, abs=1e-9)
        assert result.log_partition_error.item() == pytest.approx(0.5 * math.hypot(0.1, 0.05))
        assert result.upper.item() == pytest.approx(exact - (below.lower.item() - log_z), abs=1e-6)
        assert result.lower.item() == pytest.approx(exact - (above.upper.item() - log_z), abs=1e-6)
        assert result.side is None

    def test_interval_that_is_not_symmetric(self) -> None:
        """The upper end of log Z leads to the lower end of the likelihood, also from a single estimate."""
        machine, x = bits(), (some_rows() > 0).double()
        given = estimate(1.0, 0.1, lower=0.9, upper=1.5)
        result = importance_log_likelihood(
            observing(machine, x), lambda: None, log_partition=given, plate="rows"
        )
        assert (result.value - result.lower).item() == pytest.approx(0.5)
        assert (result.upper - result.value).item() == pytest.approx(0.1)

    @pytest.mark.parametrize(
        ("side", "observed", "expected"),
        [
            ("below", False, None),
            ("above", False, "below"),
            (None, False, "below"),
            ("below", True, "above"),
            ("above", True, "below"),
            (None, True, None),
        ],
    )
    def test_side(self, side: str | None, observed: bool, expected: str | None) -> None:
        machine, x = bits(), (some_rows() > 0).double()
        model, guide = program(machine, x)
        if observed:
            model, guide = observing(machine, x), lambda: None
        given = estimate(exact_log_partition(machine), 0.1, side, flags=("odd",))
        result = importance_log_likelihood(model, guide, num_particles=2, log_partition=given)
        assert result.side == expected
        assert result.exact == observed
        assert result.flags == ("log Z of v: odd",)

    def test_observed_machine_is_exact(self) -> None:
        """Without latent variables no particle is drawn."""
        machine, x = bits(), (some_rows() > 0).double()
        log_z = exact_log_partition(machine)
        result = importance_log_likelihood(
            observing(machine, x), lambda: None, log_partition={"v": log_z}, plate="rows"
        )
        torch.testing.assert_close(result.rows, log_likelihood(machine, x, log_z), **CLOSE)
        assert result.exact and result.density_error == 0.0 and result.bias == 0.0
        assert result.lower == result.upper == result.value
        assert bool(result.weights.ess.isnan().all()) and result.reliable

    def test_deep_machine_is_a_bound(self) -> None:
        dbm = random_dbm(("bernoulli", "bernoulli", "bernoulli"), (3, 2, 2))
        x = (some_rows() > 0).double()
        result = importance_log_likelihood(
            observing(dbm, x), lambda: None, log_partition=exact_log_partition, plate="rows"
        )
        log_z = exact_log_partition(dbm)
        torch.testing.assert_close(result.rows, log_likelihood(dbm, x, log_z), **CLOSE)
        assert not result.exact and result.side == "below"

    def test_several_machines_of_a_row(self) -> None:
        """Two sites, one of them twice a row: errors count as often as the machine does."""
        machine, other = bits(), bits()
        x = (some_rows(8) > 0).double().reshape(4, 2, 3)

        def model() -> None:
            with pyro.plate("rows", 4):
                pyro.sample("pair", machine.expand((4, 2)).to_event(1), obs=x)
                pyro.sample("one", other, obs=x[:, 0])

        given = {"pair": estimate(1.0, 0.1), "one": estimate(2.0, 0.3)}
        result = importance_log_likelihood(model, lambda: None, log_partition=given, plate="rows")
        expected = machine.log_prob(x).sum(-1) - 2.0 + other.log_prob(x[:, 0]) - 2.0
        torch.testing.assert_close(result.rows, expected, **CLOSE)
        assert result.log_partition_error.item() == pytest.approx(math.hypot(0.2, 0.3))
        assert (result.upper - result.value).item() == pytest.approx(
            1.96 * math.hypot(0.2, 0.3), rel=1e-4
        )

    def test_one_estimate_at_several_sites(self) -> None:
        """A sequence of one machine: its error is the same one at every step, the midpoint's too."""
        machine, other = bits(), bits()
        x = (some_rows() > 0).double()

        def model() -> None:
            with pyro.plate("rows", 4):
                for t in range(3):
                    pyro.sample(f"v{t}", machine, obs=x)
                pyro.sample("other", other, obs=x)

        below, above = estimate(1.0, 0.1, "below"), estimate(1.3, 0.2, "above")
        bracket, apart = LogPartitionBracket(below, above), estimate(2.0, 0.3)

        def call(same: Any) -> ModelLogLikelihood:
            given = {"other": apart} | {f"v{t}": same for t in range(3)}
            return importance_log_likelihood(model, lambda: None, log_partition=given, plate="rows")

        one = call(below)
        assert one.log_partition_error.item() == pytest.approx(math.hypot(0.3, 0.3))
        assert (one.upper - one.value).item() == pytest.approx(
            1.96 * math.hypot(0.3, 0.3), rel=1e-4
        )
        both = call(bracket)
        expected = math.sqrt((3 * 0.05) ** 2 + (3 * 0.1) ** 2 + 0.3**2)
        assert both.log_partition_error.item() == pytest.approx(expected)
        margin = (both.pessimistic - both.lower).item()
        assert margin == pytest.approx(1.96 * math.hypot(0.6, 0.3), rel=1e-4)

    def test_scale_and_mask(self) -> None:
        """What is masked out needs no log Z, what is scaled counts so much more."""
        machine, x = bits(), (some_rows() > 0).double()
        model = observing(machine, x)
        mask = torch.tensor([True, True, False, True])
        changed = poutine.scale(poutine.mask(model, mask=mask), scale=2.0)
        given = estimate(1.5, 0.1)
        result = importance_log_likelihood(changed, lambda: None, log_partition=given, plate="rows")
        expected = torch.where(mask, 2.0 * (machine.log_prob(x) - 1.5), 0.0)
        torch.testing.assert_close(result.rows, expected, **CLOSE)
        assert result.log_partition_error.item() == pytest.approx(2.0 * 0.1 * 3 / 4)

    def test_log_z_of_every_row(self) -> None:
        """A conditional machine: errors of different contexts add in squares, of the same one as they are."""
        biases = torch.randn(4, 3, dtype=torch.float64)
        biases[2] = biases[0]
        machine = BernoulliRBM(torch.randn(3, 2).double(), biases, torch.zeros(2).double())
        x = (some_rows() > 0).double()
        log_z = exact_log_partition(machine)
        error = torch.tensor([0.1, 0.2, 0.1, 0.3], dtype=torch.float64)
        result = importance_log_likelihood(
            observing(machine, x), lambda: None, log_partition=estimate(log_z, error), plate="rows"
        )
        torch.testing.assert_close(result.rows, machine.log_prob(x) - log_z, **CLOSE)
        expected = math.sqrt(0.2**2 + 0.2**2 + 0.3**2) / 4
        assert result.log_partition_error.item() == pytest.approx(expected)

    def test_attached_log_z_is_used(self) -> None:
        machine, x = bits(), (some_rows() > 0).double()
        normalized = machine.normalize(2.0)
        result = importance_log_likelihood(observing(normalized, x), lambda: None, plate="rows")
        torch.testing.assert_close(result.rows, machine.log_prob(x) - 2.0, **CLOSE)
        with pytest.raises(ValueError, match=r"names \['v'\]"):
            importance_log_likelihood(
                observing(normalized, x), lambda: None, log_partition={"v": 1.0}
            )

    def test_infinite_error_of_a_machine_that_does_not_count(self) -> None:
        sides = (estimate(torch.zeros(2), torch.tensor([0.1, math.inf])),)
        site = SiteLogPartition("v", sides, torch.tensor([3.0, 0.0], dtype=torch.float64))
        assert side_error([site], 0, "std_error").item() == pytest.approx(0.3)

    def test_parameters_that_are_learnt(self) -> None:
        """Parameters that require a gradient need nothing special."""
        machine, x = bits(), (some_rows() > 0).double()
        weight = machine.weight.clone().requires_grad_()
        own = BernoulliRBM(weight, torch.zeros(3).double(), torch.zeros(2).double())
        result = importance_log_likelihood(
            observing(own, x), lambda: None, log_partition=exact_log_partition, plate="rows"
        )
        assert not result.rows.requires_grad and not result.value.requires_grad

    def test_mixture_of_machines_that_are_learnt(self) -> None:
        """Parameters that require a gradient and depend on what is drawn: the numbers of constants."""
        weights = torch.randn(2, 3, 2).double().requires_grad_()
        biases = torch.randn(2, 3).double().requires_grad_()
        x = (some_rows() > 0).double()

        def component(k: Any) -> BernoulliRBM:
            return BernoulliRBM(weights[k], biases[k], torch.zeros(2).double())

        def model() -> None:
            with pyro.plate("rows", 4):
                k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7]).double()))
                pyro.sample("v", component(k), obs=x)

        with torch.no_grad():
            log_p = torch.stack(
                [component(k).log_prob(x) - exact_log_partition(component(k)) for k in range(2)], -1
            )
            joint = log_p + torch.tensor([0.3, 0.7]).double().log()

        def guide() -> None:
            with pyro.plate("rows", 4):
                pyro.sample("k", dist.Categorical(logits=joint))

        result = importance_log_likelihood(
            model, guide, num_particles=5, log_partition=exact_log_partition, plate="rows"
        )
        torch.testing.assert_close(result.rows, joint.logsumexp(-1), **CLOSE)
        assert result.log_partition_error == 0.0

    def test_prior_of_every_row(self) -> None:
        """A latent machine with parameters of its own for every row, and log Z by row."""
        biases = torch.randn(4, 3, dtype=torch.float64)
        machine = BernoulliRBM(torch.randn(3, 2).double(), biases, torch.zeros(2).double())
        x = some_rows()
        log_z = exact_log_partition(machine)
        result = importance_log_likelihood(
            *program(machine, x), num_particles=6, log_partition=estimate(log_z, 0.1), plate="rows"
        )
        torch.testing.assert_close(result.rows, evidence(machine, x), **CLOSE)
        assert result.log_partition_error.item() == pytest.approx(0.1 / math.sqrt(4))

    def test_neural_boltzmann_machine(self) -> None:
        """Contexts that repeat: as the likelihood by context."""
        nbm = NeuralBoltzmannMachine(num_context=2, num_visible=3, num_hidden=2, seed=0).double()
        contexts = torch.randn(2, 2).double()
        index = torch.tensor([0, 1, 1, 0, 1])
        y = some_rows(5)
        given = exact_log_partition(nbm.condition(contexts)).detach()
        error = torch.tensor([0.1, 0.2], dtype=torch.float64)
        table = estimate(given, error)

        def model() -> None:
            with pyro.plate("rows", 5):
                pyro.sample("y", nbm.condition(contexts[index]), obs=y)

        rows = estimate(given[index], error[index])
        result = importance_log_likelihood(model, lambda: None, log_partition=rows, plate="rows")
        expected = conditional_likelihood(nbm, y, contexts[index], table, contexts=contexts)
        torch.testing.assert_close(result.rows, expected.rows, **CLOSE)
        for name in ("value", "std_error", "log_partition_error", "lower", "upper"):
            torch.testing.assert_close(getattr(result, name), getattr(expected, name), **CLOSE)

    def test_fixed_units_have_the_log_z_of_the_whole_machine(self) -> None:
        machine, x = bits(), some_rows(1)
        mask = torch.tensor([True, False, False])
        values = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)

        def model() -> None:
            v = pyro.sample("v", machine)
            pyro.sample("x", dist.Normal(v, SCALE).to_event(1), obs=x[0])

        posterior = machine.tilt(field(x[0])).clamp(mask, values)
        posterior = posterior.normalize(exact_log_partition(posterior))
        result = importance_log_likelihood(
            clamped(model, "v", mask, values),
            lambda: pyro.sample("v_free", posterior),
            num_particles=5,
            log_partition=exact_log_partition,
        )
        states = machine.visible.states(0, 8)
        states = states[states[:, 0] == 1.0]
        log_p = machine.log_prob(states) - exact_log_partition(machine)
        log_p = log_p + dist.Normal(states, SCALE).to_event(1).log_prob(x[0])
        torch.testing.assert_close(result.rows, log_p.logsumexp(0, keepdim=True), **CLOSE)
