# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Collapsed sweeps have exactly the law of alternating block Gibbs.

The reference never integrates a Gaussian analytically: its transition matrix of hidden states is a sum
over quadrature nodes (or states) of the visible layer, taken from the joint law by brute force.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions import RBM, CollapsedSweep, GaussianBernoulliRBM, GibbsSweep, units
from pyro_ebm.infer import BlockGibbs
from tests import brute_force
from tests.distributions.families import (
    ALL_FAMILIES,
    FAMILIES,
    batch_indices,
    random_rbm,
    random_unit,
    to_machine,
    uniform,
)
from tests.distributions.laws import ALPHA, layer_law

CHAINS = 50_000
BLOCK = "pyro_ebm.distributions.collapsed_sweep._BLOCK_ENTRIES"
every_family = pytest.mark.parametrize("family", ALL_FAMILIES)
gaussian_pair = pytest.mark.parametrize(
    "pair",
    [*(("gaussian", f) for f in ALL_FAMILIES), ("low_rank", "ising"), ("low_rank", "labels")],
    ids="-".join,
)


class Alternating:
    """Exact laws of block Gibbs on one machine after some sweeps from a fixed start."""

    def __init__(self, machine: brute_force.Machine) -> None:
        self.machine = machine
        self.v, self.h, joint = brute_force.joint(machine)
        self.p_v, self.p_h = joint.sum(1), joint.sum(0)
        self.h_given_v = joint / np.maximum(self.p_v, 1e-300)[:, None]
        self.v_given_h = (joint / np.maximum(self.p_h, 1e-300)).T

    def unlikely(self, p: np.ndarray) -> int:
        """A state far from the middle of a law, but not one at the end of a quadrature."""
        return int(np.argmin(np.where(p > 1e-3 * p.max(), p, np.inf)))

    def hidden_after(self, start: int, num_steps: int) -> np.ndarray:
        p = np.eye(len(self.h))[start]
        for _ in range(num_steps):
            p = (p @ self.v_given_h) @ self.h_given_v
        return p

    def visible_after(self, start: int, num_steps: int) -> np.ndarray:
        p = np.eye(len(self.v))[start]
        for _ in range(num_steps):
            p = (p @ self.h_given_v) @ self.v_given_h
        return p

    def check_hidden(self, samples: Tensor, start: int, num_steps: int) -> float:
        p = self.hidden_after(start, num_steps)
        return layer_law(self.machine.hidden, self.h, p, samples.double().numpy())

    def check_visible(self, samples: Tensor, start: int, num_steps: int) -> float:
        p = self.visible_after(start, num_steps)
        return layer_law(self.machine.visible, self.v, p, samples.double().numpy())


def repeat(state: np.ndarray, like: Tensor, count: int = CHAINS) -> Tensor:
    return torch.as_tensor(state).to(like).expand(count, -1)


def narrow_rbm(num_visible: int = 2, num_hidden: int = 1) -> RBM:
    """Strongly coupled Gaussian units and fewer bits than units: the factor R is a triangle."""
    weight = uniform((num_visible, num_hidden), 0.5, 2.0)
    visible = units.Gaussian(uniform((num_visible,), -1, 1), uniform((num_visible,), 0.8, 2.0))
    return RBM(visible, random_unit("bernoulli", num_units=num_hidden), weight)


