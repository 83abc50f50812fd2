# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What every figure of the package is made with: a canvas, a heading, a file."""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "Array", "annotate", "new_figure", "plain", "save", "to_array"]

Array = npt.NDArray[np.float64]

#: Colours that people with colour blindness can tell apart (Okabe and Ito), and in print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
#: Dots per inch of files.
_DPI = 150
#: Vector files keep their text as text: journals ask for TrueType fonts, and editors can change it.
_FONTS = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}


def save(figure: "Figure", path: str | os.PathLike[str], *, dpi: int = _DPI) -> Path:
    """Write a figure to a file, atomically: the picture is whole or not there.

    :param figure: what a function of :mod:`pyro_ebm.plotting` returned.
    :param path: the file; its suffix sets the format, such as ``.png``, ``.pdf`` or ``.svg``. Text of vector
        files stays text. Its folder is made if missing.
    :param int dpi: dots per inch of what is not a vector.
    :returns: the path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix.removeprefix(".") or "png"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with importlib.import_module("matplotlib").rc_context(_FONTS):
            figure.savefig(temporary, format=kind, dpi=dpi)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of its own, without pyplot's global state.

    :raises ImportError: if matplotlib is not installed.
    """
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'pyro-ebm[plot]'") from error
    # Constrained layout leaves room for titles and captions, whatever the shape of the images.
    return module.Figure(figsize=(width, max(height, 1.2)), layout="constrained")


def annotate(figure: "Figure", title: str | None, caption: str | None) -> None:
    """Heading above, caption below."""
    if title:
        figure.suptitle(title, fontsize=11)
    if caption:
        figure.supxlabel(caption, fontsize=8, color="0.35")


def plain(*axes: "Axes") -> None:
    """Axes without the lines that carry no information."""
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)


def to_array(values: Any) -> Array:
    """Tensors and sequences as float64 arrays on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
