# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Have the chains mixed? One table and a verdict."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Size, Tensor

from pyro_ebm.diagnostics.convergence import MIN_DRAWS, Convergence, convergence_of
from pyro_ebm.diagnostics.inference_data import draws_of, stats_of
from pyro_ebm.diagnostics.quantities import (
    Function,
    check_functions,
    evaluate,
    magnetisation,
    principal_component,
    unit_functions,
)
from pyro_ebm.diagnostics.tables import decimals, markdown_table, significant, text_table
from pyro_ebm.diagnostics.verdict import chain_flags
from pyro_ebm.distributions import EnergyBased

__all__ = ["ChainSummary", "summarize_chains"]

#: Elements of a site beside the machine's that get a row each.
_MAX_ELEMENTS = 8


@dataclass(frozen=True)
class ChainSummary:
    """Convergence of chains, number by number; ``print`` it.

    :param dict rows: :class:`~pyro_ebm.diagnostics.Convergence` by name.
    :param flags: what makes the chains suspicious, short texts; empty if nothing does.
    :param int num_chains: chains.
    :param int num_draws: draws of each.
    :param float seconds: wall time of these draws, None if unknown.
    :param int sweeps_per_draw: sweeps of one chain between two draws, those of all replicas counted;
        None if unknown.
    :param int num_stuck: chains whose state never changed.
    """

    rows: dict[str, Convergence]
    flags: tuple[str, ...]
    num_chains: int
    num_draws: int
    seconds: float | None = None
    sweeps_per_draw: int | None = None
    num_stuck: int = field(default=0)

    @property
    def reliable(self) -> bool:
        """Whether nothing suspicious was found; that is no proof that the chains have mixed."""
        return not self.flags

    def ess_per_second(self, name: str) -> float | None:
        """Bulk effective sample size by second of wall time, None if that is unknown."""
        return None if not self.seconds else self.rows[name].ess_bulk / self.seconds

    def ess_per_sweep(self, name: str) -> float | None:
        """Bulk effective sample size by sweep of a chain (1 for independent draws), or None."""
        if self.sweeps_per_draw is None:
            return None
        sweeps = self.num_chains * self.num_draws * self.sweeps_per_draw
        return self.rows[name].ess_bulk / sweeps

    def to_dict(self) -> dict[str, Any]:
        """All numbers for a report; JSON types only."""
        rows = {}
        for name, row in self.rows.items():
            rows[name] = row.to_dict()
            known = row.to_dict()["ess_bulk"] is not None
            rows[name]["ess_per_second"] = self.ess_per_second(name) if known else None
            rows[name]["ess_per_sweep"] = self.ess_per_sweep(name) if known else None
        names = ("num_chains", "num_draws", "num_stuck", "seconds", "sweeps_per_draw")
        return {"rows": rows, "flags": list(self.flags)} | {n: getattr(self, n) for n in names}

    def _table(self) -> tuple[list[str], list[list[str]]]:
        header = ["", "mean", "sd", "MCSE", "R-hat", "ESS bulk", "ESS tail"]
        header += ["ESS/s"] * (self.seconds is not None)
        header += ["ESS/sweep"] * (self.sweeps_per_draw is not None)
        lines = []
        for name, row in self.rows.items():
            line = [name, significant(row.mean, 4), significant(row.std), significant(row.mcse, 2)]
            line += [decimals(row.r_hat, 3), decimals(row.ess_bulk, 0), decimals(row.ess_tail, 0)]
            if self.seconds is not None:
                line.append(significant(self.ess_per_second(name)))
            if self.sweeps_per_draw is not None:
                line.append(significant(self.ess_per_sweep(name), 2))
            lines.append(line)
        return header, lines

    def to_markdown(self) -> str:
        """The table in Markdown, without the flags."""
        return markdown_table(*self._table())

    def __str__(self) -> str:
        head = f"{self.num_chains} chains x {self.num_draws} draws"
        if self.sweeps_per_draw is not None:
            head += f" x {self.sweeps_per_draw} sweeps"
        if self.seconds is not None:
            head += f", {significant(self.seconds)} s"
        verdict = [f"! {flag}" for flag in self.flags] or ["nothing suspicious found"]
        return "\n".join([head, text_table(*self._table()), *verdict])


