# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A deterministic layer that computes the mean of a Boltzmann machine's hidden layer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import Parameter

from pyro_ebm.nn import DBM, RBM
from pyro_ebm.nn.deep_initialization import layer_of, without_offsets
from pyro_ebm.nn.tied_rbm import TiedRBM
from pyro_ebm.nn.unit_parameters import UnitParameters

__all__ = ["MeanLayer"]


class MeanLayer(nn.Module):
    r"""Computes :math:`\mathrm{E}[h]` of a layer of units at the natural parameter :math:`b + W^\top x`.

    The nonlinearity is that of the family: the sigmoid of Bernoulli units, the hyperbolic tangent of Ising
    units, the softmax of categorical ones, the mean of a rectified Gaussian ("relu", smooth), and none of
    Gaussian ones.

    :param Tensor weight: W, shape ``(inputs, outputs)``; copied.
    :param Tensor bias: the natural bias b, shape ``(outputs,)``; zeros if None.
    :param str family: a name of :data:`~pyro_ebm.nn.unit_parameters.FAMILIES`.
    :param options: options of the family, as of :class:`pyro_ebm.nn.RBM`.
    :raises ValueError: for wrong shapes, NaN, or an unknown family or option.

    >>> import torch
    >>> from pyro_ebm.training.finetuning import MeanLayer
    >>> layer = MeanLayer(torch.zeros(3, 2), torch.tensor([0.0, 1.0]), "ising")
    >>> layer(torch.ones(1, 3)).tolist()[0][0]
    0.0
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        family: str = "bernoulli",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_matrix("weight", weight)
        size = weight.shape[1]
        if bias is None:
            bias = weight.new_zeros(size)
        if not isinstance(bias, Tensor) or bias.shape != (size,):
            got = tuple(bias.shape) if isinstance(bias, Tensor) else type(bias).__name__
            raise ValueError(
                f"bias of weight {tuple(weight.shape)} must have shape ({size},), got {got}"
            )
        if not bool(torch.isfinite(bias).all()):
            raise ValueError("bias holds NaN or infinite values")
        self.weight = Parameter(weight.detach().clone())
        factory = {"dtype": weight.dtype, "device": weight.device}
        self.units = UnitParameters(family, size, options, **factory)
        with torch.no_grad():
            self.units.assign(self.units.forward().tilt(bias.detach().to(weight))[0])

    @classmethod
    @torch.no_grad()
    def from_rbm(cls, module: RBM) -> "MeanLayer":
        """The layer that computes :math:`E[h|v]` of a machine, whose offsets move into the bias.

        :param module: a :class:`pyro_ebm.nn.RBM`; its parameters are copied.
        :raises TypeError: for another module.
        """
        if not isinstance(module, RBM):
            raise TypeError(f"expected a pyro_ebm.nn.RBM, got {type(module).__name__}")
        if isinstance(module, TiedRBM):
            raise TypeError("a TiedRBM is trained for a deep machine: make one and use from_dbm()")
        dist = module()
        # The form without offsets, whatever the parameterisation that is learnt in.
        canonical = dist.canonical()
        layer = cls(canonical.weight, None, module.hidden.family, module.hidden.options)
        # Parameters that are no biases, such as precisions, come with the unit.
        unit, _ = dist.hidden.tilt(canonical.hidden_bias - dist.hidden.natural_bias)
        layer.units.assign(unit)
        return layer

    @classmethod
    @torch.no_grad()
    def from_dbm(cls, module: DBM) -> list["MeanLayer"]:
        """The layers that compute what each hidden layer of a deep machine is given the one below **alone**,
        from the bottom to the top; offsets move into the biases.

        :param module: a :class:`pyro_ebm.nn.DBM`; its parameters are copied.
        :raises TypeError: for another module.
        """
        if not isinstance(module, DBM):
            raise TypeError(f"expected a pyro_ebm.nn.DBM, got {type(module).__name__}")
        layers = []
        for number, weight in enumerate(module.weights):
            own = layer_of(module, number + 1)
            layer = cls(weight, None, own.family, own.options)
            layer.units.assign(without_offsets(module, number + 1))
            layers.append(layer)
        return layers

    @classmethod
    def glorot(
        cls,
        num_inputs: int,
        num_outputs: int,
        family: str = "bernoulli",
        options: Mapping[str, Any] | None = None,
        *,
        generator: Generator | None = None,
        **factory: Any,
    ) -> "MeanLayer":
        """A layer with random weights of the uniform law of Glorot and Bengio (2010), without biases."""
        weight = torch.empty(num_inputs, num_outputs, **factory)
        return cls(glorot_(weight, generator), None, family, options)

    @property
    def family(self) -> str:
        """Name of the family of units."""
        return str(self.units.family)

    @property
    def num_inputs(self) -> int:
        """Entries of the input."""
        return int(self.weight.shape[0])

    @property
    def num_outputs(self) -> int:
        """Entries of the output."""
        return int(self.weight.shape[1])

    def preactivation(self, x: Tensor) -> Tensor:
        """The natural parameter :math:`b + W^T x`.

        :param Tensor x: shape ``(rows, num_inputs)``.
        """
        # .forward and not a call: outside of Pyro programs a call only costs time.
        return torch.addmm(self.units.forward().natural_bias, x, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The mean of the units, shape ``(rows, num_outputs)``."""
        unit = self.units.forward()
        return unit.natural_mean(torch.addmm(unit.natural_bias, x, self.weight))

    def config(self) -> dict[str, Any]:
        """What the layer is, JSON types only."""
        return {
            "num_inputs": self.num_inputs,
            "num_outputs": self.num_outputs,
            "family": self.family,
            "options": dict(self.units.options),
        }


@torch.no_grad()
def glorot_(weight: Tensor, generator: Generator | None = None) -> Tensor:
    """Fill a matrix with Glorot's uniform law: variance 2 / (inputs + outputs)."""
    bound = (6.0 / sum(weight.shape)) ** 0.5
    return weight.uniform_(-bound, bound, generator=generator)


def _check_matrix(name: str, weight: Any) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(weight).__name__}")
    if weight.dim() != 2 or 0 in weight.shape or not weight.dtype.is_floating_point:
        raise ValueError(
            f"{name} must be a floating-point matrix of shape (inputs, outputs), got {weight.dtype} "
            f"of shape {tuple(weight.shape)}"
        )
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"{name} holds NaN or infinite values")
