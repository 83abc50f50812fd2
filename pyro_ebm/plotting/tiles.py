# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Many images in one array with lines between them, and how such an array is shown."""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_ebm.plotting.figures import Array, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["image_size", "paint", "show", "tiles"]

#: Pixels that are unknown, and lines between images by colour map.
_UNKNOWN = "#7ea6d3"
_LINES = {"gray": "0.35", "RdBu_r": "0.75"}
#: A zero of the grey scale of filters is mid-grey, from which white lines stand out.
_SIGNED_GREY = "white"
_LAYOUTS = ("channels_first", "channels_last")


def image_size(image_shape: Sequence[int], layout: str = "channels_first") -> tuple[int, int, int]:
    """Height, width and channels of an image.

    :param image_shape: ``(H, W)``, or ``(C, H, W)`` or ``(H, W, C)`` as the layout says.
    :param str layout: "channels_first" or "channels_last".
    :raises ValueError: for another layout, or images that are neither grey nor of three colours.
    """
    if layout not in _LAYOUTS:
        raise ValueError(f"layout must be one of {_LAYOUTS}, got {layout!r}")
    shape = tuple(image_shape)
    if len(shape) == 2:
        return shape[0], shape[1], 1
    if len(shape) != 3:
        raise ValueError(f"there are no rows of images of shape {shape}: expected 2 or 3 axes")
    channels = shape[0] if layout == "channels_first" else shape[-1]
    height, width = shape[1:] if layout == "channels_first" else shape[:2]
    if channels not in (1, 3):
        raise ValueError(
            f"images of shape {shape} have {channels} channels by layout {layout!r}; expected 1 or 3"
        )
    return height, width, channels


def tiles(
    images: Any,
    image_shape: Sequence[int],
    num_columns: int | None = None,
    layout: str = "channels_first",
) -> Array:
    """All images in one array, a line of one pixel (infinite) between them.

    :param images: shape ``(N, V)``.
    :param image_shape: shape of one image.
    :param int num_columns: tiles in a row; about the square root of N if None.
    :param str layout: where channels are.
    :returns: shape ``(height, width)``, with a last axis of three colours for colour images.
    :raises ValueError: if the sizes contradict each other.
    """
    array = to_array(images)
    shape = tuple(image_shape)
    if len(shape) not in (2, 3) or array.ndim != 2 or array.shape[1] != np.prod(shape):
        raise ValueError(f"images of shape {array.shape} are no rows of images of shape {shape}")
    height, width, channels = image_size(shape, layout)
    if len(array) == 0:
        raise ValueError("there are no images to show")
    if num_columns is not None and num_columns < 1:
        raise ValueError(f"num_columns must be at least 1, got {num_columns}")
    columns = min(num_columns or max(1, round(len(array) ** 0.5)), len(array))
    rows = -(-len(array) // columns)
    colour = (3,) if channels == 3 else ()
    pixels = array.reshape(-1, *shape)
    if channels == 3 and layout == "channels_first":
        pixels = np.moveaxis(pixels, 1, -1)
    pixels = pixels.reshape(-1, height, width, *colour)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, *colour), np.inf)
    for i, image in enumerate(pixels):
        top, left = divmod(i, columns)
        top, left = top * (height + 1) + 1, left * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    return canvas


def paint(tile: Array, low: float, high: float) -> Array:
    """What ``imshow`` is given: clipped to the scale, lines and unknown pixels apart from it.

    Grey tiles keep their values, with lines above the scale and unknown pixels NaN; colour tiles become
    levels in [0, 1].
    """
    if tile.ndim == 2:
        return np.where(np.isposinf(tile), 2.0 * high - low, np.clip(tile, low, high))
    to_rgb = importlib.import_module("matplotlib.colors").to_rgb
    levels = np.clip((tile - low) / (high - low), 0.0, 1.0)
    return np.where(np.isnan(tile), np.asarray(to_rgb(_UNKNOWN)), levels)


def show(
    ax: "Axes",
    tile: Array,
    low: float,
    high: float,
    colours: str = "gray",
    *,
    signed: bool = False,
) -> Any:
    """Draw tiles without axes; infinite pixels are lines, NaN are unknown.

    :param ax: where.
    :param tile: what :func:`tiles` returned.
    :param float low: the value at the lower end of the scale.
    :param float high: the value at its upper end.
    :param str colours: colour map of grey images.
    :param bool signed: whether the middle of the scale, and not its lower end, means nothing.
    :returns: matplotlib's image.
    """
    if not low < high:
        raise ValueError(f"limits must be an increasing pair of numbers, got {(low, high)}")
    inside = paint(tile, low, high)
    if tile.ndim == 3:
        image = ax.imshow(inside, interpolation="nearest")
    else:
        colormaps = importlib.import_module("matplotlib").colormaps
        line = _SIGNED_GREY if signed and colours == "gray" else _LINES[colours]
        scale = colormaps[colours].with_extremes(over=line, bad=_UNKNOWN)
        image = ax.imshow(inside, cmap=scale, vmin=low, vmax=high, interpolation="nearest")
    ax.set_axis_off()
    return image
