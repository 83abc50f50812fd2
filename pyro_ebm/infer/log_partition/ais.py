# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Annealed importance sampling of log Z, from below and from above."""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer.log_partition.annealing import AnnealingPlan, AnnealingRun
from pyro_ebm.infer.log_partition.bracket import LogPartitionBracket
from pyro_ebm.infer.log_partition.combine import combine_estimates
from pyro_ebm.infer.log_partition.deep_side import Side, as_side
from pyro_ebm.infer.log_partition.estimate import LogPartitionEstimate
from pyro_ebm.infer.log_partition.resume import ResumeFile
from pyro_ebm.infer.log_partition.reverse_start import ReverseStart
from pyro_ebm.infer.log_partition.transitions import MakeKernel, check_kernel, check_path
from pyro_ebm.infer.paths import GeometricPath, Path

__all__ = ["bracket_log_partition", "estimate_log_partition"]

_METHODS = ("ais", "reverse-ais")


def estimate_log_partition(
    dist: RBM | DBM,
    method: str = "ais",
    *,
    num_chains: int = 100,
    num_temperatures: int = 10_000,
    base: Tensor | str | None = None,
    side: str = "auto",
    schedule: str | Tensor = "linear",
    path: Path | None = None,
    kernel: MakeKernel | None = None,
    initial: Tensor | None = None,
    start: str = "auto",
    seed: int | Sequence[int] | None = None,
    num_seeds: int | None = None,
    chunk_size: int | None = None,
    checkpoint: str | pathlib.Path | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = False,
) -> LogPartitionEstimate:
    r"""Estimate :math:`\log Z` by annealed importance sampling.

    ``method="ais"`` anneals from the base to the machine and bounds log Z from below in
    expectation; ``method="reverse-ais"`` anneals samples of the machine back to the base and bounds
    it from above. :func:`bracket_log_partition` runs both. The estimate flags what is suspicious
    about its own weights, and warns.

    Reverse chains must start in equilibrium. Without ``initial`` they start from exact samples where
    the machine can be enumerated; otherwise a forward run of the same length is resampled by its
    weights and moved by ``dist.num_gibbs_steps`` sweeps, which is an approximation. Samples of parallel
    tempering, as ``initial``, are better.

    **Deep machines.** The states of a DBM that are annealed are those of its even layers, the odd ones being
    summed out, or the other way round (``side``); the settings tell which are ``"summed_out"``. A sweep costs
    the same either way. Even layers are the default, because the visible layer, whose biases are the
    strong ones, then keeps them (or data means) in the base, where a layer that is summed out starts
    without a field. For odd layers take a uniform base; which side is better depends on the machine.

    **Long runs.** ``chunk_size`` chains are annealed at a time, in memory that does not depend on
    ``num_chains``; results depend on the size of the chunks, since one generator draws for all of them
    in turn, and a forward run is resampled within its chunk. With ``checkpoint`` the state is saved
    every ``checkpoint_seconds``; the same call again goes on from there, with results identical to the
    bit to those of an uninterrupted run (on the same machine with the same number of threads). The
    file is deleted when the run is over.

    **References**

    [1] *Annealed importance sampling*, Radford Neal (2001)

    [2] *On the quantitative analysis of deep belief networks*, Ruslan Salakhutdinov, Iain Murray
    (2008)

    [3] *Accurate and conservative estimates of MRF log-likelihood using reverse annealing*,
    Yuri Burda, Roger Grosse, Ruslan Salakhutdinov (2015)

    :param dist: an RBM or a DBM, with any batch shape; an attached log Z is ignored.
    :param str method: "ais" or "reverse-ais".
    :param int num_chains: independent annealing runs of every seed, at least 2.
    :param int num_temperatures: steps of the ladder.
    :param base: the visible layer at inverse temperature 0: None for the machine's own visible
        biases, "uniform" (finite supports only), or data means, shape ``(..., V)``
        that broadcasts to the machine's. Of a DBM, means are those of the visible layer; the other even
        layers keep their biases. ("uniform" is of all of them.)
    :param str side: layers of a DBM whose states are annealed: "even", "odd" (not with data means), or "auto"
        for the even ones.
    :param schedule: "linear", "salakhutdinov-murray", "adaptive" (equal loss of effective sample
        size, from a pilot run of a tenth of the length), or a tensor that increases from 0 to 1.
    :param Path path: the path to the machine in the place of the geometric one from ``base``, such as a
        :class:`~pyro_ebm.infer.paths.MachinePath`. Without a seed it draws from its own generator.
    :param kernel: makes the kernel whose draws move the chains at a temperature in the place of a block
        Gibbs sweep, such as ``lambda dist: GibbsLangevin(dist, -0.5)``. It leaves its machine
        invariant and does not adapt. It draws from the run's generator if it has none of its own.
    :param Tensor initial: samples of ``dist`` to start reverse chains from, shape
        ``(num_chains,) + dist.parameter_batch_shape + (V,)`` (the batch shape before any expand). Of a
        DBM, states of all layers of the side, as :meth:`DBM.join_even` puts them together.
    :param str start: where reverse chains start: "given" (``initial``), "exact", "forward", or
        "auto", the first of these that can be had.
    :param seed: seed of a generator of its own; the global generator if None. Several seeds are run one
        after the other and combined, see :func:`combine_estimates`.
    :param int num_seeds: that many seeds from ``seed`` upwards.
    :param int chunk_size: chains that are annealed at a time; all of a seed's if None.
    :param checkpoint: a file to save the state to, and to resume from; ``kernel`` must then make
        kernels without a generator of their own.
    :param float checkpoint_seconds: time between two writings.
    :param bool progress: whether to show a progress bar.
    :raises TypeError: if ``dist`` is no RBM or DBM, ``path`` no Path, or ``kernel`` makes no kernel of ours.
    :raises ValueError: for impossible options, if Z is infinite, or if the checkpoint is damaged or
        of another run.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import estimate_log_partition
    >>> rbm = BernoulliRBM(torch.ones(6, 4), -2 * torch.ones(6), -3 * torch.ones(4))
    >>> estimate_log_partition(rbm, num_temperatures=100, num_seeds=2, seed=0).settings["seed"]
    [0, 1]
    """
    estimate = _estimate(
        dist,
        method,
        _Options(
            num_chains=num_chains,
            num_temperatures=num_temperatures,
            base=base,
            side=side,
            schedule=schedule,
            path=path,
            kernel=kernel,
            initial=initial,
            start=start,
            seed=seed,
            num_seeds=num_seeds,
            chunk_size=chunk_size,
            checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
            progress=progress,
        ),
    )
    estimate.warn(stacklevel=3)
    return estimate


