# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The weights of a machine of any depth."""

from torch.nn import Parameter

from pyro_ebm import nn

__all__ = ["weights_of"]


def weights_of(module: nn.RBM | nn.DBM) -> list[Parameter]:
    """The weights of a machine, from the lowest to the top."""
    if isinstance(module, nn.RBM):
        return [module.get_parameter("weight")]
    return list(module.weights)
