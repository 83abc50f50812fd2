# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Log-likelihoods of rows under deep machines: bounds of any tightness."""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from pyro_ebm.distributions import DBM
from pyro_ebm.distributions.enumeration import enumerable_side
from pyro_ebm.infer.log_partition.ais import estimate_log_partition
from pyro_ebm.infer.log_partition.deep_estimate import DeepLogLikelihood, RowDensities, as_sides
from pyro_ebm.infer.log_partition.diagnosis import suspicions
from pyro_ebm.infer.log_partition.estimate import LogPartitionWarning
from pyro_ebm.infer.log_partition.exact import exact_log_partition
from pyro_ebm.infer.log_partition.likelihood import check_data
from pyro_ebm.infer.log_partition.row_posteriors import RowPosteriors, rows_of_chunk
from pyro_ebm.infer.paths.two_sided import TwoSidedPath
from pyro_ebm.ops.numerics import effective_sample_size, log_mean_exp, log_mean_exp_error

__all__ = ["deep_log_likelihood"]

_METHODS = ("auto", "exact", "mean-field", "importance", "ais")
#: States of a side of the posterior up to which "auto" enumerates it.
_AUTO_STATES = 2**12
#: Rows whose states are enumerated at a time are so many times fewer than those that are not.
_EXACT_COPIES = 256
#: Rows whose weights may look suspicious by chance, as a part of all.
_SUSPICIOUS_ROWS = 0.05


