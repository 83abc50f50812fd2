# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What a tempering kernel tells of its ladder: swap rates, round trips, energies by level."""

import torch
from torch import Tensor

from pyro_ebm.distributions import GibbsSweep
from pyro_ebm.infer.mcmc.ladder_tuning import LadderTuner
from pyro_ebm.infer.mcmc.replica_exchange import Replicas, RoundTrips
from pyro_ebm.infer.mcmc.replica_layout import ReplicaLayout

__all__ = ["TemperingReport"]

#: The energies of all levels cost a product of their own: every so many draws they are looked at.
_ENERGY_EVERY = 50


class TemperingReport:
    """Running numbers of all levels; nothing is stored by draw, and nothing waits for the device.

    :param LadderTuner tuner: the exchange; it counts the rejections itself.
    :param Replicas replicas: the state at which counting starts.
    """

    def __init__(self, tuner: LadderTuner, replicas: Replicas) -> None:
        self._tuner = tuner
        self._level_axis = tuner.exchange.ladder.level_axis
        self._trips = RoundTrips(replicas, self._level_axis)
        levels = replicas.identity.shape[self._level_axis :]
        zeros = torch.zeros(levels, dtype=torch.float64, device=replicas.v.device)
        self._energy, self._squares = zeros, zeros.clone()
        self._num_energies = self._num_draws = 0

    def observe(self, replicas: Replicas) -> None:
        """Take in the state after a step."""
        self._trips.observe(replicas)

    def observe_energies(self, target: GibbsSweep, replicas: Replicas) -> None:
        """Take in the states of a draw, if it is the turn of one.

        :param GibbsSweep target: the machine whose free energy is reported at every level.
        """
        if self._num_draws % _ENERGY_EVERY == 0:
            v = replicas.v
            energy = target.free_energy(v, target.hidden_theta(v)).double()
            rows = energy.reshape(-1, *self._energy.shape)
            self._energy += rows.sum(0)
            self._squares += rows.square().sum(0)
            self._num_energies += len(rows)
        self._num_draws += 1

    def to_dict(self, layout: ReplicaLayout) -> dict[str, Tensor]:
        """All numbers, see :class:`~pyro_ebm.infer.ParallelTempering`.

        :param ReplicaLayout layout: the kernel's, for the numbers of its chains.
        """
        count = max(self._num_energies, 1)
        mean = self._energy / count
        variance = (self._squares / count - mean.square()).clamp(min=0.0)
        return {
            "betas": torch.tensor(self._tuner.betas, dtype=torch.float64),
            "swap_rate": 1.0 - self._tuner.meter.rejection,
            "round_trips": layout.unfold(self._trips.counts.sum(self._level_axis)),
            "energy_mean": mean,
            "energy_std": variance.sqrt(),
        }
