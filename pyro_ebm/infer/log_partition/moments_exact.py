# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Exact means and second moments of a machine, where they can be had."""

import math
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.distributions.enumeration import state_chunks
from pyro_ebm.distributions.units import Unit
from pyro_ebm.infer.log_partition.deep_side import as_machine
from pyro_ebm.infer.log_partition.exact import exact_log_partition, finite_side, gaussian_joint

__all__ = ["MachineMoments", "exact_moments"]

#: Default limit of :func:`exact_moments`: 2^20 states take seconds on two cores.
MAX_STATES = 2**20


@dataclass(frozen=True)
class MachineMoments:
    """Means and second moments of both layers, float64.

    :param Tensor visible: E[v], shape ``batch_shape + (V,)``.
    :param Tensor hidden: E[h], shape ``batch_shape + (H,)``.
    :param Tensor visible_visible: E[v v'], shape ``batch_shape + (V, V)``.
    :param Tensor visible_hidden: E[v h'], shape ``batch_shape + (V, H)``.
    """

    visible: Tensor
    hidden: Tensor
    visible_visible: Tensor
    visible_hidden: Tensor

    @property
    def covariance(self) -> Tensor:
        """Covariance of the visible units, shape ``batch_shape + (V, V)``."""
        return self.visible_visible - self.visible.unsqueeze(-1) * self.visible.unsqueeze(-2)

    def expand(self, batch_shape: Size) -> "MachineMoments":
        """The same moments for every element of a larger batch."""

        def grow(tensor: Tensor, event_dim: int) -> Tensor:
            return tensor.expand(*batch_shape, *tensor.shape[-event_dim:])

        return MachineMoments(
            grow(self.visible, 1),
            grow(self.hidden, 1),
            grow(self.visible_visible, 2),
            grow(self.visible_hidden, 2),
        )


@torch.no_grad()
def exact_moments(dist: RBM | DBM, *, max_states: int = MAX_STATES) -> MachineMoments:
    r"""Exact means and second moments of a machine, in float64.

    Enumerates the layer with fewer states, in chunks. Where that is the hidden layer,

    .. math:: \mathrm{E}[v v^\top] = \sum_h p(h) \bigl(\mathrm{E}[v|h]\, \mathrm{E}[v|h]^\top
              + \mathrm{Cov}[v|h]\bigr),

    and the conditional covariance is the derivative of the conditional mean with respect to its
    natural parameter, whatever the family. Two Gaussian layers have a closed form. A reference for
    samples, see :func:`pyro_ebm.distances.moment_errors`.

    Of a deep machine the moments are those of ``dist.bipartite()``: "visible" are its even layers, one
    after the other, "hidden" its odd ones.

    :param dist: an RBM or a DBM; an attached log Z is ignored.
    :param int max_states: refuse more states than this.
    :raises ValueError: if no layer is finite, the smaller one has more than ``max_states`` states, or
        Z is infinite.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> moments = exact_moments(BernoulliRBM(torch.zeros(2, 3), torch.zeros(2), torch.zeros(3)))
    >>> moments.visible_visible
    tensor([[0.5000, 0.2500],
            [0.2500, 0.5000]], dtype=torch.float64)
    """
    dist = as_machine(dist)
    dist.check_normalizable()
    exact = dist.compact().to(dtype=torch.float64)
    if dist.visible.is_gaussian and dist.hidden.is_gaussian:
        return _gaussian(exact).expand(dist.batch_shape)
    side = finite_side(exact, max_states, "compare with held-out samples instead")
    log_z = exact_log_partition(exact, max_states=max_states)
    return _enumerate(side, log_z, transposed=side is not exact).expand(dist.batch_shape)


def _enumerate(side: RBM, log_z: Tensor, *, transposed: bool) -> MachineMoments:
    """Moments from the states x of the side's visible layer; y is the other one, v if transposed."""
    batch, num_x, num_y = side.batch_shape, side.visible.size, side.hidden.size
    lift = (-1,) + (1,) * len(batch) + (num_x,)
    mean_x, mean_y = log_z.new_zeros(*batch, num_x), log_z.new_zeros(*batch, num_y)
    cross = log_z.new_zeros(*batch, num_x, num_y)
    num_square = num_y if transposed else num_x
    square = log_z.new_zeros(*batch, num_square, num_square)
    for x in state_chunks(side.visible, num_y * math.prod(batch)):
        lifted = x.reshape(lift)
        p = (-side.free_energy(lifted) - log_z).exp().expand(len(x), *batch)
        theta = (side.hidden.natural_bias + side.hidden_field(lifted)).expand(*p.shape, num_y)
        y = side.hidden.natural_mean(theta)
        weighted_y = (p.unsqueeze(-1) * y).movedim(0, -1)
        mean_y += weighted_y.sum(-1)
        cross += (weighted_y @ x).mT
        weighted_x = p.movedim(0, -1).unsqueeze(-2) * x.mT
        mean_x += weighted_x.sum(-1)
        if transposed:
            square += weighted_y @ y.movedim(0, -2) + _mean_covariance(side.hidden, theta, p)
        else:
            square += weighted_x @ x
    if transposed:
        return MachineMoments(mean_y, mean_x, square, cross.mT)
    return MachineMoments(mean_x, mean_y, square, cross)


def _mean_covariance(unit: Unit, theta: Tensor, p: Tensor) -> Tensor:
    """Covariance of a layer given its natural parameter, summed over the first axis with weights p."""
    covariance = theta.new_zeros(*theta.shape[1:], theta.shape[-1])
    for entries, part in unit.parts():
        covariance[..., entries, entries] = _family_covariance(part, theta[..., entries], p)
    return covariance


def _family_covariance(unit: Unit, theta: Tensor, p: Tensor) -> Tensor:
    """The same for a layer of one family.

    Units are independent, so that it is made of one block a unit, each the Jacobian of the mean.
    """
    width = unit.size // unit.num_units
    covariance = theta.new_zeros(*theta.shape[1:], theta.shape[-1])
    first = torch.arange(0, unit.size, width, device=theta.device)
    for k in range(width):
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            total = unit.natural_mean(leaf)[..., k::width].sum()
            (gradient,) = torch.autograd.grad(total, leaf)
        rows = (p.unsqueeze(-1) * gradient).sum(0).unflatten(-1, (-1, width))
        for j in range(width):
            covariance[..., first + k, first + j] += rows[..., j]
    return covariance


def _gaussian(dist: RBM) -> MachineMoments:
    factor, bias = gaussian_joint(dist)
    covariance = torch.cholesky_inverse(factor)
    mean = (covariance @ bias.unsqueeze(-1)).squeeze(-1)
    second = covariance + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    n = dist.visible.size
    return MachineMoments(mean[..., :n], mean[..., n:], second[..., :n, :n], second[..., :n, n:])
