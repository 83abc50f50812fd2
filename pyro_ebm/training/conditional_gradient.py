# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The gradient of contrastive divergence of a conditional model, by distinct context."""

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM, ClampedSweep, GibbsSweep
from pyro_ebm.infer import ParallelTempering
from pyro_ebm.infer.conditional.nll import exact_by_reduction
from pyro_ebm.infer.contrastive.negative import move_chains
from pyro_ebm.infer.log_partition.exact import MAX_STATES
from pyro_ebm.ops.grouping import RowGroups, group_blocks
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.schedules import value_at

__all__ = ["ConditionalGradient"]

#: With at most this many contexts all of them take part in every update, so that shapes are fixed and
#: every chain moves at every step.
MAX_FIXED_CONTEXTS = 32
_DEFAULT_CHAINS = 20
#: Places of the rectangle of a batch for every row at most.
_MAX_PADDING = 2


class ConditionalGradient:
    r"""Writes the gradient of the negative log-likelihood of a conditional model to ``.grad``.

    .. math::
        \frac{1}{N} \sum_n \partial F(y_n | x_n) + \sum_u \frac{N_u}{N}\, \partial \log Z(x_u)

    Networks are evaluated and chains are run once a *distinct* context :math:`x_u` of the batch, with
    :math:`N_u` rows, and not once a row. For Gaussian visible units the model's side is written in hidden
    states, :math:`\partial \log Z = -E_h[\partial F_{hidden}(h)]`, where :math:`F_{hidden}` is the free
    energy of the machine with its layers exchanged: chains run without the visible layer, and the
    gradient has less variance for P and W and none at all for :math:`\mu` (that of the hidden bias has
    more).

    :param module: the model.
    :param TrainerConfig config: options of the run.
    :param torch.Generator generator: the source of random bits.
    :raises ValueError: for options that the model cannot have.
    """

    def __init__(
        self, module: nn.NeuralBoltzmannMachine, config: TrainerConfig, generator: Generator
    ) -> None:
        self.module = module
        self.config = config
        self.generator = generator
        gaussian = module.visible_family in ("gaussian", "low-rank-gaussian")
        side = config.negative_side
        #: Whether negatives are hidden states.
        self.in_hidden = gaussian if side == "auto" else side == "hidden"
        #: Sweeps an update.
        self.num_steps: int = value_at(config.num_steps, 0)
        #: States of the persistent chains, shape ``(num_chains, contexts, size)``.
        self.chains: Tensor | None = None
        #: What else the state of tempering consists of.
        self.kernel_state: dict[str, Tensor] = {}
        #: Complete rows, where entries are missing: what was drawn for them last.
        self.completed: Tensor | None = None
        self._observed: Tensor | None = None
        self._contexts: Tensor | None = None
        self._index: Tensor | None = None
        # Which contexts have chains, on the CPU, so that asking costs no wait; None if not known yet.
        self._started: Tensor | None = None
        self._parameters = [p for p in module.parameters() if p.requires_grad]

    def start(self, context: Tensor) -> None:
        """Find the distinct contexts of the data.

        :param Tensor context: shape ``(rows, num_context)``.
        :raises ValueError: if there are chains that belong to other contexts or another layer, or tempering
            would need too many.
        """
        contexts, index = torch.unique(context, dim=0, return_inverse=True)
        count = len(contexts)
        if self.config.negative_phase == "tempering" and count > MAX_FIXED_CONTEXTS:
            raise ValueError(
                f"negative_phase='tempering' takes at most {MAX_FIXED_CONTEXTS} distinct contexts, "
                f"the data have {count}"
            )
        contexts = contexts.to(self.module.device, self.module.dtype)
        if self.chains is not None:
            self._check_chains(contexts)
        self._contexts = contexts
        # Batches are planned on the CPU, so that no step waits for another device.
        self._index = index.cpu()

    def _check_chains(self, contexts: Tensor) -> None:
        """Refuse to go on with chains that belong to other machines."""
        assert self.chains is not None
        _, count, entries = self.chains.shape
        if count != len(contexts):
            raise ValueError(
                f"the chains are those of {count} contexts, the data have {len(contexts)}"
            )
        if self._contexts is not None and not torch.equal(self._contexts, contexts):
            raise ValueError("the chains are those of other contexts than the data have")
        layer = "hidden" if self.in_hidden else "visible"
        size = self.module.num_hidden if self.in_hidden else self.module.num_visible
        if entries != size:
            raise ValueError(
                f"the chains are states of {entries} entries, but the {layer} layer has {size}: "
                "negative_side must stay what it was"
            )

    def complete_from(self, states: Tensor, observed: Tensor) -> None:
        """Let missing entries be drawn given the observed ones.

        :param Tensor states: complete rows to start from, shape ``(rows, V)``; those of a run that was
            restored are kept.
        :param Tensor observed: boolean, shape ``(rows, V)``.
        :raises ValueError: if rows that were restored have another shape.
        """
        if self.completed is None:
            self.completed = states.clone()
        elif self.completed.shape != states.shape:
            raise ValueError(
                f"the completed rows have shape {tuple(self.completed.shape)}, the data "
                f"{tuple(states.shape)}"
            )
        self._observed = observed

    def __call__(self, batch: Tensor, rows: Tensor) -> None:
        """Set the gradients for a batch.

        :param Tensor batch: y, shape ``(rows, V)``, of the module's dtype and device.
        :param Tensor rows: numbers of these rows in the data, on the CPU.
        """
        assert self._contexts is not None and self._index is not None
        index = self._index[rows]
        parts = [torch.arange(len(rows))]
        if self.config.negative_phase != "tempering":  # which takes all contexts at once
            # A batch in which one context dominates is done in parts.
            blocks = list(group_blocks(index, max_padding=_MAX_PADDING, small=0))
            parts = parts if len(blocks) == 1 else [block.rows for block in blocks]
        fixed = len(parts) == 1 and len(self._contexts) <= MAX_FIXED_CONTEXTS
        num_groups = len(self._contexts) if fixed else None
        with torch.enable_grad():
            losses = [
                self._loss(
                    batch if len(parts) == 1 else batch[part.to(batch.device, non_blocking=True)],
                    rows[part],
                    RowGroups(index[part], num_groups),
                )
                for part in parts
            ]
            loss = torch.stack(losses).sum() / len(rows)
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()

    def _loss(self, batch: Tensor, rows: Tensor, plan: RowGroups) -> Tensor:
        """A scalar with the gradient of the sum of the negative log-likelihood over some rows."""
        assert self._contexts is not None
        groups = plan.to(batch.device)
        every = plan.num_groups == len(self._contexts)
        contexts = self._contexts if every else self._contexts[groups.present]
        dist = self.module.condition(contexts, validate_args=False)
        y, mask = groups.pack(batch), groups.mask().to(batch)
        if self.completed is not None and self._observed is not None:
            y = self._complete(dist, y, rows, groups)
        # On the CPU, for what is decided there.
        present = None if every else plan.present
        return (dist.free_energy(y) * mask).sum() + self._log_partition(
            dist, y, mask, groups.counts.to(batch), present, len(rows)
        )

    def start_epoch(self, epoch: int) -> None:
        """Take the values of the schedules.

        :param int epoch: epochs that are done.
        """
        self.num_steps = value_at(self.config.num_steps, epoch)

    def after_step(self) -> None:
        """Nothing moves after an update."""

    def after_epoch(self) -> None:
        """Nothing is kept from epoch to epoch but the chains."""

    @torch.no_grad()
    def _complete(self, dist: RBM, y: Tensor, rows: Tensor, groups: RowGroups) -> Tensor:
        """Rows of a batch with new draws of what is missing."""
        assert self.completed is not None and self._observed is not None
        rows = rows.to(y.device, non_blocking=True)
        # Places without a row count as observed: nothing need be drawn there.
        observed = ~groups.pack(~self._observed[rows])
        sweep = ClampedSweep(dist.detach(), y, observed, self.generator)
        y = sweep.run(groups.pack(self.completed[rows]), self.num_steps)
        self.completed[rows] = groups.unpack(y)
        return y

    # --- the model's side -----------------------------------------------------------------------

    def _log_partition(
        self,
        dist: RBM,
        y: Tensor,
        mask: Tensor,
        counts: Tensor,
        present: Tensor | None,
        num_rows: int,
    ) -> Tensor:
        """A scalar with the gradient of the sum of log Z over rows."""
        if self.config.negative_phase == "exact":
            exact: Tensor = (exact_by_reduction(dist, MAX_STATES) * counts).sum()
            return exact
        side = dist.transpose() if self.in_hidden else dist
        frozen = side.detach()
        if self.config.persistent:
            negatives = self._persistent(frozen, y, mask, present)
            return -(side.free_energy(negatives).mean(0) * counts).sum()
        prior = self.config.chain_start == "prior"
        count = self.config.num_chains
        if count is None and prior:
            # Chains that start at no row need not be as many as the context with most rows has: their
            # number is that of the mean, rounded up.
            count = -(-num_rows // len(counts))
        start = self._start(frozen, y, mask, count)
        weight = mask if count is None else counts / count
        # The start at the hidden layer without its couplings is the first half of a sweep.
        negatives = GibbsSweep(frozen, self.generator).run(start, self.num_steps - prior)
        return -(side.free_energy(negatives) * weight).sum()

    @torch.no_grad()
    def _persistent(self, side: RBM, y: Tensor, mask: Tensor, present: Tensor | None) -> Tensor:
        """States of the chains of the contexts ``present`` (on the CPU; all if None), moved."""
        assert self._contexts is not None
        count = self.config.num_chains or _DEFAULT_CHAINS
        if self.chains is None:
            # NaN marks contexts that have not been met.
            shape = (count, len(self._contexts), side.event_shape[0])
            self.chains = side.weight.new_full(shape, torch.nan)
        if self._started is None:
            self._started = ~self.chains[0, :, 0].isnan().cpu()
        where = slice(None) if present is None else present.to(y.device, non_blocking=True)
        here = slice(None) if present is None else present
        chains = self.chains[:, where]
        if not bool(self._started[here].all()):
            chains = torch.where(chains.isnan(), self._start(side, y, mask, count), chains)
            self._started[here] = True
        chains = self._move(side, chains)
        if present is None:
            self.chains = chains
        else:
            self.chains[:, where] = chains
        return chains

    def _move(self, side: RBM, chains: Tensor) -> Tensor:
        steps = self.num_steps
        if self.config.negative_phase == "gibbs":
            return GibbsSweep(side, self.generator).run(chains, steps)

        def kernel(dist: RBM) -> ParallelTempering:
            return ParallelTempering(
                dist, self.config.num_replicas, adapt=False, generator=self.generator
            )

        chains, self.kernel_state = move_chains(side, chains, steps, kernel, self.kernel_state)
        return chains

    def _some_rows(self, y: Tensor, mask: Tensor, count: int) -> Tensor:
        """``count`` random rows of every context; zeros for a context without rows."""
        have = mask.sum(0).clamp(min=1)
        draw = torch.rand(count, len(have), generator=self.generator, device=y.device)
        index = (draw * have).long()
        return y.gather(0, index.unsqueeze(-1).expand(-1, -1, y.shape[-1]))

    @torch.no_grad()
    def _start(self, side: RBM, y: Tensor, mask: Tensor, count: int | None) -> Tensor:
        """Where chains of every context start: ``count`` of them, or one at every row if None.

        :param Tensor y: the rows, shape ``(depth, contexts, V)``.
        """
        machine = side.transpose() if self.in_hidden else side
        if self.config.chain_start == "data":
            rows = y if count is None else self._some_rows(y, mask, count)
            return (
                GibbsSweep(machine, self.generator).sample_hidden(rows) if self.in_hidden else rows
            )
        shape = (len(y) if count is None else count, y.shape[1], machine.hidden.size)
        theta = machine.hidden.natural_bias.expand(shape)
        h = machine.hidden.natural_sample(theta, self.generator)
        return h if self.in_hidden else GibbsSweep(machine, self.generator).sample_visible(h)

    # --- the state of a run -----------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        contexts = None if self.chains is None else self._contexts
        named = {"chains": self.chains, "contexts": contexts, "completed": self.completed}
        tensors = {name: tensor for name, tensor in named.items() if tensor is not None}
        return tensors | {f"kernel.{name}": value for name, value in self.kernel_state.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        device = self.module.device
        moved = {name: tensor.to(device) for name, tensor in state.items()}
        self.chains = moved.pop("chains", None)
        self._contexts = moved.pop("contexts", None)
        self.completed = moved.pop("completed", None)
        self.kernel_state = {name.removeprefix("kernel."): t for name, t in moved.items()}
        self._started = None
