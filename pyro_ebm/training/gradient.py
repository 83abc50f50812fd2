# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The gradient of contrastive divergence from sufficient statistics, without autograd."""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.negative_phase import GibbsPhase, drop_units
from pyro_ebm.training.offsets import follow_hidden_mean
from pyro_ebm.training.preconditioning import Statistics, make_preconditioner
from pyro_ebm.training.regularizers import Sparsity, check_hidden_bits, keep_mask
from pyro_ebm.training.replica_phase import ReplicaPhase
from pyro_ebm.training.schedules import value_at

__all__ = ["ContrastiveGradient"]


class ContrastiveGradient:
    r"""Writes the gradient of the negative log-likelihood to a module's ``.grad``.

    .. math::
        -\frac{\partial \log p}{\partial W} = -\langle (v - o_v)(E[h|v] - o_h)^\top \rangle_{data}
            + \langle (v - o_v)(E[h|v] - o_h)^\top \rangle_{model}

    and likewise for the parameters of the layers; the model's averages are over chains of block
    Gibbs or replicas. With fast weights, hidden means are those of the machine that the chains move in.
    The same gradient in expectation as that of :class:`~pyro_ebm.infer.ContrastiveDivergence`, for a
    fraction of its time.

    :param module: the module.
    :param TrainerConfig config: options of the run.
    :param torch.Generator generator: the source of random bits.
    :raises ValueError: for options that the module cannot have.
    """

    def __init__(
        self, module: nn.RBM, config: TrainerConfig, generator: Generator | None = None
    ) -> None:
        self.module = module
        self.config = config
        self.generator = generator
        num_chains = config.num_chains or (config.batch_size if config.persistent else None)
        kind = GibbsPhase if config.negative_phase == "gibbs" else ReplicaPhase
        self.phase: GibbsPhase | ReplicaPhase = kind(num_chains, config, generator)
        self.sparsity: Sparsity | None = None
        self._preconditioner = make_preconditioner(module, config)
        #: Mean hidden state of the rows of the last batch, shape ``(H,)``.
        self.hidden_mean: Tensor | None = None
        family = module.hidden.family
        if config.sparsity_cost:
            self.sparsity = Sparsity(config.sparsity_target, config.sparsity_damping, family)
        for name in ("dropout", "positive_hidden", "negative_hidden"):
            if getattr(config, name) not in (0.0, "mean"):
                check_hidden_bits(name, module.hidden(), family)
        self._dropout = self._dropconnect = self._sparsity_cost = 0.0
        self.start_epoch(0)

    @property
    def chains(self) -> Tensor | None:
        """Visible states of the persistent chains, shape ``(num_chains, V)``; None with CD."""
        return self.phase.chains

    def start_epoch(self, epoch: int) -> None:
        """Take the values of the schedules.

        :param int epoch: epochs that are done.
        """
        config = self.config
        self._dropout = float(value_at(config.dropout, epoch))
        self._dropconnect = float(value_at(config.dropconnect, epoch))
        self._sparsity_cost = float(value_at(config.sparsity_cost, epoch))
        self.phase.num_steps = value_at(config.num_steps, epoch)
        self.phase.dropout = self._dropout
        if isinstance(self.phase, GibbsPhase) and self.phase.fast is not None:
            self.phase.fast.rate = float(value_at(config.fast_rate, epoch))

    @torch.no_grad()
    def __call__(self, batch: Tensor, rows: Tensor | None = None) -> None:
        """Set the gradients for a batch.

        :param Tensor batch: shape ``(rows, V)``, of the module's dtype and device.
        :param Tensor rows: not used.
        """
        dist = self.module(validate_args=False)
        connected, weight = None, self.module.get_parameter("weight")
        if self._dropconnect:
            connected = keep_mask(weight.shape, self._dropconnect, weight, self.generator)
            dist = self._with_weight(dist, weight * connected)
        sweep = GibbsSweep(dist, self.generator)
        theta = sweep.hidden_theta(batch)
        keep = None
        if self._dropout:
            keep = keep_mask(theta.shape, self._dropout, theta, self.generator)
        mean = dist.hidden.natural_mean(theta)
        self.hidden_mean = mean.mean(0)
        data = self._data_statistics(sweep, Statistics(batch, theta, mean, keep))
        v, theta, keep = self._negative_phase(dist, sweep, batch, theta, keep)
        h = dist.hidden.natural_mean(theta)
        if self.config.negative_hidden == "sample":
            h = sweep.draw_hidden(theta)
        model = Statistics(v, theta, h, keep)
        self._set_weight(dist, data, model)
        if connected is not None and weight.grad is not None:
            weight.grad.mul_(connected)
        self._set_units(dist, data, model)
        self._follow(batch, v, h)
        if self._preconditioner is not None:
            self._preconditioner(dist, replace(data, h=mean), model)

    def after_step(self) -> None:
        """Let the hidden offset of a centred module follow the mean of the last batch."""
        follow_hidden_mean(self.module, self.hidden_mean, self.config.offset_rate)

    def after_epoch(self) -> None:
        """Let the negative phase look at the machine after an epoch."""
        self.phase.after_epoch(self.module)

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        tensors = self.phase.state()
        for part in (self.sparsity, self._preconditioner):
            if part is not None:
                tensors = tensors | part.state()
        return tensors

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        device = self.module.get_parameter("weight").device
        state = {name: tensor.to(device) for name, tensor in state.items()}
        self.phase.restore(state)
        for part in (self.sparsity, self._preconditioner):
            if part is not None:
                part.restore(state)

    def _with_weight(self, dist: RBM, weight: Tensor) -> RBM:
        """The machine with another weight."""
        return RBM(
            dist.visible,
            dist.hidden,
            weight,
            visible_offset=dist.visible_offset if self.module.centered else None,
            hidden_offset=dist.hidden_offset if self.module.centered else None,
            validate_args=False,
        )

    def _data_statistics(self, sweep: GibbsSweep, data: Statistics) -> Statistics:
        """What stands for the hidden layer beside the data, the sparsity penalty included."""
        h = data.h
        if self.config.positive_hidden == "sample":
            h = sweep.draw_hidden(data.theta)
        penalty = None
        if self.sparsity is not None:
            penalty = self.sparsity.correction(data.h, self._sparsity_cost)
        return replace(data, h=h, penalty=penalty)

    def _negative_phase(
        self, dist: RBM, sweep: GibbsSweep, batch: Tensor, theta: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.phase(dist, sweep, batch, theta, keep)

    def _follow(self, batch: Tensor, v: Tensor, h: Tensor) -> None:
        """Move the fast weights."""
        if isinstance(self.phase, GibbsPhase) and self.phase.fast is not None:
            assert self.hidden_mean is not None
            visible, hidden = v.mean(0) - batch.mean(0), h.mean(0) - self.hidden_mean
            self.phase.fast.follow(self.module, visible, hidden)

    def _set_weight(self, dist: RBM, data: Statistics, model: Statistics) -> None:
        weight = self.module.get_parameter("weight")
        if weight.grad is None:
            weight.grad = torch.empty_like(weight)
        beta = 0.0
        for sign, side in ((-1.0, data), (1.0, model)):
            v, h = side.v, side.h
            if self.module.centered:
                v, h = v - dist.visible_offset, h - dist.hidden_offset
            h = drop_units(h, side.keep, None)
            h = h if side.penalty is None else h - side.penalty
            torch.addmm(weight.grad, v.T, h, beta=beta, alpha=sign / len(v), out=weight.grad)
            beta = 1.0

    def _set_units(self, dist: RBM, data: Statistics, model: Statistics) -> None:
        visible, hidden = self.module.visible, self.module.hidden
        for layer in (visible, hidden):
            for parameter in layer.parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
        for scale, side in ((-1.0, data), (1.0, model)):
            visible.accumulate_gradient(dist.visible.mean_parameters_gradient(side.v), scale)
            h = drop_units(side.h, side.keep, None)
            h = h if side.penalty is None else h - side.penalty
            gradient = dist.hidden.natural_log_partition_gradient(side.theta, h)
            hidden.accumulate_gradient(gradient, scale)
