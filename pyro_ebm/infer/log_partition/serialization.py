# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Numbers as JSON, and files that are either the old or the new one, never half of one."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

__all__ = ["from_json", "read_json", "to_json", "write_atomically", "write_json"]

#: JSON has no numbers for these.
_WORDS = {math.inf: "Infinity", -math.inf: "-Infinity"}


def to_json(value: Any) -> Any:
    """Plain JSON types: tensors become lists, NaN becomes null and infinities become words.

    :raises TypeError: for anything that JSON has no type for.
    """
    if isinstance(value, Tensor):
        return to_json(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else _WORDS.get(value, value)
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"JSON has no type for {type(value).__name__}: {value!r}")


def from_json(value: Any) -> Tensor:
    """A float64 tensor from what :func:`to_json` makes of one.

    :raises ValueError: if it is no number or (nested) list of numbers.
    """

    def number(item: Any) -> Any:
        if isinstance(item, list):
            return [number(entry) for entry in item]
        return math.nan if item is None else float(item)

    try:
        return torch.tensor(number(value), dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected numbers, got {value!r}") from error


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under another name, then put it in its place.

    Whoever reads the file, also after a crash in the middle, finds the old or the new content.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    """The permissions that new files of this process don't get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file, see :func:`write_atomically`."""
    text = json.dumps(to_json(data), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    :raises ValueError: if it does not.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data
