# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Negative states from replicas of an RBM at several levels of a path."""

import torch
from torch import Generator, Tensor

from pyro_ebm import nn
from pyro_ebm.distributions import RBM, GibbsSweep
from pyro_ebm.infer import ParallelTempering
from pyro_ebm.infer.contrastive.negative import move_chains
from pyro_ebm.training.config import TrainerConfig
from pyro_ebm.training.schedules import value_at

__all__ = ["ReplicaPhase"]


class ReplicaPhase:
    """Negative states by parallel tempering: replicas that exchange their states after every sweep.

    :param int num_chains: chains, each with ``num_replicas`` replicas.
    :param TrainerConfig config: ``num_replicas``.
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
        #: Visible states of the machine itself, shape ``(num_chains, V)``.
        self.chains: Tensor | None = None
        self._rest: dict[str, Tensor] = {}

    def __call__(
        self, dist: RBM, sweep: GibbsSweep, batch: Tensor, theta: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """See :class:`~pyro_ebm.training.negative_phase.GibbsPhase`."""
        if self.chains is None:
            count = self.num_chains or len(batch)
            self.chains = sweep.initial_visible(torch.Size((count, batch.shape[1])))
        chains, self._rest = move_chains(
            dist.detach(), self.chains, self.num_steps, self._kernel, self._rest
        )
        self.chains = chains
        return chains, sweep.hidden_theta(chains), None

    def _kernel(self, dist: RBM) -> ParallelTempering:
        return ParallelTempering(dist, self.num_replicas, adapt=False, generator=self.generator)

    def after_epoch(self, module: nn.RBM) -> None:
        """Nothing is kept from epoch to epoch."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        tensors = {} if self.chains is None else {"chains": self.chains}
        return tensors | {f"kernel.{name}": value for name, value in self._rest.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        self.chains = state.get("chains")
        self._rest = {
            name.removeprefix("kernel."): value
            for name, value in state.items()
            if name.startswith("kernel.")
        }
