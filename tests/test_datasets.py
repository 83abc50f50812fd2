# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import gzip
import hashlib
import http.server
import io
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_ebm import datasets
from pyro_ebm.datasets import dataset as dataset_module
from pyro_ebm.datasets import files, sources
from pyro_ebm.datasets.formats import Content
from pyro_ebm.datasets.sources import IdxFile, IdxSet

# One false alarm in a million runs, if a seed were not fixed.
FALSE_ALARM = 1e-6


def hoeffding(num_draws: int, num_tests: int = 1) -> float:
    """How far the mean of draws from [0, 1] may be from what it should be."""
    return math.sqrt(math.log(2 * num_tests / FALSE_ALARM) / (2 * num_draws))


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


# --- A small set in the place of MNIST, and a server for it -------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


class Tiny:
    """Random images in the place of MNIST's, with their checksums in the registry."""

    def __init__(self, tmp_path: Path, urls: tuple[str, ...]) -> None:
        rng = np.random.default_rng(1)
        # Large enough, and incompressible, so that a download comes in several pieces.
        shapes = {
            "train_images": ("train-images-idx3-ubyte", (300, 28, 28), 256),
            "train_labels": ("train-labels-idx1-ubyte", (300,), 10),
            "test_images": ("t10k-images-idx3-ubyte", (20, 28, 28), 256),
            "test_labels": ("t10k-labels-idx1-ubyte", (20,), 10),
        }
        self.arrays = {
            key: rng.integers(high, size=shape, dtype=np.uint8)
            for key, (_, shape, high) in shapes.items()
        }
        self.unpacked = {name: idx(self.arrays[key]) for key, (name, _, _) in shapes.items()}
        self.packed = {
            f"{name}.gz": gzip.compress(data, mtime=0) for name, data in self.unpacked.items()
        }
        self.idx_set = IdxSet(
            folder="MNIST/raw",
            urls=urls,
            files={
                key: IdxFile(
                    name,
                    Content(shape, md5(self.unpacked[name])),
                    md5(self.packed[f"{name}.gz"]),
                )
                for key, (name, shape, _) in shapes.items()
            },
            label_names=(),
            system_folder=tmp_path / "system",
        )
        self.cache = tmp_path / "cache"
        self.root = tmp_path / "root"
        self.root.mkdir()

    def write(self, root: Path, packed: bool = True) -> Path:
        """Lay the files out under a root. Returns their folder."""
        folder = root / "MNIST" / "raw"
        self.write_to(folder, packed)
        return folder

    def write_to(self, folder: Path, packed: bool = True) -> None:
        folder.mkdir(parents=True)
        for name, data in (self.packed if packed else self.unpacked).items():
            (folder / name).write_bytes(data)

    def check(self, loaded: datasets.Dataset) -> None:
        for key, array in self.arrays.items():
            np.testing.assert_array_equal(getattr(loaded, key), array)

    def cached(self) -> list[str]:
        """Names of whatever lies in the cache, folders on the way to it aside."""
        folder = self.cache / "MNIST" / "raw"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content`` by path; a test may damage it, cut it short or look at what happens."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.cut_short = False
        self.halfway: Callable[[], None] = lambda: None
        self.requests: list[str] = []
        self.accepted_encodings: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.accepted_encodings.add(self.headers["Accept-Encoding"])
        data = self.server.content.get(self.path)
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        half = 2 * len(data) // 3
        self.wfile.write(data[:half])
        self.wfile.flush()
        if not self.server.cut_short:
            self.server.halfway()
            self.wfile.write(data[half:])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing on this machine is found but what the test puts there."""
    monkeypatch.delenv("PYRO_EBM_DATA", raising=False)
    monkeypatch.setenv("PYRO_EBM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny(isolated: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server) -> Tiny:
    """The small set; its first address serves nothing, its second one is the server."""
    made = Tiny(tmp_path, (f"{server.url}/nothing/", f"{server.url}/mirror/"))
    server.content = {f"/mirror/{name}": data for name, data in made.packed.items()}
    monkeypatch.setattr(datasets, "SOURCES", {"mnist": partial(sources.load_idx_set, made.idx_set)})
    return made


# --- Names and arguments -------------------------------------------------------------------------


def test_available() -> None:
    assert datasets.available() == ("cifar10", "digits", "fashion-mnist", "mnist")


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"cifar10, digits, fashion-mnist, mnist; got 'MNIST'"):
        datasets.load("MNIST")


@pytest.mark.parametrize("size", [-1, 1437])
def test_validation_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match=rf"validation: expected 0 to 1436 .* got {size}"):
        datasets.load("digits", validation=size)


def test_validation_must_be_an_integer() -> None:
    with pytest.raises(TypeError):
        datasets.load("digits", validation=0.1)  # type: ignore[arg-type]


def test_root_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"root: expected a folder; got .*mistyped"):
        datasets.load("digits", root=tmp_path / "mistyped")


def test_import_is_light() -> None:
    code = "import sys, pyro_ebm.datasets; print({'pooch', 'sklearn'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# --- Digits --------------------------------------------------------------------------------------


def test_digits() -> None:
    from sklearn.datasets import load_digits

    digits = datasets.load("digits")
    assert (digits.image_shape, digits.num_pixels, digits.max_value) == ((8, 8), 64, 16)
    train, test = digits.images("train"), digits.images("test")
    assert (train.shape, test.shape) == ((1437, 8, 8), (360, 8, 8))
    # Together they are scikit-learn's images with their labels, each once.
    ours = np.concatenate(
        [
            np.concatenate([train.reshape(-1, 64), test.reshape(-1, 64)]),
            np.concatenate([digits.train_labels, digits.test_labels])[:, None],
        ],
        axis=1,
    )
    bunch = load_digits()
    theirs = np.concatenate([bunch.data, bunch.target[:, None]], axis=1)
    np.testing.assert_array_equal(
        ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)].astype(np.uint8)
    )


def test_digits_split_is_stratified_and_shuffled() -> None:
    digits = datasets.load("digits")
    train, test = np.bincount(digits.train_labels), np.bincount(digits.test_labels)
    np.testing.assert_array_less(np.abs(test - (train + test) / 5), 1.0)
    # Sorted labels would change nine times along the set; shuffled ones nine times in ten.
    assert np.mean(np.diff(digits.train_labels.astype(int)) != 0) > 0.8
    assert np.mean(np.diff(digits.test_labels.astype(int)) != 0) > 0.8


def test_digits_split_never_changes() -> None:
    digits = datasets.load("digits")
    assert md5(digits.train_images.tobytes()) == "39ef1fe1d94a3ca77aeff856b00bbdd3"
    assert md5(digits.test_images.tobytes()) == "9d9c5fb481c56efb030c87627d25c931"


# --- Tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grey_levels(dtype: torch.dtype) -> None:
    digits = datasets.load("digits", validation=237)
    for split, tensor in {
        "train": digits.train(dtype),
        "validation": digits.validation(dtype),
        "test": digits.test(dtype),
    }.items():
        images = digits.images(split)  # type: ignore[arg-type]
        expected = torch.tensor(images.reshape(len(images), 64) / 16, dtype=dtype)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
        labels = digits.labels(split)  # type: ignore[arg-type]
        assert labels.dtype == torch.int64
        assert labels.tolist() == getattr(digits, f"{split}_labels").tolist()


def test_grey_levels_are_fresh() -> None:
    digits = datasets.load("digits")
    digits.test().zero_()
    assert digits.test().max() == 1.0
    with pytest.raises(ValueError, match="read-only"):
        digits.test_images[0] = 0


def test_grey_levels_need_floats() -> None:
    with pytest.raises(TypeError, match=r"dtype: expected a floating-point type; got torch.int64"):
        datasets.load("digits").train(torch.int64)


def test_no_such_split() -> None:
    digits = datasets.load("digits")
    with pytest.raises(ValueError, match=r"expected one of train, validation, test; got 'dev'"):
        digits.images("dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"load\('digits', validation=\.\.\.\)"):
        digits.validation()


def test_validation_is_the_end_of_the_training_set() -> None:
    whole, parts = datasets.load("digits"), datasets.load("digits", validation=237)
    np.testing.assert_array_equal(parts.train_images, whole.train_images[:1200])
    np.testing.assert_array_equal(parts.validation_images, whole.train_images[1200:])
    np.testing.assert_array_equal(parts.train_labels, whole.train_labels[:1200])
    np.testing.assert_array_equal(parts.validation_labels, whole.train_labels[1200:])
    np.testing.assert_array_equal(parts.test_images, whole.test_images)


# --- Sets of one's own ---------------------------------------------------------------------------


def ramp(**changes: Any) -> datasets.Dataset:
    """Images that hold every byte 20,000 times, in both splits."""
    images = np.tile(np.arange(256, dtype=np.uint8).reshape(16, 16), (20000, 1, 1))
    labels = np.zeros(20000, int)
    made = datasets.Dataset("ramp", images, labels, images, labels, max_value=255)
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_value": 256}, ValueError, "max_value: expected 1 to 255; got 256"),
        ({"max_value": 254}, ValueError, "train_images: .* max_value=254; got 255"),
        ({"train_images": np.zeros((9, 4, 4))}, TypeError, "train_images: .* uint8; got float64"),
        ({"test_images": np.zeros((9, 4), np.uint8)}, ValueError, r"test_images: .*\(9, 4\)"),
        ({"test_labels": np.zeros(9, int)}, ValueError, r"test_labels: .*20000.* got \(9,\)"),
        ({"validation_labels": np.zeros(9, int)}, ValueError, "expected both or neither"),
        (
            {
                "validation_images": np.zeros((9, 4), np.uint8),
                "validation_labels": np.zeros(9, int),
            },
            ValueError,
            r"validation_images: .*\(9, 4\)",
        ),
    ],
)
def test_invalid_dataset(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ramp(**changes)


# --- Binarization --------------------------------------------------------------------------------


def check_probabilities(binary: Tensor) -> None:
    """Check zeros and ones made from the ramp against its grey levels."""
    assert torch.equal(binary, (binary != 0).to(binary.dtype))
    grey = torch.arange(256) / 255
    mean = binary.double().mean(0)
    assert mean[[0, 255]].tolist() == [0.0, 1.0]
    assert (mean - grey).abs().max() < hoeffding(len(binary), num_tests=256)
    # Bounds a bias that all levels share much more closely, such as one of dividing by 256.
    assert abs(mean.mean() - 0.5) < hoeffding(binary.numel())


def test_static_binarization() -> None:
    check_probabilities(ramp().binarized("train", 0))


def test_static_binarization_is_set_by_its_seed() -> None:
    digits = datasets.load("digits")
    state = torch.random.get_rng_state()
    first = digits.binarized("train", 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(digits.binarized("train", seed=5, dtype=torch.float64), first.double())
    assert not torch.equal(digits.binarized("train", 6), first)
    assert (first.shape, first.dtype) == ((1437, 64), torch.float32)


def test_static_binarization_never_changes() -> None:
    binary = datasets.load("digits").binarized("test", 0, dtype=torch.uint8)
    assert md5(binary.numpy().tobytes()) == "7e23760ab9c12707a7fb6a86cb8a0c51"


def test_static_binarization_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = datasets.load("digits", validation=237)
    expected = [digits.binarized(split, 5) for split in ("train", "validation", "test")]
    monkeypatch.setattr(dataset_module, "_BLOCK", 7)
    for split, binary in zip(("train", "validation", "test"), expected, strict=True):
        assert torch.equal(digits.binarized(split, 5), binary)  # type: ignore[arg-type]


def test_static_binarization_does_not_depend_on_what_is_held_out() -> None:
    whole, parts = datasets.load("digits"), datasets.load("digits", validation=237)
    together = torch.cat([parts.binarized("train", 5), parts.binarized("validation", 5)])
    assert torch.equal(together, whole.binarized("train", 5))
    assert torch.equal(parts.binarized("test", 5), whole.binarized("test", 5))


def test_static_binarization_of_splits_is_independent() -> None:
    made = ramp()
    train, test = made.binarized("train", 5), made.binarized("test", 5)
    grey = torch.arange(256) / 255
    agreement = (train == test).double().mean()
    expected = (grey**2 + (1 - grey) ** 2).mean()
    assert abs(agreement - expected) < hoeffding(train.numel())


def test_threshold() -> None:
    digits = datasets.load("digits")
    expected = digits.test() > 0.5
    for dtype in (torch.float32, torch.uint8):
        binary = digits.binarized("test", threshold=0.5, dtype=dtype)
        assert binary.dtype == dtype
        assert torch.equal(binary.bool(), expected)
    # A pixel of 8 out of 16 is not above one half.
    assert not binary[digits.test() == 0.5].any()


@pytest.mark.parametrize("arguments", [{}, {"seed": 0, "threshold": 0.5}])
def test_seed_or_threshold(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="seed, threshold: expected exactly one"):
        datasets.load("digits").binarized("train", **arguments)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, math.nan])
def test_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(ValueError, match=rf"0 <= threshold < 1; got {threshold}"):
        datasets.load("digits").binarized("train", threshold=threshold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dynamic_binarization(dtype: torch.dtype) -> None:
    binary = datasets.binarize(ramp().train(dtype), torch.Generator().manual_seed(0))
    assert binary.dtype == dtype
    check_probabilities(binary)


def test_dynamic_binarization_in_half_precision() -> None:
    """Uniform numbers of 8 bits, as bfloat16 has them, are below 2^-9 twice too often."""
    num_draws, p = 1_000_000, 2.0**-9
    x = torch.full((num_draws,), p, dtype=torch.bfloat16)
    binary = datasets.binarize(x, torch.Generator().manual_seed(0))
    assert binary.dtype == torch.bfloat16
    # Six standard deviations of the (nearly normal) count.
    assert abs(binary.double().sum() - num_draws * p) < 6 * math.sqrt(num_draws * p)


def test_dynamic_binarization_draws_anew() -> None:
    x = datasets.load("digits").train()
    generator = torch.Generator().manual_seed(7)
    first, second = datasets.binarize(x, generator), datasets.binarize(x, generator)
    assert not torch.equal(first, second)
    assert torch.equal(datasets.binarize(x, torch.Generator().manual_seed(7)), first)
    torch.manual_seed(7)
    assert torch.equal(datasets.binarize(x), first)
    assert datasets.binarize(x[:0]).shape == (0, 64)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_dynamic_binarization_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match="x: expected grey levels from 0 to 1; got"):
        datasets.binarize(torch.tensor([0.5, value]))


def test_dynamic_binarization_needs_floats() -> None:
    with pytest.raises(TypeError, match=r"x: expected grey levels .* got torch.uint8"):
        datasets.binarize(torch.zeros(3, dtype=torch.uint8))


# --- Where files are found -----------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_found_in_root(tiny: Tiny, server: Server, packed: bool) -> None:
    tiny.write(tiny.root, packed)
    tiny.check(datasets.load("mnist", root=tiny.root))
    assert server.requests == []


def test_found_by_variable(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tiny.root)
    monkeypatch.setenv("PYRO_EBM_DATA", str(tiny.root))
    tiny.check(datasets.load("mnist", download=False))


def test_found_where_the_system_keeps_it(tiny: Tiny, tmp_path: Path) -> None:
    tiny.write_to(tmp_path / "system")
    tiny.check(datasets.load("mnist", download=False))


def test_order_of_places(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What comes first is read, and later places are not looked into."""
    places = [tiny.root, tmp_path / "variable", tiny.cache]
    monkeypatch.setenv("PYRO_EBM_DATA", str(places[1]))
    folders = [tiny.write(place) for place in places]
    tiny.write_to(tmp_path / "system")
    for folder in [*folders, tmp_path / "system"]:
        (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
        with pytest.raises(datasets.DatasetError, match=re.escape(str(folder))):
            datasets.load("mnist", root=tiny.root, download=False)
        (folder / "t10k-labels-idx1-ubyte.gz").unlink()


def test_found_nowhere(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYRO_EBM_DATA", str(tmp_path / "variable"))
    with pytest.raises(FileNotFoundError) as caught:
        datasets.load("mnist", root=tiny.root, download=False)
    message = str(caught.value)
    for place in (tiny.root, tmp_path / "variable", tiny.cache):
        for name in ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"):
            assert f"  {place / 'MNIST' / 'raw' / name}\n" in message
    assert f"  {tmp_path / 'system' / 'train-images-idx3-ubyte.gz'}\n" in message
    assert "PYRO_EBM_DATA" in message
    assert tiny.idx_set.urls[0] in message


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", None, "home/.cache/pyro_ebm"),
        ("linux", "XDG_CACHE_HOME", "elsewhere/pyro_ebm"),
        ("darwin", None, "home/Library/Caches/pyro_ebm"),
        ("win32", None, "home/AppData/Local/pyro_ebm"),
        ("win32", "LOCALAPPDATA", "elsewhere/pyro_ebm"),
        ("linux", "PYRO_EBM_CACHE", "elsewhere"),
    ],
)
def test_cache_folder(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    platform: str,
    variable: str | None,
    expected: str,
) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "PYRO_EBM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    if variable is not None:
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    monkeypatch.setattr(sys, "platform", platform)
    assert files.cache_folder() == tmp_path / expected


