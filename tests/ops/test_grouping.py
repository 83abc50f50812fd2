# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Rows gathered by their groups: every row has one place, in order, and comes back."""

import pytest
import torch

from pyro_ebm.ops.grouping import RowGroups, group_blocks

INDICES = {
    "one": [0],
    "same": [3, 3, 3],
    "all-different": [4, 0, 2, 1, 3],
    "sorted": [0, 0, 1, 2, 2, 2],
    "mixed": [2, 0, 2, 5, 0, 2, 5, 1],
}
every_index = pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)


def by_hand(index: list[int], rows: torch.Tensor, groups: list[int]) -> torch.Tensor:
    """The rectangle, row by row."""
    depth = max(index.count(group) for group in groups)
    rectangle = torch.zeros(depth, len(groups), *rows.shape[1:], dtype=rows.dtype)
    for g, group in enumerate(groups):
        for rank, i in enumerate(i for i, own in enumerate(index) if own == group):
            rectangle[rank, g] = rows[i]
    return rectangle


@every_index
@pytest.mark.parametrize("all_groups", [False, True], ids=["present", "all"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_packing_is_that_by_hand(index, all_groups, shape):
    groups = RowGroups(torch.tensor(index), 7 if all_groups else None)
    expected = list(range(7)) if all_groups else sorted(set(index))
    assert groups.present.tolist() == expected and groups.num_groups == len(expected)
    assert groups.counts.tolist() == [index.count(group) for group in expected]
    assert [expected[p] for p in groups.position.tolist()] == index
    rows = torch.arange(1.0, 1 + len(index) * torch.Size(shape).numel()).view(len(index), *shape)
    packed = groups.pack(rows)
    assert groups.depth == len(packed)
    assert torch.equal(packed, by_hand(index, rows, expected))
    assert torch.equal(groups.unpack(packed), rows)


@every_index
@pytest.mark.parametrize("num_groups", [None, 6, 9], ids=str)
def test_the_mask_tells_rows_from_padding(index, num_groups):
    groups = RowGroups(torch.tensor(index), num_groups)
    mask = groups.mask()
    assert mask.dtype == torch.bool and mask.shape == (groups.depth, groups.num_groups)
    assert torch.equal(groups.pack(torch.ones(len(index), dtype=torch.bool)), mask)
    assert torch.equal(mask.sum(0), groups.counts) and mask.any(-1).all()
    # Padding comes last.
    assert not (mask[1:] & ~mask[:-1]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool], ids=str)
def test_types_are_kept(dtype):
    groups = RowGroups(torch.tensor([1, 0, 1]))
    rows = torch.tensor([[1, 0], [0, 1], [1, 1]]).to(dtype)
    assert groups.pack(rows).dtype == dtype
    assert torch.equal(groups.unpack(groups.pack(rows)), rows)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_indices_of_any_whole_type(dtype):
    groups = RowGroups(torch.tensor([2, 0, 2], dtype=dtype))
    assert groups.pack(torch.tensor([1.0, 2.0, 3.0])).tolist() == [[2.0, 1.0], [0.0, 3.0]]


def test_gradients_pass():
    groups = RowGroups(torch.tensor([1, 0, 1, 4]), 5)
    rows = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(groups.pack, rows)
    rectangle = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(groups.unpack, rectangle)


def test_many_rows():
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(200, (5000,), generator=generator)
    groups = RowGroups(index, 300)
    assert groups.num_groups == 300 and groups.counts.sum() == 5000
    assert torch.equal(groups.unpack(groups.pack(index)), index)
    packed = groups.pack(index)
    assert torch.equal(packed[groups.mask()], torch.arange(300).expand_as(packed)[groups.mask()])


@pytest.mark.parametrize(
    ("index", "num_groups", "message"),
    [
        (torch.tensor([[0, 1]]), None, r"index must be a vector of at least one whole number, got"),
        (torch.tensor(1), None, r"got torch\.int64 of shape \(\)"),
        (torch.zeros(0, dtype=torch.int64), None, r"got torch\.int64 of shape \(0,\)"),
        (torch.tensor([0.0, 1.0]), None, r"got torch\.float32 of shape \(2,\)"),
        (torch.tensor([0, -1]), None, "index must be >= 0$"),
        (torch.tensor([0, 3]), 3, "index must be >= 0 and below num_groups=3"),
        (torch.tensor([0, -1]), 3, "index must be >= 0 and below num_groups=3"),
    ],
    ids=str,
)
def test_refusals(index, num_groups, message):
    with pytest.raises(ValueError, match=message):
        RowGroups(index, num_groups)


@pytest.mark.parametrize("max_groups", [None, 1, 7])
def test_blocks(max_groups: int | None) -> None:
    """Every row once, in a block with its group; rectangles are not much larger than their rows."""
    generator = torch.Generator().manual_seed(1)
    index = torch.cat([torch.randint(500, (3000,), generator=generator), torch.full((4000,), 77)])
    index = index[torch.randperm(len(index), generator=generator)]
    found = []
    for block in group_blocks(index, max_groups):
        assert torch.equal(block.groups[block.position], index[block.rows])
        assert max_groups is None or len(block.groups) <= max_groups
        depth = int(torch.bincount(block.position).max())
        assert depth * len(block.groups) <= max(4 * len(block.rows), 4096)
        found.append(block.rows)
    assert torch.equal(torch.cat(found).sort().values, torch.arange(7000))
    assert max_groups is not None or len(found) <= 10


def test_blocks_hold_groups_of_similar_size():
    """Without a small rectangle to fall back on, padding at most doubles the rows."""
    index = torch.tensor([0] * 40 + [1] * 3 + [2] * 2 + [3, 4, 5])
    blocks = list(group_blocks(index, max_padding=2, small=0))
    assert [block.groups.tolist() for block in blocks] == [[0, 1], [2, 3, 4, 5]]
    for block in blocks:
        plan = RowGroups(block.position)
        assert plan.depth * plan.num_groups <= 2 * len(block.rows)


def test_even_groups_are_one_block():
    (block,) = group_blocks(torch.tensor([2, 0, 2, 0, 5]), max_padding=2, small=0)
    assert sorted(block.rows.tolist()) == [0, 1, 2, 3, 4]


def test_a_plan_goes_to_a_device():
    plan = RowGroups(torch.tensor([1, 0, 1]))
    moved = plan.to(torch.device("cpu"))
    rows = torch.arange(3.0)
    assert torch.equal(moved.pack(rows), plan.pack(rows)) and moved.depth == 2
