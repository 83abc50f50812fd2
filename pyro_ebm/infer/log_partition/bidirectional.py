# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log Z from annealing in both directions at once."""

import dataclasses
import math
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid
from tqdm.auto import tqdm

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.distributions.sampling import exact_side
from pyro_ebm.infer.log_partition.ais import estimate_log_partition
from pyro_ebm.infer.log_partition.bennett import bennett_acceptance_ratio, jackknife_error
from pyro_ebm.infer.log_partition.deep_side import Side, as_side
from pyro_ebm.infer.log_partition.estimate import LogPartitionEstimate, LogPartitionWarning
from pyro_ebm.infer.log_partition.tempered_start import TemperedStart, tempered_start
from pyro_ebm.infer.paths import GeometricPath, inverse_temperatures
from pyro_ebm.ops.numerics import effective_sample_size

__all__ = ["bidirectional_log_partition"]

_STARTS = ("exact", "tempering")
#: Below this share of the chains the effective number of works is called low.
_LOW_ESS = 0.1


def bidirectional_log_partition(
    dist: RBM | DBM,
    *,
    num_chains: int = 100,
    num_temperatures: int = 10_000,
    base: Tensor | str | None = None,
    side: str = "auto",
    schedule: str | Tensor = "linear",
    initial: Tensor | str | None = None,
    tempering_sweeps: int = 4000,
    seed: int | None = None,
    progress: bool = False,
) -> LogPartitionEstimate:
    r"""Estimate :math:`\log Z` from annealing in both directions.

    Forward and reverse runs over the same temperatures, taken alone, bound log Z from below and
    from above, and each hangs on the rare chain that nearly touches the other side. Crooks' theorem
    says how their works are distributed relative to each other,
    :math:`p_F(w) = e^{w - \log Z} p_R(w)` with w the forward log-weight, so that Bennett's ratio can be
    taken of them [1, 2]: it looks where both have chains and has a much smaller error than either
    side.

    The settings hold both sides (``"forward"``, ``"reverse"``), and a ``"bracket"`` from the lower end
    of the forward interval to the upper end of the reverse one, which does not trust the combination.

    Reverse chains must start in equilibrium, which decides over the upper bound. They start from exact
    samples where the machine can be enumerated, and otherwise from the top level of a
    parallel-tempering run of its own, several states from each of its independent chains; the
    error bar leaves out those together.

    **References**

    [1] *Efficient estimation of free energy differences from Monte Carlo data*, Charles Bennett (1976)

    [2] *Entropy production fluctuation theorem and the nonequilibrium work relation for free energy
    differences*, Gavin Crooks (1999)

    :param dist: an RBM or a DBM, with any batch shape; an attached log Z is ignored.
    :param int num_chains: annealing runs in each direction, at least 2.
    :param int num_temperatures: steps of the ladder.
    :param base: as for :func:`estimate_log_partition`.
    :param str side: layers of a DBM whose states are annealed, as for :func:`estimate_log_partition`.
    :param schedule: as for :func:`estimate_log_partition`; both directions use the same temperatures.
    :param initial: where reverse chains start: ``"exact"``, ``"tempering"``, or independent samples of
        the machine, shape ``(num_chains,) + dist.parameter_batch_shape + (V,)``; exact where possible if
        None.
    :param int tempering_sweeps: sweeps of the tempering run; the first half is thrown away.
    :param int seed: seed; the reverse run uses ``seed + 1`` and the tempering ``seed + 2``.
    :param bool progress: whether to show progress bars.
    :raises ValueError: for impossible options, or if Z is infinite.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import bidirectional_log_partition, exact_log_partition
    >>> rbm = BernoulliRBM(torch.ones(6, 4), -2 * torch.ones(6), -3 * torch.ones(4))
    >>> estimate = bidirectional_log_partition(rbm, num_temperatures=20, seed=0)
    >>> bool((estimate.value - exact_log_partition(rbm)).abs() < 5 * estimate.std_error)
    True
    """
    started = time.perf_counter()
    path = _path(as_side(dist, base, side), seed)
    if num_chains < 2:
        raise ValueError(f"num_chains must be at least 2 for a standard error, got {num_chains}")
    temperatures = inverse_temperatures(schedule, num_temperatures, path, num_chains)
    start = None
    if _needs_tempering(path.target, initial):
        with tqdm(
            total=tempering_sweeps,
            desc="tempering",
            unit="sweep",
            leave=False,
            disable=not progress,
        ) as bar:
            start = tempered_start(path, num_chains, num_sweeps=tempering_sweeps, tick=bar.update)
    elif isinstance(initial, Tensor):
        if len(initial) != num_chains:
            raise ValueError(
                f"initial must hold num_chains={num_chains} samples, got {len(initial)}"
            )
        start = TemperedStart(initial, num_chains, "given", (), 0)
    return bidirectional_estimate(
        dist,
        start,
        started,
        num_chains=num_chains,
        base=base,
        side=side,
        temperatures=temperatures,
        schedule=schedule if isinstance(schedule, str) else "given",
        seed=seed,
        progress=progress,
    )