def deep_log_likelihood(
    dbm: DBM,
    data: Tensor,
    log_partition: Any,
    method: str = "auto",
    *,
    num_samples: int = 100,
    num_temperatures: int = 100,
    schedule: str | Tensor = "linear",
    max_states: int = 2**20,
    chunk_rows: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> DeepLogLikelihood:
    r"""Log-likelihoods :math:`\log p(v) = \log p^*(v) - \log Z` of rows under a deep machine.

    :math:`\log p^*(v)` is the log Z of the hidden layers given v (:meth:`DBM.posterior`), by one of

    =================  ==========================================================================
    ``"exact"``        enumeration of the odd or of the even hidden layers
    ``"mean-field"``   the bound :math:`E_q[-E(v, x)] + H(q)` of the mean field q, as
                       :func:`log_likelihood`
    ``"importance"``   the logarithm of the mean of :math:`p^*(v, x_1, x_3, \dots) / q(x_1, x_3, \dots)`
                       over draws from q, with the layers :math:`x_2, x_4, \dots` summed out exactly [1]
    ``"ais"``          annealed importance sampling of the hidden layers from q to the posterior [2, 3]
    =================  ==========================================================================

    In expectation each is at most the next one in the order mean-field, importance, exact, and grows with
    ``num_samples``; AIS with one temperature is importance sampling, and with more of them comes as
    close to the exact value as one likes. All but ``"exact"`` are **lower bounds** of
    :math:`\log p^*(v)`. With log Z from reverse AIS, or a bracket, ``pessimistic`` is then a lower bound of
    the likelihood; with log Z from AIS, which is too low, the two errors go against each other.

    With one hidden layer every method is exact. Everything is done in float64, some rows at a time.

    **References**

    [1] *Importance weighted autoencoders*, Yuri Burda, Roger Grosse, Ruslan Salakhutdinov (2016)

    [2] *Annealed importance sampling*, Radford Neal (2001)

    [3] *On the quantitative analysis of deep belief networks*, Ruslan Salakhutdinov, Iain Murray (2008)

    :param DBM dbm: the machine, without a batch shape; an attached log Z is ignored.
    :param Tensor data: rows, shape ``(rows, V)``.
    :param log_partition: log Z as a number, an estimate or a bracket.
    :param str method: one of the above, or "auto": exact where a side of the hidden layers has at most 4096
        states, otherwise "importance".
    :param int num_samples: draws (importance) or chains (AIS) of every row, at least 2.
    :param int num_temperatures: steps of the ladder of AIS.
    :param schedule: temperatures of AIS, as for :func:`estimate_log_partition`.
    :param int max_states: of ``"exact"``: refuse more states than this.
    :param int chunk_rows: rows that are worked off at a time; as many as fit into about half a GiB if None.
        Draws depend on it.
    :param int seed: seed of generators of its own, ``seed + i`` for chunk i; the global one if None.
    :param bool progress: whether to show a progress bar over rows.
    :raises TypeError: if ``dbm`` is no DBM.
    :raises ValueError: for impossible options, a machine with a batch shape, data of a wrong shape or outside
        of the support, or log Z that is not that of one machine.

    >>> import torch
    >>> from pyro_ebm.distributions import DBM, units
    >>> from pyro_ebm.infer import deep_log_likelihood, exact_log_partition
    >>> layers = [units.Bernoulli(torch.zeros(n)) for n in (4, 3, 2)]
    >>> dbm = DBM(layers, [torch.ones(4, 3), -torch.ones(3, 2)])
    >>> log_z = exact_log_partition(dbm)
    >>> data = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    >>> exact = deep_log_likelihood(dbm, data, log_z, "exact")
    >>> bound = deep_log_likelihood(dbm, data, log_z, "mean-field")
    >>> bool((bound.rows < exact.rows).all()), exact.side, bound.side
    (True, None, 'below')
    """
    started = time.perf_counter()
    estimates = as_sides(log_partition)
    options = _Options(
        num_samples, num_temperatures, schedule, max_states, chunk_rows, seed, progress
    )
    rows = _check(dbm, data, method, options)
    with torch.no_grad():
        densities = _densities(dbm.detach().to(dtype=torch.float64), rows, method, options)
    densities.settings["num_rows"] = len(rows)
    densities.settings["seconds"] = round(time.perf_counter() - started, 3)
    if densities.flags:
        warnings.warn("; ".join(densities.flags), LogPartitionWarning, stacklevel=2)
    return DeepLogLikelihood.from_densities(densities, estimates)


@dataclass(frozen=True)
class _Options:
    """The options of :func:`deep_log_likelihood`."""

    num_samples: int
    num_temperatures: int
    schedule: str | Tensor
    max_states: int
    chunk_rows: int | None
    seed: int | None
    progress: bool

    def generator(self, number: int, device: torch.device) -> Generator | None:
        """That of a chunk."""
        if self.seed is None:
            return None
        return Generator(device=device).manual_seed(self.seed + number)

    def settings(self, method: str) -> dict[str, Any]:
        """Those that the method reads."""
        settings: dict[str, Any] = {"method": method}
        if method in ("importance", "ais"):
            settings |= {"num_samples": self.num_samples, "seed": self.seed}
        if method == "ais":
            given = isinstance(self.schedule, Tensor)
            settings["num_temperatures"] = (
                len(self.schedule) - 1 if given else self.num_temperatures
            )
            settings["schedule"] = "given" if given else self.schedule
        return settings


def _check(dbm: DBM, data: Tensor, method: str, options: _Options) -> Tensor:
    """The rows in float64."""
    if not isinstance(dbm, DBM):
        raise TypeError(f"dbm must be a DBM, got {type(dbm).__name__}")
    if dbm.batch_shape:
        raise ValueError(f"dbm must have no batch shape, got {tuple(dbm.batch_shape)}")
    if method not in _METHODS:
        raise ValueError(f"method must be one of {_METHODS}, got {method!r}")
    least = {"num_samples": 2, "num_temperatures": 1, "max_states": 1, "chunk_rows": 1}
    for name, number in least.items():
        value = getattr(options, name)
        if value is not None and value < number:
            raise ValueError(f"{name} must be at least {number}, got {value}")
    if data.dim() != 2 or not len(data):
        raise ValueError(f"data must have shape (rows, {dbm.sizes[0]}), got {tuple(data.shape)}")
    check_data(dbm, data)
    dbm.check_normalizable()
    return data.to(device=dbm.weights[0].device, dtype=torch.float64)


def _densities(dbm: DBM, rows: Tensor, method: str, options: _Options) -> RowDensities:
    if dbm.depth == 1:
        value = -dbm.free_energy(rows)
        zero, nan = torch.zeros_like(value), torch.full_like(value, torch.nan)
        return RowDensities(value, zero, nan, True, {"method": "exact"})
    if method == "auto":
        side = enumerable_side(dbm.posterior(rows[0]).bipartite())
        states = None if side is None else side.visible.num_states
        small = states is not None and states <= min(_AUTO_STATES, options.max_states)
        method = "exact" if small else "importance"
    copies = {"exact": _EXACT_COPIES, "mean-field": 1}.get(method, options.num_samples)
    max_rows = options.chunk_rows or rows_of_chunk(dbm, copies)
    settings = {**options.settings(method), "chunk_rows": max_rows}
    parts = []
    with tqdm(
        total=len(rows), desc=method, unit="row", leave=False, disable=not options.progress
    ) as bar:
        for part in _parts(dbm, rows, method, max_rows, options):
            parts.append(part)
            bar.update(part.shape[-1])
    return _combined(torch.cat(parts, -1), method, settings)


def _parts(
    dbm: DBM, rows: Tensor, method: str, max_rows: int, options: _Options
) -> Iterator[Tensor]:
    """Log-densities of chunks of rows, shape ``(rows,)``, or weights, shape ``(num_samples, rows)``."""
    if method == "exact":
        for some in rows.split(max_rows):
            yield exact_log_partition(dbm.posterior(some), max_states=options.max_states)
        return
    for number, chunk in enumerate(RowPosteriors.chunks(dbm, rows, max_rows)):
        if method == "mean-field":
            yield chunk.bound
        elif method == "importance":
            yield _importance(chunk, options.num_samples, options.generator(number, rows.device))
        else:
            yield _ais(chunk, options, number)


def _combined(log_weights: Tensor, method: str, settings: dict[str, Any]) -> RowDensities:
    """Rows from their weights, or from numbers without a spread."""
    if log_weights.dim() == 1:
        zero, nan = torch.zeros_like(log_weights), torch.full_like(log_weights, torch.nan)
        return RowDensities(log_weights, zero, nan, method == "exact", settings)
    found = suspicions(log_weights)
    share = found.elements.double().mean().item()
    flags: tuple[str, ...] = ()
    if share > _SUSPICIOUS_ROWS:
        more = "num_temperatures" if method == "ais" else 'num_samples, or method="ais"'
        flags = (
            f"the weights of {share:.0%} of the rows hang on few draws: their bounds are loose and "
            f"their errors too small; use more {more}",
        )
    return RowDensities(
        log_mean_exp(log_weights),
        log_mean_exp_error(log_weights),
        effective_sample_size(log_weights),
        False,
        settings,
        flags,
    )


def _importance(chunk: RowPosteriors, num_samples: int, generator: Generator | None) -> Tensor:
    r"""Log-weights of draws, shape ``(num_samples, rows)``. The base measures of p and q cancel:
    :math:`(b - \theta)^\top x + A_h(c + W^\top x) + K + A(\theta)`."""
    machine, theta = chunk.machine, chunk.theta
    form = machine.canonical()
    x = machine.visible.natural_sample(theta.expand(num_samples, -1, -1), generator)
    pull = ((form.visible_bias - theta) * x).sum(-1)
    hidden = machine.hidden.natural_log_partition(form.hidden_bias + x @ form.weight)
    return pull + hidden + form.constant + machine.visible.natural_log_partition(theta)


def _ais(chunk: RowPosteriors, options: _Options, number: int) -> Tensor:
    """Log-weights of chains, shape ``(num_samples, rows)``."""
    machine = chunk.machine
    visible, hidden = machine.visible, machine.hidden
    base = visible.tilt(chunk.theta - visible.natural_bias)[0]
    hidden_base = hidden.tilt(chunk.hidden_theta - hidden.natural_bias)[0]
    with warnings.catch_warnings():  # one warning for all chunks, by the caller
        warnings.simplefilter("ignore", LogPartitionWarning)
        estimate = estimate_log_partition(
            machine,
            num_chains=options.num_samples,
            num_temperatures=options.num_temperatures,
            schedule=options.schedule,
            path=TwoSidedPath(machine, base, hidden_base),
            seed=None if options.seed is None else options.seed + number,
        )
    assert estimate.log_weights is not None
    return estimate.log_weights
