# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Chains of an RBM's model side during training: block Gibbs, and what it is varied by."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.fast_weights import FastWeights
from pyro_ebm.training.regularizers import keep_mask
from pyro_ebm.training.schedules import value_at

__all__ = ["GibbsPhase", "drop_units", "some_rows"]


def drop_units(h: Tensor, keep: Tensor | None, offset: Tensor | None) -> Tensor:
    """Hidden states as the weights see them where some units are left out.

    A unit without its couplings acts like one at its offset, which is zero if there is none.

    :param Tensor h: states, shape ``(rows, H)``.
    :param Tensor keep: ones where a unit stays, zeros elsewhere; all stay if None.
    :param Tensor offset: hidden offsets, shape ``(H,)``.
    """
    if keep is None:
        return h
    return h * keep if offset is None else offset + (h - offset) * keep


def some_rows(batch: Tensor, count: int, generator: Generator | None) -> Tensor:
    """Rows in random order, none twice before all of them were taken."""
    order = torch.randperm(len(batch), device=batch.device, generator=generator)
    return batch[order[torch.arange(count, device=batch.device) % len(batch)]]


class GibbsPhase:
    """Negative states by block Gibbs: CD, PCD, fast PCD, from noise, with means or with dropout.

    :param int num_chains: chains; the rows of the batch if None.
    :param TrainerConfig config: ``persistent``, ``chain_start``, ``persistent_start``, ``chain_hidden``,
        ``chain_visible``, and the fast weights' options.
    :param torch.Generator generator: the source of random bits.
    """

    def __init__(
        self, num_chains: int | None, config: TrainerConfig, generator: Generator | None
    ) -> None:
        self.num_chains = num_chains
        self.generator = generator
        self.persistent = config.persistent
        self.num_steps: int = value_at(config.num_steps, 0)
        self.dropout = 0.0
        #: Visible states of the persistent chains, shape ``(num_chains, V)``.
        self.chains: Tensor | None = None
        self._noise = config.chain_start == "noise"
        self._from_data = config.persistent_start == "data"
        self._hidden_means = config.chain_hidden == "mean"
        self._visible_means = config.chain_visible == "mean"
        #: Which entries the rows have that the chains start at, shape ``(rows, V)``; all if None. One that
        #: is absent is a zero: it exerts nothing on the hidden layer.
        self.present: Tensor | None = None
        self.fast = FastWeights(config.fast_decay) if config.fast_rate else None

    @property
    def reads_rows(self) -> bool:
        """Whether the next states start at the rows of the batch."""
        if self.persistent:
            return self.chains is None and self._from_data
        return not self._noise

    def __call__(
        self, dist: RBM, sweep: GibbsSweep, batch: Tensor, theta: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Negative visible states, natural parameters of their hidden layer, and which units stay.

        :param RBM dist: the machine.
        :param GibbsSweep sweep: the same, prepared.
        :param Tensor batch: rows of data.
        :param Tensor theta: natural parameter of their hidden layer.
        :param Tensor keep: which hidden units of these rows stay, None for all.
        """
        if self.fast is not None:
            sweep = GibbsSweep(self.fast.add_to(dist), self.generator)
        if self.persistent or self._noise:
            theta = sweep.hidden_theta(self._first_states(sweep, batch))
            keep = self._keep(theta)
        elif self.num_chains is not None and self.num_chains != len(batch):
            rows = torch.randint(
                len(batch), (self.num_chains,), device=batch.device, generator=self.generator
            )
            theta, keep = theta[rows], None if keep is None else keep[rows]
        whole = keep is None and self.present is None
        if whole and not self._hidden_means and not self._visible_means:
            v, theta = sweep.run_from_theta(theta, self.num_steps)
        else:
            v, theta = self._run(dist, sweep, theta, keep)
        if self.persistent:
            self.chains = v
        return v, theta, keep

    def _first_states(self, sweep: GibbsSweep, batch: Tensor) -> Tensor:
        if self.chains is not None:
            return self.chains
        count = self.num_chains or len(batch)
        if self.persistent and self._from_data:
            return some_rows(batch, count, self.generator)
        return sweep.initial_visible(torch.Size((count, batch.shape[1])))

    def _keep(self, theta: Tensor) -> Tensor | None:
        if not self.dropout:
            return None
        return keep_mask(theta.shape, self.dropout, theta, self.generator)

    def _run(
        self, dist: RBM, sweep: GibbsSweep, theta: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Sweeps one by one, where not every state is a draw of the whole layer."""
        offset = dist.hidden_offset if keep is not None else None
        v = theta
        for _ in range(self.num_steps):
            h = sweep.hidden_mean(theta) if self._hidden_means else sweep.draw_hidden(theta)
            h = drop_units(h, keep, offset)
            if self._visible_means:
                v = dist.visible.natural_mean(sweep.visible_theta(h))
            else:
                v = sweep.sample_visible(h)
            if self.present is not None:
                v = v * self.present
            theta = sweep.hidden_theta(v)
        return v, theta

    def after_epoch(self, module: Callable[..., RBM]) -> None:
        """Nothing is kept from epoch to epoch but the chains."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        tensors = {} if self.chains is None else {"chains": self.chains}
        return tensors if self.fast is None else tensors | self.fast.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        self.chains = state.get("chains") if self.persistent else None
        if self.fast is not None:
            self.fast.restore(state)
