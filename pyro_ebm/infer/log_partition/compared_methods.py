# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""How each method of estimating log Z spends a number of sweeps."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer.log_partition.ais import estimate_log_partition
from pyro_ebm.infer.log_partition.bidirectional import (
    bidirectional_estimate,
    can_sample_exactly,
    grouped,
)
from pyro_ebm.infer.log_partition.deep_side import Side, as_side
from pyro_ebm.infer.log_partition.estimate import LogPartitionEstimate
from pyro_ebm.infer.log_partition.raise_ import raise_log_likelihood
from pyro_ebm.infer.log_partition.tempered_start import (
    TemperedStart,
    tempered_start,
    tuned_levels,
)
from pyro_ebm.infer.log_partition.tempering import (
    LEVELS_OF_INTEGRAL,
    TEMPERING_METHODS,
    tempering_estimates,
)
from pyro_ebm.infer.log_partition.trajectory import trajectory_log_partition
from pyro_ebm.infer.paths import GeometricPath, inverse_temperatures
from pyro_ebm.infer.paths.moments import moment_averaged_path

__all__ = ["METHODS", "Job"]

#: Sweeps of all levels from one draw to the next.
_THIN = 2
#: Chains for each row of data that RAISE starts from.
_RAISE_CHAINS = 10
#: Machines that are fitted between the ends of a moment-averaged path.
_NUM_KNOTS = 4
#: Gradient steps for each of them: more let the fit follow the noise of its chains.
_MAX_UPDATES = 200

Estimates = dict[str, LogPartitionEstimate]