# --- Damaged and foreign files -------------------------------------------------------------------


def foreign(array: np.ndarray) -> bytes:
    changed = array.copy()
    changed.flat[0] ^= 1
    return changed.tobytes()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], r"size in bytes: expected 235216; got 235215"),
        (lambda data: b"", r"size in bytes: expected 235216; got 0"),
        (lambda data: b"\0\0\x0d" + data[3:], "magic number: expected 0x00000803; got 0x00000d03"),
        (
            lambda data: data[:4] + struct.pack(">3I", 28, 28, 300) + data[16:],
            r"dimensions: expected \(300, 28, 28\); got \(28, 28, 300\)",
        ),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), r"md5 .*: expected \w{32}; got \w{32}"),
    ],
)
def test_foreign_idx_file(
    tiny: Tiny, packed: bool, damage: Callable[[bytes], bytes], message: str
) -> None:
    folder = tiny.write(tiny.root, packed)
    path = folder / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    data = damage(tiny.unpacked["train-images-idx3-ubyte"])
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(datasets.DatasetError, match=f"{re.escape(str(path))}: .*{message}"):
        datasets.load("mnist", root=tiny.root)


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"<html>Not found</html>"]
)
def test_damaged_gzip_file(tiny: Tiny, damage: Callable[[bytes], bytes]) -> None:
    path = tiny.write(tiny.root) / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        datasets.DatasetError, match=f"{re.escape(str(path))}: expected a complete IDX file"
    ):
        datasets.load("mnist", root=tiny.root)


