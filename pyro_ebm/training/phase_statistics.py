# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""States of one side of a gradient."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Statistics"]


@dataclass(frozen=True)
class Statistics:
    """States of one side of the gradient.

    :param Tensor v: visible states, shape ``(rows, V)``.
    :param Tensor theta: natural parameters of their hidden layer, shape ``(rows, H)``.
    :param Tensor h: what stands for the hidden layer, its mean or a draw, shape ``(rows, H)``.
    :param Tensor keep: ones for hidden units that stay, zeros for those that are left out; all stay if None.
    :param Tensor penalty: what a penalty of the hidden layer subtracts from h, whatever is left out.
    """

    v: Tensor
    theta: Tensor
    h: Tensor
    keep: Tensor | None = None
    penalty: Tensor | None = None
