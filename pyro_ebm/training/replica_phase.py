# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Negative states from replicas of an RBM at several levels of a path."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.infer import ParallelTempering
from pyro_ebm.infer.contrastive.negative import move_chains
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.negative_phase import some_rows
from pyro_ebm.training.schedules import value_at
from pyro_ebm.training.trajectory import Trajectory

__all__ = ["ReplicaPhase"]


class ReplicaPhase:
    """Negative states from replicas that exchange their states after every sweep.

    With ``negative_phase="tempering"`` these are at temperatures, from a layer without couplings (for a
    centred module with finitely many states one whose means are the visible offset, the means of the
    data) to the machine; with "trajectory" at earlier machines of the run, see
    :class:`~pyro_ebm.training.trajectory.Trajectory`. An update costs about as much as block Gibbs with
    ``num_replicas`` times as many chains, and half as much again with "trajectory".

    :param int num_chains: chains, each with ``num_replicas`` replicas.
    :param TrainerConfig config: ``negative_phase``, ``num_replicas`` and ``persistent_start``.
    :param torch.Generator generator: the source of random bits.
    :raises ValueError: for options of chains of block Gibbs.
    """

    def __init__(
        self, num_chains: int | None, config: TrainerConfig, generator: Generator | None
    ) -> None:
        for name, default in (
            ("chain_hidden", "sample"),
            ("chain_visible", "sample"),
            ("dropout", 0.0),
        ):
            if getattr(config, name) != default:
                raise ValueError(
                    f"{name} is an option of block Gibbs, not of negative_phase="
                    f"{config.negative_phase!r}"
                )
        self.num_chains = num_chains
        self.generator = generator
        self.num_steps: int = value_at(config.num_steps, 0)
        self.dropout = 0.0
        self.num_replicas = config.num_replicas
        self._from_data = config.persistent_start == "data"
        #: Visible states of the machine itself, shape ``(num_chains, V)``.
        self.chains: Tensor | None = None
        self._rest: dict[str, Tensor] = {}
        self._trajectory: Trajectory | None = None
        if config.negative_phase == "trajectory":
            self._trajectory = Trajectory(config.num_replicas, generator)

    @property
    def reads_rows(self) -> bool:
        """Whether the next states start at the rows of the batch."""
        return self.chains is None and self._from_data

    def __call__(
        self, dist: RBM, sweep: GibbsSweep, batch: Tensor, theta: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """See :class:`~pyro_ebm.training.negative_phase.GibbsPhase`."""
        if self.chains is None:
            count = self.num_chains or len(batch)
            if self._from_data:
                self.chains = some_rows(batch, count, self.generator)
            else:
                self.chains = sweep.initial_visible(torch.Size((count, batch.shape[1])))
        if self._trajectory is not None:
            chains = self._trajectory.move(dist, self.chains, self.num_steps)
        else:
            chains, self._rest = move_chains(
                dist.detach(), self.chains, self.num_steps, self._kernel, self._rest
            )
        self.chains = chains
        return chains, sweep.hidden_theta(chains), None

    def _kernel(self, dist: RBM) -> ParallelTempering:
        # The means of the data, where they are known: a shorter way than from uniform bits.
        finite = dist.visible.num_states is not None
        base = dist._visible_offset if finite else None
        return ParallelTempering(
            dist, self.num_replicas, base=base, adapt=False, generator=self.generator
        )

    def after_epoch(self, module: Callable[..., RBM]) -> None:
        """Let a trajectory look at the machine.

        :param module: makes it.
        """
        if self._trajectory is not None:
            self._trajectory.follow(module(validate_args=False))

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        tensors = {} if self.chains is None else {"chains": self.chains}
        if self._trajectory is not None:
            tensors |= self._trajectory.state()
        return tensors | {f"kernel.{name}": value for name, value in self._rest.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        self.chains = state.get("chains")
        if self._trajectory is not None:
            self._trajectory.restore(state)
        self._rest = {
            name.removeprefix("kernel."): value
            for name, value in state.items()
            if name.startswith("kernel.")
        }
