# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The history of a run as a file, up to date after every epoch."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_ebm.infer.log_partition.serialization import to_json, write_atomically
from pyro_ebm.training.callbacks import Callback

if TYPE_CHECKING:
    from pyro_ebm.training.trainer import Trainer

__all__ = ["HistoryFile"]

_SUFFIXES = (".csv", ".json")


class HistoryFile(Callback):
    """Writes :attr:`Trainer.history <pyro_ebm.training.Trainer.history>` to a file after every epoch.

    The file always holds the whole history of the trainer, so that a run that was resumed has every epoch
    once; whoever reads it finds the state before or after an epoch, never half of one. Put the callback
    behind those that add to the record.

    :param path: a ``.csv`` file, one row an epoch and a column for every metric, in the order in which they
        first occur, empty where an epoch lacks one; or a ``.json`` file, a list of records, where NaN is
        null. Its folder is made if missing.
    :raises ValueError: for another suffix.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in _SUFFIXES:
            raise ValueError(f"path must end in one of {_SUFFIXES}, got {str(self.path)!r}")

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Make the folder: not after the first epoch."""
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_epoch_end(self, trainer: "Trainer", record: dict[str, Any]) -> None:
        """Write the file."""
        self._write(trainer.history)

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Write the file again, as later callbacks may have added to the last record."""
        self._write(trainer.history)

    def _write(self, history: Sequence[Mapping[str, Any]]) -> None:
        text = _csv(history) if self.path.suffix.lower() == ".csv" else _json(history)
        write_atomically(self.path, lambda file: file.write(text.encode()))


def _csv(history: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for record in history for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _json(history: Sequence[Mapping[str, Any]]) -> str:
    lines = [json.dumps(to_json(record), allow_nan=False) for record in history]
    return "[\n" + ",\n".join(lines) + "\n]\n"
