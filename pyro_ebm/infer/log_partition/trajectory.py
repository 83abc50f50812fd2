# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log Z along a training run, by annealing through its checkpoints."""

import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Size, Tensor
from tqdm.auto import tqdm

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.distributions.units import Unit
from pyro_ebm.infer.log_partition.deep_side import as_machine, as_side
from pyro_ebm.infer.log_partition.estimate import LogPartitionEstimate, LogPartitionWarning
from pyro_ebm.infer.log_partition.reverse_start import ReverseStart
from pyro_ebm.infer.paths import MachinePath, inverse_temperatures
from pyro_ebm.ops.numerics import effective_sample_size, log_mean_exp

__all__ = ["trajectory_log_partition"]

_METHODS = ("ais", "reverse-ais")

#: A temperature as near to a knot as this stands at the knot.
_SAME = 1e-9


def trajectory_log_partition(
    checkpoints: Sequence[RBM | DBM],
    method: str = "ais",
    *,
    num_chains: int = 100,
    num_temperatures: int = 10_000,
    base: Unit | Tensor | str | None = None,
    side: str = "auto",
    schedule: str | Tensor = "adaptive",
    initial: Tensor | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> list[LogPartitionEstimate]:
    r"""Estimate :math:`\log Z` of every checkpoint of a training run by annealing through them.

    The path starts at a machine without weights and goes straight from checkpoint to checkpoint.
    Neighbours are alike, as training moved the parameters little by little, so that chains follow
    where a path of temperatures would have to cross a transition. The partial sums of the log-weights
    at the checkpoints are log-weights of *these* machines: one run gives the log Z, and so the
    log-likelihood, of all of them.

    ``method="ais"`` bounds every log Z from below in expectation. ``method="reverse-ais"`` anneals samples
    of the last machine back through the checkpoints and bounds *its* log Z from above; for the ones
    before it the same run gives :math:`\log Z_k = \log Z_0 + \log E[w_{K \to k}] - \log E[w_{K \to 0}]`, a
    difference of two estimates, consistent but no bound.

    The list can be of copies of a module's distribution, taken while it is trained::

        checkpoints = []
        for epoch in range(20):
            ...                                     # train
            checkpoints.append(copy.deepcopy(module)())
        curve = trajectory_log_partition(checkpoints)
        learning_curve = [
            log_likelihood(machine, data, estimate).mean()
            for machine, estimate in zip(checkpoints, curve)
        ]

    (``pyro_ebm.load(path)()`` is the machine of a checkpoint file of the trainer.)

    **References**

    [1] *Fast training and sampling of Restricted Boltzmann Machines*, Nicolas Béreux,
    Aurélien Decelle, Cyril Furtlehner, Lorenzo Rosset, Beatriz Seoane (2025)

    [2] *Annealed importance sampling*, Radford Neal (2001)

    :param checkpoints: RBMs or DBMs of the same families, sizes, dtype and batch shape in the order of
        training, the machine of interest last.
    :param str method: "ais" or "reverse-ais".
    :param int num_chains: independent annealing runs, at least 2.
    :param int num_temperatures: steps of the ladder, all checkpoints together; each checkpoint that is
        not on the ladder adds one.
    :param base: the visible layer of the machine without weights: None for that of the first
        checkpoint, or what :func:`base_unit` makes one of ("uniform" or data means).
    :param str side: layers of DBMs whose states are annealed, as for :func:`estimate_log_partition`.
    :param schedule: as for :func:`estimate_log_partition`; "adaptive" gives segments their share by the
        spread of the log-weights in a pilot run.
    :param Tensor initial: samples of the last machine to start reverse chains from, shape
        ``(num_chains,) + batch_shape + (V,)``. If None, exact ones where the machine can be enumerated,
        otherwise the end of a forward run, resampled by its weights and moved by
        ``num_gibbs_steps`` sweeps.
    :param int seed: seed of a generator of its own; the global generator if None.
    :param bool progress: whether to show a progress bar.
    :returns: one estimate a checkpoint, in their order.
    :raises ValueError: for impossible options or machines that do not fit together.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import exact_log_partition
    >>> checkpoints = [BernoulliRBM(s * torch.eye(3), torch.zeros(3), torch.zeros(3)) for s in (1.0, 2.0)]
    >>> curve = trajectory_log_partition(checkpoints, num_temperatures=100, seed=0)
    >>> [round(estimate.value.item(), 1) for estimate in curve]
    [5.2, 7.0]
    >>> [round(exact_log_partition(machine).item(), 1) for machine in checkpoints]
    [5.2, 7.0]
    """
    started = time.perf_counter()
    machines, path, layers = _make_path(checkpoints, method, num_chains, base, side, seed)
    betas = _with_knots(
        inverse_temperatures(schedule, num_temperatures, path, num_chains), path.positions[1:-1]
    )
    settings: dict[str, Any] = {
        "method": f"trajectory {method}",
        **layers,
        "num_chains": num_chains,
        "num_temperatures": len(betas) - 1,
        "num_checkpoints": len(checkpoints),
        "schedule": schedule if isinstance(schedule, str) else "given",
        "base": "visible biases" if base is None else base if isinstance(base, str) else "given",
        "seed": seed,
        "dtype": str(path.target.weight.dtype).removeprefix("torch."),
        "device": str(path.target.weight.device),
    }
    reverse = method == "reverse-ais"
    if reverse:
        start = ReverseStart(machines[-1], "auto", initial, num_chains)
        settings["start"] = start.word
        sums = _anneal(path, _draw(start, path, betas, num_chains), betas[::-1], progress)
    else:
        sums = _anneal(path, path.sample_base(num_chains), betas, progress)
    settings["seconds"] = round(time.perf_counter() - started, 3)
    curve = _estimates(path, sums, settings, reverse, machines[-1].batch_shape)
    _warn(curve)
    return curve


def _make_path(
    checkpoints: Sequence[RBM | DBM],
    method: str,
    num_chains: int,
    base: Unit | Tensor | str | None,
    side: str,
    seed: int | None,
) -> tuple[list[RBM], MachinePath, dict[str, Any]]:
    """The checkpoints as RBMs, the path through them, and which layers are annealed."""
    if method not in _METHODS:
        raise ValueError(f"method must be one of {_METHODS}, got {method!r}")
    if num_chains < 2:
        raise ValueError(f"num_chains must be at least 2 for a standard error, got {num_chains}")
    if not checkpoints or not all(isinstance(c, RBM | DBM) for c in checkpoints):
        kinds = sorted({type(machine).__name__ for machine in checkpoints})
        raise TypeError(f"checkpoints must be RBM distributions or DBMs, at least one, got {kinds}")
    machines = [as_machine(machine, side, "checkpoints") for machine in checkpoints]
    generator = None
    if seed is not None:
        generator = Generator(device=machines[-1].weight.device).manual_seed(seed)
    chosen = as_side(checkpoints[0], base, side)
    start = None if base is None else chosen.base
    path = MachinePath.from_checkpoints(machines, start, generator)
    return machines, path, chosen.settings


def _draw(start: ReverseStart, path: MachinePath, betas: list[float], num_chains: int) -> Tensor:
    if start.kind != "forward":
        return start.draw(0, num_chains, path)
    end, log_ratio = path.anneal(path.sample_base(num_chains), betas)
    return start.resample(end, log_ratio, path)


def _with_knots(betas: list[float], knots: list[float]) -> list[float]:
    """A ladder that has a temperature exactly at every knot."""
    others = [b for b in betas if all(abs(b - knot) > _SAME for knot in knots)]
    return sorted([*others, *knots])


def _anneal(path: MachinePath, v: Tensor, betas: list[float], progress: bool) -> Tensor:
    """Log-weights of single chains at every knot that is passed, in the order of passing, shape
    ``(knots, num_chains) + batch_shape``; zero at the one that they start from."""
    knots = set(path.positions)
    total = torch.zeros(v.shape[:-1], dtype=torch.float64, device=v.device)
    sums = [total.clone()]
    with tqdm(total=len(betas) - 1, desc="trajectory", disable=not progress, leave=False) as bar:

        def observe(step: int, increment: Tensor) -> None:
            total.add_(increment)
            if betas[step + 1] in knots:
                change = path.constant(betas[step + 1]) - path.constant(betas[0])
                sums.append(total + change)
            bar.update()

        path.anneal(v, betas, observe)
    return torch.stack(sums)


def _estimates(
    path: MachinePath, sums: Tensor, settings: dict[str, Any], reverse: bool, batch_shape: Size
) -> list[LogPartitionEstimate]:
    """One estimate a checkpoint from the log-weights at the knots."""
    # Elements of an expanded batch share their parameters, hence their chains.
    missing = (1,) * (len(batch_shape) - len(path.batch_shape))
    shape = sums.shape[:2]
    sums = sums.reshape(*shape, *missing, *path.batch_shape).expand(*shape, *batch_shape)
    base = path.log_partition_base
    if not reverse:
        return [
            LogPartitionEstimate.from_log_weights(
                base + total, settings | {"checkpoint": number}, warn=False
            )
            for number, total in enumerate(sums[1:])
        ]
    whole = sums[-1]
    numbered = [settings | {"checkpoint": number} for number in range(len(sums) - 1)]
    last = LogPartitionEstimate.from_log_weights(
        base - whole, numbered[-1], reverse=True, warn=False
    )
    before = [
        _ratio(base, part, whole, own, last.flags)
        for part, own in zip(sums[1:-1].flip(0), numbered, strict=False)
    ]
    return [*before, last]


def _ratio(
    base: Tensor, part: Tensor, whole: Tensor, settings: dict[str, Any], flags: tuple[str, ...]
) -> LogPartitionEstimate:
    """Log Z of a checkpoint that reverse chains pass, from their weights until there and in all."""
    n = len(part)
    value = base + log_mean_exp(part) - log_mean_exp(whole)
    left_out = [torch.log1p(-torch.softmax(x, 0).clamp(max=1.0 - 1e-15)) for x in (part, whole)]
    error = ((n - 1) * (left_out[0] - left_out[1]).var(0, unbiased=False)).sqrt()
    return LogPartitionEstimate.from_error(
        value,
        error,
        settings,
        ess=effective_sample_size(whole),
        degrees_of_freedom=n - 1,
        flags=flags,
        warn=False,
    )


def _warn(curve: Sequence[LogPartitionEstimate]) -> None:
    """One warning for all checkpoints."""
    suspicious = [number for number, estimate in enumerate(curve) if estimate.flags]
    if suspicious:
        last = curve[suspicious[-1]].flags[0]
        warnings.warn(
            f"{len(suspicious)} of {len(curve)} checkpoints are suspicious, number "
            f"{suspicious[-1]} for one: {last}",
            LogPartitionWarning,
            stacklevel=3,
        )
