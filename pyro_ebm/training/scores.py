# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Gradients of the log-density of single states, and what Fisher informations need of them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.units import Unit

__all__ = ["Scores"]


class Scores:
    r"""The scores :math:`s(v) = -\partial F(v) / \partial \theta` of rows v, by parameter.

    Those of the weight, :math:`(v - o_v)(\mathrm{E}[h|v] - o_h)^\top`, are kept as their two factors: an
    array of rows times V times H is formed by :meth:`dense` alone. The hidden layer is summed out, so
    that it adds no variance (Rao-Blackwell). Layers whose only parameter is a bias have v or E[h|v]
    itself; those with a precision are differentiated unit by unit.

    :param Tensor left: :math:`v - o_v`, shape ``(rows, V)``; None where the weight is not trained.
    :param Tensor right: :math:`\mathrm{E}[h|v] - o_h`, shape ``(rows, H)``; likewise.
    :param layers: scores of the layers' trained parameters by name, shape ``(rows,)`` and that of the
        parameter.
    """

    def __init__(
        self, left: Tensor | None, right: Tensor | None, layers: Mapping[str, Tensor]
    ) -> None:
        self.left, self.right = left, right
        self.layers = dict(layers)

    @classmethod
    @torch.no_grad()
    def of(cls, module: nn.RBM, dist: RBM, v: Tensor, theta: Tensor) -> "Scores":
        """The scores of the trained parameters of a module.

        :param module: the module.
        :param RBM dist: its distribution, which may be of another dtype.
        :param Tensor v: visible states, shape ``(rows, V)``.
        :param Tensor theta: natural parameters of their hidden layer, shape ``(rows, H)``.
        """
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        mean, field = dist.hidden.natural_mean(theta), theta - dist.hidden.natural_bias
        rows = {
            "visible": _layer_scores(dist.visible, lambda unit: -unit.energy(v), v),
            "hidden": _layer_scores(dist.hidden, lambda unit: unit.log_partition(field), mean),
        }
        layers = {
            f"{side}.{name}": value
            for side, values in rows.items()
            for name, value in values.items()
            if f"{side}.{name}" in trained
        }
        if "weight" not in trained:
            return cls(None, None, layers)
        if module.centered:
            return cls(v - dist.visible_offset, mean - dist.hidden_offset, layers)
        return cls(v, mean, layers)

    @torch.no_grad()
    def variance(self, probabilities: Tensor | None = None) -> dict[str, Tensor]:
        """Variance over the rows of every entry, by parameter.

        :param Tensor probabilities: of the rows, shape ``(rows,)``; all the same if None.
        """
        rows = next(iter(self.layers.values())) if self.left is None else self.left
        p = rows.new_full((len(rows),), 1.0 / len(rows)) if probabilities is None else probabilities
        result = {}
        if self.left is not None and self.right is not None:
            weighted = self.left * p.unsqueeze(-1)
            mean = weighted.T @ self.right
            second = (weighted * self.left).T @ self.right.square()
            # Rounding may leave less than nothing.
            result["weight"] = second.addcmul_(mean, mean, value=-1.0).clamp_(min=0.0)
        for name, value in self.layers.items():
            mean = torch.tensordot(p, value, 1)
            result[name] = torch.tensordot(p, (value - mean).square(), 1)
        return result

    @torch.no_grad()
    def gram(self) -> Tensor:
        """Inner products of the scores of every two rows, shape ``(rows, rows)``, float64."""
        parts = [_products(value.flatten(1)) for value in self.layers.values()]
        if self.left is not None and self.right is not None:
            parts.append(_products(self.left).mul_(_products(self.right)))
        return torch.stack(parts).sum(0)

    @torch.no_grad()
    def dot(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Inner product of every row's score with a direction, shape ``(rows,)``, float64.

        :param direction: a tensor of the shape of every parameter.
        """
        parts = [v.flatten(1) @ direction[n].flatten() for n, v in self.layers.items()]
        if self.left is not None and self.right is not None:
            parts.append(torch.linalg.vecdot(self.left @ direction["weight"], self.right))
        return torch.stack(parts).double().sum(0)

    @torch.no_grad()
    def combine(self, coefficients: Tensor) -> dict[str, Tensor]:
        """The sum of the rows' scores times coefficients, by parameter.

        :param Tensor coefficients: shape ``(rows,)``, of the dtype of the scores.
        """
        result = {n: torch.tensordot(coefficients, v, 1) for n, v in self.layers.items()}
        if self.left is not None and self.right is not None:
            result["weight"] = (self.left * coefficients.unsqueeze(-1)).T @ self.right
        return result

    @torch.no_grad()
    def dense(self) -> dict[str, Tensor]:
        """Every score in full, shape ``(rows,)`` and that of the parameter; for small machines."""
        if self.left is None or self.right is None:
            return dict(self.layers)
        return {"weight": self.left.unsqueeze(-1) * self.right.unsqueeze(-2), **self.layers}


def _products(rows: Tensor) -> Tensor:
    """Inner products of rows in float64, of which differences are taken."""
    rows = rows.double()
    return rows @ rows.T


def _layer_scores(
    unit: Unit, function: Callable[[Unit], Tensor], statistic: Tensor
) -> dict[str, Tensor]:
    """Gradients of a function of every row by the layer's parameters, named as they are stored."""
    if set(unit.parameters) == {"bias"}:
        return {"bias": statistic.reshape(len(statistic), *unit.parameters["bias"].shape)}
    count = len(statistic)
    with torch.enable_grad():
        leaves = {
            name: p.detach().expand(count, *p.shape).clone().requires_grad_()
            for name, p in unit.parameters.items()
        }
        total = function(unit.replace(**leaves)).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()))
    rows = dict(zip(leaves, gradients, strict=True))
    if "precision" in rows:
        # It is stored by its logarithm.
        rows["log_precision"] = rows.pop("precision") * unit.parameters["precision"]
    return rows
