# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The gradient of a deep machine: mean field beside the data, persistent chains beside the model."""

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import DBM, RBM, GibbsSweep, MeanField
from pyro_ebm.nn.unit_parameters import UnitParameters
from pyro_ebm.ops.layers import alternate
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.negative_phase import GibbsPhase
from pyro_ebm.training.offsets import follow_hidden_means
from pyro_ebm.training.regularizers import Sparsity, layer_option
from pyro_ebm.training.replica_phase import ReplicaPhase
from pyro_ebm.training.schedules import value_at

__all__ = ["DeepGradient"]


class DeepGradient:
    r"""Writes the gradient of the negative variational bound to a module's ``.grad``.

    .. math::
        -\frac{\partial \mathcal{L}}{\partial W_l} =
            -\langle (\mu_{l-1} - o_{l-1}) (\mu_l - o_l)^\top \rangle_{data}
            + \langle (x_{l-1} - o_{l-1}) (x_l - o_l)^\top \rangle_{model}

    with :math:`\mu_0 = v` and :math:`\mu_l` the means of the mean field q given v, found anew for
    every batch; see [1]. The model's average is over chains of block Gibbs between the even and the odd
    layers, or replicas, with the odd layers at their exact means given the even ones. Where q has converged
    the bound is stationary in it, and this is its whole gradient. A sparsity penalty of a layer is
    differentiated with the layers beside it held.

    **References**

    [1] *Deep Boltzmann machines*, Ruslan Salakhutdinov, Geoffrey Hinton (2009), algorithm 1

    :param module: the module.
    :param TrainerConfig config: options of the run.
    :param torch.Generator generator: the source of random bits.
    :raises ValueError: for options that the module cannot have.
    """

    def __init__(
        self, module: nn.DBM, config: TrainerConfig, generator: Generator | None = None
    ) -> None:
        self.module = module
        self.config = config
        self.generator = generator
        self._layers = [layer for layer in module.layers if isinstance(layer, UnitParameters)]
        num_chains = config.num_chains or (config.batch_size if config.persistent else None)
        kind = GibbsPhase if config.negative_phase == "gibbs" else ReplicaPhase
        self.phase: GibbsPhase | ReplicaPhase = kind(num_chains, config, generator)
        #: By hidden layer, the lowest first; None where a layer has no such penalty.
        self.sparsity: list[Sparsity | None] = [
            self._make_sparsity(number) for number in range(1, module.depth + 1)
        ]
        self._costs = [0.0] * module.depth
        # Of the machine between the even and the odd layers, written at every update.
        sides = [sum(module.sizes[side::2]) for side in (0, 1)]
        self._weight = module.weights[0].new_zeros(sides)
        #: Means of the hidden layers of the rows of the last batch.
        self.hidden_means: tuple[Tensor, ...] | None = None
        #: Updates of the mean field of the rows of the last batch, shape ``(rows,)``.
        self.mean_field_updates: Tensor | None = None
        self.start_epoch(0)

    def _make_sparsity(self, number: int) -> Sparsity | None:
        config = self.config
        if not layer_option(config, "sparsity_cost", number):
            return None
        target = layer_option(config, "sparsity_target", number)
        family = self._layers[number].family
        return Sparsity(target, config.sparsity_damping, family)

    @property
    def chains(self) -> Tensor | None:
        """States of the even layers of the persistent chains, the visible one first, one after the other:
        shape ``(num_chains, V + H_2 + ...)``; None with CD."""
        return self.phase.chains

    def start_epoch(self, epoch: int) -> None:
        """Take the values of the schedules.

        :param int epoch: epochs that are done.
        """
        self.phase.num_steps = value_at(self.config.num_steps, epoch)
        self._costs = [
            float(value_at(layer_option(self.config, "sparsity_cost", number), epoch))
            for number in range(1, self.module.depth + 1)
        ]

    @torch.no_grad()
    def __call__(self, batch: Tensor, rows: Tensor | None = None) -> None:
        """Set the gradients for a batch.

        :param Tensor batch: shape ``(rows, V)``, of the module's dtype and device.
        :param Tensor rows: not used.
        """
        dist = self.module(validate_args=False)
        found = dist.mean_field(
            batch,
            max_updates=self.config.mean_field_updates,
            tolerance=self.config.mean_field_tolerance,
        )
        self.mean_field_updates = found.num_updates
        self.hidden_means = tuple(mean.mean(0) for mean in found.means)
        machine = dist.bipartite(out=self._weight)
        sweep = GibbsSweep(machine, self.generator)
        even, theta = self._negative_states(dist, machine, sweep, batch, found)
        odd = machine.hidden.natural_mean(theta)
        model = alternate(dist.split_even(even), dist.split_odd(odd))
        data = [batch, *found.means]
        penalties = self._penalties(found.means)
        self._set_weights(dist, data, model, penalties)
        self._set_units(dist, data, found.thetas, model, dist.split_odd(theta), penalties)

    def _negative_states(
        self, dist: DBM, machine: RBM, sweep: GibbsSweep, batch: Tensor, found: MeanField
    ) -> tuple[Tensor, Tensor]:
        """Even layers of the model's states, and natural parameters of the odd ones."""
        if self.phase.reads_rows:
            states = dist.draw_even(batch, found, generator=self.generator)
        else:
            # Only their number and size are read.
            states = batch.new_zeros(()).expand(len(batch), machine.visible.size)
        # Chains that start elsewhere do not read the natural parameters either.
        from_rows = self.phase.reads_rows and not self.config.persistent
        theta = sweep.hidden_theta(states) if from_rows else states
        even, theta, _ = self.phase(machine, sweep, states, theta, None)
        return even, theta

    def _penalties(self, means: tuple[Tensor, ...]) -> list[Tensor | None]:
        """What sparsity subtracts from the means of all layers, the visible one first."""
        found: list[Tensor | None] = [None]
        for mean, sparsity, cost in zip(means, self.sparsity, self._costs, strict=True):
            found.append(None if sparsity is None else sparsity.correction(mean, cost))
        return found

    def _set_weights(
        self,
        dist: DBM,
        data: list[Tensor],
        model: list[Tensor],
        penalties: list[Tensor | None],
    ) -> None:
        sides = []
        for states in (data, model):
            if self.module.centered:
                states = [x - o for x, o in zip(states, dist.offsets, strict=True)]
            sides.append(states)
        for number, weight in enumerate(self.module.weights):
            if weight.grad is None:
                weight.grad = torch.empty_like(weight)
            (below, above), penalty = sides[0][number : number + 2], penalties[number + 1]
            penalized = above if penalty is None else above - penalty
            terms = [(-1.0, below, penalized), (1.0, sides[1][number], sides[1][number + 1])]
            if (penalty := penalties[number]) is not None:
                terms.append((1.0, penalty, above))
            beta = 0.0
            for sign, lower, upper in terms:
                alpha = sign / len(lower)
                torch.addmm(weight.grad, lower.T, upper, beta=beta, alpha=alpha, out=weight.grad)
                beta = 1.0

    def _set_units(
        self,
        dist: DBM,
        data: list[Tensor],
        data_thetas: tuple[Tensor, ...],
        model: list[Tensor],
        model_thetas: tuple[Tensor, ...],
        penalties: list[Tensor | None],
    ) -> None:
        for parameter in (p for layer in self._layers for p in layer.parameters()):
            if parameter.grad is not None:
                parameter.grad.zero_()
        for number, (unit, layer) in enumerate(zip(dist.units, self._layers, strict=True)):
            if number == 0:
                gradient = unit.mean_parameters_gradient(data[0])
            else:
                theta, mean, penalty = data_thetas[number - 1], data[number], penalties[number]
                mean = mean if penalty is None else mean - penalty
                gradient = unit.natural_log_partition_gradient(theta, mean)
            layer.accumulate_gradient(gradient, -1.0)
            if number % 2:
                theta = model_thetas[number // 2]
                gradient = unit.natural_log_partition_gradient(theta, model[number])
            else:
                gradient = unit.mean_parameters_gradient(model[number])
            layer.accumulate_gradient(gradient, 1.0)

    def after_step(self) -> None:
        """Let the hidden offsets of a centred module follow the means of the last batch."""
        follow_hidden_means(self.module, self.hidden_means, self.config.offset_rate)

    def after_epoch(self) -> None:
        """Let the negative phase look at the machine after an epoch."""
        self.phase.after_epoch(lambda **options: self.module(**options).bipartite())

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        tensors = self.phase.state()
        for number, sparsity in enumerate(self.sparsity):
            if sparsity is not None:
                tensors |= {f"layer{number + 1}.{n}": t for n, t in sparsity.state().items()}
        return tensors

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        device = self.module.weights[0].device
        state = {name: tensor.to(device) for name, tensor in state.items()}
        self.phase.restore(state)
        for number, sparsity in enumerate(self.sparsity):
            prefix = f"layer{number + 1}."
            if sparsity is not None:
                own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
                sparsity.restore(own)
