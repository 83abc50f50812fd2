# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Replicas at the levels of a ladder: sweeps, and exchanges between neighbours.

The engine under :class:`~pyro_ebm.infer.ParallelTempering` and under the estimates of log Z that read
tempered chains. It knows no driver and tunes nothing.
"""

from dataclasses import dataclass

import torch
from torch import Size, Tensor

from pyro_ebm.infer.paths import Ladder

__all__ = ["ReplicaExchange", "Replicas", "RoundTrips"]

#: Ends of a ladder.
_BOTTOM, _TOP = 1, 2
#: Steps whose round trips are counted at once.
_HISTORY = 64


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
    distribution, so that each level keeps its own and levels stay independent of each other.

    **References**

    [1] *Non-reversible parallel tempering: a scalable highly parallel MCMC scheme*,
    Saifuddin Syed, Alexandre Bouchard-Côté, George Deligiannidis, Arnaud Doucet (2022)

    :param Ladder ladder: the levels.
    :param int num_sweeps: block Gibbs sweeps of every level before each exchange.
    """

    def __init__(self, ladder: Ladder, num_sweeps: int = 1) -> None:
        self.ladder = ladder
        self.num_sweeps = num_sweeps
        self._pairings: dict[tuple[int, Size, torch.device], _Pairing] = {}

    def start(self, v: Tensor, identity: Tensor | None = None, parity: int = 0) -> Replicas:
        """A state from visible states of every level; replicas are numbered by level if new."""
        ladder = self.ladder
        if identity is None:
            numbers = torch.arange(ladder.num_levels, device=v.device)
            lift = (1,) * len(ladder.batch_shape)
            identity = numbers.view(-1, *lift).expand(v.shape[:-1]).contiguous()
        return Replicas(v, ladder.fields(v), identity, parity)

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
        pairing = self._pairing(replicas)
        log_ratio, exchanged_fields = ladder.swap_log_ratio(v, fields, pairing.partner)
        probability = log_ratio.exp().clamp_(max=1.0)
        noise = torch.empty_like(probability).uniform_(generator=ladder.generator)
        # One number decides for both members of a pair. A level without partner exchanges with
        # itself, which changes nothing.
        accept = noise.index_select(ladder.level_axis, pairing.leader) < probability
        source = torch.where(accept, pairing.partner_rows, pairing.rows).view(-1)
        if exchanged_fields is None:
            fields = _rows(fields, source)
        else:
            fields = torch.where(accept.unsqueeze(-1), exchanged_fields, fields)
        identity = replicas.identity.reshape(-1).index_select(0, source).view(accept.shape)
        return Replicas(_rows(v, source), fields, identity, 1 - replicas.parity), probability

    def _pairing(self, replicas: Replicas) -> "_Pairing":
        identity = replicas.identity
        key = replicas.parity, identity.shape, identity.device
        if key not in self._pairings:
            self._pairings[key] = _pair_up(*key, self.ladder.level_axis)
        return self._pairings[key]


@dataclass(frozen=True)
class _Pairing:
    """The pairs of one parity: partner of each level (itself for one without), the lower level of its
    pair, and the rows of flattened states that are its own and its partner's."""

    partner: Tensor
    leader: Tensor
    rows: Tensor
    partner_rows: Tensor


def _pair_up(parity: int, shape: Size, device: torch.device, level_axis: int) -> _Pairing:
    level = torch.arange(shape[level_axis], device=device)
    partner = torch.where(level % 2 == parity, level + 1, level - 1)
    alone = (partner < 0) | (partner >= len(level))
    partner = torch.where(alone, level, partner)
    rows = torch.arange(shape.numel(), device=device).view(shape)
    partner_rows = rows.index_select(level_axis, partner)
    return _Pairing(partner, torch.minimum(level, partner), rows, partner_rows)


def _rows(x: Tensor, source: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).index_select(0, source).view(x.shape)


class RoundTrips:
    """Counts the journeys of every replica from level 0 to the top and back.

    A replica that comes to the top after it was at level 0 is on its way down; when it is at level 0
    again it has made a round trip. Steps are taken in by the dozen, so that a step costs nothing, and
    without waiting for the device.

    :param Replicas replicas: the state at which counting starts.
    :param int level_axis: axis of the levels, as in :attr:`Ladder.level_axis`.
    """

    def __init__(self, replicas: Replicas, level_axis: int) -> None:
        self._axis = level_axis
        # By replica, the end of the ladder where it was last; 0 before it was at level 0.
        self._last = torch.zeros_like(replicas.identity)
        self._counts = torch.zeros_like(replicas.identity)
        self._history = [replicas.identity]

    @property
    def counts(self) -> Tensor:
        """Round trips by replica, shape ``chain_shape + (num_levels,) + batch_shape``."""
        self._take_in()
        return self._counts

    def observe(self, replicas: Replicas) -> None:
        """Take in the state after a step."""
        self._history.append(replicas.identity)
        if len(self._history) >= _HISTORY:
            self._take_in()

    @torch.no_grad()
    def _take_in(self) -> None:
        if not self._history:
            return
        identity = torch.stack(self._history)
        self._history = []
        axis, top = self._axis, identity.shape[self._axis] - 1
        # By step and replica, the end of the ladder where it is; first of all, where it was before.
        ends = torch.zeros_like(identity)
        ends.scatter_(axis, identity.narrow(axis, 0, 1), _BOTTOM)
        ends.scatter_(axis, identity.narrow(axis, top, 1), _TOP)
        ends = torch.cat([self._last.unsqueeze(0), ends])
        # The top counts only after level 0.
        ends = torch.where((ends == _BOTTOM).cummax(0).values | (self._last > 0), ends, 0)
        step = torch.arange(len(ends), device=ends.device).view(-1, *(1,) * (ends.dim() - 1))
        latest = torch.where(ends > 0, step, 0).cummax(0).values
        ends = ends.gather(0, latest)
        self._counts += ((ends[1:] == _BOTTOM) & (ends[:-1] == _TOP)).sum(0)
        self._last = ends[-1]
