# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Numbers that are watched while a model trains, chosen by name; computing them changes no run."""

from pyro_ebm.training.metrics.epoch_metrics import EpochMetrics
from pyro_ebm.training.metrics.registry import (
    DEFAULT_KEYS,
    METRICS,
    Metric,
    base_key,
    keys_of,
    known_keys,
)
from pyro_ebm.training.metrics.snapshot import (
    ConditionalSnapshot,
    DeepSnapshot,
    RBMSnapshot,
    Snapshot,
)
from pyro_ebm.training.metrics.step_watch import StepWatch

__all__ = [
    "DEFAULT_KEYS",
    "METRICS",
    "ConditionalSnapshot",
    "DeepSnapshot",
    "EpochMetrics",
    "Metric",
    "RBMSnapshot",
    "Snapshot",
    "StepWatch",
    "base_key",
    "keys_of",
    "known_keys",
]
