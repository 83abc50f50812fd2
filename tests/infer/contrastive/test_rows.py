# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Rows gathered by machine, and machines chosen from a batch."""

import pytest
import torch
from torch import Size, Tensor

from pyro_ebm.distributions import RBM, units
from pyro_ebm.infer.contrastive.negative import mean_score, start_chains
from pyro_ebm.infer.contrastive.rows import (
    SiteRows,
    rows_by_key,
    rows_by_parameters,
    select_machines,
)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def units_of(family: str, batch: tuple[int, ...]) -> units.Unit:
    """A layer of six entries."""
    if family == "mixed":
        blocks = [units_of("gaussian", batch).select(torch.arange(6) < 2)]
        return units.Mixed([*blocks, units.Categorical(normal(*batch, 1, 4))])
    if family == "gaussian":
        return units.Gaussian(normal(*batch, 6), normal(*batch, 6).exp())
    if family == "one precision":
        return units.Gaussian(normal(*batch, 6), torch.tensor(2.0).double())
    if family == "low rank":
        return units.LowRankGaussian(normal(*batch, 6), normal(6).exp(), normal(*batch, 6, 2))
    if family == "categorical":
        return units.Categorical(normal(*batch, 2, 3))
    return units.Bernoulli(normal(*batch, 6))


@pytest.mark.parametrize("batch", [(4, 3), (4, 1), (3,), (1,), ()], ids=str)
@pytest.mark.parametrize(
    "family", ["bernoulli", "categorical", "gaussian", "one precision", "low rank", "mixed"]
)
def test_selected_machines_are_those_of_the_batch(family: str, batch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    rbm = RBM(
        units_of(family, batch),
        units.Ising(normal(2)),
        normal(*batch, 6, 2),
        visible_offset=normal(*batch, 6),
        hidden_offset=normal(2),
    )
    shape, index = Size((4, 3)), torch.tensor([7, 0, 11])
    v = normal(4, 3, 6)
    machine = select_machines(rbm, shape, index)
    assert machine.batch_shape == (3,)
    expected = rbm.free_energy(v).flatten()[index]
    assert torch.allclose(machine.free_energy(v.flatten(0, 1)[index]), expected, atol=1e-12)
    if batch in ((), (1,)):
        assert machine.parameter_batch_shape == ()


def test_selected_machines_keep_constants_and_gradients() -> None:
    """A clamped machine has a constant of its own; chosen twice, a weight gets both gradients."""
    torch.manual_seed(1)
    weight = normal(3, 6, 2).requires_grad_()
    rbm = RBM(units.Bernoulli(normal(3, 6)), units.Ising(normal(3, 2)), weight)
    mask = torch.arange(6) < 2
    clamped = rbm.clamp(mask, torch.bernoulli(torch.full((3, 6), 0.5)))
    v = torch.ones(4).double()
    index = torch.tensor([2, 2, 0])
    got = select_machines(clamped, Size((3,)), index).free_energy(v)
    expected = clamped.free_energy(v)[index]
    assert torch.allclose(got, expected, atol=1e-12)
    (a,), (b,) = (torch.autograd.grad(x.sum(), weight, retain_graph=True) for x in (got, expected))
    assert torch.allclose(a, b, atol=1e-12) and a[1].abs().sum() == 0


def machines(batch: tuple[int, ...]) -> RBM:
    return RBM(units.Bernoulli(normal(*batch, 3)), units.Bernoulli(normal(2)), normal(3, 2))


def test_rows_by_key() -> None:
    torch.manual_seed(2)
    key = torch.tensor([5, 2, 5, 9])
    value, mask = normal(4, 3), torch.tensor([True, True, False, True])
    rows = rows_by_key(machines((4,)), value, key, Size((4,)), mask)
    assert rows.keys == (2, 5, 9) and rows.values.shape == (2, 3, 3)
    assert rows.mask is not None
    assert rows.mask.tolist() == [[True, True, True], [False, False, False]]
    assert torch.equal(rows.values[0], value[[1, 0, 3]]) and torch.equal(
        rows.values[1, 1], value[2]
    )
    assert torch.equal(rows.spread(torch.tensor([20, 50, 90])), torch.tensor([50, 20, 50, 90]))


def test_masked_rows_by_parameters() -> None:
    """A row that is masked out starts no chain unless there is no other, and counts for nothing."""
    torch.manual_seed(3)
    value = torch.arange(8.0).double().view(4, 2, 1).expand(4, 2, 3)
    mask = torch.tensor([[True, False], [False, False], [True, False], [False, False]])
    rows = rows_by_parameters(machines((2,)), value, mask)
    states, weight = start_chains(rows, 6)
    assert weight is None and states.shape == (6, 2, 3)
    assert set(states[:, 0, 0].tolist()) == {0.0, 4.0}
    assert len(set(states[:, 1, 0].tolist())) == 1
    states, weight = start_chains(rows, None)
    assert torch.equal(states, value) and weight is not None and torch.equal(weight, mask)
    score = mean_score(rows.machine, states, weight)
    expected = -rows.machine.free_energy(value)[[0, 2], 0].mean()
    assert torch.allclose(score, torch.stack([expected, torch.zeros_like(expected)]))


def test_without_masks() -> None:
    rows = rows_by_parameters(machines(()), normal(5, 4, 3))
    assert rows.values.shape == (20, 3) and rows.mask is None and rows.position is None
    for number, distinct in ((7, 7), (20, 20), (50, 20)):
        states, _ = start_chains(rows, number)
        assert states.shape == (number, 3) and len(states.unique(dim=0)) == distinct
    assert isinstance(rows, SiteRows)
    number = torch.tensor(2.0)
    assert rows.spread(number) is number


def test_masks_of_enumerations_are_left_alone() -> None:
    """A mask with more axes than the rows belongs to states of other sites."""
    rows = rows_by_parameters(machines((4,)), normal(4, 3), torch.ones(2, 4, dtype=torch.bool))
    assert rows.mask is None
