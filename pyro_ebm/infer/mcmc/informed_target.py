# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log-densities with gradients, by row: what informed proposals know of their target."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.infer.mcmc.site_density import SiteDensity

__all__ = ["MachineDensity", "ModelDensity", "Point"]


@dataclass(frozen=True)
class Point:
    """States with what a proposal from there needs.

    :param value: discrete states, shape ``(..., V)``.
    :param log_density: log-density of every row, unnormalised, shape ``(...)``.
    :param gradient: its gradient with respect to the states as if they were real numbers.
    """

    value: Tensor
    log_density: Tensor
    gradient: Tensor

    def replace_where(self, accept: Tensor, other: "Point") -> "Point":
        """The rows of another point where accepted, the own ones elsewhere."""
        rows = accept.unsqueeze(-1)
        return Point(
            torch.where(rows, other.value, self.value),
            torch.where(accept, other.log_density, self.log_density),
            torch.where(rows, other.gradient, self.gradient),
        )


class MachineDensity:
    r"""The negative free energy of a machine with linear visible units, and its gradient

    .. math:: -\nabla F(v) = b + W (\mathbb{E}[h \mid v] - o_h),

    from one product with W and one with its transpose. Parameters are read when it is made.

    :param RBM rbm: the machine.
    """

    def __init__(self, rbm: RBM) -> None:
        self._sweep = GibbsSweep(rbm)
        self._hidden = rbm.hidden.map(Tensor.detach)

    def __call__(self, value: Tensor) -> Point:
        sweep = self._sweep
        theta = sweep.hidden_theta(value)
        gradient = sweep.visible_theta(self._hidden.natural_mean(theta))
        return Point(value, -sweep.free_energy(value, theta), gradient)


class ModelDensity:
    """The log joint density of a Pyro model, by row of its one latent site, and its gradient by autograd.

    A gradient that is not finite counts as zero there: a proposal may follow any function of the
    state, since the density alone decides on its acceptance.

    :param SiteDensity site: the site and the rest of its model.
    """

    def __init__(self, site: SiteDensity) -> None:
        self._site = site

    def __call__(self, value: Tensor) -> Point:
        log_density, gradient = self._site.value_and_gradient(value, own=True)
        return Point(
            value, log_density, torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        )
