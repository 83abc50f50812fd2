# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Independent draws from an RBM: exact by enumeration where that is cheap, otherwise by Gibbs."""

import math

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions.enumeration import enumerable_side, state_chunks
from pyro_ebm.distributions.gibbs_sweep import GibbsSweep
from pyro_ebm.distributions.rbm import RBM
from pyro_ebm.ops.linear import chain_axes

__all__ = ["MAX_EXACT_STATES", "exact_side", "sample_rbm"]

#: A layer of at most this many states (16 bits) is enumerated to sample exactly.
MAX_EXACT_STATES = 2**16


def exact_side(rbm: RBM, max_states: int | None = None) -> RBM | None:
    """The machine, or its mirror image, whose visible layer is small enough to enumerate to sample exactly.

    :param RBM rbm: the machine.
    :param max_states: states of a layer that is small enough; ``MAX_EXACT_STATES`` if None.
    :returns: None if neither layer is.
    """
    limit = MAX_EXACT_STATES if max_states is None else max_states
    side = enumerable_side(rbm)
    return side if side is not None and (side.visible.num_states or 0) <= limit else None


def sample_rbm(rbm: RBM, shape: Size, generator: Generator | None) -> Tensor:
    """Independent draws of the visible layer.

    :param RBM rbm: the machine.
    :param Size shape: full shape of the draws, event included.
    :param torch.Generator generator: the source of random bits; the global one if None.
    """
    rbm.check_normalizable()
    side = exact_side(rbm)
    if side is not None:
        states = _sample_enumerated(side, shape[:-1], generator)
        if side is rbm:
            return states
        return GibbsSweep(rbm, generator).sample_visible(states)
    sweep = GibbsSweep(rbm, generator)
    return sweep.run(sweep.initial_visible(shape), rbm.num_gibbs_steps)


def _sample_enumerated(side: RBM, shape: Size, generator: Generator | None) -> Tensor:
    """Draw visible states of a machine by inverting the cumulative distribution of all of them."""
    exact = side.to(dtype=torch.float64)
    batch = exact.parameter_batch_shape
    width = exact.hidden.size * math.prod(batch)
    lift = (-1,) + (1,) * len(batch) + (exact.visible.size,)
    log_p = [
        -exact.free_energy(states.reshape(lift)).expand(len(states), *batch)
        for states in state_chunks(exact.visible, width)
    ]
    cdf = torch.softmax(torch.cat(log_p), 0).cumsum(0).movedim(0, -1)
    index = _invert_cdf(cdf, shape, batch, generator)
    return _states_at(side, index)


def _invert_cdf(cdf: Tensor, shape: Size, batch: Size, generator: Generator | None) -> Tensor:
    """Indices drawn from ``cdf`` (shape ``batch + (states,)``) for every element of ``shape``."""
    parameter, chain = chain_axes(shape, batch)
    order = parameter + chain
    num_batch = math.prod(shape[i] for i in parameter)
    num_chain = math.prod(shape[i] for i in chain)
    table = cdf.reshape(num_batch, -1).contiguous()
    u = torch.rand(
        num_batch, num_chain, dtype=table.dtype, device=table.device, generator=generator
    )
    # The last entry may have been rounded to just below or above one.
    index = torch.searchsorted(table, u * table[:, -1:], right=True)
    index.clamp_(max=table.shape[-1] - 1)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return index.reshape([shape[i] for i in order]).permute(inverse)


def _states_at(side: RBM, index: Tensor) -> Tensor:
    table = torch.cat(list(state_chunks(side.visible, side.visible.size)))
    return table[index]
