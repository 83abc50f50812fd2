# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What metrics look at: a model, rows of data and chains at the end of an epoch."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import DBM, RBM, MeanField
from pyro_ebm.distributions.units import Unit
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
    :param chains: states of the persistent chains, shape ``(num_chains, V)``, or those of all even layers of
        a deep machine; None without, and for a conditional model.
    :param StepWatch watch: what was seen of the updates of the epoch, None if nothing had to be.
    :param penalties: the costs of the regularisers of the weights in this epoch, by name.
    :param sparsity: cost and target of the sparsity of every hidden layer, the lowest first.
    """

    rows: dict[str, Tensor]
    chains: Tensor | None = None
    watch: StepWatch | None = None
    penalties: dict[str, float] = field(default_factory=dict)
    sparsity: tuple[tuple[float, float], ...] = ()

    @property
    def visible_chains(self) -> Tensor | None:
        """Visible states of the persistent chains, shape ``(num_chains, V)``; None without."""
        return self.chains

    def free_energy(self, split: str) -> Tensor:
        """Free energies of the rows of a split, shape ``(rows,)``."""
        raise NotImplementedError

    def reconstruction_error(self, split: str) -> float:
        """Mean squared difference of a unit to its mean given the mean hidden state."""
        raise NotImplementedError

    def weights(self) -> list[Tensor]:
        """The weights from the lowest to the top, of an RBM or a deep machine."""
        raise NotImplementedError

    def hidden_layers(self) -> list[tuple[Unit, Tensor]]:
        """Hidden layers from the lowest to the top, each with its means given the training rows, shape
        ``(rows, size)``; of an RBM or a deep machine."""
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

    def weights(self) -> list[Tensor]:
        """See :meth:`Snapshot.weights`."""
        return [self.dist.weight]

    def hidden_layers(self) -> list[tuple[Unit, Tensor]]:
        """See :meth:`Snapshot.hidden_layers`."""
        return [(self.dist.hidden, self.hidden_mean("train"))]

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
    :param max_updates: largest number of updates of the mean field of the gradient.
    :param tolerance: its tolerance.
    """

    module: nn.DBM = field(kw_only=True)
    max_updates: int = field(default=_MEAN_FIELD_UPDATES, kw_only=True)
    tolerance: float = field(default=_MEAN_FIELD_TOLERANCE, kw_only=True)
    _fields: dict[str, MeanField] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def dist(self) -> DBM:
        """The machine; rows may be means, which mean field takes too."""
        return self.module(validate_args=False).detach()

    def mean_field(self, split: str) -> MeanField:
        """The mean field given the rows of a split, or the visible states of the chains."""
        if split not in self._fields:
            rows = self.visible_chains if split == "chains" else self.rows[split]
            assert rows is not None
            self._fields[split] = self.dist.mean_field(
                rows, max_updates=_MEAN_FIELD_UPDATES, tolerance=_MEAN_FIELD_TOLERANCE
            )
        return self._fields[split]

    def field_of_updates(self) -> MeanField:
        """The mean field given the training rows as the gradient asks for it."""
        return self.dist.mean_field(
            self.rows["train"], max_updates=self.max_updates, tolerance=self.tolerance
        )

    @property
    def visible_chains(self) -> Tensor | None:
        """See :attr:`Snapshot.visible_chains`."""
        return None if self.chains is None else self.chains[:, : self.module.sizes[0]]

    def even_mean(self) -> Tensor:
        """Means of the even layers over the training rows, one layer after the other."""
        means = [self.rows["train"], *self.mean_field("train").means]
        return torch.cat([mean.mean(0) for mean in means[0::2]])

    def weights(self) -> list[Tensor]:
        """See :meth:`Snapshot.weights`."""
        return list(self.dist.weights)

    def hidden_layers(self) -> list[tuple[Unit, Tensor]]:
        """See :meth:`Snapshot.hidden_layers`; means are those of the mean field."""
        return list(zip(self.dist.units[1:], self.mean_field("train").means, strict=True))

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
