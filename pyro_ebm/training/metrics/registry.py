# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""The metrics by name, their options, and the keys of the history that they write."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro_ebm.training.metrics.chains import chain_mixing, mmd
from pyro_ebm.training.metrics.data import (
    classification_error,
    elbo,
    free_energy,
    free_energy_gap,
    reconstruction_error,
)
from pyro_ebm.training.metrics.likelihood import (
    ais_log_likelihood,
    exact_log_likelihood,
    pseudo_log_likelihoods,
)
from pyro_ebm.training.metrics.mean_field import mean_field_updates
from pyro_ebm.training.metrics.parameters import (
    gradient_norm,
    hidden_units,
    largest_column_norm,
    penalties,
    update_ratio,
    weight_norm,
)
from pyro_ebm.training.schedules import check, is_number, is_whole

__all__ = [
    "DEFAULT_KEYS",
    "METRICS",
    "Metric",
    "base_key",
    "check_options",
    "check_persistent",
    "keys_of",
    "known_keys",
    "options_of",
]

#: Whether a value of an option is possible, and the same in words.
Check = tuple[Callable[[Any], bool], str]


@dataclass(frozen=True)
class Metric:
    """A metric and what it needs.

    :param function: makes a part of a record from a snapshot and the options.
    :param keys: of the history that it writes, as far as they exist for the data and the model. Of a deep
        machine there may be more, those of its layers: a key with the name of a layer at its end, such as
        "dead_units_h2".
    :param options: default values by name.
    :param every: epochs between two evaluations, the default of the option of this name.
    :param bool shallow: whether RBMs have it.
    :param bool deep: whether deep machines have it.
    :param bool conditional: whether conditional models have it.
    :param bool chains: whether it looks at persistent chains.
    :param bool validation: whether it needs validation rows.
    :param bool states: whether rows must be states of the visible layer with a probability.
    """

    function: Callable[..., dict[str, Any]]
    keys: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    every: int = 1
    shallow: bool = True
    deep: bool = True
    conditional: bool = False
    chains: bool = False
    validation: bool = False
    states: bool = False


def _by_split(name: str) -> tuple[str, ...]:
    return f"{name}_train", f"{name}_validation"


#: All metrics, by the name by which :class:`~pyro_ebm.training.TrainerConfig` chooses them.
METRICS: dict[str, Metric] = {
    "reconstruction_error": Metric(
        reconstruction_error,
        ("reconstruction_error", "reconstruction_error_validation"),
        conditional=True,
    ),
    "free_energy": Metric(
        free_energy, (*_by_split("free_energy"), "free_energy_chains"), conditional=True
    ),
    "free_energy_gap": Metric(
        free_energy_gap,
        ("free_energy_gap", "free_energy_gap_std_error"),
        conditional=True,
        validation=True,
    ),
    "elbo": Metric(elbo, (*_by_split("elbo"), "elbo_std_error"), shallow=False),
    "mean_field_updates": Metric(
        mean_field_updates,
        ("mean_field_updates", "mean_field_updates_max", "mean_field_converged"),
        shallow=False,
    ),
    "pseudo_log_likelihood": Metric(
        pseudo_log_likelihoods,
        _by_split("pseudo_log_likelihood"),
        {"num_units": None},
        deep=False,
        states=True,
    ),
    "ais_log_likelihood": Metric(
        ais_log_likelihood,
        (
            *_by_split("ais_log_likelihood"),
            "ais_log_likelihood_std_error",
            "ais_log_likelihood_side",
            "ais_log_partition",
            "ais_ess",
        ),
        {"num_chains": 100, "num_temperatures": 1000, "seed": 0},
        every=10,
        states=True,
    ),
    "exact_log_likelihood": Metric(
        exact_log_likelihood,
        (*_by_split("exact_log_likelihood"), "exact_log_partition"),
        {"max_states": 2**20},
        states=True,
    ),
    "classification_error": Metric(
        classification_error, _by_split("classification_error"), deep=False
    ),
    "hidden_units": Metric(
        hidden_units, ("mean_activation", "dead_units", "saturated_units"), {"threshold": 0.01}
    ),
    "weight_norm": Metric(weight_norm, ("weight_norm",), conditional=True),
    "largest_column_norm": Metric(largest_column_norm, ("largest_column_norm",)),
    "gradient_norm": Metric(gradient_norm, ("gradient_norm",), conditional=True),
    "update_ratio": Metric(update_ratio, ("update_ratio",)),
    "penalties": Metric(penalties, ("penalty_l1", "penalty_l2", "penalty_sparsity")),
    "chain_mixing": Metric(
        chain_mixing, ("chain_r_hat", "chain_ess"), {"window": 200}, chains=True
    ),
    "mmd": Metric(mmd, ("mmd",), {"kernel": "rbf", "bandwidth": None}, chains=True),
}

