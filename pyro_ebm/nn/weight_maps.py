# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""How a weight matrix depends on the context."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.nn import Parameter

from pyro_ebm.nn.networks import Linear

__all__ = ["WEIGHT_MAPS", "BasisWeight", "ConstantWeight", "FactoredWeight", "FullWeight"]


class FullWeight(PyroModule):
    """Every entry of the weight is affine in the features: ``V * H * (F + 1)`` parameters.

    :param int num_features: entries of the features, F.
    :param int num_visible: V.
    :param int num_hidden: H.
    """

    def __init__(self, num_features: int, num_visible: int, num_hidden: int) -> None:
        super().__init__()
        self.shape = num_visible, num_hidden
        self.linear = Linear(num_features, num_visible * num_hidden)

    def forward(self, features: Tensor) -> Tensor:
        """The weight, shape ``(..., V, H)``, from features of shape ``(..., F)``."""
        return self.linear(features).unflatten(-1, self.shape)


class ConstantWeight(PyroModule):
    """One weight for all contexts, as in the conditional RBM of Taylor, Hinton and Roweis (2007).

    :param int num_features: entries of the features, which are not used.
    :param int num_visible: V.
    :param int num_hidden: H.
    """

    def __init__(self, num_features: int, num_visible: int, num_hidden: int) -> None:
        super().__init__()
        self.matrix = Parameter(torch.randn(num_visible, num_hidden) * 0.2)

    def forward(self, features: Tensor) -> Tensor:
        """The weight, shape ``(V, H)``, whatever the features: it broadcasts with the other parameters."""
        return self.matrix


class BasisWeight(PyroModule):
    r"""A mixture of bases, :math:`W(x) = W_0 + \sum_k g_k(x) W_k` with softmax gates g.

    :param int num_features: entries of the features, F.
    :param int num_visible: V.
    :param int num_hidden: H.
    :param int num_bases: number of bases beside :math:`W_0`.
    """

    def __init__(
        self, num_features: int, num_visible: int, num_hidden: int, num_bases: int = 8
    ) -> None:
        super().__init__()
        self.shape = num_visible, num_hidden
        self.gate = Linear(num_features, num_bases)
        self.bases = Linear(num_bases, num_visible * num_hidden)

    def forward(self, features: Tensor) -> Tensor:
        """The weight, shape ``(..., V, H)``, from features of shape ``(..., F)``."""
        return self.bases(torch.softmax(self.gate(features), -1)).unflatten(-1, self.shape)


class FactoredWeight(PyroModule):
    r"""Three-way factors, :math:`W_{ij}(x) = \sum_f A_{if} B_{jf} g_f(x)` with g affine in x: a weight of
    low rank whose factors are gated by the context, after Taylor and Hinton (2009).

    :param int num_features: entries of the features, F.
    :param int num_visible: V.
    :param int num_hidden: H.
    :param int num_factors: number of factors, the largest rank of the weight.
    """

    def __init__(
        self, num_features: int, num_visible: int, num_hidden: int, num_factors: int = 32
    ) -> None:
        super().__init__()
        self.visible = Parameter(torch.randn(num_visible, num_factors))
        self.hidden = Parameter(torch.randn(num_hidden, num_factors) / math.sqrt(num_factors))
        self.gate = Linear(num_features, num_factors)

    def forward(self, features: Tensor) -> Tensor:
        """The weight, shape ``(..., V, H)``, from features of shape ``(..., F)``."""
        return (self.visible * self.gate(features).unsqueeze(-2)) @ self.hidden.mT


#: Options of the maps with their defaults, by name.
WEIGHT_MAPS: dict[str, tuple[Callable[..., PyroModule], Mapping[str, Any]]] = {
    "full": (FullWeight, {}),
    "constant": (ConstantWeight, {}),
    "basis": (BasisWeight, {"num_bases": 8}),
    "factored": (FactoredWeight, {"num_factors": 32}),
}
