# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Annealed importance sampling of log Z, from below and from above."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.enumeration import enumerable_side
from pyro_ebm.distributions.sampling import MAX_EXACT_STATES
from pyro_ebm.infer.log_partition.estimate import LogPartitionBracket, LogPartitionEstimate
from pyro_ebm.infer.paths import GeometricPath, Path, base_unit, inverse_temperatures

__all__ = ["bracket_log_partition", "estimate_log_partition"]

_METHODS = ("ais", "reverse-ais")


def estimate_log_partition(
    dist: RBM,
    method: str = "ais",
    *,
    num_chains: int = 100,
    num_temperatures: int = 10_000,
    base: Tensor | str | None = None,
    schedule: str | Tensor = "linear",
    initial: Tensor | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> LogPartitionEstimate:
    r"""Estimate :math:`\log Z` by annealed importance sampling.

    ``method="ais"`` anneals from the base to the machine and bounds log Z from below in
    expectation; ``method="reverse-ais"`` anneals samples of the machine back to the base and bounds
    it from above. :func:`bracket_log_partition` runs both.

    Reverse chains must start in equilibrium. Without ``initial`` they start from exact samples where
    the machine can be enumerated; otherwise a forward run of the same length is resampled by its
    weights and moved by ``dist.num_gibbs_steps`` sweeps, which is an approximation.

    **References**

    [1] *Annealed importance sampling*, Radford Neal (2001)

    [2] *On the quantitative analysis of deep belief networks*, Ruslan Salakhutdinov, Iain Murray
    (2008)

    [3] *Accurate and conservative estimates of MRF log-likelihood using reverse annealing*,
    Yuri Burda, Roger Grosse, Ruslan Salakhutdinov (2015)

    :param RBM dist: the machine, with any batch shape; an attached log Z is ignored.
    :param str method: "ais" or "reverse-ais".
    :param int num_chains: independent annealing runs, at least 2.
    :param int num_temperatures: steps of the ladder.
    :param base: the visible layer at inverse temperature 0: None for the machine's own visible
        biases, "uniform" (finite supports only), or data means, shape ``(..., V)``
        that broadcasts to the machine's.
    :param schedule: "linear", "salakhutdinov-murray", "adaptive" (equal loss of effective sample
        size, from a pilot run of a tenth of the length), or a tensor that increases from 0 to 1.
    :param Tensor initial: samples of ``dist`` to start reverse chains from, shape
        ``(num_chains,) + dist.parameter_batch_shape + (V,)`` (the batch shape before any expand).
    :param int seed: seed of a generator of its own; the global generator if None.
    :param bool progress: whether to show a progress bar.
    :raises ValueError: for impossible options, or if Z is infinite.
    """
    started = time.perf_counter()
    path, generator = _prepare(dist, method, num_chains, base, seed)
    betas = inverse_temperatures(schedule, num_temperatures, path, num_chains)
    settings = {
        "method": method,
        "num_chains": num_chains,
        "num_temperatures": len(betas) - 1,
        "schedule": schedule if isinstance(schedule, str) else "given",
        "base": "data means" if isinstance(base, Tensor) else base or "visible biases",
        "seed": seed,
        "dtype": str(dist.weight.dtype).removeprefix("torch."),
        "device": str(dist.weight.device),
    }
    with _progress_bar(method, len(betas) - 1, progress) as tick:
        if method == "ais":
            _, log_ratio = path.anneal(path.sample_base(num_chains), betas, tick)
            log_weights = path.log_partition_base + log_ratio
        else:
            start, settings["start"] = _equilibrium(
                dist, path, betas, num_chains, initial, generator
            )
            _, log_ratio = path.anneal(start, betas[::-1], tick)
            log_weights = path.log_partition_base - log_ratio
    # Elements of an expanded batch share their parameters, hence their chains.
    missing = (1,) * (len(dist.batch_shape) - len(path.batch_shape))
    log_weights = log_weights.reshape(num_chains, *missing, *path.batch_shape)
    log_weights = log_weights.expand(num_chains, *dist.batch_shape)
    settings["seconds"] = round(time.perf_counter() - started, 3)
    return LogPartitionEstimate.from_log_weights(
        log_weights, settings, reverse=method == "reverse-ais"
    )


def bracket_log_partition(
    dist: RBM, *, seed: int | None = None, **options: Any
) -> LogPartitionBracket:
    """Estimate log Z from below and from above; warns if the two contradict each other.

    :param RBM dist: the machine.
    :param int seed: seed; the reverse run uses ``seed + 1``.
    :param options: as for :func:`estimate_log_partition`.
    """
    initial = options.pop("initial", None)
    forward = estimate_log_partition(dist, "ais", seed=seed, **options)
    reverse_seed = None if seed is None else seed + 1
    reverse = estimate_log_partition(
        dist, "reverse-ais", seed=reverse_seed, initial=initial, **options
    )
    return LogPartitionBracket(forward, reverse)


def _prepare(
    dist: RBM, method: str, num_chains: int, base: Tensor | str | None, seed: int | None
) -> tuple[Path, Generator | None]:
    if not isinstance(dist, RBM):
        raise TypeError(f"dist must be an RBM, got {type(dist).__name__}")
    if method not in _METHODS:
        raise ValueError(f"method must be one of {_METHODS}, got {method!r}")
    if num_chains < 2:
        raise ValueError(f"num_chains must be at least 2 for a standard error, got {num_chains}")
    dist.check_normalizable()
    generator = None
    if seed is not None:
        generator = Generator(device=dist.weight.device).manual_seed(seed)
    return GeometricPath(dist, base_unit(dist, base), generator), generator


def _equilibrium(
    dist: RBM,
    path: Path,
    betas: list[float],
    num_chains: int,
    initial: Tensor | None,
    generator: Generator | None,
) -> tuple[Tensor, str]:
    """Samples of the machine to start reverse chains from, and a word on how they were made."""
    shape = (num_chains, *path.batch_shape, dist.event_shape[0])
    if initial is not None:
        if initial.shape != shape:
            raise ValueError(f"initial must have shape {shape}, got {tuple(initial.shape)}")
        if not bool(dist.support.check(initial).all()):
            raise ValueError(f"initial has values outside of {dist.support}")
        return initial.to(dist.weight), "given"
    side = enumerable_side(dist)
    if side is not None and (side.visible.num_states or 0) <= MAX_EXACT_STATES:
        return dist.compact().sample(torch.Size((num_chains,)), generator=generator), "exact"
    v, log_ratio = path.anneal(path.sample_base(num_chains), betas)
    v = _resample(v, log_ratio, generator)
    for _ in range(dist.num_gibbs_steps):
        v = path.step(v)
    return v, f"forward run, resampled, {dist.num_gibbs_steps} sweeps"


def _resample(v: Tensor, log_weights: Tensor, generator: Generator | None) -> Tensor:
    """Draw chains in proportion to their weights, for every batch element by itself."""
    num_chains = len(v)
    share = torch.softmax(log_weights, 0).reshape(num_chains, -1).T
    index = torch.multinomial(share, num_chains, replacement=True, generator=generator)
    index = index.T.reshape(*log_weights.shape, 1)
    return v.gather(0, index.expand(v.shape))


class _progress_bar:
    """A tqdm bar as a context that gives a callback, or None where no bar is wanted."""

    def __init__(self, description: str, total: int, enabled: bool) -> None:
        self._bar: Any = None
        if enabled:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, desc=description, unit="temperature", leave=False)

    def __enter__(self) -> Callable[[int, Tensor], None] | None:
        return None if self._bar is None else self._tick

    def _tick(self, _: int, __: Tensor) -> None:
        self._bar.update()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
