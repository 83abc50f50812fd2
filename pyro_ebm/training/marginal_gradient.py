# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The gradient of the likelihood of what is observed of an RBM's rows."""

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM, ClampedSweep
from pyro_ebm.distributions.observed_rows import ObservedRows
from pyro_ebm.infer import exact_log_partition
from pyro_ebm.infer.missing.exact import enumerable, exact_log_density
from pyro_ebm.infer.missing.hidden_posterior import HiddenPosterior
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.exact_gradient import ExactGradient
from pyro_ebm.training.gradient import ContrastiveGradient
from pyro_ebm.training.offsets import follow_hidden_mean
from pyro_ebm.training.schedules import value_at

__all__ = ["MarginalGradient"]

#: Hidden states up to which missing entries are drawn from a table instead of by Gibbs sweeps.
MAX_TABLE = 2**10
#: States up to which the sum over what is missing is exact where log Z is.
MAX_SUM = 2**16
#: Families whose states are whole numbers of one byte.
_BYTES = ("bernoulli", "categorical", "ising")


class MarginalGradient:
    r"""Adds missing entries to the gradient of an RBM: they are summed out,

    .. math::
        -\partial \log p(v_o) = E\bigl[\partial F(v_o, v_m) \mid v_o\bigr] + \partial \log Z .

    Missing entries are drawn given the observed ones at every visit of a row, and the completed rows are
    what another gradient is given; the model's side stays that of the whole machine. A hidden layer of at
    most 2^10 states is drawn from its exact posterior, so that draws are independent of each other; a
    larger one by ``num_steps`` clamped Gibbs sweeps from where the row's last visit left them. With
    ``negative_phase="exact"`` the positive side is an exact sum too, up to 2^16 states, and nothing that is
    drawn has a part in the gradient. What is missing must not depend on the missing values.

    :param inner: the gradient of complete rows.
    :param torch.Generator generator: the source of random bits.
    """

    def __init__(
        self, inner: ContrastiveGradient | ExactGradient, generator: Generator | None = None
    ) -> None:
        self.inner = inner
        self.module: nn.RBM = inner.module
        self.config: TrainerConfig = inner.config
        self.generator = generator
        #: Sweeps a visit.
        self.num_steps: int = value_at(self.config.num_steps, 0)
        #: Complete rows: what was drawn for them last, shape ``(rows, V)``.
        self.completed: Tensor | None = None
        self._observed: Tensor | None = None
        self._hidden_mean: Tensor | None = None

    @property
    def is_restored(self) -> bool:
        """Whether completed rows come from a file, and the data have not been seen."""
        return self.completed is not None and self._observed is None

    @property
    def chains(self) -> Tensor | None:
        """States of the persistent chains, None without."""
        return self.inner.chains

    def start(self, states: Tensor, observed: Tensor) -> None:
        """Take the rows of the data.

        :param Tensor states: complete rows to start from, shape ``(rows, V)``; those of a run that was
            restored are kept, and those of an earlier call with the same mask.
        :param Tensor observed: boolean, shape ``(rows, V)``.
        :raises ValueError: if rows that were restored have another shape.
        """
        restored = self.is_restored
        if restored and self.completed is not None and self.completed.shape != states.shape:
            raise ValueError(
                f"the completed rows have shape {tuple(self.completed.shape)}, the data "
                f"{tuple(states.shape)}"
            )
        same = self._observed is not None and torch.equal(self._observed, observed)
        if not restored and not same:
            small = self.module.visible.family in _BYTES
            self.completed = states.to(torch.int8) if small else states.clone()
        self._observed = observed

    def start_epoch(self, epoch: int) -> None:
        """Take the values of the schedules.

        :param int epoch: epochs that are done.
        """
        self.num_steps = value_at(self.config.num_steps, epoch)
        self.inner.start_epoch(epoch)

    def __call__(self, batch: Tensor, rows: Tensor) -> None:
        """Set the gradients for a batch.

        :param Tensor batch: shape ``(rows, V)``, of the module's dtype and device; read only where
            entries are observed.
        :param Tensor rows: numbers of these rows in the data, on the CPU.
        """
        assert self._observed is not None and self.completed is not None
        rows = rows.to(self._observed.device, non_blocking=True)
        observed = self._observed[rows]
        complete = self._complete(batch, observed, rows)
        self.completed[rows] = complete.to(self.completed.dtype)
        self._hidden_mean = None
        if not isinstance(self.inner, ExactGradient) or not self._set_exact(batch, observed):
            self.inner(complete, rows)
        elif self.module.centered:
            with torch.no_grad():
                dist = self.module(validate_args=False)
                self._hidden_mean = dist.hidden.mean(dist.hidden_field(complete)).mean(0)

    @torch.no_grad()
    def _complete(self, batch: Tensor, observed: Tensor, rows: Tensor) -> Tensor:
        """The rows of a batch with new draws of what is missing."""
        dist: RBM = self.module(validate_args=False)
        states = dist.hidden.num_states
        if states is not None and states <= MAX_TABLE:
            double = dist.to(dtype=torch.float64)
            known = ObservedRows(double, batch, observed, validate=False)
            posterior = HiddenPosterior(double, known)
            h = posterior.sample(posterior.probabilities(), 1, self.generator)[0].to(batch)
            drawn = dist.visible.sample(dist.visible_field(h), self.generator)
            return torch.where(observed, batch, drawn)
        assert self.completed is not None
        known = ObservedRows(dist, batch, observed, validate=False)
        sweep = ClampedSweep.of_rows(dist, known, self.generator)
        return sweep.run(self.completed[rows].to(batch), self.num_steps)

    def _set_exact(self, batch: Tensor, observed: Tensor) -> bool:
        """Set the exact gradient where it can be had, and say whether it could."""
        with torch.enable_grad():
            dist = self.module(validate_args=False)
            if not enumerable(dist, MAX_SUM):
                return False
            double = dist.to(dtype=torch.float64)
            known = ObservedRows(double, batch, observed, validate=False)
            density, _ = exact_log_density(double, known, MAX_SUM)
            if density is None:
                return False
            loss = (exact_log_partition(dist) - density.mean()).to(batch.dtype)
        for parameter in self.module.parameters():
            parameter.grad = None
        loss.backward()
        return True

    def after_step(self) -> None:
        """Let the offsets of a centred module follow."""
        if self._hidden_mean is None:
            self.inner.after_step()
        else:
            follow_hidden_mean(self.module, self._hidden_mean, self.config.offset_rate)

    def after_epoch(self) -> None:
        """Let the negative phase look at the machine after an epoch."""
        self.inner.after_epoch()

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        completed = {} if self.completed is None else {"completed": self.completed}
        return self.inner.state() | completed

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        state = dict(state)
        completed = state.pop("completed")
        self.completed = completed.to(self.module.get_parameter("weight").device)
        self.inner.restore(state)
