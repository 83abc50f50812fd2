# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Image sets that Boltzmann machines are compared on, found or downloaded, and always verified.

>>> from pyro_ebm import datasets
>>> digits = datasets.load("digits")
>>> digits
Dataset('digits', train=1437, validation=0, test=360, image_shape=(8, 8), max_value=16)
>>> digits.train().shape
torch.Size([1437, 64])
"""

import dataclasses
import operator
import os

from pyro_ebm.datasets.augmentation import mirror_images, shift_images, shifts_and_mirrors
from pyro_ebm.datasets.dataset import Dataset, binarize
from pyro_ebm.datasets.files import DatasetError, Finder
from pyro_ebm.datasets.smoothing import Smoothing
from pyro_ebm.datasets.sources import SOURCES
from pyro_ebm.datasets.whitening import Whitening

__all__ = [
    "Dataset",
    "DatasetError",
    "Smoothing",
    "Whitening",
    "available",
    "binarize",
    "load",
    "mirror_images",
    "shift_images",
    "shifts_and_mirrors",
]


def available() -> tuple[str, ...]:
    """Names that :func:`load` knows.

    :returns: the names, in alphabetical order.

    >>> available()
    ('cifar10', 'digits', 'fashion-mnist', 'mnist')
    """
    return tuple(sorted(SOURCES))


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    validation: int = 0,
    download: bool = True,
    progress: bool = True,
) -> Dataset:
    """Load an image set by name.

    The files are looked for in ``root``, in the folder that the environment variable
    ``PYRO_EBM_DATA`` names, in the cache (``PYRO_EBM_CACHE``, else ``pyro_ebm`` in the user's
    cache folder) and, for Fashion-MNIST, where Debian's package ``dataset-fashion-mnist`` puts
    them. Folders are laid out as torchvision's are (``MNIST/raw/train-images-idx3-ubyte.gz``).
    What is found nowhere is downloaded into the cache; ``root`` is only ever read. Whatever its
    source, content that differs from the published set is refused.

    :param name: ``"digits"``, ``"mnist"``, ``"fashion-mnist"`` or ``"cifar10"``.
    :param root: a folder to look in first; ``~`` is expanded.
    :param validation: the number of images to hold out for validation: the **last** ones of the
        training set, in its published order. 10,000 is customary for MNIST and Fashion-MNIST
        (50,000 are left to train on), and so is 5,000.
    :param download: whether to download what is not found.
    :param progress: whether to show a progress bar while downloading.
    :returns: the set; its images are kept as the bytes that were published.
    :raises ValueError: if ``name`` is unknown, or ``validation`` is negative or leaves no image
        to train on.
    :raises FileNotFoundError: if ``root`` is not a folder, or with ``download=False`` if a file
        is missing; the message lists every place searched.
    :raises DatasetError: if a file is damaged or foreign, or could not be downloaded.
    :raises ImportError: if scikit-learn (digits), pooch or tqdm (downloads) is needed and not
        installed.

    >>> digits = load("digits", validation=237)
    >>> digits.train().shape, digits.validation().shape, digits.test().shape
    (torch.Size([1200, 64]), torch.Size([237, 64]), torch.Size([360, 64]))
    """
    if name not in SOURCES:
        raise ValueError(f"name: expected one of {', '.join(available())}; got {name!r}")
    num_validation = operator.index(validation)
    finder = Finder(name, root=root, download=download, progress=progress)
    return _hold_out(SOURCES[name](finder), num_validation)


def _hold_out(dataset: Dataset, size: int) -> Dataset:
    """Move the last ``size`` training images into the validation split."""
    rest = len(dataset.train_images) - size
    if size < 0 or rest < 1:
        raise ValueError(
            f"validation: expected 0 to {len(dataset.train_images) - 1} of the training images of "
            f"{dataset.name}; got {size}"
        )
    if size == 0:
        return dataset
    return dataclasses.replace(
        dataset,
        train_images=dataset.train_images[:rest],
        train_labels=dataset.train_labels[:rest],
        validation_images=dataset.train_images[rest:],
        validation_labels=dataset.train_labels[rest:],
    )
