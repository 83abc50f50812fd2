# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Results of several samplers on one machine."""

import itertools
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pyro_ebm.diagnostics.convergence import Convergence
from pyro_ebm.diagnostics.tables import decimals, markdown_table, significant, text_table

__all__ = ["SamplerComparison", "SamplerRun", "Spread"]

#: Means of two samplers that are so many standard errors apart contradict each other.
_CONTRADICTION = 5.0
#: Below so many effective draws of a run its speed is hardly known.
_MIN_ESS = 100.0
#: R-hat above which chains have not forgotten their starts, and have not mixed at all.
_MAX_R_HAT, _STUCK_R_HAT = 1.01, 1.1


@dataclass(frozen=True)
class Spread:
    """A number over runs with different seeds.

    :param float mean: mean over runs.
    :param float std: standard deviation over runs.
    :param float low: smallest.
    :param float high: largest.
    """

    mean: float
    std: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """From the values of the runs."""
        std = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), std, min(values), max(values))

    def to_dict(self) -> dict[str, float | None]:
        """JSON types only."""
        names = ("mean", "std", "low", "high")
        return {n: x if math.isfinite(x := getattr(self, n)) else None for n in names}

    def __str__(self) -> str:
        if math.isnan(self.std):
            return significant(self.mean)
        return f"{significant(self.mean)} ± {significant(self.std, 2)}"


@dataclass(frozen=True)
class SamplerRun:
    """One sampler with one seed.

    :param str sampler: its name.
    :param int seed: seed of the run.
    :param float seconds: time within the kernel, after the warm-up.
    :param float warmup_seconds: time of the warm-up.
    :param int num_draws: draws of every chain.
    :param int num_chains: chains.
    :param int sweeps_per_draw: sweeps of a chain between two draws, those of all replicas counted; None if
        unknown.
    :param dict functions: :class:`~pyro_ebm.diagnostics.Convergence` of every function.
    """

    sampler: str
    seed: int
    seconds: float
    warmup_seconds: float
    num_draws: int
    num_chains: int
    sweeps_per_draw: int | None
    functions: dict[str, Convergence] = field(repr=False)

    def ess(self, function: str | None = None) -> float:
        """Bulk effective sample size; of the slowest function if None. Zero where nothing moved."""
        names = self.functions if function is None else [function]
        sizes = [self.functions[name].ess_bulk for name in names]
        return min(0.0 if math.isnan(size) else size for size in sizes)

    def r_hat(self) -> float:
        """Largest R-hat; infinite where a function never changed."""
        values = [row.r_hat for row in self.functions.values()]
        return max(math.inf if math.isnan(value) else value for value in values)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        names = ("sampler", "seed", "seconds", "warmup_seconds", "num_draws", "num_chains")
        rows = {name: row.to_dict() for name, row in self.functions.items()}
        numbers = {n: getattr(self, n) for n in names}
        return {**numbers, "sweeps_per_draw": self.sweeps_per_draw, "functions": rows}


