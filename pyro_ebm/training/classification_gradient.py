# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The gradients that train a classification RBM: for the data, for the classes, or for both."""

from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.training.class_fields import ClassFields
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.exact_gradient import ExactGradient
from pyro_ebm.training.gradient import ContrastiveGradient
from pyro_ebm.training.offsets import follow_hidden_mean
from pyro_ebm.training.regularizers import check_hidden_bits
from pyro_ebm.training.schedules import value_at

__all__ = ["ClassificationGradient"]

#: Options of the generative gradient that would change the sense of a sum with another one.
_GENERATIVE_ONLY = {"preconditioner": "none", "dropconnect": 0.0}


class ClassificationGradient:
    r"""Writes the gradient of an objective of a :class:`~pyro_ebm.nn.ClassificationRBM` to ``.grad``.

    For rows (x, y) with a label, by ``config.objective`` [1]:

    - "generative": :math:`-\log p(x, y)`, by the chains of the gradient of an RBM;
    - "discriminative": :math:`-\log p(y | x)`, exact;
    - "hybrid": :math:`-\log p(y | x) - \alpha \log p(x, y)`, with :math:`\alpha` from
      ``config.generative_weight``.

    A row whose label is all zero has none; it counts :math:`-\beta \log p(x)`, with :math:`\beta` from
    ``config.unlabelled_weight``, the label summed out exactly: for any :math:`\hat y` it is
    :math:`-\log p(x) = -\log p(x, \hat y) + \log p(\hat y | x)`, so that a label is drawn, the row
    takes part in the gradient of :math:`\log p(x, y)`, and the exact gradient of the second term takes
    back what the draw did. The sum over the rows of a batch is divided by their number.

    Dropout (``config.dropout``) of the latter two objectives leaves hidden units out of p(y | x) of
    labelled rows; others count :math:`1 / (1 - p)`, so that the full machine is right on average. Chains
    and rows without a label have all units. Penalties of hidden units belong to the generative part and
    have its weight.

    **References**

    [1] *Learning algorithms for the classification restricted Boltzmann machine*, Hugo Larochelle,
    Michael Mandel, Razvan Pascanu, Yoshua Bengio (2012)

    :param module: the machine.
    :param TrainerConfig config: options of the run.
    :param torch.Generator generator: the source of random bits.
    :raises ValueError: for options that the module or the objective cannot have.
    """

    def __init__(
        self,
        module: nn.ClassificationRBM,
        config: TrainerConfig,
        generator: Generator | None = None,
    ) -> None:
        self.module = module
        self.config = config
        self.generator = generator
        generative = config.objective == "generative"
        own = config
        if not generative:
            for name, default in _GENERATIVE_ONLY.items():
                if getattr(config, name) != default:
                    raise ValueError(f"{name} is an option of objective='generative' only")
            if config.objective == "discriminative" and config.sparsity_cost:
                raise ValueError("sparsity_cost has no effect: it is of the generative objective")
            if config.dropout:
                check_hidden_bits("dropout", module.hidden(), module.hidden.family)
            own = replace(config, dropout=0.0)
        #: What writes the gradient of the mean of -log p(x, y).
        self.generative: ContrastiveGradient | ExactGradient = (
            ExactGradient(module, own)
            if config.negative_phase == "exact"
            else ContrastiveGradient(module, own, generator)
        )
        self._class_weight = 0.0 if generative else 1.0
        weights = {"generative": 1.0, "discriminative": 0.0, "hybrid": config.generative_weight}
        self._generative_weight = float(weights[config.objective])
        self._all_labelled: bool | None = None
        self._used_generative = False
        self._hidden_mean: Tensor | None = None
        self.start_epoch(0)

    def start(self, data: Tensor) -> None:
        """Find out whether all rows of the data have labels: batches are then not asked.

        :param Tensor data: joined rows.
        :raises ValueError: if some have none, and dropout of the generative objective would make machines
            of which p(x) is another one.
        """
        self._all_labelled = bool(self.module.split(data)[1].any(-1).all())
        generative = self.config.objective == "generative"
        if (
            generative
            and not self._all_labelled
            and (self.config.dropout or self.config.dropconnect)
        ):
            raise ValueError(
                "dropout and dropconnect of objective='generative' take rows with labels only"
            )

    def start_epoch(self, epoch: int) -> None:
        """Take the values of the schedules.

        :param int epoch: epochs that are done.
        """
        self._dropout = float(value_at(self.config.dropout, epoch)) if self._class_weight else 0.0
        self.generative.start_epoch(epoch)

    @property
    def chains(self) -> Tensor | None:
        """States of the persistent chains, shape ``(num_chains, V)``; None if there are none."""
        return self.generative.chains

    @torch.no_grad()
    def __call__(self, batch: Tensor, rows: Tensor | None = None) -> None:
        """Set the gradients for a batch.

        :param Tensor batch: joined rows, shape ``(rows, V)``, of the module's dtype and device.
        :param Tensor rows: their numbers in the data; handed on where the whole batch is.
        """
        x, labels = self.module.split(batch)
        known = None if self._all_labelled else labels.any(-1, keepdim=True)
        if known is not None and self._all_labelled is None and bool(known.all()):
            known = None
        fields = None
        if self._class_weight or known is not None:
            fields = ClassFields(self.module, x, self._keep(x, known))
        if known is not None:
            assert fields is not None
            labels = torch.where(known, labels, fields.draw(self.generator))
            batch = torch.cat([x, labels], -1)
        self._set_generative(batch, known, rows)
        if fields is not None:
            fields.add_gradient(labels, self._row_weights(batch, known))
            if self.module.centered and not self._used_generative:
                self._hidden_mean = fields.hidden_mean(labels)

    def _keep(self, x: Tensor, known: Tensor | None) -> Tensor | None:
        """Factors of the hidden units in the logits of every row; None for ones."""
        rate = self._dropout
        if not rate:
            return None
        shape = (len(x), self.module.get_parameter("weight").shape[1])
        keep = torch.empty(shape, dtype=x.dtype, device=x.device)
        keep.bernoulli_(1.0 - rate, generator=self.generator).div_(1.0 - rate)
        # log p(x) of a row without a label is that of the full machine.
        return keep if known is None else keep.where(known, torch.ones_like(keep))

    def _row_weights(self, batch: Tensor, known: Tensor | None) -> Tensor:
        """Weight of -log p(y | x) of every row, shape ``(rows, 1)``."""
        weights = batch.new_full((len(batch), 1), self._class_weight / len(batch))
        if known is None:
            return weights
        return weights.where(known, torch.full_like(weights, -self._unlabelled_share(len(batch))))

    def _unlabelled_share(self, num_rows: int) -> float:
        return float(self.config.unlabelled_weight) / num_rows

    # --- the generative part ------------------------------------------------------------------

    def _set_generative(self, batch: Tensor, known: Tensor | None, rows: Tensor | None) -> None:
        """The weighted gradient of -log p(x, y); zero where no row has a weight."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        total: list[Tensor] | None = None
        parts = self._parts(batch, known)
        self._used_generative = bool(parts)
        for part, share in parts:
            self.generative(part, rows if part is batch else None)
            for p in parameters:
                if p.grad is not None and share != 1.0:
                    p.grad.mul_(share)
            if total is not None:
                for p, before in zip(parameters, total, strict=True):
                    assert p.grad is not None
                    p.grad.add_(before)
            elif len(parts) > 1:
                _fill_with_zeros(parameters)
                total = [p.grad.clone() for p in parameters if p.grad is not None]
        if not parts:
            for p in parameters:
                if p.grad is not None:
                    p.grad.zero_()
        _fill_with_zeros(parameters)

    def _parts(self, batch: Tensor, known: Tensor | None) -> list[tuple[Tensor, float]]:
        """Rows of one weight each, with the weight of their mean; rows with labels last, as their mean
        hidden state is what offsets follow."""
        own, other = self._generative_weight, float(self.config.unlabelled_weight)
        if known is None or own == other:
            return [(batch, own)] if own else []
        mask = known.squeeze(-1)
        parts = []
        for rows, weight in ((batch[~mask], other), (batch[mask], own)):
            if weight and len(rows):
                parts.append((rows, weight * len(rows) / len(batch)))
        return parts

    # --- what a run needs ---------------------------------------------------------------------

    def after_step(self) -> None:
        """Let the hidden offset of a centred module follow the mean of the last batch."""
        if self._used_generative:
            self.generative.after_step()
        else:
            follow_hidden_mean(self.module, self._hidden_mean, self.config.offset_rate)

    def after_epoch(self) -> None:
        """Let the negative phase look at the machine after an epoch."""
        self.generative.after_epoch()

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        return self.generative.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        self.generative.restore(state)


def _fill_with_zeros(parameters: list[Any]) -> None:
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