def summarize_chains(
    chains: Any,
    dist: EnergyBased | None = None,
    *,
    site: str | None = None,
    units: Sequence[int] = (),
    functions: Mapping[str, Function] | None = None,
    seconds: float | None = None,
    sweeps_per_draw: int | None = None,
    max_r_hat: float = 1.01,
    min_ess: float = 400.0,
) -> ChainSummary:
    r"""Rank-normalised :math:`\hat R`, effective sample sizes and Monte Carlo errors of chains, by ArviZ.

    The numbers are chosen to show what goes wrong with chains of a machine: the **energy** (the free
    energy of the visible state), slow where the chain is slow; the **magnetisation** (the mean state);
    and the **leading direction** in which the draws of all chains vary most, which separates modes that
    have the same energy and magnetisation. Single ``units`` and any ``functions`` can be added.

    ``flags`` says what is suspicious: an R-hat above ``max_r_hat``, effective sample sizes below
    ``min_ess`` in total, chains that never moved, chains that look converged one by one and
    contradict each other, a single chain. No flag is no proof: chains that all started in one mode agree.

    :param chains: a :class:`~pyro_ebm.infer.VectorizedMCMC` or :class:`pyro.infer.MCMC` after ``run()``,
        draws of shape ``(chains, draws, *batch, V)``, or a mapping of sites to such draws.
    :param dist: the machine, for the energy; the energies that the kernel has recorded if None.
    :param str site: name of the machine's state; found by itself if it is ``"v"``, the kernel's or the
        only one. Numbers of other sites have rows of their own.
    :param units: numbers of visible units to add.
    :param functions: further functions of the visible state, ``(..., V)`` to ``(...)``, by name.
    :param float seconds: wall time of the draws; that of the sampling phase, if the driver knows it.
    :param int sweeps_per_draw: sweeps of a chain between two draws; the kernel's, if it is known.
    :param float max_r_hat: R-hat that is flagged above.
    :param float min_ess: bulk and tail effective sample size that is flagged below; 400 is the usual advice.
    :raises ValueError: for shapes that do not fit, fewer than 8 draws, or a site or unit that is not there.
    :raises TypeError: if ``chains`` is none of the above.

    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import BlockGibbs, VectorizedMCMC
    >>> rbm = BernoulliRBM(0.1 * torch.randn(20, 10), torch.zeros(20), torch.zeros(10))
    >>> mcmc = VectorizedMCMC(BlockGibbs(rbm), 500, 100, num_chains=4, disable_progbar=True)
    >>> mcmc.run()
    >>> summary = summarize_chains(mcmc, rbm, units=[0])
    >>> list(summary.rows), summary.reliable
    (['energy', 'magnetisation', 'leading direction', 'v[0]'], True)
    """
    draws = _read_draws(chains)
    kernel = getattr(chains, "kernel", None)
    site = _machine_site(draws, site, kernel)
    shape = _check_draws(draws)
    numbers = dict(_energies(chains, draws, site, dist))
    if site is not None:
        batch = _batch_shape(draws[site], dist, numbers.get("energy"))
        v = draws[site].reshape(*shape, *batch, -1)
        added = unit_functions(units, v.shape[-1], site) | check_functions(functions)
        for name, function in _machine_functions(v, added):
            numbers[name] = evaluate(function, v)
    for name, value in draws.items():
        # What a kernel keeps of its own, such as the identities of replicas, is named after the site.
        if site is None or (name != site and not name.startswith(f"{site}.")):
            numbers.update(_other_site(name, value))
    rows = dict(_rows(numbers))
    num_stuck = 0 if site is None else _count_stuck(draws[site])
    flags = chain_flags(rows, shape[0], num_stuck, max_r_hat=max_r_hat, min_ess=min_ess)
    seconds = getattr(chains, "seconds", None) if seconds is None else seconds
    if sweeps_per_draw is None:
        sweeps_per_draw = kernel_sweeps(kernel)
    return ChainSummary(rows, flags, shape[0], shape[1], seconds, sweeps_per_draw, num_stuck)


