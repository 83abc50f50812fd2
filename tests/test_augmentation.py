# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Shifts, mirrors and smoothing: against loops, numpy's padding and the singular value decomposition."""

import math

import numpy as np
import pytest
import torch

from pyro_ebm.datasets import Smoothing, mirror_images, shift_images, shifts_and_mirrors


def images(dtype=torch.uint8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (4, 3, 5, 6), generator=generator, dtype=torch.int64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (2, -3)])
def test_shifts_repeat_the_edge(down, right, dtype):
    x = images(dtype)
    pad = 3
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="edge")
    top, left = pad - down, pad - right
    expected = torch.tensor(padded[..., top : top + 5, left : left + 6])
    got = shift_images(x, down, right)
    assert got.dtype == dtype and torch.equal(got, expected)
    assert torch.equal(shift_images(x[0, 0], down, right), expected[0, 0])


def test_mirrors_exchange_left_and_right():
    x = images()
    got = mirror_images(x)
    assert all(torch.equal(got[..., j], x[..., 5 - j]) for j in range(6))


def test_ten_images_of_every_one():
    x = images()
    ten = shifts_and_mirrors(x).unflatten(0, (10, 4))
    moves = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
    for k, (down, right) in enumerate(moves):
        expected = shift_images(x, down, right)
        assert torch.equal(ten[k], expected)
        assert torch.equal(ten[5 + k], torch.tensor(expected.numpy()[..., ::-1].copy()))
    labels = torch.arange(4).repeat(10)
    centre = shifts_and_mirrors(x)[:, 0, 2, 2:4]
    for i in range(4):
        # One pixel away from the middle is still the same image.
        pool = set(x[i, 0, 1:4, 1:5].flatten().tolist())
        assert set(centre[labels == i].flatten().tolist()) <= pool


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: shift_images([[1]], 0, 0), TypeError, "images: expected a tensor; got list"),
        (lambda: shift_images(torch.ones(3), 0, 0), ValueError, r"expected shape \(..., H, W\)"),
        (
            lambda: shift_images(images(), 1.5, 0),
            TypeError,
            "down: expected a whole number; got 1.5",
        ),
        (lambda: shift_images(images(), 0, True), TypeError, "right: expected a whole number"),
        (
            lambda: shift_images(images(), 0, 6),
            ValueError,
            "right: expected less than the 6 pixels",
        ),
        (lambda: mirror_images(torch.ones(3, 0)), ValueError, r"got \(3, 0\)"),
        (
            lambda: shifts_and_mirrors(torch.ones(3, 3)),
            ValueError,
            r"expected shape \(N, ..., H, W\)",
        ),
    ],
)
def test_what_is_no_image(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- smoothing ----------------------------------------------------------------------------------


def rows(count: int = 60, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(size, size, dtype=torch.float64, generator=generator)
    return torch.randn(count, size, dtype=torch.float64, generator=generator) @ mix + 3.0


@pytest.mark.parametrize("num_dropped", [0, 1, 5, 7])
@pytest.mark.parametrize("count", [60, 6000])
def test_the_smallest_singular_values_are_gone(num_dropped, count):
    x = rows(count)
    u, s, vh = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    s[len(s) - num_dropped :] = 0.0
    expected = u * s @ vh + x.mean(0)
    smoothing = Smoothing.fit(x, num_dropped)
    torch.testing.assert_close(smoothing(x), expected, rtol=1e-9, atol=1e-9)
    # A projection: once is as good as twice.
    torch.testing.assert_close(smoothing(smoothing(x)), smoothing(x), rtol=1e-9, atol=1e-9)


def test_other_rows_lose_the_same_directions():
    x, others = rows(), rows(20) ** 2
    smoothing = Smoothing.fit(x, 3)
    vh = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2]
    changed = smoothing(others)
    nothing = torch.zeros(20, 3, dtype=torch.float64)
    torch.testing.assert_close((changed - x.mean(0)) @ vh[5:].T, nothing, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        (changed - others) @ vh[:5].T, torch.zeros(20, 5).double(), rtol=0, atol=1e-9
    )
    one = smoothing(others[0].reshape(1, 1, 8))
    torch.testing.assert_close(one[0, 0], changed[0], rtol=1e-12, atol=1e-12)
    assert Smoothing.fit(x.float(), 3)(others.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rows": [[1.0]]}, TypeError, "expected a floating-point tensor; got list"),
        ({"rows": torch.ones(3, 2).int()}, TypeError, "got torch.int32"),
        ({"rows": torch.ones(3)}, ValueError, r"expected shape \(N >= 1, D >= 1\); got \(3,\)"),
        ({"rows": torch.full((3, 2), math.nan)}, ValueError, "expected finite values"),
        ({"num_dropped": 8}, ValueError, "num_dropped: expected 0 to 7; got 8"),
        ({"num_dropped": -1}, ValueError, "got -1"),
        ({"num_dropped": 1.5}, ValueError, "got 1.5"),
    ],
)
def test_what_cannot_be_smoothed(arguments, error, message):
    with pytest.raises(error, match=message):
        Smoothing.fit(**{"rows": rows(), "num_dropped": 1, **arguments})


def test_rows_of_another_length():
    with pytest.raises(ValueError, match=r"expected shape \(..., 8\); got \(2, 4\)"):
        Smoothing.fit(rows(), 1)(torch.ones(2, 4))
