# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0
"""Free units of deep machines given any units of any layers, against the sum over all states."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_ebm.distributions import DBM
from pyro_ebm.infer import BlockGibbs, ParallelTempering, completions
from tests import deep_machines
from tests.deep_machines import random_dbm
from tests.infer.mcmc.deep_states import layer_moments
from tests.infer.mcmc.test_deep_kernels import rbm_of
from tests.infer.reference import Z_LIMIT, features, z_scores

BITS = ("bernoulli",) * 3
DEEP = ("bernoulli", "ising", "categorical", "bernoulli")
NUM_SAMPLES = 10_000

#: By name: which layers are given in part and which as a whole.
GIVEN: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "nothing": ((), ()),
    "half an image": ((0,), ()),
    "hidden units": ((1,), ()),
    "top units": ((2,), ()),
    "every layer": ((0, 1, 2), ()),
    "an image": ((), (0,)),
    "labels": ((), (2,)),
    "labels and half an image": ((0,), (2,)),
    "the layer between": ((), (1,)),
    "both ends": ((1,), (0, 2)),
}


def machine(families: tuple[str, ...] = BITS, **options: Any) -> DBM:
    torch.manual_seed(7)
    return random_dbm(families, 3, offsets=True, scale=2.0, **options)


def some_of(size: int) -> Tensor:
    """The first unit, or the first group of three entries."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[: 3 if size == 6 else 1] = True
    return mask


def given(
    dbm: DBM, parts: tuple[int, ...], wholes: tuple[int, ...]
) -> tuple[dict[int, Tensor], ...]:
    masks = {number: some_of(dbm.sizes[number]) for number in parts}
    masks |= {number: torch.ones(dbm.sizes[number]).bool() for number in wholes}
    values = {n: dbm.units[n].natural_sample(torch.zeros(dbm.sizes[n]).double()) for n in masks}
    return masks, values


def worst(dbm: DBM, masks: dict[int, Tensor], values: dict[int, Tensor], **options: Any) -> float:
    """Largest deviation of a first or second moment of all layers in standard errors."""
    states = completions(dbm, masks, values, **{"num_samples": NUM_SAMPLES, **options})
    assert [tuple(x.shape) for x in states] == [(NUM_SAMPLES, size) for size in dbm.sizes]
    for number, mask in masks.items():
        assert (states[number][:, mask] == values[number][mask]).all()
    fixed = {number: (masks[number].numpy(), values[number].numpy()) for number in masks}
    expected = layer_moments(dbm, range(dbm.depth + 1), fixed)
    return z_scores(features(torch.cat(states, -1)), expected).abs().max().item()


@pytest.mark.parametrize("name", GIVEN)
def test_law_of_two_hidden_layers(name: str) -> None:
    dbm = machine()
    assert worst(dbm, *given(dbm, *GIVEN[name])) < Z_LIMIT


@pytest.mark.parametrize("case", [((0, 2, 3), ()), ((1,), (3,)), ((0,), (2,))], ids=str)
def test_law_of_three_hidden_layers(case: Any) -> None:
    dbm = machine(DEEP)
    assert worst(dbm, *given(dbm, *case)) < Z_LIMIT


@pytest.mark.parametrize("kernel", [BlockGibbs, lambda m: ParallelTempering(m, num_replicas=3)])
def test_kernels(kernel: Any) -> None:
    dbm = machine()
    masks, values = given(dbm, (0, 1), (2,))
    assert worst(dbm, masks, values, kernel=kernel, num_steps=40) < Z_LIMIT


def test_a_forgotten_layer_is_noticed() -> None:
    """The check has power: the law without what is given on top is another one."""
    dbm = machine()
    masks, values = given(dbm, (0,), (2,))
    states = completions(dbm, masks[0], values[0], num_samples=NUM_SAMPLES)
    fixed = {number: (masks[number].numpy(), values[number].numpy()) for number in masks}
    expected = layer_moments(dbm, [0], fixed)
    assert z_scores(features(states[0]), expected).abs().max() > 2 * Z_LIMIT


def test_rows() -> None:
    """Every row of values is completed by itself."""
    dbm = machine()
    mask = some_of(3)
    rows = torch.tensor([[0.0] * 3, [1.0] * 3])
    states = completions(dbm, {0: mask, 2: mask}, {0: rows, 2: torch.ones(3)}, num_samples=5000)
    assert [tuple(x.shape) for x in states] == [(5000, 2, 3)] * 3
    for row in range(2):
        fixed = {0: (mask.numpy(), rows[row].numpy()), 2: (mask.numpy(), torch.ones(3).numpy())}
        every = torch.cat([x[:, row] for x in states], -1)
        assert z_scores(features(every), layer_moments(dbm, range(3), fixed)).abs().max() < Z_LIMIT


def test_batch_of_machines() -> None:
    dbm = machine(batched=True)
    states = completions(dbm, some_of(3), torch.ones(3), num_samples=5000)
    assert [tuple(x.shape) for x in states] == [(5000, 2, 3, 3)] * 3
    fixed = {0: (some_of(3).numpy(), torch.ones(3).numpy())}
    own = deep_machines.to_deep(dbm, (1, 2))
    means = torch.as_tensor(deep_machines.means(own, fixed)[2])
    assert z_scores(states[2][:, 1, 2], means).abs().max() < Z_LIMIT


def test_depth_one_is_the_rbm() -> None:
    dbm = machine(("bernoulli", "ising"))
    values = {0: torch.ones(3), 1: torch.ones(dbm.sizes[1])}
    masks = {number: some_of(dbm.sizes[number]) for number in values}
    torch.manual_seed(0)
    deep = completions(dbm, masks, values, num_samples=20)
    torch.manual_seed(0)
    options = {"hidden_mask": masks[1], "hidden_value": values[1], "num_samples": 20}
    flat = completions(rbm_of(dbm), masks[0], values[0], **options)
    assert all(torch.equal(a, b) for a, b in zip(deep, flat, strict=True))


class TestRefused:
    WRONG: list[tuple[tuple[Any, Any], str]] = [
        (({2: some_of(3)}, None), r"masks of the layers \[2\] were given without the values"),
        (({3: some_of(3)}, {3: torch.ones(3)}), r"the layers are 0 to 2, got a mask of \[3\]"),
        (({1: some_of(4)}, {1: torch.ones(4)}), r"mask of layer 1 must be boolean of shape \(3,\)"),
        (({1: some_of(3)}, {1: torch.ones(4)}), r"value of layer 1 must have shape \(\.\.\., 3\)"),
        (({2: some_of(3)}, {2: torch.full((3,), 0.5)}), "value is outside of"),
    ]

    @pytest.mark.parametrize(("options", "message"), WRONG)
    def test_values(self, options: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            completions(machine(), *options)

    def test_kinds(self) -> None:
        with pytest.raises(TypeError, match="give mask and value by number of the layer"):
            completions(machine(), hidden_mask=some_of(3), hidden_value=torch.ones(3))
        with pytest.raises(TypeError, match="for an RBM use hidden_mask"):
            completions(
                rbm_of(machine(("bernoulli", "ising"))), {0: some_of(3)}, {0: torch.ones(3)}
            )
