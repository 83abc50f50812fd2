# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The gradient of contrastive divergence from sufficient statistics, without autograd."""

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM, GibbsSweep

__all__ = ["ContrastiveGradient"]


class ContrastiveGradient:
    r"""Writes the gradient of the negative log-likelihood to a module's ``.grad``.

    .. math::
        -\frac{\partial \log p}{\partial W} = -\langle (v - o_v)(E[h|v] - o_h)^\top \rangle_{data}
            + \langle (v - o_v)(E[h|v] - o_h)^\top \rangle_{model}

    and likewise for the parameters of the layers; the model's averages are over chains of block
    Gibbs. The same gradient in expectation as that of
    :class:`~pyro_ebm.infer.ContrastiveDivergence`, for a fraction of its time.

    :param module: the module.
    :param int num_steps: Gibbs sweeps per update.
    :param bool persistent: whether chains go on from update to update.
    :param int num_chains: chains; the rows of the batch if None.
    :param float offset_rate: rate at which hidden offsets of a centred module follow the hidden means.
    :param torch.Generator generator: the source of random bits.
    """

    def __init__(
        self,
        module: nn.RBM,
        *,
        num_steps: int,
        persistent: bool,
        num_chains: int | None,
        offset_rate: float = 0.0,
        generator: Generator | None = None,
    ) -> None:
        self.module = module
        self.num_steps = num_steps
        self.persistent = persistent
        self.num_chains = num_chains
        self.generator = generator
        #: Visible states of the persistent chains, shape ``(num_chains, V)``.
        self.chains: Tensor | None = None
        self._offset_rate = offset_rate
        #: Mean hidden state of the rows of the last batch, shape ``(H,)``.
        self.hidden_mean: Tensor | None = None

    @torch.no_grad()
    def __call__(self, batch: Tensor, rows: Tensor | None = None) -> None:
        """Set the gradients for a batch.

        :param Tensor batch: shape ``(rows, V)``, of the module's dtype and device.
        :param Tensor rows: not used.
        """
        dist = self.module(validate_args=False)
        sweep = GibbsSweep(dist, self.generator)
        theta = sweep.hidden_theta(batch)
        mean = dist.hidden.natural_mean(theta)
        negative, negative_theta = self._negative_phase(dist, sweep, batch, theta)
        negative_mean = dist.hidden.natural_mean(negative_theta)
        self._set_weight(dist, (batch, mean), (negative, negative_mean))
        self._set_units(dist, (batch, theta, mean), (negative, negative_theta, negative_mean))
        self.hidden_mean = mean.mean(0)

    def after_step(self) -> None:
        """Let the hidden offset of a centred module follow the mean of the last batch."""
        if self.module.centered and self._offset_rate and self.hidden_mean is not None:
            step = (self.hidden_mean - self.module.hidden_offset) * self._offset_rate
            self.module.shift_offsets(hidden_step=step)

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        return {} if self.chains is None else {"chains": self.chains}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        chains = state.get("chains")
        weight = self.module.get_parameter("weight")
        self.chains = None if chains is None else chains.to(weight.device)

    def _negative_phase(
        self, dist: RBM, sweep: GibbsSweep, batch: Tensor, theta: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.persistent:
            if self.chains is None:
                shape = torch.Size((self.num_chains or len(batch), batch.shape[1]))
                self.chains = sweep.initial_visible(shape)
            v = self.chains
            theta = sweep.hidden_theta(v)
        elif self.num_chains is not None and self.num_chains != len(batch):
            rows = torch.randint(
                len(batch), (self.num_chains,), device=batch.device, generator=self.generator
            )
            theta = theta[rows]
        v, theta = sweep.run_from_theta(theta, self.num_steps)
        if self.persistent:
            self.chains = v
        return v, theta

    def _set_weight(
        self, dist: RBM, positive: tuple[Tensor, Tensor], negative: tuple[Tensor, Tensor]
    ) -> None:
        weight = self.module.get_parameter("weight")
        if weight.grad is None:
            weight.grad = torch.empty_like(weight)
        beta = 0.0
        for sign, (v, h) in ((-1.0, positive), (1.0, negative)):
            if self.module.centered:
                v, h = v - dist.visible_offset, h - dist.hidden_offset
            torch.addmm(weight.grad, v.T, h, beta=beta, alpha=sign / len(v), out=weight.grad)
            beta = 1.0

    def _set_units(
        self,
        dist: RBM,
        positive: tuple[Tensor, Tensor, Tensor],
        negative: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        visible, hidden = self.module.visible, self.module.hidden
        for layer in (visible, hidden):
            for parameter in layer.parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
        for scale, (v, theta, mean) in ((-1.0, positive), (1.0, negative)):
            visible.accumulate_gradient(dist.visible.mean_parameters_gradient(v), scale)
            gradient = dist.hidden.natural_log_partition_gradient(theta, mean)
            hidden.accumulate_gradient(gradient, scale)
