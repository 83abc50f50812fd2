# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""What ``score`` of an estimator can be."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer import (
    deep_log_likelihood,
    estimate_log_partition,
    exact_log_partition,
    log_likelihood,
    pseudo_log_likelihood,
)

__all__ = ["check_scoring", "row_scores"]

#: Names of scores and the options that they take; None for those of ``estimate_log_partition``.
_SCORINGS: dict[str, tuple[str, ...] | None] = {
    "pseudo": (),
    "ais": None,
    "exact": ("max_states",),
}
#: Options of "ais" where none are given: seconds for a few hundred units.
_AIS_OPTIONS = {"num_chains": 100, "num_temperatures": 1000, "seed": 0}


def check_scoring(scoring: Any, options: Any, allowed: tuple[str, ...]) -> None:
    """Refuse unknown scores and options.

    :param allowed: scores that the estimator has.
    :raises TypeError: if the options are no dictionary.
    :raises ValueError: for an unknown score, or options that it does not take.
    """
    if scoring not in allowed:
        raise ValueError(f"scoring must be one of {allowed}, got {scoring!r}")
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"scoring_options must be a dictionary or None, got {options!r}")
    known = _SCORINGS[scoring]
    unknown = sorted(set(options or {}) - set(known or ())) if known is not None else []
    if unknown:
        raise ValueError(f"scoring_options has {unknown}, which scoring={scoring!r} does not take")


def row_scores(
    dist: RBM | DBM, rows: Tensor, scoring: str, options: Mapping[str, Any] | None
) -> Tensor:
    """The score of every row, in nats.

    :param dist: the machine; of a deep one "ais" has the variational bound of :math:`\\log p^*(v)`.
    :param Tensor rows: states of its visible layer, shape ``(rows, V)``.
    :param str scoring: "pseudo" for the pseudo-log-likelihood; the log-likelihood with log Z by annealed
        importance sampling ("ais") or by enumeration ("exact").
    :param options: of :func:`~pyro_ebm.infer.estimate_log_partition` or
        :func:`~pyro_ebm.infer.exact_log_partition`.
    :returns: shape ``(rows,)``.
    """
    options = options or {}
    with torch.no_grad():
        if scoring == "pseudo":
            return pseudo_log_likelihood(dist, rows)
        if scoring == "exact":
            log_z = exact_log_partition(dist, **options)
            if isinstance(dist, DBM):
                return deep_log_likelihood(dist, rows, log_z, "exact", **options).rows
            return log_likelihood(dist, rows, log_z)
        estimate = estimate_log_partition(dist, **{**_AIS_OPTIONS, **options})
        return log_likelihood(dist, rows, estimate)
