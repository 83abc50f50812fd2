# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Where files of data sets are found, and how missing ones are downloaded."""

import hashlib
import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Seconds without an answer from a server.
_TIMEOUT = 30.0


class DatasetError(RuntimeError):
    """A file of a data set is damaged, is not the published one or could not be downloaded."""


@dataclass(frozen=True)
class Published:
    """A file that its authors published.

    :param path: its place in the cache, relative to it.
    :param urls: addresses that serve it, the preferred one first.
    :param md5: the checksum of the file as served, in hexadecimal.
    """

    path: str
    urls: tuple[str, ...]
    md5: str


def md5(content: bytes | memoryview) -> str:
    """Checksum in hexadecimal, as the sets' authors publish them.

    :param content: the bytes to check.
    :returns: 32 hexadecimal digits.
    """
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def require(module: str, package: str, purpose: str) -> Any:
    """Import an optional dependency.

    :param module: the module to import.
    :param package: the package that installs it.
    :param purpose: what needs it, for the message.
    :returns: the module.
    :raises ImportError: if it is not installed, telling how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs {package}, which could not be imported ({error}); "
            "install it with: pip install 'pyro-ebm[data]'"
        ) from error


def cache_folder() -> Path:
    """Folder that downloads go to: ``PYRO_EBM_CACHE``, else the platform's cache folder.

    :returns: its path; it need not exist.
    """
    named = os.environ.get("PYRO_EBM_CACHE")
    if named:
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pyro_ebm"


class Finder:
    """Finds the files of one set, on this machine or on the Internet.

    :param name: the name of the set, for messages.
    :param root: a folder to look in first.
    :param download: whether to download what is not found.
    :param progress: whether downloads show a progress bar.
    :raises FileNotFoundError: if ``root`` is not a folder.
    """

    def __init__(
        self,
        name: str,
        *,
        root: str | os.PathLike[str] | None,
        download: bool,
        progress: bool,
    ) -> None:
        self.name = name
        self.download = download
        self.progress = progress
        self.places = [cache_folder()]
        if os.environ.get("PYRO_EBM_DATA"):
            self.places.insert(0, Path(os.environ["PYRO_EBM_DATA"]).expanduser())
        if root is not None:
            self.places.insert(0, Path(root).expanduser())
            # A mistyped root would otherwise end in a silent download.
            if not self.places[0].is_dir():
                raise FileNotFoundError(f"root: expected a folder; got {self.places[0]}")

    def find(
        self, names: Sequence[str], published: Published, system_files: Sequence[Path] = ()
    ) -> Path:
        """Find a file under one of its names.

        :param names: its names relative to each place, the preferred one first.
        :param published: what to download if there is no such file.
        :param system_files: further paths where it may be.
        :returns: the path of the file.
        :raises FileNotFoundError: if it was not found and may not be downloaded.
        :raises DatasetError: if the download failed.
        """
        searched = [place / name for place in self.places for name in names]
        searched.extend(system_files)
        for path in searched:
            if path.is_file():
                return path
        if self.download:
            return fetch(published, self.progress)
        lines = "\n".join(f"  {path}" for path in searched)
        raise FileNotFoundError(
            f"{self.name}: expected one of these files, found none, and download=False:\n{lines}\n"
            "Point root= or the environment variable PYRO_EBM_DATA to a folder that holds the "
            f"set, or let load({self.name!r}, download=True) fetch {published.urls[0]} into "
            f"{cache_folder()}."
        )


def fetch(published: Published, progress: bool) -> Path:
    """Download a file into the cache. It appears there complete and verified, or not at all.

    :param published: the file.
    :param progress: whether to show a progress bar.
    :returns: its path in the cache.
    :raises DatasetError: if no address served the published file, saying why for each.
    :raises ImportError: if pooch, or tqdm for the progress bar, is not installed.
    """
    pooch = require("pooch", "pooch", "Downloading data sets")
    if progress:
        require("tqdm", "tqdm", "The progress bar of downloads (progress=True)")
    # Servers must not compress (or claim to have compressed) what is a compressed file already.
    downloader = pooch.HTTPDownloader(
        progressbar=progress,
        chunk_size=1 << 16,
        timeout=_TIMEOUT,
        headers={"Accept-Encoding": "identity"},
    )
    target = cache_folder() / published.path
    failures = []
    for url in published.urls:
        try:
            _fetch_from(url, target, published.md5, downloader)
        except (DatasetError, OSError) as error:  # the exceptions of requests are OSErrors
            failures.append(f"  {url}: {error}")
        else:
            return target
    raise DatasetError(f"{target.name}: the download failed.\n" + "\n".join(failures))


def _fetch_from(url: str, target: Path, expected: str, downloader: Any) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the target's own folder, since files can be renamed atomically within a file system only.
    with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as folder:
        part = Path(folder) / target.name
        downloader(url, str(part), None)
        content = part.read_bytes()
        if (got := md5(content)) != expected:
            raise DatasetError(
                f"expected a file {target.name} with md5 {expected}; got {len(content)} bytes "
                f"with md5 {got}"
            )
        part.replace(target)
