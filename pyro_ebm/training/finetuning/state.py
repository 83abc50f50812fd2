# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The state of a run of fine-tuning in one safetensors file."""

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyro_ebm.nn import ModelFileError
from pyro_ebm.nn.serialization import read_tensors, write_tensors

__all__ = ["read_state", "write_state"]

_KIND = "fine-tuning"


def write_state(
    path: str | os.PathLike[str],
    parts: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, Any],
) -> None:
    """Write tensors by part and name, atomically.

    :param path: the file; its folder is made if missing.
    :param parts: tensors by name, by the part that they belong to.
    :param metadata: JSON values by name.
    """
    tensors = {f"{part}/{name}": t for part, values in parts.items() for name, t in values.items()}
    write_tensors(path, tensors, {"kind": _KIND, **metadata})


def read_state(
    path: str | os.PathLike[str],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what :func:`write_state` wrote.

    :raises FileNotFoundError: if there is no such file.
    :raises ~pyro_ebm.nn.ModelFileError: if the file is damaged or holds something else.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != _KIND:
        raise ModelFileError(f"{path} holds no state of fine-tuning")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, name = key.split("/", 1)
        parts.setdefault(part, {})[name] = value
    return parts, metadata
