# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""States of a machine some units of which, in any layer, are given."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, overload

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer.mcmc.kernel import VectorizedKernel
from pyro_ebm.infer.mcmc.vectorized import VectorizedMCMC
from pyro_ebm.ops.layers import alternate

__all__ = ["Completions", "completions"]


class Completions(NamedTuple):
    """Whole states of both layers, given and sampled units in their places.

    :param Tensor visible: shape ``(num_samples,) + batch_shape + (V,)``.
    :param Tensor hidden: shape ``(num_samples,) + batch_shape + (H,)``.
    """

    visible: Tensor
    hidden: Tensor


#: A tensor of the visible layer, or tensors by number of the layer.
_ByLayer = Tensor | Mapping[int, Tensor]


@overload
def completions(
    dist: RBM,
    mask: Tensor | None = None,
    value: Tensor | None = None,
    *,
    hidden_mask: Tensor | None = None,
    hidden_value: Tensor | None = None,
    num_samples: int = 1,
    kernel: Callable[[RBM], VectorizedKernel] | None = None,
    num_steps: int = 1000,
    generator: Generator | None = None,
) -> Completions: ...


@overload
def completions(
    dist: DBM,
    mask: _ByLayer | None = None,
    value: _ByLayer | None = None,
    *,
    num_samples: int = 1,
    kernel: Callable[[RBM], VectorizedKernel] | None = None,
    num_steps: int = 1000,
    generator: Generator | None = None,
) -> tuple[Tensor, ...]: ...


@torch.no_grad()
def completions(
    dist: RBM | DBM,
    mask: _ByLayer | None = None,
    value: _ByLayer | None = None,
    *,
    hidden_mask: Tensor | None = None,
    hidden_value: Tensor | None = None,
    num_samples: int = 1,
    kernel: Callable[[RBM], VectorizedKernel] | None = None,
    num_steps: int = 1000,
    generator: Generator | None = None,
) -> Completions | tuple[Tensor, ...]:
    r"""Sample the free units of a machine given any subset of the units of all layers.

    The visible units that are free are drawn from the clamped machine (:meth:`RBM.clamp` of the
    visible layer and, through :meth:`RBM.transpose`, of the hidden one), then the free hidden units given
    all visible ones, which makes the pair a draw of their joint conditional law. A layer that is given
    as a whole leaves the other one independent units, which are drawn exactly.

    A **deep machine** is completed as the restricted one between its even and its odd layers. Masks and
    values may be of any of its layers: part of an image, labels on top, a whole layer in between.

    :param dist: an RBM or a DBM, with any batch shape.
    :param mask: boolean, shape ``(V,)``; True where a visible unit is given. None: nowhere. For a DBM also
        masks by number of the layer, ``{0: ..., 2: ...}``.
    :param value: shape ``(..., V)``, read where the mask is True; its batch shape broadcasts with
        the machine's, so that many rows are completed at a time. For a DBM also by number of the layer.
    :param Tensor hidden_mask: the same for the hidden units of an RBM, shape ``(H,)``.
    :param Tensor hidden_value: shape ``(..., H)``.
    :param int num_samples: independent samples of every element of the batch.
    :param kernel: makes the kernel that samples the clamped machine, such as ``BlockGibbs`` or
        ``lambda machine: ParallelTempering(machine, ...)``; every sample is the end of a chain of its own.
        If None, :meth:`RBM.sample` draws: exactly where the clamped machine can be enumerated, otherwise
        by ``dist.num_gibbs_steps`` sweeps.
    :param int num_steps: transitions of every chain, those of the kernel's warm-up.
    :param torch.Generator generator: the source of random bits but for the kernel's; the global one if
        None.
    :returns: the visible and hidden states of an RBM; of a DBM those of all layers from the visible one
        upwards, shapes ``(num_samples,) + batch_shape + (size,)``.
    :raises ValueError: if a mask has no value, or for masks and values that :meth:`RBM.clamp` refuses.
    :raises TypeError: for ``hidden_mask`` with a DBM, or masks by layer with an RBM.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import completions
    >>> rbm = BernoulliRBM(torch.ones(4, 3), torch.zeros(4), torch.zeros(3))
    >>> mask = torch.tensor([True, True, False, False])
    >>> image = torch.tensor([1.0, 0.0, 0.0, 0.0])
    >>> states = completions(rbm, mask, image, num_samples=5)
    >>> states.visible.shape, states.hidden.shape
    (torch.Size([5, 4]), torch.Size([5, 3]))
    >>> states.visible[:, :2].unique(dim=0)
    tensor([[1., 0.]])
    >>> from pyro_ebm.distributions import DBM, units
    >>> layers = [units.Bernoulli(torch.zeros(n)) for n in (4, 3, 2)]
    >>> dbm = DBM(layers, [torch.ones(4, 3), torch.ones(3, 2)])
    >>> top = torch.tensor([0.0, 1.0])
    >>> given = {0: mask, 2: torch.tensor([True, True])}
    >>> v, h1, h2 = completions(dbm, given, {0: image, 2: top}, num_samples=5)
    >>> v[:, :2].unique(dim=0), h1.shape, h2.unique(dim=0)
    (tensor([[1., 0.]]), torch.Size([5, 3]), tensor([[0., 1.]]))
    """
    if num_samples < 1 or num_steps < 1:
        raise ValueError(
            f"num_samples and num_steps must be at least 1, got {num_samples} and {num_steps}"
        )
    if isinstance(dist, DBM):
        if hidden_mask is not None or hidden_value is not None:
            raise TypeError("for a DBM give mask and value by number of the layer, {1: ...}")
        odd_mask, odd_value = _joined(dist, 1, mask, value)
        even = completions(
            dist.bipartite(),
            *_joined(dist, 0, mask, value),
            hidden_mask=odd_mask,
            hidden_value=odd_value,
            num_samples=num_samples,
            kernel=kernel,
            num_steps=num_steps,
            generator=generator,
        )
        return _layers(dist, even)
    if isinstance(mask, Mapping) or isinstance(value, Mapping):
        raise TypeError("masks and values by layer are for a DBM; for an RBM use hidden_mask")
    mask, value = _given("mask", dist, mask, value)
    turned = dist.transpose()
    hidden_mask, hidden_value = _given("hidden_mask", turned, hidden_mask, hidden_value)
    batch = torch.broadcast_shapes(dist.batch_shape, value.shape[:-1], hidden_value.shape[:-1])
    shape = Size((num_samples, *batch))
    v = value.expand(*shape, -1).clone()
    h = hidden_value.expand(*shape, -1).clone()
    if bool(hidden_mask.all()):
        free = dist.visible.sample(dist.visible_field(h), generator)
        v[..., ~mask] = free[..., ~mask]
    elif not bool(mask.all()):
        clamped = turned.clamp(hidden_mask, hidden_value).transpose().clamp(mask, value)
        v[..., ~mask] = _sample(clamped, num_samples, kernel, num_steps, generator)
    free = dist.hidden.sample(dist.hidden_field(v), generator)
    h[..., ~hidden_mask] = free[..., ~hidden_mask]
    return Completions(v, h)


