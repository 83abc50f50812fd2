# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Which machine predicts held-out rows better, with the doubt about log Z of each."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_ebm.diagnostics.held_out import arviz_compare
from pyro_ebm.diagnostics.tables import decimals, markdown_table, text_table
from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer import log_likelihood
from pyro_ebm.infer.log_partition.bracket import sides_of
from pyro_ebm.ops.numerics import student_quantile

__all__ = ["MachineComparison", "compare_machines"]

_HEADER = ("machine", "nats a row", "se", "difference", "interval (95 %)", "weight", "of log Z")


@dataclass(frozen=True)
class MachineComparison:
    r"""Machines on the same held-out rows; ``print`` it.

    The error of a difference has two parts that behave differently. That of the choice of rows falls with
    their number. That of log Z is **common to all rows**: in nats a row it does not fall at all.

    :param table: a pandas table, the best machine first, in nats **of all rows** as ArviZ has it: ``rank``,
        ``elpd``, ``se``, ``elpd_diff`` (to the best), ``dse`` (paired rows), ``weight``; then ``log_z_lower``
        and ``log_z_upper`` (the interval of the machine's log Z), ``diff_lower`` and ``diff_upper`` (a 95 %
        interval of the difference at each side of both log Z, and the outermost ends of these; infinite
        where the machine that it favours is known by a bound), ``weight_lower`` and
        ``weight_upper`` (the weight with log Z of this machine at one end of its interval and those of all
        others at the opposite one).
    :param Tensor rows: log-likelihoods by row and machine, shape ``(rows, machines)``, float64.
    :param names: the machines, in the order of ``rows``.
    :param flags: what makes the comparison suspicious, short texts; empty if nothing does.
    """

    table: Any
    rows: Tensor = field(repr=False)
    names: tuple[str, ...]
    flags: tuple[str, ...] = ()

    @property
    def decided(self) -> bool:
        """Whether the best machine is better than each other beyond the interval of the difference."""
        return bool((self.table["diff_upper"].iloc[1:] < 0.0).all())

    def _cells(self) -> list[tuple[str, ...]]:
        count = len(self.rows)
        lines: list[tuple[str, ...]] = []
        for name, line in self.table.iterrows():
            low, high = line["diff_lower"] / count, line["diff_upper"] / count
            first = line["rank"] == 0
            lines.append(
                (
                    str(name),
                    decimals(line["elpd"] / count, 3),
                    decimals(line["se"] / count, 3),
                    "-" if first else decimals(line["elpd_diff"] / count, 3),
                    "-" if first else f"{low:.3f} to {high:.3f}",
                    decimals(line["weight"], 2),
                    f"{line['weight_lower']:.2f} to {line['weight_upper']:.2f}",
                )
            )
        return lines

    def __str__(self) -> str:
        tail = "".join(f"\nSUSPICIOUS: {flag}" for flag in self.flags)
        return text_table(_HEADER, self._cells()) + tail

    def to_markdown(self) -> str:
        """The table in Markdown."""
        return markdown_table(_HEADER, self._cells())


def compare_machines(
    machines: Mapping[str, RBM | DBM],
    data: Tensor,
    log_partition: Mapping[str, Any],
    *,
    method: str = "stacking",
) -> MachineComparison:
    r"""Compare machines by the log-likelihood of held-out rows, log Z's uncertainty carried through.

    ``arviz.compare`` gives differences, their standard errors for paired rows and the weights of a mixture of
    the machines [1]. It takes the likelihoods as known. Here each of them has the error of a log Z that moves
    all rows together,

    .. math:: \sum_n \log p(v_n) = \sum_n -F(v_n) - N \log Z,

    so the interval of a difference reaches over both sides of both log Z, N times, and the weights are
    given at the least and the most favourable ends too. With an estimate from one side alone (AIS) a machine
    looks too good or too bad by what its annealing misses; give brackets.

    Rows that chose the machine (a validation set that stopped its training) are not held out. There is no
    effective number of parameters and no leave-one-out correction, as nothing was fitted to the rows.

    **References**

    [1] *Using stacking to average Bayesian predictive distributions*, Yuling Yao, Aki Vehtari, Daniel
    Simpson, Andrew Gelman (2018)

    :param machines: by name, without a batch shape; of a deep one the rows are mean-field bounds,
        which can show that it is better and never that it is worse.
    :param Tensor data: held-out rows, shape ``(rows, V)``.
    :param log_partition: log Z by name: a :class:`~pyro_ebm.infer.LogPartitionBracket` or
        :class:`~pyro_ebm.infer.LogPartitionEstimate`, whose interval counts, or an exact number.
    :param str method: ArviZ's for the weights: ``"stacking"``, ``"bb-pseudo-bma"`` or ``"pseudo-bma"``.
    :raises ValueError: if names differ, rows are of a wrong shape or outside of the support, or there are
        fewer than two machines or rows.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import exact_log_partition
    >>> bias = torch.zeros(4)
    >>> machines = {
    ...     "coupled": BernoulliRBM(torch.ones(4, 2), bias - 1.0, torch.zeros(2)),
    ...     "independent": BernoulliRBM(torch.zeros(4, 2), bias, torch.zeros(2)),
    ... }
    >>> log_z = {name: exact_log_partition(machine) for name, machine in machines.items()}
    >>> comparison = compare_machines(machines, machines["coupled"].sample((500,)), log_z)
    >>> comparison.table.index[0], comparison.decided
    ('coupled', True)
    """
    names = tuple(machines)
    if set(log_partition) != set(names):
        raise ValueError(
            f"log_partition must have the names of machines, {sorted(names)}, got {sorted(log_partition)}"
        )
    if data.dim() != 2:
        raise ValueError(f"data must have shape (rows, V), got {tuple(data.shape)}")
    rows = torch.stack([_rows(n, machines[n], data, log_partition[n]) for n in names], -1)
    bounded = [n for n in names if isinstance(m := machines[n], DBM) and m.depth > 1]
    flags = [
        f"log Z of {name!r}: {flag}"
        for name in names
        for flag in getattr(log_partition[name], "flags", ())
    ]
    flags += [
        f"the rows of {name!r} are mean-field bounds: it is better than that by an unknown amount"
        for name in bounded
    ]
    array = {name: rows[:, i].numpy() for i, name in enumerate(names)}
    table = arviz_compare(array, method)
    _add_intervals(table, len(rows), log_partition, bounded)
    _add_weights(table, array, {n: _ends(log_partition[n]) for n in names}, method)
    return MachineComparison(table, rows, names, tuple(flags))


