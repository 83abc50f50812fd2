# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The geometric path of annealed importance sampling, from a base without weights to an RBM."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Size, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.units import Unit
from pyro_ebm.ops.linear import affine, apply_weight

__all__ = ["AnnealingPath"]


class AnnealingPath:
    r"""Intermediate distributions with the hidden layer summed out,

    .. math::
        \log p^*_\beta(v) = \bigl((1 - \beta) b_0 + \beta b\bigr)^\top v - r(v)
            + A_h\bigl(\beta (W^\top v + c)\bigr) + \beta K,

    where b, c, W and K are the canonical form of the machine and :math:`b_0` the natural bias of the
    base. The hidden biases are scaled with :math:`\beta`: keeping them in the base costs about a nat
    on a trained MNIST model.

    :param RBM target: the machine at :math:`\beta = 1`.
    :param Unit base: the visible layer at :math:`\beta = 0`, of the target's family and, if it has
        one, the target's precision.
    :param torch.Generator generator: the source of random bits; the global one if None.
    """

    def __init__(self, target: RBM, base: Unit, generator: Generator | None = None) -> None:
        with torch.no_grad():
            form = target.canonical()
        self.batch_shape = target.parameter_batch_shape
        self._visible = target.visible
        self._hidden = target.hidden
        self._generator = generator
        self._base_bias = base.natural_bias.detach()
        self._visible_bias = form.visible_bias.detach()
        self._hidden_bias = form.hidden_bias.detach()
        self._weight = form.weight.detach()
        self._weight_t = self._weight.mT
        self._constant = form.constant.detach().double()
        self._bias_change = self._visible_bias - self._base_bias

    @property
    def log_partition_base(self) -> Tensor:
        """Exact log Z at beta = 0."""
        hidden = self._hidden.natural_log_partition(torch.zeros_like(self._hidden_bias).double())
        visible = self._visible.natural_log_partition(self._base_bias.double())
        return (visible + hidden).expand(self.batch_shape)

    @torch.no_grad()
    def sample_base(self, num_chains: int) -> Tensor:
        """Exact draws at beta = 0, shape ``(num_chains,) + batch_shape + (V,)``."""
        shape = Size((num_chains, *self.batch_shape, self._base_bias.shape[-1]))
        return self._visible.natural_sample(self._base_bias.expand(shape), self._generator)

    @torch.no_grad()
    def move(self, a: Tensor, beta: float) -> Tensor:
        """One block Gibbs sweep that leaves the distribution at ``beta`` invariant.

        :param Tensor a: W'v + c of the present state.
        :returns: the new visible states.
        """
        h = self._hidden.natural_sample(beta * a, self._generator)
        bias = torch.lerp(self._base_bias, self._visible_bias, beta)
        if self._weight.dim() == 2 and bias.dim() == 1:
            theta = torch.addmm(bias, h, self._weight_t, alpha=beta)
        else:
            theta = bias + beta * apply_weight(h, self._weight_t)
        return self._visible.natural_sample(theta, self._generator)

    @torch.no_grad()
    def step(self, v: Tensor) -> Tensor:
        """One sweep at the target itself."""
        return self.move(affine(v, self._weight, self._hidden_bias), 1.0)

    @torch.no_grad()
    def anneal(
        self,
        v: Tensor,
        betas: Sequence[float],
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Carry states along the path, in either direction.

        At every temperature the ratio is taken first, at the state that was drawn at the
        temperature before; then the state is moved. (The other order over-estimates Z.)

        :param Tensor v: states drawn at ``betas[0]``, shape ``(num_chains,) + batch_shape + (V,)``.
        :param betas: inverse temperatures, increasing or decreasing.
        :param on_step: called with the step's index and its increments of the log-weights.
        :returns: the states at ``betas[-1]`` and the logarithms of the importance weights (float64),
            whose exponentials have the mean Z(betas[-1]) / Z(betas[0]).
        """
        total = torch.zeros(v.shape[:-1], dtype=torch.float64, device=v.device)
        a = affine(v, self._weight, self._hidden_bias)
        for i in range(len(betas) - 1):
            beta, beta_next = betas[i], betas[i + 1]
            step = self._hidden.natural_log_partition_step(a, beta, beta_next)
            step = step + (beta_next - beta) * (v * self._bias_change).sum(-1)
            total += step
            if on_step is not None:
                on_step(i, step)
            v = self.move(a, beta_next)
            a = affine(v, self._weight, self._hidden_bias)
        return v, total + (betas[-1] - betas[0]) * self._constant
