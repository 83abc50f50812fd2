# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What a loaded set is: arrays of bytes, and the tensors that models train on."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bytes: TypeAlias = npt.NDArray[np.uint8]
Split: TypeAlias = Literal["train", "validation", "test"]

# Random numbers are drawn for this many images at a time, to bound memory. They come from the
# generator one by one, so the result does not depend on it.
_BLOCK = 4096


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images with labels, in a training, a test and possibly a validation split.

    :func:`~pyro_ebm.datasets.load` makes it; so can you, from your own images.

    :param name: what the set is called.
    :param train_images: unsigned bytes, shape ``(N, *image_shape)``.
    :param train_labels: the class of each image, shape ``(N,)``.
    :param test_images: as ``train_images``, for the test split.
    :param test_labels: as ``train_labels``, for the test split.
    :param max_value: the byte that means white (1 as a grey level): 255, or 16 for the digits.
    :param validation_images: as ``train_images``; ``None`` if none are held out.
    :param validation_labels: as ``train_labels``; ``None`` if none are held out.
    :param label_names: a name for each class; may be empty.
    :raises TypeError: if images are not unsigned bytes.
    :raises ValueError: if shapes disagree, or a byte is above ``max_value``.

    >>> images, labels = np.eye(4, dtype=np.uint8).reshape(4, 2, 2), np.arange(4)
    >>> Dataset("one-hot", images[:3], labels[:3], images[3:], labels[3:], max_value=1).test()
    tensor([[0., 0., 0., 1.]])
    """

    name: str
    train_images: Bytes
    train_labels: npt.NDArray[np.integer]
    test_images: Bytes
    test_labels: npt.NDArray[np.integer]
    max_value: int
    validation_images: Bytes | None = None
    validation_labels: npt.NDArray[np.integer] | None = None
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.max_value <= 255:
            raise ValueError(f"max_value: expected 1 to 255; got {self.max_value}")
        self._check("train", self.train_images, self.train_labels)
        self._check("test", self.test_images, self.test_labels)
        if (self.validation_images is None) != (self.validation_labels is None):
            raise ValueError(
                "validation_images and validation_labels: expected both or neither; got one"
            )
        if self.validation_images is not None and self.validation_labels is not None:
            self._check("validation", self.validation_images, self.validation_labels)

    def _check(self, split: str, images: Bytes, labels: npt.NDArray[np.integer]) -> None:
        if images.dtype != np.uint8:
            raise TypeError(f"{split}_images: expected dtype uint8; got {images.dtype}")
        if images.ndim < 2 or images.shape[1:] != self.image_shape:
            raise ValueError(
                f"{split}_images: expected shape (N, *image_shape) with the image_shape of "
                f"train_images, {self.image_shape}; got {images.shape}"
            )
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"{split}_labels: expected shape ({len(images)},), one per image; "
                f"got {labels.shape}"
            )
        if images.size and images.max() > self.max_value:
            raise ValueError(
                f"{split}_images: expected bytes up to max_value={self.max_value}; "
                f"got {images.max()}"
            )

    def __repr__(self) -> str:
        num_validation = 0 if self.validation_images is None else len(self.validation_images)
        return (
            f"{type(self).__name__}({self.name!r}, train={len(self.train_images)}, "
            f"validation={num_validation}, test={len(self.test_images)}, "
            f"image_shape={self.image_shape}, max_value={self.max_value})"
        )

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image: ``(H, W)``, or ``(C, H, W)`` for colour (channels first)."""
        return self.train_images.shape[1:]

    @property
    def num_pixels(self) -> int:
        """Length ``D`` of a flattened image, channels included."""
        return int(np.prod(self.image_shape))

    def images(self, split: Split = "train") -> Bytes:
        """Images of a split, as bytes.

        :param split: ``"train"``, ``"validation"`` or ``"test"``.
        :returns: unsigned bytes from 0 to ``max_value``, shape ``(N, *image_shape)``.
        :raises ValueError: if there is no such split.
        """
        splits = {
            "train": self.train_images,
            "validation": self.validation_images,
            "test": self.test_images,
        }
        if split not in splits:
            raise ValueError(f"split: expected one of {', '.join(splits)}; got {split!r}")
        images = splits[split]
        if images is None:
            raise ValueError(
                f"split: {self.name} has no validation images; hold some out with "
                f"load({self.name!r}, validation=...)"
            )
        return images

    def labels(self, split: Split = "train") -> Tensor:
        """Labels of a split.

        :param split: ``"train"``, ``"validation"`` or ``"test"``.
        :returns: the class of each image, int64, shape ``(N,)``.
        :raises ValueError: if there is no such split.
        """
        self.images(split)
        return torch.tensor(getattr(self, f"{split}_labels"), dtype=torch.int64)

    def grey_levels(self, split: Split = "train", dtype: torch.dtype = torch.float32) -> Tensor:
        """Images of a split as flat rows of grey levels.

        :param split: ``"train"``, ``"validation"`` or ``"test"``.
        :param dtype: a floating-point type.
        :returns: grey levels from 0 (black) to 1 (white), shape ``(N, D)``. Colour images are
            flattened channels first: all red levels, then green, then blue.
        :raises TypeError: if ``dtype`` is not a floating-point type.
        :raises ValueError: if there is no such split.
        """
        if not dtype.is_floating_point:
            raise TypeError(f"dtype: expected a floating-point type; got {dtype}")
        rows = self.images(split).reshape(-1, self.num_pixels)
        return torch.tensor(rows).to(dtype).div_(self.max_value)

    def train(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Training images, as :meth:`grey_levels` gives them."""
        return self.grey_levels("train", dtype)

    def validation(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Validation images, as :meth:`grey_levels` gives them."""
        return self.grey_levels("validation", dtype)

    def test(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Test images, as :meth:`grey_levels` gives them."""
        return self.grey_levels("test", dtype)

    def binarized(
        self,
        split: Split = "train",
        seed: int | None = None,
        *,
        threshold: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Static binarization: every pixel is 0 or 1, once and for all.

        With a ``seed``, a pixel is 1 with a probability of exactly its grey level. The random
        numbers run through the training images, the validation images and the test images: splits
        are independent of each other, and an image gets the same bits however many images are
        held out. With a ``threshold``, a pixel is 1 where its grey level is above it.

        :param split: ``"train"``, ``"validation"`` or ``"test"``.
        :param seed: the seed of the random numbers. Give this or ``threshold``.
        :param threshold: a grey level, at least 0 and below 1. Give this or ``seed``.
        :param dtype: the type of the result.
        :returns: zeros and ones, shape ``(N, D)``.
        :raises TypeError: unless exactly one of ``seed`` and ``threshold`` is given.
        :raises ValueError: if there is no such split, or ``threshold`` is out of range.

        >>> from pyro_ebm import datasets
        >>> digits = datasets.load("digits")
        >>> digits.binarized("test", seed=0).unique()
        tensor([0., 1.])
        """
        if threshold is None and seed is not None:
            return self._sample(split, seed, dtype)
        if threshold is None or seed is not None:
            raise TypeError(
                f"seed, threshold: expected exactly one of them; got seed={seed}, "
                f"threshold={threshold}"
            )
        if not 0.0 <= threshold < 1.0:
            raise ValueError(f"threshold: expected 0 <= threshold < 1; got {threshold}")
        rows = self.images(split).reshape(-1, self.num_pixels)
        return torch.tensor(rows > threshold * self.max_value, dtype=dtype)

    def _sample(self, split: Split, seed: int, dtype: torch.dtype) -> Tensor:
        rows = self.images(split).reshape(-1, self.num_pixels)
        generator = torch.Generator().manual_seed(seed)
        self._skip_splits_before(split, generator)
        result = torch.empty(rows.shape, dtype=dtype)
        for start in range(0, len(rows), _BLOCK):
            block = torch.tensor(rows[start : start + _BLOCK])
            # An integer below max_value is below k in k cases out of max_value: no rounding.
            noise = self._integers(len(block), generator)
            torch.lt(noise, block, out=result[start : start + _BLOCK])
        return result

    def _skip_splits_before(self, split: Split, generator: torch.Generator) -> None:
        num_train = len(self.train_images)
        num_validation = 0 if self.validation_images is None else len(self.validation_images)
        skipped = {"train": 0, "validation": num_train, "test": num_train + num_validation}[split]
        for start in range(0, skipped, _BLOCK):
            self._integers(min(_BLOCK, skipped - start), generator)

    def _integers(self, num_images: int, generator: torch.Generator) -> Tensor:
        shape = (num_images, self.num_pixels)
        return torch.randint(self.max_value, shape, generator=generator, dtype=torch.uint8)


def binarize(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Dynamic binarization: every call draws new zeros and ones.

    Call it on each batch, so that each epoch sees other bits of the same grey levels.

    :param x: grey levels from 0 to 1, of any shape; the probabilities of a 1.
    :param generator: where random numbers come from, on the device of ``x``; torch's global
        generator by default.
    :returns: zeros and ones, with the shape, type and device of ``x``.
    :raises TypeError: if ``x`` is not of a floating-point type.
    :raises ValueError: if ``x`` has values outside [0, 1].

    >>> binarize(torch.tensor([0.0, 1.0]))
    tensor([0., 1.])
    """
    if not x.dtype.is_floating_point:
        raise TypeError(f"x: expected grey levels of a floating-point type; got {x.dtype}")
    if x.numel() and not ((x >= 0) & (x <= 1)).all():
        raise ValueError(
            f"x: expected grey levels from 0 to 1; got {x.min().item():g} to {x.max().item():g}"
        )
    # Half-precision uniforms have few bits and would bias the result: draw at least float32.
    dtype = torch.promote_types(x.dtype, torch.float32)
    noise = torch.rand(x.shape, generator=generator, dtype=dtype, device=x.device)
    return torch.lt(noise, x, out=noise).to(x.dtype)
