# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What the sets consist of, where they are published, and how each is put together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from pyro_ebm.datasets.dataset import Bytes, Dataset
from pyro_ebm.datasets.files import Finder, Published, require
from pyro_ebm.datasets.formats import Content, read_batches, read_idx, read_npz

_DIGIT_NAMES = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class IdxFile:
    """One of the files of MNIST or of a set made to replace it.

    :param name: its name, uncompressed.
    :param content: what it holds.
    :param gzip_md5: the checksum of the ``.gz`` file as published. Others have compressed the
        same content differently (Debian's, for one), so found files are not held to it.
    """

    name: str
    content: Content
    gzip_md5: str


@dataclass(frozen=True)
class IdxSet:
    """MNIST, or a set made to replace it.

    :param folder: where torchvision keeps the files, relative to its root.
    :param urls: folders that serve the ``.gz`` files, the preferred one first.
    :param files: the files by what they hold: ``train_images`` and so on.
    :param label_names: a name for each class.
    :param system_folder: where a Linux distribution installs the ``.gz`` files.
    """

    folder: str
    urls: tuple[str, ...]
    files: Mapping[str, IdxFile]
    label_names: tuple[str, ...]
    system_folder: Path | None = None


MNIST = IdxSet(
    folder="MNIST/raw",
    urls=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    files={
        "train_images": IdxFile(
            "train-images-idx3-ubyte",
            Content((60000, 28, 28), "6bbc9ace898e44ae57da46a324031adb"),
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        ),
        "train_labels": IdxFile(
            "train-labels-idx1-ubyte",
            Content((60000,), "a25bea736e30d166cdddb491f175f624"),
            "d53e105ee54ea40749a09fcbcd1e9432",
        ),
        "test_images": IdxFile(
            "t10k-images-idx3-ubyte",
            Content((10000, 28, 28), "2646ac647ad5339dbf082846283269ea"),
            "9fb629c4189551a2d022fa330f9573f3",
        ),
        "test_labels": IdxFile(
            "t10k-labels-idx1-ubyte",
            Content((10000,), "27ae3e4e09519cfbb04c329615203637"),
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    },
    label_names=_DIGIT_NAMES,
)

FASHION_MNIST = IdxSet(
    folder="FashionMNIST/raw",
    urls=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    files={
        "train_images": IdxFile(
            "train-images-idx3-ubyte",
            Content((60000, 28, 28), "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        ),
        "train_labels": IdxFile(
            "train-labels-idx1-ubyte",
            Content((60000,), "9018921c3c673c538a1fc5bad174d6f9"),
            "25c81989df183df01b3e8a0aad5dffbe",
        ),
        "test_images": IdxFile(
            "t10k-images-idx3-ubyte",
            Content((10000, 28, 28), "8181f5470baa50b63fa0f6fddb340f0a"),
            "bef4ecab320f06d8554ea6380940ec79",
        ),
        "test_labels": IdxFile(
            "t10k-labels-idx1-ubyte",
            Content((10000,), "15d484375f8d13e6eb1aabb0c3f46965"),
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    },
    label_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    system_folder=Path("/usr/share/datasets/fashion-mnist"),
)

CIFAR10_ARCHIVE = Published(
    "CIFAR10/cifar-10-python.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
    "c58f30108f718f92721af3b95e74349a",
)
CIFAR10_BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CIFAR10_ARRAYS = {
    "x_train": Content((50000, 3, 32, 32), "11af95666bd6fd7846144e768325bf13"),
    "y_train": Content((50000,), "69c5f3349be54915edfca558b72ad888"),
    "x_test": Content((10000, 3, 32, 32), "f1aa22116df97725db0e47461c45a82b"),
    "y_test": Content((10000,), "251f18ce75337ae9ca5d0dbd7ea62cf4"),
}
_CIFAR10_LABEL_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def load_digits(finder: Finder) -> Dataset:
    """Assemble the 8 x 8 digits that scikit-learn installs, split with seed 0.

    :param finder: not used: the files are part of scikit-learn.
    :returns: 1,437 training and 360 test images, every class split alike.
    """
    bunch = require("sklearn.datasets", "scikit-learn", f"The set {finder.name!r}").load_digits()
    labels = bunch.target.astype(np.uint8)
    # NumPy promises that this legacy stream never changes, which it does not of newer ones.
    shuffled = np.random.RandomState(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    is_test = np.zeros(len(labels), bool)
    is_test[by_class[::5]] = True
    train, test = shuffled[~is_test[shuffled]], shuffled[is_test[shuffled]]
    images = bunch.images.astype(np.uint8)
    return Dataset(
        name=finder.name,
        train_images=_read_only(images[train]),
        train_labels=_read_only(labels[train]),
        test_images=_read_only(images[test]),
        test_labels=_read_only(labels[test]),
        max_value=16,
        label_names=_DIGIT_NAMES,
    )


def load_idx_set(idx_set: IdxSet, finder: Finder) -> Dataset:
    """Assemble a set from its four IDX files, each found or downloaded by itself.

    :param idx_set: what the files are.
    :param finder: finds them.
    :returns: the set.
    """

    def read(file: IdxFile) -> Bytes:
        packed = PurePosixPath(idx_set.folder, f"{file.name}.gz")
        published = Published(
            str(packed), tuple(f"{url}{packed.name}" for url in idx_set.urls), file.gzip_md5
        )
        system = [] if idx_set.system_folder is None else [idx_set.system_folder / packed.name]
        names = [str(packed.with_suffix("")), str(packed)]
        return read_idx(finder.find(names, published, system), file.content)

    return Dataset(
        name=finder.name,
        train_images=read(idx_set.files["train_images"]),
        train_labels=read(idx_set.files["train_labels"]),
        test_images=read(idx_set.files["test_images"]),
        test_labels=read(idx_set.files["test_labels"]),
        max_value=255,
        label_names=idx_set.label_names,
    )


def load_cifar10(finder: Finder) -> Dataset:
    """Assemble CIFAR-10 from one NumPy archive or from the published batches.

    :param finder: finds the files.
    :returns: the set; images are channels first, as published.
    """
    files = ("cifar10.npz", "cifar-10-batches-py/data_batch_1", "cifar-10-python.tar.gz")
    names = [f"{folder}{file}" for folder in ("", "CIFAR10/") for file in files]
    path = finder.find(names, CIFAR10_ARCHIVE)
    arrays = read_npz(path, CIFAR10_ARRAYS) if path.suffix == ".npz" else _cifar10_batches(path)
    return Dataset(
        name=finder.name,
        train_images=arrays["x_train"],
        train_labels=arrays["y_train"],
        test_images=arrays["x_test"],
        test_labels=arrays["y_test"],
        max_value=255,
        label_names=_CIFAR10_LABEL_NAMES,
    )


def _cifar10_batches(path: Path) -> dict[str, Bytes]:
    batches = read_batches(path, CIFAR10_BATCHES)
    test_images, test_labels = batches.pop("test_batch")
    images, labels = zip(*batches.values(), strict=True)
    return {
        "x_train": _read_only(np.concatenate(images).reshape(-1, 3, 32, 32)),
        "y_train": _read_only(np.concatenate(labels)),
        "x_test": _read_only(test_images.reshape(-1, 3, 32, 32)),
        "y_test": _read_only(test_labels),
    }


def _read_only(array: Bytes) -> Bytes:
    # Slices and copies of a set share its arrays.
    array.setflags(write=False)
    return array


SOURCES: Mapping[str, Callable[[Finder], Dataset]] = {
    "cifar10": load_cifar10,
    "digits": load_digits,
    "fashion-mnist": partial(load_idx_set, FASHION_MNIST),
    "mnist": partial(load_idx_set, MNIST),
}
