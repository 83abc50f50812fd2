# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log Z of the machines of many contexts."""

import warnings
from dataclasses import replace
from typing import Any

from torch import Generator, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.enumeration import enumerable_side
from pyro_ebm.distributions.sampling import MAX_EXACT_STATES
from pyro_ebm.infer.conditional.contexts import (
    ConditionalModel,
    check_contexts,
    condition,
    evaluating,
)
from pyro_ebm.infer.conditional.density import contexts_per_chunk
from pyro_ebm.infer.conditional.join import join_brackets, join_estimates
from pyro_ebm.infer.conditional.nll import exact_by_reduction
from pyro_ebm.infer.log_partition import (
    LogPartitionBracket,
    LogPartitionEstimate,
    LogPartitionWarning,
    bidirectional_log_partition,
    bracket_log_partition,
    estimate_log_partition,
    tempering_log_partition,
)
from pyro_ebm.infer.log_partition.bidirectional import grouped
from pyro_ebm.infer.log_partition.exact import MAX_STATES
from pyro_ebm.infer.log_partition.side import SIDES, even_in_coupling, is_reduced, side_machine
from pyro_ebm.infer.log_partition.tempered_start import tempered_start
from pyro_ebm.infer.paths import GeometricPath, base_unit

__all__ = ["METHODS", "conditional_log_partition"]

_ANNEALING = ("ais", "reverse-ais", "bracket", "bidirectional")
_TEMPERING = ("bar", "mbar", "ti")
METHODS = ("auto", "exact", *_ANNEALING, *_TEMPERING)
#: Methods whose reverse chains may start from tempering. (Bidirectional ones do without being asked.)
_TEMPERED = ("reverse-ais", "bracket")
#: Seeds of one chunk of contexts: far more than any method takes.
_SEED_STRIDE = 2**20
#: Chains where a method's options do not say, for the memory of a chunk.
_USUAL_CHAINS = 100

Result = LogPartitionEstimate | LogPartitionBracket


