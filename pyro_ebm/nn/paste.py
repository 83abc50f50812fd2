# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""One machine of a whole image, made of machines of its patches."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.nn.patches import Position, grid_corners, visible_entries
from pyro_ebm.nn.rbm import RBM
from pyro_ebm.nn.unit_parameters import is_whole

__all__ = ["paste_rbms", "tile_rbm"]

#: Makes a parameter of the whole image of the sum over patches and the number of patches of each entry.
Overlap = str | Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def paste_rbms(
    rbms: Sequence[RBM],
    positions: Sequence[Position],
    image_shape: Sequence[int],
    *,
    patch_shape: Sequence[int] | None = None,
    overlap: Overlap = "mean",
    noise_scale: float = 0.0,
    seed: int | None = None,
) -> RBM:
    r"""One RBM of a whole image from RBMs of its patches.

    Hidden layers are put one after the other. A hidden unit keeps its weights to the pixels of its
    patch; other weights are zero, or noise. With patches that do not overlap and cover the image the
    result is exactly the product of the machines: free energies, and log Z, add up.

    Where patches overlap, couplings add up, and visible biases and precisions follow the rule ``overlap``:

    - ``"mean"``: their sum over patches, divided by the number of patches that cover the pixel. A good
      start for training on whole images.
    - ``"sum"``: their sum. The energy is then the sum of those of the patches, a product of experts.
    - a function of the sum and the number of patches, both of shape ``(V,)``, that returns a tensor of that
      shape. It is used for the natural parameter (of Gaussian units, precision times location) and for
      precisions.

    Pixels that no patch covers get a bias of 0 and a precision of 1. If one of the machines is centred,
    so is the result: hidden offsets are those of the machines, a visible one is the mean of those that
    cover the pixel, and "visible biases" are those about the hidden offsets.

    :param rbms: machines of the same families and options.
    :param positions: where the patch of each machine is: the row and column of its upper left corner, a
        tuple (then ``patch_shape`` is needed), or the entries of the image's visible layer in the order
        of the machine's own, a vector of whole numbers.
    :param image_shape: ``(H, W)``, or ``(C, H, W)`` as flattened by :mod:`pyro_ebm.datasets`, channels
        first. Any shape will do where positions are vectors. One-hot groups: the shape in groups.
    :param patch_shape: shape of a patch, as ``image_shape``.
    :param overlap: rule for pixels in several patches.
    :param float noise_scale: standard deviation of the weights outside of patches.
    :param int seed: seed of this noise; the global generator if None.
    :returns: a new module, of the type and on the device of the first machine.
    :raises TypeError: if an argument is of a wrong type.
    :raises ValueError: if machines differ in kind, a patch does not fit or divides a one-hot group, or the
        layers are counts (one unit each).

    >>> from pyro_ebm.nn import RBM, paste_rbms
    >>> left, right = RBM(4, 3, seed=0), RBM(4, 5, seed=1)
    >>> image = paste_rbms([left, right], [(0, 0), (0, 2)], (2, 4), patch_shape=(2, 2))
    >>> image.weight.shape, int((image.weight != 0).sum())
    (torch.Size([8, 8]), 32)
    """
    rbms = _check_machines(rbms, positions)
    if not image_shape or not all(is_whole(n) for n in image_shape):
        raise ValueError(f"image_shape must hold whole numbers >= 1, got {tuple(image_shape)}")
    states = rbms[0].visible.options.get("num_states", 1)
    size = math.prod(image_shape) * states
    entries = [
        visible_entries(p, rbm.weight.shape[0], image_shape, patch_shape, states).to(
            rbms[0].weight.device
        )
        for p, rbm in zip(positions, rbms, strict=True)
    ]
    image = _empty_image(rbms, size, noise_scale, seed)
    _paste_couplings(image, rbms, entries)
    _paste_visible(image, rbms, entries, overlap)
    return image


@torch.no_grad()
def tile_rbm(
    rbm: RBM,
    image_shape: Sequence[int],
    patch_shape: Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    overlap: Overlap = "mean",
    noise_scale: float = 0.0,
    seed: int | None = None,
) -> RBM:
    """One RBM of a whole image from one RBM of a patch, repeated on a grid; see :func:`paste_rbms`.

    :param RBM rbm: the machine of a patch.
    :param image_shape: ``(H, W)`` or ``(C, H, W)``.
    :param patch_shape: shape of a patch, as ``image_shape``.
    :param stride: rows and columns from a patch to the next one, a number or two of them; the size of the
        patch if None.
    :param overlap: rule for pixels in several patches.
    :param float noise_scale: standard deviation of the weights outside of patches.
    :param int seed: seed of this noise; the global generator if None.
    :returns: a new module.
    :raises ValueError: if the grid does not end at the edges of the image.

    >>> from pyro_ebm.nn import RBM, tile_rbm
    >>> tile_rbm(RBM(4, 3, seed=0), (4, 6), (2, 2)).weight.shape
    torch.Size([24, 18])
    """
    corners = grid_corners(image_shape, patch_shape, stride)
    return paste_rbms(
        [rbm] * len(corners),
        corners,
        image_shape,
        patch_shape=patch_shape,
        overlap=overlap,
        noise_scale=noise_scale,
        seed=seed,
    )


