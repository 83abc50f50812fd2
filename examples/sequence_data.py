# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Sequences of motion sensors, for ``sequence_machines.py``.

``BasicMotions``: a smart watch on the wrist of four people who stand, walk, run or play badminton, three
axes of an accelerometer and three of a gyroscope, ten times a second; 40 recordings to train with and 40 to
test. The files are part of the packages ``sktime`` and ``aeon``; they are read from there, and neither
package is imported. Data of the same kind can be made, where neither is installed.
"""

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

__all__ = ["Sequences", "history_and_frames", "load_motions", "make_motions"]

#: Packages whose files include the data, and where.
_PACKAGES = ("sktime", "aeon")
_FOLDER = Path("datasets", "data", "BasicMotions")
#: Activities of made data: angular frequency, damping of the swing, noise.
_MADE = ((0.9, 0.98, 0.25), (1.9, 0.95, 0.4), (0.0, 0.5, 0.05))


@dataclass(frozen=True)
class Sequences:
    """Sequences of equal length with the activity of every frame.

    :param Tensor frames: shape ``(sequences, frames, channels)``.
    :param Tensor labels: number of the activity, shape ``(sequences, frames)``; for evaluation only.
    :param names: of the activities.
    """

    frames: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def like(self, other: "Sequences") -> "Sequences":
        """In units of another set: its mean and its standard deviation by channel become 0 and 1."""
        flat = other.frames.flatten(0, 1)
        return Sequences((self.frames - flat.mean(0)) / flat.std(0), self.labels, self.names)

    def rows(self, chosen: Tensor) -> "Sequences":
        """Some of the sequences."""
        return Sequences(self.frames[chosen], self.labels[chosen], self.names)

    def streams(self, piece: int, pieces: int, generator: Generator) -> "Sequences":
        """Recordings cut into pieces, which are shuffled and put one after the other: the activity then
        changes within a sequence. What is left over is dropped."""

        def cut(x: Tensor) -> Tensor:
            whole = x[:, : x.shape[1] // piece * piece]
            return whole.unflatten(1, (-1, piece)).flatten(0, 1)

        frames, labels = cut(self.frames), cut(self.labels)
        order = torch.randperm(len(frames), generator=generator)
        order = order[: len(order) // pieces * pieces].reshape(-1, pieces)
        return Sequences(frames[order].flatten(1, 2), labels[order].flatten(1, 2), self.names)


def history_and_frames(sequences: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """The frames that have a history, and this history.

    :param Tensor sequences: shape ``(..., frames, channels)``.
    :param int order: frames of a history.
    :returns: histories, the latest frame first, shape ``(..., frames - order, order * channels)``, and frames
        of shape ``(..., frames - order, channels)``.
    :raises ValueError: if no frame has a history of that length.
    """
    length = sequences.shape[-2]
    if not 1 <= order < length:
        raise ValueError(f"order must be between 1 and {length - 1} frames, got {order}")
    past = [sequences[..., order - lag : length - lag, :] for lag in range(1, order + 1)]
    return torch.cat(past, -1), sequences[..., order:, :]


# --- the recordings -------------------------------------------------------------------------------


def load_motions() -> tuple[Sequences, Sequences]:
    """The recordings to train with and to test, without repeated frames.

    About every ninth frame equals the one before in all six channels: a sample that was held because the
    next one was late. A density could put any amount of mass there. These frames are left out, and
    all recordings are cut to the length of the shortest one.

    :raises FileNotFoundError: if no installed package has the files.
    """
    folder = _find()
    parts = [list(_read(folder / f"BasicMotions_{part}.ts")) for part in ("TRAIN", "TEST")]
    names = tuple(sorted({name for part in parts for _, name in part}))
    length = min(len(frames) for part in parts for frames, _ in part)
    train, test = (
        Sequences(
            torch.stack([frames[:length] for frames, _ in part]),
            torch.tensor([names.index(name) for _, name in part]).unsqueeze(-1).repeat(1, length),
            names,
        )
        for part in parts
    )
    return train, test


def _find() -> Path:
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(place) / _FOLDER).is_dir():
                return Path(place) / _FOLDER
    raise FileNotFoundError(
        "BasicMotions is part of the packages 'sktime' and 'aeon', none of which is installed: "
        "pip install sktime, or use --data made"
    )


def _read(path: Path) -> Iterator[tuple[Tensor, str]]:
    """Recordings of a file of the ``.ts`` format: a line each, channels and the label separated by ':'."""
    for line in path.read_text().splitlines():
        if line and line[0] not in "#@":
            *channels, name = line.split(":")
            frames = torch.tensor([[float(x) for x in c.split(",")] for c in channels]).T
            new = (frames[1:] != frames[:-1]).any(-1)
            yield torch.cat([frames[:1], frames[1:][new]]), name.strip()


# --- made data ------------------------------------------------------------------------------------


def make_motions(
    recordings: int, length: int, generator: Generator, channels: int = 3
) -> Sequences:
    """Damped oscillators that noise drives, a frequency for each of three activities; in two of them bursts
    make the noise heavy-tailed."""
    frames, labels = [], []
    for number in range(recordings):
        kind = number % len(_MADE)
        frames.append(_oscillation(*_MADE[kind], length, channels, generator))
        labels.append(torch.full((length,), kind))
    return Sequences(torch.stack(frames), torch.stack(labels), ("swing", "shake", "rest"))


def _oscillation(
    frequency: float, damping: float, noise: float, length: int, channels: int, generator: Generator
) -> Tensor:
    turn = damping * torch.polar(torch.tensor(1.0), torch.tensor(frequency))
    state, path = torch.zeros(channels, dtype=torch.cfloat), []
    for _ in range(length + 20):
        burst = 1.0 + 2.0 * (torch.rand(1, generator=generator) < 0.15)
        kick = torch.randn(channels, 2, generator=generator) / math.sqrt(2.0)
        state = turn * state + noise * burst * torch.view_as_complex(kick)
        path.append(state.real)
    return torch.stack(path[20:])
