# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Block Gibbs leaves the machine's distribution invariant, for every pair of families."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Size, Tensor

from pyro_ebm.distributions import RBM, GibbsSweep, units
from pyro_ebm.infer import BlockGibbs
from tests.distributions.families import ALL_PAIRS, UNBOUNDED, batch_indices, random_rbm, to_machine
from tests.infer.reference import Z_LIMIT, exact_features, features, z_scores

ALL_PAIR_IDS = ["-".join(p) for p in ALL_PAIRS]


def sweep_many(rbm: RBM, num_chains: int, num_steps: int) -> tuple[Tensor, Tensor]:
    """Exact samples of a machine, and where a kernel takes them."""
    kernel = BlockGibbs(rbm, num_steps)
    kernel.chain_shape = Size((num_chains,))
    start = rbm.sample((num_chains,))
    kernel.initial_params = {"v": start}
    kernel.setup(0)
    return start, kernel.sample(kernel.initial_params)["v"]


def worst(v: Tensor, rbm: RBM, index: tuple[int, ...] = ()) -> float:
    """Largest deviation, in standard errors, of a first or second moment."""
    expected = exact_features(to_machine(rbm, index))
    return z_scores(features(v), expected).abs().max().item()


@pytest.mark.parametrize("pair", ALL_PAIRS, ids=ALL_PAIR_IDS)
def test_exact_samples_stay_exact(pair: tuple[str, str]) -> None:
    rbm = random_rbm(pair, offsets=True, num_hidden=1)
    if set(pair) <= set(UNBOUNDED):
        # No layer can be enumerated; so weak a machine forgets its start in a few sweeps.
        rbm.num_gibbs_steps = 20
    start, end = sweep_many(rbm, 100_000, 3)
    assert worst(start, rbm) < Z_LIMIT
    assert worst(end, rbm) < Z_LIMIT
    assert not torch.equal(start, end)


def test_batches_stay_exact() -> None:
    rbm = random_rbm(("bernoulli", "categorical"), offsets=True, batched=True)
    _, end = sweep_many(rbm, 50_000, 3)
    for index in batch_indices(rbm.batch_shape):
        assert worst(end[(slice(None), *index)], rbm, index) < Z_LIMIT


def test_float32_stays_exact() -> None:
    """The fast bits of float32 are made in another way than those of float64."""
    rbm = random_rbm(("bernoulli", "ising"), offsets=True).to(torch.float32)
    assert worst(sweep_many(rbm, 400_000, 3)[1], rbm) < Z_LIMIT


def scaled(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: 1.02 * method(*arguments)


class TestSmallErrorsAreCaught:
    """A conditional whose field is 2 % too large fails the test above."""

    @staticmethod
    def machine() -> RBM:
        """Units that pull each other along, so that small errors of fields add up."""
        one = torch.ones(6, 6, dtype=torch.float64)
        return RBM(units.Bernoulli(0.0 * one[0]), units.Ising(-one[0]), 0.4 * one)

    @classmethod
    def worst(cls) -> float:
        """Exact transition matrices say 10 standard errors or more for the errors made below."""
        rbm = cls.machine()
        return worst(sweep_many(rbm, 600_000, 10)[1], rbm)

    def test_nothing_wrong(self) -> None:
        assert self.worst() < Z_LIMIT

    @pytest.mark.parametrize("name", ["hidden_theta", "visible_theta"])
    def test_a_field_too_large(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(GibbsSweep, name, scaled(getattr(GibbsSweep, name)))
        assert self.worst() > Z_LIMIT

    @pytest.mark.parametrize("family", [units.Bernoulli, units.Ising])
    def test_a_unit_that_draws_too_often(
        self, family: type[units.Unit], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original: Any = family.natural_sample

        def biased(self: units.Unit, theta: Tensor, generator: Any = None) -> Tensor:
            return original(self, theta + 0.02, generator)

        monkeypatch.setattr(family, "natural_sample", biased)
        assert self.worst() > Z_LIMIT


class TestArguments:
    @pytest.mark.parametrize("wrong", [None, 3, torch.zeros(3, 2), units.Bernoulli(torch.zeros(2))])
    def test_target(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match=f"target must be .*got {type(wrong).__name__}"):
            BlockGibbs(wrong)

    @pytest.mark.parametrize("number", [0, -1])
    def test_num_steps(self, number: int) -> None:
        with pytest.raises(ValueError, match=f"num_steps must be at least 1, got {number}"):
            BlockGibbs(random_rbm(("bernoulli", "bernoulli")), number)

    def test_not_normalisable(self) -> None:
        one = torch.ones(2)
        rbm = RBM(units.Gaussian(one, one), units.Gaussian(one, one), 2.0 * torch.eye(2))
        with pytest.raises(ValueError, match="not normalisable"):
            BlockGibbs(rbm)

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"v": torch.zeros(4)}, r"must hold 'v' of shape \(3,\), got \{'v': \(4,\)\}"),
            ({"v": torch.zeros(1, 3)}, r"must hold 'v' of shape \(3,\), got \{'v': \(1, 3\)\}"),
            ({"h": torch.zeros(3)}, r"must hold 'v' of shape \(3,\), got \{'h': \(3,\)\}"),
            ({}, r"must hold 'v' of shape \(3,\), got \{\}"),
            ({"v": torch.full((3,), 0.5)}, r"initial_params\['v'\] is outside of"),
            ({"v": torch.full((3,), float("nan"))}, r"initial_params\['v'\] is outside of"),
        ],
        ids=["size", "axes", "name", "empty", "support", "nan"],
    )
    def test_initial_params(self, params: dict[str, Tensor], message: str) -> None:
        kernel = BlockGibbs(random_rbm(("bernoulli", "bernoulli")))
        with pytest.raises(ValueError, match=message):
            kernel.initial_params = params


