# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Readers of file formats. They execute nothing, and refuse all but the published content."""

import gzip
import io
import math
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyro_ebm.datasets.dataset import Bytes
from pyro_ebm.datasets.files import DatasetError, md5

# All that arrays pickled by Python 2 need.
_PICKLED_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): np.ndarray(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
_DAMAGED = (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError)


@dataclass(frozen=True)
class Content:
    """What a file or an array must hold.

    :param shape: the shape of its array of unsigned bytes.
    :param md5: the checksum of the uncompressed file (IDX), or of the array's bytes (NPZ).
    """

    shape: tuple[int, ...]
    md5: str


def read_idx(path: Path, content: Content) -> Bytes:
    """Read unsigned bytes from an IDX file, the format of MNIST.

    :param path: the file; it is decompressed if its name ends in ``.gz``.
    :param content: what it must hold.
    :returns: a read-only array.
    :raises DatasetError: if the file is damaged or holds anything else.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except _DAMAGED as error:
        raise _unreadable(path, "IDX file", error) from error
    num_dimensions = len(content.shape)
    header = struct.Struct(f">{1 + num_dimensions}I")
    size = header.size + math.prod(content.shape)
    _expect(path, "uncompressed size in bytes", size, len(data))
    magic, *shape = header.unpack_from(data)
    # Two zeros, the code of the type and the number of dimensions.
    _expect(path, "IDX magic number", f"0x{0x0800 + num_dimensions:08x}", f"0x{magic:08x}")
    _expect(path, "IDX dimensions", content.shape, tuple(shape))
    _expect(path, "md5 of the uncompressed file", content.md5, md5(data))
    return np.frombuffer(data, np.uint8, offset=header.size).reshape(content.shape)


def read_npz(path: Path, contents: Mapping[str, Content]) -> dict[str, Bytes]:
    """Read arrays of unsigned bytes from a NumPy archive.

    :param path: the file.
    :param contents: what each array must hold.
    :returns: read-only arrays by name.
    :raises DatasetError: if the file is damaged, or lacks an array, or one holds anything else.
    """
    if not zipfile.is_zipfile(path):
        raise DatasetError(f"{path}: expected a complete NPZ file; got something else")
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in contents}
    except (*_DAMAGED, KeyError, ValueError) as error:
        raise _unreadable(path, f"NPZ file with arrays {', '.join(contents)}", error) from error
    for name, content in contents.items():
        _expect(path, f"type of {name}", np.dtype(np.uint8), arrays[name].dtype)
        _expect(path, f"shape of {name}", content.shape, arrays[name].shape)
        _expect(path, f"md5 of {name}", content.md5, md5(arrays[name].reshape(-1).data))
        arrays[name].setflags(write=False)
    return arrays


def read_batches(path: Path, batches: Mapping[str, str]) -> dict[str, tuple[Bytes, Bytes]]:
    """Read batches of CIFAR-10 images, pickled by Python 2.

    :param path: a tar archive that holds the batches, or one of the files of their folder.
    :param batches: the md5 of each batch's file, by its name.
    :returns: for each batch its images, shape ``(N, 3072)``, and labels, shape ``(N,)``.
    :raises DatasetError: if a batch is missing or is not the published one.
    """
    pickles = _from_tar(path, batches) if path.suffix == ".gz" else _from_folder(path, batches)
    for name, checksum in batches.items():
        if name not in pickles:
            raise DatasetError(f"{path}: expected a file {name} in it or beside it; got none")
        _expect(path, f"md5 of {name}", checksum, md5(pickles[name]))
    return {name: _unpickled(pickles[name]) for name in batches}


def _from_folder(path: Path, names: Mapping[str, str]) -> dict[str, bytes]:
    paths = [path.with_name(name) for name in names]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def _from_tar(path: Path, names: Mapping[str, str]) -> dict[str, bytes]:
    pickles = {}
    try:
        with tarfile.open(path) as archive:
            # In the archive's order: going back would decompress it from the start again.
            for member in archive:
                name = Path(member.name).name
                file = archive.extractfile(member) if name in names else None
                if file is not None:
                    pickles[name] = file.read()
    except _DAMAGED as error:
        raise _unreadable(path, "tar archive", error) from error
    return pickles


def _unpickled(data: bytes) -> tuple[Bytes, Bytes]:
    batch = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    return batch["data"], np.array(batch["labels"], np.uint8)


class _ArrayUnpickler(pickle.Unpickler):
    """Makes arrays, lists and strings only: MD5 alone is no protection against forged files."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLED_GLOBALS:
            raise DatasetError(f"CIFAR-10 batch: expected only NumPy arrays; got {module}.{name}")
        return _PICKLED_GLOBALS[module, name]


def _expect(path: Path, what: str, expected: object, got: object) -> None:
    if got != expected:
        raise DatasetError(
            f"{path}: {what}: expected {expected}; got {got}. The file is damaged or is not the "
            "published one: replace it, or delete it to have it downloaded"
        )


def _unreadable(path: Path, kind: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"{path}: expected a complete {kind}; got one that cannot be read "
        f"({type(error).__name__}: {error}). Replace it, or delete it to have it downloaded"
    )
