# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""A learning rate that falls where a metric no longer improves."""

from typing import Any

import torch

__all__ = ["ReduceLROnPlateau"]


class ReduceLROnPlateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """torch's schedule of this name, stepped by the trainer with the metric that it monitors.

    What is better is decided by ``monitor_mode`` and not by an option of its own, and ``threshold`` is
    a difference: a share of the best value has no sense for metrics that are negative.

    :param optimizer: the optimiser.
    :param options: ``factor``, ``patience``, ``threshold``, ``cooldown``, ``min_lr`` and ``eps``.
    :raises TypeError: for ``mode`` or ``threshold_mode``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, **options: Any) -> None:
        for name, instead in (("mode", "monitor_mode"), ("threshold_mode", "threshold")):
            if name in options:
                raise TypeError(f"{name} is not an option of it; {instead} is")
        super().__init__(optimizer, mode="min", threshold_mode="abs", **options)

    def step(self, metrics: Any = None, epoch: int | None = None) -> None:  # type: ignore[override]
        """Look at a value of the metric, small ones good; without one nothing happens.

        :param float metrics: the value.
        """
        if metrics is not None:
            super().step(metrics)
