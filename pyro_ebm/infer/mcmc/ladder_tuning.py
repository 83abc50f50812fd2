# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Where the levels of a ladder should stand, and how many of them there should be.

A ladder works best if every pair of neighbours exchanges at the same rate [1]. How hard the way between
two levels is adds up along the path to the *communication barrier*

.. math:: \\Lambda(\\beta) = \\int_0^\\beta \\lambda(b)\\, db, \\qquad
          r(\\beta, \\beta + \\delta) = \\delta \\lambda(\\beta) + O(\\delta^3),

where r is the mean probability of rejecting an exchange. A short run measures the rejections, their
sums give the barrier, and levels at equal steps of the barrier have equal rejections. A pair that
rejects half of the time makes the most round trips for a given number of sweeps, which asks for about
:math:`2 \\Lambda + 1` levels; estimators that need neighbours to overlap take a denser ladder.

:func:`tune_ladder` does this for a path by itself; :class:`~pyro_ebm.infer.ParallelTempering` does it in its
warm-up with the same parts.

**References**

[1] *Non-reversible parallel tempering: a scalable highly parallel MCMC scheme*,
Saifuddin Syed, Alexandre Bouchard-Côté, George Deligiannidis, Arnaud Doucet (2022)
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from pyro_ebm.infer.mcmc.ladder_placement import (
    barrier_of,
    check_betas,
    check_target_rejection,
    even_ladder,
    initial_ladder,
)
from pyro_ebm.infer.mcmc.replica_exchange import ReplicaExchange, Replicas
from pyro_ebm.infer.paths import Ladder, Path

__all__ = [
    "MAX_LEVELS",
    "LadderTuner",
    "LadderTuning",
    "RejectionMeter",
    "at_levels",
    "check_betas",
    "tune_ladder",
    "warmup_rounds",
]

#: Levels that tuning starts from if it is to find their number itself.
_FIRST_LEVELS = 8
#: Levels that tuning stops at: a path that needs more is better replaced.
MAX_LEVELS = 100
#: Steps whose rejections are added up at once, so that a step costs nothing.
_PENDING = 64
#: Sweeps of the first round, in which every pair has a few turns.
_FIRST_STEPS = 8


@dataclass(frozen=True)
class LadderTuning:
    r"""A ladder, and what was measured of it.

    :param betas: the levels, increasing from 0 to 1.
    :param Tensor rejection: mean rejection of an exchange between neighbours, shape
        ``(num_levels - 1,)``, float64; the largest over the elements of a batch.
    :param Tensor barrier: communication barrier :math:`\Lambda` from 0 to each level, shape
        ``(num_levels,)``.
    """

    betas: list[float]
    rejection: Tensor
    barrier: Tensor

    @property
    def total_barrier(self) -> float:
        """The barrier of the whole path: twice it, plus one, is the number of levels to take."""
        return float(self.barrier[-1])

    def num_levels(self, target_rejection: float = 0.5, max_levels: int | None = None) -> int:
        """Levels at which neighbours reject that often.

        :param float target_rejection: between 0 and 1.
        :param int max_levels: no more than this.
        """
        check_target_rejection(target_rejection)
        step = barrier_of(torch.tensor(target_rejection, dtype=torch.float64)).item()
        count = 1 + max(1, math.ceil(self.total_barrier / step - 1e-9))
        return count if max_levels is None else min(count, max_levels)

    def ladder(self, num_levels: int) -> list[float]:
        """Another number of levels at equal steps of the barrier."""
        return even_ladder(self.betas, self.barrier, num_levels)