def conditional_log_partition(
    model: ConditionalModel,
    contexts: Tensor,
    method: str = "auto",
    *,
    side: str = "auto",
    start: str = "auto",
    tempering_sweeps: int = 4000,
    max_states: int | None = None,
    chunk_contexts: int | None = None,
    initial: Tensor | None = None,
    seed: int | None = None,
    **options: Any,
) -> Result:
    r"""Log Z(x) of a conditional machine for each of some contexts.

    Pass every context once, see :func:`unique_contexts`: ten classes need ten log Z, however many rows
    there are. All contexts of a chunk are annealed together, with chains of their own.

    - ``"exact"``: enumeration of the smaller layer, or a Gaussian integral.
    - ``"ais"``, ``"reverse-ais"``: :func:`~pyro_ebm.infer.estimate_log_partition`; ``"bracket"``: both,
      :func:`~pyro_ebm.infer.bracket_log_partition`.
    - ``"bidirectional"``: :func:`~pyro_ebm.infer.bidirectional_log_partition`, the smallest error.
    - ``"bar"``, ``"mbar"``, ``"ti"``: :func:`~pyro_ebm.infer.tempering_log_partition`, for machines whose
      modes annealing does not reach in their proportions.
    - ``"auto"``: exact where a layer has at most :math:`2^{16}` states or both are Gaussian (options of
      other methods are then ignored), otherwise a bracket.

    **A Gaussian layer is integrated out.** What is estimated is log Z of the
    :func:`~pyro_ebm.distributions.reduced_machine`, the same number, in float64: its states are those of
    the other layer, and a temperature costs :math:`2 H \min(V, H)` products a chain in the place of 2 V H.
    It is taken about the middle of the states (for bits 1/2), and temperatures are even in the coupling
    :math:`\beta^2 K` unless ``schedule`` says otherwise; both lower the spread of the log-weights at equal
    cost.

    Estimates by AIS are lower bounds of log Z in expectation, so that likelihoods are too high: report
    a bracket.

    :param model: anything with a method ``condition(context)`` that makes an
        :class:`~pyro_ebm.distributions.RBM` of batch shape ``context.shape[:-1]``. A module is put into
        evaluation mode meanwhile.
    :param Tensor contexts: shape ``(U, n_x)``, finite.
    :param str method: see above.
    :param str side: the layer whose states are annealed, ``"visible"`` or ``"hidden"``; ``"auto"`` is the
        one beside a Gaussian layer, and otherwise the visible one.
    :param str start: where the reverse chains of ``"reverse-ais"`` and ``"bracket"`` start, as for
        :func:`~pyro_ebm.infer.estimate_log_partition`; or ``"tempering"``, the top level of a
        parallel-tempering run. That takes about twice as long and does not inherit the modes that the
        forward run has missed, as its resampled chains do.
    :param int tempering_sweeps: sweeps of that run, and of the one of ``"bidirectional"``; the first half
        is thrown away.
    :param int max_states: enumerate at most this many states; :math:`2^{16}` for ``"auto"`` and
        :math:`2^{26}` for ``"exact"`` if None.
    :param int chunk_contexts: contexts that are done at a time; what fits into bounded memory if None.
        Results depend on it, as each chunk has seeds of its own.
    :param Tensor initial: samples of the machines to start reverse chains from, such as the ends of long
        chains: states of the annealed layer, shape ``(num_chains, U, n)``.
    :param int seed: seed; the global generator if None.
    :param options: of the method, such as ``num_chains``, ``num_temperatures``, ``base``, ``schedule``.
    :returns: an estimate of batch shape ``(U,)``, or a
        :class:`~pyro_ebm.infer.LogPartitionBracket` of such for ``"bracket"``; exact values are
        estimates with the standard error 0.
    :raises TypeError: if the model makes no RBM, or for an unknown option.
    :raises ValueError: for wrong or non-finite contexts, impossible options, or if Z is infinite.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> class Scaled:
    ...     def condition(self, context):
    ...         weight = context.unsqueeze(-1) * torch.ones(4, 3)
    ...         return BernoulliRBM(weight, torch.zeros(4), torch.zeros(3))
    >>> conditional_log_partition(Scaled(), torch.tensor([[0.0], [1.0]])).value
    tensor([ 4.8520, 12.2696], dtype=torch.float64)
    """
    check_contexts(contexts)
    _check_options(method, side, start, options)
    if initial is not None:
        _check_initial(initial, method, start, len(contexts))
    parts: list[Result] = []
    with evaluating(model), warnings.catch_warnings():
        # The whole is examined below.
        warnings.simplefilter("ignore", LogPartitionWarning)
        first = condition(model, contexts[:1])
        if method == "auto":
            limit = MAX_EXACT_STATES if max_states is None else max_states
            method = "exact" if _is_exact(first, limit) else "bracket"
            options = {} if method == "exact" else options
            if start == "tempering" and method == "exact":
                start = "auto"
        if method == "exact" and options:
            raise TypeError(f'method="exact" takes no options, got {sorted(options)}')
        job = _Job(method, side, start, tempering_sweeps, max_states or MAX_STATES, options)
        chains = 0 if method == "exact" else options.get("num_chains", _USUAL_CHAINS)
        size = contexts_per_chunk(first, chunk_contexts, chains)
        for number, chunk in enumerate(contexts.split(size)):
            own = None if seed is None else seed + number * _SEED_STRIDE
            states = None if initial is None else initial.split(size, 1)[number]
            parts.append(job.run(condition(model, chunk), own, states))
    return _joined(parts)


def _joined(parts: list[Result]) -> Result:
    brackets = [part for part in parts if isinstance(part, LogPartitionBracket)]
    if brackets:
        forward, reverse = join_brackets(brackets)
        for estimate in (forward, reverse):
            estimate.warn(stacklevel=4)
        return LogPartitionBracket(forward, reverse)
    estimate = join_estimates([e for e in parts if isinstance(e, LogPartitionEstimate)])
    estimate.warn(stacklevel=4)
    return estimate


def _check_options(method: str, side: str, start: str, options: dict[str, Any]) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if side not in SIDES:
        raise ValueError(f"side must be one of {SIDES}, got {side!r}")
    if start != "auto" and method not in (*_TEMPERED, "auto"):
        raise ValueError(f"start is for the methods {_TEMPERED}, got start={start!r}, {method!r}")
    if start == "tempering" and options.get("num_seeds", 1) != 1:
        raise ValueError('start="tempering" goes with a single seed, got num_seeds')
    for name in ("path", "checkpoint", "checkpoints"):
        if options.get(name) is not None:
            raise ValueError(
                f"{name} is for a single machine: use estimate_log_partition on model.condition(x)"
            )