def bracket_log_partition(
    dist: RBM | DBM,
    *,
    seed: int | Sequence[int] | None = None,
    initial: Tensor | None = None,
    start: str = "auto",
    checkpoint: str | pathlib.Path | None = None,
    **options: Any,
) -> LogPartitionBracket:
    """Estimate log Z from below and from above; warns if the two contradict each other.

    :param dist: an RBM or a DBM.
    :param seed: seeds, as for :func:`estimate_log_partition`; the reverse run uses those that follow the
        largest of them.
    :param Tensor initial: samples of ``dist`` to start reverse chains from.
    :param str start: where reverse chains start.
    :param checkpoint: the two runs save to files of this name with ``.ais`` and ``.reverse-ais``
        appended, which are deleted when both are over.
    :param options: as for :func:`estimate_log_partition`.
    """
    below = _Options(seed=seed, **options)
    above = replace(below, initial=initial, start=start)
    if seed is not None:
        seeds = [s for s in below.seeds() if s is not None]
        following = range(max(seeds) + 1, max(seeds) + 1 + len(seeds))
        above = replace(above, seed=following, num_seeds=None)
    if checkpoint is not None:
        below = replace(below, checkpoint=f"{checkpoint}.ais", keep_checkpoint=True)
        above = replace(above, checkpoint=f"{checkpoint}.reverse-ais", keep_checkpoint=True)
    forward = _estimate(dist, "ais", below)
    forward.warn(stacklevel=3)
    reverse = _estimate(dist, "reverse-ais", above)
    reverse.warn(stacklevel=3)
    for side in (below, above):
        if side.checkpoint is not None:
            pathlib.Path(side.checkpoint).unlink(missing_ok=True)
    return LogPartitionBracket(forward, reverse)


