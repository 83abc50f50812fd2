# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""One estimate of log Z from several independent ones."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.infer.log_partition.estimate import LogPartitionEstimate
from pyro_ebm.ops.numerics import student_quantile

__all__ = ["combine_estimates"]

#: Settings in which the runs may differ.
_OWN = ("seed", "seconds", "num_chains", "num_replicas")
#: Settings that are results of a run, and are left out of a combination.
_RESULTS = ("bracket", "forward", "reverse", "mixing")
#: Sums of squared deviations this far above their expectation, in standard deviations, contradict the
#: error bars of the runs.
_CONTRADICTION = 4.0


def combine_estimates(
    estimates: Sequence[LogPartitionEstimate], *, warn: bool = True
) -> LogPartitionEstimate:
    r"""Combine independent estimates of the same log Z: runs of one method that differ in the seed.

    Estimates with weights are pooled: log Z is the logarithm of the mean of **all** weights (the mean of
    the logarithms would keep the bias of the single runs), and the whole is examined as one run.
    Others are averaged, with the standard error :math:`\sqrt{\sum_i \mathrm{se}_i^2} / n`; weights by
    estimated errors would favour the runs that err low. If the estimates lie further from each other
    than their standard errors allow, their spread takes the place of the standard error, and the
    combination is flagged.

    :param estimates: at least one, of the same method, batch shape, side and settings but for seed,
        number of chains and time.
    :param bool warn: whether to warn if the combination is suspicious.
    :raises TypeError: if one is no estimate.
    :raises ValueError: if they do not go together, or a seed occurs twice.

    >>> import torch
    >>> runs = [
    ...     LogPartitionEstimate.from_log_weights(w.double(), {"method": "ais", "seed": seed})
    ...     for seed, w in enumerate(torch.randn(2, 100, generator=torch.Generator().manual_seed(0)))
    ... ]
    >>> both = combine_estimates(runs)
    >>> both.settings["seed"], len(both.log_weights)
    ([0, 1], 200)
    """
    estimates = list(estimates)
    _check(estimates)
    combined = _combine(estimates)
    if warn:
        combined.warn(stacklevel=3)
    return combined


def _combine(estimates: list[LogPartitionEstimate]) -> LogPartitionEstimate:
    settings = _settings(estimates)
    weights = [e.log_weights for e in estimates if e.log_weights is not None]
    first = estimates[0]
    if len(weights) == len(estimates):
        settings["num_chains"] = sum(map(len, weights))
        reverse = first.side == "above"
        return LogPartitionEstimate.from_log_weights(
            torch.cat(weights), settings, reverse=reverse, warn=False
        )
    return _average(estimates, settings)


def _average(
    estimates: list[LogPartitionEstimate], settings: dict[str, Any]
) -> LogPartitionEstimate:
    def stack(name: str) -> Tensor:
        return torch.stack([getattr(e, name) for e in estimates])

    value, error, count = stack("value"), stack("std_error"), len(estimates)
    mean = value.mean(0)
    std_error = error.square().sum(0).sqrt() / count
    below = (value - stack("lower")).square().sum(0).sqrt() / count
    above = (stack("upper") - value).square().sum(0).sqrt() / count
    flags = list(dict.fromkeys(text for e in estimates for text in e.flags))
    if count > 1:
        # Chi-squared with count - 1 degrees of freedom, whose variance is twice as large.
        excess = ((value - mean) / error).square().nan_to_num(nan=0.0).sum(0) - (count - 1)
        apart = excess > _CONTRADICTION * math.sqrt(2.0 * (count - 1))
        if bool(apart.any()):
            flags.append("the runs differ by more than their standard errors allow")
        factor = torch.where(apart, value.std(0) / math.sqrt(count) / std_error, 1.0)
        factor = factor.clamp(min=1.0)
        # The spread of few runs is known badly itself.
        margin = torch.where(apart, student_quantile(count - 1) / student_quantile(math.inf), 1.0)
        std_error, below, above = (x * factor for x in (std_error, below, above))
        below, above = below * margin, above * margin
    return LogPartitionEstimate.from_error(
        mean,
        std_error,
        settings,
        ess=stack("ess").sum(0),
        lower=mean - below,
        upper=mean + above,
        flags=flags,
        side=estimates[0].side,
        warn=False,
    )


def _check(estimates: list[LogPartitionEstimate]) -> None:
    if not estimates:
        raise ValueError("there is nothing to combine: estimates is empty")
    for estimate in estimates:
        if not isinstance(estimate, LogPartitionEstimate):
            raise TypeError(
                f"estimates must hold LogPartitionEstimate, got {type(estimate).__name__}"
            )
    first = estimates[0]
    for number, other in enumerate(estimates[1:], 1):
        if other.side != first.side:
            raise ValueError(
                f"estimates from {first.side} and from {other.side} bound log Z on different sides "
                "and cannot be combined; use LogPartitionBracket"
            )
        if other.value.shape != first.value.shape:
            raise ValueError(
                f"estimates have different batch shapes: {tuple(first.value.shape)} and "
                f"{tuple(other.value.shape)}"
            )
        differing = _differences(first.settings, other.settings)
        if differing:
            raise ValueError(
                f"estimate {number} was obtained in another way than the first: "
                + ", ".join(differing)
            )
    seeds = [seed for e in estimates for seed in _seeds(e) if seed is not None]
    repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if repeated:
        raise ValueError(f"estimates must be independent, but seeds occur twice: {repeated}")


def _differences(first: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Settings that differ, each with both values."""
    names = [n for n in first | other if n not in (*_OWN, *_RESULTS)]
    return [
        f"{name} is {first.get(name)!r} and {other.get(name)!r}"
        for name in names
        if first.get(name) != other.get(name)
    ]


def _seeds(estimate: LogPartitionEstimate) -> list[Any]:
    seed = estimate.settings.get("seed")
    return list(seed) if isinstance(seed, list | tuple) else [seed]


def _settings(estimates: list[LogPartitionEstimate]) -> dict[str, Any]:
    settings = {n: v for n, v in estimates[0].settings.items() if n not in _RESULTS}
    if len(estimates) == 1:
        return settings
    settings["seed"] = [seed for e in estimates for seed in _seeds(e)]
    counts = [e.settings["num_chains"] for e in estimates if "num_chains" in e.settings]
    if counts:
        settings["num_chains"] = sum(counts)
    times = [e.settings["seconds"] for e in estimates if "seconds" in e.settings]
    if times:
        settings["seconds"] = round(sum(times), 3)
    return settings