class TestState:
    @pytest.mark.parametrize("family", ["bernoulli", "ising", "categorical", "multinomial", "relu"])
    def test_stays_in_the_support_and_dtype(self, family: str) -> None:
        rbm = random_rbm((family, "bernoulli")).to(torch.float32)
        kernel = BlockGibbs(rbm)
        kernel.setup(0)
        params = kernel.initial_params
        for _ in range(20):
            params = kernel.sample(params)
            assert params["v"].dtype == torch.float32
            assert rbm.support.check(params["v"]).all()

    def test_own_start_is_drawn_without_the_weights(self) -> None:
        """From the visible layer by itself: its mean is that of the biases."""
        rbm = RBM(
            units.Bernoulli(torch.tensor([-2.0, 0.0, 2.0])),
            units.Bernoulli(torch.zeros(2)),
            torch.full((3, 2), 5.0),
        )
        kernel = BlockGibbs(rbm)
        kernel.chain_shape = Size((200_000,))
        start = kernel.initial_params["v"].double()
        z = z_scores(start, torch.sigmoid(torch.tensor([-2.0, 0.0, 2.0])).double())
        assert z.abs().max() < Z_LIMIT

    def test_input_is_not_changed(self) -> None:
        kernel = BlockGibbs(random_rbm(("bernoulli", "bernoulli")))
        kernel.setup(0)
        params = kernel.initial_params
        before = params["v"].clone()
        kernel.sample(params)
        assert torch.equal(params["v"], before)

    def test_a_state_from_elsewhere_is_honoured(self) -> None:
        """A kernel within another one is given other states than it returned.

        With weights this strong every draw copies the state that it started from.
        """
        weight = 100.0 * torch.eye(4)
        bias = torch.full((4,), -50.0)
        kernel = BlockGibbs(RBM(units.Bernoulli(bias), units.Bernoulli(bias), weight))
        kernel.setup(0)
        for _ in range(10):
            given = torch.bernoulli(torch.full((4,), 0.5))
            assert torch.equal(kernel.sample({"v": given})["v"], given)
            # The same again from the draw itself, whose field the kernel has kept.
            assert torch.equal(kernel.sample(kernel.sample({"v": given}))["v"], given)

    def test_a_start_in_integers(self) -> None:
        rbm = random_rbm(("bernoulli", "bernoulli"))
        kernel = BlockGibbs(rbm)
        kernel.initial_params = {"v": torch.ones(3, dtype=torch.int64)}
        kernel.setup(0)
        assert kernel.initial_params["v"].dtype == torch.float64
        assert kernel.sample(kernel.initial_params)["v"].shape == (3,)

    def test_parameters_are_read_in_setup(self) -> None:
        bias = torch.full((3,), -100.0)
        rbm = RBM(units.Bernoulli(bias), units.Bernoulli(torch.zeros(2)), torch.zeros(3, 2))
        kernel = BlockGibbs(rbm)
        kernel.setup(0)
        assert kernel.sample(kernel.initial_params)["v"].sum() == 0
        bias.fill_(100.0)
        kernel.setup(0)
        assert kernel.sample(kernel.initial_params)["v"].sum() == 3


class TestSeeds:
    @staticmethod
    def draws(generator: torch.Generator | None) -> Tensor:
        kernel = BlockGibbs(random_machine(), generator=generator)
        kernel.setup(0)
        params, result = kernel.initial_params, []
        for _ in range(20):
            params = kernel.sample(params)
            result.append(params["v"])
        return torch.stack(result)

    def test_own_generator(self) -> None:
        before = torch.get_rng_state()
        first = self.draws(torch.Generator().manual_seed(3))
        assert torch.equal(before, torch.get_rng_state())
        torch.manual_seed(77)
        assert torch.equal(first, self.draws(torch.Generator().manual_seed(3)))
        assert not torch.equal(first, self.draws(torch.Generator().manual_seed(4)))

    def test_global_generator(self) -> None:
        results = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            results.append(self.draws(None))
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])


def random_machine() -> RBM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return random_rbm(("bernoulli", "ising"), offsets=True)
