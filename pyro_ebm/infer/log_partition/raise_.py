# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""RAISE: conservative log-likelihoods by annealing the data in reverse."""

import dataclasses
import time
from typing import Any

import torch
from torch import Generator, Size, Tensor
from tqdm.auto import tqdm

from pyro_ebm.distributions import DBM, RBM
from pyro_ebm.infer.log_partition.deep_side import Side, as_side
from pyro_ebm.infer.log_partition.likelihood_estimate import LogLikelihoodEstimate
from pyro_ebm.infer.log_partition.raise_start import DeepRowStart, RowStart
from pyro_ebm.infer.paths import GeometricPath, Path, inverse_temperatures

__all__ = ["raise_log_likelihood"]

#: What the log Z of a deep machine, made of the bounds of its rows, says about itself.
_NO_LOG_Z = "made of mean-field bounds, which are too low: no bound of log Z from either side"


def raise_log_likelihood(
    dist: RBM | DBM,
    data: Tensor,
    *,
    num_rows: int | None = 100,
    num_chains: int = 10,
    num_temperatures: int = 10_000,
    base: Tensor | str | None = None,
    schedule: str | Tensor = "linear",
    path: Path | None = None,
    chunk_size: int = 500,
    seed: int | None = None,
    progress: bool = False,
) -> LogLikelihoodEstimate:
    r"""Estimate the log-likelihood of data from below, by the reverse annealing importance sampling
    estimator (RAISE).

    Annealed importance sampling is a generative model of its own: it draws a state of the base and
    moves it at every temperature, :math:`\beta_1` to :math:`\beta_K = 1`; let
    :math:`p_{ann}(v)` be the probability of its last state. It comes close to the machine's with more
    temperatures. Chains that start at v and run backwards,

    .. math::
        \log \hat p_{ann}(v) = -F(v) - \log Z_0 + \log \frac{1}{M} \sum_{m=1}^M \prod_{k=K}^{1}
            \frac{p^*_{\beta_{k-1}}(x_{k-1})}{p^*_{\beta_k}(x_{k-1})}, \qquad
        x_{k-1} \sim T_{\beta_k}(\,\cdot \mid x_k), \quad x_K = v,

    give the expectation of :math:`\hat p_{ann}(v)` without bias, whatever their number. (Other than in
    reverse AIS the state moves *before* the ratio is taken; block Gibbs sweeps of the visible layer
    are reversible.) Two inequalities of Jensen make the mean log-likelihood conservative: that of the
    logarithm of an average, and that of :math:`p_{ann}` for data from the machine. AIS errs on the other
    side: its log Z is too low, its log-likelihood too high.

    Chains start from ``num_rows`` rows of the data; all rows enter by their exact free energies, see
    :class:`LogLikelihoodEstimate`.

    **Deep machines.** The annealing model is one of all even layers. A chain starts at v and at even hidden
    layers drawn from the mean field q of the posterior, and its weight is divided by their density
    under q; its expectation is then the probability of v under the annealing model [1, section 4], and the
    estimate stays conservative. All rows enter by their mean-field bounds, which are too low, so that
    the ``log_partition`` of the result bounds nothing (its ``side`` is None, and it is flagged).

    **References**

    [1] *Accurate and conservative estimates of MRF log-likelihood using reverse annealing*,
    Yuri Burda, Roger Grosse, Ruslan Salakhutdinov (2015)

    :param dist: an RBM with any batch shape or a DBM without one; an attached log Z is ignored.
    :param Tensor data: rows, shape ``(N, V)`` or ``(N,) + dist.parameter_batch_shape + (V,)``.
    :param int num_rows: rows to start chains from, drawn without replacement, at least 2; all if None.
    :param int num_chains: chains a row, at least 2.
    :param int num_temperatures: steps of the ladder.
    :param base: the visible layer at inverse temperature 0, as for
        :func:`estimate_log_partition`: None, "uniform", or data means.
    :param schedule: as for :func:`estimate_log_partition`.
    :param Path path: the path to anneal along, in the place of the geometric one from ``base``.
    :param int chunk_size: chains that run at the same time, which bounds the memory.
    :param int seed: seed of a generator of its own; the global generator if None.
    :param bool progress: whether to show a progress bar.
    :raises ValueError: for impossible options, data that does not fit, a path that ends elsewhere, or if
        Z is infinite.

    >>> import torch
    >>> from pyro_ebm.distributions import BernoulliRBM
    >>> from pyro_ebm.infer import exact_log_partition
    >>> rbm = BernoulliRBM(torch.eye(3), torch.zeros(3), torch.zeros(3))
    >>> data = rbm.sample((1000,))
    >>> estimate = raise_log_likelihood(rbm, data, num_temperatures=100, seed=0)
    >>> exact = rbm.normalize(exact_log_partition(rbm)).log_prob(data).mean()
    >>> bool((estimate.value - exact).abs() < 0.1)
    True
    """
    started = time.perf_counter()
    chosen = as_side(dist, base)
    machine = chosen.machine
    _check_options(machine, num_rows, num_chains, chunk_size)
    annealed, generator = _make_path(chosen, base is not None, path, seed)
    device = machine.weight.device
    start: RowStart | DeepRowStart
    if isinstance(dist, DBM) and dist.depth > 1:
        start = DeepRowStart(dist, data.to(device))
    else:
        compact = machine.compact()
        start = RowStart(compact, _with_batch(compact, data.to(device)))
    rows = _choose(len(data), num_rows, generator, device)
    betas = inverse_temperatures(
        schedule, num_temperatures, annealed, min(chunk_size, num_chains * len(rows))
    )
    own, log_ratio = _anneal(annealed, start, rows, num_chains, betas, chunk_size, progress)
    log_weights = own - annealed.log_partition_base + log_ratio
    # Elements of an expanded batch share their parameters, hence their chains.
    log_weights, log_density = (
        _expand(x, annealed.batch_shape, machine.batch_shape)
        for x in (log_weights, start.log_density)
    )
    settings: dict[str, Any] = {
        "method": "raise",
        **chosen.settings,
        "num_rows": len(rows),
        "num_data": len(data),
        "num_chains": num_chains,
        "num_temperatures": len(betas) - 1,
        "schedule": schedule if isinstance(schedule, str) else "given",
        "base": _name(base, path),
        "seed": seed,
        "dtype": str(machine.weight.dtype).removeprefix("torch."),
        "device": str(device),
        "seconds": round(time.perf_counter() - started, 3),
    }
    result = LogLikelihoodEstimate.from_log_weights(log_weights, log_density, rows, settings)
    if isinstance(start, DeepRowStart):
        log_z = dataclasses.replace(
            result.log_partition, side=None, flags=(*result.log_partition.flags, _NO_LOG_Z)
        )
        result = dataclasses.replace(result, log_partition=log_z)
    return result


