# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Images of the CIFAR-10 recipes: splits, synthetic stand-ins, and the map from bytes to rows and back."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm import datasets
from pyro_ebm.datasets import Smoothing, Whitening, shifts_and_mirrors
from pyro_ebm.nn.serialization import read_tensors, write_tensors

SPLITS = ("train", "validation", "test")
#: Images that are mapped at once.
_CHUNK_ROWS = 8192
#: Grey levels, of 0 to 1, below which the spread within an image counts as none.
_FLAT = 0.04


@dataclass(frozen=True)
class Images:
    """Bytes of shape ``(N, 3, S, S)`` and classes of shape ``(N,)``, by split."""

    pixels: dict[str, Tensor]
    labels: dict[str, Tensor]
    names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image, channels first."""
        return tuple(self.pixels["train"].shape[1:])


def load_images(options: Any) -> Images:
    """CIFAR-10, the last training images held out for validation; synthetic images for ``--smoke``."""
    if options.smoke:
        return synthetic_images(options.smoke_size, options.seed)
    data = datasets.load("cifar10", validation=options.validation)
    pixels = {split: torch.tensor(data.images(split)) for split in SPLITS}
    labels = {split: data.labels(split) for split in SPLITS}
    if options.num_train:
        pixels["train"] = pixels["train"][: options.num_train]
        labels["train"] = labels["train"][: options.num_train]
    return Images(pixels, labels, data.label_names)


def synthetic_images(size: int, seed: int, num_train: int = 800, num_others: int = 100) -> Images:
    """Coloured stripes with noise: four classes by direction and colour, learnt within seconds."""
    generator = Generator().manual_seed(seed)
    number = num_train + 2 * num_others
    y = torch.arange(number) % 4
    across = torch.linspace(0.0, 3.0 * torch.pi, size)
    phase = 0.5 * torch.pi * torch.rand(number, 1, 1, generator=generator)
    wave = torch.where(
        (y % 2 == 0)[:, None, None], across.reshape(1, 1, size), across.reshape(1, size, 1)
    )
    stripes = torch.sin(wave + phase).expand(number, size, size).unsqueeze(1)
    colours = torch.tensor([[1.0, 0.3, -0.6], [0.2, 1.0, 0.1], [-0.8, 0.1, 1.0], [0.9, 0.8, -0.9]])
    noise = torch.randn(number, 3, size, size, generator=generator)
    grey = 0.5 + 0.3 * stripes * colours[y][:, :, None, None] + 0.06 * noise
    pixels = (255.0 * grey.clamp(0.0, 1.0)).round().to(torch.uint8)
    parts = [num_train, num_others, num_others]
    return Images(
        dict(zip(SPLITS, pixels.split(parts), strict=True)),
        dict(zip(SPLITS, y.split(parts), strict=True)),
        ("across, red", "down, green", "across, blue", "down, yellow"),
    )


# --- rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocessing:
    r"""The map from images to the rows that machines see, fitted on training images alone.

    With ``contrast`` every image is first brought to mean 0 and variance 1 over its own entries. Then
    :math:`z = (x - \bar x) A`: smoothing (the projection P on the directions of largest variance) times
    whitening or standardisation.

    :param bool contrast: see above.
    :param Tensor mean: shape ``(D,)``.
    :param Tensor matrix: A, shape ``(D, D)``.
    :param Tensor back: from rows to smooth images, shape ``(D, D)``; ``matrix @ back`` is P.
    """

    contrast: bool
    mean: Tensor
    matrix: Tensor
    back: Tensor

    @classmethod
    def fit(
        cls,
        images: Tensor,
        *,
        contrast: bool,
        num_dropped: int,
        whiten: bool,
        regularization: float,
    ) -> "Preprocessing":
        """The map of some training images.

        :param Tensor images: bytes, shape ``(N, 3, S, S)``.
        :param bool contrast: whether every image is brought to the same mean and spread.
        :param int num_dropped: directions of least variance that are left out.
        :param bool whiten: whiten; standardise every entry if False.
        :param float regularization: of the whitening, see :class:`pyro_ebm.datasets.Whitening`.
        """
        rows = torch.cat([_levels(part, contrast) for part in images.split(_CHUNK_ROWS)])
        smoothing = Smoothing.fit(rows, num_dropped)
        projection = smoothing.directions @ smoothing.directions.T
        smooth = torch.cat([smoothing(part) for part in rows.split(_CHUNK_ROWS)])
        if whiten:
            whitening = Whitening.fit(smooth, regularization)
            matrix, back = whitening.matrix, whitening.inverse_matrix
        else:
            scale = smooth.std(0, correction=0).clamp(min=1e-3)
            matrix, back = torch.diag(1.0 / scale), torch.diag(scale)
        return cls(contrast, smoothing.mean, projection @ matrix, back)

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows of images, shape ``(N, D)``, on the device of the map."""
        rows = torch.empty(len(images), len(self.mean), dtype=dtype, device=self.mean.device)
        for out, part in zip(rows.split(_CHUNK_ROWS), images.split(_CHUNK_ROWS), strict=True):
            levels = _levels(part.to(self.mean.device), self.contrast)
            out.copy_((levels - self.mean) @ self.matrix)
        return rows

    def to_pixels(self, rows: Tensor) -> Tensor:
        """Images to look at, in [0, 1]: mean and spread that contrast normalisation took away are those of a
        usual image."""
        levels = rows.to(self.back) @ self.back + self.mean
        return (0.5 + 0.22 * levels if self.contrast else levels).clamp(0.0, 1.0)

    def directions(self, weight: Tensor) -> Tensor:
        """What weights in the space of rows do to the levels of an image, shape ``(D, H)``."""
        return self.back.T @ weight.to(self.back)

    def to(self, device: torch.device | str) -> "Preprocessing":
        """The same on another device."""
        tensors = (self.mean, self.matrix, self.back)
        return Preprocessing(self.contrast, *(t.to(device) for t in tensors))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map, atomically."""
        tensors = {"mean": self.mean, "matrix": self.matrix, "back": self.back}
        write_tensors(path, tensors, {"kind": "preprocessing", "contrast": self.contrast})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Preprocessing":
        """Read what :meth:`save` wrote."""
        tensors, metadata = read_tensors(path)
        return cls(bool(metadata["contrast"]), **tensors)


def _levels(images: Tensor, contrast: bool) -> Tensor:
    """Levels in [0, 1] as rows, or with mean 0 and variance 1 in every row."""
    rows = images.flatten(1).float() / 255.0
    if not contrast:
        return rows
    rows = rows - rows.mean(1, keepdim=True)
    # What is nearly flat is not blown up to noise.
    return rows / (rows.square().mean(1, keepdim=True) + _FLAT**2).sqrt()


def training_rows(
    images: Images, preprocessing: Preprocessing, augment: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Rows of the training images and their classes.

    :param str augment: "none"; "mirrors" for every image and its mirror image; or "shifts" for the ten of
        :func:`pyro_ebm.datasets.shifts_and_mirrors`.
    """
    pixels, labels = images.pixels["train"], images.labels["train"]
    if augment == "mirrors":
        pixels, labels = torch.cat([pixels, datasets.mirror_images(pixels)]), labels.repeat(2)
    elif augment == "shifts":
        pixels, labels = shifts_and_mirrors(pixels), labels.repeat(10)
    return preprocessing(pixels, dtype), labels


def pool_rows(rows: Tensor, shape: tuple[int, ...], factor: int) -> Tensor:
    """Rows of images whose blocks of ``factor`` by ``factor`` pixels are averaged."""
    pooled = torch.empty(len(rows), len(rows[0]) // factor**2, dtype=rows.dtype, device=rows.device)
    for out, part in zip(pooled.split(_CHUNK_ROWS), rows.split(_CHUNK_ROWS), strict=True):
        blocks = part.reshape(len(part), *shape).float()
        out.copy_(torch.nn.functional.avg_pool2d(blocks, factor).flatten(1))
    return pooled
