# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The geometric path from a base of both layers to an RBM."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.units import Unit
from pyro_ebm.infer.paths.geometric import GeometricPath
from pyro_ebm.infer.paths.machines import MachineLadder
from pyro_ebm.ops.linear import apply_weight

__all__ = ["TwoSidedPath"]


class TwoSidedPath(GeometricPath):
    r"""Geometric means of a machine and a base in which **both** layers have biases of their own,

    .. math::
        \log p^*_\beta(v) = \bigl((1 - \beta) b_0 + \beta b\bigr)^\top v - r(v)
            + A_h\bigl((1 - \beta) c_0 + \beta (W^\top v + c)\bigr) + \beta K,

    :math:`p_\beta(v, h) \propto q(v)^{1 - \beta} q(h)^{1 - \beta} p(v, h)^\beta`. From the mean field q of a
    machine the path is short: with a single temperature annealing is importance sampling with q, and
    the mean log-weight is at least the mean-field bound of log Z. The path of the class above, whose
    hidden layer starts without a field, would make a detour.

    Increments are differences in float64.

    :param RBM target: the machine at :math:`\beta = 1`.
    :param Unit base: the visible layer at :math:`\beta = 0`.
    :param Unit hidden_base: the hidden layer at :math:`\beta = 0`.
    :param torch.Generator generator: the source of random bits; the global one if None.
    """

    def __init__(
        self, target: RBM, base: Unit, hidden_base: Unit, generator: Generator | None = None
    ) -> None:
        super().__init__(target, base, generator)
        self._hidden_base_bias = hidden_base.natural_bias.detach()

    @property
    def log_partition_base(self) -> Tensor:
        hidden = self._hidden.natural_log_partition(self._hidden_base_bias.double())
        visible = self._visible.natural_log_partition(self._base_bias.double())
        return (visible + hidden).expand(self.batch_shape)

    @torch.no_grad()
    def machine(self, beta: float) -> RBM:
        machine = super().machine(beta)
        shift = (1.0 - beta) * self._hidden_base_bias
        hidden, constant = machine.hidden.tilt(shift)
        machine.hidden = hidden
        if machine._constant is not None:
            constant = constant + machine._constant
        machine._constant = constant
        machine._batch_shape = machine.parameter_batch_shape
        return machine

    def ladder(self, betas: Sequence[float]) -> MachineLadder:  # type: ignore[override]
        return MachineLadder([self.machine(beta) for beta in betas], self.generator)

    @torch.no_grad()
    def log_ratio(
        self, v: Tensor, fields: Tensor, beta: float, beta_next: float
    ) -> tuple[Tensor, Tensor]:
        fine = fields.double()
        base = self._hidden_base_bias.double()
        before, after = (torch.lerp(base, fine, b) for b in (beta, beta_next))
        log_partition = self._hidden.natural_log_partition
        change = log_partition(after) - log_partition(before)
        return change + (beta_next - beta) * self.bias_pull(v), fields

    @torch.no_grad()
    def move(self, fields: Tensor, beta: float) -> Tensor:
        theta = torch.lerp(self._hidden_base_bias.expand_as(fields), fields, beta)
        h = self._hidden.natural_sample(theta, self.generator)
        bias = torch.lerp(self._base_bias, self._visible_bias, beta)
        return self._visible.natural_sample(
            bias + beta * apply_weight(h, self._weight_t), self.generator
        )