def _given(
    name: str, dist: RBM, mask: Tensor | None, value: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A mask and the values in the machine's dtype, checked as far as clamp() does not see them."""
    size, weight = dist.event_shape[0], dist.weight
    if mask is None:
        return torch.zeros(size, dtype=torch.bool, device=weight.device), weight.new_zeros(size)
    if value is None:
        raise ValueError(f"{name} was given without the values of its units")
    if mask.dtype == torch.bool and bool(mask.all()):
        if value.shape[-1:] != (size,) or not bool(dist.support.check(value).all()):
            raise ValueError(
                f"the values of {name}, which gives the whole layer, must be states of {dist.support} "
                f"with {size} entries, got shape {tuple(value.shape)}"
            )
    else:
        try:
            dist.clamp(mask, value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return mask, value.to(weight)


def _sample(
    clamped: RBM,
    num_samples: int,
    kernel: Callable[[RBM], VectorizedKernel] | None,
    num_steps: int,
    generator: Generator | None,
) -> Tensor:
    """Visible states of the clamped machine, shape ``(num_samples,) + batch_shape + (free,)``."""
    if kernel is None:
        return clamped.sample(Size((num_samples,)), generator=generator)
    chains = kernel(clamped)
    mcmc = VectorizedMCMC(chains, 1, num_steps - 1, num_chains=num_samples, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples(group_by_chain=True)[chains.site].squeeze(1)


def _joined(
    dbm: DBM, side: int, mask: _ByLayer | None, value: _ByLayer | None
) -> tuple[Tensor, Tensor]:
    """Mask and values of the even (side 0) or odd (side 1) layers of a machine, one after the other.

    Values that are not given are zeros, which nothing reads.
    """
    masks, values = _by_layer("mask", dbm, mask), _by_layer("value", dbm, value)
    if unused := sorted(set(values) - set(masks)):
        raise ValueError(f"values of the layers {unused} were given without masks, which say where")
    if missing := sorted(set(masks) - set(values)):
        raise ValueError(
            f"masks of the layers {missing} were given without the values of their units"
        )
    like, found_masks, found_values = dbm.weights[0], [], []
    for number in range(side, dbm.depth + 1, 2):
        size = dbm.sizes[number]
        own = masks.get(number)
        if own is None:
            own = torch.zeros(size, dtype=torch.bool)
        elif own.dtype != torch.bool or own.shape != (size,):
            raise ValueError(
                f"mask of layer {number} must be boolean of shape ({size},), got {own.dtype} of shape "
                f"{tuple(own.shape)}"
            )
        x = values[number].to(like) if number in masks else like.new_zeros(size)
        if x.shape[-1:] != (size,):
            raise ValueError(
                f"value of layer {number} must have shape (..., {size}), got {tuple(x.shape)}"
            )
        found_masks.append(own.to(like.device))
        found_values.append(x)
    batch = torch.broadcast_shapes(*(x.shape[:-1] for x in found_values))
    rows = [x.expand(*batch, -1) for x in found_values]
    return torch.cat(found_masks), torch.cat(rows, -1)


def _by_layer(name: str, dbm: DBM, given: _ByLayer | None) -> dict[int, Tensor]:
    """Tensors by number of the layer; one by itself is of the visible layer."""
    if given is None:
        return {}
    tensors = dict(given) if isinstance(given, Mapping) else {0: given}
    if unknown := sorted(set(tensors) - set(range(dbm.depth + 1))):
        raise ValueError(f"the layers are 0 to {dbm.depth}, got a {name} of {unknown}")
    return tensors


def _layers(dbm: DBM, states: Completions) -> tuple[Tensor, ...]:
    """The layers from the visible one upwards."""
    even, odd = dbm.split_even(states.visible), dbm.split_odd(states.hidden)
    return tuple(alternate(even, odd))