class RejectionMeter:
    """Mean rejections of the pairs of a ladder, added up on the device.

    :param Ladder ladder: the ladder.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._num_pairs = ladder.num_levels - 1
        self._batch_shape = ladder.batch_shape
        # By parity: a pair is offered an exchange at every other step.
        self._pending: list[list[Tensor]] = [[], []]
        self._sums: list[Tensor | float] = [0.0, 0.0]
        self._counts = [0, 0]

    def observe(self, parity: int, probability: Tensor) -> None:
        """Take in the acceptance probabilities of a step, see :meth:`ReplicaExchange.step`.

        :param int parity: of the state before the step.
        """
        self._pending[parity].append(probability)
        self._counts[parity] += 1
        if len(self._pending[parity]) >= _PENDING:
            self._add_up()

    def _add_up(self) -> None:
        for parity, pending in enumerate(self._pending):
            if pending:
                rows = torch.stack(pending).reshape(
                    len(pending), -1, self._num_pairs + 1, *self._batch_shape
                )
                self._sums[parity] = self._sums[parity] + rows.double().mean(1).sum(0)
                pending.clear()

    @property
    def is_complete(self) -> bool:
        """Whether every pair has had its turn."""
        return self._counts[0] > 0 and (self._counts[1] > 0 or self._num_pairs == 1)

    @property
    def rejection(self) -> Tensor:
        """Mean rejection by pair, shape ``(num_levels - 1,) + batch_shape``, NaN before its turn."""
        self._add_up()
        accepted = [s for s in self._sums if isinstance(s, Tensor)]
        shape = (self._num_pairs, *self._batch_shape)
        result = torch.full(shape, math.nan, dtype=torch.float64)
        if accepted:
            result = result.to(accepted[0].device)
        for parity, total in enumerate(self._sums):
            if isinstance(total, Tensor):
                rate = total[parity : self._num_pairs : 2] / self._counts[parity]
                result[parity::2] = 1.0 - rate
        return result

    def tuning(self, betas: Sequence[float]) -> LadderTuning:
        """What was measured of the ladder with these betas. Waits for the device."""
        rejection = self.rejection.reshape(len(betas) - 1, -1).amax(1).cpu().clamp(0.0, 1.0)
        barrier = torch.cat([rejection.new_zeros(1), barrier_of(rejection).cumsum(0)])
        return LadderTuning(list(betas), rejection, barrier)


def tune_ladder(
    path: Path,
    *,
    num_levels: int | None = None,
    num_chains: int = 10,
    num_rounds: int = 6,
    num_steps: int = _FIRST_STEPS,
    target_rejection: float = 0.5,
    max_levels: int = MAX_LEVELS,
) -> LadderTuning:
    r"""Place the levels of a ladder so that all neighbours exchange equally often.

    Rounds of a replica exchange double in length; after each the levels are set anew. A last round, as
    long as the one before, measures the ladder that is returned. Its levels are exact for any
    placement: what is tuned is only speed.

    :param Path path: the path; its random numbers come from its own generator.
    :param int num_levels: levels, at least 2; as many as ``target_rejection`` asks for if None.
    :param int num_chains: independent sets of replicas.
    :param int num_rounds: rounds of tuning, at least 1.
    :param int num_steps: sweeps of the first round, at least 4.
    :param float target_rejection: rejection of neighbours that decides how many levels there are: 0.5 is
        best for sampling, 0.2 for estimators that compare neighbours.
    :param int max_levels: no more levels than this.
    :returns: the ladder, its rejections and barrier. With a batch shape it is one ladder for all
        elements, placed by the largest rejection of each pair.
    :raises ValueError: for impossible numbers.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import tune_ladder
    >>> from pyro_ebm.infer.paths import GeometricPath, base_unit
    >>> rbm = BernoulliRBM(torch.ones(6, 4), -2 * torch.ones(6), -3 * torch.ones(4))
    >>> tuning = tune_ladder(GeometricPath(rbm, base_unit(rbm, "uniform")), num_levels=4)
    >>> tuning.betas[0], tuning.betas[-1], len(tuning.betas)
    (0.0, 1.0, 4)
    """
    _check_numbers(num_levels, num_chains, num_rounds, num_steps, max_levels)
    tuner = LadderTuner(
        path, num_levels=num_levels, target_rejection=target_rejection, max_levels=max_levels
    )
    replicas = tuner.exchange.start(tuner.exchange.ladder.initial(Size((num_chains,))))
    for length in [num_steps * 2**i for i in range(num_rounds)]:
        replicas = tuner.retune(_run_round(tuner, replicas, length))
    _run_round(tuner, replicas, length)
    return tuner.tuning()


def _run_round(tuner: "LadderTuner", replicas: Replicas, num_steps: int) -> Replicas:
    """A round; its first quarter, in which the levels settle, is not counted."""
    for step in range(num_steps):
        if step == num_steps // 4:
            tuner.forget()
        replicas, _ = tuner.step(replicas)
    return replicas


class LadderTuner:
    """A replica exchange whose ladder can be set anew from the rejections that it has seen.

    :param Path path: the path.
    :param betas: the levels to start with; at equal steps of beta if None.
    :param int num_levels: levels after tuning; as many as the rejection asks for if None.
    :param float target_rejection: that rejection, see :func:`tune_ladder`.
    :param int max_levels: no more levels than this.
    """

    def __init__(
        self,
        path: Path,
        *,
        betas: Sequence[float] | None = None,
        num_levels: int | None = None,
        target_rejection: float = 0.5,
        max_levels: int = MAX_LEVELS,
    ) -> None:
        check_target_rejection(target_rejection)
        self._path = path
        self._num_levels = num_levels
        self._target_rejection = target_rejection
        self._max_levels = max_levels
        if betas is None:
            betas = initial_ladder(num_levels or min(_FIRST_LEVELS, max_levels))
        self._set(betas)

    def _set(self, betas: Sequence[float]) -> None:
        self.betas = list(betas)
        self.exchange = ReplicaExchange(self._path.ladder(self.betas))
        self.forget()

    def forget(self) -> None:
        """Count rejections from here on."""
        self.meter = RejectionMeter(self.exchange.ladder)

    def step(self, replicas: Replicas) -> tuple[Replicas, Tensor]:
        """A step of the exchange, whose rejections are counted."""
        parity = replicas.parity
        replicas, probability = self.exchange.step(replicas)
        self.meter.observe(parity, probability)
        return replicas, probability

    def tuning(self) -> LadderTuning:
        """What was measured of the present ladder. Waits for the device."""
        return self.meter.tuning(self.betas)

    def retune(self, replicas: Replicas) -> Replicas:
        """Set the ladder anew, unless some pair had no turn yet.

        :returns: replicas at the new levels, each a copy of the one at the nearest old level, and
            numbered anew.
        """
        if not self.meter.is_complete:
            return replicas
        tuning, before = self.tuning(), self.betas
        count = self._num_levels or tuning.num_levels(self._target_rejection, self._max_levels)
        self._set(tuning.ladder(count))
        states = at_levels(replicas.v, self.exchange.ladder, before, self.betas)
        return self.exchange.start(states)


def warmup_rounds(warmup_steps: int) -> list[tuple[int, int]]:
    """Rounds that double in length and end at three quarters of a warm-up, whose last quarter is
    for the replicas to settle at the final ladder.

    :returns: by round the steps after which to begin counting and to set the ladder anew.
    """
    ends = [warmup_steps * 3 // 4 >> halving for halving in reversed(range(16))]
    ends = [0, *(end for end in ends if end >= _FIRST_STEPS)]
    return [(start + (end - start) // 4, end) for start, end in itertools.pairwise(ends)]


def at_levels(v: Tensor, ladder: Ladder, before: Sequence[float], after: Sequence[float]) -> Tensor:
    """States of the levels of a new ladder: those of the nearest levels of the old one.

    :param Tensor v: states by level of the old ladder.
    :param Ladder ladder: the new one.
    """
    old, new = (torch.tensor(list(betas), dtype=torch.float64) for betas in (before, after))
    nearest = (new.unsqueeze(1) - old).abs().argmin(1).to(v.device)
    return v.index_select(v.dim() - 2 - len(ladder.batch_shape), nearest)


def _check_numbers(
    num_levels: int | None, num_chains: int, num_rounds: int, num_steps: int, max_levels: int
) -> None:
    for name, value, least in (
        ("num_levels", num_levels, 2),
        ("num_chains", num_chains, 1),
        ("num_rounds", num_rounds, 1),
        ("num_steps", num_steps, 4),
        ("max_levels", max_levels, 2),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
