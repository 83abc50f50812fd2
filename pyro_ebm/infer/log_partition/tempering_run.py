# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A parallel-tempering run that keeps what estimates of log Z need of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

from pyro_ebm.distributions import GibbsSweep
from pyro_ebm.infer.mcmc.replica_exchange import ReplicaExchange, Replicas, RoundTrips
from pyro_ebm.infer.paths import Ladder, Path
from pyro_ebm.infer.paths.geometric import GeometricLadder
from pyro_ebm.ops.chains import effective_sample_size

__all__ = ["TemperingRun", "run_tempering"]

#: Entries of the table of log-densities that a run keeps: 32 MiB in float64. Each entry costs a log-partition
#: function of the hidden layer.
_TABLE_ENTRIES = 2**22
#: Neighbours that exchange less often than this hardly overlap.
_LOW_SWAP_RATE = 0.1
#: Chains whose split R-hat is above this may still remember their start. It is not the 1.01 that single
#: chains are held to: the error bar comes from the spread between chains, however few their effective draws.
_HIGH_R_HAT = 1.2
#: Sweeps of each level on its way up to the start.
_SWEEPS_OF_START = 5


@dataclass(frozen=True)
class TemperingRun:
    """Numbers of the draws of a tempering run, float64. C chains, S draws each, L levels.

    :param betas: the levels.
    :param Tensor log_partition_base: exact log Z of level 0, shape ``batch_shape``.
    :param Tensor up: log-density at the next level less that at the own one, shape
        ``(C, S, L - 1) + batch_shape``, for levels 0 to L - 2.
    :param Tensor down: the same at the level before, for levels 1 to L - 1.
    :param Tensor slopes: derivative by beta at the own level, shape ``(C, S, L) + batch_shape``; None
        where the path is not linear.
    :param Tensor table: log-densities at all levels of a thinned part of the draws, shape
        ``(L, C, S', L) + batch_shape``; None where it was not asked for.
    :param Tensor round_trips: round trips of all replicas of all chains, shape ``batch_shape``.
    :param Tensor states: states of the top level at some of the draws, evenly spread, shape
        ``(C, num_states) + batch_shape + (V,)``; None where none were asked for.
    """

    betas: list[float]
    log_partition_base: Tensor
    up: Tensor
    down: Tensor
    slopes: Tensor | None
    table: Tensor | None
    round_trips: Tensor
    states: Tensor | None

    @property
    def swap_rate(self) -> Tensor:
        """Mean acceptance of exchanges between neighbours, shape ``(L - 1,) + batch_shape``."""
        return (self.up + self.down).exp().clamp(max=1.0).mean((0, 1))

    @property
    def traces(self) -> Tensor:
        """A number of each level whose mixing stands for that of the run, ``(C, S, L) + batch_shape``."""
        if self.slopes is not None:
            return self.slopes
        return torch.cat([self.up[:, :, :1], self.down], 2)

    def r_hat(self) -> Tensor:
        """Split R-hat of the traces, the largest of all levels, shape ``batch_shape``; NaN for fewer
        than 4 draws."""
        traces = self.traces
        if traces.shape[1] < 4:
            return torch.full_like(self.log_partition_base, math.nan)
        return split_gelman_rubin(traces, chain_dim=0, sample_dim=1).nan_to_num(1.0).amax(0)

    def effective_draws(self) -> Tensor:
        """Effective number of independent draws of the level with the fewest, shape ``batch_shape``."""
        traces = self.traces
        if traces.shape[1] < 4:
            return torch.full_like(self.log_partition_base, math.nan)
        return effective_sample_size(traces).nan_to_num(float(traces.shape[:2].numel())).amin(0)

    def mixing(self) -> dict[str, Any]:
        """Numbers that tell whether the run mixed; JSON types. The worst of a batch."""
        rates = self.swap_rate.reshape(len(self.betas) - 1, -1).amin(1)
        r_hat = self.r_hat().amax().item()
        return {
            "betas": list(self.betas),
            "swap_rate": [round(rate, 4) for rate in rates.tolist()],
            "round_trips": int(self.round_trips.amin()),
            "r_hat": None if math.isnan(r_hat) else round(r_hat, 4),
        }

    def suspicions(self) -> tuple[str, ...]:
        """Short texts on what speaks against trusting the run, none if nothing does."""
        mixing, found = self.mixing(), []
        lowest = min(mixing["swap_rate"])
        if lowest < _LOW_SWAP_RATE:
            level = mixing["swap_rate"].index(lowest)
            found.append(
                f"levels {level} and {level + 1} hardly overlap (exchange rate {lowest:.3f})"
            )
        if mixing["round_trips"] == 0:
            found.append("no replica made a round trip")
        if (mixing["r_hat"] or 1.0) > _HIGH_R_HAT:
            found.append(f"the chains disagree (split R-hat {mixing['r_hat']:.2f})")
        return tuple(found)


