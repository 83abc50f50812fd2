# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Patches of natural images for the example ``grbm_patches.py``: grey levels, cut out, whitened in blocks."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pyro_ebm import datasets
from pyro_ebm.datasets import Dataset, Whitening

#: What is tried, best first, where no data set is named.
PREFERENCE = ("cifar10", "fashion-mnist", "mnist")


def load_images(name: str, validation: int) -> Dataset:
    """A data set by name; "auto" for the first of :data:`PREFERENCE` that is found.

    :raises FileNotFoundError: if none is.
    """
    names = PREFERENCE if name == "auto" else (name,)
    for candidate in names:
        try:
            return datasets.load(candidate, validation=validation, download=name != "auto")
        except FileNotFoundError as error:
            if candidate == names[-1]:
                raise
            print(f"{candidate} is not there ({str(error).splitlines()[0]})")
    raise AssertionError("unreachable")


def to_pixels(dataset: Dataset, split: str, colour: bool, generator: Generator) -> Tensor:
    """Images of shape ``(N, C, H, W)`` with values in (0, 1).

    Bytes are spread evenly over their step, so that densities of real numbers make sense; colours are
    averaged unless wanted.
    """
    images = torch.tensor(dataset.images(split))
    if images.dim() == 3:
        images = images.unsqueeze(1)
    noise = torch.rand(images.shape, generator=generator)
    pixels = (images.float() + noise) / (dataset.max_value + 1)
    return pixels if colour else pixels.mean(1, keepdim=True)


def cut_patches(images: Tensor, size: int, count: int, generator: Generator) -> Tensor:
    """Square patches at random places of random images, shape ``(count, C * size * size)``."""
    number, _, height, width = images.shape
    which = torch.randint(number, (count,), generator=generator)
    top = torch.randint(height - size + 1, (count,), generator=generator)
    left = torch.randint(width - size + 1, (count,), generator=generator)
    steps = torch.arange(size)
    rows = (top.unsqueeze(1) + steps)[:, :, None]
    columns = (left.unsqueeze(1) + steps)[:, None, :]
    # An index before and after the slice puts the patches first: (count, size, size, C).
    patches = images[which[:, None, None], :, rows, columns]
    return patches.permute(0, 3, 1, 2).flatten(1)


@dataclass(frozen=True)
class BlockWhitening:
    """Images as a grid of blocks that are whitened one by one, flattened as images are.

    :param Whitening whitening: that of a block.
    :param tuple shape: shape of a block, ``(C, size, size)``.
    """

    whitening: Whitening
    shape: tuple[int, int, int]

    def crop(self, images: Tensor) -> Tensor:
        """The middle of the images, as large as whole blocks fill it."""
        size = self.shape[-1]
        height, width = ((n // size) * size for n in images.shape[-2:])
        top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
        return images[..., top : top + height, left : left + width]

    def __call__(self, images: Tensor) -> Tensor:
        """Whitened images, shape ``(N, C * H * W)``, of pixels of shape ``(N, C, H, W)``."""
        return self._blockwise(images, self.whitening).flatten(1)

    def inverse(self, rows: Tensor, image_shape: tuple[int, ...]) -> Tensor:
        """Pixels, shape ``(N, C * H * W)``."""
        images = rows.reshape(len(rows), *image_shape)
        return self._blockwise(images, self.whitening.inverse).flatten(1)

    def _blockwise(self, images: Tensor, function: object) -> Tensor:
        number, channels, height, width = images.shape
        size = self.shape[-1]
        grid = images.reshape(number, channels, height // size, size, width // size, size)
        blocks = grid.permute(0, 2, 4, 1, 3, 5).flatten(3)
        changed = function(blocks).reshape(*blocks.shape[:3], channels, size, size)
        return changed.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def gaussian_log_prob(train: Tensor, rows: Tensor) -> Tensor:
    """Log-density of rows under the normal law with mean and covariance of the training rows."""
    train, rows = train.double(), rows.double()
    covariance = torch.cov(train.T, correction=0)
    root = torch.linalg.cholesky(covariance)
    z = torch.linalg.solve_triangular(root, (rows - train.mean(0)).T, upper=False)
    log_det = root.diagonal().log().sum()
    return -0.5 * z.square().sum(0) - log_det - 0.5 * train.shape[1] * math.log(2.0 * math.pi)
