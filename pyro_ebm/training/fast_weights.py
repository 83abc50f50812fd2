# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The fast weights of fast persistent contrastive divergence."""

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM

__all__ = ["FastWeights"]

_NAMES = ("weight", "visible", "hidden")


class FastWeights:
    r"""A second set of parameters that follows the gradient fast and decays fast.

    Chains move in the machine with :math:`\theta + \theta_{fast}`, where

    .. math::
        \theta_{fast} \leftarrow \lambda\, \theta_{fast} - \epsilon_{fast} \nabla_\theta (-\log p).

    The energy rises where chains are, so that they leave it soon; the machine itself is trained by their
    states with its own, smaller rate (Tieleman and Hinton, *Using fast weights to improve persistent
    contrastive divergence*, 2009). Biases have fast parts too, as fields on the layers.

    :param float decay: :math:`\lambda`, in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        #: :math:`\epsilon_{fast}`.
        self.rate = 0.0
        self._parts: dict[str, Tensor] = {}

    def add_to(self, dist: RBM) -> RBM:
        """The machine in which chains move."""
        if not self._parts:
            return dist
        return RBM(
            dist.visible.tilt(self._parts["visible"])[0],
            dist.hidden.tilt(self._parts["hidden"])[0],
            dist.weight + self._parts["weight"],
            visible_offset=dist.visible_offset,
            hidden_offset=dist.hidden_offset,
            validate_args=False,
        )

    @torch.no_grad()
    def follow(self, module: nn.RBM, visible: Tensor, hidden: Tensor) -> None:
        """One update.

        :param module: the module, whose weight has its gradient.
        :param Tensor visible: mean state of the visible layer, the model's less the data's, shape ``(V,)``.
        :param Tensor hidden: the same of the hidden layer, shape ``(H,)``.
        """
        weight = module.get_parameter("weight").grad
        assert weight is not None
        for name, gradient in zip(_NAMES, (weight, visible, hidden), strict=True):
            if name not in self._parts:
                self._parts[name] = torch.zeros_like(gradient)
            self._parts[name].mul_(self.decay).sub_(gradient, alpha=self.rate)

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        return {f"fast.{name}": tensor for name, tensor in self._parts.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        self._parts = {name: state[f"fast.{name}"] for name in _NAMES if f"fast.{name}" in state}
