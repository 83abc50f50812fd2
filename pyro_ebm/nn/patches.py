# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Where patches are in an image whose pixels are flattened."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Position", "grid_corners", "patch_entries", "visible_entries"]

#: Corner of a patch, or the entries of the image that it consists of.
Position = tuple[int, int] | Tensor | Sequence[int]


def patch_entries(
    image_shape: Sequence[int], patch_shape: Sequence[int], top: int, left: int
) -> Tensor:
    """Entries of a flattened image that belong to a patch, in the order of the flattened patch.

    :param image_shape: ``(H, W)`` or, channels first, ``(C, H, W)``.
    :param patch_shape: the same of the patch.
    :param int top: first row of the patch.
    :param int left: first column of the patch.
    :returns: int64, shape ``(prod(patch_shape),)``.
    :raises ValueError: if shapes are impossible or the patch reaches over an edge.

    >>> from pyro_ebm.nn.patches import patch_entries
    >>> patch_entries((3, 4), (2, 2), 1, 2)
    tensor([ 6,  7, 10, 11])
    """
    image, patch = _check_shapes(image_shape, patch_shape)
    (height, width), (rows, columns) = image[-2:], patch[-2:]
    if not (0 <= top <= height - rows and 0 <= left <= width - columns):
        raise ValueError(
            f"a patch of shape {patch} at ({top}, {left}) does not fit into an image of shape {image}"
        )
    index = torch.arange(math.prod(image)).reshape(image)
    return index[..., top : top + rows, left : left + columns].flatten()


def grid_corners(
    image_shape: Sequence[int],
    patch_shape: Sequence[int],
    stride: int | Sequence[int] | None = None,
) -> list[tuple[int, int]]:
    """Upper left corners of patches on a grid that begins and ends at the edges, row by row.

    :param image_shape: ``(H, W)`` or ``(C, H, W)``.
    :param patch_shape: the same of the patch.
    :param stride: steps from patch to patch, a number or ``(rows, columns)``; the size of a patch if None.
    :raises ValueError: if a stride is impossible, or the grid does not end at the edges.

    >>> from pyro_ebm.nn.patches import grid_corners
    >>> grid_corners((4, 6), (2, 2), (2, 4))
    [(0, 0), (0, 4), (2, 0), (2, 4)]
    """
    image, patch = _check_shapes(image_shape, patch_shape)
    steps = patch[-2:] if stride is None else stride
    pair = (steps, steps) if isinstance(steps, int) else tuple(steps)
    if len(pair) != 2 or not all(_is_whole(step) and step >= 1 for step in pair):
        raise ValueError(f"stride must be a whole number >= 1 or two of them, got {stride!r}")
    for name, size, length, step in zip(
        ("rows", "columns"), image[-2:], patch[-2:], pair, strict=True
    ):
        if length > size or (size - length) % step:
            raise ValueError(
                f"{name}: patches of {length} at a stride of {step} do not end at the edge of {size}"
            )
    down, across = (
        range(0, size - length + 1, step)
        for size, length, step in zip(image[-2:], patch[-2:], pair, strict=True)
    )
    return [(top, left) for top in down for left in across]


def visible_entries(
    position: Any,
    num_visible: int,
    image_shape: Sequence[int],
    patch_shape: Sequence[int] | None,
    num_states: int = 1,
) -> Tensor:
    """Entries of the visible layer of an image at which that of a patch stands.

    :param position: corner of the patch or the entries themselves.
    :param int num_visible: entries of the visible layer of the patch.
    :param image_shape: shape of the image in pixels.
    :param patch_shape: shape of the patch, for corners.
    :param int num_states: entries of a pixel, more than one for one-hot groups.
    :raises TypeError: if the position is neither.
    :raises ValueError: if it does not fit.
    """
    if isinstance(position, tuple):
        if len(position) != 2 or not all(_is_whole(x) for x in position):
            raise TypeError(f"a corner must be two whole numbers, got {position!r}")
        if patch_shape is None:
            raise ValueError("positions by their corners need a patch_shape")
        pixels = patch_entries(image_shape, patch_shape, *position)
        entries = (pixels.unsqueeze(-1) * num_states + torch.arange(num_states)).flatten()
    else:
        entries = _vector(position)
    if entries.shape != (num_visible,):
        raise ValueError(
            f"the patch at {_short(position)} has {entries.numel()} entries, its machine {num_visible}"
        )
    size = math.prod(image_shape) * num_states
    if bool(((entries < 0) | (entries >= size)).any()) or len(entries.unique()) < num_visible:
        raise ValueError(
            f"entries of a patch must be different numbers from 0 to {size - 1}, got {_short(position)}"
        )
    groups = entries.reshape(-1, num_states)
    if bool(
        (groups != groups[:, :1] + torch.arange(num_states)).any()
        | (groups[:, 0] % num_states).any()
    ):
        raise ValueError(
            f"a patch must take whole one-hot groups of {num_states} entries, in order"
        )
    return entries


def _vector(position: Any) -> Tensor:
    try:
        entries = torch.as_tensor(position).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"a position must be a tuple (top, left) or a vector of entries, got {position!r}"
        ) from error
    if entries.is_floating_point() or entries.is_complex() or entries.dtype == torch.bool:
        raise TypeError(f"entries of a patch must be whole numbers, got {entries.dtype}")
    if entries.dim() != 1:
        raise ValueError(f"entries of a patch must be a vector, got shape {tuple(entries.shape)}")
    return entries.long()


def _check_shapes(
    image_shape: Sequence[int], patch_shape: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    image, patch = tuple(image_shape), tuple(patch_shape)
    for name, shape in (("image_shape", image), ("patch_shape", patch)):
        if len(shape) not in (2, 3) or not all(_is_whole(n) and n >= 1 for n in shape):
            raise ValueError(f"{name} must be (H, W) or (C, H, W), got {shape}")
    if image[:-2] != patch[:-2]:
        raise ValueError(f"image_shape {image} and patch_shape {patch} differ in their channels")
    return image, patch


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _short(position: Any) -> str:
    text = str(position)
    return text if len(text) <= 60 else f"{text[:57]}..."
