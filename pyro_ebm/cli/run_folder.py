# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The folder of one training run and the files in it."""

import csv
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pyro_ebm import nn

__all__ = ["RunFolder", "hardware", "versions", "write_text"]


class RunFolder:
    """Names and formats of the files of a run; every file is written atomically.

    :param path: the folder; it need not exist yet.
    """

    #: Every name that commands write into a run folder.
    FILES = (
        "config.json",
        "checkpoint.safetensors",
        "model.safetensors",
        "history.json",
        "history.csv",
        "evaluation.json",
        "chains.nc",
        "completions.json",
        "report.json",
        "report.md",
        "samples.png",
        "filters.png",
        "energy.png",
        "history.png",
        "completions.png",
    )

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def file(self, name: str) -> Path:
        """Path of one of :attr:`FILES`."""
        if name not in self.FILES:
            raise KeyError(name)
        return self.path / name

    @property
    def is_run(self) -> bool:
        """Whether a run was started here."""
        return self.file("config.json").is_file()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing here yet."""
        return not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))

    def clear(self, keep: Sequence[str] = ()) -> None:
        """Delete the files of an earlier run, and nothing else.

        :param keep: names that may stay in the folder.
        :raises ValueError: if the folder holds other files, or files but no run.
        """
        if not self.path.exists():
            return
        # Killed while it wrote, a command leaves a temporary file.
        parts = [path for path in self.path.glob("*.part") if path.name.startswith(self.FILES)]
        found = {path.name for path in self.path.iterdir()} - {path.name for path in parts}
        found -= set(keep)
        foreign = sorted(found - set(self.FILES))
        if foreign or (found and not self.is_run):
            what = f"holds {foreign[0]}" if foreign else "holds files, but no run"
            raise ValueError(
                f"{self} {what}, which is not of an earlier run; choose another --output"
            )
        # The configuration goes last, so that an interruption leaves a folder that can be cleared.
        for path in [*parts, *(self.file(name) for name in reversed(self.FILES))]:
            path.unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def write_json(self, name: str, values: Any) -> None:
        """Write JSON values to one of :attr:`FILES`."""
        write_text(self.file(name), json.dumps(values, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """Read JSON values.

        :raises FileNotFoundError: if there is no such file.
        :raises ~pyro_ebm.nn.ModelFileError: if it is damaged.
        """
        path = self.file(name)
        if not path.is_file():
            raise FileNotFoundError(f"{self.path} has no {name}: is it a run folder?")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise nn.ModelFileError(f"{path} is damaged: {error}") from error

    def config(self) -> dict[str, Any]:
        """The configuration that the run was started with."""
        config = self.read_json("config.json")
        if not isinstance(config, dict) or not {"data", "model", "training"} <= set(config):
            raise nn.ModelFileError(f"{self.file('config.json')} is no configuration of a run")
        return config

    def write_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the metrics of all epochs as JSON and as a table."""
        self.write_json("history.json", list(records))
        names = list(dict.fromkeys(name for record in records for name in record))
        table = io.StringIO()
        writer = csv.DictWriter(table, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        write_text(self.file("history.csv"), table.getvalue())

    def model_file(self) -> Path:
        """The finished model, or the last checkpoint of a run that is not finished.

        :raises FileNotFoundError: if there is neither.
        """
        for name in ("model.safetensors", "checkpoint.safetensors"):
            if self.file(name).is_file():
                return self.file(name)
        if not self.path.exists():
            raise FileNotFoundError(f"no run folder or model file at {self.path}")
        raise FileNotFoundError(f"{self.path} holds no model and no checkpoint yet")


def write_text(path: Path, text: str) -> None:
    """Write a text file by way of a temporary one; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def versions() -> dict[str, str]:
    """Versions of what results depend on."""
    found = {"python": platform.python_version()}
    for name in ("pyro-ebm", "torch", "pyro-ppl", "numpy", "arviz"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def hardware(device: str = "cpu") -> dict[str, Any]:
    """What the numbers were computed on."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
