# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of deep Boltzmann machines: what every layer looks for, and particles in motion."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import DBM, GibbsSweep
from pyro_ebm.plotting.animation import ChainAnimation, chain_animation
from pyro_ebm.plotting.figures import annotate, new_figure
from pyro_ebm.plotting.tiles import image_size, show, tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["layer_filters", "particle_animation"]

#: A single large weight would make everything else look flat.
_QUANTILE = 0.998


@torch.no_grad()
def layer_filters(
    machine: Any,
    image_shape: Sequence[int],
    *,
    layout: str = "channels_first",
    max_filters: int = 64,
    num_columns: int | None = None,
    title: str | None = "What the units of every layer look for in the pixels",
) -> "Figure":
    r"""The hidden layers side by side, every unit as the image of its weights: those of layer l are the
    columns of the product :math:`W_1 W_2 \cdots W_l`, see :func:`~pyro_ebm.plotting.filters`.

    Every layer has its own scale, as products of more weights are of another size; it stands below.

    :param machine: a :class:`pyro_ebm.distributions.DBM` without batch shape, or a module that makes it.
    :param image_shape: shape of one image.
    :param str layout: where channels are, see :func:`~pyro_ebm.plotting.image_grid`.
    :param int max_filters: units of a layer at most, those of the largest norm.
    :param int num_columns: tiles in a row of a panel.
    :param str title: heading.
    :raises TypeError: for another machine.
    :raises ValueError: if the sizes contradict each other.
    """
    dbm = _as_dbm(machine)
    if max_filters < 1:
        raise ValueError(f"max_filters must be at least 1, got {max_filters}")
    coloured = image_size(image_shape, layout)[2] == 3
    panels = _largest(dbm.weights, max_filters)
    arrays = [tiles(shown, image_shape, num_columns, layout) for shown, _ in panels]
    widest = max(array.shape[1] for array in arrays)
    tallest = max(array.shape[0] for array in arrays)
    figure = new_figure(4.0 * dbm.depth, 4.0 * tallest / widest + 1.2)
    axes = figure.subplots(1, dbm.depth, squeeze=False)[0]
    for number, (ax, array, (shown, limit)) in enumerate(zip(axes, arrays, panels, strict=True)):
        show(ax, array, -limit, limit, "RdBu_r", signed=True)
        size = dbm.sizes[number + 1]
        few = f"{len(shown)} of {size} units" if len(shown) < size else f"{size} units"
        ax.set_title(f"layer {number + 1}: {few}, ±{limit:.2g}", fontsize=9)
    zero = "mid-grey" if coloured else "white"
    annotate(
        figure, title, f"largest norm first; {zero} is zero, colours saturate at the ± above them"
    )
    return figure


@torch.no_grad()
def particle_animation(
    machine: Any,
    particles: Tensor,
    image_shape: Sequence[int],
    *,
    num_frames: int = 40,
    sweeps_per_frame: int = 1,
    generator: Generator | None = None,
    **options: Any,
) -> ChainAnimation:
    """Chains of block Gibbs from where they are, shown by the means of the pixels given the layer above.

    :param machine: a :class:`pyro_ebm.distributions.DBM` without batch shape, or a module that makes it.
    :param Tensor particles: states of the even layers, one after the other, shape
        ``(chains, V + H_2 + ...)``, such as ``Trainer.chains``.
    :param image_shape: shape of one image.
    :param int num_frames: length of the film, the first frame being that of the particles as they are.
    :param int sweeps_per_frame: Gibbs sweeps between two frames.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :param options: of :func:`~pyro_ebm.plotting.chain_animation`.
    :returns: the film, for :func:`~pyro_ebm.plotting.save_animation`.
    :raises TypeError: for another machine.
    :raises ValueError: for particles of another size, or less than one frame or sweep.
    """
    dbm = _as_dbm(machine)
    size = sum(dbm.sizes[0::2])
    if particles.dim() != 2 or particles.shape[1] != size:
        raise ValueError(
            f"particles must have shape (chains, {size}), the even layers, got {tuple(particles.shape)}"
        )
    for name, value in (("num_frames", num_frames), ("sweeps_per_frame", sweeps_per_frame)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    sweep = GibbsSweep(dbm.bipartite(), generator)
    even, frames = particles.to(dbm.weights[0]), []
    for frame in range(num_frames):
        if frame:
            even = sweep.run(even, sweeps_per_frame)
        lowest = dbm.split_odd(sweep.sample_hidden(even))[0]
        frames.append(dbm.units[0].mean(dbm.field(0, [lowest])))
    options.setdefault("sweeps", [frame * sweeps_per_frame for frame in range(num_frames)])
    return chain_animation(torch.stack(frames, 1), image_shape, **options)


def _largest(weights: Sequence[Tensor], max_filters: int) -> list[tuple[Tensor, float]]:
    """By layer, the units of the largest norm over the pixels, one a row, and the end of their scale."""
    layers = []
    product = None
    for weight in weights:
        own = weight.detach().cpu().double()
        product = own if product is None else product @ own
        if not bool(torch.isfinite(product).all()):
            raise ValueError("machine has weights that are NaN or infinite")
        order = product.norm(dim=0).argsort(descending=True, stable=True)[:max_filters]
        shown = product[:, order].T
        layers.append((shown, max(float(shown.abs().flatten().quantile(_QUANTILE)), 1e-12)))
    return layers


def _as_dbm(machine: Any) -> DBM:
    """A machine, of its own or of a module."""
    dist = machine() if isinstance(machine, torch.nn.Module) else machine
    if not isinstance(dist, DBM):
        raise TypeError(
            f"machine must be a pyro_ebm.distributions.DBM or a module of one, got {type(machine).__name__}"
        )
    if dist.batch_shape:
        raise ValueError(f"machine must have no batch shape, got {tuple(dist.batch_shape)}")
    return dist
