# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Free units given any subset of the units of both layers, against the joint law."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Size, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.infer import (
    BlockGibbs,
    GibbsLangevin,
    GibbsWithGradients,
    ParallelTempering,
    completions,
)
from tests import brute_force
from tests.brute_force import Layer
from tests.distributions.families import PAIRS, batch_indices, random_rbm, to_machine
from tests.infer.reference import Z_LIMIT, features, z_scores

#: Layers of one unit (a Multinomial) are given as a whole or not at all.
CLAMPABLE = [pair for pair in PAIRS if "multinomial" not in pair]
NUM_SAMPLES = 40_000


def some_of(size: int) -> Tensor:
    """The first unit, or the first group of three entries."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[: 3 if size == 6 else 1] = True
    return mask


def free_points(layer: Layer, mask: Tensor, value: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """States of a layer whose given units have their values, with the weights of a quadrature."""
    x, weights = brute_force.points(layer, 40 if layer.is_continuous else None)
    given = mask.numpy()
    rows = (x[:, given] == x[0, given]).all(1)
    x = x[rows].copy()
    x[:, given] = value.numpy()[given]
    return x, weights[rows]


def expected_features(
    rbm: RBM, masks: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], index: Any = ()
) -> Tensor:
    """First and second moments of all units of both layers, from the definition of the energy."""
    machine = to_machine(rbm, index)
    v, v_weights = free_points(machine.visible, masks[0], values[0])
    h, h_weights = free_points(machine.hidden, masks[1], values[1])
    exponent = -brute_force.energy(machine, v, h).real
    p = np.exp(exponent - exponent.max()) * v_weights[:, None] * h_weights
    both = np.concatenate([np.repeat(v, len(h), 0), np.tile(h, (len(v), 1))], 1)
    # As in features(), without its table of all pairs of states.
    weighted = both * (p / p.sum()).reshape(-1, 1)
    i, j = np.triu_indices(both.shape[1])
    return torch.as_tensor(np.concatenate([weighted.sum(0), (weighted.T @ both)[i, j]]))


def worst(
    rbm: RBM, masks: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], **options: Any
) -> float:
    """Largest deviation of a moment in standard errors."""
    states = completions(
        rbm,
        masks[0],
        values[0],
        hidden_mask=masks[1],
        hidden_value=values[1],
        **{"num_samples": NUM_SAMPLES, **options},
    )
    both = torch.cat(states, -1)
    assert both.shape == (len(both), rbm.visible.size + rbm.hidden.size)
    return z_scores(features(both), expected_features(rbm, masks, values)).abs().max().item()


def draw(rbm: RBM) -> tuple[Tensor, Tensor]:
    v = rbm.sample()
    return v, rbm.hidden_given(v).sample()


class TestLaw:
    @pytest.mark.parametrize("pair", CLAMPABLE, ids="-".join)
    def test_some_units_of_both_layers(self, pair: tuple[str, str]) -> None:
        rbm = random_rbm(pair, offsets=True, num_hidden=2)
        rbm.num_gibbs_steps = 20  # two continuous layers, so weak that they forget in a few sweeps
        masks = some_of(rbm.visible.size), some_of(rbm.hidden.size)
        assert worst(rbm, masks, draw(rbm)) < Z_LIMIT

    KERNELS: dict[str, tuple[tuple[str, str], Callable[[RBM], Any]]] = {
        "block Gibbs": (("categorical", "ising"), BlockGibbs),
        "block Gibbs of Gaussian units": (("gaussian", "bernoulli"), BlockGibbs),
        "Gibbs-Langevin": (("gaussian", "bernoulli"), lambda m: GibbsLangevin(m, -0.5)),
        "informed proposals": (("bernoulli", "gaussian"), GibbsWithGradients),
        "tempering": (("bernoulli", "relu"), lambda m: ParallelTempering(m, num_replicas=3)),
    }

    @pytest.mark.parametrize("name", list(KERNELS))
    def test_every_kernel(self, name: str) -> None:
        pair, kernel = self.KERNELS[name]
        rbm = random_rbm(pair, offsets=True)
        masks = some_of(rbm.visible.size), some_of(rbm.hidden.size)
        options = {"kernel": kernel, "num_steps": 60, "num_samples": 10_000}
        assert worst(rbm, masks, draw(rbm), **options) < Z_LIMIT

    @pytest.mark.parametrize("kind", ["none", "visible", "hidden", "both"])
    @pytest.mark.parametrize("pair", [("bernoulli", "gaussian"), ("multinomial", "ising")])
    def test_whole_layers(self, pair: tuple[str, str], kind: str) -> None:
        rbm = random_rbm(pair, offsets=True)
        masks = (
            torch.full((rbm.visible.size,), kind in ("visible", "both")),
            torch.full((rbm.hidden.size,), kind in ("hidden", "both")),
        )
        assert worst(rbm, masks, draw(rbm)) < Z_LIMIT

    def test_rows_and_batches(self) -> None:
        """Every row of a batch of values with every machine of a batch."""
        rbm = random_rbm(("bernoulli", "ising"), offsets=True, batched=True)
        mask, hidden_mask = some_of(3), some_of(2)
        v = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1).expand(2, 1, 1, 3)
        h = torch.tensor([1.0, -1.0], dtype=torch.float64)
        states = completions(
            rbm, mask, v, hidden_mask=hidden_mask, hidden_value=h, num_samples=20_000
        )
        assert states.visible.shape == (20_000, 2, 2, 3, 3)
        assert states.hidden.shape == (20_000, 2, 2, 3, 2)
        for row in range(2):
            for index in batch_indices(rbm.batch_shape):
                both = torch.cat([s[(slice(None), row, *index)] for s in states], -1)
                expected = expected_features(rbm, (mask, hidden_mask), (v[row, 0, 0], h), index)
                assert z_scores(features(both), expected).abs().max() < Z_LIMIT


class TestMistakesAreCaught:
    """The check above rejects what it is there to reject."""

    @staticmethod
    def machine() -> tuple[RBM, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        rbm = random_rbm(("bernoulli", "bernoulli"), offsets=True, scale=3.0)
        values = torch.ones(3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        return rbm, (some_of(3), some_of(2)), values

    def test_hidden_values_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Visible units drawn without regard to the given hidden ones."""
        clamp = RBM.clamp

        def careless(self: RBM, mask: Tensor, value: Tensor) -> RBM:
            return self if self.event_shape == Size((2,)) else clamp(self, mask, value)

        monkeypatch.setattr(RBM, "clamp", careless)
        assert worst(*self.machine()) > 10.0

    def test_other_values(self) -> None:
        rbm, masks, values = self.machine()
        states = completions(rbm, masks[0], 1.0 - values[0], num_samples=NUM_SAMPLES)
        both = torch.cat(states, -1)
        expected = expected_features(rbm, masks, values)
        assert z_scores(features(both), expected).abs().max() > 10.0