def kernel_sweeps(kernel: Any) -> int | None:
    """Sweeps of one chain that a draw of a kernel costs, those of all replicas counted."""
    steps = getattr(kernel, "num_steps", None)
    if not isinstance(steps, int):
        return None
    try:
        return steps * len(getattr(kernel, "betas", (1.0,)))
    except RuntimeError:
        # A ladder that is to be tuned is known only after the setup.
        return None


def _read_draws(chains: Any) -> dict[str, Tensor]:
    if isinstance(chains, Tensor):
        return {"v": chains.detach()}
    return {name: torch.as_tensor(value).detach() for name, value in draws_of(chains).items()}


def _machine_site(draws: Mapping[str, Tensor], site: str | None, kernel: Any) -> str | None:
    if site is not None:
        if site not in draws:
            raise ValueError(f"site must be one of {sorted(draws)}, got {site!r}")
        return site
    candidates = ["v", getattr(kernel, "site", None)]
    found = next((name for name in candidates if name in draws), None)
    if found is None and len(draws) == 1:
        (only,) = draws
        found = only if draws[only].dim() > 2 else None
    return found


def _check_draws(draws: Mapping[str, Tensor]) -> tuple[int, int]:
    shapes = {tuple(value.shape[:2]) for value in draws.values()}
    if len(shapes) != 1 or min(value.dim() for value in draws.values()) < 2:
        got = {name: tuple(value.shape) for name, value in draws.items()}
        raise ValueError(f"draws must have shape (chains, draws, *event) throughout, got {got}")
    num_chains, num_draws = next(iter(shapes))
    if num_draws < MIN_DRAWS:
        raise ValueError(
            f"there must be at least {MIN_DRAWS} draws of every chain, got {num_draws}"
        )
    return num_chains, num_draws


def _energies(
    chains: Any, draws: Mapping[str, Tensor], site: str | None, dist: EnergyBased | None
) -> Iterator[tuple[str, Tensor]]:
    if dist is not None:
        if site is None:
            raise ValueError(f"site must name the state of dist; the sites are {sorted(draws)}")
        event, batch = dist.event_shape, dist.batch_shape
        if draws[site].shape[2:] != batch + event:
            raise ValueError(
                f"draws of {site!r} must have shape (chains, draws, *{tuple(batch + event)}), "
                f"got {tuple(draws[site].shape)}"
            )
        yield "energy", evaluate(dist.free_energy, draws[site])
    elif not isinstance(chains, Mapping | Tensor):
        recorded = stats_of(chains).get("energy")
        if recorded is not None:
            yield "energy", torch.as_tensor(recorded).detach().double().cpu()


def _batch_shape(v: Tensor, dist: EnergyBased | None, energy: Tensor | None) -> Size:
    """Axes of the draws that are machines of their own."""
    if dist is not None:
        return dist.batch_shape
    batch = Size() if energy is None else energy.shape[2:]
    return batch if v.shape[2 : 2 + len(batch)] == batch and v.dim() > 2 + len(batch) else Size()


def _machine_functions(v: Tensor, added: Mapping[str, Function]) -> Iterator[tuple[str, Function]]:
    yield "magnetisation", magnetisation
    direction = principal_component(v)
    if direction is not None:
        yield "leading direction", direction
    yield from added.items()


def _other_site(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    flat = value.reshape(*value.shape[:2], -1)
    if flat.shape[-1] > _MAX_ELEMENTS:
        direction = principal_component(flat)
        if direction is not None:
            yield f"{name}: leading direction", evaluate(direction, flat)
    else:
        yield name, value.double().cpu()


def _rows(numbers: Mapping[str, Tensor]) -> Iterator[tuple[str, Convergence]]:
    """A row for every number and every element of a batch."""
    for name, values in numbers.items():
        indices = itertools.product(*(range(size) for size in values.shape[2:]))
        for number, index in enumerate(indices):
            label = f"{name}[{','.join(map(str, index))}]" if index else name
            element = values.reshape(*values.shape[:2], -1)[..., number]
            yield label, convergence_of(element.numpy())


def _count_stuck(v: Tensor) -> int:
    moved = (v != v[:, :1]).flatten(1).any(1)
    return int((~moved).sum())
