# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Estimates of log Z from parallel tempering."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer.log_partition.bennett import bennett_acceptance_ratio, jackknife_error
from pyro_ebm.infer.log_partition.deep_side import Side, as_machine, as_side
from pyro_ebm.infer.log_partition.estimate import LogPartitionEstimate
from pyro_ebm.infer.log_partition.multistate import mbar
from pyro_ebm.infer.log_partition.tempered_start import tuned_levels
from pyro_ebm.infer.log_partition.tempering_run import TemperingRun, run_tempering
from pyro_ebm.infer.log_partition.thermodynamic import thermodynamic_integration
from pyro_ebm.infer.mcmc.ladder_placement import check_betas
from pyro_ebm.infer.mcmc.ladder_tuning import tune_ladder
from pyro_ebm.infer.paths import GeometricPath, MachinePath, Path
from pyro_ebm.ops.numerics import student_quantile

__all__ = ["TEMPERING_METHODS", "tempering_estimates", "tempering_log_partition"]

TEMPERING_METHODS = ("bar", "mbar", "ti")

#: Chains that tune a ladder of a given number of levels, at most.
_TUNING_CHAINS = 10
#: Levels that an integral over the path needs at least, easy though exchanges may be.
LEVELS_OF_INTEGRAL = 16


def tempering_log_partition(
    dist: RBM | DBM,
    method: str = "mbar",
    *,
    num_chains: int = 20,
    num_samples: int = 1000,
    thin: int = 2,
    warmup_steps: int = 1000,
    num_replicas: int | None = None,
    betas: Sequence[float] | Tensor | None = None,
    base: Tensor | str | None = None,
    side: str = "auto",
    checkpoints: Sequence[RBM | DBM] | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> LogPartitionEstimate:
    r"""Estimate :math:`\log Z` from a parallel-tempering run.

    Independent sets of replicas run along a path from a base of known log Z to the machine, exchange
    their states, and their draws give the ratios of the normalisers of neighbouring levels, whose
    sum leads from the base to the machine. Unlike annealing, chains forget where they started, so
    that a longer run is better without limit; and the run says itself whether it mixes: the settings
    hold ``"mixing"``, with the ladder, exchange rates, round trips and :math:`\hat R`.

    Flags are neighbours that hardly overlap (exchanges below 10 %: more replicas are needed), no round
    trip at all (more samples), and chains that disagree (:math:`\hat R` above 1.2: a longer warm-up and
    more samples, or another base). Half of the chains start from draws of the base that are carried up
    the ladder, the others from random hidden states at each level, so that a mode that only one of the
    ways finds shows as disagreement. A mode that no chain finds shows nowhere.

    - ``"bar"``: Bennett's ratio of each pair of neighbours, :func:`bennett_acceptance_ratio`.
    - ``"mbar"``: all levels together, :func:`mbar`; each state is used at every level. Draws are thinned
      further where the table of densities would exceed 32 MiB.
    - ``"ti"``: thermodynamic integration, :func:`thermodynamic_integration`; not with checkpoints.

    The interval is Student's, with the standard error of a jackknife over chains, which autocorrelation
    within a chain does not touch (``"ti"`` adds its discretisation error). The settings hold a
    ``"bracket"`` that needs no overlap of densities: by Jensen's inequality the mean log-ratio of two
    neighbours, taken at either end, bounds the difference of their log Z; for ``"ti"`` it is made of
    Riemann sums. Its ends are moved apart by the Student quantile of their own standard errors.

    **References**

    [1] *Replica Monte Carlo simulation of spin-glasses*, Robert Swendsen, Jian-Sheng Wang (1986)

    [2] *Non-reversible parallel tempering: a scalable highly parallel MCMC scheme*,
    Saifuddin Syed, Alexandre Bouchard-Côté, George Deligiannidis, Arnaud Doucet (2022)

    :param dist: an RBM or a DBM, with any batch shape; an attached log Z is ignored.
    :param str method: ``"bar"``, ``"mbar"`` or ``"ti"``.
    :param int num_chains: independent sets of replicas, at least 2; their disagreement gives the
        standard error, so that 10 or more are better.
    :param int num_samples: recorded draws of each chain; a draw takes 24 bytes for each replica and
        element of the batch.
    :param int thin: sweeps of all levels from one draw to the next.
    :param int warmup_steps: sweeps before the first draw, after the ladder is tuned.
    :param int num_replicas: levels of the ladder; as many as let neighbours exchange three times out of
        five if None (at least 16 for ``"ti"``).
    :param betas: the ladder itself, increasing from 0 to 1; tuned to equal exchange rates if None.
    :param base: the visible layer at inverse temperature 0, as for
        :func:`~pyro_ebm.infer.estimate_log_partition`.
    :param str side: layers of a DBM whose states are replicated, as for
        :func:`~pyro_ebm.infer.estimate_log_partition`.
    :param checkpoints: earlier machines of the same training run: the path leads through them
        instead of scaling one machine (trajectory tempering).
    :param int seed: seed of a generator of its own; the global generator if None.
    :param bool progress: whether to show a progress bar.
    :raises ValueError: for impossible options, or if Z is infinite.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import exact_log_partition, tempering_log_partition
    >>> rbm = BernoulliRBM(torch.ones(6, 4), -2 * torch.ones(6), -3 * torch.ones(4))
    >>> estimate = tempering_log_partition(rbm, num_samples=100, warmup_steps=50, seed=0)
    >>> bool((estimate.value - exact_log_partition(rbm)).abs() < 5 * estimate.std_error)
    True
    """
    estimates = tempering_estimates(
        dist,
        (method,),
        num_chains=num_chains,
        num_samples=num_samples,
        thin=thin,
        warmup_steps=warmup_steps,
        num_replicas=num_replicas,
        betas=betas,
        base=base,
        side=side,
        checkpoints=checkpoints,
        seed=seed,
        progress=progress,
    )
    return estimates[method]


def tempering_estimates(
    dist: RBM | DBM,
    methods: Sequence[str] = TEMPERING_METHODS,
    *,
    num_chains: int = 20,
    num_samples: int = 1000,
    thin: int = 2,
    warmup_steps: int = 1000,
    num_replicas: int | None = None,
    betas: Sequence[float] | Tensor | None = None,
    base: Tensor | str | None = None,
    side: str = "auto",
    checkpoints: Sequence[RBM | DBM] | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> dict[str, LogPartitionEstimate]:
    """Several estimates of log Z from one parallel-tempering run.

    :param dist: an RBM or a DBM, with any batch shape; an attached log Z is ignored.
    :param methods: some of ``"bar"``, ``"mbar"`` and ``"ti"``.
    :returns: the estimates by method.

    The other options are those of :func:`tempering_log_partition`.
    """
    started = time.perf_counter()
    _check(methods, num_chains, num_samples, thin, warmup_steps, checkpoints)
    # A path through checkpoints starts at the layer of the first of them, unless there is a base.
    chosen = as_side(dist, base, side)
    machine = chosen.machine
    machine.check_normalizable()
    path = _path(chosen, base is not None, _machines(checkpoints, side), seed)
    least = LEVELS_OF_INTEGRAL if "ti" in methods else 2
    levels = _levels(path, num_replicas, betas, num_chains, least)
    sweeps = warmup_steps + num_samples * thin
    with tqdm(
        total=sweeps, desc="tempering", unit="sweep", leave=False, disable=not progress
    ) as bar:
        run = run_tempering(
            path,
            levels,
            num_chains=num_chains,
            num_samples=num_samples,
            warmup_steps=warmup_steps,
            thin=thin,
            table="mbar" in methods,
            tick=bar.update,
        )
    settings = {
        **chosen.settings,
        "num_chains": num_chains,
        "num_replicas": len(levels),
        "num_samples": num_samples,
        "thin": thin,
        "warmup_steps": warmup_steps,
        "base": "data means" if isinstance(base, Tensor) else base or "visible biases",
        "checkpoints": None if checkpoints is None else len(checkpoints),
        "seed": seed,
        "dtype": str(machine.weight.dtype).removeprefix("torch."),
        "device": str(machine.weight.device),
        "mixing": run.mixing(),
    }
    seconds = time.perf_counter() - started
    return {m: read_tempering(machine, run, m, settings, seconds) for m in methods}


def _check(
    methods: Sequence[str],
    num_chains: int,
    num_samples: int,
    thin: int,
    warmup_steps: int,
    checkpoints: Sequence[RBM | DBM] | None,
) -> None:
    for method in methods:
        if method not in TEMPERING_METHODS:
            raise ValueError(f"method must be one of {TEMPERING_METHODS}, got {method!r}")
    if "ti" in methods and checkpoints is not None:
        raise ValueError(
            'method "ti" needs a path that is linear in the inverse temperature; with checkpoints use '
            '"bar" or "mbar"'
        )
    numbers = {"num_chains": num_chains, "num_samples": num_samples, "thin": thin}
    for (name, number), least in zip(numbers.items(), (2, 1, 1), strict=True):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")


def _machines(checkpoints: Sequence[RBM | DBM] | None, side: str) -> list[RBM] | None:
    if checkpoints is None:
        return None
    return [as_machine(machine, side, "checkpoints") for machine in checkpoints]


def _path(
    chosen: Side, has_base: bool, checkpoints: Sequence[RBM] | None, seed: int | None
) -> Path:
    dist = chosen.machine
    generator = None
    if seed is not None:
        generator = Generator(device=dist.weight.device).manual_seed(seed)
    if checkpoints is None:
        return GeometricPath(dist, chosen.base, generator)
    start = chosen.base if has_base else None
    return MachinePath.from_checkpoints([*checkpoints, dist.compact()], start, generator)


def _levels(
    path: Path,
    num_replicas: int | None,
    betas: Sequence[float] | Tensor | None,
    num_chains: int,
    least: int,
) -> list[float]:
    """The ladder: given, or tuned, with at least so many levels where their number is free."""
    if betas is None:
        if num_replicas is None:
            return tuned_levels(path, num_chains, least=least)[0]
        return tune_ladder(
            path, num_levels=num_replicas, num_chains=min(num_chains, _TUNING_CHAINS)
        ).betas
    levels = check_betas(betas)
    if levels[0] != 0.0:
        raise ValueError(f"betas must start at 0, where log Z is known, got {levels[0]}")
    if num_replicas not in (None, len(levels)):
        raise ValueError(f"num_replicas is {num_replicas}, but betas has {len(levels)} levels")
    return levels


def read_tempering(
    dist: RBM, run: TemperingRun, method: str, settings: dict[str, Any], seconds: float
) -> LogPartitionEstimate:
    """One estimate from a run, in the batch shape of the distribution.

    :param settings: how the run was made.
    :param float seconds: how long it took.
    """
    started = time.perf_counter()

    def spread(x: Tensor) -> Tensor:
        # Elements of an expanded batch share their parameters, hence their chains.
        missing = (1,) * (len(dist.batch_shape) - x.dim())
        return x.reshape((*missing, *x.shape)).expand(dist.batch_shape)

    change, error, (low, high) = {"bar": _bar, "mbar": _mbar, "ti": _ti}[method](run)
    base = run.log_partition_base
    settings = {
        "method": method,
        **settings,
        "bracket": [spread(base + low).tolist(), spread(base + high).tolist()],
        "seconds": round(seconds + time.perf_counter() - started, 3),
    }
    return LogPartitionEstimate.from_error(
        spread(base + change),
        spread(error),
        settings,
        ess=spread(run.effective_draws()),
        degrees_of_freedom=run.up.shape[0] - 1,
        flags=run.suspicions(),
    )


#: An estimate of log Z_1 - log Z_0, its standard error, and a bracket.
_Reading = tuple[Tensor, Tensor, tuple[Tensor, Tensor]]


def _bar(run: TemperingRun) -> _Reading:
    steps = bennett_acceptance_ratio(run.up, run.down, paired=True)
    error = jackknife_error(steps.replicates.sum(1))
    return steps.value.sum(0), error, _jensen(run)


def _mbar(run: TemperingRun) -> _Reading:
    assert run.table is not None
    levels = mbar(run.table)
    return levels.value[-1], levels.std_error[-1], _jensen(run)


def _ti(run: TemperingRun) -> _Reading:
    assert run.slopes is not None
    integral = thermodynamic_integration(run.betas, run.slopes.mean(1))
    errors = student_quantile(run.slopes.shape[0] - 1)
    low = integral.low - errors * integral.low_error
    high = integral.high + errors * integral.high_error
    # An interval of two standard errors covers the whole discretisation error.
    error = torch.hypot(integral.std_error, 0.5 * integral.discretisation)
    return integral.value, error, (low, high)


def _jensen(run: TemperingRun) -> tuple[Tensor, Tensor]:
    """Mean log-ratios of all pairs, from below at their lower ends, from above at their upper ends."""
    low, high = run.up.mean(1).sum(1), -run.down.mean(1).sum(1)
    errors = student_quantile(len(low) - 1) / len(low) ** 0.5
    return low.mean(0) - errors * low.std(0), high.mean(0) + errors * high.std(0)
