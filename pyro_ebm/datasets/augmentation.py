# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""More images from images: shifts and mirrors, which change pixels but not what is shown."""

import torch
from torch import Tensor

__all__ = ["mirror_images", "shift_images", "shifts_and_mirrors"]


def shift_images(images: Tensor, down: int, right: int) -> Tensor:
    """Images moved by whole pixels; pixels that come in from outside repeat the edge.

    :param Tensor images: shape ``(..., H, W)``, any type.
    :param int down: rows that the content moves down; upwards if negative.
    :param int right: columns that it moves to the right; to the left if negative.
    :returns: a new tensor of the same shape and type.
    :raises TypeError: if images are no tensor, or shifts no whole numbers.
    :raises ValueError: for other shapes, or shifts as large as the image.

    >>> import torch
    >>> from pyro_ebm.datasets import shift_images
    >>> shift_images(torch.tensor([[1, 2, 3], [4, 5, 6]]), down=0, right=1)
    tensor([[1, 1, 2],
            [4, 4, 5]])
    """
    height, width = _check_images(images)
    rows = _sources("down", down, height)
    columns = _sources("right", right, width)
    moved = images.index_select(-2, rows.to(images.device))
    return moved.index_select(-1, columns.to(images.device))


def mirror_images(images: Tensor) -> Tensor:
    """Images with left and right exchanged.

    :param Tensor images: shape ``(..., H, W)``, any type.
    :returns: a new tensor of the same shape and type.
    :raises TypeError: if images are no tensor.
    :raises ValueError: for other shapes.

    >>> import torch
    >>> from pyro_ebm.datasets import mirror_images
    >>> mirror_images(torch.tensor([[1, 2, 3]]))
    tensor([[3, 2, 1]])
    """
    _check_images(images)
    return images.flip(-1)


def shifts_and_mirrors(images: Tensor) -> Tensor:
    """Ten images of every one: itself, moved by one pixel in each of four directions, and the mirror
    images of these five.

    :param Tensor images: shape ``(N, ..., H, W)``, any type.
    :returns: shape ``(10 N, ..., H, W)``: first all images, then all of them moved up, down, left, right,
        then the mirror images in the same order. Row ``k * N + i`` is made of image i, so that
        ``labels.repeat(10)`` are the labels.
    :raises TypeError: if images are no tensor.
    :raises ValueError: for other shapes.

    >>> import torch
    >>> from pyro_ebm.datasets import shifts_and_mirrors
    >>> shifts_and_mirrors(torch.zeros(7, 3, 32, 32, dtype=torch.uint8)).shape
    torch.Size([70, 3, 32, 32])
    """
    _check_images(images)
    if images.dim() < 3:
        raise ValueError(f"images: expected shape (N, ..., H, W); got {tuple(images.shape)}")
    moves = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
    moved = torch.cat([shift_images(images, down, right) for down, right in moves])
    return torch.cat([moved, mirror_images(moved)])


def _check_images(images: object) -> tuple[int, int]:
    """Height and width."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images: expected a tensor; got {type(images).__name__}")
    if images.dim() < 2 or 0 in images.shape[-2:]:
        raise ValueError(f"images: expected shape (..., H, W); got {tuple(images.shape)}")
    return images.shape[-2], images.shape[-1]


def _sources(name: str, shift: object, size: int) -> Tensor:
    """Where the content of every row or column comes from."""
    if not isinstance(shift, int) or isinstance(shift, bool):
        raise TypeError(f"{name}: expected a whole number; got {shift!r}")
    if abs(shift) >= size:
        raise ValueError(f"{name}: expected less than the {size} pixels of the image; got {shift}")
    return (torch.arange(size) - shift).clamp(0, size - 1)
