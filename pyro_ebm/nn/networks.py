# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Small building blocks of the networks that make parameters from a context."""

from collections.abc import Sequence

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

__all__ = ["freeze", "mlp", "soft_clamp"]


def mlp(num_inputs: int, hidden_sizes: Sequence[int], num_outputs: int) -> nn.Module:
    """A multilayer perceptron with rectified hidden layers, one linear layer without any.

    :param int num_inputs: features that it reads.
    :param hidden_sizes: sizes of the hidden layers.
    :param int num_outputs: entries that it gives.
    """
    sizes = [num_inputs, *hidden_sizes]
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [PyroModule[nn.Linear](before, after), PyroModule[nn.ReLU]()]
    last = PyroModule[nn.Linear](sizes[-1], num_outputs)
    return PyroModule[nn.Sequential](*layers, last) if layers else last


def soft_clamp(x: Tensor, low: float, high: float) -> Tensor:
    r"""A smooth, increasing map of the reals into ``(low, high)``, nearly the identity in the middle.

    .. math:: l + \log(1 + e^{x - l}) - \log(1 + e^{x - u})

    Unlike a hard bound its gradient vanishes nowhere, so that a parameter that has run against the
    bound can come back.

    :param float low: l.
    :param float high: u, greater than l.
    """
    return low + softplus(x - low) - softplus(x - high)


@torch.no_grad()
def freeze(module: nn.Module) -> nn.Module:
    """Turn all parameters of a module into buffers: saved and moved, but never trained.

    A parameter without gradient would not do, as :func:`pyro.module` switches gradients on.

    :returns: the module.
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone())
    return module