def _check_machines(rbms: Sequence[RBM], positions: Sequence[Position]) -> list[RBM]:
    rbms = list(rbms)
    if not rbms or len(rbms) != len(positions):
        raise ValueError(
            f"expected at least one machine and a position each, got {len(rbms)} machines and "
            f"{len(positions)} positions"
        )
    for number, rbm in enumerate(rbms):
        if not isinstance(rbm, RBM):
            raise TypeError(f"rbms[{number}] must be a pyro_ebm.nn.RBM, got {type(rbm).__name__}")
        for side in ("visible", "hidden"):
            kinds = [
                (layer.family, dict(layer.options))
                for layer in (getattr(r, side) for r in (rbms[0], rbm))
            ]
            if kinds[0] != kinds[1]:
                raise ValueError(
                    f"{side} layers of the machines differ: {kinds[0]} and, of rbms[{number}], {kinds[1]}"
                )
    for side in ("visible", "hidden"):
        family = getattr(rbms[0], side).family
        if family in ("multinomial", "mixed"):
            raise ValueError(
                f"{family} layers cannot be pasted: their entries are no pixels or units"
            )
    return rbms


def _empty_image(rbms: list[RBM], size: int, noise_scale: float, seed: int | None) -> RBM:
    """A machine with noise for weights."""
    first = rbms[0]
    return RBM(
        size,
        sum(rbm.weight.shape[1] for rbm in rbms),
        first.visible.family,
        first.hidden.family,
        visible_options=first.visible.options,
        hidden_options=first.hidden.options,
        centered=any(rbm.centered for rbm in rbms),
        weight_scale=noise_scale,
        # Without noise, no number is drawn from the global generator either.
        seed=0 if seed is None and noise_scale == 0.0 else seed,
        dtype=first.weight.dtype,
        device=first.weight.device,
    )


def _paste_couplings(image: RBM, rbms: list[RBM], entries: list[Tensor]) -> None:
    """Weights, hidden layers and offsets."""
    weight = image.get_parameter("weight")
    hidden = [{n: p.to(weight) for n, p in rbm.hidden().parameters.items()} for rbm in rbms]
    joined = {name: torch.cat([layer[name] for layer in hidden]) for name in hidden[0]}
    pulls = []
    if image.centered:
        image.visible_offset.copy_(_mean_offset(rbms, entries, image.visible_offset))
        offsets = [_offset(rbm, "hidden", weight) for rbm in rbms]
        image.hidden_offset.copy_(torch.cat(offsets))
    start = 0
    for rbm, where in zip(rbms, entries, strict=True):
        stop = start + rbm.weight.shape[1]
        weight[:, start:stop][where] = rbm.weight.to(weight)
        if image.centered:
            # Hidden biases that held about the patch's own offset; noise acts about the image's.
            moved = image.visible_offset[where] - _offset(rbm, "visible", weight)
            pulls.append(moved @ rbm.weight.to(weight))
        start = stop
    layer = image.hidden().replace(**joined)
    image.hidden.assign(layer.tilt(torch.cat(pulls))[0] if pulls else layer)


def _paste_visible(image: RBM, rbms: list[RBM], entries: list[Tensor], overlap: Overlap) -> None:
    unit = image.visible()
    layers = [rbm.visible() for rbm in rbms]
    like = torch.zeros_like(unit.natural_bias)
    natural, count = _gather([layer.natural_bias for layer in layers], entries, like)
    natural = _combined(natural, count, overlap)
    values: dict[str, Tensor] = {}
    if "precision" in unit.parameters:
        total, _ = _gather([layer.parameters["precision"] for layer in layers], entries, like)
        precision = torch.where(count > 0.0, _combined(total, count, overlap), 1.0)
        if not bool((precision > 0.0).all()):
            raise ValueError("overlap must return positive precisions")
        values["precision"] = precision
    name = "loc" if "loc" in unit.parameters else "bias"
    value = natural / values["precision"] if name == "loc" else natural
    values[name] = value.reshape(unit.parameters[name].shape)
    image.visible.assign(unit.replace(**values))


def _combined(total: Tensor, count: Tensor, overlap: Overlap) -> Tensor:
    """A parameter of the image; zero where there is no patch."""
    if callable(overlap):
        value: Any = overlap(total, count)
        if not isinstance(value, Tensor) or value.shape != total.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"overlap must return a tensor of shape {tuple(total.shape)}, got {got}"
            )
        value = torch.where(count > 0.0, value, 0.0)
        if not bool(torch.isfinite(value).all()):
            raise ValueError("overlap must return finite values where there are patches")
        return value
    if overlap == "mean":
        return total / count.clamp(min=1.0)
    if overlap == "sum":
        return total
    raise ValueError(f'overlap must be "mean", "sum" or a function, got {overlap!r}')


def _offset(rbm: RBM, side: str, like: Tensor) -> Tensor:
    """The offset of a layer, zeros for a machine without."""
    if rbm.centered:
        return rbm.get_buffer(f"{side}_offset").to(like)
    return like.new_zeros(getattr(rbm, side)().size)


def _mean_offset(rbms: list[RBM], entries: list[Tensor], like: Tensor) -> Tensor:
    offsets = [_offset(rbm, "visible", like) for rbm in rbms]
    total, count = _gather(offsets, entries, like)
    return total / count.clamp(min=1.0)


def _gather(parts: list[Tensor], entries: list[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the patches, and their number, for every entry of the image."""
    total, count = torch.zeros_like(like), torch.zeros_like(like)
    for part, where in zip(parts, entries, strict=True):
        total.index_add_(0, where, part.to(like))
        count.index_add_(0, where, torch.ones_like(part, dtype=like.dtype, device=like.device))
    return total, count
