# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Small building blocks of the networks that make parameters from a context."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

__all__ = ["Linear", "ReLU", "Sequential", "freeze", "mlp", "soft_clamp"]

#: Layers of torch whose parameters can be made random (:class:`pyro.nn.PyroSample`). Any, as Pyro makes these
#: classes when they are asked for.
Linear: Any = PyroModule[nn.Linear]
ReLU: Any = PyroModule[nn.ReLU]
Sequential: Any = PyroModule[nn.Sequential]


def mlp(num_inputs: int, hidden_sizes: Sequence[int], num_outputs: int) -> nn.Module:
    """A multilayer perceptron with rectified hidden layers, one linear layer without any.

    :param int num_inputs: features that it reads.
    :param hidden_sizes: sizes of the hidden layers.
    :param int num_outputs: entries that it gives.
    """
    sizes = [num_inputs, *hidden_sizes]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [Linear(before, after), ReLU()]
    last: nn.Module = Linear(sizes[-1], num_outputs)
    return Sequential(*layers, last) if layers else last


def soft_clamp(x: Tensor, low: float, high: float) -> Tensor:
    r"""A smooth, increasing map of the reals into ``(low, high)``, nearly the identity in the middle.

    .. math:: l + \log(1 + e^{x - l}) - \log(1 + e^{x - u})

    Unlike a hard bound its gradient vanishes nowhere, so that a parameter that has run against the
    bound can come back. The function is odd about the middle; computed there from the nearer bound, its
    gradient is right in floating point too, where the difference above would be 1 - 1.

    :param float low: l.
    :param float high: u, greater than l.
    """
    middle, half = 0.5 * (low + high), 0.5 * (high - low)

    def upper(z: Tensor) -> Tensor:
        return half - softplus(half - z) + softplus(-half - z)

    z = x - middle
    return middle + torch.where(z < 0, -upper(-z), upper(z))


@torch.no_grad()
def freeze(module: nn.Module) -> nn.Module:
    """Turn all parameters of a module into buffers: saved and moved, but never trained.

    A parameter without gradient would not do, as :func:`pyro.module` switches gradients on.

    :returns: the module.
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            # Not by delattr(), with which a PyroModule would clear the parameter store of its original.
            del part._parameters[name]
            part.register_buffer(name, parameter.detach().clone())
    return module
