# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Chains in motion."""

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyro_ebm.plotting.figures import new_figure, to_array
from pyro_ebm.plotting.tiles import paint, show, tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ChainAnimation", "chain_animation", "save_animation"]

#: About the width of a film in pixels, and the height of the line of text above it.
_WIDTH, _HEADER = 480, 26
#: Grey levels of a film: more are hardly seen, and make files much larger.
_LEVELS = 32


@dataclass(frozen=True)
class ChainAnimation:
    """A film that has not been written yet.

    :param Figure figure: what shows one frame at a time; the first one now.
    :param int num_frames: its length.
    :param draw: puts the frame of a number, from 0, into the figure.
    """

    figure: "Figure"
    num_frames: int
    draw: Callable[[int], None]


def chain_animation(
    states: Tensor,
    image_shape: Sequence[int],
    *,
    layout: str = "channels_first",
    limits: tuple[float, float] = (0.0, 1.0),
    num_columns: int | None = None,
    sweeps: Sequence[int] | None = None,
    zoom: int | None = None,
    title: str | None = None,
) -> ChainAnimation:
    """A grid of chains over their sweeps; every tile is an independent chain.

    Every pixel of an image is a whole number of pixels of the film, so that nothing blurs.

    :param Tensor states: states or unit means, shape ``(chains, draws, V)``, as
        ``get_samples(group_by_chain=True)["v"]`` of a kernel's driver has them.
    :param image_shape: shape of one image.
    :param str layout: where channels are, see :func:`~pyro_ebm.plotting.image_grid`.
    :param limits: values that are black and white.
    :param int num_columns: tiles in a row; about the square root of the number of chains if None.
    :param sweeps: number of the sweep of every draw, which the film shows; 0, 1, 2, ... if None.
    :param int zoom: pixels of the film to one of an image; about 480 pixels of width if None.
    :param str title: words beside the number of the sweep.
    :returns: the film, for :func:`save_animation`.
    :raises ValueError: if the sizes contradict each other, or states are NaN.
    """
    array = to_array(states)
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"states must have shape (chains, draws, V), got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("states hold NaN or infinite values")
    numbers = list(range(array.shape[1])) if sweeps is None else list(sweeps)
    if len(numbers) != array.shape[1]:
        raise ValueError(f"sweeps has {len(numbers)} numbers for {array.shape[1]} draws")
    if zoom is not None and zoom < 1:
        raise ValueError(f"zoom must be at least 1, got {zoom}")
    first = tiles(array[:, 0], image_shape, num_columns, layout)
    zoom = zoom or max(1, round(_WIDTH / first.shape[1]))
    figure, image, text = _canvas(first, limits, zoom)

    def draw(frame: int) -> None:
        tile = tiles(array[:, frame], image_shape, num_columns, layout)
        image.set_data(paint(tile, *limits))
        # The number also keeps frames apart in the file when no chain has moved.
        text.set_text(f"{title + ', ' if title else ''}sweep {numbers[frame]}")

    draw(0)
    return ChainAnimation(figure, array.shape[1], draw)


def _canvas(tile: Any, limits: tuple[float, float], zoom: int) -> tuple["Figure", Any, Any]:
    """A figure whose axes are exactly as large as the tiles, below one line of text."""
    height, width = tile.shape[0] * zoom, tile.shape[1] * zoom
    figure = new_figure(1.0, 1.0)
    figure.set_layout_engine("none")
    dpi = figure.dpi
    figure.set_size_inches(width / dpi, (height + _HEADER) / dpi)
    ax = figure.add_axes((0.0, 0.0, 1.0, height / (height + _HEADER)))
    image = show(ax, tile, *limits)
    if tile.ndim == 2:
        image.set_cmap(image.get_cmap().resampled(_LEVELS))
    ax.set_aspect("auto")
    middle = 1.0 - 0.5 * _HEADER / (height + _HEADER)
    text = figure.text(6 / width, middle, "", va="center", ha="left", fontsize=9)
    return figure, image, text


def save_animation(
    animation: ChainAnimation, path: str | os.PathLike[str], *, frames_per_second: float = 8.0
) -> Path:
    """Write a film to a GIF file, atomically, by matplotlib's ``PillowWriter``.

    :param animation: what :func:`chain_animation` returned.
    :param path: the file, ending in ``.gif``. Its folder is made if missing.
    :param float frames_per_second: speed; the film repeats.
    :returns: the path.
    :raises ValueError: for another suffix or speed.
    """
    path = Path(path)
    if path.suffix.lower() != ".gif":
        raise ValueError(f"path must end in .gif, got {path.name!r}")
    if not 0.0 < frames_per_second <= 100.0:
        raise ValueError(f"frames_per_second must be in (0, 100], got {frames_per_second}")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = importlib.import_module("matplotlib.animation").PillowWriter(fps=frames_per_second)
    # Pillow takes the format from the suffix.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part.gif")
    try:
        # Not by `writer.saving`, which would go on to write the file after an error.
        writer.setup(animation.figure, temporary, dpi=animation.figure.dpi)
        for frame in range(animation.num_frames):
            animation.draw(frame)
            writer.grab_frame()
        writer.finish()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        animation.draw(0)
    return path
