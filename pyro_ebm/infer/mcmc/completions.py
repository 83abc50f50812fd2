# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""States of a machine some units of which, in either layer, are given."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.infer.mcmc.kernel import VectorizedKernel
from pyro_ebm.infer.mcmc.vectorized import VectorizedMCMC

__all__ = ["Completions", "completions"]


class Completions(NamedTuple):
    """Whole states of both layers, given and sampled units in their places.

    :param Tensor visible: shape ``(num_samples,) + batch_shape + (V,)``.
    :param Tensor hidden: shape ``(num_samples,) + batch_shape + (H,)``.
    """

    visible: Tensor
    hidden: Tensor


@torch.no_grad()
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
) -> Completions:
    r"""Sample the free units of a machine given any subset of the units of both layers.

    The visible units that are free are drawn from the clamped machine (:meth:`RBM.clamp` of the
    visible layer and, through :meth:`RBM.transpose`, of the hidden one), then the free hidden units given
    all visible ones, which makes the pair a draw of their joint conditional law. A layer that is given
    as a whole leaves the other one independent units, which are drawn exactly.

    :param RBM dist: the machine, with any batch shape.
    :param Tensor mask: boolean, shape ``(V,)``; True where a visible unit is given. None: nowhere.
    :param Tensor value: shape ``(..., V)``, read where the mask is True; its batch shape broadcasts with
        the machine's, so that many rows are completed at a time.
    :param Tensor hidden_mask: the same for hidden units, shape ``(H,)``.
    :param Tensor hidden_value: shape ``(..., H)``.
    :param int num_samples: independent samples of every element of the batch.
    :param kernel: makes the kernel that samples the clamped machine, such as ``BlockGibbs`` or
        ``lambda machine: ParallelTempering(machine, ...)``; every sample is the end of a chain of its own.
        If None, :meth:`RBM.sample` draws: exactly where the clamped machine can be enumerated, otherwise
        by ``dist.num_gibbs_steps`` sweeps.
    :param int num_steps: transitions of every chain, those of the kernel's warm-up.
    :param torch.Generator generator: the source of random bits but for the kernel's; the global one if
        None.
    :raises ValueError: if a mask has no value, or for masks and values that :meth:`RBM.clamp` refuses.

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
    """
    if num_samples < 1 or num_steps < 1:
        raise ValueError(
            f"num_samples and num_steps must be at least 1, got {num_samples} and {num_steps}"
        )
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