def _check_initial(initial: Tensor, method: str, start: str, num_contexts: int) -> None:
    if method not in (*_TEMPERED, "bidirectional"):
        raise ValueError(f"initial is for reverse chains, got method={method!r}")
    if start not in ("auto", "given"):
        raise ValueError(f"start={start!r} does not go with initial")
    if not isinstance(initial, Tensor) or initial.dim() != 3 or initial.shape[1] != num_contexts:
        got = tuple(initial.shape) if isinstance(initial, Tensor) else repr(initial)
        raise ValueError(f"initial must have shape (num_chains, {num_contexts}, n), got {got}")


def _is_exact(dist: RBM, max_states: int) -> bool:
    if dist.visible.is_gaussian and dist.hidden.is_gaussian:
        return True
    side = enumerable_side(dist)
    return side is not None and (side.visible.num_states or 0) <= max_states


class _Job:
    """One method and its options, for one chunk of contexts after the other."""

    def __init__(
        self,
        method: str,
        side: str,
        start: str,
        tempering_sweeps: int,
        max_states: int,
        options: dict[str, Any],
    ) -> None:
        self.method, self.side, self.start = method, side, start
        self.tempering_sweeps, self.max_states = tempering_sweeps, max_states
        self.options = options

    def run(self, dist: RBM, seed: int | None, initial: Tensor | None) -> Result:
        """Log Z of the machines of one chunk."""
        if self.method == "exact":
            value = exact_by_reduction(dist, self.max_states)
            return LogPartitionEstimate.from_error(value, 0.0, {"method": "exact"}, ess=None)
        machine, options = side_machine(dist, self.side), {**self.options, "seed": seed}
        machine.check_normalizable()
        notes = {"layer": type(machine.visible).__name__}
        if is_reduced(machine) and self.method in _ANNEALING and "schedule" not in options:
            options["schedule"] = even_in_coupling(options.pop("num_temperatures", 10_000))
            notes["schedule"] = "even in the coupling"
        if initial is not None:
            options["initial"] = initial
        return _noted(self._estimate(machine, options), notes)

    def _estimate(self, machine: RBM, options: dict[str, Any]) -> Result:
        if self.method in _TEMPERING:
            return tempering_log_partition(machine, self.method, **options)
        if self.method == "bidirectional":
            sweeps = self.tempering_sweeps
            return bidirectional_log_partition(machine, tempering_sweeps=sweeps, **options)
        if self.method == "ais":
            return estimate_log_partition(machine, "ais", **options)
        if self.start == "tempering":
            return self._tempered(machine, options)
        if self.method == "reverse-ais":
            return estimate_log_partition(machine, "reverse-ais", start=self.start, **options)
        return bracket_log_partition(machine, start=self.start, **options)

    def _tempered(self, machine: RBM, options: dict[str, Any]) -> Result:
        """Reverse chains from tempering, with an error bar that knows which of them belong together."""
        seed, num_chains = options.pop("seed"), options.pop("num_chains", _USUAL_CHAINS)
        generator = None
        if seed is not None:
            generator = Generator(device=machine.weight.device).manual_seed(seed + 2)
        path = GeometricPath(machine, base_unit(machine, options.get("base")), generator)
        start = tempered_start(path, num_chains, num_sweeps=self.tempering_sweeps)
        reverse = estimate_log_partition(
            machine,
            "reverse-ais",
            num_chains=len(start.v),
            initial=start.v,
            seed=None if seed is None else seed + 1,
            **options,
        )
        reverse = grouped(reverse, start)
        if self.method == "reverse-ais":
            return reverse
        forward = estimate_log_partition(
            machine, "ais", num_chains=num_chains, seed=seed, **options
        )
        return LogPartitionBracket(forward, reverse)


def _noted(result: Result, notes: dict[str, Any]) -> Result:
    if isinstance(result, LogPartitionBracket):
        sides = (replace(e, settings=e.settings | notes) for e in (result.forward, result.reverse))
        return LogPartitionBracket(*sides)
    return replace(result, settings=result.settings | notes)
