# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What metrics look at: a model, rows of data and chains at the end of an epoch."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import DBM, RBM, MeanField
from pyro_ebm.infer.conditional.contexts import evaluating
from pyro_ebm.ops.grouping import RowGroups, group_blocks
from pyro_ebm.training.metrics.step_watch import StepWatch

__all__ = ["ConditionalSnapshot", "DeepSnapshot", "RBMSnapshot", "Snapshot"]

#: Of the mean field that metrics look at: more exact than that of an update.
_MEAN_FIELD_UPDATES = 200
_MEAN_FIELD_TOLERANCE = 1e-3


@dataclass
class Snapshot:
    """The model at the end of an epoch, and rows; what several metrics need is computed once.

    :param rows: states of the visible layer by the name of the split, "train" and "validation", shape
        ``(rows, V)``.
    :param chains: visible states of the persistent chains of an RBM, shape ``(num_chains, V)``, or None.
    :param StepWatch watch: what was seen of the updates of the epoch, None if nothing had to be.
    :param penalties: the costs of the regularisers in this epoch, by name.
    """

    rows: dict[str, Tensor]
    chains: Tensor | None = None
    watch: StepWatch | None = None
    penalties: dict[str, float] = field(default_factory=dict)

    def free_energy(self, split: str) -> Tensor:
        """Free energies of the rows of a split, shape ``(rows,)``."""
        raise NotImplementedError

    def reconstruction_error(self, split: str) -> float:
        """Mean squared difference of a unit to its mean given the mean hidden state."""
        raise NotImplementedError

    def weight_norm(self) -> float:
        """Frobenius norm of the weights."""
        raise NotImplementedError


@dataclass
class RBMSnapshot(Snapshot):
    """The snapshot of an RBM.

    :param module: the module.
    """

    module: nn.RBM = field(kw_only=True)
    _free_energies: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def dist(self) -> RBM:
        """The machine."""
        return self.module().detach()

    def free_energy(self, split: str) -> Tensor:
        """See :meth:`Snapshot.free_energy`; the split may be "chains" too."""
        if split not in self._free_energies:
            rows = self.chains if split == "chains" else self.rows[split]
            assert rows is not None
            self._free_energies[split] = self.dist.free_energy(rows)
        return self._free_energies[split]

    def hidden_mean(self, split: str) -> Tensor:
        """Mean hidden states given the rows of a split, shape ``(rows, H)``."""
        return self.dist.hidden.mean(self.dist.hidden_field(self.rows[split]))

    def reconstruction_error(self, split: str) -> float:
        """See :meth:`Snapshot.reconstruction_error`."""
        mean = self.dist.visible.mean(self.dist.visible_field(self.hidden_mean(split)))
        return (self.rows[split] - mean).square().mean().item()

    def weight_norm(self) -> float:
        """See :meth:`Snapshot.weight_norm`."""
        return self.dist.weight.norm().item()


@dataclass
class DeepSnapshot(Snapshot):
    """The snapshot of a deep machine.

    :param module: the module.
    """

    module: nn.DBM = field(kw_only=True)
    _fields: dict[str, MeanField] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def dist(self) -> DBM:
        """The machine; rows may be means, which mean field takes too."""
        return self.module(validate_args=False).detach()

    def mean_field(self, split: str) -> MeanField:
        """The mean field given the rows of a split, or the visible states of the chains."""
        if split not in self._fields:
            rows = self.chains if split == "chains" else self.rows[split]
            assert rows is not None
            rows = rows[:, : self.dist.event_shape[0]]
            self._fields[split] = self.dist.mean_field(
                rows, max_updates=_MEAN_FIELD_UPDATES, tolerance=_MEAN_FIELD_TOLERANCE
            )
        return self._fields[split]

    def free_energy(self, split: str) -> Tensor:
        """Upper bounds of the free energies by mean field; the split may be "chains" too."""
        return -self.mean_field(split).bound

    def reconstruction_error(self, split: str) -> float:
        """Mean squared difference of a visible unit to its mean given the mean field."""
        first = self.mean_field(split).means[0]
        mean = self.dist.units[0].mean(self.dist.field(0, [first]))
        return (self.rows[split] - mean).square().mean().item()

    def weight_norm(self) -> float:
        """Frobenius norm of all weights together."""
        return torch.stack([weight.norm() for weight in self.dist.weights]).norm().item()


@dataclass
class ConditionalSnapshot(Snapshot):
    """The snapshot of a conditional model in evaluation mode.

    Free energies lack log Z(x): compare them between rows of the same contexts.

    :param module: the model.
    :param contexts: contexts of the rows by split, shape ``(rows, num_context)``.
    """

    module: nn.NeuralBoltzmannMachine = field(kw_only=True)
    contexts: dict[str, Tensor] = field(kw_only=True)
    _tables: dict[str, tuple[Tensor, float, float]] = field(
        default_factory=dict, init=False, repr=False
    )

    def free_energy(self, split: str) -> Tensor:
        """See :meth:`Snapshot.free_energy`; in no particular order."""
        return self._table(split)[0]

    def reconstruction_error(self, split: str) -> float:
        """See :meth:`Snapshot.reconstruction_error`."""
        return self._table(split)[1]

    def weight_norm(self) -> float:
        """Norm of the weights, the mean over the contexts of the training rows."""
        return self._table("train")[2]

    def _table(self, split: str) -> tuple[Tensor, float, float]:
        """Free energies, reconstruction error and norm of the weights: one pass over the contexts."""
        if split in self._tables:
            return self._tables[split]
        module, rows = self.module, self.rows[split]
        contexts, index = torch.unique(self.contexts[split], dim=0, return_inverse=True)
        contexts = contexts.to(module.device, module.dtype)
        energies, errors, norms = [], [], []
        for block in group_blocks(index):
            groups = RowGroups(block.position)
            with evaluating(module):
                own = contexts[block.groups.to(contexts.device)]
                dist = module.condition(own, validate_args=False)
            y = groups.pack(rows[block.rows.to(rows.device)])
            energies.append(groups.unpack(dist.free_energy(y)))
            mean = dist.hidden.mean(dist.hidden_field(y))
            error = (y - dist.visible.mean(dist.visible_field(mean))).square()
            errors.append(groups.unpack(error.mean(-1)))
            norms.append(dist.weight.norm(dim=(-2, -1)).expand(groups.num_groups))
        means = [torch.cat(values).mean().item() for values in (errors, norms)]
        self._tables[split] = (torch.cat(energies), means[0], means[1])
        return self._tables[split]
