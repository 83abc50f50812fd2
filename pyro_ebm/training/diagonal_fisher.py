# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The natural gradient with a diagonal Fisher information."""

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM
from pyro_ebm.training.phase_statistics import Statistics
from pyro_ebm.training.scores import Scores

__all__ = ["DiagonalFisher"]


class DiagonalFisher:
    r"""Divides the gradient of every parameter by its Fisher information.

    .. math::
        \Delta \theta_k = -\epsilon\, \frac{g_k}{\mathrm{Var}_{p(v)}[s_k(v)] + \lambda},
        \qquad s(v) = -\frac{\partial F(v)}{\partial \theta},

    the natural gradient of Amari (*Natural gradient works efficiently in learning*, 1998) where the
    correlations between parameters are left out. Variances are those of the chains of the same update,
    with the hidden layer summed out, in moving averages; the division is by what the average is
    after the update.

    It costs two more matrix products an update (means and squares of the chains' statistics). A step of
    a rate :math:`\epsilon` changes the distribution by about as much whatever the scale of a parameter, so
    that rates are smaller than those of the plain gradient, by the size of typical variances (bits:
    at most 1/16 for a weight between layers of mean 1/2 that are centred).

    :param module: the module.
    :param float rate: rate of the moving averages.
    :param float damping: :math:`\lambda`, what is added to variances: parameters without any, such as
        weights of a pixel that never changes, would have infinite steps.
    """

    def __init__(self, module: nn.RBM, rate: float, damping: float) -> None:
        self.module = module
        self.rate = rate
        self.damping = damping
        self._variances: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, dist: RBM, data: Statistics, model: Statistics) -> None:
        """Change the gradients of the module, see
        :class:`~pyro_ebm.training.preconditioning.Preconditioner`."""
        variances = Scores.of(self.module, dist, model.v, model.theta).variance()
        parameters = dict(self.module.named_parameters())
        for name, batch in variances.items():
            variance = self._variances.setdefault(name, batch)
            if variance is not batch:
                variance.lerp_(batch, self.rate)
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.div_(variance + self.damping)

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        return {f"fisher.{name}": value for name, value in self._variances.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave.

        :raises ValueError: for a shape that is not that of the parameter.
        """
        self._variances = {}
        for name, parameter in self.module.named_parameters():
            value = state.get(f"fisher.{name}")
            if value is None:
                continue
            if value.shape != parameter.shape:
                raise ValueError(
                    f"fisher.{name} of shape {tuple(value.shape)}, the parameter has "
                    f"{tuple(parameter.shape)}"
                )
            self._variances[name] = value.to(parameter, copy=True)