@dataclass(frozen=True)
class SamplerComparison:
    """Effective sample sizes of several samplers at an equal budget; ``print`` it.

    :param runs: all runs.
    :param dict settings: budget, chains, seeds and what it ran on.
    """

    runs: tuple[SamplerRun, ...] = field(repr=False)
    settings: dict[str, Any]

    @property
    def samplers(self) -> list[str]:
        """Names of the samplers, in the order they were given."""
        return list(dict.fromkeys(run.sampler for run in self.runs))

    @property
    def functions(self) -> list[str]:
        """Names of the functions."""
        return list(self.runs[0].functions)

    def of(self, sampler: str) -> list[SamplerRun]:
        """The runs of one sampler.

        :raises KeyError: if there is none of that name.
        """
        runs = [run for run in self.runs if run.sampler == sampler]
        if not runs:
            raise KeyError(f"no sampler {sampler!r}; there are {self.samplers}")
        return runs

    def ess_per_second(self, sampler: str, function: str | None = None) -> Spread:
        """Bulk effective sample size by second over the runs; of each run's slowest function if None."""
        return Spread.of([run.ess(function) / run.seconds for run in self.of(sampler)])

    def ess_per_sweep(self, sampler: str, function: str | None = None) -> Spread | None:
        """Bulk effective sample size by sweep of a chain, None if the kernel's sweeps are unknown."""
        rates = []
        for run in self.of(sampler):
            if run.sweeps_per_draw is None:
                return None
            sweeps = run.num_draws * run.num_chains * run.sweeps_per_draw
            rates.append(run.ess(function) / sweeps)
        return Spread.of(rates)

    def r_hat(self, sampler: str) -> float:
        """Largest R-hat of all functions and runs."""
        return max(run.r_hat() for run in self.of(sampler))

    @property
    def best(self) -> str:
        """The sampler with the most effective draws of its slowest function by second."""
        return max(self.samplers, key=lambda name: self.ess_per_second(name).mean)

    @property
    def flags(self) -> tuple[str, ...]:
        """What makes the comparison suspicious, short texts; empty if nothing does."""
        found = list(self._not_converged())
        for function, one, two in itertools.product(self.functions, self.samplers, self.samplers):
            if self.samplers.index(one) < self.samplers.index(two):
                found += self._contradiction(function, one, two)
        return tuple(found)

    @property
    def reliable(self) -> bool:
        """Whether nothing suspicious was found."""
        return not self.flags

    def _not_converged(self) -> Iterator[str]:
        for name in self.samplers:
            worst, few = self.r_hat(name), min(run.ess() for run in self.of(name))
            if worst > _STUCK_R_HAT:
                yield (
                    f"{name}: R-hat is up to {worst:.2f}; the chains have not mixed, and their effective "
                    "sample size means little"
                )
            elif worst > _MAX_R_HAT:
                yield (
                    f"{name}: R-hat is up to {worst:.3f}; the chains have hardly forgotten their starts"
                )
            elif few < _MIN_ESS:
                yield f"{name}: only {few:.0f} effective draws in a run; take a larger budget"

    def _contradiction(self, function: str, one: str, two: str) -> list[str]:
        (a, error_a), (b, error_b) = self._mean(one, function), self._mean(two, function)
        if not abs(a - b) > _CONTRADICTION * math.hypot(error_a, error_b):
            return []
        return [
            f"{one} and {two} contradict each other: the mean of {function} is {a:.4g} ± {error_a:.2g} "
            f"and {b:.4g} ± {error_b:.2g}; at least one of them is wrong about its error"
        ]

    def _mean(self, sampler: str, function: str) -> tuple[float, float]:
        """Mean over the runs and its standard error, by the runs' own account or by their spread."""
        rows = [run.functions[function] for run in self.of(sampler)]
        means = [row.mean for row in rows]
        own = math.sqrt(math.fsum(row.mcse**2 for row in rows)) / len(rows)
        spread = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0
        return statistics.fmean(means), max(own, spread)

    def to_dict(self) -> dict[str, Any]:
        """The table, all runs, settings and flags; JSON types only."""
        table = {}
        for name in self.samplers:
            per_sweep = self.ess_per_sweep(name)
            r_hat = self.r_hat(name)
            table[name] = {
                "ess_per_second": {
                    f: self.ess_per_second(name, f).to_dict() for f in self.functions
                },
                "ess_per_second_slowest": self.ess_per_second(name).to_dict(),
                "ess_per_sweep_slowest": None if per_sweep is None else per_sweep.to_dict(),
                "r_hat": r_hat if math.isfinite(r_hat) else None,
            }
        return {
            "samplers": table,
            "best": self.best,
            "flags": list(self.flags),
            "settings": dict(self.settings),
            "runs": [run.to_dict() for run in self.runs],
        }

    def _table(self, prefix: str = "") -> tuple[list[str], list[list[str]]]:
        header = ["sampler", *(prefix + name for name in self.functions), f"{prefix}slowest"]
        header += ["ratio", "ESS/sweep", "R-hat", "draws"]
        first = self.ess_per_second(self.samplers[0]).mean
        lines = []
        for name in self.samplers:
            slowest, per_sweep = self.ess_per_second(name), self.ess_per_sweep(name)
            line = [name, *(str(self.ess_per_second(name, f)) for f in self.functions)]
            line += [str(slowest), significant(slowest.mean / first if first else math.nan)]
            line.append("-" if per_sweep is None else significant(per_sweep.mean, 2))
            draws = [run.num_draws for run in self.of(name)]
            line += [decimals(self.r_hat(name), 3), f"{round(statistics.fmean(draws))}"]
            lines.append(line)
        return header, lines

    def to_markdown(self) -> str:
        """The table in Markdown, without the flags."""
        return markdown_table(*self._table("ESS/s "))

    def __str__(self) -> str:
        s = self.settings
        head = (
            f"bulk ESS by second (mean ± sd of {len(s['seeds'])} seeds): {s['num_chains']} chains, "
            f"{s['budget']} a run after the warm-up, {s['device']}, {s['num_threads']} threads"
        )
        return "\n".join([head, text_table(*self._table()), *(f"! {flag}" for flag in self.flags)])
