# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The exact log-partition function, where it can be had."""

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.distributions.enumeration import enumerable_side, state_chunks
from pyro_ebm.distributions.units import Gaussian, Unit
from pyro_ebm.infer.log_partition.deep_side import as_machine

__all__ = ["MAX_STATES", "exact_log_partition", "finite_side", "gaussian_joint"]

#: Default limit of :func:`exact_log_partition`: 2^26 states take minutes on two cores.
MAX_STATES = 2**26


def exact_log_partition(dist: RBM | DBM, *, max_states: int = MAX_STATES) -> Tensor:
    r"""Exact :math:`\log Z`, in float64.

    Enumerates the layer with fewer states and sums the other one out in closed form,
    :math:`Z = \sum_x e^{-F(x)}`, in chunks of bounded memory; with two Gaussian layers Z is a Gaussian
    integral. Differentiable in the parameters (chunks are recomputed in the backward pass), so that
    ``dist.normalize(exact_log_partition(dist)).log_prob(v)`` trains by maximum likelihood.

    A deep machine is one between its even and its odd layers; the side with fewer states is enumerated.

    :param dist: an RBM or a DBM; an attached log Z is ignored.
    :param int max_states: refuse more states than this.
    :returns: shape ``dist.batch_shape``.
    :raises ValueError: if no layer is finite, the smaller one has more than ``max_states`` states, or
        Z is infinite.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> exact_log_partition(BernoulliRBM(torch.zeros(4, 3), torch.zeros(4), torch.zeros(3)))
    tensor(4.8520, dtype=torch.float64)
    """
    dist = as_machine(dist)
    dist.check_normalizable()
    if dist.visible.is_gaussian and dist.hidden.is_gaussian:
        return _gaussian(dist.to(dtype=torch.float64)).expand(dist.batch_shape)
    side = finite_side(dist, max_states)
    return _enumerate(side.to(dtype=torch.float64)).expand(dist.batch_shape)


def finite_side(dist: RBM, max_states: int, hint: str = "use estimate_log_partition") -> RBM:
    """The machine turned so that its visible layer is the one to enumerate.

    :raises ValueError: if no layer is finite, or the smaller one has more than ``max_states`` states.
    """
    side = enumerable_side(dist)
    num_states = None if side is None else side.visible.num_states
    if side is None or num_states is None:
        names = f"{type(dist.visible).__name__}-{type(dist.hidden).__name__}"
        raise ValueError(f"a {names} machine has no finite layer to enumerate")
    if num_states > max_states:
        raise ValueError(
            f"the smaller layer has {num_states} states, more than max_states={max_states}; {hint}"
        )
    return side


def _enumerate(side: RBM) -> Tensor:
    batch = side.parameter_batch_shape
    lift = (-1,) + (1,) * len(batch) + (side.visible.size,)

    def log_sum(states: Tensor) -> Tensor:
        return torch.logsumexp(-side.free_energy(states.reshape(lift)), 0)

    differentiable = torch.is_grad_enabled() and any(p.requires_grad for p in side.parameters())
    parts = []
    for states in state_chunks(side.visible, side.hidden.size * math.prod(batch)):
        if differentiable:
            parts.append(checkpoint(log_sum, states, use_reentrant=False))
        else:
            parts.append(log_sum(states))
    return torch.logsumexp(torch.stack(parts), 0)


def _gaussian(dist: RBM) -> Tensor:
    r"""``K + b' M^-1 b / 2 + (n log 2 pi - log det M) / 2`` with M the joint precision."""
    factor, bias = gaussian_joint(dist)
    half = torch.linalg.solve_triangular(factor, bias.unsqueeze(-1), upper=False)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = 0.5 * bias.shape[-1] * math.log(2.0 * math.pi)
    return dist.canonical().constant + 0.5 * half.square().sum((-2, -1)) + constant - log_det


def gaussian_joint(dist: RBM) -> tuple[Tensor, Tensor]:
    """Cholesky factor of the joint precision M of two Gaussian layers (visible units first), and the
    bias b, of the joint density ``exp(b'x - x'Mx / 2 + K)``."""
    form = dist.canonical()
    batch = dist.parameter_batch_shape

    def block(tensor: Tensor, *shape: int) -> Tensor:
        return tensor.expand(*batch, *shape)

    num_visible, num_hidden = dist.weight.shape[-2:]
    precision_v = block(_precision(dist.visible), num_visible, num_visible)
    precision_h = block(_precision(dist.hidden), num_hidden, num_hidden)
    weight = block(dist.weight, num_visible, num_hidden)
    top = torch.cat([precision_v, -weight], -1)
    bottom = torch.cat([-weight.mT, precision_h], -1)
    factor = torch.linalg.cholesky(torch.cat([top, bottom], -2))
    visible_bias = block(form.visible_bias, num_visible)
    bias = torch.cat([visible_bias, block(form.hidden_bias, num_hidden)], -1)
    return factor, bias


def _precision(unit: Unit) -> Tensor:
    """Precision matrix of a Gaussian layer, shape ``(..., n, n)``."""
    if isinstance(unit, Gaussian):
        return torch.atleast_1d(unit.precision).expand(*unit.batch_shape, unit.size).diag_embed()
    identity = torch.eye(unit.size, dtype=unit.dtype, device=unit.device)
    root = unit.covariance_root(identity)
    assert root is not None
    return torch.cholesky_inverse(torch.linalg.cholesky(root.mT @ root))