class TestInterface:
    def test_given_units_are_kept(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"))
        v = torch.tensor([1, 0, 1], dtype=torch.uint8)
        states = completions(rbm, torch.tensor([True, True, False]), v, num_samples=50)
        assert (states.visible[:, 0] == 1).all() and (states.visible[:, 1] == 0).all()
        assert states.visible.dtype == torch.float64
        assert len(states.visible[:, 2].unique()) == 2

    def test_generator(self) -> None:
        rbm = random_rbm(("bernoulli", "ising"))
        mask, v = torch.tensor([True, False, False]), torch.ones(3)
        before = torch.get_rng_state()
        first, second = (
            completions(rbm, mask, v, num_samples=50, generator=torch.Generator().manual_seed(2))
            for _ in range(2)
        )
        assert torch.equal(before, torch.get_rng_state())
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    WRONG: list[tuple[dict[str, Any], str]] = [
        ({"num_samples": 0}, "num_samples and num_steps must be at least 1, got 0 and 1000"),
        ({"mask": torch.ones(3).bool()}, "mask was given without the values of its units"),
        ({"hidden_mask": torch.ones(2).bool()}, "hidden_mask was given without the values"),
        (
            {"hidden_mask": torch.ones(3).bool(), "hidden_value": torch.ones(3)},
            "hidden_mask",
        ),
        (
            {"mask": torch.tensor([True, False, False]), "value": torch.full((3,), 0.5)},
            "mask: value is outside of",
        ),
        (
            {"mask": torch.ones(3).bool(), "value": torch.full((3,), 0.5)},
            "values of mask, which gives the whole layer, must be states of",
        ),
    ]

    @pytest.mark.parametrize(("options", "message"), WRONG)
    def test_wrong_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            completions(random_rbm(("bernoulli", "bernoulli")), **options)
