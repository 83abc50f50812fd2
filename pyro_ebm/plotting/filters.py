# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of weights: what every hidden unit looks for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_ebm.plotting.figures import annotate, new_figure
from pyro_ebm.plotting.tiles import image_size, show, tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["filters"]

_COLOUR_MAPS = {"diverging": "RdBu_r", "grey": "gray"}
#: A single large weight would make everything else look flat.
_QUANTILE = 0.998


def filters(
    weight: Tensor | Sequence[Tensor],
    image_shape: Sequence[int],
    *,
    layout: str = "channels_first",
    num_columns: int | None = None,
    max_filters: int = 100,
    sort: str | None = "norm",
    scale: str = "shared",
    colour_map: str = "diverging",
    title: str | None = "Weights of the hidden units",
) -> "Figure":
    r"""Weights of hidden units as images, on a scale that is symmetric around zero.

    Units of a deeper layer are shown by what they look for in the pixels where the layers between are
    taken as linear: the columns of the product :math:`W_1 W_2 \cdots W_L` [1].

    **References**

    [1] *Visualizing Higher-Layer Features of a Deep Network*, Dumitru Erhan, Yoshua Bengio, Aaron
    Courville, Pascal Vincent (2009), "linear combination of previous units"

    :param weight: shape ``(V, H)``; or the weights of several layers from the pixels upwards, shapes
        ``(V, H_1), (H_1, H_2), ...``, whose product is shown.
    :param image_shape: shape of one image: ``(H, W)``, or with one or three channels as ``layout`` says.
        Three channels are shown in colour, where zero is mid-grey.
    :param str layout: "channels_first", images of shape ``(C, H, W)``, or "channels_last",
        ``(H, W, C)``; the order in which the V visible units are flattened.
    :param int num_columns: tiles in a row.
    :param int max_filters: units shown at most: the first ones in the order of ``sort``.
    :param str sort: "norm" for the largest norm first, None for the order of the units.
    :param str scale: "shared", one scale for all, so that filters can be compared; or "filter", every
        filter divided by its own largest weight, so that weak ones can be seen.
    :param str colour_map: "diverging", red above and blue below zero; or "grey", white above and black
        below, which survives printing.
    :param str title: heading.
    :raises ValueError: for unknown options, or sizes that contradict each other.
    """
    for name, value, known in (
        ("sort", sort, ("norm", None)),
        ("scale", scale, ("shared", "filter")),
        ("colour_map", colour_map, tuple(_COLOUR_MAPS)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    if max_filters < 1:
        raise ValueError(f"max_filters must be at least 1, got {max_filters}")
    rows = _product(weight)
    norms = rows.norm(dim=1)
    order = norms.argsort(descending=True, stable=True) if sort else torch.arange(len(rows))
    shown = rows[order[:max_filters]]
    limit = max(float(np.quantile(shown.abs().numpy(), _QUANTILE)), 1e-12)
    if scale == "filter":
        own = torch.quantile(shown.abs(), _QUANTILE, dim=1, keepdim=True)
        shown, limit = shown / own.clamp_min(1e-12), 1.0
    tile = tiles(shown, image_shape, num_columns, layout)
    coloured = image_size(image_shape, layout)[2] == 3
    figure = new_figure(6.0, 5.2 * tile.shape[0] / tile.shape[1] + 0.5)
    ax = figure.subplots()
    image = show(ax, tile, -limit, limit, _COLOUR_MAPS[colour_map], signed=True)
    if not coloured:
        bar = figure.colorbar(image, ax=ax, fraction=0.045, pad=0.02, extend="neither")
        shared = "weight (nats)" if isinstance(weight, Tensor) else "product of weights"
        bar.set_label(shared if scale == "shared" else "weight by the filter's largest")
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8)
    annotate(figure, title, _caption(len(shown), len(rows), sort, scale, coloured, limit))
    return figure


def _product(weight: Tensor | Sequence[Tensor]) -> Tensor:
    """A row for every unit of the last layer, over the visible units."""
    layers = [weight] if isinstance(weight, Tensor) else list(weight)
    shapes = [tuple(w.shape) for w in layers]
    if not layers or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"weight must be one or several matrices of shape (V, H), got {shapes}")
    product = layers[0].detach().cpu().double()
    for layer in layers[1:]:
        if product.shape[1] != layer.shape[0]:
            raise ValueError(f"weights of shapes {shapes} cannot be multiplied in this order")
        product = product @ layer.detach().cpu().double()
    if not bool(torch.isfinite(product).all()):
        raise ValueError("weight holds NaN or infinite values")
    return product.T


def _caption(
    num_shown: int, num_units: int, sort: str | None, scale: str, coloured: bool, limit: float
) -> str:
    few = num_shown < num_units
    if sort:
        words = f"the {num_shown} of {num_units} units with the largest norm, " * few
        words += "largest norm first"
    else:
        words = (
            f"the first {num_shown} of {num_units} units" if few else "in the order of the units"
        )
    if coloured:
        end = f"±{limit:.2g} nats" if scale == "shared" else "each filter's largest weight"
        return f"{words}; mid-grey is zero, colours saturate at {end}"
    return f"{words}; colours saturate at the ends of the scale"
