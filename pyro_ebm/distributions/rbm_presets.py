# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""RBMs of the usual pairs of families, made from plain tensors."""

from typing import Any

from torch import Tensor
from torch.distributions import constraints

from pyro_ebm.distributions.rbm import RBM
from pyro_ebm.distributions.units import Bernoulli, Gaussian, Ising

__all__ = ["BernoulliRBM", "GaussianBernoulliRBM", "IsingRBM"]


class _VectorRBM(RBM):
    """RBMs made from plain tensors, so that Pyro can infer shapes and validate by keyword."""

    @property
    def hidden_bias(self) -> Tensor:
        """Natural bias of the hidden layer."""
        return self.hidden.natural_bias


class BernoulliRBM(_VectorRBM):
    """Nonnormalized RBM of bits on both sides (the classic), see :class:`RBM`.

    :param Tensor weight: shape ``(..., V, H)``.
    :param Tensor visible_bias: shape ``(..., V)``.
    :param Tensor hidden_bias: shape ``(..., H)``.
    :param kwargs: keyword arguments of :class:`RBM`.
    """

    arg_constraints = {
        **RBM.arg_constraints,
        "visible_bias": constraints.real_vector,
        "hidden_bias": constraints.real_vector,
    }

    def __init__(
        self, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, **kwargs: Any
    ) -> None:
        validate = kwargs.get("validate_args")
        visible = Bernoulli(visible_bias, validate_args=validate)
        hidden = Bernoulli(hidden_bias, validate_args=validate)
        super().__init__(visible, hidden, weight, **kwargs)

    @property
    def visible_bias(self) -> Tensor:
        """Bias of the visible layer."""
        return self.visible.natural_bias


class IsingRBM(_VectorRBM):
    """Nonnormalized RBM of spins on both sides, see :class:`RBM`.

    :param Tensor weight: shape ``(..., V, H)``.
    :param Tensor visible_bias: shape ``(..., V)``.
    :param Tensor hidden_bias: shape ``(..., H)``.
    :param kwargs: keyword arguments of :class:`RBM`.
    """

    arg_constraints = BernoulliRBM.arg_constraints

    def __init__(
        self, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, **kwargs: Any
    ) -> None:
        validate = kwargs.get("validate_args")
        visible = Ising(visible_bias, validate_args=validate)
        hidden = Ising(hidden_bias, validate_args=validate)
        super().__init__(visible, hidden, weight, **kwargs)

    @property
    def visible_bias(self) -> Tensor:
        """Bias of the visible layer."""
        return self.visible.natural_bias


class GaussianBernoulliRBM(_VectorRBM):
    """Nonnormalized RBM of real visible units and hidden bits, see :class:`RBM`.

    :param Tensor weight: shape ``(..., V, H)``.
    :param Tensor loc: location of the visible units, shape ``(..., V)``.
    :param Tensor precision: precision of the visible units, shape ``(..., V)``.
    :param Tensor hidden_bias: shape ``(..., H)``.
    :param kwargs: keyword arguments of :class:`RBM`.
    """

    arg_constraints = {
        **RBM.arg_constraints,
        "loc": constraints.real_vector,
        "precision": constraints.independent(constraints.positive, 1),
        "hidden_bias": constraints.real_vector,
    }

    def __init__(
        self,
        weight: Tensor,
        loc: Tensor,
        precision: Tensor,
        hidden_bias: Tensor,
        **kwargs: Any,
    ) -> None:
        validate = kwargs.get("validate_args")
        visible = Gaussian(loc, precision, validate_args=validate)
        hidden = Bernoulli(hidden_bias, validate_args=validate)
        super().__init__(visible, hidden, weight, **kwargs)

    @property
    def loc(self) -> Tensor:
        """Location of the visible units."""
        return self.visible.parameters["loc"]

    @property
    def precision(self) -> Tensor:
        """Precision of the visible units."""
        return self.visible.parameters["precision"]
