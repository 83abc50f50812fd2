# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Which values and combinations of options a training run can have."""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pyro_ebm.training.metrics.registry import (
    METRICS,
    base_key,
    check_options,
    check_persistent,
    keys_of,
    known_keys,
)
from pyro_ebm.training.monitor import MONITOR_MODES
from pyro_ebm.training.plateau import ReduceLROnPlateau
from pyro_ebm.training.schedules import is_number, is_whole

__all__ = [
    "CHECKS",
    "CONDITIONAL_ONLY",
    "DEEP_ONLY",
    "LABELLED_ONLY",
    "RBM_ONLY",
    "SCHEDULES",
    "SHALLOW_ONLY",
    "check_combinations",
]

LEARNING_RATE_SCHEDULES = ("constant", "linear", "cosine")
CHAIN_STARTS = ("data", "noise", "prior")
PERSISTENT_STARTS = ("noise", "data")
NEGATIVE_PHASES = ("gibbs", "tempering", "trajectory", "exact")
NEGATIVE_SIDES = ("auto", "visible", "hidden")
PRECONDITIONERS = ("none", "standardize", "diagonal", "natural")
STATISTICS = ("mean", "sample")
MISSING = ("marginal", "absent")
OBJECTIVES = ("generative", "discriminative", "hybrid")
_GROUP_OPTIONS = {"learning_rate", "weight_decay"}
# They need a closure, sparse gradients or matrices, or keep states of other shapes than the parameters'.
_NO_OPTIMIZERS = {"optimizer", "lbfgs", "sparseadam", "muon", "adafactor"}
# They need functions or other schedules, or change the momentum, which is an option of its own.
_NO_SCHEDULERS = {
    "OneCycleLR",
    "CyclicLR",
    "LRScheduler",
    "_LRScheduler",
    "LambdaLR",
    "MultiplicativeLR",
    "SequentialLR",
    "ChainedScheduler",
    "SWALR",
}

#: torch's optimisers and schedules of the learning rate, by name in lower case.
OPTIMIZERS = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    if name.lower() not in _NO_OPTIMIZERS
}
SCHEDULERS = {
    name: kind
    for name, kind in vars(torch.optim.lr_scheduler).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.lr_scheduler.LRScheduler)
    if name not in _NO_SCHEDULERS
}
# Ours, which the trainer steps with a metric.
SCHEDULERS["ReduceLROnPlateau"] = ReduceLROnPlateau


def _at_least(low: int) -> tuple[Callable[[Any], bool], str]:
    return lambda x: is_whole(x) and x >= low, f"a whole number >= {low}"


