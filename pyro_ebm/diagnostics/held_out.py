# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Held-out log-likelihoods by row for ArviZ's model comparison, of both major versions.

This file imports nothing but numpy at the top, and ArviZ where it is used, so that it can be loaded by
its path where there is no torch.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["arviz_compare", "to_elpd_data"]

Array = npt.NDArray[np.float64]

WEIGHT_METHODS = ("stacking", "bb-pseudo-bma", "pseudo-bma")


def to_elpd_data(log_likelihood: Array) -> Any:
    """Log-likelihoods of held-out rows as what ArviZ calls ELPD data.

    ArviZ has no kind for held-out rows. They are given as its leave-one-out kind, of one draw and without
    effective parameters: nothing was fitted to these rows, so that there is nothing to correct for.

    :param log_likelihood: shape ``(rows,)``, nats.
    """
    rows = np.asarray(log_likelihood, dtype=np.float64)
    elpd, error = float(rows.sum()), math.sqrt(len(rows) * float(rows.var()))
    import xarray as xr

    pointwise = xr.DataArray(rows, dims=["row"])
    if _is_first_generation():
        from arviz.stats.stats_utils import ELPDData

        entries = {
            "elpd_loo": elpd,
            "se": error,
            "p_loo": 0.0,
            "n_samples": 1,
            "n_data_points": len(rows),
            "warning": False,
            "loo_i": pointwise,
            "scale": "log",
        }
        return ELPDData(data=list(entries.values()), index=list(entries))
    from arviz_stats.utils import ELPDDataLOO

    return ELPDDataLOO(
        elpd=elpd,
        se=error,
        p=0.0,
        n_samples=1,
        n_data_points=len(rows),
        scale="log",
        warning=False,
        good_k=0.7,
        elpd_i=pointwise,
    )


def arviz_compare(log_likelihoods: Mapping[str, Array], method: str = "stacking") -> Any:
    """The table of ``arviz.compare``, with the same columns for both generations.

    :param log_likelihoods: shape ``(rows,)`` by model, of the same rows in the same order.
    :param str method: how ArviZ finds weights: ``"stacking"``, ``"bb-pseudo-bma"`` or ``"pseudo-bma"``.
    :returns: a pandas table, the best model first: ``rank``, ``elpd`` (the sum over rows), ``se``,
        ``elpd_diff`` (to the best, at most 0), ``dse`` (its standard error, of paired rows), ``weight``.
    :raises ValueError: for an unknown method, fewer than two models, or other numbers of rows.
    """
    import arviz

    az: Any = arviz
    if method not in WEIGHT_METHODS:
        raise ValueError(f"method must be one of {', '.join(WEIGHT_METHODS)}, got {method!r}")
    if len(log_likelihoods) < 2:
        raise ValueError(f"a comparison needs at least two models, got {list(log_likelihoods)}")
    shapes = {name: np.shape(rows) for name, rows in log_likelihoods.items()}
    if len(set(shapes.values())) > 1 or any(len(s) != 1 or s[0] < 2 for s in shapes.values()):
        raise ValueError(
            f"every model needs one log-likelihood a row, of the same rows, got {shapes}"
        )
    table = np.stack([np.asarray(rows, np.float64) for rows in log_likelihoods.values()])
    if not np.isfinite(table).all():
        raise ValueError("log-likelihoods must be finite")
    # A number that all models share by row changes no difference and no weight. Without it the likelihoods,
    # which ArviZ takes out of the logarithm for weights, underflow at some hundred nats.
    table = table - table.max(0)
    elpd_data = {n: to_elpd_data(r) for n, r in zip(log_likelihoods, table, strict=True)}
    options: dict[str, Any] = {} if _is_first_generation() else {"round_to": "none"}
    with warnings.catch_warnings():
        # ArviZ 0.x calls pandas in ways that its next version drops.
        warnings.simplefilter("ignore", DeprecationWarning)
        weights = az.compare(elpd_data, method=method, **options)["weight"]
    return _table(log_likelihoods, weights)


def _table(log_likelihoods: Mapping[str, Array], weights: Any) -> Any:
    """ArviZ's weights beside sums and differences, which its generations round and sign differently."""
    import pandas as pd

    rows = {name: np.asarray(values, np.float64) for name, values in log_likelihoods.items()}
    best = max(rows, key=lambda name: rows[name].sum())
    lines = {}
    for name, values in rows.items():
        difference = values - rows[best]
        lines[name] = {
            "elpd": values.sum(),
            "se": math.sqrt(len(values) * values.var()),
            "elpd_diff": difference.sum(),
            "dse": math.sqrt(len(values) * difference.var()),
            "weight": float(weights[name]),
        }
    table = pd.DataFrame.from_dict(lines, orient="index").sort_values("elpd", ascending=False)
    table.insert(0, "rank", range(len(table)))
    return table


def _is_first_generation() -> bool:
    import arviz as az

    return int(az.__version__.split(".")[0]) < 1
