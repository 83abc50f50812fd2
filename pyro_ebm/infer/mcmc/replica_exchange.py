# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Replicas at the levels of a ladder: sweeps, and exchanges between neighbours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ebm.infer.paths import Ladder

__all__ = ["ReplicaExchange", "Replicas"]


@dataclass(frozen=True)
class Replicas:
    """The state of a replica exchange.

    :param Tensor v: visible states by level, shape ``chain_shape + (num_levels,) + batch_shape + (V,)``.
    :param Tensor fields: their fields at their levels.
    :param Tensor identity: which replica is at each level, ``long``, shape of ``v`` without the last axis. An
        exchange carries the identity along with the state, so that it tells where a state has been.
    :param int parity: which pairs exchange next: 0 for (0, 1), (2, 3), ...; 1 for (1, 2), (3, 4), ...
    """

    v: Tensor
    fields: Tensor
    identity: Tensor
    parity: int


class ReplicaExchange:
    r"""Non-reversible parallel tempering: sweeps at all levels, then exchanges between neighbours.

    Even and odd pairs take turns (deterministic even-odd scheme), which lets a replica drift through
    the ladder instead of diffusing [1]. Every exchange is a Metropolis step of the product
    distribution, so that each level keeps its own.

    **References**

    [1] *Non-reversible parallel tempering: a scalable highly parallel MCMC scheme*,
    Saifuddin Syed, Alexandre Bouchard-Côté, George Deligiannidis, Arnaud Doucet (2022)

    :param Ladder ladder: the levels.
    :param int num_sweeps: block Gibbs sweeps of every level before each exchange.
    """

    def __init__(self, ladder: Ladder, num_sweeps: int = 1) -> None:
        self.ladder = ladder
        self.num_sweeps = num_sweeps
        self._partners: list[tuple[Tensor, Tensor]] = []

    def start(self, v: Tensor, identity: Tensor | None = None, parity: int = 0) -> Replicas:
        """A state from visible states of every level; replicas are numbered by level if new."""
        ladder = self.ladder
        if identity is None:
            numbers = torch.arange(ladder.num_levels, device=v.device)
            lift = (1,) * len(ladder.batch_shape)
            identity = numbers.view(-1, *lift).expand(v.shape[:-1]).contiguous()
        return Replicas(v, ladder.fields(v), identity, parity)

    def partners(self, parity: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Level that each level exchanges with, and the lower level of its pair."""
        if not self._partners:
            for odd in (0, 1):
                level = torch.arange(self.ladder.num_levels, device=device)
                partner = torch.where(level % 2 == odd, level + 1, level - 1)
                alone = (partner < 0) | (partner >= self.ladder.num_levels)
                partner = torch.where(alone, level, partner)
                self._partners.append((partner, torch.minimum(level, partner)))
        return self._partners[parity]

    @torch.no_grad()
    def step(self, replicas: Replicas) -> tuple[Replicas, Tensor]:
        """Sweep every level, then offer exchanges to the pairs whose turn it is.

        :returns: the new state, and the acceptance probability of the exchange offered to each level,
            shape of ``identity``: the same for both members of a pair, 1 for a level without partner.
        """
        v, fields = replicas.v, replicas.fields
        for _ in range(self.num_sweeps):
            v, fields = self.ladder.sweep(fields)
        return self.swap(Replicas(v, fields, replicas.identity, replicas.parity))

    @torch.no_grad()
    def swap(self, replicas: Replicas) -> tuple[Replicas, Tensor]:
        """Offer exchanges to the pairs whose turn it is, see :meth:`step`."""
        ladder, v, fields = self.ladder, replicas.v, replicas.fields
        partner, leader = self.partners(replicas.parity, v.device)
        log_ratio, exchanged_fields = ladder.swap_log_ratio(v, fields, partner)
        probability = log_ratio.exp().clamp_(max=1.0)
        noise = torch.empty_like(probability).uniform_(generator=ladder.generator)
        # One number decides for both members of a pair.
        accept = noise.index_select(ladder.level_axis, leader) < probability
        accept &= _lift(partner != leader.new_tensor(range(ladder.num_levels)), ladder)
        v, fields = ladder.exchange(v, fields, exchanged_fields, accept, partner)
        identity = ladder.take(replicas.identity.unsqueeze(-1), accept, partner).squeeze(-1)
        return Replicas(v, fields, identity, 1 - replicas.parity), probability


def _lift(levels: Tensor, ladder: Ladder) -> Tensor:
    return levels.view(-1, *(1,) * len(ladder.batch_shape))
