# Copyright Contributors to the pyro_ebm project.
# SPDX-License-Identifier: Apache-2.0

"""Posterior draws and means of missing entries."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pyro_ebm.distributions import RBM
from pyro_ebm.distributions.clamped_sweep import ClampedSweep
from pyro_ebm.distributions.observed_rows import ObservedRows
from pyro_ebm.infer.missing.hidden_posterior import HiddenPosterior
from pyro_ebm.infer.missing.row_chunks import split_rows

__all__ = ["Imputation", "impute"]

#: Entries of the table of posterior probabilities of one chunk of rows: 64 MiB in float64.
_CHUNK_ENTRIES = 2**23


@dataclass(frozen=True)
class Imputation:
    r"""Completed rows.

    :param Tensor samples: draws from :math:`p(v_m \mid v_o)` with the observed values in their places,
        shape ``(num_samples,) + rows + (V,)``.
    :param Tensor mean: :math:`E[v_m \mid v_o]` with the observed values in their places, shape
        ``rows + (V,)``. From chains it is the average of :math:`E[v_m \mid h]` over their last hidden
        states, which has less variance than the average of the draws.
    :param Tensor std_error: standard error of ``mean``: zero if it is exact, otherwise from the spread
        between the chains (NaN with one chain). It does not see chains that have not mixed.
    :param bool exact: whether hidden states were drawn from their exact posterior.
    """

    samples: Tensor
    mean: Tensor
    std_error: Tensor
    exact: bool


@torch.no_grad()
def impute(
    dist: RBM,
    value: Tensor,
    observed: Tensor,
    num_samples: int = 1,
    num_steps: int = 1000,
    *,
    max_states: int = 2**12,
    initial: Tensor | None = None,
    generator: Generator | None = None,
) -> Imputation:
    r"""Draw the missing entries of rows given the observed ones; rows may miss different entries.

    **Exact** where the hidden layer has at most ``max_states`` states: its posterior given the observed
    entries is then a table, hidden states are drawn from it, and missing entries given them.
    Otherwise by block Gibbs (:class:`ClampedSweep`), every sample the end of a chain of its own, which
    starts at a draw of the visible layer without the weights. One weight serves all rows either way.

    For rows that all miss the same entries see also :func:`~pyro_ebm.infer.completions`, which takes
    any kernel, tempering among them.

    :param RBM dist: the machine, with any batch shape, such as an NBM's ``condition(x)``.
    :param Tensor value: shape ``(..., V)``, whose batch shape broadcasts with the machine's; read only
        where ``observed`` is True, so that missing places may hold NaN.
    :param Tensor observed: boolean, shape ``(..., V)``; True where an entry is observed. One-hot groups
        are observed or missing as a whole.
    :param int num_samples: draws of every row.
    :param int num_steps: sweeps of every chain, at least 1; not used where draws are exact.
    :param int max_states: enumerate no more hidden states than this.
    :param Tensor initial: where chains start, shape ``(num_samples,) + rows + (V,)`` or broadcasting to
        it, of any dtype; read only at missing entries; it makes chains of the Gibbs kind even where draws
        could be exact.
    :param torch.Generator generator: the source of random bits; the global one if None.
    :raises ValueError: for rows that :meth:`RBM.clamp_rows` refuses, numbers below 1, or an ``initial``
        of a wrong shape or with a missing entry that is not finite or outside of the support.
    :raises TypeError: if ``dist`` is no RBM or ``initial`` no tensor.

    >>> import torch
    >>> from pyro_ebm.distributions import GaussianBernoulliRBM
    >>> from pyro_ebm.infer import impute
    >>> weight = torch.tensor([[3.0], [3.0]])
    >>> rbm = GaussianBernoulliRBM(weight, torch.zeros(2), torch.ones(2), torch.full((1,), -9.0))
    >>> value = torch.tensor([[3.0, torch.nan], [torch.nan, -3.0]])
    >>> impute(rbm, value, ~value.isnan(), num_samples=5).mean.round(decimals=2)
    tensor([[ 3.0000,  2.9700],
            [ 0.0000, -3.0000]])
    """
    if num_samples < 1 or num_steps < 1:
        raise ValueError(
            f"num_samples and num_steps must be at least 1, got {num_samples} and {num_steps}"
        )
    if not isinstance(dist, RBM):
        raise TypeError(f"dist must be an RBM, got {type(dist).__name__}")
    dist.check_normalizable()
    rows = ObservedRows(dist, value, observed, validate=True)
    states = dist.hidden.num_states
    if initial is None and states is not None and states <= max_states:
        return _exact(dist.compact().detach(), rows, num_samples, generator)
    return _gibbs(dist.detach(), rows, num_samples, num_steps, initial, generator)


def _exact(
    dist: RBM, rows: ObservedRows, num_samples: int, generator: Generator | None
) -> Imputation:
    shape, visible = rows.batch_shape, dist.visible
    double = dist.to(dtype=torch.float64)
    samples, means = [], []
    for chunk in split_rows(double, rows, shape, _CHUNK_ENTRIES // (dist.hidden.num_states or 1)):
        posterior = HiddenPosterior(double, chunk)
        p = posterior.probabilities()
        h = posterior.sample(p, num_samples, generator).to(dist.weight.dtype)
        v = visible.sample(dist.visible_field(h), generator)
        samples.append(chunk.complete(v))
        means.append(chunk.complete(posterior.visible_mean(p)))
    mean = torch.cat(means).reshape(*shape, visible.size).to(dist.weight.dtype)
    drawn = torch.cat(samples, 1).reshape(num_samples, *shape, visible.size).to(dist.weight.dtype)
    return Imputation(rows.complete(drawn), rows.complete(mean), torch.zeros_like(mean), True)


def _gibbs(
    dist: RBM,
    rows: ObservedRows,
    num_samples: int,
    num_steps: int,
    initial: Tensor | None,
    generator: Generator | None,
) -> Imputation:
    sweep = ClampedSweep.of_rows(dist, rows, generator)
    if initial is None:
        start = sweep.initial((num_samples,))
    else:
        start = _checked_start(initial, sweep, rows, num_samples)
    h = sweep.sample_hidden(sweep.run(start, num_steps - 1))
    theta = sweep.visible_theta(h)
    samples = sweep.complete(dist.visible.natural_sample(theta, generator))
    means = dist.visible.natural_mean(theta)
    mean = sweep.complete(means.mean(0))
    if num_samples > 1 and means.numel() > 0:
        error = means.std(0) / math.sqrt(num_samples)
    else:
        error = torch.full_like(mean, math.nan)
    return Imputation(samples, mean, torch.where(rows.observed, 0.0, error), False)


def _checked_start(
    initial: Tensor, sweep: ClampedSweep, rows: ObservedRows, num_samples: int
) -> Tensor:
    if not isinstance(initial, Tensor):
        raise TypeError(f"initial must be a tensor, got {type(initial).__name__}")
    shape = (num_samples, *sweep.batch_shape, sweep.num_visible)
    try:
        start = initial.to(rows.value).expand(shape)
    except RuntimeError as error:
        raise ValueError(
            f"initial must broadcast to {shape}, got shape {tuple(initial.shape)}"
        ) from error
    start = sweep.complete(start)
    if not bool(torch.isfinite(start).all()):
        raise ValueError("initial is NaN or infinite at a missing entry")
    bad = ~rows.terms.check_support(start) & ~rows.units
    if bool(bad.any()):
        raise ValueError(
            f"initial is outside of the support at {int(bad.sum())} missing units of its chains"
        )
    return start
