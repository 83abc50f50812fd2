# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What is wrong with chains, in words."""

import math
from collections.abc import Callable, Mapping

from pyro_ebm.diagnostics.convergence import Convergence

__all__ = ["chain_flags"]


def chain_flags(
    rows: Mapping[str, Convergence],
    num_chains: int,
    num_stuck: int,
    *,
    max_r_hat: float,
    min_ess: float,
) -> tuple[str, ...]:
    """Short texts on what makes chains suspicious, none if nothing does.

    :param rows: what is known of every number.
    :param int num_chains: number of chains.
    :param int num_stuck: chains whose state never changed.
    :param float max_r_hat: R-hat above this is called too large.
    :param float min_ess: effective sample sizes below this are called too small.
    """
    varying = {name: row for name, row in rows.items() if not row.is_constant}
    found = (
        _not_finite(varying),
        _single(num_chains),
        _stuck(num_chains, num_stuck),
        _modes(varying),
        _r_hat(varying, max_r_hat),
        _ess(varying, min_ess),
    )
    return tuple(text for text in found if text)


def _not_finite(rows: Mapping[str, Convergence]) -> str:
    names = [name for name, row in rows.items() if not math.isfinite(row.mean)]
    return f"{_list(names)} has infinite or undefined values" if names else ""


def _single(num_chains: int) -> str:
    if num_chains > 1:
        return ""
    return (
        "there is one chain: its halves can agree although it has never seen other modes; run several "
        "from different starts"
    )


def _stuck(num_chains: int, num_stuck: int) -> str:
    if not num_stuck:
        return ""
    return f"{num_stuck} of {num_chains} chains never moved"


def _modes(rows: Mapping[str, Convergence]) -> str:
    names = [name for name, row in rows.items() if row.sits_in_modes]
    if not names:
        return ""
    worst = max(names, key=lambda name: rows[name].r_hat)
    return (
        f"chains sit in different modes: R-hat of {worst} is {rows[worst].r_hat:.2f} over all "
        f"chains and {rows[worst].r_hat_single:.2f} within one; longer runs will hardly help, tempering may"
    )


def _r_hat(rows: Mapping[str, Convergence], limit: float) -> str:
    return _beyond(rows, "R-hat", lambda row: row.r_hat, limit, largest=True)


def _ess(rows: Mapping[str, Convergence], limit: float) -> str:
    def smaller(row: Convergence) -> float:
        return min(row.ess_bulk, row.ess_tail)

    return _beyond(rows, "effective sample size", smaller, limit, largest=False)


def _beyond(
    rows: Mapping[str, Convergence],
    what: str,
    number: Callable[[Convergence], float],
    limit: float,
    *,
    largest: bool,
) -> str:
    """One sentence for all rows whose number is on the wrong side of a limit."""
    sign = 1.0 if largest else -1.0
    names = [name for name, row in rows.items() if sign * number(row) > sign * limit]
    if not names:
        return ""
    worst = max(names, key=lambda name: sign * number(rows[name]))
    extreme = number(rows[worst])
    # Enough digits to see on which side of the limit it is.
    value = f"{extreme:.{3 if extreme < 1.1 else 2}f}" if largest else f"{extreme:.0f}"
    others = [name for name in names if name != worst]
    more = f" (also {_list(others)})" if others else ""
    side = "above" if largest else "below"
    return f"{what} of {worst} is {value}, {side} {limit:g}{more}"


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