def _optional(check: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    valid, expected = check
    return lambda x: x is None or valid(x), f"None or {expected}"


def _one_of(choices: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
    return choices.__contains__, f"one of {choices}"


def _are_groups(groups: Any) -> bool:
    return isinstance(groups, Mapping) and all(
        isinstance(options, Mapping)
        and set(options) <= _GROUP_OPTIONS
        and all(is_number(value) and value >= 0 for value in options.values())
        for options in groups.values()
    )


def _are_layers(layers: Any) -> bool:
    return isinstance(layers, list | tuple) and all(
        isinstance(options, Mapping)
        and set(options) <= set(LAYER_OPTIONS)
        and all(LAYER_OPTIONS[name][0](value) for name, value in options.items())
        for options in layers
    )


def _are_metrics(names: Any) -> bool:
    # Anything may be in it, also what has no hash.
    return (
        isinstance(names, list | tuple)
        and all(isinstance(name, str) and name in METRICS for name in names)
        and len(set(names)) == len(names)
    )


_POSITIVE = (lambda x: is_number(x) and x > 0, "a finite number > 0")
_NON_NEGATIVE = (lambda x: is_number(x) and x >= 0, "a finite number >= 0")
_BELOW_1 = (lambda x: is_number(x) and 0 <= x < 1, "a number in [0, 1)")
_WITHIN_1 = (lambda x: is_number(x) and 0 < x < 1, "a number in (0, 1)")
_FROM_0_TO_1 = (lambda x: is_number(x) and 0 <= x <= 1, "a number in [0, 1]")
_BOOL = (lambda x: isinstance(x, bool), "True or False")
_PATH = (lambda x: isinstance(x, str | os.PathLike), "a path")
_OPTIONS = (
    lambda x: isinstance(x, Mapping) and all(isinstance(name, str) for name in x),
    "a dictionary by name",
)

#: Options that a hidden layer of a deep machine can have of its own.
LAYER_OPTIONS = {
    "max_norm": _optional(_POSITIVE),
    "sparsity_cost": _NON_NEGATIVE,
    "sparsity_target": _WITHIN_1,
}

#: By option: what is valid, and the same in words.
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_epochs": _at_least(0),
    "batch_size": _at_least(1),
    "learning_rate": _POSITIVE,
    "num_steps": _at_least(1),
    "persistent": _BOOL,
    "num_chains": _optional(_at_least(1)),
    "seed": (
        lambda x: x is None or (is_whole(x) and 0 <= x < 2**64),
        "None or a whole number in [0, 2^64)",
    ),
    "optimizer": (
        lambda x: isinstance(x, str) and x.lower() in OPTIMIZERS,
        f"one of {tuple(sorted(OPTIMIZERS))}",
    ),
    "optimizer_options": _OPTIONS,
    "momentum": _BELOW_1,
    "weight_decay": _NON_NEGATIVE,
    "decoupled_weight_decay": _BOOL,
    "learning_rate_schedule": (
        lambda x: isinstance(x, str) and (x in LEARNING_RATE_SCHEDULES or x in SCHEDULERS),
        f"one of {LEARNING_RATE_SCHEDULES} or of {tuple(SCHEDULERS)}",
    ),
    "schedule_options": _OPTIONS,
    "averaging": _BELOW_1,
    "gradient_clip": _optional(_POSITIVE),
    "preconditioner": _one_of(PRECONDITIONERS),
    "damping": _POSITIVE,
    "groups": (
        _are_groups,
        f"a dictionary by network of numbers >= 0 by name, of {sorted(_GROUP_OPTIONS)}",
    ),
    "chain_start": _one_of(CHAIN_STARTS),
    "persistent_start": _one_of(PERSISTENT_STARTS),
    "negative_phase": _one_of(NEGATIVE_PHASES),
    "negative_side": _one_of(NEGATIVE_SIDES),
    "num_replicas": _at_least(2),
    "fast_rate": _NON_NEGATIVE,
    "fast_decay": _BELOW_1,
    "positive_hidden": _one_of(STATISTICS),
    "chain_hidden": _one_of(STATISTICS),
    "chain_visible": _one_of(STATISTICS),
    "negative_hidden": _one_of(STATISTICS),
    "l1": _NON_NEGATIVE,
    "max_norm": _optional(_POSITIVE),
    "sparsity_target": _WITHIN_1,
    "sparsity_cost": _NON_NEGATIVE,
    "sparsity_damping": _BELOW_1,
    "dropout": _BELOW_1,
    "dropconnect": _BELOW_1,
    "objective": _one_of(OBJECTIVES),
    "generative_weight": _NON_NEGATIVE,
    "unlabelled_weight": _NON_NEGATIVE,
    "binarize": _BOOL,
    "noise_std": _NON_NEGATIVE,
    "missing": _one_of(MISSING),
    "offset_rate": _FROM_0_TO_1,
    "mean_field_updates": _at_least(1),
    "mean_field_tolerance": _NON_NEGATIVE,
    "layers": (_are_layers, f"a list by hidden layer of dictionaries with {sorted(LAYER_OPTIONS)}"),
    "metrics": _optional((_are_metrics, f"different names of {tuple(METRICS)}")),
    "metrics_every": _at_least(1),
    "metrics_options": (
        lambda x: isinstance(x, Mapping) and all(isinstance(o, Mapping) for o in x.values()),
        "a dictionary by metric of options by name",
    ),
    "metrics_rows": _at_least(1),
    "monitor": (lambda x: x is None or (isinstance(x, str) and x != ""), "None or a key"),
    "monitor_mode": _one_of(MONITOR_MODES),
    "patience": _optional(_at_least(1)),
    "min_delta": _NON_NEGATIVE,
    "best_checkpoint": _optional(_PATH),
    "checkpoint": _optional(_PATH),
    "checkpoint_every": _at_least(1),
    "progress": _BOOL,
}

#: Options that may be lists by epoch or functions of the epoch.
SCHEDULES = frozenset(
    {
        "learning_rate",
        "num_steps",
        "momentum",
        "weight_decay",
        "l1",
        "sparsity_cost",
        "fast_rate",
        "dropout",
        "dropconnect",
    }
)

#: Options that only an RBM has, or only a conditional model.
RBM_ONLY = (
    "decoupled_weight_decay",
    "persistent_start",
    "preconditioner",
    "fast_rate",
    "positive_hidden",
    "chain_hidden",
    "chain_visible",
    "negative_hidden",
    "l1",
    "max_norm",
    "sparsity_cost",
    "dropout",
    "dropconnect",
    "objective",
)
DEEP_ONLY = ("mean_field_updates", "mean_field_tolerance", "layers")
#: Of RBMs, but not of deep machines.
SHALLOW_ONLY = (
    "preconditioner",
    "damping",
    "fast_rate",
    "fast_decay",
    "positive_hidden",
    "chain_hidden",
    "chain_visible",
    "negative_hidden",
    "dropout",
    "dropconnect",
)
#: Of classification RBMs.
LABELLED_ONLY = ("objective", "generative_weight", "unlabelled_weight")
CONDITIONAL_ONLY = ("groups", "negative_side")


def check_combinations(config: Any) -> None:
    """Refuse options that contradict each other or have no effect beside another one.

    :raises ValueError: naming both.
    """
    if config.negative_phase in ("tempering", "trajectory") and not config.persistent:
        raise ValueError(f"negative_phase={config.negative_phase!r} needs persistent=True")
    if config.negative_phase == "exact":
        chains = {
            "persistent": False,
            "num_chains": None,
            "negative_side": "auto",
            "fast_rate": 0.0,
        }
        for name, value in chains.items():
            if getattr(config, name) != value:
                raise ValueError(f"{name} is an option of chains: negative_phase='exact' has none")
    if config.missing == "absent":
        own = {"persistent": False, "num_chains": None, "chain_start": "data"}
        for name, value in own.items():
            if getattr(config, name) != value:
                raise ValueError(
                    f"{name} is no option of missing='absent': the chain of a row has its units and "
                    "starts at it (CD-k)"
                )
        rows = {n for n, m in METRICS.items() if m.states or m.chains or m.validation}
        if refused := sorted(rows & set(config.metrics or ())):
            raise ValueError(f"metrics {refused} are of whole machines, not of missing='absent'")
    if config.persistent and config.chain_start == "noise":
        raise ValueError("chain_start='noise' has no effect: persistent chains start there anyway")
    if config.persistent_start == "data" and not config.persistent:
        raise ValueError(
            "persistent_start='data' is an option of persistent chains (persistent=True)"
        )
    if config.fast_rate and not (config.persistent and config.negative_phase == "gibbs"):
        raise ValueError(
            "fast_rate is an option of persistent chains of block Gibbs (persistent=True, "
            "negative_phase='gibbs')"
        )
    check_options(config.metrics, config.metrics_options)
    check_persistent(config.metrics, config.persistent)
    _check_monitor(config)
    _check_optimizer(config)


def _check_monitor(config: Any) -> None:
    key = config.monitor
    if key is None:
        for name, value in {"monitor_mode": "min", "patience": None, "min_delta": 0.0}.items():
            if getattr(config, name) != value:
                raise ValueError(f"{name} is an option of the metric that monitor names")
        if config.best_checkpoint is not None:
            raise ValueError(
                "best_checkpoint is written where the metric that monitor names improves"
            )
        if config.learning_rate_schedule == "ReduceLROnPlateau":
            raise ValueError("learning_rate_schedule='ReduceLROnPlateau' needs monitor")
        return
    base = base_key(key)
    if base in known_keys() and base not in keys_of(config.metrics):
        names = [name for name, metric in METRICS.items() if base in metric.keys]
        raise ValueError(f"monitor={key!r} needs one of {names} in metrics")
    if config.best_checkpoint is not None and config.checkpoint is not None:
        if os.fspath(config.best_checkpoint) == os.fspath(config.checkpoint):
            raise ValueError("best_checkpoint and checkpoint must be different files")


def _check_optimizer(config: Any) -> None:
    name = config.optimizer.lower()
    for option in {"lr", "weight_decay", "momentum"} & set(config.optimizer_options):
        own = "learning_rate" if option == "lr" else option
        raise ValueError(f"optimizer_options has {option!r}, which is the option {own} of its own")
    with_momentum = sorted(n for n, kind in OPTIMIZERS.items() if "momentum" in _defaults(kind))
    if config.momentum and name not in with_momentum:
        raise ValueError(f"momentum is an option of {with_momentum}, not of {config.optimizer!r}")
    if config.weight_decay and not config.decoupled_weight_decay:
        if "weight_decay" not in _defaults(OPTIMIZERS[name]):
            raise ValueError(
                f"weight_decay is no option of {config.optimizer!r}; take decoupled_weight_decay=True"
            )
    if config.schedule_options and config.learning_rate_schedule in LEARNING_RATE_SCHEDULES:
        raise ValueError(
            f"schedule_options are of torch's schedules, {config.learning_rate_schedule!r} has none"
        )
    if config.learning_rate_schedule in SCHEDULERS and isinstance(config.learning_rate, tuple):
        raise ValueError(
            f"learning_rate by epoch and learning_rate_schedule={config.learning_rate_schedule!r} "
            "exclude each other"
        )
    if config.preconditioner == "standardize" and name not in ("sgd", "asgd"):
        raise ValueError(
            f"preconditioner='standardize' has no effect beside {config.optimizer!r}, which scales "
            "every parameter by itself; take optimizer='sgd'"
        )
    make_scheduler(config, make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))]))


