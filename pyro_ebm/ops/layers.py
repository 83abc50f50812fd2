# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Layers of a deep machine in their order."""

from collections.abc import Sequence

from torch import Tensor

__all__ = ["alternate"]


def alternate(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    """Every other layer from one list, those between them from the other.

    :param first: layers of which one is the first.
    :param second: as many, or one less.

    >>> import torch
    >>> from pyro_ebm.ops.layers import alternate
    >>> [layer.item() for layer in alternate(torch.tensor([0, 2, 4]), torch.tensor([1, 3]))]
    [0, 1, 2, 3, 4]
    """
    number = len(first) + len(second)
    return [second[i // 2] if i % 2 else first[i // 2] for i in range(number)]
