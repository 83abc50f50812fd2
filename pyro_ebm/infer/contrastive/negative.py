# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The negative phase: chains of the model, started at data or kept from step to step."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.infer.mcmc import VectorizedKernel, run_kernel
from pyro_ebm.ops.linear import chain_axes

__all__ = ["move_chains", "start_chains"]


def start_chains(dist: RBM, value: Tensor, num_chains: int | None) -> Tensor:
    """Starting states of chains at the values of a site.

    Axes along which the parameters do not vary (rows of a plate, say) become chains; the others keep
    their place, so that every parameter setting has chains of its own.

    :param RBM dist: the compact machine.
    :param Tensor value: the site's value, shape ``(..., V)``.
    :param int num_chains: chains to return: a random choice of the rows, with repetition only if there
        are too few; all rows if None.
    :returns: shape ``(num_chains,) + dist.batch_shape + (V,)``.
    """
    batch = dist.batch_shape
    full = torch.broadcast_shapes(value.shape[:-1], batch)
    parameter, chain = chain_axes(full, batch)
    rows = value.detach().expand(*full, value.shape[-1]).permute(*chain, *parameter, len(full))
    count = math.prod(full[i] for i in chain)
    rows = rows.reshape(count, *batch, value.shape[-1]).to(dist.weight.dtype)
    if num_chains is None or num_chains == count:
        return rows
    if num_chains < count:
        index = torch.randperm(count, device=rows.device)[:num_chains]
    else:
        index = torch.arange(num_chains, device=rows.device) % count
    return rows[index]


@torch.no_grad()
def move_chains(
    dist: RBM,
    chains: Tensor,
    num_steps: int,
    kernel: Callable[[RBM], VectorizedKernel] | None,
    rest: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Chains after ``num_steps`` transitions of a kernel, block Gibbs if None.

    :param RBM dist: the compact machine.
    :param Tensor chains: shape ``(num_chains,) + dist.batch_shape + (V,)``.
    :param int num_steps: transitions.
    :param kernel: makes an MCMC kernel for the present parameters.
    :param rest: what else the kernel's state consisted of after the transitions before, such as the
        replicas of tempering.
    :returns: the chains, and the rest of the kernel's state now.
    """
    if kernel is None:
        return GibbsSweep(dist).run(chains, num_steps), {}
    mcmc_kernel = kernel(dist)
    state = run_kernel(mcmc_kernel, {**(rest or {}), mcmc_kernel.site: chains}, num_steps)
    moved = state.pop(mcmc_kernel.site)
    return moved, state
