# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Offsets of a centred module during training."""

from collections.abc import Sequence

from torch import Tensor

from pyro_ebm import nn

__all__ = ["follow_hidden_mean", "follow_hidden_means"]


def follow_hidden_mean(module: nn.RBM, mean: Tensor | None, rate: float) -> None:
    """Move the hidden offset of a centred module towards a mean; the distribution stays the same.

    :param module: the module; nothing is done if it is not centred.
    :param Tensor mean: mean hidden state of a batch, shape ``(H,)``.
    :param float rate: the part of the way.
    """
    if module.centered and rate and mean is not None:
        module.shift_offsets(hidden_step=(mean - module.hidden_offset) * rate)


def follow_hidden_means(module: nn.DBM, means: Sequence[Tensor] | None, rate: float) -> None:
    """Move the hidden offsets of a centred deep machine towards means; the distribution stays the same.

    :param module: the module; nothing is done if it is not centred.
    :param means: mean states of the hidden layers of a batch, shapes ``(size of layer l,)``.
    :param float rate: the part of the way.
    """
    if module.centered and rate and means is not None:
        pairs = zip(means, module.offsets[1:], strict=True)
        module.shift_offsets([None, *((mean - offset) * rate for mean, offset in pairs)])