class _Recorder:
    """Collects the numbers of the draws."""

    def __init__(
        self, ladder: Ladder, num_samples: int, table_stride: int | None, num_states: int
    ) -> None:
        self._ladder = ladder
        self._table_stride, self._num_states = table_stride, num_states
        # The last draw of each stride, so that the first state is not close to the start.
        self._state_stride = max(1, num_samples // max(1, num_states))
        self._up: list[Tensor] = []
        self._down: list[Tensor] = []
        self._slopes: list[Tensor] = []
        self._tables: list[Tensor] = []
        self._states: list[Tensor] = []

    def observe(self, replicas: Replicas) -> None:
        ladder, v, fields = self._ladder, replicas.v, replicas.fields
        level = torch.arange(ladder.num_levels, device=v.device)
        axis, steps = ladder.level_axis, ladder.num_levels - 1
        up = ladder.level_log_ratio(v, fields, level.roll(-1))
        down = ladder.level_log_ratio(v, fields, level.roll(1))
        self._up.append(up.narrow(axis, 0, steps))
        self._down.append(down.narrow(axis, 1, steps))
        if isinstance(ladder, GeometricLadder):
            self._slopes.append(ladder.slope(v, fields))
        draw = len(self._up) - 1
        if self._table_stride is not None and draw % self._table_stride == 0:
            self._tables.append(ladder.log_density_table(v, fields).double())
        if self._num_states > 0 and (draw + 1) % self._state_stride == 0:
            self._states = [*self._states, v.select(axis - 1, -1).clone()][-self._num_states :]

    def run(self, path: Path, betas: list[float], round_trips: Tensor) -> TemperingRun:
        return TemperingRun(
            betas=betas,
            log_partition_base=path.log_partition_base,
            up=torch.stack(self._up, 1),
            down=torch.stack(self._down, 1),
            slopes=torch.stack(self._slopes, 1) if self._slopes else None,
            table=torch.stack(self._tables, 2) if self._tables else None,
            round_trips=round_trips,
            states=torch.stack(self._states, 1) if self._states else None,
        )


@torch.no_grad()
def run_tempering(
    path: Path,
    betas: list[float],
    *,
    num_chains: int,
    num_samples: int,
    warmup_steps: int,
    thin: int = 1,
    table: bool = False,
    num_states: int = 0,
    tick: Callable[[], object] | None = None,
) -> TemperingRun:
    """Run independent chains of replicas and record what estimates of log Z need.

    Half of the chains start from exact draws of level 0 that are carried up the ladder, the others from
    random hidden states at every level.

    :param Path path: where the levels come from.
    :param betas: the levels, increasing from 0 to 1.
    :param int num_chains: independent sets of replicas.
    :param int num_samples: recorded draws of each chain.
    :param int warmup_steps: sweeps before the first draw.
    :param int thin: sweeps from one draw to the next; exchanges are offered after each sweep.
    :param bool table: whether to record the table for MBAR, thinned to bounded memory.
    :param int num_states: states of the machine itself to keep of each chain, at most ``num_samples``.
    :param tick: called after every sweep.
    """
    ladder = path.ladder(betas)
    exchange = ReplicaExchange(ladder)
    replicas = exchange.start(_start(path, betas, num_chains))
    for _ in range(warmup_steps):
        replicas, _ = exchange.step(replicas)
        if tick is not None:
            tick()
    recorder = _Recorder(
        ladder,
        num_samples,
        _table_stride(ladder, num_chains, num_samples) if table else None,
        num_states,
    )
    trips = RoundTrips(replicas, ladder.level_axis)
    for _ in range(num_samples):
        for _ in range(thin):
            replicas, _ = exchange.step(replicas)
            trips.observe(replicas)
            if tick is not None:
                tick()
        recorder.observe(replicas)
    return recorder.run(path, betas, trips.counts.sum((0, 1)))


def _start(path: Path, betas: list[float], num_chains: int) -> Tensor:
    """States of every level. Chains start in two ways, so that they disagree for long where either
    way would leave out a mode of the machine."""
    carried = _carried_up(path, betas, num_chains - num_chains // 2)
    scattered = _scattered(path, betas, num_chains // 2)
    return torch.cat([carried, scattered])


def _carried_up(path: Path, betas: list[float], num_chains: int) -> Tensor:
    """Exact draws of the base, moved on from each level to the next."""
    v = path.sample_base(num_chains)
    levels = [v]
    for beta in betas[1:]:
        for _ in range(_SWEEPS_OF_START):
            v = path.move(path.fields(v, beta), beta)
        levels.append(v)
    return torch.stack(levels, 1)


def _scattered(path: Path, betas: list[float], num_chains: int) -> Tensor:
    """Visible states from hidden states that are drawn without weights and biases, at each level."""
    levels = []
    for beta in betas:
        machine = path.machine(beta)
        theta = machine.hidden.neutral().natural_bias
        shape = (num_chains, *path.batch_shape, machine.hidden.size)
        h = machine.hidden.natural_sample(theta.expand(shape), path.generator)
        levels.append(GibbsSweep(machine, path.generator).sample_visible(h))
    return torch.stack(levels, 1)


def _table_stride(ladder: Ladder, num_chains: int, num_samples: int) -> int:
    """Draws from one row of the table to the next."""
    entries = ladder.num_levels**2 * num_chains * num_samples * ladder.batch_shape.numel()
    return max(1, math.ceil(entries / _TABLE_ENTRIES))