class TestLaw:
    """From a fixed state, after 1, 2 and 5 sweeps."""

    @pytest.mark.parametrize("num_steps", [1, 2, 5])
    @gaussian_pair
    def test_hidden_states_of_gaussian_visible_units(
        self, pair: tuple[str, str], num_steps: int
    ) -> None:
        rbm = random_rbm(pair, offsets=True)
        exact = Alternating(to_machine(rbm))
        start = exact.unlikely(exact.p_h)
        end = CollapsedSweep(rbm).run(repeat(exact.h[start], rbm.weight), num_steps)
        assert exact.check_hidden(end, start, num_steps) > ALPHA

    @pytest.mark.parametrize("num_steps", [1, 2, 5])
    @every_family
    def test_visible_states_of_gaussian_hidden_units(self, family: str, num_steps: int) -> None:
        rbm = random_rbm((family, "gaussian"), offsets=True)
        exact = Alternating(to_machine(rbm))
        start = exact.unlikely(exact.p_v)
        sweep = CollapsedSweep(rbm.transpose())
        end = sweep.run(repeat(exact.v[start], rbm.weight), num_steps)
        assert exact.check_visible(end, start, num_steps) > ALPHA

    @pytest.mark.parametrize("size", [(2, 1), (3, 2), (2, 2), (1, 4)], ids=str)
    def test_strong_weights(self, size: tuple[int, int]) -> None:
        """Fewer, as many, and more hidden than visible units (K is singular then)."""
        rbm = narrow_rbm(*size)
        exact = Alternating(to_machine(rbm))
        start = exact.unlikely(exact.p_h)
        end = CollapsedSweep(rbm).run(repeat(exact.h[start], rbm.weight), 1)
        assert exact.check_hidden(end, start, 1) > ALPHA

    @pytest.mark.parametrize("family", ["bernoulli", "ising", "relu"])
    def test_float32(self, family: str) -> None:
        rbm = random_rbm(("gaussian", family), offsets=True)
        exact = Alternating(to_machine(rbm))
        start = exact.unlikely(exact.p_h)
        narrow = rbm.to(torch.float32)
        end = CollapsedSweep(narrow).run(repeat(exact.h[start], narrow.weight), 3)
        assert end.dtype == torch.float32
        assert exact.check_hidden(end, start, 3) > ALPHA

    @gaussian_pair
    def test_batches(self, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        """Every machine of a batch has its own law; parameters vary along different axes."""
        monkeypatch.setattr(BLOCK, 10**9)  # the noise of all steps at once
        rbm = random_rbm(pair, offsets=True, batched=True)
        count, num_steps = 30_000, 2
        laws = {i: Alternating(to_machine(rbm, i)) for i in batch_indices(rbm.batch_shape)}
        starts = {i: law.unlikely(law.p_h) for i, law in laws.items()}
        h = torch.empty(2, count // 2, *rbm.batch_shape, rbm.hidden.size, dtype=torch.float64)
        for i, law in laws.items():
            h[(..., *i, slice(None))] = torch.as_tensor(law.h[starts[i]])
        end = CollapsedSweep(rbm).run(h, num_steps)
        assert end.shape == h.shape
        for i, law in laws.items():
            here = end[(..., *i, slice(None))].reshape(count, -1)
            assert len(laws) * law.check_hidden(here, starts[i], num_steps) > ALPHA

    def test_weights_shared_by_a_batch_of_biases(self) -> None:
        """One product for all rows, though each has a bias and a precision of its own."""
        visible = units.Gaussian(uniform((2,), -1, 1), uniform((2,), 0.8, 2.0))
        hidden = units.ReLU(uniform((3, 2), -1, 1), uniform((3, 2), 0.8, 2.0))
        rbm = RBM(visible, hidden, uniform((2, 2), -0.3, 0.3))
        laws = [Alternating(to_machine(rbm, (i,))) for i in range(3)]
        starts = [law.unlikely(law.p_h) for law in laws]
        h = torch.stack([torch.as_tensor(a.h[s]) for a, s in zip(laws, starts, strict=True)])
        end = CollapsedSweep(rbm).run(h.expand(CHAINS, 3, 2), 2)
        for i, law in enumerate(laws):
            assert 3 * law.check_hidden(end[:, i], starts[i], 2) > ALPHA

    def test_blocks_of_noise_end_anywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Seven sweeps from blocks of three, on a machine that remembers: it flips in one of nine."""
        one = torch.ones(2, dtype=torch.float64)
        rbm = RBM(
            units.Gaussian(0.0 * one, one), units.Bernoulli(-4.0 * one[:1]), 2.0 * one[:, None]
        )
        exact = Alternating(to_machine(rbm))
        start = exact.unlikely(exact.p_h)
        monkeypatch.setattr(BLOCK, 3 * CHAINS * rbm.hidden.size)
        end = CollapsedSweep(rbm).run(repeat(exact.h[start], rbm.weight), 7)
        assert exact.check_hidden(end, start, 7) > ALPHA


Breakage = Callable[[CollapsedSweep, RBM], None]


def half_the_noise(sweep: CollapsedSweep, rbm: RBM) -> None:
    sweep.noise_factor = sweep.noise_factor * 0.5**0.5


def no_precision(sweep: CollapsedSweep, rbm: RBM) -> None:
    sweep.coupling = rbm.weight.mT @ rbm.weight


def coupling_off_by_five_percent(sweep: CollapsedSweep, rbm: RBM) -> None:
    sweep.coupling = sweep.coupling * 1.05


def no_visible_bias(sweep: CollapsedSweep, rbm: RBM) -> None:
    sweep._bias = rbm.hidden.natural_bias


def factor_not_transposed(sweep: CollapsedSweep, rbm: RBM) -> None:
    sweep.noise_factor = sweep.noise_factor.mT


class TestPower:
    """The comparison above refuses formulas that are almost right."""

    @staticmethod
    def p_value(breakage: Breakage | None) -> float:
        rbm = RBM(
            units.Gaussian(
                torch.tensor([0.4, -0.3], dtype=torch.float64),
                torch.tensor([0.8, 1.7], dtype=torch.float64),
            ),
            units.Bernoulli(torch.tensor([-0.5, 0.2], dtype=torch.float64)),
            torch.tensor([[1.5, 0.7], [-0.6, 1.1]], dtype=torch.float64),
        )
        exact = Alternating(to_machine(rbm))
        sweep = CollapsedSweep(rbm)
        sweep.noise_factor = torch.linalg.qr(sweep.noise_factor, mode="r").R
        if breakage is not None:
            breakage(sweep, rbm)
        start = exact.unlikely(exact.p_h)
        end = sweep.run(repeat(exact.h[start], rbm.weight, 200_000), 2)
        return exact.check_hidden(end, start, 2)

    def test_nothing_wrong(self) -> None:
        assert self.p_value(None) > ALPHA

    @pytest.mark.parametrize(
        "breakage",
        [
            half_the_noise,
            no_precision,
            coupling_off_by_five_percent,
            no_visible_bias,
            factor_not_transposed,
        ],
    )
    def test_something_wrong(self, breakage: Breakage) -> None:
        assert self.p_value(breakage) < ALPHA


class TestFactors:
    @pytest.mark.parametrize("batch", [(), (3, 2)], ids=str)
    @pytest.mark.parametrize("size", [(20, 5), (5, 20), (6, 6)], ids=str)
    def test_coupling_is_the_square_of_the_factor(
        self, size: tuple[int, int], batch: tuple[int, ...]
    ) -> None:
        num_visible, num_hidden = size
        precision = uniform((*batch, num_visible), 0.1, 9.0)
        weight = torch.randn(*batch, *size, dtype=torch.float64)
        bias = torch.zeros(num_hidden, dtype=torch.float64)
        rbm = GaussianBernoulliRBM(weight, torch.zeros_like(precision), precision, bias)
        sweep = CollapsedSweep(rbm)
        expected = torch.einsum("...vi,...v,...vj->...ij", weight, 1.0 / precision, weight)
        torch.testing.assert_close(sweep.coupling, expected)
        assert sweep.noise_factor.shape == (*batch, min(size), num_hidden)
        factor = sweep.noise_factor
        torch.testing.assert_close(factor.mT @ factor, expected)

    def test_a_coupling_without_rank(self) -> None:
        """Equal columns of W: a Cholesky decomposition would fail, the chain does not."""
        weight = torch.randn(10, 1).expand(10, 4)
        rbm = GaussianBernoulliRBM(weight, torch.zeros(10), torch.ones(10), torch.zeros(4))
        h = CollapsedSweep(rbm).run(torch.zeros(50, 4), 20)
        assert ((h == 0) | (h == 1)).all()

    def test_a_scalar_precision(self) -> None:
        one = torch.ones((), dtype=torch.float64)
        weight = torch.randn(6, 2, dtype=torch.float64)
        loc, bits = torch.randn(6, dtype=torch.float64), units.Bernoulli(weight[0])
        scalar, full = (
            CollapsedSweep(RBM(units.Gaussian(loc, precision), bits, weight))
            for precision in (4.0 * one, 4.0 * torch.ones_like(loc))
        )
        torch.testing.assert_close(scalar.coupling, full.coupling)
        torch.testing.assert_close(scalar._bias, full._bias)


class TestGibbsSweep:
    """``run`` and its relatives by the collapsed chain; the last draws are those of both layers."""

    @pytest.mark.parametrize(
        "pair",
        [("gaussian", f) for f in FAMILIES] + [(f, "gaussian") for f in FAMILIES],
        ids="-".join,
    )
    def test_visible_states(self, pair: tuple[str, str], num_steps: int = 3) -> None:
        rbm = random_rbm(pair, offsets=True)
        exact = Alternating(to_machine(rbm))
        start = exact.unlikely(exact.p_v)
        v = repeat(exact.v[start], rbm.weight)
        end = GibbsSweep(rbm).run(v, num_steps, collapse=True)
        assert exact.check_visible(end, start, num_steps) > ALPHA

    @pytest.mark.parametrize("pair", [("gaussian", "ising"), ("multinomial", "gaussian")])
    def test_run_from_theta(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True)
        exact = Alternating(to_machine(rbm))
        start = exact.unlikely(exact.p_v)
        sweep = GibbsSweep(rbm)
        theta = sweep.hidden_theta(repeat(exact.v[start], rbm.weight))
        before = theta.clone()
        v, after = sweep.run_from_theta(theta, 3, collapse=True)
        assert torch.equal(theta, before)
        assert torch.equal(after, sweep.hidden_theta(v))
        assert exact.check_visible(v, start, 3) > ALPHA

    @pytest.mark.parametrize("pair", [("gaussian", "bernoulli"), ("ising", "gaussian")])
    def test_one_sweep_is_not_changed(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True)
        v = rbm.visible.sample(torch.zeros(7, rbm.visible.size, dtype=torch.float64))
        draws = [
            GibbsSweep(rbm, Generator().manual_seed(1)).run(v, 1, collapse=collapse)
            for collapse in (None, True, False)
        ]
        assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])

    def test_batches_and_chains(self) -> None:
        rbm = random_rbm(("ising", "gaussian"), offsets=True, batched=True)
        start = rbm.sample((20_000,))
        end = GibbsSweep(rbm).run(start, 5, collapse=True)
        assert end.shape == start.shape
        indices = batch_indices(rbm.batch_shape)
        for index in indices:
            law = Alternating(to_machine(rbm, index))
            here = end[(slice(None), *index)].numpy()
            p = len(indices) * layer_law(law.machine.visible, law.v, law.p_v, here)
            assert p > ALPHA

    def test_a_learnable_machine(self) -> None:
        rbm = random_rbm(("gaussian", "bernoulli"), offsets=True)
        rbm.weight.requires_grad_()
        v = GibbsSweep(rbm).run(torch.zeros(3, 2, dtype=torch.float64), 4, collapse=True)
        assert not v.requires_grad
        h = CollapsedSweep(rbm).run(torch.zeros(3, 2, dtype=torch.float64), 4)
        assert not h.requires_grad

    def test_the_end_does_not_keep_the_noise_alive(self) -> None:
        rbm = narrow_rbm()
        h = CollapsedSweep(rbm).run(torch.zeros(10, 1, dtype=torch.float64), 50)
        assert h.untyped_storage().nbytes() == 10 * 8


class TestBlockGibbs:
    @pytest.mark.parametrize("pair", [("gaussian", "categorical"), ("relu", "gaussian")])
    def test_exact_samples_stay_exact_and_energies_belong_to_them(
        self, pair: tuple[str, str]
    ) -> None:
        rbm = random_rbm(pair, offsets=True)
        exact = Alternating(to_machine(rbm))
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        index = rng.choice(len(exact.v), CHAINS, p=exact.p_v)
        kernel = BlockGibbs(rbm, 4, collapse=True)
        kernel.chain_shape = Size((CHAINS,))
        kernel.setup(0)
        state = kernel.sample({"v": torch.as_tensor(exact.v[index])})
        state = kernel.sample(state)
        p = layer_law(exact.machine.visible, exact.v, exact.p_v, state["v"].numpy())
        assert p > ALPHA
        energy = kernel.diagnostics()["energy"][-1]
        torch.testing.assert_close(energy, rbm.free_energy(state["v"]))

    def test_option(self, counted: list[int]) -> None:
        rbm = wide_rbm()
        for collapse, expected in ((None, [9]), (True, [9]), (False, [])):
            counted.clear()
            kernel = BlockGibbs(rbm, 10, collapse=collapse)
            kernel.chain_shape = Size((100,))
            kernel.setup(0)
            kernel.sample(kernel.initial_params)
            assert counted == expected

    def test_no_gaussian_layer(self) -> None:
        message = "collapse=True needs a Gaussian layer, the layers are Bernoulli and Ising"
        rbm = random_rbm(("bernoulli", "ising"))
        with pytest.raises(ValueError, match=message):
            BlockGibbs(rbm, collapse=True)
        with pytest.raises(ValueError, match=message):
            GibbsSweep(rbm).run(torch.zeros(2, 3, dtype=torch.float64), 2, collapse=True)


def wide_rbm(num_visible: int = 200, num_hidden: int = 8) -> RBM:
    weight = 0.1 * torch.randn(num_visible, num_hidden)
    zeros, ones = torch.zeros(num_visible), torch.ones(num_visible)
    return GaussianBernoulliRBM(weight, zeros, ones, torch.zeros(num_hidden))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the collapsed runs that are made."""
    calls: list[int] = []
    original = CollapsedSweep.run

    def run(self: CollapsedSweep, h: Tensor, num_steps: int) -> Tensor:
        calls.append(num_steps)
        return original(self, h, num_steps)

    monkeypatch.setattr(CollapsedSweep, "run", run)
    return calls


class TestRule:
    """What is cheaper is chosen."""

    @staticmethod
    def run(rbm: RBM, num_chains: int, num_steps: int, **options: Any) -> None:
        sweep = GibbsSweep(rbm)
        shape = Size((num_chains,)) + rbm.batch_shape + rbm.event_shape
        sweep.run(sweep.initial_visible(shape), num_steps, **options)

    @pytest.mark.parametrize(
        ("size", "num_chains", "num_steps", "expected"),
        [
            ((784, 64), 128, 32, [31]),
            ((784, 64), 1, 10, []),  # the set-up costs more
            ((784, 64), 1, 1000, [999]),
            ((784, 64), 128, 1, []),
            ((8, 200), 128, 32, []),  # the hidden layer is the larger one
        ],
    )
    @pytest.mark.parametrize("transposed", [False, True])
    def test_by_default(
        self,
        counted: list[int],
        size: tuple[int, int],
        num_chains: int,
        num_steps: int,
        expected: list[int],
        transposed: bool,
    ) -> None:
        rbm = wide_rbm(*size)
        self.run(rbm.transpose() if transposed else rbm, num_chains, num_steps)
        assert counted == expected

    def test_without_a_gaussian_layer(self, counted: list[int]) -> None:
        self.run(random_rbm(("bernoulli", "relu")), 1000, 100)
        assert counted == []

    def test_decided_by_the_user(self, counted: list[int]) -> None:
        self.run(wide_rbm(784, 64), 1, 3, collapse=True)
        assert counted == [2]
        self.run(wide_rbm(784, 64), 128, 32, collapse=False)
        assert counted == [2]

    def test_of_two_gaussian_layers_the_smaller_one_is_kept(self) -> None:
        one = torch.ones(30)
        rbm = RBM(units.Gaussian(one, one), units.Gaussian(one[:4], one[:4]), torch.zeros(30, 4))
        for machine, in_hidden in ((rbm, True), (rbm.transpose(), False)):
            assert GibbsSweep(machine)._rule.in_hidden == in_hidden

    def test_many_short_runs_pay_the_set_up_once(
        self, counted: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is paid when what it would have saved is more than what it costs."""
        made: list[int] = []
        original = CollapsedSweep.from_form

        def from_form(*arguments: Any) -> CollapsedSweep:
            made.append(len(counted))
            return original(*arguments)

        monkeypatch.setattr(CollapsedSweep, "from_form", from_form)
        sweep = GibbsSweep(wide_rbm(784, 64))
        v = sweep.initial_visible(Size((1, 784)))
        for _ in range(40):
            v = sweep.run(v, 11)
        assert len(made) == 1
        assert 20 < len(counted) < 38

    def test_a_batch_of_machines_pays_for_each(self, counted: list[int]) -> None:
        weight = 0.1 * torch.randn(50, 200, 8)
        visible = units.Gaussian(torch.zeros(200), torch.ones(200))
        rbm = RBM(visible, units.Bernoulli(torch.zeros(8)), weight)
        self.run(rbm, 1, 3)
        assert counted == []
        self.run(rbm, 10, 30)
        assert counted == [29]


class TestArguments:
    def test_the_layer_must_be_gaussian(self) -> None:
        rbm = random_rbm(("ising", "gaussian"))
        message = r"needs a machine with Gaussian visible units, got Ising .*rbm\.transpose\(\)"
        with pytest.raises(ValueError, match=message):
            CollapsedSweep(rbm)
        CollapsedSweep(rbm.transpose())

    def test_no_steps(self) -> None:
        h = torch.ones(4, 1, dtype=torch.float64)
        assert CollapsedSweep(narrow_rbm()).run(h, 0) is h

    def test_input_is_not_changed(self) -> None:
        h = torch.ones(4, 1, dtype=torch.float64)
        CollapsedSweep(narrow_rbm()).run(h, 3)
        assert torch.equal(h, torch.ones_like(h))

    def test_seeds(self) -> None:
        rbm = narrow_rbm()
        h = torch.zeros(100, 1, dtype=torch.float64)
        before = torch.get_rng_state()
        first, again, other = (
            CollapsedSweep(rbm, Generator().manual_seed(seed)).run(h, 3) for seed in (1, 1, 2)
        )
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(first, again) and not torch.equal(first, other)


class TestNoiseDrawnAhead:
    """Units that make states of random numbers drawn before."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("family", ["bernoulli", "ising"])
    def test_law(self, family: str, dtype: torch.dtype) -> None:
        unit = FAMILIES[family](torch.tensor([-2.0, -0.3, 1.2], dtype=dtype))
        noise = unit.natural_noise(Size((200_000, 3)))
        assert noise is not None
        drawn = unit.natural_sample_from(unit.natural_bias.repeat(200_000, 1), noise).double()
        low, high = unit.unit_states().flatten().tolist()
        assert ((drawn == low) | (drawn == high)).all()
        mean = unit.natural_mean(unit.natural_bias).double()
        error = ((mean - low) * (high - mean) / len(drawn)).sqrt()
        assert ((drawn.mean(0) - mean) / error).abs().max() < 6.0

    def test_others_have_none(self) -> None:
        unit = random_unit("relu")
        assert unit.natural_noise(Size((3, 2))) is None
        with pytest.raises(NotImplementedError, match="ReLU units draw no numbers ahead"):
            unit.natural_sample_from(torch.zeros(3, 2), torch.zeros(3, 2))