#: What is recorded where no metrics are chosen: those of rows and chains that there are.
DEFAULT_KEYS = (
    "reconstruction_error",
    "free_energy_train",
    "weight_norm",
    "free_energy_validation",
    "free_energy_gap",
    "free_energy_chains",
)

_OPTION_CHECKS: dict[str, Check] = {
    "every": (lambda x: is_whole(x) and x >= 1, "a whole number >= 1"),
    "num_units": (
        lambda x: x is None or (is_whole(x) and x >= 1),
        "None or a whole number >= 1",
    ),
    "num_chains": (lambda x: is_whole(x) and x >= 2, "a whole number >= 2"),
    "num_temperatures": (lambda x: is_whole(x) and x >= 1, "a whole number >= 1"),
    "seed": (lambda x: is_whole(x) and 0 <= x < 2**63, "a whole number in [0, 2^63)"),
    "max_states": (lambda x: is_whole(x) and x >= 1, "a whole number >= 1"),
    "threshold": (lambda x: is_number(x) and 0 < x < 0.5, "a number in (0, 0.5)"),
    "window": (lambda x: is_whole(x) and x >= 8, "a whole number >= 8"),
    "kernel": (("rbf", "hamming").__contains__, "'rbf' or 'hamming'"),
    "bandwidth": (
        lambda x: x is None or (is_number(x) and x > 0),
        "None or a finite number > 0",
    ),
}


def base_key(key: str) -> str:
    """The key of all layers that a key of one layer belongs to; itself for others.

    >>> from pyro_ebm.training.metrics import base_key
    >>> base_key("dead_units_h2"), base_key("mmd")
    ('dead_units', 'mmd')
    """
    return re.sub(r"_h[1-9]\d*$", "", key)


def known_keys() -> frozenset[str]:
    """All keys that a metric may write."""
    return frozenset(key for metric in METRICS.values() for key in metric.keys)


def keys_of(names: Iterable[str] | None) -> tuple[str, ...]:
    """The keys that chosen metrics may write.

    :param names: metrics, None for what is recorded without a choice.

    >>> from pyro_ebm.training.metrics import keys_of
    >>> keys_of(["weight_norm", "hidden_units"])
    ('weight_norm', 'mean_activation', 'dead_units', 'saturated_units')
    """
    if names is None:
        return DEFAULT_KEYS
    return tuple(key for name in names for key in METRICS[name].keys)


def options_of(name: str, chosen: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], int]:
    """The arguments of a metric, and the epochs between two evaluations.

    :param str name: the metric.
    :param chosen: options by metric.
    """
    metric = METRICS[name]
    options = {**metric.options, "every": metric.every, **chosen.get(name, {})}
    return options, options.pop("every")


def check_options(names: Iterable[str] | None, chosen: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse options that a metric does not have, or of a metric that is not chosen.

    :raises ValueError: naming the option.
    """
    for name, options in chosen.items():
        if name not in (names or ()):
            raise ValueError(f"metrics_options has options of {name!r}, which is not in metrics")
        known = {*METRICS[name].options, "every"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(
                f"metrics_options of {name!r} has unknown {unknown}; it has {sorted(known)}"
            )
        for option, value in options.items():
            check(f"{option} of metrics_options of {name!r}", value, *_OPTION_CHECKS[option])


def check_persistent(names: Iterable[str] | None, persistent: bool) -> None:
    """Refuse metrics of persistent chains where there are none.

    :raises ValueError: naming the metric.
    """
    if persistent:
        return
    for name in names or ():
        if METRICS[name].chains:
            raise ValueError(f"metrics has {name!r}, which needs persistent=True")
