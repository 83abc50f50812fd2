# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Files that a long run can be resumed from."""

import hashlib
import io
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.infer.log_partition.serialization import write_atomically

__all__ = ["ResumeFile", "digest"]

_FORMAT, _VERSION = "pyro_ebm annealing", 1


class ResumeFile:
    """The state of a run, written every now and then, and read to go on with it.

    The file holds tensors, numbers and text only, and reading it runs no code. It is replaced as a
    whole, so that a run that is killed while it writes finds the state before.

    :param path: the file; it need not exist.
    :param fingerprint: all that a run must agree in to go on with another one's state, by name.
    :param float seconds: time between two writings, see :attr:`is_due`.
    :raises FileNotFoundError: if the folder does not exist.
    """

    def __init__(
        self, path: str | Path, fingerprint: Mapping[str, Any], seconds: float = 60.0
    ) -> None:
        self.path = Path(path)
        if not self.path.absolute().parent.is_dir():
            raise FileNotFoundError(f"checkpoint={str(path)!r} is in a folder that does not exist")
        self.fingerprint = dict(fingerprint)
        self.seconds = seconds
        self._written = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last writing is long enough ago."""
        return time.monotonic() - self._written >= self.seconds

    def read(self) -> dict[str, Any] | None:
        """The state in the file, None if there is no file.

        :raises ValueError: if the file is damaged, no checkpoint, or one of another run.
        """
        if not self.path.exists():
            return None
        content = self._load()
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"{self.path} is no checkpoint of annealing")
        if content.get("version") != _VERSION:
            raise ValueError(
                f"{self.path} has version {content.get('version')}, expected {_VERSION}"
            )
        then = content["fingerprint"]
        differing = [
            f"{name} is {then.get(name)!r} in the file and {self.fingerprint.get(name)!r} now"
            for name in then | self.fingerprint
            if then.get(name) != self.fingerprint.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self.path} is the checkpoint of another run: {'; '.join(differing)}. Give the "
                "options of that run to resume it, or another file"
            )
        state: dict[str, Any] = content["state"]
        return state

    def _load(self) -> Any:
        data = self.path.read_bytes()
        try:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:
            # Whatever a damaged archive makes torch raise: RuntimeError, UnpicklingError, EOFError, ...
            raise ValueError(f"{self.path} is damaged or no checkpoint: {error}") from error

    def write(self, state: Mapping[str, Any]) -> None:
        """Put a state in the file, in the place of the one before."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "fingerprint": self.fingerprint,
            "state": dict(state),
        }
        write_atomically(self.path, lambda file: torch.save(content, file))
        self._written = time.monotonic()

    def remove(self) -> None:
        """Delete the file: the run is over."""
        self.path.unlink(missing_ok=True)


def digest(tensors: Iterable[Tensor]) -> str:
    """A short text that differs where a value, shape or dtype of the tensors does."""
    result = hashlib.sha256()
    for tensor in tensors:
        x = tensor.detach().cpu().contiguous()
        result.update(f"{tuple(x.shape)} {x.dtype}".encode())
        result.update(x.numpy().tobytes())
    return result.hexdigest()[:16]