# --- Downloads -----------------------------------------------------------------------------------


def test_download(tiny: Tiny, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.check(datasets.load("mnist", progress=False))
    assert tiny.cached() == sorted(tiny.packed)
    assert "".join(capsys.readouterr()) == ""
    assert server.accepted_encodings == {"identity"}
    # Of the two addresses of each file the first failed; what is cached is not asked for again.
    assert len(server.requests) == 8
    tiny.check(datasets.load("mnist"))
    assert len(server.requests) == 8


def test_download_shows_progress(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    datasets.load("mnist")
    assert "100%" in capsys.readouterr().err


def test_download_of_what_is_missing(tiny: Tiny, server: Server) -> None:
    (tiny.write(tiny.root) / "t10k-labels-idx1-ubyte.gz").unlink()
    tiny.check(datasets.load("mnist", root=tiny.root, progress=False))
    assert tiny.cached() == ["t10k-labels-idx1-ubyte.gz"]
    assert {path.rpartition("/")[2] for path in server.requests} == {"t10k-labels-idx1-ubyte.gz"}


def test_download_appears_at_once(tiny: Tiny, server: Server) -> None:
    """While a file arrives it is beside its place, on the same file system, and not in it."""
    target = tiny.cache / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    seen: list[tuple[int, bool]] = []

    def halfway() -> None:
        deadline = time.monotonic() + 10
        part: list[int] = []
        while not any(part) and time.monotonic() < deadline:
            part = [path.stat().st_size for path in target.parent.glob(f".*/{target.name}")]
            time.sleep(0.01)
        seen.append((max(part, default=0), target.exists()))
        server.halfway = lambda: None

    server.halfway = halfway
    datasets.load("mnist", progress=False)
    [(size, existed)] = seen
    assert 0 < size < len(tiny.packed[target.name])
    assert not existed
    assert target.read_bytes() == tiny.packed[target.name]


def test_truncated_download(tiny: Tiny, server: Server) -> None:
    server.cut_short = True
    with pytest.raises(datasets.DatasetError, match=r"train-images-idx3-ubyte.gz: the download"):
        datasets.load("mnist", progress=False)
    assert tiny.cached() == []


def test_foreign_download(tiny: Tiny, server: Server) -> None:
    name = "train-images-idx3-ubyte.gz"
    server.content[f"/mirror/{name}"] = b"a page that says Sorry"
    with pytest.raises(datasets.DatasetError) as caught:
        datasets.load("mnist", progress=False)
    message = str(caught.value)
    assert f"expected a file {name} with md5 {md5(tiny.packed[name])}" in message
    assert f"got 22 bytes with md5 {md5(b'a page that says Sorry')}" in message
    assert f"{server.url}/mirror/{name}" in message
    assert f"{server.url}/nothing/{name}: 404" in message
    assert tiny.cached() == []


def test_no_server(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = dataclasses.replace(tiny.idx_set, urls=("http://127.0.0.1:9/",))
    monkeypatch.setattr(datasets, "SOURCES", {"mnist": partial(sources.load_idx_set, nobody)})
    with pytest.raises(datasets.DatasetError, match=r"http://127\.0\.0\.1:9/train-images"):
        datasets.load("mnist", progress=False)
    assert tiny.cached() == []


@pytest.mark.parametrize("module", ["pooch", "tqdm"])
def test_download_without_its_packages(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {module}.*pip install 'pyro-ebm\[data\]'"):
        datasets.load("mnist")


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"'digits' needs scikit-learn.*pip install"):
        datasets.load("digits")


# --- CIFAR-10 ------------------------------------------------------------------------------------


def pickled_by_python_2(images: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as ``cPickle`` of Python 2 wrote it, which Python 3 cannot write any more."""
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    order = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R" + order
    shape = b"J" + struct.pack("<i", len(images)) + b"J" + struct.pack("<i", 3072) + b"\x86"
    data = images.tobytes()
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + reconstruct + state + b"U\x06labels" + listed + b"u."


class TinyCifar:
    """Random images in the place of CIFAR-10's, with their checksums in the registry."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
        rng = np.random.default_rng(2)
        self.arrays = {
            "x_train": rng.integers(256, size=(15, 3, 32, 32), dtype=np.uint8),
            "y_train": rng.integers(10, size=15, dtype=np.uint8),
            "x_test": rng.integers(256, size=(4, 3, 32, 32), dtype=np.uint8),
            "y_test": rng.integers(10, size=4, dtype=np.uint8),
        }
        a = self.arrays
        self.batches = {
            f"data_batch_{i + 1}": pickled_by_python_2(
                a["x_train"][3 * i : 3 * i + 3], a["y_train"][3 * i : 3 * i + 3]
            )
            for i in range(5)
        }
        self.batches["test_batch"] = pickled_by_python_2(a["x_test"], a["y_test"])
        self.archive = self.packed()
        contents = {name: Content(array.shape, md5(array.tobytes())) for name, array in a.items()}
        monkeypatch.setattr(sources, "CIFAR10_ARRAYS", contents)
        monkeypatch.setattr(
            sources, "CIFAR10_BATCHES", {name: md5(data) for name, data in self.batches.items()}
        )
        published = dataclasses.replace(
            sources.CIFAR10_ARCHIVE, urls=(f"{server.url}/cifar",), md5=md5(self.archive)
        )
        monkeypatch.setattr(sources, "CIFAR10_ARCHIVE", published)
        server.content["/cifar"] = self.archive

    def packed(self) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for name, data in {"readme.html": b"", **self.batches}.items():
                info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return stream.getvalue()

    def check(self, loaded: datasets.Dataset) -> None:
        np.testing.assert_array_equal(loaded.train_images, self.arrays["x_train"])
        np.testing.assert_array_equal(loaded.train_labels, self.arrays["y_train"])
        np.testing.assert_array_equal(loaded.test_images, self.arrays["x_test"])
        np.testing.assert_array_equal(loaded.test_labels, self.arrays["y_test"])
        for images in (loaded.train_images, loaded.test_images):
            assert not images.flags.writeable


@pytest.fixture
def tiny_cifar(isolated: None, monkeypatch: pytest.MonkeyPatch, server: Server) -> TinyCifar:
    return TinyCifar(monkeypatch, server)


@pytest.mark.parametrize("folder", ["", "CIFAR10"])
def test_cifar10_npz(tiny_cifar: TinyCifar, tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    np.savez_compressed(tmp_path / folder / "cifar10.npz", **tiny_cifar.arrays)  # type: ignore[arg-type]
    loaded = datasets.load("cifar10", root=tmp_path, download=False)
    tiny_cifar.check(loaded)
    # Flattened channels first: the first 1,024 numbers of a row are the red levels.
    red = torch.tensor(tiny_cifar.arrays["x_train"][:, 0].reshape(15, 1024)) / 255
    assert torch.equal(loaded.train()[:, :1024], red)


@pytest.mark.parametrize("folder", ["", "CIFAR10"])
def test_cifar10_batches(tiny_cifar: TinyCifar, tmp_path: Path, folder: str) -> None:
    batches = tmp_path / folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name, data in tiny_cifar.batches.items():
        (batches / name).write_bytes(data)
    tiny_cifar.check(datasets.load("cifar10", root=tmp_path, download=False))
    (batches / "data_batch_4").unlink()
    with pytest.raises(datasets.DatasetError, match=r"expected a file data_batch_4 .*got none"):
        datasets.load("cifar10", root=tmp_path)


def test_cifar10_download(tiny_cifar: TinyCifar, server: Server, tmp_path: Path) -> None:
    tiny_cifar.check(datasets.load("cifar10", progress=False))
    cached = tmp_path / "cache" / "CIFAR10" / "cifar-10-python.tar.gz"
    assert cached.read_bytes() == tiny_cifar.archive
    tiny_cifar.check(datasets.load("cifar10", progress=False))
    assert server.requests == ["/cifar"]


def test_cifar10_truncated_archive(tiny_cifar: TinyCifar, tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(tiny_cifar.archive[:30000])
    with pytest.raises(
        datasets.DatasetError, match=f"{re.escape(str(path))}: expected a complete tar archive"
    ):
        datasets.load("cifar10", root=tmp_path)


def test_cifar10_foreign_batch(tiny_cifar: TinyCifar, tmp_path: Path) -> None:
    expected = md5(tiny_cifar.batches["data_batch_2"])
    tiny_cifar.batches["data_batch_2"] = tiny_cifar.batches["data_batch_1"]
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(tiny_cifar.packed())
    with pytest.raises(
        datasets.DatasetError, match=f"md5 of data_batch_2: expected {expected}; got"
    ):
        datasets.load("cifar10", root=tmp_path)


def test_cifar10_batches_cannot_execute(
    tiny_cifar: TinyCifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    forged = pickle.dumps(Malicious(), protocol=2)
    tiny_cifar.batches["data_batch_1"] = forged
    checksums = {name: md5(data) for name, data in tiny_cifar.batches.items()}
    monkeypatch.setattr(sources, "CIFAR10_BATCHES", checksums)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(tiny_cifar.packed())
    with pytest.raises(datasets.DatasetError, match=r"expected only NumPy arrays; got .*mkdir"):
        datasets.load("cifar10", root=tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "expected a complete NPZ file with arrays .*y_test"),
        ({"x_test": np.zeros((4, 32, 32, 3), np.uint8)}, r"shape of x_test: .*\(4, 32, 32, 3\)"),
        ({"y_test": np.zeros(4, np.int64)}, "type of y_test: expected uint8; got int64"),
        ({"y_test": np.full(4, 10, np.uint8)}, r"md5 of y_test: expected \w{32}; got \w{32}"),
        ({"y_test": np.array([None] * 4)}, "expected a complete NPZ file"),
    ],
)
def test_cifar10_foreign_npz(
    tiny_cifar: TinyCifar, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arrays = {**tiny_cifar.arrays, **changes}
    path = tmp_path / "cifar10.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(datasets.DatasetError, match=f"{re.escape(str(path))}: {message}"):
        datasets.load("cifar10", root=tmp_path)


def test_cifar10_truncated_npz(tiny_cifar: TinyCifar, tmp_path: Path) -> None:
    path = tmp_path / "cifar10.npz"
    np.savez_compressed(path, **tiny_cifar.arrays)  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:30000])
    with pytest.raises(
        datasets.DatasetError, match=f"{re.escape(str(path))}: expected a complete NPZ file"
    ):
        datasets.load("cifar10", root=tmp_path)


# --- The real sets, where this machine has them --------------------------------------------------


def load_or_skip(name: str, **arguments: Any) -> datasets.Dataset:
    shared = Path(__file__).parents[2] / "shared" / "data"
    root = shared if shared.is_dir() else None
    try:
        return datasets.load(name, root=root, download=False, **arguments)
    except FileNotFoundError as error:
        pytest.skip(f"{name} is not on this machine: {error}")


def test_mnist() -> None:
    mnist = load_or_skip("mnist")
    assert (mnist.train_images.shape, mnist.test_images.shape) == ((60000, 28, 28), (10000, 28, 28))
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.train_labels).tolist() == counts
    assert mnist.train_images.mean() == pytest.approx(33.318421, abs=1e-6)
    assert mnist.train().mean().item() == pytest.approx(33.318421 / 255, abs=1e-5)
    assert mnist.labels("test")[:5].tolist() == [7, 2, 1, 0, 4]


def test_mnist_validation() -> None:
    mnist = load_or_skip("mnist", validation=10_000)
    assert (mnist.train().shape, mnist.validation().shape) == ((50000, 784), (10000, 784))
    assert mnist.labels()[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.labels("validation")[-3:].tolist() == [5, 6, 8]


def test_mnist_binarized() -> None:
    mnist = load_or_skip("mnist")
    train = mnist.binarized("train", 0, dtype=torch.uint8)
    assert train.shape == (60000, 784)
    expected = mnist.train_images.mean() / 255
    assert abs(train.double().mean() - expected) < hoeffding(train.numel())


def test_fashion_mnist() -> None:
    fashion = load_or_skip("fashion-mnist")
    assert (fashion.train_images.shape, fashion.test_images.shape) == (
        (60000, 28, 28),
        (10000, 28, 28),
    )
    assert np.bincount(fashion.train_labels).tolist() == [6000] * 10
    assert fashion.train_images.mean() == pytest.approx(72.940352, abs=1e-6)
    names = [fashion.label_names[label] for label in fashion.test_labels[:3]]
    assert names == ["Ankle boot", "Pullover", "Trouser"]


def test_cifar10() -> None:
    cifar = load_or_skip("cifar10")
    assert (cifar.train_images.shape, cifar.test_images.shape) == (
        (50000, 3, 32, 32),
        (10000, 3, 32, 32),
    )
    means = cifar.train_images.mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=1e-8)
    names = [cifar.label_names[label] for label in cifar.train_labels[:4]]
    assert names == ["frog", "truck", "truck", "deer"]