@dataclass(frozen=True)
class Job:
    """What :func:`~pyro_ebm.infer.compare_log_partition` was asked for."""

    dist: RBM | DBM
    budget: int
    num_chains: int
    num_tempering_chains: int
    base: Tensor | str | None
    schedule: str | Tensor
    checkpoints: Sequence[RBM | DBM] | None
    data: Tensor | None
    seed: int | None
    progress: bool
    names: tuple[str, ...]
    side: str = "auto"

    def check(self) -> None:
        """Refuse at once what would fail after minutes."""
        self.chosen().machine.check_normalizable()
        for name, number in (
            ("num_chains", self.num_chains),
            ("num_tempering_chains", self.num_tempering_chains),
        ):
            if number < 2:
                raise ValueError(f"{name} must be at least 2 for a standard error, got {number}")
        if self.budget < 10 * self.num_chains:
            raise ValueError(
                f"budget must be at least 10 sweeps of each of {self.num_chains} chains, got {self.budget}"
            )
        if "trajectory-ais" in self.names and not self.checkpoints:
            raise ValueError('method "trajectory-ais" needs checkpoints')
        if "raise" in self.names and self.data is None:
            raise ValueError('method "raise" needs data')
        if "raise" in self.names and isinstance(self.dist, DBM) and self.dist.depth > 1:
            raise ValueError(
                'method "raise" gives no log Z of a DBM, whose rows have only bounds; see '
                "raise_log_likelihood for their likelihood"
            )

    def chosen(self) -> Side:
        """The machine as an RBM, with its base."""
        return as_side(self.dist, self.base, self.side)

    @property
    def machine(self) -> RBM:
        """The machine as an RBM."""
        return self.chosen().machine

    def seed_of(self, name: str) -> int | None:
        """A seed of its own for each method, with a few behind it."""
        return None if self.seed is None else 1000 * self.seed + 10 * list(METHODS).index(name)

    def path(self, name: str) -> GeometricPath:
        """A geometric path with a generator that no estimator uses."""
        chosen = self.chosen()
        seed, generator = self.seed_of(name), None
        if seed is not None:
            device = chosen.machine.weight.device
            generator = Generator(device=device).manual_seed(seed + 9)
        return GeometricPath(chosen.machine, chosen.base, generator)

    def temperatures(self, row_sweeps: int) -> int:
        """Temperatures at which all chains can be moved once."""
        return max(1, row_sweeps // self.num_chains)


def _named(estimate: LogPartitionEstimate, name: str, row_sweeps: int) -> Estimates:
    settings = {**estimate.settings, "method": name, "row_sweeps": row_sweeps}
    return {name: dataclasses.replace(estimate, settings=settings)}


def _ais(job: Job) -> Estimates:
    steps = job.temperatures(job.budget)
    estimate = estimate_log_partition(
        job.dist,
        "ais",
        num_chains=job.num_chains,
        num_temperatures=steps,
        base=job.base,
        side=job.side,
        schedule=job.schedule,
        seed=job.seed_of("ais"),
        progress=job.progress,
    )
    return _named(estimate, "ais", steps * job.num_chains)


def _start(job: Job, name: str, share: float) -> TemperedStart | None:
    """Samples of the machine for a share of the budget; None where exact ones cost nothing."""
    if can_sample_exactly(job.machine):
        return None
    return tempered_start(
        job.path(name),
        job.num_chains,
        num_groups=job.num_tempering_chains,
        row_sweeps=int(share * job.budget),
    )


def _reverse_ais(job: Job) -> Estimates:
    started = time.perf_counter()
    start = _start(job, "reverse-ais", 0.5)
    spent = 0 if start is None else start.row_sweeps
    chains = job.num_chains if start is None else len(start.v)
    steps = max(1, (job.budget - spent) // chains)
    estimate = estimate_log_partition(
        job.dist,
        "reverse-ais",
        num_chains=chains,
        num_temperatures=steps,
        base=job.base,
        side=job.side,
        schedule=job.schedule,
        initial=None if start is None else start.v,
        seed=job.seed_of("reverse-ais"),
        progress=job.progress,
    )
    # Without the weights nobody recomputes an error that takes the chains for independent.
    estimate = dataclasses.replace(grouped(estimate, start), log_weights=None)
    estimate.settings["seconds"] = round(time.perf_counter() - started, 3)
    return _named(estimate, "reverse-ais", spent + steps * chains)


def _bidirectional(job: Job) -> Estimates:
    started = time.perf_counter()
    start = _start(job, "bidirectional", 1.0 / 3.0)
    spent = 0 if start is None else start.row_sweeps
    chains = job.num_chains + (job.num_chains if start is None else len(start.v))
    steps = max(1, (job.budget - spent) // chains)
    path = job.path("bidirectional")
    estimate = bidirectional_estimate(
        job.dist,
        start,
        started,
        num_chains=job.num_chains,
        base=job.base,
        side=job.side,
        temperatures=inverse_temperatures(job.schedule, steps, path, job.num_chains),
        schedule=job.schedule if isinstance(job.schedule, str) else "given",
        seed=job.seed_of("bidirectional"),
        progress=job.progress,
    )
    return _named(estimate, "bidirectional", spent + steps * chains)


def _tempering(job: Job) -> Estimates:
    """All that is read from one run."""
    started = time.perf_counter()
    methods = [name for name in TEMPERING_METHODS if name in job.names]
    chains = job.num_tempering_chains
    least = LEVELS_OF_INTEGRAL if "ti" in methods else 2
    levels, spent = tuned_levels(job.path("bar"), chains, least=least, row_sweeps=job.budget // 5)
    sweeps = (job.budget - spent) // (chains * len(levels))
    warmup = sweeps // 3
    samples = (sweeps - warmup) // _THIN
    if samples < 10:
        raise ValueError(
            f"budget must allow 30 sweeps of {chains} chains x {len(levels)} replicas beside the "
            f"{spent} that tuning took, got {job.budget}"
        )
    tuning_seconds = time.perf_counter() - started
    estimates = tempering_estimates(
        job.dist,
        methods,
        num_chains=chains,
        num_samples=samples,
        thin=_THIN,
        warmup_steps=warmup,
        betas=levels,
        base=job.base,
        side=job.side,
        seed=job.seed_of("bar"),
        progress=job.progress,
    )
    spent += chains * len(levels) * (warmup + _THIN * samples)
    results: Estimates = {}
    for name, estimate in estimates.items():
        seconds = round(estimate.settings["seconds"] + tuning_seconds, 3)
        timed = dataclasses.replace(estimate, settings=estimate.settings | {"seconds": seconds})
        results |= _named(timed, name, spent)
    return results


def _moment_ais(job: Job) -> Estimates:
    """A quarter of the budget at most fits the path, unless it is fitted exactly. Temperatures are even:
    the knots already stand where they cost the same."""
    started = time.perf_counter()
    spent = 0
    options: dict[str, Any] = {}
    if not can_sample_exactly(job.machine):
        updates = max(1, min(_MAX_UPDATES, job.budget // (4 * _NUM_KNOTS * job.num_chains)))
        options = {"num_chains": job.num_chains, "num_updates": updates}
        spent = updates * _NUM_KNOTS * job.num_chains
        start = _start(job, "moment-ais", 0.25)
        assert start is not None
        spent += start.row_sweeps
        options["samples"] = start.v
    chosen = job.chosen()
    path = moment_averaged_path(
        chosen.machine,
        chosen.base,
        num_knots=_NUM_KNOTS,
        generator=job.path("moment-ais").generator,
        **options,
    )
    steps = job.temperatures(job.budget - spent)
    estimate = estimate_log_partition(
        job.dist,
        "ais",
        num_chains=job.num_chains,
        num_temperatures=steps,
        path=path,
        side=job.side,
        seed=job.seed_of("moment-ais"),
        progress=job.progress,
    )
    estimate.settings["seconds"] = round(time.perf_counter() - started, 3)
    return _named(estimate, "moment-ais", spent + steps * job.num_chains)


def _trajectory_ais(job: Job) -> Estimates:
    assert job.checkpoints is not None
    steps = job.temperatures(job.budget)
    curve = trajectory_log_partition(
        [*job.checkpoints, job.dist],
        num_chains=job.num_chains,
        num_temperatures=steps,
        base=job.base,
        side=job.side,
        seed=job.seed_of("trajectory-ais"),
        progress=job.progress,
    )
    return _named(curve[-1], "trajectory-ais", steps * job.num_chains)


def _raise(job: Job) -> Estimates:
    assert job.data is not None
    rows = max(2, min(job.num_chains, len(job.data)))
    steps = max(1, job.budget // (rows * _RAISE_CHAINS))
    likelihood = raise_log_likelihood(
        job.dist,
        job.data,
        num_rows=rows,
        num_chains=_RAISE_CHAINS,
        num_temperatures=steps,
        base=job.base,
        schedule=job.schedule,
        seed=job.seed_of("raise"),
        progress=job.progress,
    )
    return _named(likelihood.log_partition, "raise", steps * rows * _RAISE_CHAINS)


METHODS: dict[str, Callable[[Job], Estimates]] = {
    "ais": _ais,
    "reverse-ais": _reverse_ais,
    "bidirectional": _bidirectional,
    "bar": _tempering,
    "mbar": _tempering,
    "ti": _tempering,
    "moment-ais": _moment_ais,
    "trajectory-ais": _trajectory_ais,
    "raise": _raise,
}