def bidirectional_estimate(
    dist: RBM | DBM,
    start: TemperedStart | None,
    started: float,
    *,
    num_chains: int,
    base: Tensor | str | None,
    side: str = "auto",
    temperatures: Sequence[float],
    schedule: str,
    seed: int | None,
    progress: bool = False,
) -> LogPartitionEstimate:
    """Anneal both ways and combine the works, see :func:`bidirectional_log_partition`.

    :param TemperedStart start: where reverse chains start; exact samples if None.
    :param float started: when the clock started, as :func:`time.perf_counter` counts.
    :param temperatures: the ladder of both ways.
    :param str schedule: its name.
    """
    options: dict[str, Any] = {
        "base": base,
        "side": side,
        "schedule": torch.tensor(temperatures, dtype=torch.float64),
        "progress": progress,
    }
    with warnings.catch_warnings():
        # What is wrong with one side alone is no fault of the two together.
        warnings.simplefilter("ignore", LogPartitionWarning)
        forward = estimate_log_partition(dist, "ais", num_chains=num_chains, seed=seed, **options)
        reverse = estimate_log_partition(
            dist,
            "reverse-ais",
            num_chains=num_chains if start is None else len(start.v),
            initial=None if start is None else start.v,
            seed=None if seed is None else seed + 1,
            **options,
        )
    settings = {**forward.settings, "method": "bidirectional", "schedule": schedule}
    settings["start"] = "exact" if start is None else start.word
    return _combine(forward, grouped(reverse, start), start, settings, started)


def grouped(reverse: LogPartitionEstimate, start: TemperedStart | None) -> LogPartitionEstimate:
    """A reverse estimate whose error bar and flags account for how its chains started: those that
    start from one tempering chain are left out together."""
    if start is None:
        return reverse
    assert reverse.log_weights is not None
    share = torch.softmax(-reverse.log_weights, 0).unflatten(0, (start.num_groups, -1)).sum(1)
    error = jackknife_error(torch.log1p(-share.clamp(max=1.0 - 1e-15)))
    wide = LogPartitionEstimate.from_error(
        reverse.value,
        torch.maximum(error, reverse.std_error),
        {**reverse.settings, "start": start.word},
        ess=reverse.ess,
        degrees_of_freedom=start.num_groups - 1,
        flags=(*reverse.flags, *start.flags),
        side="above",
        warn=False,
    )
    return dataclasses.replace(
        wide,
        # Suspicious weights have a wider interval than their error bar says.
        lower=torch.minimum(wide.lower, reverse.lower),
        upper=torch.maximum(wide.upper, reverse.upper),
        log_weights=reverse.log_weights,
    )


def _path(chosen: Side, seed: int | None) -> GeometricPath:
    dist = chosen.machine
    dist.check_normalizable()
    generator = None
    if seed is not None:
        generator = Generator(device=dist.weight.device).manual_seed(seed + 2)
    return GeometricPath(dist, chosen.base, generator)


def _needs_tempering(dist: RBM, initial: Tensor | str | None) -> bool:
    if isinstance(initial, Tensor):
        return False
    if initial not in (*_STARTS, None):
        raise ValueError(f"initial must be one of {_STARTS} or samples, got {initial!r}")
    small = can_sample_exactly(dist)
    if initial == "exact" and not small:
        raise ValueError('initial="exact" needs a layer that can be enumerated; use "tempering"')
    return initial == "tempering" or not small


def can_sample_exactly(dist: RBM) -> bool:
    """Whether a layer is small enough to be enumerated for exact draws."""
    return exact_side(dist) is not None


def _combine(
    forward: LogPartitionEstimate,
    reverse: LogPartitionEstimate,
    start: TemperedStart | None,
    settings: dict[str, Any],
    started: float,
) -> LogPartitionEstimate:
    assert forward.log_weights is not None and reverse.log_weights is not None
    num_groups = len(reverse.log_weights) if start is None else start.num_groups
    works = forward.log_weights.unsqueeze(1)
    back = -reverse.log_weights.unflatten(0, (num_groups, -1))
    ratio = bennett_acceptance_ratio(works, back)
    ess = _effective_works(works.flatten(0, 1), back.flatten(0, 1), ratio.value)
    flags = [] if start is None else list(start.flags)
    if bool((ess < _LOW_ESS * len(works)).any()):
        flags.append(
            f"the two directions hardly overlap ({ess.min().item():.1f} effective works of "
            f"{len(works)})"
        )
    if bool((forward.lower > reverse.upper).any()):
        flags.append("the lower bound of log Z lies above the upper bound")
    settings["bracket"] = [forward.lower.tolist(), reverse.upper.tolist()]
    for name, side in (("forward", forward), ("reverse", reverse)):
        numbers = ("value", "std_error", "lower", "upper", "ess")
        settings[name] = {number: getattr(side, number).tolist() for number in numbers}
    settings["seconds"] = round(time.perf_counter() - started, 3)
    return LogPartitionEstimate.from_error(
        ratio.value,
        ratio.std_error,
        settings,
        ess=ess,
        degrees_of_freedom=min(len(works), num_groups) - 1,
        flags=flags,
    )


def _effective_works(forward: Tensor, reverse: Tensor, log_z: Tensor) -> Tensor:
    """Kish's effective number of the terms of Bennett's sums, of the side with the fewer."""
    shift = log_z + math.log(len(forward) / len(reverse))
    sides = logsigmoid(forward - shift), logsigmoid(reverse + shift)
    return torch.minimum(*(effective_sample_size(side) for side in sides))
