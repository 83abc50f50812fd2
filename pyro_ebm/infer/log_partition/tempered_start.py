# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Tempering with a bounded number of sweeps: ladders, and samples to start reverse annealing from."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pyro_ebm.infer.log_partition.tempering_run import run_tempering
from pyro_ebm.infer.mcmc.ladder_tuning import tune_ladder
from pyro_ebm.infer.paths import Path

__all__ = ["TemperedStart", "tempered_start", "tuned_levels"]

#: Rejection of exchanges between neighbours that the number of levels is chosen for.
TARGET_REJECTION = 0.4
#: Chains that tune a ladder, at most.
_TUNING_CHAINS = 10
#: Rounds of tuning, each twice as long as the one before.
_MAX_ROUNDS = 6
#: Levels that a run is taken to have before it is known.
_USUAL_LEVELS = 16
#: Sweeps of the first round of tuning.
_FIRST_SWEEPS = 8


@dataclass(frozen=True)
class TemperedStart:
    """Samples of a machine from the top level of a tempering run.

    :param Tensor v: states, shape ``(num_groups * each,) + batch_shape + (V,)``, those of one
        independent chain after the other.
    :param int num_groups: independent chains.
    :param str word: how they were made, for the settings of an estimate.
    :param flags: what is suspicious about the run.
    :param int row_sweeps: sweeps of single chains that were spent.
    """

    v: Tensor
    num_groups: int
    word: str
    flags: tuple[str, ...]
    row_sweeps: int


def tuned_levels(
    path: Path, num_chains: int, *, least: int = 2, row_sweeps: int | None = None
) -> tuple[list[float], int]:
    """A ladder with equal exchange rates, and about how many sweeps of single chains it took.

    :param Path path: the path.
    :param int num_chains: chains of the run that it is for.
    :param int least: levels at least.
    :param int row_sweeps: sweeps of single chains that tuning may take, about; as many as are good for it
        if None.
    """
    chains = min(num_chains, _TUNING_CHAINS)
    rounds = _MAX_ROUNDS
    if row_sweeps is not None:
        while rounds > 1 and _tuning_sweeps(rounds) * chains * _USUAL_LEVELS > row_sweeps:
            rounds -= 1
    tuning = tune_ladder(
        path,
        num_chains=chains,
        num_rounds=rounds,
        num_steps=_FIRST_SWEEPS,
        target_rejection=TARGET_REJECTION,
    )
    spent = _tuning_sweeps(rounds) * chains * len(tuning.betas)
    if len(tuning.betas) < least:
        return tuning.ladder(least), spent
    return tuning.betas, spent


def _tuning_sweeps(num_rounds: int) -> int:
    """All rounds and the last once more, which measures the ladder."""
    return _FIRST_SWEEPS * (2**num_rounds - 1 + 2 ** (num_rounds - 1))


def tempered_start(
    path: Path,
    num_states: int,
    *,
    num_groups: int = 20,
    num_sweeps: int | None = None,
    row_sweeps: int | None = None,
    tick: Callable[[], object] | None = None,
) -> TemperedStart:
    """Samples of the end of a path, by parallel tempering.

    :param Path path: the path.
    :param int num_states: samples; rounded up to a multiple of the groups.
    :param int num_groups: independent chains, at most ``num_states``.
    :param int num_sweeps: sweeps of every level, the first half of which is thrown away.
    :param int row_sweeps: sweeps of single chains in all, in the place of ``num_sweeps``.
    :param tick: called after every sweep.
    :raises ValueError: if there are too few sweeps.
    """
    groups = min(num_groups, num_states)
    each = -(-num_states // groups)
    tuning_budget = None if row_sweeps is None else row_sweeps // 5
    betas, spent = tuned_levels(path, groups, row_sweeps=tuning_budget)
    rows = groups * len(betas)
    if row_sweeps is not None:
        num_sweeps = (row_sweeps - spent) // rows
    if num_sweeps is None or num_sweeps < 2 * each:
        raise ValueError(
            f"{num_states} states of {groups} chains x {len(betas)} replicas need at least {2 * each} "
            f"sweeps, got {num_sweeps}"
        )
    run = run_tempering(
        path,
        betas,
        num_chains=groups,
        num_samples=num_sweeps - num_sweeps // 2,
        warmup_steps=num_sweeps // 2,
        num_states=each,
        tick=tick,
    )
    assert run.states is not None
    return TemperedStart(
        run.states.flatten(0, 1),
        groups,
        f"tempering of {groups} chains x {len(betas)} replicas x {num_sweeps} sweeps",
        tuple(f"start of the reverse chains: {text}" for text in run.suspicions()),
        spent + rows * num_sweeps,
    )
