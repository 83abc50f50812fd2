# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Models as files: safetensors with their configuration, nothing executable."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.nn.classification_rbm import ClassificationRBM
from pyro_ebm.nn.dbm import DBM
from pyro_ebm.nn.nbm import NeuralBoltzmannMachine
from pyro_ebm.nn.rbm import RBM
from pyro_ebm.nn.tied_rbm import TiedRBM

__all__ = ["ModelFileError", "load", "read_tensors", "save", "write_tensors"]

_HEADER = "pyro_ebm"
_FORMAT = "pyro_ebm"
_VERSION = 1
Module = RBM | DBM | NeuralBoltzmannMachine
_CLASSES: dict[str, type[RBM] | type[DBM] | type[NeuralBoltzmannMachine]] = {
    "ClassificationRBM": ClassificationRBM,
    "DBM": DBM,
    "RBM": RBM,
    "NeuralBoltzmannMachine": NeuralBoltzmannMachine,
    "TiedRBM": TiedRBM,
}


class ModelFileError(RuntimeError):
    """A model file or checkpoint that cannot be read: truncated, damaged, or not one of ours."""


def save(module: Module, path: str | os.PathLike[str]) -> None:
    """Write a module to a ``.safetensors`` file, atomically: the file is whole or not there.

    :param module: a module of :mod:`pyro_ebm.nn`.
    :param path: the file; its folder is made if missing.
    :raises TypeError: if the module's class cannot be saved.
    """
    write_tensors(path, module.state_dict(), {"model": describe(module)})


def load(path: str | os.PathLike[str], *, device: torch.device | str | None = None) -> Any:
    """Read a module that :func:`save` or a training run wrote. Nothing in the file is executed.

    :param path: a model file, a checkpoint, a run folder that holds ``model.safetensors``, or the name of
        a pretrained model: those are in ``examples/models`` of the source, or in the folder that the
        environment variable ``PYRO_EBM_MODELS`` names.
    :param device: where to put the parameters; the CPU if None.
    :raises FileNotFoundError: if there is no such file.
    :raises ModelFileError: if the file is truncated, damaged, or not a model of this package.
    """
    path = _find(path)
    tensors, metadata = read_tensors(path)
    module = build(metadata.get("model"), path)
    names = list(module.state_dict())
    state = {name: tensors[name] for name in names if name in tensors}
    if len(state) != len(names):
        raise ModelFileError(f"{path}: tensors {sorted(set(names) - set(state))} are missing")
    try:
        module = module.to(dtype=state[names[0]].dtype)
        module.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ModelFileError(f"{path}: tensors do not fit the configuration: {error}") from error
    return module.to(device) if device is not None else module


def _find(path: str | os.PathLike[str]) -> Path:
    """The file that a path or the name of a pretrained model means."""
    found = Path(path)
    if found.is_dir():
        return found / "model.safetensors"
    # A name is no path: no folder, no suffix.
    if found.exists() or found.suffix or found.name != os.fspath(path):
        return found
    source = Path(__file__).resolve().parents[2] / "examples" / "models"
    models = Path(os.environ.get("PYRO_EBM_MODELS", source))
    named = models / f"{found}.safetensors"
    if not named.is_file():
        known = sorted(file.stem for file in models.glob("*.safetensors"))
        raise FileNotFoundError(
            f"no model file at {found}, and no pretrained model of this name in {models}, "
            f"which has {known}"
        )
    return named


def describe(module: Module) -> dict[str, Any]:
    """Class and configuration of a module, for a file's metadata."""
    name = type(module).__name__
    if name not in _CLASSES:
        raise TypeError(f"cannot save a {name}; classes that can: {sorted(_CLASSES)}")
    return {"class": name, "config": module.config()}


def build(description: Any, path: Path) -> Module:
    """A module from its description, with fresh parameters."""
    try:
        return _CLASSES[description["class"]](**description["config"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: not a model of this package ({error!r})") from error


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write tensors and JSON metadata to a safetensors file by way of a temporary one.

    :param path: the file; its folder is made if missing.
    :param tensors: tensors by name.
    :param metadata: JSON values by name.
    """
    save_file = _safetensors("save_file")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One entry: the order of several is random, and equal runs should end in equal bytes.
    header = {_HEADER: json.dumps({"version": _VERSION, **metadata})}
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        # safetensors writes files that only their owner can read; models get the usual permissions.
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(plain, temporary, metadata=header)
        temporary.chmod(mode & 0o777)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    :returns: tensors and metadata by name.
    :raises FileNotFoundError: if there is no such file.
    :raises ModelFileError: if the file is truncated, damaged, or not one of this package.
    """
    safe_open = _safetensors("safe_open")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no model file at {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # safetensors raises its own class, built in Rust
        raise ModelFileError(f"{path} is no readable safetensors file: {error}") from error
    return tensors, _metadata(path, header)


def _metadata(path: str | os.PathLike[str], header: Mapping[str, str]) -> dict[str, Any]:
    """The JSON values of a file of this package."""
    if _HEADER not in header and header.get("format") != _FORMAT:
        raise ModelFileError(f"{path} is a safetensors file, but not one of {_FORMAT}")
    try:
        if _HEADER in header:
            metadata = dict(json.loads(header[_HEADER]))
        else:  # the first files of the package have an entry of its own for everything
            metadata = {n: json.loads(v) for n, v in header.items() if n != "format"}
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: damaged metadata ({error})") from error
    version = metadata.pop("version", _VERSION)
    if version != _VERSION:
        raise ModelFileError(
            f"{path} has version {version!r} of the file format, this package reads "
            f"{_VERSION}: it was written by a newer one"
        )
    return metadata


def _safetensors(name: str) -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "reading and writing models needs safetensors: pip install 'pyro-ebm[train]'"
        ) from error
    return getattr(safetensors.torch, name, None) or getattr(safetensors, name)
