# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Offsets of a centred module during training."""

from torch import Tensor

from pyro_ebm import nn

__all__ = ["follow_hidden_mean"]


def follow_hidden_mean(module: nn.RBM, mean: Tensor | None, rate: float) -> None:
    """Move the hidden offset of a centred module towards a mean; the distribution stays the same.

    :param module: the module; nothing is done if it is not centred.
    :param Tensor mean: mean hidden state of a batch, shape ``(H,)``.
    :param float rate: the part of the way.
    """
    if module.centered and rate and mean is not None:
        module.shift_offsets(hidden_step=(mean - module.hidden_offset) * rate)