def _make_path(
    chosen: Side, has_base: bool, path: Path | None, seed: int | None
) -> tuple[Path, Generator | None]:
    dist, generator = chosen.machine, None
    if seed is not None:
        generator = Generator(device=dist.weight.device).manual_seed(seed)
    if path is None:
        return GeometricPath(dist, chosen.base, generator), generator
    if has_base:
        raise ValueError("base belongs to the geometric path; a path given has its own")
    end = path.machine(1.0)
    same = end.weight.shape[-2:] == dist.weight.shape[-2:]
    if not same or not bool((end.weight == dist.weight).all()):
        raise ValueError("path must end at the machine whose likelihood is wanted")
    return path if generator is None else path.with_generator(generator), generator


def _anneal(
    path: Path,
    start: RowStart | DeepRowStart,
    rows: Tensor,
    num_chains: int,
    betas: list[float],
    chunk_size: int,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """What chains bring from their start, and logarithms of the products of ratios, both of shape
    ``(num_chains, rows) + batch_shape``."""
    chunks = rows.split(max(1, chunk_size // num_chains))
    down = betas[::-1]
    result: tuple[list[Tensor], list[Tensor]] = ([], [])
    total = len(chunks) * (len(betas) - 1)
    with tqdm(
        total=total, desc="raise", unit="temperature", disable=not progress, leave=False
    ) as bar:
        for chunk in chunks:
            x, own = start.draw(chunk, num_chains, path.generator)
            # The first move is at beta = 1. The one that anneal() ends with, at 0, changes nothing.
            _, log_ratio = path.anneal(path.step(x), down, lambda *_: bar.update())
            for parts, part in zip(result, (own, log_ratio), strict=True):
                parts.append(part.unflatten(0, (len(chunk), num_chains)).movedim(1, 0))
    return torch.cat(result[0], 1), torch.cat(result[1], 1)


def _choose(
    num_data: int, num_rows: int | None, generator: Generator | None, device: torch.device
) -> Tensor:
    """Indices of the rows to start from."""
    if num_data < 2:
        raise ValueError(f"data must have at least 2 rows for a standard error, got {num_data}")
    if num_rows is None or num_rows >= num_data:
        return torch.arange(num_data, device=device)
    return torch.randperm(num_data, generator=generator, device=device)[:num_rows]


def _with_batch(dist: RBM, data: Tensor) -> Tensor:
    """Rows in front of the batch shape of the parameters."""
    batch, size = dist.parameter_batch_shape, dist.event_shape[0]
    if data.dim() == 2 and data.shape[-1] == size:
        lift = (1,) * len(batch)
        return data.reshape(len(data), *lift, size).expand(len(data), *batch, size)
    if data.dim() == 0 or data.shape[1:] != (*batch, size):
        raise ValueError(
            f"data must have shape (N, {size}) or (N,) + {(*batch, size)}, got {tuple(data.shape)}"
        )
    return data


def _expand(x: Tensor, own: Size, batch_shape: Size) -> Tensor:
    leading = x.shape[: x.dim() - len(own)]
    missing = (1,) * (len(batch_shape) - len(own))
    return x.reshape(*leading, *missing, *own).expand(*leading, *batch_shape)


def _name(base: Tensor | str | None, path: Path | None) -> str:
    if path is not None:
        return f"start of a {type(path).__name__}"
    return "data means" if isinstance(base, Tensor) else base or "visible biases"


def _check_options(dist: RBM, num_rows: int | None, num_chains: int, chunk_size: int) -> None:
    counts = {
        "num_rows": (num_rows, 2),
        "num_chains": (num_chains, 2),
        "chunk_size": (chunk_size, 1),
    }
    for name, (value, least) in counts.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    dist.check_normalizable()