def _rows(name: str, machine: RBM | DBM, data: Tensor, log_partition: Any) -> Tensor:
    if machine.batch_shape:
        raise ValueError(
            f"machine {name!r} must have no batch shape, got {tuple(machine.batch_shape)}"
        )
    return log_likelihood(machine, data, log_partition).cpu()


def _sides(log_partition: Any) -> list[tuple[float, float, float]]:
    """Value and ends of log Z: from one side, or from both."""
    return [(float(s.value), float(s.lower), float(s.upper)) for s in sides_of(log_partition)]


def _ends(log_partition: Any) -> tuple[float, float, float]:
    """Log Z and the ends of its interval."""
    value = float(getattr(log_partition, "value", log_partition))
    lower = float(getattr(log_partition, "lower", value))
    upper = float(getattr(log_partition, "upper", value))
    return value, lower, upper


def _add_intervals(
    table: Any, count: int, log_partition: Mapping[str, Any], bounded: Collection[str]
) -> None:
    """Ends of log Z and of the differences to the best machine."""
    best = str(table.index[0])
    ends = [_ends(log_partition[str(name)]) for name in table.index]
    table["log_z_lower"], table["log_z_upper"] = zip(*[end[1:] for end in ends], strict=True)
    table["diff_lower"], table["diff_upper"] = 0.0, 0.0
    for name, line in table.iloc[1:].iterrows():
        own, other = log_partition[str(name)], log_partition[best]
        # Of values on which the table stands.
        base = line["elpd_diff"] + count * (_ends(own)[0] - _ends(other)[0])
        lower, upper = _difference(base, line["dse"], count, _sides(own), _sides(other))
        # What a bound leaves out may put its machine anywhere above.
        table.loc[name, "diff_lower"] = -math.inf if best in bounded else lower
        table.loc[name, "diff_upper"] = math.inf if str(name) in bounded else upper


def _difference(
    base: float,
    dse: float,
    count: int,
    own: Sequence[tuple[float, float, float]],
    other: Sequence[tuple[float, float, float]],
) -> tuple[float, float]:
    """The lowest and the highest end over the sides of both log Z.

    What a side lacks to the true log Z is no random error, so sides are not averaged; the random errors
    of a side, and those of the rows, are independent and add in quadrature.
    """
    lower, upper = [], []
    margin = student_quantile(math.inf) * dse
    for value, low, high in own:
        for best, best_low, best_high in other:
            difference = base - count * (value - best)
            lower.append(
                difference - math.hypot(margin, count * (high - value), count * (best - best_low))
            )
            upper.append(
                difference + math.hypot(margin, count * (value - low), count * (best_high - best))
            )
    return min(lower), max(upper)


def _add_weights(
    table: Any,
    rows: Mapping[str, Any],
    intervals: Mapping[str, tuple[float, float, float]],
    method: str,
) -> None:
    """Weights with the log Z of one machine at one end and all others at the opposite one."""
    ends: dict[str, list[float]] = {"weight_lower": [], "weight_upper": []}
    for name in map(str, table.index):
        for column, own, others in (("weight_lower", 2, 1), ("weight_upper", 1, 2)):
            shifted = {
                n: r - np.float64(intervals[n][own if n == name else others] - intervals[n][0])
                for n, r in rows.items()
            }
            ends[column].append(float(arviz_compare(shifted, method)["weight"][name]))
    for column, weights in ends.items():
        table[column] = weights
