# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Features in the plane."""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyro_ebm.plotting.figures import Array, annotate, new_figure, to_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["embedding"]

#: Ten colours that people with colour blindness can tell apart (Paul Tol's muted scheme).
_CLASS_COLOURS = (
    "#332288",
    "#88ccee",
    "#44aa99",
    "#117733",
    "#999933",
    "#ddcc77",
    "#cc6677",
    "#882255",
    "#aa4499",
    "#777777",
)
#: A marker for every ten classes.
_MARKERS = "o^sDvP*"
_MAX_CLASSES = len(_CLASS_COLOURS) * len(_MARKERS)
#: Directions that t-SNE looks at, as is customary: noise beyond them costs time and adds nothing.
_COMPONENTS = 50


def embedding(
    features: Any,
    labels: Any,
    names: Sequence[str] | None = None,
    *,
    max_points: int = 5000,
    perplexity: float = 30.0,
    seed: int = 0,
    title: str | None = "Features in the plane",
    caption: str | None = None,
) -> "Figure":
    """Features of labelled rows as points of the plane, by t-SNE [1] or as they are.

    Points are drawn in random order, so that no class lies on top, and every class carries its name where
    it is densest, for readers who see no colours. Distances between clusters, and their sizes, mean nothing
    in t-SNE.

    **References**

    [1] *Visualizing Data using t-SNE*, Laurens van der Maaten, Geoffrey Hinton (2008)

    :param features: shape ``(N, D)``, such as ``rbm.hidden_given(v).mean``. With D = 2 they are taken
        as points of the plane, embedded before; otherwise scikit-learn's ``TSNE`` embeds their first 50
        principal components, at the cost of about a minute for 5000 rows.
    :param labels: class of every row, whole numbers from 0, shape ``(N,)``.
    :param names: of the classes; their numbers if None.
    :param int max_points: rows shown at most, chosen at random.
    :param float perplexity: of t-SNE; below the number of rows shown.
    :param int seed: of the choice of rows, their order, and t-SNE.
    :param str title: heading.
    :param str caption: a line below; how the plane was made if None.
    :raises ImportError: if scikit-learn is needed and not installed.
    :raises ValueError: for wrong shapes, NaN, labels without name, or an impossible perplexity.
    """
    points = to_array(features)
    if points.ndim != 2 or points.shape[1] < 2 or len(points) == 0:
        raise ValueError(f"features must have shape (rows >= 1, D >= 2), got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("features hold NaN or infinite values")
    classes, names = class_numbers("labels", labels, len(points), names)
    if len(names) > _MAX_CLASSES:
        raise ValueError(f"{len(names)} classes cannot be told apart; expected <= {_MAX_CLASSES}")
    if max_points < 1:
        raise ValueError(f"max_points must be at least 1, got {max_points}")
    order = np.random.default_rng(seed).permutation(len(points))[:max_points]
    count = (
        f"{len(order)} of {len(points)} rows" if len(order) < len(points) else f"{len(order)} rows"
    )
    points, classes = points[order], classes[order]
    words = count
    if points.shape[1] > 2:
        words = (
            f"t-SNE of {count}, {points.shape[1]} features, perplexity {perplexity:g}, seed {seed}"
        )
        points = _tsne(points, perplexity, seed)
    figure = new_figure(6.4, 5.6)
    ax = figure.subplots()
    _scatter(ax, points, classes, names)
    annotate(figure, title, words if caption is None else caption)
    return figure


def class_numbers(
    name: str, labels: Any, length: int | None, names: Sequence[str] | None
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Labels as whole numbers, and a name for each that can occur.

    :raises ValueError: for another shape, labels that are no numbers of classes, or too few names.
    """
    values = to_array(labels)
    if values.ndim != 1 or len(values) == 0 or (length is not None and len(values) != length):
        expected = "rows >= 1" if length is None else str(length)
        raise ValueError(f"{name} must have shape ({expected},), got {values.shape}")
    if not (np.isfinite(values).all() and (values == np.floor(values)).all() and values.min() >= 0):
        raise ValueError(f"{name} must be whole numbers >= 0")
    largest = int(values.max())
    if names is None:
        names = [str(k) for k in range(largest + 1)]
    if len(names) <= largest:
        raise ValueError(f"{name} has class {largest}, but there are {len(names)} names")
    return values.astype(np.int64), [str(n) for n in names]


def _tsne(features: Array, perplexity: float, seed: int) -> Array:
    if not 0.0 < perplexity < len(features):
        raise ValueError(
            f"perplexity must be above 0 and below the number of rows, {len(features)}, got {perplexity}"
        )
    try:
        decomposition = importlib.import_module("sklearn.decomposition")
        manifold = importlib.import_module("sklearn.manifold")
    except ImportError as error:
        raise ImportError("t-SNE needs scikit-learn: pip install 'pyro-ebm[data]'") from error
    if min(features.shape) > _COMPONENTS:
        features = decomposition.PCA(_COMPONENTS, random_state=seed).fit_transform(features)
    model = manifold.TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    plane: Array = model.fit_transform(features).astype(np.float64)
    return plane


def _place(points: Array, own: npt.NDArray[np.bool_]) -> Array:
    """The point of a class that has most neighbours of its class, and fewest of others."""
    # Medians of two classes in one cluster would write their names over each other.
    candidates = points[own][:200]
    scale = 0.05 * max(float(np.ptp(points, axis=0).max()), 1e-12)
    square = ((candidates[:, None] - points[None]) ** 2).sum(-1)
    near = np.exp(-square / (2.0 * scale**2))
    best: Array = candidates[int((near[:, own].sum(1) - near[:, ~own].sum(1)).argmax())]
    return best


def _scatter(ax: "Axes", points: Array, classes: npt.NDArray[np.int64], names: list[str]) -> None:
    effects = importlib.import_module("matplotlib.patheffects")
    size = float(np.clip(12_000 / len(points), 2.0, 24.0))
    colours = np.array(_CLASS_COLOURS)
    num = len(colours)
    for i, marker in enumerate(_MARKERS):
        own = classes // num == i
        if own.any():
            # Thousands of points as one picture, or a vector file would be slow to show.
            ax.scatter(
                points[own, 0],
                points[own, 1],
                s=size,
                c=colours[classes[own] % num],
                marker=marker,
                linewidths=0,
                alpha=0.85,
                rasterized=True,
            )
    present = np.unique(classes)
    for k in present:
        x, y = _place(points, classes == k)
        text = ax.text(x, y, names[k], ha="center", va="center", fontsize=10, weight="bold")
        text.set_path_effects([effects.withStroke(linewidth=2.5, foreground="white")])
        marker, colour = _MARKERS[k // num], _CLASS_COLOURS[k % num]
        ax.plot([], [], marker, color=colour, ms=5, label=f"{names[k]}")
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    columns = -(-len(present) // 24)
    legend: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "ncols": columns}
    ax.legend(frameon=False, fontsize=9, handletextpad=0.1, **legend)
