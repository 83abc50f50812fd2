# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The negative phase: chains of the model, started at data or kept from step to step."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM, GibbsSweep
from pyro_ebm.infer.contrastive.rows import SiteRows
from pyro_ebm.infer.mcmc import VectorizedKernel, run_kernel

__all__ = ["even_states", "mean_score", "move_chains", "start_chains"]


def start_chains(rows: SiteRows, num_chains: int | None) -> tuple[Tensor, Tensor | None]:
    """Starting states of chains at the rows of every machine.

    :param SiteRows rows: the rows.
    :param int num_chains: chains of every machine: a random choice of its rows that are not masked
        out, with repetition only if there are too few; all rows if None.
    :returns: states of the machine's visible layer (of a deep machine all even layers), shape
        ``(num_chains,) + machine.batch_shape + (V,)``, and where all rows are taken which of them count (all
        if None).
    """
    values, mask = _choose_rows(rows, num_chains)
    return (values if rows.deep is None else even_states(rows.deep, values)), mask


def _choose_rows(rows: SiteRows, num_chains: int | None) -> tuple[Tensor, Tensor | None]:
    """Rows of every machine, and which of them count."""
    values, mask = rows.values, rows.mask
    count = len(values)
    if num_chains is None:
        return values, mask
    if mask is not None:
        return _choice(values, mask, num_chains), None
    if num_chains == count:
        return values, None
    if num_chains < count:
        index = torch.randperm(count, device=values.device)[:num_chains]
    else:
        index = torch.arange(num_chains, device=values.device) % count
    return values[index], None


@torch.no_grad()
def even_states(dbm: DBM, v: Tensor) -> Tensor:
    """States of all even layers at visible ones, those above drawn from the mean field given them.

    :param DBM dbm: the machine, without a batch shape.
    :param Tensor v: shape ``(..., V)``.
    :returns: one layer after the other, see :meth:`~pyro_ebm.distributions.DBM.join_even`.
    """
    if dbm.depth == 1:
        return v
    # The log-density of the same rows warns where this has not converged.
    return dbm.draw_even(v, dbm.mean_field(v, max_updates=dbm.max_mean_field_updates))


def _choice(values: Tensor, mask: Tensor, num_chains: int) -> Tensor:
    """As many rows of every machine, none that is masked out unless all are."""
    order = (torch.rand(mask.shape, device=values.device) + ~mask).argsort(0)
    number = torch.arange(num_chains, device=values.device)
    number = number.view(-1, *(1,) * (mask.dim() - 1)) % mask.sum(0).clamp(min=1)
    return values.gather(0, order.gather(0, number).unsqueeze(-1).expand(-1, *values.shape[1:]))


@torch.no_grad()
def move_chains(
    machine: RBM,
    chains: Tensor,
    num_steps: int,
    kernel: Callable[[RBM], VectorizedKernel] | None,
    rest: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Chains after ``num_steps`` transitions of a kernel, block Gibbs if None.

    :param RBM machine: the machine whose visible layer the chains are states of.
    :param Tensor chains: shape ``(num_chains,) + machine.batch_shape + (V,)``.
    :param int num_steps: transitions.
    :param kernel: makes an MCMC kernel for the present parameters.
    :param rest: what else the kernel's state consisted of after the transitions before, such as the
        replicas of tempering.
    :returns: the chains, and the rest of the kernel's state now.
    """
    if kernel is None:
        return GibbsSweep(machine).run(chains, num_steps), {}
    mcmc_kernel = kernel(machine)
    state = run_kernel(mcmc_kernel, {**(rest or {}), mcmc_kernel.site: chains}, num_steps)
    moved = state.pop(mcmc_kernel.site)
    return moved, state


def mean_score(machine: RBM, states: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of -F over the chains of every machine, shape ``machine.batch_shape``.

    :param RBM machine: the machine whose visible layer the chains are states of.
    :param Tensor states: shape ``(num_chains,) + machine.batch_shape + (V,)``.
    :param Tensor mask: which chains count, shape ``(num_chains,) + machine.batch_shape``; all if None.
    """
    score = -machine.free_energy(states)
    if mask is None:
        return score.mean(0)
    return torch.where(mask, score, 0.0).sum(0) / mask.sum(0).clamp(min=1)
