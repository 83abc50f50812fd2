# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Exact p(y | x) of a classification RBM for the rows of a batch, and its gradient."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_ebm import nn

__all__ = ["ClassFields"]

#: Hidden natural parameters that are looked at together: what stays in the cache of a CPU.
_CHUNK_ENTRIES = 2**17


class ClassFields:
    r"""The hidden layer of every row under every class.

    Where biases are all that the hidden layer learns, gradients are written down: with
    :math:`r_{nk} = w_n (p(k | x_n) - y_{nk})` and the hidden means :math:`m_{nk}` those of
    :math:`-\sum_n w_n \log p(y_n | x_n)` are

    .. math::
        \partial W = \sum_n x_n \Bigl(\sum_k r_{nk} m_{nk}\Bigr)^\top, \quad
        \partial U_k = \sum_n r_{nk} m_{nk}, \quad
        \partial c = \sum_{nk} r_{nk} m_{nk}, \quad
        \partial b_k = \sum_n r_{nk},

    where offsets are subtracted from x, y and m: one matrix product and two passes over the hidden units
    of all classes that stay in the cache. Other layers are left to autograd.

    :param module: the machine.
    :param Tensor x: inputs, shape ``(rows, num_visible)``, of the module's dtype and device.
    :param Tensor keep: factors of the hidden units in the logits (dropout), shape ``(rows, H)``; one if
        None. Only for hidden layers of bits or spins.
    """

    def __init__(self, module: nn.ClassificationRBM, x: Tensor, keep: Tensor | None = None) -> None:
        self.module = module
        self._x = x
        self._keep = keep
        self._closed = set(module.hidden().parameters) == {"bias"}
        #: log p(y | x) up to a constant of the row, shape ``(rows, num_classes)``.
        self.logits = self._closed_logits() if self._closed else self._autograd_logits()

    @torch.no_grad()
    def _closed_logits(self) -> Tensor:
        dist = self.module(validate_args=False)
        form = dist.canonical()
        sizes = [self.module.num_inputs, self.module.num_classes]
        weight, self._label_weight = form.weight.split(sizes)
        self._dist = dist
        self._theta = torch.addmm(form.hidden_bias, self._x, weight)
        parts = [self._log_partition(theta) for _, theta in self._by_class()]
        return torch.cat(parts).T + form.visible_bias[self.module.num_inputs :]

    def _autograd_logits(self) -> Tensor:
        if self._keep is not None:
            raise ValueError(
                "dropout of class probabilities needs hidden units of bits or spins, got "
                f"{self.module.hidden.family!r}"
            )
        with torch.enable_grad():
            return self.module.class_logits(self._x)

    def _by_class(self) -> Iterator[tuple[slice, Tensor]]:
        """Some classes, and the hidden natural parameters under them, shape ``(classes, rows, H)``."""
        step = max(1, _CHUNK_ENTRIES // max(1, self._theta.numel()))
        for start in range(0, self.module.num_classes, step):
            classes = slice(start, start + step)
            yield classes, self._theta + self._label_weight[classes].unsqueeze(1)

    def _log_partition(self, theta: Tensor) -> Tensor:
        hidden = self._dist.hidden
        if self._keep is None:
            return hidden.natural_log_partition(theta)
        # Every unit as a layer of its own, so that each can be weighted.
        by_unit = hidden.natural_log_partition(theta.unsqueeze(-1))
        return torch.linalg.vecdot(by_unit, self._keep)

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """One-hot labels from p(y | x), shape ``(rows, num_classes)``."""
        with torch.no_grad():
            return self.module.visible.labels().natural_sample(self.logits.detach(), generator)

    @torch.no_grad()
    def hidden_mean(self, labels: Tensor) -> Tensor:
        """Mean hidden state over the rows with their labels, shape ``(H,)``."""
        hidden = self.module(validate_args=False)
        states = torch.cat([self._x, labels], -1)
        return hidden.hidden.mean(hidden.hidden_field(states)).mean(0)

    def add_gradient(self, labels: Tensor, weights: Tensor) -> None:
        r"""Add the gradient of :math:`-\sum_n w_n \log p(y_n | x_n)` to the module's ``.grad``.

        :param Tensor labels: one-hot y, shape ``(rows, num_classes)``.
        :param Tensor weights: w, shape ``(rows, 1)``.
        """
        if self._closed:
            self._add_closed_gradient(labels, weights)
        else:
            with torch.enable_grad():
                chosen = torch.log_softmax(self.logits, -1) * labels
                (-(chosen * weights).sum()).backward()

    @torch.no_grad()
    def _add_closed_gradient(self, labels: Tensor, weights: Tensor) -> None:
        residual = (torch.softmax(self.logits, -1) - labels) * weights
        by_row, by_class = torch.zeros_like(self._theta), torch.empty_like(self._label_weight)
        for classes, theta in self._by_class():
            mean = self._dist.hidden.natural_mean(theta)
            mean = mean.mul_(residual[:, classes].T.unsqueeze(-1))
            if self._keep is not None:
                mean.mul_(self._keep)
            by_row += mean.sum(0)
            torch.sum(mean, 1, out=by_class[classes])
        total, label_total = by_row.sum(0), residual.sum(0)
        self.module.visible.labels.accumulate_gradient({"bias": label_total.unsqueeze(0)}, 1.0)
        self.module.hidden.accumulate_gradient(
            {"bias": total.view_as(self.module.hidden.bias)}, 1.0
        )
        weight = self.module.get_parameter("weight")
        if weight.grad is not None:
            self._add_weight_gradient(weight.grad, by_row, by_class, total, label_total)

    def _add_weight_gradient(
        self, gradient: Tensor, by_row: Tensor, by_class: Tensor, total: Tensor, label_total: Tensor
    ) -> None:
        inputs, labels = gradient.split([self.module.num_inputs, self.module.num_classes])
        inputs.addmm_(self._x.T, by_row)
        labels += by_class
        if self.module.centered:
            # Residuals of a row sum to zero over the classes: o_h stays where they are told apart.
            gradient.addr_(self._dist.visible_offset, total, alpha=-1.0)
            labels.addr_(label_total, self._dist.hidden_offset, alpha=-1.0)
