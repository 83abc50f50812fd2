# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The gradient of the parameterisation in which every unit has mean 0 and variance 1."""

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM
from pyro_ebm.training.phase_statistics import Statistics

__all__ = ["Standardization"]


class Standardization:
    r"""The gradient of the parameterisation in which every unit has mean 0 and variance 1.

    With :math:`\tilde v_i = (v_i - \mu_i) / \sigma_i`, likewise :math:`\tilde h_j`, and the energy
    :math:`-\tilde v^\top \tilde W \tilde h - \tilde b^\top \tilde v - \tilde c^\top \tilde h`, the
    distribution is that of :math:`W_{ij} = \tilde W_{ij} / (\sigma_i \sigma_j)`, so that a step along the
    gradient of :math:`\tilde W` is the step

    .. math::
        \Delta W_{ij} = -\epsilon\, \frac{\partial (-\log p) / \partial W_{ij}}{\sigma_i^2 \sigma_j^2}

    of W, and :math:`\Delta b_i` has :math:`1 / \sigma_i^2`. W itself is what is stored: moving
    :math:`\sigma` changes no probability. Tang and Sutskever, *Data normalization in the learning of
    restricted Boltzmann machines* (2011). Variances are moving averages over batches, and ``damping``
    is added to them: a pixel that never changes has variance zero. Rates are smaller than those of the
    plain gradient by the size of typical :math:`\sigma_i^2 \sigma_j^2`.

    :param module: a centred module: its offsets are the means.
    :param float rate: rate of the moving averages.
    :param float damping: what is added to variances.
    :raises ValueError: if the module is not centred, or its hidden units are neither bits nor spins.
    """

    def __init__(self, module: nn.RBM, rate: float, damping: float) -> None:
        if not module.centered:
            raise ValueError("preconditioner='standardize' needs a module with centered=True")
        family = module.hidden.family
        if family not in ("bernoulli", "categorical", "ising"):
            raise ValueError(
                f"preconditioner='standardize' is for hidden bits or spins, not for {family!r} units"
            )
        self._spins = family == "ising"
        self.module = module
        self.rate = rate
        self.damping = damping
        self._variances: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, dist: RBM, data: Statistics, model: Statistics) -> None:
        weight = self.module.get_parameter("weight")
        mean = data.h.mean(0)
        # That of the states, not of their conditional means: bits and spins know theirs from the mean.
        hidden = 1.0 - mean.square() if self._spins else mean * (1.0 - mean)
        scales = []
        for name, batch in (("visible", data.v.var(0, correction=0)), ("hidden", hidden)):
            old = self._variances.get(name)
            variance = batch if old is None else old + self.rate * (batch - old)
            self._variances[name] = variance
            scales.append((variance + self.damping).reciprocal())
        if weight.grad is not None:
            weight.grad.mul_(scales[0].unsqueeze(-1)).mul_(scales[1])
        for layer, scale in zip((self.module.visible, self.module.hidden), scales, strict=True):
            for name, parameter in layer.named_parameters():
                if parameter.grad is not None and name in ("bias", "loc"):
                    parameter.grad.mul_(scale.view_as(parameter))
                    if name == "loc":
                        # The bias is b = precision * loc, and its gradient that of loc over precision.
                        parameter.grad.div_(layer.log_precision.detach().exp().square())

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        return {f"variance.{name}": value for name, value in self._variances.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        names = ("visible", "hidden")
        self._variances = {n: state[f"variance.{n}"] for n in names if f"variance.{n}" in state}
