# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Several estimates of the same log Z at the same cost."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer.log_partition import report
from pyro_ebm.infer.log_partition.compared_methods import METHODS, Job
from pyro_ebm.infer.log_partition.estimate import LogPartitionEstimate, LogPartitionWarning
from pyro_ebm.infer.log_partition.serialization import read_json, to_json, write_json

__all__ = ["LogPartitionComparison", "compare_log_partition"]

#: Columns of the table that people read.
_COLUMNS = {
    "method": "method",
    "value": "log Z",
    "std_error": "s.e.",
    "interval": "95 % interval",
    "ess": "ESS",
    "seconds": "s",
}


@dataclass(frozen=True)
class LogPartitionComparison:
    """Estimates of the same log Z by several methods.

    ``print(comparison)`` shows a table, who contradicts whom, and the combined bracket;
    :func:`pyro_ebm.plotting.log_partition_comparison` draws it.

    :param estimates: the estimates by method.
    :param int budget: block Gibbs sweeps of single chains that each of them was given.
    """

    estimates: dict[str, LogPartitionEstimate]
    budget: int

    @property
    def lower(self) -> Tensor:
        """The highest lower bound of the methods without flags, minus infinity if there is none.

        Bounds are lower ends of 95 % intervals, but of estimates from above, and of the brackets that
        methods give in their settings. Each is missed once in forty times, so that of several one is
        missed more often.
        """
        return self._bound("lower", "above")

    @property
    def upper(self) -> Tensor:
        """The lowest upper bound of the methods without flags, see :attr:`lower`."""
        return self._bound("upper", "below")

    def _bound(self, end: str, other_side: str) -> Tensor:
        sign = 1.0 if end == "lower" else -1.0
        some = next(iter(self.estimates.values()))
        best = torch.full_like(some.value, -torch.inf)
        for estimate in self.estimates.values():
            if not estimate.reliable or estimate.side == other_side:
                continue
            ends = [getattr(estimate, end)]
            if "bracket" in estimate.settings:
                bracket = estimate.settings["bracket"][0 if end == "lower" else 1]
                ends.append(torch.as_tensor(bracket, dtype=torch.float64).to(best))
            for bound in ends:
                best = torch.maximum(best, sign * bound)
        return sign * best

    @property
    def disagreements(self) -> dict[tuple[str, str], float]:
        """Pairs of methods whose 95 % intervals do not meet although no bound explains it, the higher
        one first, and the nats between the intervals, the most of a batch.

        An estimate from below may lie below another, and one from above may lie above, without any
        contradiction: then the bracket is wide, and nobody is wrong.
        """
        found = {}
        for (name, a), (other, b) in permutations(self.estimates.items(), 2):
            gap = (a.lower - b.upper).max().item()
            if gap > 0.0 and a.side != "above" and b.side != "below":
                found[name, other] = gap
        return found

    @property
    def flagged(self) -> tuple[str, ...]:
        """Methods that find something suspicious about themselves."""
        return tuple(name for name, e in self.estimates.items() if not e.reliable)

    def to_markdown(self) -> str:
        """The table, in Markdown: one row a method (and element of a batch)."""
        return report.to_markdown(self.estimates.values())

    def to_latex(self) -> str:
        r"""The table, as a LaTeX ``tabular`` for ``\usepackage{booktabs}``."""
        return report.to_latex(self.estimates.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights; JSON types only."""
        return {
            "budget": self.budget,
            "lower": to_json(self.lower),
            "upper": to_json(self.upper),
            "disagreements": [[*pair, gap] for pair, gap in self.disagreements.items()],
            "estimates": {name: e.to_dict() for name, e in self.estimates.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LogPartitionComparison":
        """The comparison that :meth:`to_dict` was taken of, but for the weights.

        :raises ValueError: if something is missing.
        """
        if not {"budget", "estimates"} <= set(data):
            raise ValueError(f"a comparison needs budget and estimates, got {sorted(data)}")
        estimates = {
            name: LogPartitionEstimate.from_dict(e) for name, e in data["estimates"].items()
        }
        return cls(estimates, int(data["budget"]))

    def save_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` to a file."""
        write_json(path, self.to_dict())

    @classmethod
    def load_json(cls, path: str | Path) -> "LogPartitionComparison":
        """Read what :meth:`save_json` wrote."""
        return cls.from_dict(read_json(path))

    def __str__(self) -> str:
        rows = [_COLUMNS, *report.table_rows(self.estimates.values())]
        widths = {name: max(len(row[name]) for row in rows) for name in _COLUMNS}
        lines = []
        for row in rows:
            cells = (
                row[name].ljust(width) if name == "method" else row[name].rjust(width)
                for name, width in widths.items()
            )
            marks = f"  SUSPICIOUS: {row['flags']}" if row.get("flags") else ""
            lines.append("  ".join(cells) + marks)
        for (name, other), gap in self.disagreements.items():
            lines.append(f"{name} and {other} contradict each other: {gap:.2g} nats apart")
        if not self.lower.dim():
            lines.append(
                f"log Z in [{self.lower.item():.3f}, {self.upper.item():.3f}] by the methods without "
                "flags"
            )
        return "\n".join(lines)


def compare_log_partition(
    dist: RBM | DBM,
    methods: Sequence[str] = ("ais", "reverse-ais", "bidirectional", "bar", "mbar", "ti"),
    *,
    budget: int = 1_000_000,
    num_chains: int = 100,
    num_tempering_chains: int = 20,
    base: Tensor | str | None = None,
    side: str = "auto",
    schedule: str | Tensor = "linear",
    checkpoints: Sequence[RBM | DBM] | None = None,
    data: Tensor | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> LogPartitionComparison:
    """Estimate log Z by several methods at about the same cost.

    The cost is counted in block Gibbs sweeps of single chains (a sweep of 20 chains x 10 replicas is
    200), all of it included: pilot runs are not, but warm-up, the tuning of ladders and the samples that
    reverse chains start from are, a fifth, a third or a half of the budget.

    ====================  =========================================================================
    method                what it is
    ====================  =========================================================================
    ``"ais"``             annealed importance sampling, from below
    ``"reverse-ais"``     the same from above, from exact or tempered samples
    ``"bidirectional"``   both together, :func:`bidirectional_log_partition`
    ``"bar"``             tempering, Bennett's ratio of neighbours, :func:`tempering_log_partition`
    ``"mbar"``            tempering, all levels together
    ``"ti"``              tempering, thermodynamic integration
    ``"moment-ais"``      annealing along :func:`~pyro_ebm.infer.paths.moment_averaged_path`
    ``"trajectory-ais"``  annealing through ``checkpoints``, :func:`trajectory_log_partition`
    ``"raise"``           from above, :func:`raise_log_likelihood` of ``data`` (too high for data that
                          are unlike the machine's; not of a DBM)
    ====================  =========================================================================

    ``"bar"``, ``"mbar"`` and ``"ti"`` read one and the same run, so that they cost the budget once, and
    agree with each other more than their error bars say.

    :param dist: an RBM or a DBM, with any batch shape; an attached log Z is ignored.
    :param methods: names of the table above.
    :param int budget: sweeps of single chains of each method.
    :param int num_chains: annealing chains.
    :param int num_tempering_chains: independent sets of replicas.
    :param base: as for :func:`estimate_log_partition`.
    :param str side: layers of a DBM whose states are moved, as for :func:`estimate_log_partition`.
    :param schedule: temperatures of annealing, as for :func:`estimate_log_partition`.
    :param checkpoints: earlier machines of the same training run, for ``"trajectory-ais"``.
    :param Tensor data: rows, for ``"raise"``.
    :param int seed: seed; each method draws from generators of its own, whatever others there are. The
        global generator if None.
    :param bool progress: whether to show progress bars.
    :raises ValueError: for an unknown method, a method that lacks its data, or a budget that is too small.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import compare_log_partition, exact_log_partition
    >>> rbm = BernoulliRBM(torch.ones(6, 4), -2 * torch.ones(6), -3 * torch.ones(4))
    >>> comparison = compare_log_partition(rbm, ["ais", "bidirectional"], budget=20_000, seed=0)
    >>> bool(comparison.lower < exact_log_partition(rbm) < comparison.upper)
    True
    >>> comparison.disagreements, comparison.flagged
    ({}, ())
    """
    names = list(dict.fromkeys(methods))
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ValueError(f"methods must be some of {tuple(METHODS)}, got {list(methods)}")
    job = Job(
        dist=dist,
        budget=budget,
        num_chains=num_chains,
        num_tempering_chains=num_tempering_chains,
        base=base,
        schedule=schedule,
        checkpoints=checkpoints,
        data=data,
        seed=seed,
        progress=progress,
        names=tuple(names),
        side=side,
    )
    job.check()
    done: dict[str, LogPartitionEstimate] = {}
    with warnings.catch_warnings():
        # What is suspicious is in the table.
        warnings.simplefilter("ignore", LogPartitionWarning)
        for name in names:
            if name not in done:
                done |= METHODS[name](job)
    return LogPartitionComparison({name: done[name] for name in names}, budget)
