# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The top layer of a deep Boltzmann machine given its visible layer, by mean field."""

import torch
from torch import Tensor, nn

__all__ = ["TopLayerMeanField"]

#: Rows that are iterated at once.
_CHUNK_ROWS = 4096


class TopLayerMeanField(nn.Module):
    r"""The mean-field posterior :math:`q(h_2 | v)` of a deep Boltzmann machine of two Bernoulli layers.

    .. math::
        q_1 \leftarrow \sigma(b_1 + W_1^\top v + W_2 q_2), \qquad q_2 \leftarrow \sigma(b_2 + W_2^\top q_1)

    in turn, from the bottom-up pass with doubled weights of [1]; every update raises the variational bound.
    The parameters are buffers: what a classifier gets as an extra input stays fixed while it is trained.

    **References**

    [1] *Deep Boltzmann machines*, Ruslan Salakhutdinov, Geoffrey Hinton (2009), section 3

    :param Tensor weight1: :math:`W_1`, shape ``(V, H1)``.
    :param Tensor weight2: :math:`W_2`, shape ``(H1, H2)``.
    :param Tensor bias1: :math:`b_1`, shape ``(H1,)``.
    :param Tensor bias2: :math:`b_2`, shape ``(H2,)``.
    :param int max_updates: largest number of updates of each layer.
    :param float tolerance: largest change of :math:`q_2` at which the iteration of a block of rows ends.
    :raises ValueError: for impossible options or shapes that do not fit.
    """

    weight1: Tensor
    weight2: Tensor
    bias1: Tensor
    bias2: Tensor

    def __init__(
        self,
        weight1: Tensor,
        weight2: Tensor,
        bias1: Tensor,
        bias2: Tensor,
        *,
        max_updates: int = 100,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__()
        if weight1.shape[1] != weight2.shape[0]:
            raise ValueError(
                f"weight2 must have {weight1.shape[1]} rows, the outputs of weight1; got shape "
                f"{tuple(weight2.shape)}"
            )
        if not isinstance(max_updates, int) or max_updates < 1:
            raise ValueError(f"max_updates must be a whole number >= 1, got {max_updates!r}")
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be a number >= 0, got {tolerance!r}")
        tensors = {"weight1": weight1, "weight2": weight2, "bias1": bias1, "bias2": bias2}
        for name, value in tensors.items():
            self.register_buffer(name, value.detach().clone())
        self.max_updates = max_updates
        self.tolerance = tolerance

    @torch.no_grad()
    def forward(self, v: Tensor) -> Tensor:
        """:math:`q(h_2 | v)`, shape ``(rows, H2)``.

        :param Tensor v: shape ``(rows, V)``.
        """
        return torch.cat([self._block(rows) for rows in v.split(_CHUNK_ROWS)])

    def _block(self, v: Tensor) -> Tensor:
        field = v @ self.weight1
        first = torch.sigmoid(self.bias1 + 2.0 * field)
        field = field + self.bias1
        second = torch.sigmoid(self.bias2 + first @ self.weight2)
        for _ in range(self.max_updates):
            first = torch.sigmoid(torch.addmm(field, second, self.weight2.T))
            new = torch.sigmoid(torch.addmm(self.bias2, first, self.weight2))
            change = (new - second).abs().max()
            second = new
            # One number a block and update: the products cost more than the wait for it.
            if change <= self.tolerance:
                break
        return second
