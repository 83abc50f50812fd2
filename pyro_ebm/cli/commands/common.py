# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Options that several commands share, and what their first argument names."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

import pyro_ebm
from pyro_ebm import datasets
from pyro_ebm.cli.data import DataOptions, default_binarization
from pyro_ebm.cli.machines import Machine
from pyro_ebm.cli.run_folder import RunFolder

__all__ = [
    "DATA_NAMES",
    "device_option",
    "open_model",
    "quiet_option",
    "root_option",
    "run_data",
    "seed_option",
    "set_threads",
    "threads_option",
]

F = TypeVar("F", bound=Callable[..., Any])

DATA_NAMES = datasets.available()


def quiet_option(function: F) -> F:
    """``--quiet``."""
    return click.option("-q", "--quiet", is_flag=True, help="Show no progress bars.")(function)


def seed_option(function: F) -> F:
    """``--seed``."""
    return click.option(
        "--seed", type=click.IntRange(0), default=0, help="Seed of all random numbers."
    )(function)


def root_option(function: F) -> F:
    """``--root``."""
    return click.option(
        "--root",
        type=click.Path(file_okay=False),
        show_default=False,
        help="Folder to look for data in first; then PYRO_EBM_DATA, the cache, a download.",
    )(function)


def device_option(function: F) -> F:
    """``--device``."""
    return click.option(
        "--device", default="cpu", metavar="NAME", help='Device of torch: "cpu", "cuda", ...'
    )(function)


def threads_option(function: F) -> F:
    """``--threads``."""
    return click.option(
        "--threads",
        type=click.IntRange(1),
        show_default="torch's own",
        help="Threads on the CPU. Small models are fastest with 1.",
    )(function)


def set_threads(threads: int | None) -> None:
    """Limit torch's threads, if a number was given."""
    if threads is not None:
        torch.set_num_threads(threads)


def check_device(name: str) -> str:
    """Refuse devices that torch does not know or does not find.

    :raises ValueError: naming the device.
    """
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}") from error
    return name


def open_model(target: str, device: str = "cpu") -> tuple[Machine, RunFolder | None]:
    """A model from a run folder or a model file.

    :returns: the model, and its run folder if it has one.
    :raises FileNotFoundError: if there is no such model.
    :raises ~pyro_ebm.nn.ModelFileError: if it is damaged.
    :raises ValueError: if the model is conditional.
    """
    path = Path(target)
    if path.is_file():
        return _load(path, device), None
    run = RunFolder(path)
    return _load(run.model_file(), device), run


def _load(path: Path, device: str) -> Machine:
    module = pyro_ebm.load(path, device=check_device(device))
    if not isinstance(module, Machine):
        raise ValueError(
            f"{path} holds a {type(module).__name__}, whose distribution depends on a context; the "
            "commands take RBMs and DBMs: use pyro_ebm.load() and its condition() in Python"
        )
    return module


def run_data(
    module: Machine, run: RunFolder | None, name: str | None, root: str | None
) -> DataOptions:
    """The data of a run; for a model file, that of ``--data``.

    :raises ValueError: if there is neither.
    """
    family = module.visible.family
    if run is not None and run.is_run:
        options = DataOptions.from_dict(run.config()["data"])
        changes: dict[str, Any] = {} if root is None else {"root": root}
        if name is not None and name != options.name:
            changes |= {"name": name, "validation": 0}
        return replace(options, **changes)
    if name is None:
        raise ValueError("a model file does not tell its data: name them with --data")
    binarization = default_binarization(family)
    return DataOptions(name=name, root=root, family=family, binarization=binarization)