def make_scheduler(config: Any, optimizer: torch.optim.Optimizer) -> Any:
    """torch's schedule of the learning rate; None for ours.

    :raises ValueError: if it does not take ``schedule_options``.
    """
    kind: Any = SCHEDULERS.get(config.learning_rate_schedule)
    if kind is None:
        return None
    try:
        return kind(optimizer, **config.schedule_options)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"schedule_options {dict(config.schedule_options)} are impossible for "
            f"{config.learning_rate_schedule!r}: {error}"
        ) from error


def _defaults(kind: type) -> set[str]:
    """Names of the arguments of an optimiser."""
    return set(inspect.signature(kind).parameters)


def make_optimizer(config: Any, groups: list[Any]) -> Any:
    """torch's optimiser of a configuration.

    :param config: has ``optimizer`` and ``optimizer_options``, and may have a ``momentum``.
    :param groups: parameters, or groups of them with their learning rates.
    :raises ValueError: for arguments that the optimiser does not have.
    """
    name = config.optimizer.lower()
    kind: Any = OPTIMIZERS[name]
    options = dict(config.optimizer_options)
    # From JSON, where there are no tuples.
    options = {n: tuple(v) if isinstance(v, list) else v for n, v in options.items()}
    if momentum := getattr(config, "momentum", 0.0):
        # The largest of a schedule: the present value is set at every epoch.
        options["momentum"] = max(momentum) if isinstance(momentum, tuple) else momentum
    try:
        if name in ("adam", "adamw") and not {"fused", "foreach"} & set(options):
            try:
                # One pass over all states instead of a dozen: a sixth of the time on a CPU.
                return kind(groups, lr=1.0, fused=True, **options)
            except RuntimeError:  # not for every device in every version of torch
                pass
        return kind(groups, lr=1.0, **options)
    except (TypeError, ValueError) as error:
        # What the options are is for torch to say.
        raise ValueError(
            f"optimizer_options of {config.optimizer!r} are impossible: {error}"
        ) from error