@dataclass(frozen=True, kw_only=True)
class _Options:
    """The options of :func:`estimate_log_partition`."""

    num_chains: int = 100
    num_temperatures: int = 10_000
    base: Tensor | str | None = None
    side: str = "auto"
    schedule: str | Tensor = "linear"
    path: Path | None = None
    kernel: MakeKernel | None = None
    initial: Tensor | None = None
    start: str = "auto"
    seed: int | Sequence[int] | None = None
    num_seeds: int | None = None
    chunk_size: int | None = None
    checkpoint: str | pathlib.Path | None = None
    checkpoint_seconds: float = 60.0
    progress: bool = False
    #: Whether the file of a run that is over stays; the same call then returns what it holds.
    keep_checkpoint: bool = False

    def check(self, method: str) -> None:
        if method not in _METHODS:
            raise ValueError(f"method must be one of {_METHODS}, got {method!r}")
        if self.num_chains < 2:
            raise ValueError(
                f"num_chains must be at least 2 for a standard error, got {self.num_chains}"
            )
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}")
        if self.checkpoint_seconds < 0.0:
            raise ValueError(f"checkpoint_seconds must be >= 0, got {self.checkpoint_seconds}")
        if method == "ais" and (self.initial is not None or self.start != "auto"):
            raise ValueError('initial and start are for method="reverse-ais"')
        if self.path is not None and self.base is not None:
            raise ValueError("give base or path, not both: the path has its own base")

    def seeds(self) -> list[int | None]:
        """One seed a run; None for the global generator."""
        number = self.num_seeds
        if number is not None and number < 1:
            raise ValueError(f"num_seeds must be at least 1, got {number}")
        if self.seed is None and (number or 1) == 1:
            return [None]
        if self.seed is None or isinstance(self.seed, int):
            first = _random_seed() if self.seed is None else self.seed
            return [first + i for i in range(number or 1)]
        seeds = list(self.seed)
        if not seeds or len(set(seeds)) < len(seeds) or number not in (None, len(seeds)):
            raise ValueError(
                f"seed must hold different seeds, num_seeds of them if that is given, got {seeds} "
                f"and num_seeds={number}"
            )
        return list(seeds)


def _random_seed() -> int:
    return int(torch.randint(2**31, ()))


def _estimate(dist: RBM | DBM, method: str, options: _Options) -> LogPartitionEstimate:
    chosen = as_side(dist, options.base, options.side)
    machine = chosen.machine
    options.check(method)
    machine.check_normalizable()
    plan, seeds = _plan(chosen, method, options), options.seeds()
    file = None
    if options.checkpoint is not None:
        fingerprint = {
            **plan.fingerprint(),
            "seed": None if options.seed is None else seeds,
            "num_seeds": len(seeds),
        }
        file = ResumeFile(options.checkpoint, fingerprint, options.checkpoint_seconds)
        # What is to be resumed draws from a generator whose state can be saved.
        seeds = [_random_seed() if seed is None else seed for seed in seeds]
    run = AnnealingRun(plan, seeds, file, description=method, progress=options.progress)
    log_weights = run()
    settings = _settings(chosen, method, options, plan)
    settings["seconds"] = round(run.seconds / len(run.seeds), 3)
    estimates = [
        LogPartitionEstimate.from_log_weights(
            _expanded(weights, machine, plan.path),
            settings | {"seed": seed},
            reverse=method == "reverse-ais",
            warn=False,
        )
        for weights, seed in zip(log_weights, run.seeds, strict=True)
    ]
    if file is not None and not options.keep_checkpoint:
        file.remove()
    return combine_estimates(estimates, warn=False)


def _plan(chosen: Side, method: str, options: _Options) -> AnnealingPlan:
    dist, path = chosen.machine, options.path
    if path is None:
        path = GeometricPath(dist, chosen.base)
    else:
        check_path(path, dist)
    if options.kernel is not None:
        check_kernel(options.kernel, path, resumable=options.checkpoint is not None)
    start = None
    if method == "reverse-ais":
        start = ReverseStart(dist, options.start, options.initial, options.num_chains)
    return AnnealingPlan(
        path=path,
        start=start,
        num_chains=options.num_chains,
        chunk_size=min(options.chunk_size or options.num_chains, options.num_chains),
        schedule=options.schedule,
        num_temperatures=options.num_temperatures,
        kernel=options.kernel,
    )


def _settings(chosen: Side, method: str, options: _Options, plan: AnnealingPlan) -> dict[str, Any]:
    base, schedule, dist = options.base, options.schedule, chosen.machine
    settings = {
        **chosen.settings,
        "method": method,
        "num_chains": options.num_chains,
        "num_temperatures": plan.num_steps,
        "schedule": schedule if isinstance(schedule, str) else "given",
        "base": "data means" if isinstance(base, Tensor) else base or "visible biases",
        "seed": None,
        "dtype": str(dist.weight.dtype).removeprefix("torch."),
        "device": str(dist.weight.device),
    }
    if options.path is not None:
        settings["base"] = f"start of a {type(options.path).__name__}"
    if options.kernel is not None:
        settings["kernel"] = type(options.kernel(plan.path.target)).__name__
    if options.chunk_size is not None:
        settings["chunk_size"] = options.chunk_size
    if plan.start is not None:
        settings["start"] = plan.start.word
    return settings


def _expanded(log_weights: Tensor, dist: RBM, path: Path) -> Tensor:
    """Elements of an expanded batch share their parameters, hence their chains."""
    num_chains = len(log_weights)
    missing = (1,) * (len(dist.batch_shape) - len(path.batch_shape))
    log_weights = log_weights.reshape(num_chains, *missing, *path.batch_shape)
    return log_weights.expand(num_chains, *dist.batch_shape)
